import os
from pathlib import Path

import pytest

from health_ml.environment import (
    RunEnvironment,
    environment_variables,
    process_environment,
    restored_environment,
    working_directory,
)
from health_ml.errors import ArgumentsError


def test_an_empty_environment_is_one_process_outside_azureml() -> None:
    environment = RunEnvironment.from_env({})
    assert environment == RunEnvironment()
    assert environment.is_global_rank_zero
    assert environment.is_local_rank_zero


def test_torchrun_variables() -> None:
    environment = RunEnvironment.from_env(
        {
            "RANK": "5",
            "LOCAL_RANK": "1",
            "GROUP_RANK": "2",
            "WORLD_SIZE": "6",
            "MASTER_ADDR": "node0",
            "MASTER_PORT": "29500",
        }
    )
    assert (environment.rank, environment.local_rank, environment.node_rank, environment.world_size) == (5, 1, 2, 6)
    assert (environment.main_address, environment.main_port) == ("node0", 29500)
    assert not environment.is_global_rank_zero
    assert not environment.is_local_rank_zero


def test_mpi_variables_as_azureml_sets_them() -> None:
    environment = RunEnvironment.from_env(
        {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "AZUREML_RUN_ID": "job_1"}
    )
    assert (environment.rank, environment.world_size, environment.run_id) == (1, 2, "job_1")
    assert environment.is_in_azureml


def test_second_node_without_a_global_rank_is_not_rank_zero() -> None:
    environment = RunEnvironment.from_env({"NODE_RANK": "1"})
    assert environment.is_local_rank_zero
    assert not environment.is_global_rank_zero


def test_our_own_variables(tmp_path: Path) -> None:
    environment = RunEnvironment.from_env(
        {
            "HIML_RUN_ID": "run",
            "AZUREML_RUN_ID": "job",
            "HIML_RUN_FOLDER": str(tmp_path),
            "HIML_START_DIRECTORY": str(tmp_path / "start"),
            "HIML_ATTEMPT": "3",
        }
    )
    assert environment.run_id == "run"
    assert environment.run_folder == tmp_path
    assert environment.start_directory == tmp_path / "start"
    assert environment.attempt == 3


def test_all_variables_that_are_no_numbers_are_named_at_once() -> None:
    variables = {"RANK": "first", "WORLD_SIZE": "-2", "MASTER_PORT": "²"}
    with pytest.raises(ArgumentsError, match=r"RANK='first', WORLD_SIZE='-2', MASTER_PORT='²'"):
        RunEnvironment.from_env(variables)


def test_environment_variables_are_put_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIML_TEST_A", "before")
    monkeypatch.setenv("HIML_TEST_C", "kept")

    def change_and_fail() -> None:
        with environment_variables({"HIML_TEST_A": "inside", "HIML_TEST_B": "new", "HIML_TEST_C": None}):
            assert process_environment()["HIML_TEST_A"] == "inside"
            assert os.environ["HIML_TEST_B"] == "new"
            assert "HIML_TEST_C" not in os.environ
            raise RuntimeError("inside the block")

    with pytest.raises(RuntimeError, match="inside the block"):
        change_and_fail()
    assert os.environ["HIML_TEST_A"] == "before"
    assert "HIML_TEST_B" not in os.environ
    assert os.environ["HIML_TEST_C"] == "kept"


def test_restored_environment_undoes_whatever_the_body_did(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIML_TEST_A", "before")
    monkeypatch.setenv("HIML_TEST_B", "before")
    with restored_environment():
        os.environ["HIML_TEST_A"] = "changed"
        del os.environ["HIML_TEST_B"]
        os.environ["HIML_TEST_NEW"] = "1"
    assert (os.environ["HIML_TEST_A"], os.environ["HIML_TEST_B"]) == ("before", "before")
    assert "HIML_TEST_NEW" not in os.environ


def test_working_directory_is_restored_after_an_error(tmp_path: Path) -> None:
    before = Path.cwd()

    def enter_and_fail() -> None:
        with working_directory(tmp_path) as folder:
            assert Path.cwd() == folder == tmp_path
            raise RuntimeError("inside the block")

    with pytest.raises(RuntimeError, match="inside the block"):
        enter_and_fail()
    assert Path.cwd() == before

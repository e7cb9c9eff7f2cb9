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
from health_ml.errors import ArgumentsError, PlanError


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


def in_azureml(**variables: str) -> RunEnvironment:
    return RunEnvironment.from_env({"AZUREML_RUN_ID": "job_1", **variables})


def mpi(rank: int, size: int, local_rank: int = 0, local_size: int = 1) -> dict[str, str]:
    values = {"RANK": rank, "SIZE": size, "LOCAL_RANK": local_rank, "LOCAL_SIZE": local_size}
    return {f"OMPI_COMM_WORLD_{name}": str(value) for name, value in values.items()}


def pytorch(rank: int, size: int, local_rank: int, node: int) -> dict[str, str]:
    values = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": local_rank, "NODE_RANK": node}
    return {name: str(value) for name, value in values.items()} | {"MASTER_ADDR": "10.0.0.4", "MASTER_PORT": "6105"}


def given(variables: dict[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in variables.items() if value is not None}


def test_mpi_with_one_process_on_each_node_lets_lightning_start_the_others() -> None:
    environment = in_azureml(**mpi(2, 3), AZ_BATCH_MASTER_NODE="10.0.0.4:6000")
    assert (environment.node_rank, environment.local_rank, environment.rank) == (2, 0, 2)
    assert environment.is_local_rank_zero
    assert not environment.is_global_rank_zero
    variables = environment.launch_variables(num_nodes=3)
    assert given(variables) == {"MASTER_ADDR": "10.0.0.4", "MASTER_PORT": "6000", "NODE_RANK": "2"}
    assert variables["OMPI_COMM_WORLD_RANK"] is None, "a started process would take it for its own"
    assert variables["LOCAL_RANK"] is None, "Lightning would believe that the others are there"


def test_mpi_with_several_processes_on_each_node() -> None:
    environment = in_azureml(**mpi(5, 8, local_rank=1, local_size=4), AZ_BATCHAI_MPI_MASTER_NODE="10.0.0.4")
    assert (environment.node_rank, environment.local_rank, environment.rank) == (1, 1, 5)
    assert given(environment.launch_variables(num_nodes=2)) == {
        "MASTER_ADDR": "10.0.0.4",
        "MASTER_PORT": "6105",
        "NODE_RANK": "1",
        "RANK": "5",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "4",
        "WORLD_SIZE": "8",
    }


def test_pytorch_jobs_with_one_and_with_several_processes_on_each_node() -> None:
    one = in_azureml(**pytorch(1, 2, 0, 1)).launch_variables(num_nodes=2)
    assert given(one) == {"MASTER_ADDR": "10.0.0.4", "MASTER_PORT": "6105", "NODE_RANK": "1"}
    two = in_azureml(**pytorch(3, 4, 1, 1)).launch_variables(num_nodes=2)
    assert given(two) == {**pytorch(3, 4, 1, 1), "LOCAL_WORLD_SIZE": "2"}
    on_one_node = in_azureml(**pytorch(1, 2, 1, 0)).launch_variables(num_nodes=1)
    assert given(on_one_node) == {**pytorch(1, 2, 1, 0), "LOCAL_WORLD_SIZE": "2"}


def test_a_single_process_in_azureml_and_one_outside_need_no_variables() -> None:
    assert given(in_azureml().launch_variables(num_nodes=1)) == {}
    assert given(in_azureml(**mpi(0, 1)).launch_variables(num_nodes=1)) == {}
    assert RunEnvironment.from_env(pytorch(1, 2, 1, 0)).launch_variables(num_nodes=1) == {}


def test_a_process_that_the_runner_has_started_keeps_its_variables() -> None:
    environment = in_azureml(**pytorch(1, 2, 1, 0), HIML_START_DIRECTORY="/job")
    assert environment.launch_variables(num_nodes=1) == {}


def test_several_nodes_without_a_first_one_are_an_error() -> None:
    with pytest.raises(PlanError, match="for 2 machines, but no variable says which the first one is"):
        in_azureml(**mpi(0, 2)).launch_variables(num_nodes=2)


@pytest.mark.parametrize("node", ["10.0.0.4:", "10.0.0.4:port", ":6105"])
def test_an_address_in_another_form_is_an_error(node: str) -> None:
    with pytest.raises(ArgumentsError, match=f"Format not recognized: AZ_BATCH_MASTER_NODE='{node}'"):
        in_azureml(AZ_BATCH_MASTER_NODE=node)


def test_the_address_of_the_first_node_is_taken_from_what_azureml_says_most_precisely() -> None:
    variables = {"AZ_BATCHAI_MPI_MASTER_NODE": "second", "MASTER_IP": "third", "AZ_BATCH_MASTER_NODE": "first"}
    assert in_azureml(**variables).main_address == "first"
    assert in_azureml(**variables, MASTER_ADDR="explicit").main_address == "explicit"
    del variables["AZ_BATCH_MASTER_NODE"]
    assert in_azureml(**variables).main_address == "second"
    assert in_azureml(**{**variables, "AZ_BATCHAI_MPI_MASTER_NODE": "localhost"}).main_address == "third"


def test_children_of_a_sweep_know_their_parent() -> None:
    assert in_azureml(AZUREML_ROOT_RUN_ID="sweep_1").parent_id == "sweep_1"
    assert in_azureml(AZUREML_ROOT_RUN_ID="job_1").parent_id is None
    assert in_azureml().parent_id is None


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

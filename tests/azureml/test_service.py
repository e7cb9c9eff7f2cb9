"""The stand-in starts fast, ends cleanly, and says why it cannot be had."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import psutil
import pytest

from tests.azureml.azurite import AzuriteMissingError, install_azurite
from tests.azureml.search import trial_values
from tests.azureml.service import AzureML, start_stand_in


def test_it_starts_fast_and_leaves_nothing(azureml: AzureML) -> None:
    """The first one of the session has installed Azurite by now; alone on a machine it takes less than two seconds."""
    threads, children = set(threading.enumerate()), {child.pid for child in psutil.Process().children()}
    start = time.monotonic()
    service, folder = start_stand_in()
    seconds = time.monotonic() - start
    service.azurite.write(service.workspace.default_container, "a", b"b")
    service.stop()
    folder.cleanup()
    assert seconds < 15
    assert set(threading.enumerate()) == threads
    assert {child.pid for child in psutil.Process().children()} == children
    assert not Path(folder.name).exists()


def test_without_node_the_reason_is_stated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AzuriteMissingError, match=r"^node and npm not found: Azurite.*needs Node\.js\.$"):
        install_azurite()


def test_blobs_are_copied_from_one_container_to_another(azureml: AzureML) -> None:
    from azure.storage.blob import BlobClient

    source, target = azureml.workspace.default_container, "azureml"
    azureml.azurite.write(source, "copy/source.txt", b"copied")
    address, environment = azureml.workspace.blob_address, azureml.environment
    options = {"proxies": {"https": environment["HTTPS_PROXY"]}, "connection_verify": environment["SSL_CERT_FILE"]}
    origin = f"{address}/{source}/copy/source.txt?{azureml.azurite.signature(source)}"
    for name, is_synchronous in (("copy/at_once.txt", True), ("copy/later.txt", False)):
        signed = f"{address}/{target}/{name}?{azureml.azurite.signature(target)}"
        with BlobClient.from_blob_url(signed, **options) as blob:
            assert blob.start_copy_from_url(origin, requires_sync=is_synchronous)["copy_status"] == "success"
        assert azureml.azurite.read(target, name) == b"copied"


@pytest.mark.parametrize(
    ("expression", "low", "high"),
    [
        (["uniform", [1, 2]], 1, 2),
        (["loguniform", [-2, 0]], 0.13, 1),
        (["quniform", [0, 10, 5]], 0, 10),
        (["randint", [3]], 0, 2),
        (["choice", [[4, 5]]], 4, 5),
        (["qlognormal", [0, 1, 0.5]], 0, 100),
    ],
)
def test_random_search_draws_from_its_space(expression: list[object], low: float, high: float) -> None:
    body = {"searchSpace": {"x": expression}, "samplingAlgorithm": {"samplingAlgorithmType": "Random", "seed": 3},
            "limits": {"maxTotalTrials": 30}}  # fmt: skip
    values = [trial["x"] for trial in trial_values(body)]
    assert len(values) == 30
    assert all(low <= value <= high for value in values)
    assert values == [trial["x"] for trial in trial_values(body)]
    assert len(set(values)) > 1


def test_grid_search_goes_through_all_combinations_up_to_its_limit() -> None:
    body = {"searchSpace": {"x": ["choice", [[1, 2]]], "y": ["choice", [["a", "b"]]]},
            "samplingAlgorithm": {"samplingAlgorithmType": "Grid"}, "limits": {"maxTotalTrials": 3}}  # fmt: skip
    assert trial_values(body) == [{"x": 1, "y": "a"}, {"x": 1, "y": "b"}, {"x": 2, "y": "a"}]


def test_an_unknown_search_space_is_an_error() -> None:
    body = {"searchSpace": {"x": ["magic", [1, 2]]}, "samplingAlgorithm": {"samplingAlgorithmType": "Random"}}
    with pytest.raises(ValueError, match="no search space of kind 'magic'"):
        trial_values(body)

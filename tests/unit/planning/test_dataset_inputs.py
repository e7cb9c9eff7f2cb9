from pathlib import Path

import pytest

from health_ml.errors import DatasetError
from health_ml.planning.dataset_inputs import StorageAddress, input_folders, input_variables

LONG = (
    "azureml://subscriptions/s/resourcegroups/g/workspaces/w/datastores/workspaceblobstore/paths/LocalUpload/x/folder/"
)


def test_addresses_in_both_forms() -> None:
    assert StorageAddress.parse("azureml://datastores/own/paths/a/b") == StorageAddress("own", "a/b")
    assert StorageAddress.parse(LONG) == StorageAddress("workspaceblobstore", "LocalUpload/x/folder/", ("s", "g", "w"))


@pytest.mark.parametrize(
    "text", ["", "letters", "https://host/file", "azureml://registries/x", "azureml://datastores/x"]
)
def test_other_addresses_are_refused(text: str) -> None:
    with pytest.raises(DatasetError, match="names no path on a datastore"):
        StorageAddress.parse(text)


def test_the_inputs_of_a_job_are_found_in_their_order(tmp_path: Path) -> None:
    file = tmp_path / "data.csv"
    file.write_text("a")
    environ = {f"AZURE_ML_INPUT_INPUT_{number}": f"/mnt/{number}" for number in range(12)}
    environ["AZURE_ML_INPUT_INPUT_3"] = str(file)
    assert input_folders(environ) == [], "only a job has inputs"
    environ |= {"AZURE_ML_INPUT_other": "/other", "INPUT": "x", "AZUREML_RUN_ID": "job"}
    expected = [tmp_path if number == 3 else Path(f"/mnt/{number}") for number in range(12)]
    assert input_folders(environ) == expected
    lower = {name if name == "AZUREML_RUN_ID" else name.lower(): value for name, value in environ.items()}
    assert input_folders(lower) == expected
    references = {"AZUREML_DATAREFERENCE_input_1": "/b", "AZUREML_DATAREFERENCE_input_0": "/a"}
    assert input_folders({**references, "AZUREML_RUN_ID": "job"}) == [Path("/a"), Path("/b")]


def test_what_this_package_has_set_itself_wins() -> None:
    folders = [Path(f"/data/{number}") for number in range(11)]
    assert input_folders({**input_variables(folders), "AZURE_ML_INPUT_INPUT_0": "/else"}) == folders
    assert input_folders({}) == []

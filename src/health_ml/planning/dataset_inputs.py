"""Where the data of datasets are: on which datastore, and in which folders of the machine that reads them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from health_ml.errors import DatasetError
from health_ml.planning.datasets import output_name, parse_datasets
from health_ml.settings import ENV_INPUT, ENV_TRIAL, OUTPUT_DATASETS_FOLDER

_ADDRESS = re.compile(
    r"azureml://(?:subscriptions/(?P<subscription>[^/]+)/resource[gG]roups/(?P<group>[^/]+)"
    r"/(?:providers/Microsoft\.MachineLearningServices/)?workspaces/(?P<workspace>[^/]+)/)?"
    r"datastores/(?P<datastore>[^/]+)/paths/(?P<path>.*)",
    re.DOTALL,
)
_RUN_ID_VARIABLE = "AZUREML_RUN_ID"
_INPUT_VARIABLE = re.compile(
    rf"(?:{ENV_INPUT}|(?:AZURE_ML_INPUT_|AZUREML_DATAREFERENCE_)?INPUT_)(\d+)", re.ASCII | re.IGNORECASE
)


@dataclass(frozen=True)
class StorageAddress:
    """A folder or file on a datastore.

    :param datastore: Name of the datastore.
    :param path: Path on the datastore, without a slash at the beginning.
    :param workspace: Subscription, resource group and name of another workspace, or None for that of the run.
    """

    datastore: str
    path: str
    workspace: tuple[str, str, str] | None = None

    @classmethod
    def parse(cls, uri: str) -> StorageAddress:
        """Returns what an ``azureml://`` address names, in its short or in its long form.

        :raises DatasetError: If it is none.
        """
        match = _ADDRESS.fullmatch(uri)
        if match is None:
            raise DatasetError(
                f"The address {uri!r} names no path on a datastore.",
                "Its form is azureml://datastores/<datastore>/paths/<folder>.",
            )
        names = match["subscription"], match["group"], match["workspace"]
        return cls(match["datastore"], match["path"].lstrip("/"), names if all(names) else None)


def input_folders(environ: Mapping[str, str]) -> list[Path]:
    """Returns the folders of the datasets that whoever started this process has provided, in their order.

    These are the variables ``HIML_INPUT_0`` and so on if there are any, else those that AzureML sets for the inputs
    ``INPUT_0`` and so on of a job; outside of a job those mean something else. An input that is a single file stands
    for the folder that it is in.
    """
    found: dict[bool, dict[int, Path]] = {True: {}, False: {}}
    for name, value in environ.items():
        match = _INPUT_VARIABLE.fullmatch(name)
        if match is not None and value:
            path = Path(value)
            found[name.startswith(ENV_INPUT)][int(match[1])] = path.parent if path.is_file() else path
    chosen = found[True] or (found[False] if environ.get("AZUREML_RUN_ID") else {})
    return [chosen[number] for number in sorted(chosen)]


def output_folders(texts: Sequence[str], environ: Mapping[str, str], outputs: Path) -> list[Path]:
    """Returns the folders of the datasets that a run writes, after making them.

    These are the outputs ``OUTPUT_0`` and so on of a job in AzureML; elsewhere, folders in the outputs of the run. The
    trials of a search write to the same address, each to a folder in it that has the name of its run.

    :param texts: The value of ``--output_datasets``.
    :param outputs: The folder of the run's outputs.
    """
    folders = []
    for index, reference in enumerate(parse_datasets(texts)):
        given = environ.get(f"AZURE_ML_OUTPUT_{output_name(index)}")
        name = reference.name or reference.uri.rstrip("/").rpartition("/")[2]
        if given and reference.uri and environ.get(ENV_TRIAL):
            given = str(Path(given, environ[_RUN_ID_VARIABLE]))
        folders.append(Path(given) if given else outputs / OUTPUT_DATASETS_FOLDER / f"{index}_{name}")
        folders[-1].mkdir(parents=True, exist_ok=True)
    return folders


def input_variables(folders: Sequence[Path]) -> dict[str, str]:
    """Returns the variables that tell another process of the run where the datasets are."""
    return {f"{ENV_INPUT}{number}": str(folder) for number, folder in enumerate(folders)}

"""How the datasets of a job are named: the text of ``--azure_datasets``, and the names by which the job finds them."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from health_ml.errors import DatasetError

URI_SCHEME = "azureml://"
LATEST = "latest"
"""Label of the newest version of a data asset."""
MOST_NAMES = 10
"""How many data assets a message lists."""
_ASSET_PREFIX = "azureml:"
_MODES = {"+mount": True, "+download": False}
_ASSET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,254}")
_DATASTORE = re.compile(r"azureml://(?:subscriptions/.+?/workspaces/[^/]+/)?datastores/([^/]+)/paths/(.*)", re.DOTALL)
_FORMS = (
    "Write NAME, NAME:VERSION or NAME@LABEL for a data asset, azureml://datastores/NAME/paths/FOLDER for a folder, "
    "each with +mount or +download at its end if it is not to follow --mount_in_azureml."
)


@dataclass(frozen=True)
class DatasetReference:
    """Which data are meant.

    :param name: Name of a data asset, or "".
    :param version: Its version, or "".
    :param label: Its label, like ``latest``, or "".
    :param uri: Address of the data if they are no data asset, or "".
    :param is_mounted: True to mount them, False to download them; None: as ``--mount_in_azureml`` says.
    """

    name: str = ""
    version: str = ""
    label: str = ""
    uri: str = ""
    is_mounted: bool | None = None

    @property
    def text(self) -> str:
        """The reference as it can be written, without the way in which the job reads the data."""
        if self.uri:
            return self.uri
        return self.name + (f":{self.version}" if self.version else f"@{self.label}" if self.label else "")

    @property
    def datastore(self) -> str:
        """Name of the datastore that an address names, or ""."""
        match = _DATASTORE.fullmatch(self.uri)
        return match[1] if match else ""


def parse_dataset(text: str) -> DatasetReference:
    """Returns the data that one entry of ``--azure_datasets`` means.

    :raises DatasetError: If it means none.
    """
    rest, is_mounted = text.strip(), None
    for suffix, mode in _MODES.items():
        if rest.endswith(suffix):
            rest, is_mounted = rest.removesuffix(suffix), mode
    if rest.startswith(URI_SCHEME):
        return DatasetReference(uri=rest, is_mounted=is_mounted)
    asset = rest.removeprefix(_ASSET_PREFIX)
    name, at, label = asset.partition("@")
    name, colon, version = name.partition(":")
    is_complete = bool(label) == bool(at) and bool(version) == bool(colon) and not (at and colon)
    if not is_complete or not all(
        _ASSET_NAME.fullmatch(part) for part in (name, version, label) if part or part is name
    ):
        raise DatasetError(f"{text!r} names no dataset.", _FORMS)
    return DatasetReference(name, version, label, is_mounted=is_mounted)


def listed_assets(names: Collection[str]) -> str:
    """Returns a sentence about which data assets there are, with the way to make the first one."""
    if not names:
        return (
            "The workspace has no data assets yet; az ml data create --name=NAME --version=1 --type=uri_folder "
            "--path=FOLDER makes one."
        )
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return f"The data assets are {', '.join(sorted(names)[:MOST_NAMES])}{more}."


def parse_datasets(texts: Sequence[str]) -> list[DatasetReference]:
    """Returns the data that ``--azure_datasets`` means.

    :raises DatasetError: With every entry that means none.
    """
    found, wrong = [], []
    for text in texts:
        try:
            found.append(parse_dataset(text))
        except DatasetError:
            wrong.append(repr(text))
    if wrong:
        raise DatasetError(f"{', '.join(wrong)} {'name' if len(wrong) > 1 else 'names'} no dataset.", _FORMS)
    return found


def folder_uri(datastore: str, folder: str) -> str:
    """Returns the address of a folder on a datastore."""
    return f"{URI_SCHEME}datastores/{datastore}/paths/{folder.strip('/')}/"


def input_name(index: int) -> str:
    """Returns the name of the input of a job that holds a dataset; its folder is in ``AZURE_ML_INPUT_<name>``."""
    return f"INPUT_{index}"


def output_name(index: int) -> str:
    """Returns the name of the output of a job for a dataset that it writes; see :func:`input_name`."""
    return f"OUTPUT_{index}"

"""How much MLflow and AzureML take in one request, and in one name or value."""

from __future__ import annotations

from dataclasses import dataclass

# The limits of MLflow 3: mlflow/utils/validation.py.
MAX_METRICS = 1000
MAX_PARAMS_OR_TAGS = 100
MAX_PARAM_LENGTH = 6000
MAX_TAG_LENGTH = 8000
MAX_NAME_LENGTH = 250
MAX_REQUEST_CHARACTERS = 400_000
"""A request may have 1 MB; a character may take up to four bytes in it, few do."""
OLD_SERVER_LENGTH = 250
"""What servers before MLflow 1.28 accept as the value of a parameter."""

MAX_REFUSED = 20
"""Values of one batch that a server may refuse before the run as a whole counts as refused."""

AZUREML_SCHEME = "azureml://"


@dataclass(frozen=True)
class Limits:
    """What a store takes.

    :param metrics: Values of metrics in one request.
    :param tag_length: Characters of the value of a tag.
    :param tag_name_length: Characters of its name.
    """

    metrics: int = MAX_METRICS
    tag_length: int = MAX_TAG_LENGTH
    tag_name_length: int = MAX_NAME_LENGTH


AZUREML_LIMITS = Limits(metrics=250, tag_length=1000, tag_name_length=100)
"""Azure's page on service limits: metric rows per batch uploaded, length of tag key and of tag value."""


def is_azureml(tracking_uri: str) -> bool:
    """Returns True for the store of an AzureML workspace."""
    return tracking_uri.startswith(AZUREML_SCHEME)

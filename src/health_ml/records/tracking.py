"""Which MLflow store a run is mirrored to. Loads nothing heavy: the command line checks the address with it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from health_ml.errors import ArgumentsError, did_you_mean
from health_ml.planning.secrets import mask_text
from health_ml.settings import ENV_MLFLOW_TRACKING_URI, MLFLOW_DATABASE

NO_TRACKING = "none"
"""Tracking address that stands for no mirror in MLflow."""

_SQLITE = "sqlite:///"
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+:", re.IGNORECASE)
_WITHOUT_SCHEME = frozenset({"databricks", "databricks-uc", "uc"})
_SERVERS = ("http", "https", "azureml")
_DATABASES = ("sqlite", "mysql", "postgresql", "mssql")
_KNOWN = frozenset({*_SERVERS, *_DATABASES, *_WITHOUT_SCHEME, "file"})
_PLUGINS = "mlflow.tracking_store"


def resolve_tracking_uri(tracking_uri: str, *, environ: Mapping[str, str], project_root: Path) -> str:
    """Returns the address of the MLflow store to mirror to, independent of the working directory, or ``none``.

    :param tracking_uri: What the user gave; empty: MLFLOW_TRACKING_URI, else an SQLite file in the project root.
    :raises ArgumentsError: If MLflow has no store of that kind.
    """
    given, source = tracking_uri.strip(), "--tracking_uri"
    if not given:
        given, source = environ.get(ENV_MLFLOW_TRACKING_URI, "").strip(), ENV_MLFLOW_TRACKING_URI
    if not given:
        return f"{_SQLITE}{(project_root / MLFLOW_DATABASE).absolute()}"
    if given.lower() == NO_TRACKING:
        return NO_TRACKING
    if given.startswith(_SQLITE):
        path, mark, options = given[len(_SQLITE) :].partition("?")
        return f"{_SQLITE}{(project_root / path).absolute()}{mark}{options}"
    _check_scheme(given, source)
    is_folder = given.startswith("file:") or not (_SCHEME.match(given) or given in _WITHOUT_SCHEME)
    if not is_folder or environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() in ("1", "true"):
        return given if not is_folder or given.startswith("file:") else (project_root / given).absolute().as_uri()
    database = Path(given.removeprefix("file://")).with_suffix(".db")
    raise ArgumentsError(
        f"{source}={given}: MLflow no longer writes to folders.",
        f"Give a database ({_SQLITE}{database}), a server (https://…), or 'none' for no mirror in MLflow.",
    )


def _check_scheme(given: str, source: str) -> None:
    """Raises if neither MLflow nor one of its plugins that are installed has a store of that kind."""
    from importlib.metadata import entry_points  # few commands name a store

    match = _SCHEME.match(given)
    # A database is followed by its driver, as in mysql+pymysql.
    scheme = match.group().rstrip(":").partition("+")[0].lower() if match else ""
    if not scheme or scheme in _KNOWN or scheme in {plugin.name for plugin in entry_points(group=_PLUGINS)}:
        return
    advice = did_you_mean(scheme, _KNOWN)
    raise ArgumentsError(
        f"{source}={mask_text(given)}: MLflow has no store of the kind {scheme!r}.{advice and f' {advice}'}",
        f"Give a server (https://…), a database ({_SQLITE}FILE, or another one of {', '.join(_DATABASES[1:])}), or "
        "'none' for no mirror in MLflow.",
    )


def split_credentials(tracking_uri: str) -> tuple[str, dict[str, str]]:
    """Returns the address of a server without user name and password, and the variables that tell MLflow these two.

    MLflow puts the address into messages; the variables are in none.
    """
    parts = urlsplit(tracking_uri)
    if parts.scheme not in ("http", "https") or parts.username is None:
        return tracking_uri, {}
    host = parts.netloc.rpartition("@")[2]
    variables = {"MLFLOW_TRACKING_USERNAME": unquote(parts.username)}
    if parts.password is not None:
        variables["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password)
    return urlunsplit(parts._replace(netloc=host)), variables

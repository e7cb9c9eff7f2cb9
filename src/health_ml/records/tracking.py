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
_WORKSPACE = re.compile(
    r"/subscriptions/.+/resourceGroups/.+/providers/Microsoft\.MachineLearningServices/workspaces/[^/]+"
)
_PACKAGES_OF_DRIVERS = {"psycopg": "psycopg[binary]", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}
_PLUGINS = "mlflow.tracking_store"


def resolve_tracking_uri(tracking_uri: str, *, environ: Mapping[str, str], project_root: Path) -> str:
    """Returns the address of the MLflow store to mirror to, independent of the working directory, or ``none``.

    :param tracking_uri: What the user gave; empty: MLFLOW_TRACKING_URI, else an SQLite file in the project root.
    :raises ArgumentsError: If MLflow has no store of that kind, or cannot find it by what the address says.
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
        _check_database(project_root / path, given, source)
        return f"{_SQLITE}{(project_root / path).absolute()}{mark}{options}"
    scheme = _check_scheme(given, source)
    if scheme in _SERVERS:
        _check_server(given, source, is_azureml=scheme == "azureml")
    elif scheme in _DATABASES:
        _check_driver(given, source)
    is_folder = given.startswith("file:") or not (_SCHEME.match(given) or given in _WITHOUT_SCHEME)
    if not is_folder or environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() in ("1", "true"):
        return given if not is_folder or given.startswith("file:") else (project_root / given).absolute().as_uri()
    database = Path(given.removeprefix("file://")).with_suffix(".db")
    raise ArgumentsError(
        f"{source}={given}: MLflow no longer writes to folders.",
        f"Give a database ({_SQLITE}{database}), a server (https://…), or 'none' for no mirror in MLflow.",
    )


def _check_scheme(given: str, source: str) -> str:
    """Returns the scheme of an address, for which MLflow or one of its plugins that are installed has a store.

    :raises ArgumentsError: If none has one.
    """
    from importlib.metadata import entry_points  # few commands name a store

    match = _SCHEME.match(given)
    # A database is followed by its driver, as in mysql+pymysql.
    scheme = match.group().rstrip(":").partition("+")[0].lower() if match else ""
    if not scheme or scheme in _KNOWN or scheme in {plugin.name for plugin in entry_points(group=_PLUGINS)}:
        return scheme
    advice = did_you_mean(scheme, _KNOWN)
    raise ArgumentsError(
        f"{source}={mask_text(given)}: MLflow has no store of the kind {scheme!r}.{advice and f' {advice}'}",
        f"Give a server (https://…), a database ({_SQLITE}FILE, or another one of {', '.join(_DATABASES[1:])}), or "
        "'none' for no mirror in MLflow.",
    )


def _check_database(path: Path, given: str, source: str) -> None:
    """Raises if what is to be an SQLite file is a folder."""
    if path.is_dir():
        raise ArgumentsError(
            f"{source}={given}: {path} is a folder, and an SQLite database is a file.",
            f"Give for example {_SQLITE}{path / MLFLOW_DATABASE}, or 'none' for no mirror in MLflow.",
        )


def _check_server(given: str, source: str, *, is_azureml: bool) -> None:
    """Raises if an address has no host, or is not that of an AzureML workspace but looks like it."""
    try:
        parts = urlsplit(given)
        has_host = bool(parts.hostname) and parts.port != 0  # a port that is no number raises
    except ValueError as error:
        raise ArgumentsError(
            f"{source}={mask_text(given)} is no address: {error}.", "Give one like https://host:5000."
        ) from error
    if is_azureml and not _WORKSPACE.search(parts.path):
        raise ArgumentsError(
            f"{source}={mask_text(given)} is not the address of an AzureML workspace.",
            "It is azureml://REGION.api.azureml.ms/mlflow/v1.0/subscriptions/…/resourceGroups/…/providers/"
            "Microsoft.MachineLearningServices/workspaces/…, which az ml workspace show --query mlflow_tracking_uri "
            "prints. Or use --log_from_vm, which finds it by config.json.",
        )
    if not has_host:
        raise ArgumentsError(f"{source}={mask_text(given)} names no host.", "Give one like https://host:5000.")


def _check_driver(given: str, source: str) -> None:
    """Raises if an address of a database cannot be read, or the module that speaks with it is not installed."""
    shown = mask_text(given)
    try:
        from sqlalchemy.engine import make_url  # comes with MLflow, and loads slowly
        from sqlalchemy.exc import ArgumentError, NoSuchModuleError
    except ImportError:  # MLflow without databases: it says so itself
        return
    try:
        url = make_url(given)
        dialect = url.get_dialect()
        if url.get_backend_name() == "sqlite" and not url.database:
            raise ArgumentsError(f"{source}={shown} names no file.", f"Give {_SQLITE}FILE.")
        dialect.import_dbapi()
    except ModuleNotFoundError as error:
        module = error.name or "a module"
        raise ArgumentsError(
            f"{source}={shown}: the module {module} is not installed, which speaks with this database.",
            f"Run pip install '{_PACKAGES_OF_DRIVERS.get(module, module)}', or name one that is installed as in "
            "postgresql+psycopg2://….",
        ) from error
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        raise ArgumentsError(
            f"{source}={shown} is no address of a database: {mask_text(str(error))}.",
            "Give one like postgresql://user:password@host:5432/database.",
        ) from error


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

"""The mirror: a process of its own that carries the record to TensorBoard and MLflow while the training goes on.

It reads the files of the record, so the training neither waits for a server nor learns that one is down, and nothing
is lost if either process dies: ``mirror.json`` says how far it came, and :mod:`health_ml.records.sync` continues.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import health_ml
from health_ml.environment import RunEnvironment, environment_variables, process_environment
from health_ml.planning.fan_out_folder import FanOutFolder
from health_ml.planning.secrets import mask_text, remember_secrets
from health_ml.records.mirror_handle import MirrorHandle, close_pipes, wait_or_stop, wake_up
from health_ml.records.mirror_state import MirrorProgress, MirrorSettings, mirror_lock
from health_ml.records.tracking import NO_TRACKING, resolve_tracking_uri, split_credentials
from health_ml.settings import ENV_MLFLOW_TRACKING_URI, RECORD_MIRROR_DOCUMENT, RECORD_MIRROR_LOG_FILE

if TYPE_CHECKING:
    from health_ml.records.mirror_loop import Patience

logger = logging.getLogger(__name__)

NICENESS = 10
"""On a machine whose processors are all busy, the mirror gets a tenth of one."""

LOADING_NICENESS = 19

_WITHOUT_MLFLOW = "--without_mlflow"

MLFLOW_ENVIRONMENT = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # The mirror has its own patience, and saves how far it came in between.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
}
"""What MLflow is told where it only serves as a mirror."""

_DEFAULTS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
"""What it is told unless the user says something else."""


def mlflow_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables that MLflow needs where it only serves as a mirror.

    :param environ: The variables that are set.
    """
    return {**{name: value for name, value in _DEFAULTS.items() if name not in environ}, **MLFLOW_ENVIRONMENT}


class WaitingMirror:
    """A process that loads MLflow while the user's model is imported, and then waits for a record to mirror.

    Loading takes longer than a short training does, and nothing of it depends on the run.

    :param has_mlflow: False for a mirror that will only write TensorBoard event files.
    :raises OSError: If the process cannot be started.
    """

    def __init__(self, *, has_mlflow: bool = True) -> None:
        self._environ = process_environment()
        self._process: subprocess.Popen[bytes] | None = subprocess.Popen(
            [sys.executable, "-m", "health_ml.records.mirror", *([] if has_mlflow else [_WITHOUT_MLFLOW])],
            # Where no file of the user can hide a module of the standard library.
            cwd="/",
            env={**self._environ, **mlflow_environment(self._environ), **_import_path(self._environ)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def take(
        self, record_folder: Path, settings: MirrorSettings, environ: Mapping[str, str]
    ) -> subprocess.Popen[bytes] | None:
        """Returns the process after telling it what to mirror, or None if it is gone or taken.

        :param environ: The variables for MLflow, as they are now.
        """
        if self._process is None or self._process.poll() is not None:
            return None
        process, self._process = self._process, None
        assert process.stdin is not None
        new = {name: value for name, value in environ.items() if self._environ.get(name) != value}
        order = {"folder": str(record_folder), "settings": asdict(settings), "environment": new}
        try:
            # The pipe is private, so the address and the variables may contain a password.
            process.stdin.write(json.dumps(order).encode() + b"\n")
            process.stdin.flush()
        except OSError:
            wait_or_stop(process, 0)
            close_pipes(process, None)
            return None
        return process

    def close(self) -> None:
        """Ends the process if nobody has taken it."""
        if self._process is not None:
            self._process.kill()
            wake_up(self._process)
            self._process.wait()
            close_pipes(self._process, None)
            self._process = None


def start_mirror(
    record_folder: Path,
    *,
    tracking_uri: str,
    experiment: str,
    run_name: str,
    tensorboard_folder: Path | None,
    project_root: Path | None = None,
    waiting: WaitingMirror | None = None,
) -> MirrorHandle:
    """Returns the mirror of a record after starting it. It ends by itself when the run has ended.

    :param tracking_uri: What the user gave: see :func:`resolve_tracking_uri`.
    :param tensorboard_folder: Where the TensorBoard event files go, or None for none.
    :param project_root: Folder of the default store, by default the working directory.
    :param waiting: A process that is ready to become the mirror.
    :raises ArgumentsError: If there is no such kind of tracking store.
    """
    record_folder = record_folder.absolute()
    environ = process_environment()
    resolved = resolve_tracking_uri(tracking_uri, environ=environ, project_root=project_root or Path.cwd())
    address, credentials = split_credentials(resolved)
    settings = MirrorSettings(
        tracking_uri=address,
        experiment=mask_text(experiment),
        run_name=mask_text(run_name),
        tensorboard_folder=str(tensorboard_folder.absolute()) if tensorboard_folder else "",
    )
    _note_settings(record_folder, settings)
    variables = {**environ, **credentials, ENV_MLFLOW_TRACKING_URI: address}
    process = _start_process(record_folder, settings, variables, waiting)
    return MirrorHandle(
        record_folder,
        settings,
        process,
        restart=lambda: _start_process(record_folder, settings, variables, None),
    )


def _start_process(
    record_folder: Path, settings: MirrorSettings, variables: Mapping[str, str], waiting: WaitingMirror | None
) -> subprocess.Popen[bytes] | None:
    try:
        process = waiting.take(record_folder, settings, variables) if waiting else None
        if process is None:
            new = WaitingMirror(has_mlflow=settings.tracking_uri != NO_TRACKING)
            process = new.take(record_folder, settings, variables)
            new.close()
    except OSError as error:
        logger.warning("The mirror cannot be started: %s. The record is not affected.", error)
        return None
    return process


def _note_settings(record_folder: Path, settings: MirrorSettings) -> None:
    """Writes down where to mirror to, so that the record can be mirrored later if the mirror never gets to work."""
    if not (record_folder / f"{RECORD_MIRROR_DOCUMENT}.json").exists():
        try:
            MirrorProgress(settings=settings.masked()).save(record_folder)
        except OSError as error:
            logger.warning("Cannot write where the record is mirrored to: %s", error)


def _import_path(environ: Mapping[str, str]) -> dict[str, str]:
    """Returns the variable that lets a process find this package where it is not installed."""
    source = Path(health_ml.__file__).absolute().parent.parent
    if source.name in ("site-packages", "dist-packages"):
        return {}
    paths = [str(source), *(os.path.abspath(path) for path in environ.get("PYTHONPATH", "").split(os.pathsep) if path)]
    return {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}


# --- in the process of the mirror ------------------------------------------------------------------------------------


def step_aside() -> None:
    """Lets the training have the processors first, and keeps Ctrl-C for it.

    The mirror has a process group of its own, because it still has to carry over how a training ended that Ctrl-C
    stopped. It stays in the session, because Linux shares the processors out between sessions before it looks at the
    niceness of a process: so it makes way for its training, but gets all that the session has once that has ended.
    """
    os.setpgid(0, 0)
    os.nice(NICENESS)


def _load_gently() -> None:
    """Loads MLflow at the lowest priority there is, because the training is importing torch at the same time.

    Linux has a niceness per thread, and nobody but root can lower one again: so a thread of its own does this.
    """
    from health_ml.records.mlflow_store import load_client

    os.setpriority(os.PRIO_PROCESS, 0, LOADING_NICENESS)
    load_client()


def main() -> None:
    """Loads what a mirror needs, reads from standard input what to mirror, and does it until the run has ended."""
    parser = argparse.ArgumentParser(description="Mirrors the record of a run that standard input names.")
    parser.add_argument(_WITHOUT_MLFLOW, action="store_true", help="Do not load MLflow before it is needed.")
    arguments = parser.parse_args()
    tell = _notices()
    step_aside()
    remember_secrets(process_environment())
    if not arguments.without_mlflow:
        loader = threading.Thread(target=_load_gently, name="himl-mirror-loader")
        loader.start()
        loader.join()
    order = _read_order()
    if order is not None:
        folder = Path(order["folder"])
        remember_secrets(order["environment"])
        _redirect_output(folder / RECORD_MIRROR_LOG_FILE)
        with environment_variables(order["environment"]):
            mirror_until_end(folder, MirrorSettings(**order["settings"]), tell=tell)
    logging.shutdown()
    # Tearing down the modules that MLflow has loaded takes longer than all that is left to do.
    os._exit(0)


def _notices() -> Callable[[str], None]:
    """Returns what shows a line to the user. Standard output leads to the training, so nothing else may get there."""
    notices = os.dup(sys.stdout.fileno())
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), sys.stdout.fileno())

    def tell(text: str) -> None:
        with suppress(OSError):  # the training has ended
            os.write(notices, f"{mask_text(' '.join(text.split()))}\n".encode())

    return tell


def _read_order() -> dict[str, Any] | None:
    """Returns what to mirror, or None if the process that started this one has ended or changed its mind."""
    data = b""
    while not data.endswith(b"\n"):
        chunk = os.read(sys.stdin.fileno(), 65536)
        if not chunk:
            return None
        data += chunk
    order: dict[str, Any] | None = json.loads(data) if data.strip() else None
    return order


def _redirect_output(log_file: Path) -> None:
    """Sends standard output and standard error of this process, and its log, to a file."""
    with log_file.open("ab") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
    handler = logging.StreamHandler()
    handler.setFormatter(_MaskingFormatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


class _MaskingFormatter(logging.Formatter):
    """Keeps secrets out of the log, those in tracebacks too."""

    def format(self, record: logging.LogRecord) -> str:
        return mask_text(super().format(record))


class _Waiter:
    """Waits, and stops waiting when the training asks it to or ends."""

    def __init__(self) -> None:
        self._is_open = True

    def __call__(self, seconds: float) -> None:
        if not self._is_open:
            time.sleep(seconds)
            return
        readable, _, _ = select.select([sys.stdin], [], [], seconds)
        self._is_open = not (readable and os.read(sys.stdin.fileno(), 64) == b"")


def _patience() -> Patience | None:
    """Returns how long to wait for a server at the end of the run, None for the default."""
    from health_ml.records.mirror_loop import IN_JOB

    return IN_JOB if RunEnvironment.from_env(process_environment()).is_in_azureml else None


def mirror_until_end(
    record_folder: Path, settings: MirrorSettings, *, tell: Callable[[str], None] | None = None
) -> None:
    """Mirrors a record until its run has ended. While another mirror is at work, waits for that one to end.

    :param tell: Tells the user that something is wrong while the run goes on.
    """
    from health_ml.records.fan_out_mirror import FanOutMirror
    from health_ml.records.mirror_loop import MirrorLoop

    wait = _Waiter()
    fan_out = FanOutFolder(record_folder.parent)
    while True:
        with mirror_lock(record_folder) as is_mine:
            if is_mine:
                loop = (
                    FanOutMirror(fan_out, settings, wait=wait, tell=tell)
                    if fan_out.exists
                    else MirrorLoop(record_folder, settings, wait=wait, patience=_patience(), tell=tell)
                )
                signal.signal(signal.SIGTERM, loop.request_stop)
                loop.run()
                return
        wait(1.0)


if __name__ == "__main__":
    main()

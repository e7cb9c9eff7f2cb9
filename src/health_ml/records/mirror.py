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
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import health_ml
from health_ml.environment import environment_variables, process_environment
from health_ml.planning.fan_out_folder import FanOutFolder
from health_ml.planning.secrets import mask_text
from health_ml.records.mirror_state import MirrorProgress, MirrorSettings, MirrorState, catch_up_hint, mirror_lock
from health_ml.records.tracking import NO_TRACKING, resolve_tracking_uri, split_credentials
from health_ml.settings import ENV_MLFLOW_TRACKING_URI, RECORD_MIRROR_DOCUMENT, RECORD_MIRROR_LOG_FILE

logger = logging.getLogger(__name__)

NICENESS = 10
"""On a machine whose processors are all busy, the mirror gets a tenth of one."""

LOADING_NICENESS = 19

_STOP_SECONDS = 3.0
_WITHOUT_MLFLOW = "--without_mlflow"

MLFLOW_ENVIRONMENT = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # The mirror has its own patience, and saves how far it came in between.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
"""What MLflow is told where it only serves as a mirror."""


class MirrorHandle:
    """A mirror that was started.

    :param process: Its process, or None if it could not be started.
    """

    def __init__(self, record_folder: Path, settings: MirrorSettings, process: subprocess.Popen[bytes] | None) -> None:
        self._folder = record_folder
        self._settings = settings
        self._process = process

    @property
    def process_id(self) -> int | None:
        """Id of the mirror's process."""
        return self._process.pid if self._process else None

    def finish(self, timeout_seconds: float) -> MirrorState:
        """Returns what was achieved, after waiting for the mirror to catch up, at most about this long.

        Write the final status to the record first: the mirror ends when it has carried that over. A mirror that has
        not caught up in time is stopped, and the state says so.
        """
        if self._process is not None:
            _raise_priority(self._process.pid)
            _wake_up(self._process)
            _wait_or_stop(self._process, timeout_seconds)
            self._process = None
        progress = MirrorProgress.load(self._folder)
        if not progress.message:
            progress.settings = self._settings.masked()
            progress.is_complete = False
            progress.message = (
                f"The record in {self._folder} is complete, but its mirror in MLflow at "
                f"{progress.settings['tracking_uri']} is not: see {self._folder / RECORD_MIRROR_LOG_FILE}. "
                f"{catch_up_hint(self._folder)}"
            )
        return progress.as_state()


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
            env={**self._environ, **MLFLOW_ENVIRONMENT, **_import_path(self._environ)},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def take(
        self, record_folder: Path, settings: MirrorSettings, environ: Mapping[str, str]
    ) -> subprocess.Popen[bytes] | None:
        """Returns the process after telling it what to mirror, or None if it is gone or taken.

        :param environ: The variables for MLflow, as they are now.
        """
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return None
        assert process.stdin is not None
        new = {name: value for name, value in environ.items() if self._environ.get(name) != value}
        order = {"folder": str(record_folder), "settings": asdict(settings), "environment": new}
        try:
            # The pipe is private, so the address and the variables may contain a password.
            process.stdin.write(json.dumps(order).encode() + b"\n")
            process.stdin.flush()
        except OSError:
            _wait_or_stop(process, 0)
            return None
        return process

    def close(self) -> None:
        """Ends the process if nobody has taken it."""
        if self._process is not None:
            self._process.kill()
            _wake_up(self._process)
            self._process.wait()
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
    try:
        process = waiting.take(record_folder, settings, variables) if waiting else None
        if process is None:
            new = WaitingMirror(has_mlflow=address != NO_TRACKING)
            process = new.take(record_folder, settings, variables)
    except OSError as error:
        logger.warning("The mirror cannot be started: %s. The record is not affected.", error)
        process = None
    return MirrorHandle(record_folder, settings, process)


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


def _raise_priority(process_id: int) -> None:
    """Gives the mirror, for which the user is waiting now, its full share back, where the system allows that."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, process_id, 0)


def _wake_up(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    try:
        # A byte besides the end of the file: workers that the training has forked may keep the pipe open.
        process.stdin.write(b"\n")
        process.stdin.close()
    except OSError:  # it has ended already
        logger.debug("The mirror has ended before it was asked to.")


def _wait_or_stop(process: subprocess.Popen[bytes], timeout_seconds: float) -> None:
    try:
        process.wait(timeout_seconds)
    except subprocess.TimeoutExpired:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


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
    step_aside()
    if not arguments.without_mlflow:
        loader = threading.Thread(target=_load_gently, name="himl-mirror-loader")
        loader.start()
        loader.join()
    order = _read_order()
    if order is not None:
        folder = Path(order["folder"])
        _redirect_output(folder / RECORD_MIRROR_LOG_FILE)
        with environment_variables(order["environment"]):
            mirror_until_end(folder, MirrorSettings(**order["settings"]))
    logging.shutdown()
    # Tearing down the modules that MLflow has loaded takes longer than all that is left to do.
    os._exit(0)


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


def mirror_until_end(record_folder: Path, settings: MirrorSettings) -> None:
    """Mirrors a record until its run has ended. While another mirror is at work, waits for that one to end."""
    from health_ml.records.fan_out_mirror import FanOutMirror
    from health_ml.records.mirror_loop import MirrorLoop

    wait = _Waiter()
    fan_out = FanOutFolder(record_folder.parent)
    while True:
        with mirror_lock(record_folder) as is_mine:
            if is_mine:
                loop = (
                    FanOutMirror(fan_out, settings, wait=wait)
                    if fan_out.exists
                    else MirrorLoop(record_folder, settings, wait=wait)
                )
                signal.signal(signal.SIGTERM, loop.request_stop)
                loop.run()
                return
        wait(1.0)


if __name__ == "__main__":
    main()

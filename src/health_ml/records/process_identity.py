"""Tells whether the process that wrote a record is still alive, also when its process id was given to another one."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any


def process_identity(pid: int | None = None) -> dict[str, Any]:
    """Returns what tells a process apart from every other one: host, boot, process id and its start time.

    Boot, namespace and start time are only known where there is a ``/proc`` file system.
    """
    pid = os.getpid() if pid is None else pid
    return {
        "pid": pid,
        "host": socket.gethostname(),
        "boot": _read_text(Path("/proc/sys/kernel/random/boot_id")),
        "pid_namespace": _pid_namespace(),
        "process_start": _start_ticks(pid),
    }


def is_dead(identity: Mapping[str, Any]) -> bool:
    """Returns True if the process certainly ended: the answer for a process on another machine is always False."""
    pid = identity.get("pid")
    if not isinstance(pid, int) or identity.get("host") != socket.gethostname():
        return False
    boot = _read_text(Path("/proc/sys/kernel/random/boot_id"))
    if identity.get("boot") and boot and identity["boot"] != boot:
        return True
    if identity.get("pid_namespace") != _pid_namespace():
        return False
    if not _exists(pid):
        return True
    start = identity.get("process_start")
    return start is not None and _start_ticks(pid) != start


def is_running_here(identity: Mapping[str, Any]) -> bool:
    """Returns True if the process lives on this machine, so that it can be sent a signal by its number."""
    return _is_of_this_boot(identity) and not is_dead(identity)


def end_group_of_dead(identity: Mapping[str, Any]) -> None:
    """Ends what a process has left running in its group, if it led one and has ended itself."""
    # The system gives a number to no other process as long as there is a process in the group of that number.
    if _is_of_this_boot(identity) and not _exists(identity["pid"]):
        signal_group(identity["pid"], signal.SIGKILL)


def _is_of_this_boot(identity: Mapping[str, Any]) -> bool:
    here = process_identity()
    is_here = all(identity.get(name) == here[name] for name in ("host", "boot", "pid_namespace"))
    return is_here and isinstance(identity.get("pid"), int)


def signal_group(group: int, number: int) -> None:
    """Sends a signal to every process of a group; a group that has ended is not an error."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _exists(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return _state(pid) != "Z"


def _stat_fields(pid: int) -> list[str]:
    """Returns the fields of ``/proc/<pid>/stat`` from the third (state) on; the second may contain spaces."""
    text = _read_text(Path(f"/proc/{pid}/stat")) or ""
    return text.rpartition(")")[2].split()


def _state(pid: int) -> str:
    fields = _stat_fields(pid)
    return fields[0] if fields else ""


def _start_ticks(pid: int) -> int | None:
    fields = _stat_fields(pid)
    return int(fields[19]) if len(fields) > 19 else None


def _pid_namespace() -> str | None:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def _read_text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None

"""The first program of a job in AzureML: prepares its folder, then becomes the command that follows its own name.

This file travels with the code and runs on its own, before anything is known to be installed: nothing of the package
may be imported here. What it prepares is what blob storage cannot hold: which files are executable, and files that
travelled together in one archive because there are so many of them.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import zipfile
from pathlib import Path

FOLDER = ".himl_runner"
"""Folder in the code of a job that holds this file and all that belongs to it."""
START_FILE = f"{FOLDER}/start.py"
EXECUTABLES_FILE = f"{FOLDER}/executables.json"
PACKS_FOLDER = f"{FOLDER}/packs"
PACKAGE = "health_ml"
RUNNER = "himl-runner"


def prepare(folder: Path) -> None:
    """Unpacks what travelled in archives, and makes files executable; does no harm when it is done twice."""
    for pack in sorted((folder / PACKS_FOLDER).glob("*.zip")):
        with zipfile.ZipFile(pack) as archive:
            for member in archive.infolist():
                _extract(archive, member, folder / member.filename)
    executables = folder / EXECUTABLES_FILE
    if executables.is_file():
        for name in json.loads(executables.read_text(encoding="utf-8")):
            (folder / name).chmod(0o755)


def _extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    """Writes one file under another name first, because another process of the node may be doing the same."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    with archive.open(member) as source, temporary.open("wb") as copy:
        shutil.copyfileobj(source, copy)
    temporary.replace(target)


def command_for(arguments: list[str], folder: Path, environ: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    """Returns the command to become and its environment variables.

    The runner that travelled with the code wins over an installed one: it is the one that submitted the job.
    """
    source = folder / FOLDER / PACKAGE
    if arguments[0] != RUNNER or not source.is_dir():
        return arguments, environ
    path = environ.get("PYTHONPATH")
    environ = {**environ, "PYTHONPATH": f"{source.parent}{os.pathsep + path if path else ''}"}
    return [sys.executable, "-m", f"{PACKAGE}.runner", *arguments[1:]], environ


if __name__ == "__main__":
    here = Path.cwd()
    prepare(here)
    command, variables = command_for(sys.argv[1:], here, dict(os.environ))
    os.execvpe(command[0], command, variables)  # noqa: S606  # a shell would read the arguments a second time

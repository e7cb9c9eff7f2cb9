"""``python -m tests.azureml [folder]``: a workspace on this machine, for trying out by hand what a job in AzureML does.

It writes ``config.json`` to the folder (the present one without an argument), says which variables a shell needs to
take it for Azure, and executes the jobs that are submitted until it is ended with Ctrl-C. Nothing of it is kept.
"""

from __future__ import annotations

import json
import shlex
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path

from tests.azureml.service import start_stand_in


def main(folder: Path) -> None:
    """Runs the stand-in until the process is interrupted."""
    config, variables = folder / "config.json", folder / "azureml.env"
    existing = [str(file) for file in (config, variables) if file.exists()]
    if existing:
        raise SystemExit(f"{' and '.join(existing)} would be written, and exist already. Name another folder.")
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell lets what it runs in the background ignore the first
        signal.signal(number, signal.default_int_handler)
    service, temporary = start_stand_in()
    try:
        with temporary, suppress(KeyboardInterrupt):
            config.write_text(json.dumps(service.config))
            lines = [f"export {name}={shlex.quote(value)}" for name, value in service.environment.items()]
            variables.write_text("\n".join(lines) + "\n")
            print(f"The workspace is {config}; its clusters: {', '.join(service.state.computes)}.")
            print(f"In another shell: source {shlex.quote(str(variables))}. Ctrl-C ends everything.", flush=True)
            with service.executing():
                threading.Event().wait()
    finally:
        service.stop()
        config.unlink(missing_ok=True)
        variables.unlink(missing_ok=True)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve())

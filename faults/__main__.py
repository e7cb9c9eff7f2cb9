"""``python -m faults`` interrupts trainings at random moments, continues them, and prints what was lost."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from faults.campaign import Campaign, render


def main(arguments: list[str]) -> int:
    """Returns 0 if every promise was kept, 1 if not."""
    parser = argparse.ArgumentParser(prog="python -m faults", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="Seed of everything that is random. Default: 0.")
    parser.add_argument("--interruptions", type=int, default=200, help="At least so many. Default: 200.")
    parser.add_argument("--processes", type=int, default=2, help="Trials at the same time. Default: 2.")
    parser.add_argument("--starts", type=int, default=50, help="Runs that are started at once. Default: 50.")
    parser.add_argument("--only", default="", help="Only this scenario.")
    parser.add_argument("--folder", type=Path, default=None, help="Keep everything in this new folder.")
    options = parser.parse_args(arguments)
    # Not a TemporaryDirectory: each forked process would remove it at its own end.
    folder = options.folder or Path(tempfile.mkdtemp(prefix="himl_faults_"))
    folder.mkdir(exist_ok=True)
    try:
        campaign = Campaign(folder.absolute(), seed=options.seed, processes=options.processes, only=options.only)
        report = campaign.run(options.interruptions, starts=options.starts)
        print(render(report))
        return 0 if report.is_kept else 1
    finally:
        if options.folder is None:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

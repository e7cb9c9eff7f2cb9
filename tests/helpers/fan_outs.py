"""Runs fan-outs in tests: a container whose results are known, and one warm server for all tests of a module."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from health_ml.backends.fan_out import FanOutResult, WarmProcesses, create_fan_out, run_fan_out
from health_ml.backends.trial_processes import TrialServer
from health_ml.environment import Place
from health_ml.planning.fan_out import FanOutOptions, build_search_space
from health_ml.planning.fan_out_folder import FanOutFolder
from health_ml.planning.plan import JobPlan, PlannedTrials

TINY = '''
import json
import os
import sys
import time
from pathlib import Path

import param
import torch
from pytorch_lightning import LightningDataModule, LightningModule
from torch.utils.data import DataLoader, TensorDataset

from health_ml.lightning_container import LightningContainer


class Model(LightningModule):
    def __init__(self, level, pause):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.level, self.pause = level, pause

    def on_fit_start(self):
        machine = {"gpus": os.environ.get("CUDA_VISIBLE_DEVICES"), "threads": torch.get_num_threads(), "argv": sys.argv}
        Path("machine.json").write_text(json.dumps(machine))

    def training_step(self, batch, batch_idx):
        time.sleep(self.pause)
        loss = self.layer(batch[0]).square().mean()
        self.log("train/level", self.level + 1 / (self.current_epoch + 1), on_epoch=True, on_step=False)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/level", self.level + 1 / (self.current_epoch + 1))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Data(LightningDataModule):
    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.ones(2, 1)), batch_size=1)

    def val_dataloader(self):
        return DataLoader(TensorDataset(torch.ones(1, 1)), batch_size=1)


class Tiny(LightningContainer):
    """Logs level + 1 / epoch; fails as long as a file named after its level exists."""

    level = param.Number(default=0.0)
    pause = param.Number(default=0.0)

    def __init__(self, **kwargs):
        super().__init__(**{"max_epochs": 4, "max_num_gpus": 0, **kwargs})

    def create_model(self):
        if Path(os.environ["HIML_START_DIRECTORY"], f"fail_{self.level:g}").exists():
            raise ValueError(f"level {self.level:g} cannot be trained")
        return Model(self.level, self.pause)

    def get_data_module(self):
        return Data()
'''
ARGV = ("--model=tiny.Tiny", "--tracking_uri=none")


@dataclass
class FanOuts:
    """A project with the container ``tiny.Tiny``, and what its fan-outs have printed.

    :param root: Folder of the project.
    :param server: Starts the trials of all fan-outs.
    """

    root: Path
    server: TrialServer | None = None
    numbers: itertools.count[int] = field(default_factory=itertools.count)
    lines: list[str] = field(default_factory=list)

    @classmethod
    def create(cls, root: Path) -> FanOuts:
        """Returns the project, with a server."""
        (root / "tiny.py").write_text(TINY)
        return cls(root, TrialServer("tiny.Tiny", folder=root, environment={}))

    def plan(self, sweep: str = "", *, argv: tuple[str, ...] = (), **options: Any) -> JobPlan:
        """Returns the plan of a sweep; the options are those of FanOutOptions, PlannedTrials, and settings."""
        trials = {name: options.pop(name) for name in list(options) if name in PlannedTrials.__dataclass_fields__}
        known = {name: options.pop(name) for name in list(options) if name in FanOutOptions.__dataclass_fields__}
        space = build_search_space(FanOutOptions(sweep=sweep, settings=options, **known))
        planned = PlannedTrials(**{"tracking_uri": "none", "max_num_gpus": 0, **trials})
        return JobPlan("tiny.Tiny", (*ARGV, *argv), search_space=space, trials=planned, experiment="tiny")

    def create_fan_out(self, plan: JobPlan) -> FanOutFolder:
        """Returns the files of a new fan-out."""
        return create_fan_out(plan, self.root / "outputs" / f"fan_{next(self.numbers)}")

    def run(
        self, folder: FanOutFolder, *, on_line: Callable[[str], object] = lambda line: None, **options: Any
    ) -> FanOutResult:
        """Returns how a fan-out ended in this process; its lines are in :attr:`lines`."""
        self.lines.clear()

        def write(line: str) -> None:
            self.lines.append(line)
            on_line(line)

        warm = WarmProcesses(self.server)
        return run_fan_out(folder.run_folder, place=Place(self.root, self.root), write=write, warm=warm, **options)

    def run_new(self, sweep: str = "", **options: Any) -> tuple[FanOutFolder, FanOutResult]:
        """Returns a new fan-out and how it ended."""
        folder = self.create_fan_out(self.plan(sweep, **options))
        return folder, self.run(folder)

    @property
    def text(self) -> str:
        """Everything that the last fan-out has printed."""
        return "\n".join(self.lines)


def events(folder: FanOutFolder) -> list[tuple[str, int, int]]:
    """Returns kind, trial and attempt of each line in the log of the trials."""
    rows = [json.loads(line) for line in folder.trials_file.read_text().splitlines()]
    return [(row["event"], row["index"], row["attempt"]) for row in rows]


def ends(folder: FanOutFolder) -> list[int]:
    """Returns the number of each trial that ended, once for each end."""
    return sorted(index for event, index, _ in events(folder) if event == "ended")

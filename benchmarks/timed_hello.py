"""HelloWorld that notes when its first training batch starts, and the same training as a bare script.

``python -m benchmarks.timed_hello`` is the bare script; ``--model=benchmarks.timed_hello.TimedHelloWorld`` is the same
for the runner. Both write the time into the file that ``FIRST_BATCH_FILE`` names.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule

from health_ml.configs.hello_world import HelloRegression, HelloWorld, HelloWorldDataModule

FIRST_BATCH_FILE = "HIML_BENCHMARK_FIRST_BATCH_FILE"


class TimedRegression(HelloRegression):
    """The model of HelloWorld, which notes when the first training batch starts."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Writes the time, once."""
        path = Path(os.environ[FIRST_BATCH_FILE])
        if not path.exists():
            path.write_text(repr(time.time()))


class TimedHelloWorld(HelloWorld):
    """HelloWorld with that model."""

    def create_model(self) -> LightningModule:
        """Returns the model."""
        return TimedRegression()


def main() -> None:
    """Trains for one epoch, validates, and tests the checkpoint, as a script without any runner would."""
    from pytorch_lightning import Trainer, seed_everything

    seed_everything(42)
    data = HelloWorldDataModule(batch_size=8)
    trainer = Trainer(logger=False, max_epochs=1, accelerator="cpu")
    trainer.fit(TimedRegression(), data)
    trainer.test(ckpt_path="best", datamodule=data)


if __name__ == "__main__":
    main()

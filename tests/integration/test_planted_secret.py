"""A token that is planted wherever a user could put one appears in nothing that a run leaves or prints."""

from __future__ import annotations

import json
import os
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from health_ml.testing import Invocation, invoke, memory_backend
from tests.helpers.git_reference import git
from tests.helpers.http_server import send, serving

TOKEN = "Zx9q7Lw3Kv8sTn2Rb5Yd"
"""Has no look of its own: it is known as a secret by where it stands."""

PROJECT = """
import logging
import os
import param
import torch
from pytorch_lightning import LightningDataModule, LightningModule
from torch.utils.data import DataLoader, TensorDataset
from health_ml.lightning_container import LightningContainer


class Model(LightningModule):
    def __init__(self, hub_token, settings):
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        loss = self.layer(batch[0]).square().mean()
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Data(LightningDataModule):
    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.ones(4, 1)), batch_size=2)


class Secretive(LightningContainer):
    hub_token = param.String("", doc="Token.")
    settings = param.Dict({}, doc="Settings.")
    fails = param.Boolean(False, doc="Fail with a message that says too much.")

    def create_model(self):
        logging.getLogger("mine").warning("logging in with %s and %s", self.hub_token, os.environ["MY_API_TOKEN"])
        if self.fails:
            secret = self.settings["password"]
            raise RuntimeError(f"login of {self.hub_token} at https://me:{secret}@host failed: {secret}")
        return Model(self.hub_token, self.settings)

    def get_data_module(self):
        return Data()
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project in a git repository, with changes that are not committed."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "secretive.py").write_text(PROJECT)
    (folder / "client.py").write_text("API_KEY = ''\n")
    git(folder, "init", "-q")
    git(folder, "remote", "add", "origin", f"https://me:{TOKEN}@host/repository.git")
    git(folder, "add", "secretive.py", "client.py")
    git(folder, "commit", "-q", "-m", "all")
    (folder / "client.py").write_text(
        f'API_KEY = "{TOKEN}"\nlogin(password="{TOKEN}")\nheaders = {{"Authorization": "Bearer {TOKEN}"}}\n'
        f"-----BEGIN PRIVATE KEY-----\n{TOKEN}\n{TOKEN}\n-----END PRIVATE KEY-----\n"
    )
    (folder / "run.yaml").write_text(f"settings: {{password: {TOKEN}, urls: ['https://me:{TOKEN}@host/x']}}\n")
    return folder


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_TOKEN", TOKEN)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", TOKEN)


ARGUMENTS = (
    "--model=secretive.Secretive",
    f"--hub_token={TOKEN}",
    "--config=run.yaml",
    "--max_epochs=1",
    "--max_num_gpus=0",
    f"--tag=https://me:{TOKEN}@host/data?sig={TOKEN}",
)


def run(project: Path, *arguments: str) -> Invocation:
    return invoke([*ARGUMENTS, *arguments], folder=project, environment={"GIT_CONFIG_GLOBAL": os.devnull})


def places_with_token(folder: Path, *, but: tuple[str, ...] = ()) -> list[str]:
    """Returns the files below a folder whose content or name holds the token."""
    found = []
    for here, _, names in os.walk(folder):
        for name in names:
            path = Path(here) / name
            relative = str(path.relative_to(folder))
            if relative not in but and (TOKEN in relative or TOKEN.encode() in path.read_bytes()):
                found.append(relative)
    return found


OWN = ("client.py", "run.yaml", ".git/config")
"""Files of the user, which hold the token because the user wrote it there."""


@pytest.mark.usefixtures("variables")
def test_a_run_that_succeeds(project: Path) -> None:
    done = run(project, f"--tracking_uri=sqlite:///{project}/mlflow.db")

    assert done.exit_code == 0, done.stderr
    assert places_with_token(project, but=OWN) == []
    assert TOKEN not in done.stdout + done.stderr
    assert "logging in with *** and ***" in done.stderr
    patch = (done.run_folder / "run" / "uncommitted.patch").read_text()
    assert '+API_KEY = "***"' in patch
    assert '+login(password="***")' in patch


@pytest.mark.usefixtures("variables")
@pytest.mark.parametrize("full_error", ["0", "1"])
def test_a_run_that_fails(project: Path, full_error: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIML_FULL_ERROR", full_error)
    done = run(project, "--tracking_uri=none", "--fails")

    assert done.exit_code == 1
    assert "RuntimeError: login of *** at https://***@host failed: ***" in done.stderr
    assert TOKEN not in done.stdout + done.stderr
    assert places_with_token(project, but=OWN) == []


@pytest.mark.usefixtures("variables")
def test_a_fan_out(project: Path) -> None:
    done = run(project, "--tracking_uri=none", "--different_seeds=2", "--max_concurrent_trials=1")

    assert done.exit_code == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    assert len(list(project.glob("outputs/*/trials/*/run/status.jsonl"))) == 2
    assert places_with_token(project, but=OWN) == []


@pytest.mark.usefixtures("variables")
@pytest.mark.parametrize("flag", ["--print_config", "--dry_run", "--print_plan=json", "--max_epochs=x"])
def test_what_is_printed_without_a_run(project: Path, flag: str) -> None:
    done = run(project, "--tracking_uri=none", flag)

    assert TOKEN not in done.stdout + done.stderr
    assert done.exit_code == 2 or "***" in done.stdout
    assert places_with_token(project, but=OWN) == []


@pytest.mark.usefixtures("variables")
def test_the_checkpoint_of_a_server_with_a_password(project: Path, tmp_path: Path) -> None:
    headers: list[str] = []

    def refuse(handler: BaseHTTPRequestHandler, _: int) -> None:
        headers.append(json.dumps(dict(handler.headers.items())))
        send(handler, f"wrong password {TOKEN}".encode(), status=403)

    with serving(refuse) as server:
        url = server.url.replace("://", f"://me:{TOKEN}@") + f"/a.ckpt?sig={TOKEN}&token={TOKEN}"
        done = run(project, "--resume_training", f"--src_checkpoint={url}", "--tracking_uri=none")

    assert done.exit_code == 2
    assert "403" in done.stderr
    assert TOKEN not in done.stdout + done.stderr
    assert all(TOKEN not in header for header in headers), "the password travels in the header in another form only"
    assert places_with_token(project, but=OWN) == []


@pytest.mark.usefixtures("variables")
def test_a_job_with_a_file_of_secrets_is_refused(project: Path) -> None:
    (project / ".env").write_text(f"MY_API_TOKEN={TOKEN}\n")
    with memory_backend() as backend:
        done = run(project, "--cluster=memory", "--tracking_uri=none")

    assert done.exit_code == 2
    assert "These files look like secrets" in done.stderr
    assert TOKEN not in done.stdout + done.stderr
    assert not backend.runs


@pytest.mark.usefixtures("variables")
def test_a_job_on_this_machine_keeps_the_token_to_itself(project: Path) -> None:
    """The job needs the token, so it is in the file that tells it what to run, which only the user can read."""
    (project / "client.py").write_text("API_KEY = ''\n")
    (project / ".amlignore").write_text("run.yaml\n")
    before = set(project.rglob("*"))
    arguments = [argument for argument in ARGUMENTS if not argument.startswith("--config")]
    done = invoke(
        [*arguments, "--settings={}", "--cluster=local", "--wait_for_completion", "--tracking_uri=none"],
        folder=project,
        environment={"GIT_CONFIG_GLOBAL": os.devnull, "OMP_NUM_THREADS": "1"},
    )

    assert done.exit_code == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    (job_file,) = project.glob("outputs/*/job/job.json")
    assert job_file.stat().st_mode & 0o077 == 0
    assert places_with_token(project, but=(*OWN, str(job_file.relative_to(project)))) == []
    assert before < set(project.rglob("*"))

"""The guides about AzureML do what they say, with the stand-in as their workspace."""

from __future__ import annotations

import io
import json
import re
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from health_ml.environment import environment_variables, working_directory
from health_ml.runner import download_main
from tests.azureml.service import AzureML
from tests.helpers.police import REPOSITORY
from tests.helpers.snippets import Output, Page, is_with_azureml, read_snippets

PAGES = [page for page in sorted((REPOSITORY / "docs").rglob("*.md")) if is_with_azureml(page.read_text())]
JOB_ID = re.compile(r"([a-z]+)_\d{8}t\d{6}z_[0-9a-f]{8}")
ASSET = re.compile(r"<!-- with AzureML: (\w+):(\w+) -->")
ENVIRONMENT = "dependencies:\n  - python=3.11\n  - pip:\n      - torch\n"


@dataclass
class AzureMLPage(Page):
    """A page whose commands find the stand-in; a job that a page shows is the newest of its model at that point."""

    azureml: AzureML = field(kw_only=True)
    existing: set[str] = field(kw_only=True)

    def run_command(self, words: list[str], exit_code: int) -> Output:
        """Jobs run while a command waits for one, and stay in the queue otherwise."""
        waits = any(word.startswith(("--attach", "--wait_for_completion")) for word in words)
        with self.azureml.executing() if waits else nullcontext():
            if words[0] != "himl-download":
                return super().run_command(words, exit_code)
            stdout, stderr = io.StringIO(), io.StringIO()
            with (
                redirect_stdout(stdout), redirect_stderr(stderr),
                working_directory(self.folder), environment_variables(self.environment),
            ):  # fmt: skip
                assert download_main(words[1:]) == exit_code
            return stdout.getvalue(), stderr.getvalue()

    def real(self, text: str) -> str:
        """Returns the text with the ids of jobs and the workspace that there are, in place of those that it shows."""
        text = super().real(text)
        for match in JOB_ID.finditer(text):
            jobs = [
                name for name, job in self.azureml.state.jobs.items()
                if name not in self.existing and name.startswith(f"{match[1]}_") and job.parent is None
            ]  # fmt: skip
            if jobs:
                self.run_ids.setdefault(match[0], jobs[-1])
        text = JOB_ID.sub(lambda match: self.run_ids.get(match[0], match[0]), text)
        config = self.azureml.config
        return (
            text.replace("00000000-0000-0000-0000-000000000000", config["subscription_id"])
            .replace("my-group", config["resource_group"])
            .replace("my-workspace", config["workspace_name"])
        )


@pytest.mark.parametrize("page", [str(page.relative_to(REPOSITORY)) for page in PAGES])
def test_snippets(page: str, azureml: AzureML, client: Any, tmp_path: Path) -> None:
    text = (REPOSITORY / page).read_text()
    for name, version in ASSET.findall(text):
        _add_data(azureml, client, name, version)
    (tmp_path / "config.json").write_text(json.dumps(azureml.config))
    (tmp_path / "environment.yml").write_text(ENVIRONMENT)
    variables = {**azureml.environment, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    running = AzureMLPage(tmp_path, variables, azureml=azureml, existing=set(azureml.state.jobs))
    for snippet in read_snippets(text):
        running.run(snippet)


def test_there_are_guides() -> None:
    assert {page.stem for page in PAGES} == {"azureml", "azureml_data", "azureml_results"}


def _add_data(azureml: AzureML, client: Any, name: str, version: str) -> None:
    from azure.ai.ml.entities import Data

    folder = f"guides/{name}/{version}"
    azureml.azurite.write(azureml.workspace.default_container, f"{folder}/a.txt", b"alpha")
    path = f"azureml://datastores/workspaceblobstore/paths/{folder}"
    client.data.create_or_update(Data(name=name, version=version, path=path, type="uri_folder"))

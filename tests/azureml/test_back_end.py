"""The contract of a back end, kept by the one for AzureML: the tests are those of every back end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from health_ml.azure.account import AzureMLAccount
from health_ml.azure.client import WorkspaceName
from health_ml.backends.azureml import AzureMLBackend
from tests.azureml.service import AzureML
from tests.contract.adapters import Adapter
from tests.contract.test_backends import (
    test_a_run_can_be_followed_and_cancelled_from_elsewhere,
    test_a_run_that_ends_well,
    test_a_run_that_fails,
    test_an_unknown_run_is_named,
    test_rendering_is_pure_and_printable,
    test_the_plan_of_a_request_survives_json,
    test_two_submissions_never_share_a_run,
)

__all__ = [
    "test_a_run_can_be_followed_and_cancelled_from_elsewhere",
    "test_a_run_that_ends_well",
    "test_a_run_that_fails",
    "test_an_unknown_run_is_named",
    "test_rendering_is_pure_and_printable",
    "test_the_plan_of_a_request_survives_json",
    "test_two_submissions_never_share_a_run",
]


class AzureMLAdapter(Adapter):
    """The stand-in, which executes the jobs as they come."""

    def __init__(self, service: AzureML) -> None:
        self.service = service
        self.accounts: list[AzureMLAccount] = []
        self.backend = self.another()

    def another(self) -> AzureMLBackend:
        place = self.service.workspace
        workspace = WorkspaceName(place.subscription_id, place.resource_group, place.name)
        self.accounts.append(AzureMLAccount(workspace, environ=self.service.environment))
        return AzureMLBackend(self.accounts[-1], "cpu", poll_seconds=0.3)

    def close(self) -> None:
        for account in self.accounts:
            account.credential.close()


@pytest.fixture
def adapter(signed_in: AzureML, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Adapter]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path.with_name(f"{tmp_path.name}-cache")))
    adapter = AzureMLAdapter(signed_in)
    with signed_in.executing():
        yield adapter
    adapter.close()


def test_no_test_of_the_contract_is_missing() -> None:
    from tests.contract import test_backends

    assert {name for name in vars(test_backends) if name.startswith("test_")} == set(__all__)

"""What every back end has to do, whatever is behind it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from health_ml.errors import RunNotFoundError
from health_ml.planning.plan import JobPlan
from health_ml.records.record import RunStatus
from tests.contract.adapters import ENDLESS, FAILING, SHORT, Adapter, LocalAdapter, MemoryAdapter, plan_for

LIMIT_SECONDS = 90.0


@pytest.fixture(params=["memory", "local"])
def adapter(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Adapter]:
    if request.param == "local":
        yield LocalAdapter(tmp_path)
        return
    memory = MemoryAdapter()
    yield memory
    for thread in memory.threads:
        thread.join()


def test_rendering_is_pure_and_printable(adapter: Adapter, tmp_path: Path) -> None:
    request = adapter.backend.render(plan_for(SHORT))
    assert request == adapter.backend.render(plan_for(SHORT))
    assert request.plan == plan_for(SHORT)
    shown = json.loads(request.to_text())
    assert shown["backend"] == adapter.backend.name
    assert "--max_epochs=1" in json.dumps(shown)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_ends_well(adapter: Adapter, tmp_path: Path) -> None:
    handle = adapter.submit(SHORT)
    lines: list[str] = []
    handle.stream(lines.append)
    assert any("FINISHED" in line for line in lines), lines
    assert handle.wait(LIMIT_SECONDS) is RunStatus.FINISHED
    assert handle.status() is RunStatus.FINISHED
    target = tmp_path / "download"
    files = handle.download("checkpoints/*.ckpt", target)
    assert [file.relative_to(target).as_posix() for file in files] == ["checkpoints/last.ckpt"]
    assert files[0].stat().st_size > 0
    assert handle.download("nothing/*", target) == []
    handle.cancel()
    assert handle.status() is RunStatus.FINISHED, "cancelling a run that has ended changes nothing"


def test_a_run_that_fails(adapter: Adapter) -> None:
    handle = adapter.submit(FAILING)
    assert handle.wait(LIMIT_SECONDS) is RunStatus.FAILED
    lines: list[str] = []
    handle.stream(lines.append)
    assert any("max_epochs" in line for line in lines), lines


def test_a_run_can_be_followed_and_cancelled_from_elsewhere(adapter: Adapter) -> None:
    submitted = adapter.submit(ENDLESS)
    attached = adapter.another().attach(submitted.run_id)
    assert attached.run_id == submitted.run_id
    start = time.monotonic()
    assert not attached.wait(0.2).is_final
    assert time.monotonic() - start < 10
    attached.cancel()
    assert attached.status() is RunStatus.CANCELLED
    assert submitted.wait(LIMIT_SECONDS) is RunStatus.CANCELLED


def test_an_unknown_run_is_named(adapter: Adapter) -> None:
    with pytest.raises(RunNotFoundError, match="no_such_run"):
        adapter.backend.attach("no_such_run")


def test_two_submissions_never_share_a_run(adapter: Adapter) -> None:
    first, second = adapter.submit(FAILING), adapter.submit(FAILING)
    assert first.run_id != second.run_id
    assert first.wait(LIMIT_SECONDS).is_final
    assert second.wait(LIMIT_SECONDS).is_final


def test_the_plan_of_a_request_survives_json(adapter: Adapter) -> None:
    request = adapter.backend.render(plan_for(SHORT))
    assert JobPlan.from_json(request.plan.to_json()) == request.plan

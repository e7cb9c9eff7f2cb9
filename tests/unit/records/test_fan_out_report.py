import csv
import html
import io
import math
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from health_ml.records.fan_out_report import FanOutReport, Statistics, TrialResult
from health_ml.records.record import RunStatus


def trial(index: int, loss: float, status: RunStatus = RunStatus.FINISHED, note: str = "") -> TrialResult:
    return TrialResult(
        index=index,
        run_id=f"run_{index}",
        parameters={"l_rate": 10.0**-index, "kind": "a<b" if index else "c"},
        status=status,
        metrics={"val/loss": loss},
        seconds=61.2,
        note=note,
    )


REPORT = FanOutReport(
    "fan",
    [trial(0, 3.0), trial(1, 1.0), trial(2, math.nan), trial(3, 0.5, RunStatus.FAILED, "ValueError: <script>")],
    primary_metric="val/loss",
)


def test_the_best_trial_is_a_finished_one_with_a_number() -> None:
    assert REPORT.best is not None
    assert REPORT.best.index == 1
    largest = FanOutReport("fan", REPORT.trials, "val/loss", is_minimized=False).best
    assert largest is not None
    assert largest.index == 0
    assert FanOutReport("fan", REPORT.trials).best is None


def test_statistics_are_over_finished_trials_with_a_number() -> None:
    assert REPORT.statistics() == {"val/loss": Statistics(2, 2.0, pytest.approx(math.sqrt(2)), 1.0, 3.0)}


def test_one_value_has_no_deviation() -> None:
    found = Statistics.of([2.0])
    assert math.isnan(found.deviation)
    assert (found.mean, found.minimum, found.maximum) == (2.0, 2.0, 2.0)


def test_the_text_shows_each_trial_and_the_statistics() -> None:
    lines = REPORT.to_text().splitlines()
    assert lines[0].split() == ["trial", "l_rate", "kind", "val/loss", "status", "time", "run"]
    assert lines[2].split() == ["0", "1", "c", "3", "FINISHED", "1:01", "run_0"]
    assert "FAILED" in lines[5]
    assert "Trial 3: ValueError: <script>" in REPORT.to_text()
    assert "val/loss  2       2     1.41421  1    3" in lines
    assert lines[-1] == "Best trial by val/loss: 1 (1), run run_1."


def test_the_csv_has_every_parameter_and_metric() -> None:
    rows = list(csv.DictReader(io.StringIO(REPORT.to_csv())))
    assert [row["run_id"] for row in rows] == ["run_0", "run_1", "run_2", "run_3"]
    assert rows[1]["kind"] == "a<b"
    assert float(rows[1]["val/loss"]) == 1.0
    assert rows[3]["status"] == "FAILED"


def test_the_page_escapes_what_users_wrote_and_plots_the_finished_trials() -> None:
    page = REPORT.to_html()
    assert "<script>" not in page
    assert "ValueError: &lt;script&gt;" in page
    assert "http" not in page
    plots = [ElementTree.fromstring("<svg" + part.split("</svg>")[0] + "</svg>") for part in page.split("<svg")[1:]]
    assert len(plots) == 3  # over the trial, l_rate and kind
    assert [len(plot.findall("circle")) for plot in plots] == [2, 2, 2]


HOSTILE = """</title></td></svg><img src=x onerror='alert(1)'>"><script>alert(2)</script>&lt;"""


def test_no_text_of_a_user_becomes_a_part_of_the_page() -> None:
    trials = [
        TrialResult(
            index, HOSTILE, {HOSTILE: HOSTILE, "n": index}, RunStatus.FINISHED, {HOSTILE: 1.0 + index}, 1, HOSTILE
        )
        for index in range(3)
    ]
    page = FanOutReport(HOSTILE, trials, primary_metric=HOSTILE, is_minimized=True).to_html()
    found = PageReader()
    found.feed(page)
    assert not found.tags & {"script", "img"}
    assert not [name for name in found.attributes if name.startswith("on") or name in ("src", "href")]
    assert page.count(html.escape(HOSTILE)) > 10


class PageReader(HTMLParser):
    """Notes which elements and attributes a browser would see."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attrs)


def test_a_fan_out_without_a_finished_trial_has_a_report_too() -> None:
    report = FanOutReport("fan", [trial(0, 1.0, RunStatus.KILLED)], "val/loss")
    assert "KILLED" in report.to_text()
    assert "0 of 1 trials finished" in report.to_html()
    assert report.statistics() == {}

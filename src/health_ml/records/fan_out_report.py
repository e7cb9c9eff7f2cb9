"""What a fan-out found, as a table: one row per trial, and mean, sd, min and max over all that finished.

The same rows become text for the console, CSV for a spreadsheet, and one HTML file that needs no network.
"""

from __future__ import annotations

import csv
import html
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from health_ml.records.record import RunStatus

_PLOT_WIDTH = 320
_PLOT_HEIGHT = 200
_MARGIN = 36


@dataclass(frozen=True)
class TrialResult:
    """How one trial ended.

    :param index: Number of the trial, from 0.
    :param run_id: Id of its run.
    :param parameters: The values that this trial was given.
    :param status: How it ended.
    :param metrics: Final metrics by name.
    :param seconds: Wall time, or None if it never started.
    :param note: What a reader should know: an early stop, or the error.
    """

    index: int
    run_id: str
    parameters: Mapping[str, object]
    status: RunStatus
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Statistics:
    """Mean, sample standard deviation (nan for a single value), minimum and maximum of ``count`` values."""

    count: int
    mean: float
    deviation: float
    minimum: float
    maximum: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Statistics:
        """Returns the statistics of at least one value."""
        deviation = statistics.stdev(values) if len(values) > 1 else math.nan
        return cls(len(values), statistics.fmean(values), deviation, min(values), max(values))


@dataclass(frozen=True)
class FanOutReport:
    """The results of a fan-out.

    :param run_id: Id of the fan-out.
    :param trials: Its trials in order.
    :param primary_metric: The metric that ranks the trials, or "" if none was named.
    :param is_minimized: True if small values of the primary metric are good.
    """

    run_id: str
    trials: Sequence[TrialResult]
    primary_metric: str = ""
    is_minimized: bool = True

    @property
    def finished(self) -> list[TrialResult]:
        """The trials that ran to their end."""
        return [trial for trial in self.trials if trial.status is RunStatus.FINISHED]

    @property
    def best(self) -> TrialResult | None:
        """The finished trial with the best primary metric; trials without a number there do not compete."""
        name = self.primary_metric
        ranked = [trial for trial in self.finished if not math.isnan(trial.metrics.get(name, math.nan))]
        if not ranked:
            return None
        choose = min if self.is_minimized else max
        return choose(ranked, key=lambda trial: trial.metrics[name])

    def statistics(self) -> dict[str, Statistics]:
        """Returns the statistics of every metric over the finished trials, by name; NaN values do not count."""
        names = sorted({name for trial in self.finished for name in trial.metrics})
        found = {}
        for name in names:
            values = [trial.metrics[name] for trial in self.finished if name in trial.metrics]
            numbers = [value for value in values if not math.isnan(value)]
            if numbers:
                found[name] = Statistics.of(numbers)
        return found

    def parameter_names(self) -> list[str]:
        """Returns the names of what the trials vary, in order of appearance."""
        return list(dict.fromkeys(name for trial in self.trials for name in trial.parameters))

    def to_text(self) -> str:
        """Returns both tables for the console."""
        metric = self.primary_metric
        header = ["trial", *self.parameter_names(), *([metric] if metric else []), "status", "time", "run"]
        rows = [
            [
                str(trial.index),
                *(_text(trial.parameters.get(name, "")) for name in self.parameter_names()),
                *([_number(trial.metrics.get(metric))] if metric else []),
                trial.status.value,
                _duration(trial.seconds),
                trial.run_id,
            ]
            for trial in self.trials
        ]
        notes = [f"Trial {trial.index}: {' '.join(trial.note.split())}" for trial in self.trials if trial.note]
        parts = [_aligned(header, rows), *(["\n".join(notes)] if notes else [])]
        summary = [
            [name, str(found.count), *map(_number, (found.mean, found.deviation, found.minimum, found.maximum))]
            for name, found in self.statistics().items()
        ]
        if summary:
            parts.append(_aligned(["metric", "trials", "mean", "sd", "min", "max"], summary))
        if self.best is not None:
            parts.append(
                f"Best trial by {metric}: {self.best.index} ({_number(self.best.metrics[metric])}), "
                f"run {self.best.run_id}."
            )
        return "\n\n".join(parts)

    def to_csv(self) -> str:
        """Returns one line per trial with every parameter and every metric."""
        parameters = self.parameter_names()
        metrics = sorted({name for trial in self.trials for name in trial.metrics})
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["trial", "run_id", "status", "seconds", *parameters, *metrics, "note"])
        for trial in self.trials:
            writer.writerow(
                [
                    trial.index,
                    trial.run_id,
                    trial.status.value,
                    "" if trial.seconds is None else round(trial.seconds, 3),
                    *(_text(trial.parameters.get(name, "")) for name in parameters),
                    *(trial.metrics.get(name, "") for name in metrics),
                    trial.note,
                ]
            )
        return text.getvalue()

    def to_html(self) -> str:
        """Returns one page with both tables and, for the primary metric, one plot per parameter.

        Everything that a user wrote is escaped, and the page refers to nothing outside itself.
        """
        title = html.escape(f"Fan-out {self.run_id}")
        return "\n".join(
            [
                "<!doctype html>",
                f'<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style></head>',
                "<body>",
                f"<h1>{title}</h1>",
                self._html_best(),
                *self._html_plots(),
                "<h2>Trials</h2>",
                _html_table(*_csv_rows(self.to_csv())),
                "<h2>Statistics over finished trials</h2>",
                _html_table(
                    ["metric", "trials", "mean", "sd", "min", "max"],
                    [
                        [name, str(s.count), *map(_number, (s.mean, s.deviation, s.minimum, s.maximum))]
                        for name, s in self.statistics().items()
                    ],
                ),
                "</body></html>\n",
            ]
        )

    def _html_best(self) -> str:
        if self.best is None:
            return f"<p>{len(self.finished)} of {len(self.trials)} trials finished.</p>"
        value = _number(self.best.metrics[self.primary_metric])
        return (
            f"<p>{len(self.finished)} of {len(self.trials)} trials finished. Best by "
            f"<b>{html.escape(self.primary_metric)}</b>: trial {self.best.index} with {value}, "
            f"run {html.escape(self.best.run_id)}.</p>"
        )

    def _html_plots(self) -> list[str]:
        ranked = [trial for trial in self.finished if math.isfinite(trial.metrics.get(self.primary_metric, math.nan))]
        if not ranked:
            return []
        plots = []
        for name in ["trial", *self.parameter_names()]:
            points = [
                (trial.index if name == "trial" else trial.parameters.get(name), trial.metrics[self.primary_metric])
                for trial in ranked
            ]
            plots.append(_scatter_plot(name, self.primary_metric, points))
        return ["<h2>Primary metric</h2>", "<div>", *plots, "</div>"]


_STYLE = (
    "body{font:14px sans-serif;margin:2em;color:#222}table{border-collapse:collapse}"
    "td,th{padding:3px 10px;border-bottom:1px solid #ddd;text-align:left}svg{margin:0 1em 1em 0}"
)


def _aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [header, ["-" * width for width in widths], *rows]
    ]
    return "\n".join(lines)


def _text(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


def _csv_rows(text: str) -> tuple[list[str], list[list[str]]]:
    rows = list(csv.reader(io.StringIO(text)))
    return rows[0], rows[1:]


def _html_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return "\n".join(["<table>", line(header, "th"), *(line(row, "td") for row in rows), "</table>"])


def _scatter_plot(x_name: str, y_name: str, points: Sequence[tuple[object, float]]) -> str:
    """Returns an SVG with one dot per trial; values that are not numbers become places on the axis in order."""
    labels = list(dict.fromkeys(_text(x) for x, _ in points))
    is_numeric = all(isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x) for x, _ in points)
    xs = [float(x) if is_numeric else float(labels.index(_text(x))) for x, _ in points]  # type: ignore[arg-type]
    ys = [y for _, y in points]
    dots = []
    for x, y, (value, _) in zip(xs, ys, points, strict=True):
        left = _MARGIN + _share(x, xs) * (_PLOT_WIDTH - 2 * _MARGIN)
        top = _PLOT_HEIGHT - _MARGIN - _share(y, ys) * (_PLOT_HEIGHT - 2 * _MARGIN)
        tip = html.escape(f"{x_name}={_text(value)}, {y_name}={_number(y)}")
        dots.append(f'<circle cx="{left:.1f}" cy="{top:.1f}" r="4" fill="#2a6fb0"><title>{tip}</title></circle>')
    low, high = (_text(min(xs)), _text(max(xs))) if is_numeric else (labels[0], labels[-1])
    bottom = _PLOT_HEIGHT - _MARGIN
    right = _PLOT_WIDTH - _MARGIN
    return (
        f'<svg width="{_PLOT_WIDTH}" height="{_PLOT_HEIGHT}" font-size="11">'
        f'<path d="M{_MARGIN} {_MARGIN // 2}V{bottom}H{right}" fill="none" stroke="#888"/>{"".join(dots)}'
        f'<text x="{_MARGIN}" y="{bottom + 14}">{html.escape(low)}</text>'
        f'<text x="{right}" y="{bottom + 14}" text-anchor="end">{html.escape(high)}</text>'
        f'<text x="{_PLOT_WIDTH // 2}" y="{bottom + 28}" text-anchor="middle">{html.escape(x_name)}</text>'
        f'<text x="2" y="{_MARGIN // 2 + 4}">{_number(max(ys))}</text>'
        f'<text x="2" y="{bottom}">{_number(min(ys))}</text>'
        f'<text x="{_MARGIN + 4}" y="12">{html.escape(y_name)}</text></svg>'
    )


def _share(value: float, values: Sequence[float]) -> float:
    low, high = min(values), max(values)
    return 0.5 if high == low else (value - low) / (high - low)

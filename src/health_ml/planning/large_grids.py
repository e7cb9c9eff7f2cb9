"""A grid with more trials than one job may have becomes several jobs, each with a part of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from health_ml.errors import PlanError
from health_ml.planning.dimensions import Choice, Dimension, ParameterValue
from health_ml.planning.plan import JobPlan
from health_ml.planning.search_space import Sampling, SearchSpace

Dimensions = tuple[tuple[str, Dimension], ...]


def split_plan(plan: JobPlan, most: int | None) -> tuple[JobPlan, ...]:
    """Returns the plans of the jobs that do together what a plan asks for; only a large grid needs several.

    :param most: Largest number of trials of one job, or None if there is none.
    :raises PlanError: If fewer trials may run at the same time than there are jobs.
    """
    space = plan.search_space
    if most is None or space is None or space.sampling is not Sampling.GRID or space.max_trials is not None:
        return (plan,)
    parts = tuple(_parts(space.dimensions, most))
    if len(parts) < 2:
        return (plan,)
    name = plan.display_name or plan.model_name
    return tuple(
        replace(
            plan,
            display_name=f"{name} ({number} of {len(parts)})",
            search_space=replace(space, dimensions=dimensions, max_concurrent=concurrent),
        )
        for number, (dimensions, concurrent) in enumerate(zip(parts, _shares(space, len(parts)), strict=True), start=1)
    )


def _parts(dimensions: Dimensions, most: int) -> Iterator[Dimensions]:
    """Yields parts of a grid that are as large as they may be, by cutting its longest list of values first."""
    size = SearchSpace(dimensions).trial_count
    if size <= most:
        yield dimensions
        return
    grids: list[tuple[ParameterValue, ...]] = [tuple(dimension.grid() or ()) for _, dimension in dimensions]
    longest = max(range(len(grids)), key=lambda index: len(grids[index]))
    values = grids[longest]
    length = max(1, most // (size // len(values)))
    for start in range(0, len(values), length):
        part = Choice(values[start : start + length])
        changed = (dimensions[longest][0], part)
        yield from _parts((*dimensions[:longest], changed, *dimensions[longest + 1 :]), most)


def _shares(space: SearchSpace, count: int) -> list[int | None]:
    """Returns how many trials of each job may run at the same time: together as many as the user allowed."""
    if space.max_concurrent is None:
        return [None] * count
    if space.max_concurrent < count:
        raise PlanError(
            f"{space.trial_count} trials need {count} jobs, and {space.max_concurrent} trials at the same time are "
            "less than one for each.",
            f"Set --max_concurrent_trials={count} or more, or vary fewer values.",
        )
    share, more = divmod(space.max_concurrent, count)
    return [share + (index < more) for index in range(count)]

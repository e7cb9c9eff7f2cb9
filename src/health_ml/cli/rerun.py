"""``--rerun=<run id>``: repeats a run from its record, with the same code, plan and seed, or with ``--set`` changes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from health_ml.backends.fan_out_job import RERUN_FAILED
from health_ml.backends.local_layout import LocalJob, LocalJobFolder
from health_ml.cli.command_line import CommandLine
from health_ml.cli.job_arguments import NOT_IN_JOB
from health_ml.cli.run_store_flags import StoreFlags, read_store_flags
from health_ml.cli.tokens import normalized
from health_ml.environment import Place
from health_ml.errors import ArgumentsError, PlanError, did_you_mean
from health_ml.planning.fan_out import SEED_PARAMETER
from health_ml.planning.fan_out_folder import FanOutFolder
from health_ml.planning.plan import JobPlan, pairs_of
from health_ml.planning.provenance import GitState, read_git_state
from health_ml.planning.run_store import find_run_folder, is_id_in_azureml
from health_ml.planning.secrets import MASK, mask_program_text
from health_ml.records.reader import RecordView, read_document, read_record
from health_ml.records.trial_log import read_trials
from health_ml.settings import (
    RECORD_CONFIG_DOCUMENT,
    RECORD_FOLDER,
    RECORD_GIT_DOCUMENT,
    RECORD_GIT_PATCH_FILE,
    RECORD_PLAN_DOCUMENT,
)

logger = logging.getLogger(__name__)

_ALLOWED = frozenset({"wait_for_completion"})
_PROGRAM_WORDS = 3
"""A job's command starts with the interpreter, ``-m`` and a module."""


@dataclass(frozen=True)
class Repetition:
    """A run to repeat.

    :param plan: Its plan, with the changes of the user.
    :param is_job: True if it was a job that ran from a snapshot, False if it ran from the user's own folder.
    :param git_state: State of the code that the snapshot was taken of.
    :param flags: The flags of the command.
    """

    plan: JobPlan
    is_job: bool
    git_state: GitState | None
    flags: StoreFlags


def read_repetition(command: CommandLine, place: Place) -> Repetition:
    """Returns what ``--rerun`` asks for.

    :raises RunNotFoundError: If there is no such run.
    :raises PlanError: If its record has no plan, or the code is not as it was.
    """
    if is_id_in_azureml(command.rerun):
        raise PlanError(
            f"{command.rerun} is a job in AzureML, and --rerun repeats the runs of this machine.",
            "'Resubmit' on its page in the studio repeats it with the same code; or type its command again, which its "
            "tag commandline_args shows.",
        )
    flags = read_store_flags(command, start_directory=place.start_directory, mode="--rerun", allowed=_ALLOWED)
    folder = find_run_folder(command.rerun, place.project_root, flags.output_to)
    # A trial has the code, the arguments and the environment of its fan-out.
    fan_out = FanOutFolder.of_trial(folder)
    job = LocalJobFolder(fan_out.run_folder if fan_out else folder)
    record = read_record(job.run_folder)
    document = record.document(RECORD_PLAN_DOCUMENT)
    if not document:
        raise PlanError(
            f"The record of run {command.rerun} has no plan, so it cannot be repeated.",
            "It was written by another version; type its command again: it is in run/run.json.",
        )
    plan = JobPlan.from_json(document)
    is_job = job.job_file.exists()
    if is_job:
        plan = _with_secrets(plan, job.read_job())
    if fan_out is not None:
        plan = _plan_of_trial(plan, fan_out, int(folder.name))
    plan = _with_changes(plan, command.changes, known=_parameters(folder), is_job=is_job)
    if not is_job:
        _check_same_code(command.rerun, record, place.start_directory)
        if flags.config.wait_for_completion:
            raise ArgumentsError("--wait_for_completion has no effect: the run was not a job, so it runs here.")
        variables = {name: text for name, text in plan.environment_variables if MASK not in text}
        plan = replace(plan, environment_variables=pairs_of(variables))  # the container sets them again
    return Repetition(plan, is_job, _recorded_state(record), flags)


def _with_secrets(plan: JobPlan, job: LocalJob) -> JobPlan:
    """Returns the plan of a job with what the record does not keep, and what the job was handed."""
    argv = tuple(argument for argument in job.command[_PROGRAM_WORDS:] if argument != RERUN_FAILED)
    return replace(plan, argv=argv, environment_variables=pairs_of(job.environment))


def _plan_of_trial(plan: JobPlan, fan_out: FanOutFolder, index: int) -> JobPlan:
    """Returns the plan of a fan-out as that of one of its trials alone."""
    state = read_trials(fan_out).get(index)
    if state is None:
        raise PlanError(
            f"{fan_out.run_id} does not say what trial {index} was.", f"himl-runner --rerun={fan_out.run_id}."
        )
    return replace(plan, argv=(*plan.argv, *state.trial.arguments()), search_space=None)


def _parameters(folder: Path) -> set[str]:
    """Returns the names of a run's parameters as far as they are known; a fan-out has those of its trials."""
    fan_out = FanOutFolder(folder)
    runs = [fan_out.trial_folder(index) for index in fan_out.trial_indices()[:1]] if fan_out.exists else [folder]
    return {name for run in runs for name in read_document(run / RECORD_FOLDER / f"{RECORD_CONFIG_DOCUMENT}.json")}


def _with_changes(plan: JobPlan, changes: tuple[str, ...], *, known: set[str], is_job: bool) -> JobPlan:
    varied = plan.search_space.parameter_names if plan.search_space else ()
    # What a job or a fan-out was planned with is no argument of what runs in it.
    fixed = NOT_IN_JOB if is_job or plan.search_space else frozenset()
    problems = []
    values: dict[str, str] = {}
    for change in changes:
        flag, equals, value = change.partition("=")
        name = normalized(flag.removeprefix("--"))
        if not equals or not name:
            problems.append(f"--set={change} is no FLAG=VALUE.")
        elif name in varied:
            problems.append(f"--set={change}: the trials of the run vary {name}.")
        elif name in fixed:
            problems.append(f"--set={change}: {name} is part of how the run was planned: type its command again.")
        elif name == "num_nodes" and is_job and not (value.isascii() and value.isdigit() and int(value)):
            problems.append(f"--set={change}: the number of nodes is a whole number above 0.")
        elif known and name not in known and not name.startswith("trainer."):
            problems.append(f"--set={change}: the run has no parameter {name!r}. {did_you_mean(name, known)}".rstrip())
        else:
            values[name] = value
    if problems:
        raise ArgumentsError(" ".join(problems), "Write for example --set max_epochs=20 --set l_rate=1e-3.")
    kept = [argument for argument in plan.argv if argument.partition("=")[0].removeprefix("--") not in values]
    _check_complete(kept)
    return _planned_with(replace(plan, argv=(*kept, *(f"--{name}={value}" for name, value in values.items()))), values)


def _check_complete(arguments: Sequence[str]) -> None:
    """Raises an error if an argument was a secret.

    :raises PlanError: Naming the flags.
    """
    masked = [argument.partition("=")[0] for argument in arguments if MASK in argument]
    if masked:
        raise PlanError(
            f"The record does not keep secrets, and {', '.join(masked)} had one.",
            f"Give the value again: --set {masked[0].removeprefix('--')}=VALUE.",
        )


def _planned_with(plan: JobPlan, values: Mapping[str, str]) -> JobPlan:
    """Returns the plan with what it says besides the arguments as the changes have it."""
    seed = values.get(SEED_PARAMETER, "")
    return replace(
        plan,
        num_nodes=int(values.get("num_nodes", plan.num_nodes)),
        seed=int(seed) if seed.isascii() and seed.isdigit() else plan.seed,
        display_name=values.get("tag", plan.display_name),
        tags=pairs_of({**dict(plan.tags), **{name: text for name, text in values.items() if name == "tag"}}),
        trials=replace(plan.trials, tracking_uri=values.get("tracking_uri", plan.trials.tracking_uri)),
    )


def _check_same_code(run_id: str, record: RecordView, folder: Path) -> None:
    """Raises an error unless the code in the folder is the one that the run had.

    :raises PlanError: With what to do to get that code back.
    """
    then, now = _recorded_state(record), read_git_state(folder)
    if then is None:
        logger.warning(
            "Run %s ran from a folder without git: whether its code has changed since cannot be told. Jobs, which "
            "--cluster=local submits, keep their code.",
            run_id,
        )
        return
    patch_file = record.folder / RECORD_GIT_PATCH_FILE
    if now is not None and (now.commit, mask_program_text(now.patch)) == (then.commit, then.patch):
        return
    patch = f" and git apply {patch_file}" if then.patch else ""
    raise PlanError(
        f"The code is not as it was in run {run_id}, which ran commit {then.commit}"
        f"{' with uncommitted changes' if then.is_dirty else ''}.",
        f"Get it back with git checkout {then.commit}{patch}, or type the command again to run the present code.",
    )


def _recorded_state(record: RecordView) -> GitState | None:
    document: dict[str, Any] = record.document(RECORD_GIT_DOCUMENT)
    if not document:
        return None
    try:
        patch = (record.folder / RECORD_GIT_PATCH_FILE).read_bytes().decode("utf-8", errors="surrogateescape")
    except OSError:
        patch = ""
    return GitState(
        root=Path(document.get("root", "")),
        commit=document.get("commit"),
        branch=document.get("branch"),
        is_dirty=bool(document.get("is_dirty")),
        remote=document.get("remote"),
        untracked=tuple(document.get("untracked", ())),
        patch=patch,
    )

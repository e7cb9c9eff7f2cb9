"""``--rerun=<run id>``: repeats a run from its record, with the same code, plan and seed, or with ``--set`` changes."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from health_ml.backends.local_layout import LocalJobFolder
from health_ml.cli.command_line import CommandLine
from health_ml.cli.run_store_flags import StoreFlags, read_store_flags
from health_ml.cli.tokens import normalized
from health_ml.environment import Place
from health_ml.errors import ArgumentsError, PlanError, did_you_mean
from health_ml.planning.plan import JobPlan
from health_ml.planning.provenance import GitState, read_git_state
from health_ml.planning.run_store import find_run_folder
from health_ml.planning.secrets import MASK, mask_program_text
from health_ml.records.reader import RecordView, read_record
from health_ml.settings import (
    RECORD_CONFIG_DOCUMENT,
    RECORD_GIT_DOCUMENT,
    RECORD_GIT_PATCH_FILE,
    RECORD_PLAN_DOCUMENT,
)

logger = logging.getLogger(__name__)

_ALLOWED = frozenset({"wait_for_completion"})


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
    flags = read_store_flags(command, start_directory=place.start_directory, mode="--rerun", allowed=_ALLOWED)
    folder = find_run_folder(command.rerun, place.project_root, flags.output_to)
    record = read_record(folder)
    document = record.document(RECORD_PLAN_DOCUMENT)
    if not document:
        raise PlanError(
            f"The record of run {command.rerun} has no plan, so it cannot be repeated.",
            "It was written by another version; type its command again: it is in run/run.json.",
        )
    plan = _with_changes(JobPlan.from_json(document), command.changes, record)
    is_job = LocalJobFolder(folder).job_file.exists()
    if not is_job:
        _check_same_code(command.rerun, record, place.start_directory)
        if flags.config.wait_for_completion:
            raise ArgumentsError("--wait_for_completion has no effect: the run was not a job, so it runs here.")
    return Repetition(plan, is_job, _recorded_state(record), flags)


def _with_changes(plan: JobPlan, changes: tuple[str, ...], record: RecordView) -> JobPlan:
    known = set(record.document(RECORD_CONFIG_DOCUMENT))
    varied = plan.search_space.parameter_names if plan.search_space else ()
    problems = []
    arguments = []
    for change in changes:
        flag, equals, value = change.partition("=")
        name = normalized(flag.removeprefix("--"))
        if not equals or not name:
            problems.append(f"--set={change} is no FLAG=VALUE.")
        elif name in varied:
            problems.append(f"--set={change}: the trials of the run vary {name}.")
        elif known and name not in known and not name.startswith("trainer."):
            problems.append(f"--set={change}: the run has no parameter {name!r}. {did_you_mean(name, known)}".rstrip())
        else:
            arguments.append((name, f"--{name}={value}"))
    if problems:
        raise ArgumentsError(" ".join(problems), "Write for example --set max_epochs=20 --set l_rate=1e-3.")
    changed = {f"--{name}" for name, _ in arguments}
    kept = [argument for argument in plan.argv if argument.partition("=")[0] not in changed]
    masked = [argument.partition("=")[0] for argument in kept if MASK in argument]
    if masked:
        raise PlanError(
            f"The record does not keep secrets, and {', '.join(masked)} had one.",
            f"Give the value again: --set {masked[0].removeprefix('--')}=VALUE.",
        )
    return replace(plan, argv=(*kept, *(argument for _, argument in arguments)))


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

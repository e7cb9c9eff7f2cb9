"""What a job with a fan-out runs: ``python -m health_ml.backends.fan_out_job ARGUMENTS OF A TRIAL``.

The supervisor says where: the folder of the run, where the code is, and where the project is.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from health_ml.backends.fan_out import read_plan, run_fan_out
from health_ml.environment import Place, RunEnvironment, process_environment
from health_ml.errors import HimlError
from health_ml.planning.fan_out_folder import FanOutFolder
from health_ml.planning.plan import JobPlan, pairs_of

RERUN_FAILED = "--rerun_failed_trials"
"""First argument of a job that runs the failed trials again; no flag of the runner has this name."""
_JOB_MODULE = "health_ml.backends.fan_out_job"
_TRACKING_URI = "--tracking_uri="


def fan_out_command(argv: Sequence[str]) -> tuple[str, ...]:
    """Returns program and arguments of the job that runs a fan-out.

    :param argv: Arguments of a trial without its parameters, in full: the record does not keep secrets.
    """
    return (sys.executable, "-m", _JOB_MODULE, *argv)


def with_rerun(command: Sequence[str], *, is_rerunning_failed: bool) -> tuple[str, ...]:
    """Returns the command of a job that runs the failed trials again, or leaves them as they are."""
    end = command.index(_JOB_MODULE) + 1
    flags = (RERUN_FAILED,) if is_rerunning_failed else ()
    return (*command[:end], *flags, *(argument for argument in command[end:] if argument != RERUN_FAILED))


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code of the fan-out that the environment variables of this process name."""
    environment = RunEnvironment.from_env(process_environment())
    assert environment.run_folder is not None
    start_directory = environment.start_directory or Path.cwd()
    place = Place(start_directory, environment.project_root or start_directory)
    is_rerunning_failed = list(arguments[:1]) == [RERUN_FAILED]
    argv = tuple(arguments[1:] if is_rerunning_failed else arguments)
    try:
        plan = _with_secrets(read_plan(FanOutFolder(environment.run_folder), is_complete=False), argv)
        result = run_fan_out(
            environment.run_folder, place=place, write=_write, plan=plan, is_rerunning_failed=is_rerunning_failed
        )
    except HimlError as error:
        _write(f"himl-runner: {error}")
        return error.exit_code
    return result.exit_code


def _with_secrets(plan: JobPlan, argv: tuple[str, ...]) -> JobPlan:
    """Returns the plan with what the record does not keep: the job was handed that when it was started."""
    variables = process_environment()
    environment = {name: variables.get(name, value) for name, value in plan.environment_variables}
    given = [argument.removeprefix(_TRACKING_URI) for argument in argv if argument.startswith(_TRACKING_URI)]
    trials = replace(plan.trials, tracking_uri=given[-1]) if given else plan.trials
    return replace(plan, argv=argv, environment_variables=pairs_of(environment), trials=trials)


def _write(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

"""The one boundary to the shell: ``himl-runner`` starts here, and errors end here."""

from __future__ import annotations

import errno
import gc
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from health_ml.errors import (
    EXIT_FAILED,
    EXIT_SIGNAL_BASE,
    EXIT_USAGE,
    ArgumentsError,
    HimlError,
    OutputError,
    TerminatedError,
    exiting_with,
)
from health_ml.settings import ENV_FULL_ERROR

if TYPE_CHECKING:
    from health_ml.cli.command_line import CommandLine
    from health_ml.cli.draft import Draft
    from health_ml.environment import RunEnvironment
    from health_ml.records.mirror import WaitingMirror
    from health_ml.training.result import RunResult

EXIT_INTERRUPTED = 130
"""Exit code after Ctrl-C, as a shell has it: 128 and the number of SIGINT."""

COMPLETE_WORDS = "--complete_words"
"""First argument of the call that a completion script makes; the words of the command line follow."""


def main(argv: Sequence[str] | None = None, *, on_result: Callable[[RunResult], None] | None = None) -> int:
    """Runs a command line and returns the exit code of the process.

    Called from Python, it leaves environment variables, working directory, ``sys.path`` and logging as they were.

    :param argv: The arguments after the name of the program. Default: those of this process.
    :param on_result: Called with the result of a run that came to an end without an error.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    with _console_log():
        return _guarded(lambda: _run(arguments, on_result))


def tensorboard_main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line of ``himl-tb`` and returns the exit code of the process.

    :param argv: The arguments after the name of the program. Default: those of this process.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)

    def run() -> int:
        folder = _current_directory()
        from health_ml.cli.tensorboard import show_tensorboard

        return show_tensorboard(arguments, start_directory=folder, write=_print)

    return _guarded(run)


def download_main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line of ``himl-download`` and returns the exit code of the process.

    :param argv: The arguments after the name of the program. Default: those of this process.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)

    def run() -> int:
        folder = _current_directory()
        from health_ml.cli.console import configure_logging
        from health_ml.cli.download import download

        configure_logging(None, 0)
        return download(arguments, start_directory=folder, environ=dict(os.environ), write=_print)

    return _guarded(run)


def _guarded(run: Callable[[], int]) -> int:
    """Returns the exit code of a program: nothing leaves it but a message, and it leaves the process as it was."""
    with _restored_process(), _noted_interrupt() as is_interrupted:
        try:
            return run()
        except KeyboardInterrupt as interrupt:
            code = _report_interrupt()
            return EXIT_SIGNAL_BASE + signal.SIGTERM if isinstance(interrupt, TerminatedError) else code
        except Exception as error:  # the boundary: what nobody else has turned into a message ends here
            # A library whose import was interrupted may fail with another error.
            return _report_interrupt() if is_interrupted() else _report_any(error)


@contextmanager
def _noted_interrupt() -> Iterator[Callable[[], bool]]:
    """Yields a function that tells whether Ctrl-C was pressed; what it does otherwise stays the same."""
    pressed: list[int] = []
    is_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not is_default or threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def note(number: int, frame: FrameType | None) -> None:
        pressed.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def console_entry_point() -> None:
    """Runs the command line of this process and ends the process with its exit code."""
    _run_program(main)


def download_entry_point() -> None:
    """Runs ``himl-download`` and ends the process with its exit code."""
    _run_program(download_main)


def tensorboard_entry_point() -> None:
    """Runs ``himl-tb`` and ends the process with its exit code."""
    _run_program(tensorboard_main)


def _run_program(program: Callable[[], int]) -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files may hold what the terminal cannot show
            stream.reconfigure(errors="backslashreplace")
    code = program()
    gc.freeze()  # at its end, the interpreter would search all that was imported for something to free
    try:
        sys.stdout.flush()
    except OSError as error:
        # Python flushes once more on exit, and would print a traceback because nobody reads any more.
        _discard_output()
        if not isinstance(error, BrokenPipeError):
            code = code or _report(_output_error(error))
    sys.exit(code)


def _discard_output() -> None:
    """Lets everything that is still to be printed vanish."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(arguments: list[str], on_result: Callable[[RunResult], None] | None) -> int:
    from health_ml.planning.secrets import remember_secret_arguments

    remember_secret_arguments(arguments)
    current_directory = _current_directory()  # first of all, because param cannot be imported where there is none
    from health_ml.cli.command_line import read_command_line

    if arguments[:1] == [COMPLETE_WORDS]:
        return _complete(arguments[1:], current_directory)
    command = read_command_line(arguments)
    if command.is_version:
        from health_ml.version import __version__

        return _print(f"himl-runner {__version__}")
    if command.completion is not None:
        from health_ml.cli.completion import completion_script

        return _print(completion_script(command.completion))
    from health_ml.cli.surroundings import check_surroundings
    from health_ml.environment import RunEnvironment

    environment = RunEnvironment.from_env(os.environ)
    check_surroundings(environment)
    start_directory = environment.start_directory or current_directory
    if command.is_help:
        from health_ml.cli.help import help_text

        return _print(help_text(command, start_directory=start_directory))
    if command.sync:
        from health_ml.cli.sync_run import sync_run

        return _print(sync_run(command, start_directory=start_directory))
    if command.attach or command.status or command.cancel or command.rerun_failed or command.list_snapshot:
        return _without_experiment(command, environment=environment, start_directory=start_directory)
    if command.rerun:
        return _rerun(command, environment=environment, start_directory=start_directory, on_result=on_result)
    return _run_experiment(
        arguments, command, environment=environment, start_directory=start_directory, on_result=on_result
    )


def _without_experiment(command: CommandLine, *, environment: RunEnvironment, start_directory: Path) -> int:
    """Does what needs no model, and returns the exit code."""
    from health_ml.environment import Place

    place = Place.of(environment, start_directory)
    if command.list_snapshot:
        from health_ml.cli.list_snapshot import list_snapshot

        return _print(list_snapshot(command, start_directory=start_directory))
    from health_ml.cli import follow_run

    if command.attach:
        return follow_run.attach_to_run(command, place, write=_print)
    if command.rerun_failed:
        return follow_run.rerun_failed(command, place, write=_print)
    if command.cancel:
        return follow_run.cancel_run(command, place, write=_print)
    return follow_run.show_status(command, place, write=_print)


def _rerun(
    command: CommandLine,
    *,
    environment: RunEnvironment,
    start_directory: Path,
    on_result: Callable[[RunResult], None] | None,
) -> int:
    """Repeats a run from its record: a job as a job, any other run in this process."""
    from health_ml.cli.command_line import read_command_line
    from health_ml.cli.rerun import read_repetition
    from health_ml.cli.submit import resubmit_job
    from health_ml.environment import Place

    place = Place.of(environment, start_directory)
    repetition = read_repetition(command, place)
    if repetition.is_job:
        return resubmit_job(repetition, place, command=command, write=_print)
    if repetition.plan.search_space is not None:
        from health_ml.cli.fan_out_here import rerun_trials

        return rerun_trials(repetition, place, command=command, write=_print)
    arguments = list(repetition.plan.argv)
    again = replace(read_command_line(arguments), is_dry_run=command.is_dry_run, print_plan=command.print_plan)
    return _run_experiment(
        arguments, again, environment=environment, start_directory=start_directory, on_result=on_result
    )


def _run_experiment(
    arguments: list[str],
    command: CommandLine,
    *,
    environment: RunEnvironment,
    start_directory: Path,
    on_result: Callable[[RunResult], None] | None,
) -> int:
    from health_ml.cli.console import configure_logging, render_summary
    from health_ml.cli.draft import read_experiment
    from health_ml.cli.parse import complete
    from health_ml.environment import Place

    draft = read_experiment(command, start_directory=start_directory)
    # Before the model is imported, because Lightning brings its own handler where there is none.
    configure_logging(draft.config.log_level, environment.local_rank)
    if command.is_print_config:
        from health_ml.cli.show_config import render_config

        return _print(render_config(complete(draft, arguments, environment=environment)))
    place = Place.of(environment, start_directory)
    is_job = bool(draft.config.cluster) and not environment.is_in_azureml
    is_interrupted = bool(draft.config.simulate_preemption) and environment.simulated_preemption is None
    is_started_here = not (command.only_plans or is_job or is_interrupted)
    with ExitStack() as stack:
        mirror, warm, early = None, None, None
        if is_started_here and draft.asks_for_several and not environment.is_trial:
            from health_ml.cli.fan_out_here import warm_processes

            warm = stack.enter_context(warm_processes(draft, place))
        elif is_started_here:
            mirror = stack.enter_context(_waiting_mirror(draft, environment, place.project_root))
        elif is_job and not command.only_plans:
            from health_ml.cli.early import early_backend

            early = stack.enter_context(early_backend(draft, place))
        with exiting_with(EXIT_USAGE):
            parsed = complete(draft, arguments, environment=environment)
        configure_logging(parsed.experiment_config.log_level, environment.local_rank)
        if parsed.container.log_from_vm and is_started_here and environment.is_alone:
            from health_ml.cli.log_from_vm import log_to_workspace

            log_to_workspace(parsed, place)
        if not is_started_here or parsed.search_space is not None:
            from health_ml.cli.launch import launch

            return launch(
                parsed, command, place, is_job=is_job, warm=warm, early=early, environment=environment, write=_print
            )
        from health_ml.backends.in_process import run_in_process
        from health_ml.cli.submit import plan_for_record

        result = run_in_process(
            parsed.experiment_config,
            parsed.container,
            environment=environment,
            project_root=place.project_root,
            argv=parsed.argv,
            sources=parsed.sources,
            waiting_mirror=mirror,
            plan=plan_for_record(parsed, place),
        )
    if environment.is_global_rank_zero:
        _print(render_summary(result, is_in_azureml=environment.is_in_azureml))
    if result.error is not None:
        raise result.error
    if on_result is not None:
        on_result(result)
    return result.exit_code


@contextmanager
def _waiting_mirror(draft: Draft, environment: RunEnvironment, project_root: Path) -> Iterator[WaitingMirror | None]:
    """Starts the process of the mirror, which loads MLflow while the model is imported, if it will be needed."""
    from health_ml.records.tracking import NO_TRACKING, resolve_tracking_uri

    if not draft.config.model or draft.problems:  # there will be no run
        yield None
        return
    uri = resolve_tracking_uri(draft.config.tracking_uri, environ=os.environ, project_root=project_root)
    is_mirrored_by_fan_out = environment.fan_out_folder is not None
    if uri == NO_TRACKING or not environment.is_global_rank_zero or is_mirrored_by_fan_out:
        yield None
        return
    from health_ml.records.mirror import WaitingMirror

    mirror = WaitingMirror()
    try:
        yield mirror
    finally:
        mirror.close()


def _complete(words: list[str], folder: Path) -> int:
    from health_ml.cli.completion import candidates

    return _print("\n".join(candidates(words, folder=folder)))


def _current_directory() -> Path:
    try:
        return Path.cwd()
    except FileNotFoundError as error:
        raise ArgumentsError("The current folder does not exist any more.", "Change to another folder.") from error


@contextmanager
def _files_for_the_group_at_most() -> Iterator[None]:
    """Lets nobody outside of the user's group write to what is made in the body, here and in child processes."""
    before = os.umask(0o002)
    os.umask(before | 0o002)
    try:
        yield
    finally:
        os.umask(before)


@contextmanager
def _restored_process() -> Iterator[None]:
    """Restores environment variables, working directory, import path, umask and logging at the end."""
    from health_ml.cli.console import restored_logging
    from health_ml.environment import restored_environment
    from health_ml.planning.secrets import remember_secrets, secrets_of_one_command

    path = list(sys.path)
    try:
        folder = os.getcwd()
    except FileNotFoundError:
        folder = None
    try:
        with restored_environment(), restored_logging(), _files_for_the_group_at_most(), secrets_of_one_command():
            remember_secrets(os.environ)
            yield
    finally:
        sys.path[:] = path
        if folder is not None and Path(folder).is_dir():
            os.chdir(folder)


def _console_log() -> AbstractContextManager[None]:
    """Keeps what a job in AzureML prints, where the service collects it."""
    if not os.environ.get("AZUREML_RUN_ID"):
        return nullcontext()
    from health_ml.cli.console_log import console_log
    from health_ml.cli.surroundings import check_surroundings
    from health_ml.environment import RunEnvironment

    try:
        environment = RunEnvironment.from_env(os.environ)
        check_surroundings(environment)
    except HimlError:  # it is said when the command line is run
        return nullcontext()
    return console_log(Path.cwd(), environment)


def _print(text: str) -> int:
    """Prints a text and returns the exit code 0, also if nobody reads the end of the text.

    :raises OutputError: If the text cannot be written.
    """
    try:
        print(text, flush=True)
    except BrokenPipeError:
        _discard_output()
    except OSError as error:
        _discard_output()
        raise _output_error(error) from error
    return 0


def _output_error(error: OSError) -> OutputError:
    return OutputError(f"Cannot write the output: {error.strerror or error}.", "Free some space, or redirect it.")


def _report(error: HimlError) -> int:
    from health_ml.planning.secrets import mask_text

    if os.environ.get(ENV_FULL_ERROR, "") not in ("", "0"):
        import traceback

        print(mask_text("".join(traceback.format_exception(error))), file=sys.stderr, end="")
    separator = "" if error.message.endswith("\n") else " "
    _print_error(f"{error.message}{separator}{error.hint}".strip())
    return error.exit_code


def _report_any(error: Exception) -> int:
    if isinstance(error, HimlError):
        return _report(error)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return _report(_output_error(error))
    return _report_unexpected(error)


def _report_interrupt() -> int:
    _print_error("Interrupted.")
    return EXIT_INTERRUPTED


def _report_unexpected(error: Exception) -> int:
    from health_ml.cli.console import format_user_traceback
    from health_ml.planning.secrets import mask_text

    is_full = os.environ.get(ENV_FULL_ERROR, "") not in ("", "0")
    print(mask_text(format_user_traceback(error, is_full=is_full)), file=sys.stderr, end="")
    _print_error(f"The run failed with {type(error).__name__}, see above.")
    return EXIT_FAILED


def _print_error(text: str) -> None:
    from health_ml.planning.secrets import mask_text

    rank = os.environ.get("LOCAL_RANK", "0")
    place = f" (process {rank})" if rank not in ("", "0") else ""
    program = Path(sys.argv[0]).name
    name = program if program in ("himl-download", "himl-tb") else "himl-runner"
    print(mask_text(f"{name}{place}: {text}"), file=sys.stderr, flush=True)


if __name__ == "__main__":
    console_entry_point()

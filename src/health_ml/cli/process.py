"""The boundary of a program to the shell: its arguments, what it prints, its exit code, and where all errors end."""

from __future__ import annotations

import errno
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import FrameType

from health_ml.cli.streams import use_lasting_streams
from health_ml.errors import EXIT_FAILED, EXIT_SIGNAL_BASE, ArgumentsError, HimlError, OutputError, TerminatedError
from health_ml.settings import ENV_FULL_ERROR

EXIT_INTERRUPTED = 130
"""Exit code after Ctrl-C, as a shell has it: 128 and the number of SIGINT."""

Program = Callable[[list[str], Path], int]
"""What a program does with its arguments in the folder in which they were typed; returns the exit code."""


def run_guarded(program: Program, argv: Sequence[str] | None) -> int:
    """Returns the exit code of a program: nothing leaves it but a message, and it leaves the process as it was.

    :param argv: The arguments after the name of the program. None: those of this process.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    with _restored_process(), _noted_interrupt() as is_interrupted:
        try:
            return program(arguments, _current_directory())
        except KeyboardInterrupt as interrupt:
            code = _report_interrupt()
            return EXIT_SIGNAL_BASE + signal.SIGTERM if isinstance(interrupt, TerminatedError) else code
        except Exception as error:  # the boundary: what nobody else has turned into a message ends here
            # A library whose import was interrupted may fail with another error.
            return _report_interrupt() if is_interrupted() else _report_any(error)


def end_process_with(main: Callable[[], int]) -> None:
    """Runs the program of this process, and ends the process with its exit code."""
    use_lasting_streams()
    code = main()
    gc.freeze()  # at its end, the interpreter would search all that was imported for something to free
    try:
        sys.stdout.flush()
    except OSError as error:
        # Python flushes once more on exit, and would print a traceback because nobody reads any more.
        _discard_output()
        if not isinstance(error, BrokenPipeError):
            code = code or _report(_output_error(error))
    sys.exit(code)


# --- what a program finds and leaves ----------------------------------------------------------------------------------


def _current_directory() -> Path:
    try:
        return Path.cwd()
    except FileNotFoundError as error:
        raise ArgumentsError("The current folder does not exist any more.", "Change to another folder.") from error


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


# --- what a program prints --------------------------------------------------------------------------------------------


def print_text(text: str) -> int:
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


def kept_console() -> AbstractContextManager[None]:
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


def _discard_output() -> None:
    """Lets everything that is still to be printed vanish."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _output_error(error: OSError) -> OutputError:
    return OutputError(f"Cannot write the output: {error.strerror or error}.", "Free some space, or redirect it.")


# --- what a program says about an error -------------------------------------------------------------------------------


def _report_any(error: Exception) -> int:
    if isinstance(error, HimlError):
        return _report(error)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return _report(_output_error(error))
    return _report_unexpected(error)


def _report(error: HimlError) -> int:
    if _shows_everything():
        import traceback

        _print_masked("".join(traceback.format_exception(error)).rstrip("\n"))
    separator = "" if error.message.endswith("\n") else " "
    _print_error(f"{error.message}{separator}{error.hint}".strip())
    return error.exit_code


def _report_interrupt() -> int:
    _print_error("Interrupted.")
    return EXIT_INTERRUPTED


def _report_unexpected(error: Exception) -> int:
    from health_ml.cli.console import format_user_traceback

    _print_masked(format_user_traceback(error, is_full=_shows_everything()).rstrip("\n"))
    _print_error(f"The run failed with {type(error).__name__}, see above.")
    return EXIT_FAILED


def _shows_everything() -> bool:
    return os.environ.get(ENV_FULL_ERROR, "") not in ("", "0")


def _print_error(text: str) -> None:
    rank = os.environ.get("LOCAL_RANK", "0")
    place = f" (process {rank})" if rank not in ("", "0") else ""
    program = Path(sys.argv[0]).name
    name = program if program in ("himl-download", "himl-tb") else "himl-runner"
    _print_masked(f"{name}{place}: {text}")


def _print_masked(text: str) -> None:
    from health_ml.planning.secrets import mask_text

    print(mask_text(text), file=sys.stderr, flush=True)

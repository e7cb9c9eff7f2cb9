"""What is in a checkpoint file: read without loading tensors, and without executing anything in it.

A torch file is a zip archive with one uncompressed record ``data.pkl`` in front of the tensors. Lightning writes epoch
and step at the very beginning of that record, so a few hundred bytes tell them, however large the file is.
"""

from __future__ import annotations

import re
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from health_ml.checkpoints.pickle_reader import BoundedStream, ByteStream, Opaque, read_outline
from health_ml.checkpoints.zip_structure import ZIP_START, ZipDamage, check_zip_end, find_first_record
from health_ml.errors import CheckpointError

_EPOCH, _STEP, _OPTIMIZERS = "epoch", "global_step", "optimizer_states"
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_RECORD = "data.pkl"
_HEAD_BYTES = 512
_NAMES_TO_SHOW = 4
READING_DAMAGE = (ValueError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, struct.error)
"""What reading a damaged archive or pickle raises; RuntimeError is zipfile's way to say that a file is encrypted."""

_REFUSED_CLASS = re.compile(r"GLOBAL (\S+)|global `?([\w.]+)`? was not")

_DANGEROUS_MODULES = frozenset(
    ("os", "posix", "nt", "sys", "subprocess", "shutil", "socket", "pty", "runpy", "importlib", "ctypes")
)
_DANGEROUS_BUILTINS = frozenset(("eval", "exec", "compile", "open", "__import__"))


class DamagedCheckpointError(CheckpointError):
    """A checkpoint file is incomplete or has changed since it was written."""


@dataclass(frozen=True)
class CheckpointProgress:
    """How far the training had come when the checkpoint was written.

    :param epoch: Index of the epoch that had been completed or was under way.
    :param global_step: Number of optimizer steps so far.
    """

    epoch: int
    global_step: int


def read_progress(path: Path) -> CheckpointProgress:
    """Returns the epoch and step of a Lightning checkpoint, without executing it and without reading its tensors.

    The end of the file is looked at as well, so a file that was cut off is noticed; :func:`verify` notices more.

    :raises DamagedCheckpointError: If the file is cut off or damaged.
    :raises CheckpointError: If there is no such file, it cannot be read, or is no Lightning checkpoint.
    """
    root = _read_root(path, is_enough=_has_progress)
    if isinstance(root, dict) and _has_progress(root):
        epoch, step = root[_EPOCH], root[_STEP]
        if type(epoch) is int and type(step) is int:
            return CheckpointProgress(epoch, step)
        raise CheckpointError(f"{path} is not a Lightning checkpoint: its epoch and step are no whole numbers.")
    raise CheckpointError(
        f"{path} is not a Lightning checkpoint: it holds {_description_of(root)}, without {_EPOCH} and {_STEP}.",
        "Only a checkpoint that the Trainer saved can be resumed or tested. Weights alone can be loaded in the "
        "container's create_model.",
    )


def verify(path: Path) -> None:
    """Checks that a checkpoint file is complete and unchanged, by reading all of it once.

    In a file of torch's old format, which has no checksums, only the structure in front of the tensors is checked.

    :raises DamagedCheckpointError: If it is not, naming the first damaged record.
    :raises CheckpointError: If there is no such file, it cannot be read, or is no torch file.
    """
    with _opened(path) as file:
        if file.peek(4)[:4] != ZIP_START:  # type: ignore[attr-defined]
            _read_root(path)
            return
        try:
            check_zip_end(file)
            with zipfile.ZipFile(file) as archive:
                if not any(name.rpartition("/")[2] == _RECORD for name in archive.namelist()):
                    raise CheckpointError(f"{path} is a zip archive, but no torch file: it has no record {_RECORD}.")
                damaged = archive.testzip()
        except READING_DAMAGE as error:
            raise _damaged(path, str(error)) from error
    if damaged:
        raise _damaged(path, f"its record '{damaged}' differs from its checksum")


def check_resumable(path: Path) -> None:
    """Checks that a Lightning checkpoint has what a training continues from, not only weights to test.

    :raises CheckpointError: If it was saved with ``save_weights_only=True``, or cannot be read.
    """
    root = _read_root(path)
    if not (isinstance(root, dict) and _OPTIMIZERS in root):
        raise CheckpointError(
            f"The checkpoint {path} holds the weights alone, without the state of the optimizer.",
            "It can be tested, but no training can continue from it.",
        )


def describe_refusal(path: Path, error: BaseException) -> str:
    """Returns why the safe loader of torch refused a checkpoint and what to do, naming the classes in question.

    :param path: The checkpoint.
    :param error: What ``torch.load(..., weights_only=True)`` raised.
    """
    classes = refused_classes(path, error)
    if not classes:
        return f"The safe loader of torch refuses {path}: {_first_sentence(error)}"
    if dangerous := [name for name in classes if _is_dangerous(name)]:
        return (
            f"{path} calls {', '.join(dangerous)}, which no checkpoint needs: the file may be an attack. Do not load "
            "it; ask its author for the weights alone."
        )
    plural = "classes" if len(classes) > 1 else "class"
    return (
        f"{path} holds objects of the {plural} {', '.join(classes)}, which the safe loader of torch refuses, because "
        "loading them can run any code. If you trust whoever wrote the file, add --trust_checkpoint. In your own "
        "models, keep plain numbers and strings in save_hyperparameters and on_save_checkpoint."
    )


def refused_classes(path: Path, error: BaseException) -> list[str]:
    """Returns the dotted names of the classes in a checkpoint that torch's safe loader refuses."""
    # torch raised the error, so it is loaded; importing it here would tie the command line to it.
    find_unsafe = getattr(sys.modules.get("torch.serialization"), "get_unsafe_globals_in_checkpoint", None)
    if find_unsafe is not None:
        try:
            return sorted(find_unsafe(path))
        except Exception as problem:  # the names are only for a message, and the error itself names one
            if not isinstance(problem, (ValueError, RuntimeError, OSError, KeyError)):
                raise
    match = _REFUSED_CLASS.search(str(error))
    return [next(group for group in match.groups() if group)] if match else []


def _is_dangerous(name: str) -> bool:
    module, _, function = name.rpartition(".")
    if module == "builtins":
        return function in _DANGEROUS_BUILTINS
    return module.partition(".")[0] in _DANGEROUS_MODULES


def check_downloaded(path: Path, shown_name: str, *, is_length_known: bool) -> None:
    """Checks that a download is not something that servers send instead of a file, and that it is not cut off.

    :param path: What was downloaded.
    :param shown_name: Where it came from, for messages.
    :param is_length_known: False if the server did not say how long the file is; then the file itself has to show
        that it is complete.
    :raises CheckpointError: If it is a web page, a placeholder, or incomplete.
    """
    with _opened(path) as file:
        head = file.read(_HEAD_BYTES)
        if kind := _kind_of_placeholder(head):
            raise CheckpointError(f"{shown_name} is not a checkpoint but {kind}.", "Check the address in a browser.")
        if head.startswith(ZIP_START):
            try:
                check_zip_end(file)
            except ZipDamage as error:
                raise DamagedCheckpointError(f"What {shown_name} sends is damaged: {error}.") from error
        elif not is_length_known:
            raise CheckpointError(
                f"The server does not say how long {shown_name} is, so nobody can tell whether it is complete.",
                "Download the file with a browser and give its path.",
            )


def _has_progress(entries: Mapping[str, Any]) -> bool:
    return _EPOCH in entries and _STEP in entries


def _read_root(path: Path, is_enough: Any = None) -> Any:
    """Returns the outline of the object in a torch file of the new or the old format."""
    with _opened(path) as file:
        head = file.read(_HEAD_BYTES)
        file.seek(0)
        try:
            if head.startswith(ZIP_START):
                check_zip_end(file)
                with _record_stream(file, path) as stream:
                    return read_outline(stream, is_enough)
            if head.startswith(b"\x80"):
                return _read_legacy(file, path, is_enough)
        except READING_DAMAGE as error:
            raise _damaged(path, str(error)) from error
    if not head:
        raise _damaged(path, "it is empty")
    if not head.strip(b"\0"):
        raise _damaged(path, "it begins with zeros, as a file does whose content was lost in a power cut")
    raise CheckpointError(
        f"{path} is not a checkpoint but {_kind_of_placeholder(head) or _kind_of_file(head)}.",
        "Give a file that the Trainer or torch.save wrote.",
    )


@contextmanager
def _record_stream(file: BinaryIO, path: Path) -> Iterator[ByteStream]:
    """Opens the pickle record: at the very beginning, where torch writes it, or wherever the directory says."""
    size = _size_of(file)
    start = find_first_record(file, _RECORD)
    if start is not None:
        file.seek(start)
        yield BoundedStream(file, size - start)
        return
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            if entry.filename.rpartition("/")[2] == _RECORD:
                with archive.open(entry) as record:
                    yield BoundedStream(record, entry.file_size)
                return
    raise CheckpointError(f"{path} is a zip archive, but no torch file: it has no record {_RECORD}.")


def _read_legacy(file: BinaryIO, path: Path, is_enough: Any) -> Any:
    """Returns the outline of the fourth pickle in the file; the old format has three of its own in front of it."""
    stream = BoundedStream(file, _size_of(file))
    if read_outline(stream) != _LEGACY_MAGIC:
        raise CheckpointError(
            f"{path} is not a checkpoint but a pickle of something else.",
            "Give a file that the Trainer or torch.save wrote.",
        )
    read_outline(stream)
    read_outline(stream)
    return read_outline(stream, is_enough)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Opens a checkpoint for reading, and explains why that or a later read is impossible."""
    try:
        with path.open("rb") as file:
            yield file
    except FileNotFoundError as error:
        raise CheckpointError(f"There is no checkpoint file {path.absolute()}.") from error
    except IsADirectoryError as error:
        raise CheckpointError(
            f"The checkpoint {path.absolute()} is a folder.",
            "Checkpoints in several parts, as sharded strategies write them, have to be merged into one file first.",
        ) from error
    except OSError as error:
        raise CheckpointError(f"The checkpoint {path.absolute()} cannot be read: {error.strerror}.") from error


def _size_of(file: BinaryIO) -> int:
    position = file.tell()
    size = file.seek(0, 2)
    file.seek(position)
    return size


def _damaged(path: Path, reason: str) -> DamagedCheckpointError:
    return DamagedCheckpointError(
        f"The checkpoint {path} is damaged or incomplete: {reason}.",
        "Use another checkpoint, or copy or download the file again.",
    )


def _description_of(root: Any) -> str:
    """Returns what an object that is no Lightning checkpoint is, in words."""
    if isinstance(root, Opaque):
        return f"an object of the class {root.name}" if root.name else "a list, a tuple or a single value"
    if not isinstance(root, dict):
        return f"a value of the type {type(root).__name__}"
    names = [f"'{name}'" for name in root]
    shown = ", ".join(names[:_NAMES_TO_SHOW]) + (", …" if len(names) > _NAMES_TO_SHOW else "")
    values = list(root.values())
    if values and all(isinstance(value, Opaque) and "_rebuild_" in value.name for value in values):
        return f"the weights of a model alone (a state_dict with {len(values)} tensors: {shown})"
    return f"a dictionary with the keys {shown}" if names else "an empty dictionary"


def _kind_of_placeholder(head: bytes) -> str:
    """Returns what servers and tools leave where a file should be, in words, or an empty string."""
    if head.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS (run 'git lfs pull' to get the file itself)"
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return "a web page, for example a login page or an error message"
    return ""


def _kind_of_file(head: bytes) -> str:
    if head.startswith(b"\x89HDF"):
        return "an HDF5 file"
    if head.startswith(b"\x1f\x8b"):
        return "a gzip archive (unpack it first)"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:
        return "a safetensors file, which holds weights alone"
    return f"a file that starts with {head[:12]!r}"


def _first_sentence(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__

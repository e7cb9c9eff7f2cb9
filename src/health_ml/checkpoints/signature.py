"""Tells the checkpoints that this user's runs wrote from all others, before any of their code could run.

Every run notes a signature of each checkpoint in its record: an HMAC with a key that only this user has (RFC 2104).
A file that somebody else wrote has none, wherever it lies and whatever the record beside it says.

What can run code when torch reads a file is its pickle alone, and where that lies is said by the directory of the
archive. So the signature covers these two, and not the tensors, whose checksums are in the directory: signing takes
milliseconds, however large the file is.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import logging
import os
import secrets
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from health_ml.checkpoints.inspect import READING_DAMAGE
from health_ml.environment import process_environment
from health_ml.errors import CheckpointError
from health_ml.planning.snapshot import user_folder
from health_ml.settings import ENV_XDG_STATE_HOME, RECORD_CHECKPOINTS_FILE, RECORD_FOLDER, SIGNING_KEY_FILE

_KEY_BYTES = 32
_BLOCK = 1 << 20

_log = logging.getLogger(__name__)


def sign(path: Path) -> str | None:
    """Returns the signature of a checkpoint as text, or None for a file in another form than torch writes today.

    :raises CheckpointError: If the key of this user is damaged.
    :raises OSError: If the file cannot be read.
    """
    digest = hmac.new(_signing_key(_key_file(process_environment())), digestmod=hashlib.sha256)
    with path.open("rb") as file:
        try:
            for part in _parts_with_code(file):
                digest.update(part)
        except READING_DAMAGE:
            return None
    return digest.hexdigest()


def is_own(path: Path) -> bool:
    """Returns True if a run of this user wrote the checkpoint, as the record in one of the folders above it says.

    :raises CheckpointError: If the key of this user is damaged.
    """
    try:
        resolved = path.resolve(strict=True)
        notes = [file for folder in resolved.parents if (file := _notes_in(folder)).is_file()]
        signature = sign(resolved) if notes else None
        return signature is not None and any(_is_noted(signature, file) for file in notes)
    except OSError:  # whoever loads the file says so
        return False


def _notes_in(run_folder: Path) -> Path:
    return run_folder / RECORD_FOLDER / RECORD_CHECKPOINTS_FILE


def _is_noted(signature: str, file: Path) -> bool:
    return f'"{signature}"'.encode() in file.read_bytes()


def _parts_with_code(file: BinaryIO) -> Iterator[bytes]:
    """Yields the sizes, the first record of the archive, which has to be the pickle, and everything behind the data."""
    with zipfile.ZipFile(file) as archive:
        pickle = archive.infolist()[0] if archive.filelist else None
        directory_start = archive.start_dir
        if pickle is None or pickle.header_offset or not pickle.filename.endswith("/data.pkl"):
            raise ValueError("the pickle is not the first record")
        others = [entry.header_offset for entry in archive.infolist()[1:]]
    pickle_end = min([*others, directory_start])
    size = file.seek(0, os.SEEK_END)
    yield struct.pack("<3Q", size, pickle_end, directory_start)
    for start, end in ((0, pickle_end), (directory_start, size)):
        file.seek(start)
        while start < end:
            block = file.read(min(_BLOCK, end - start))
            if not block:
                raise ValueError("the file became shorter while it was read")
            start += len(block)
            yield block


def _key_file(environ: Mapping[str, str]) -> Path | None:
    """Returns where the key of this user is, by the rules of the XDG base directories; None without a home."""
    try:
        return user_folder(environ, ENV_XDG_STATE_HOME, ".local/state") / SIGNING_KEY_FILE
    except RuntimeError:  # no HOME, and no entry of the user in the system's database
        return None


@lru_cache(maxsize=4)
def _signing_key(file: Path | None) -> bytes:
    """Returns the key, made at its first use; where it cannot be stored, one that lasts as long as this process.

    :raises CheckpointError: If the stored one is damaged.
    """
    if file is not None:
        try:
            return _read_key(file) or _make_key(file)
        except OSError as error:
            _log.warning(
                f"The key that signs checkpoints cannot be kept in {file} ({error.strerror or error}): to later runs, "
                "those of this run will be as foreign as somebody else's."
            )
    return secrets.token_bytes(_KEY_BYTES)


def check_signing_key() -> None:
    """Raises if the key of this user is damaged, which a run would notice at its first checkpoint.

    :raises CheckpointError: If so.
    """
    file = _key_file(process_environment())
    if file is not None:
        with suppress(OSError):  # a run can do without a stored key, and says so
            _read_key(file)


def _read_key(file: Path) -> bytes | None:
    """Returns the stored key, or None if there is none. From now on only this user can read it.

    :raises CheckpointError: If it is damaged. A new one would make all earlier checkpoints foreign without a word.
    :raises OSError: If it cannot be read, or belongs to another user, who could have signed anything.
    """
    try:
        with file.open("rb") as stream:
            facts = os.fstat(stream.fileno())
            key = stream.read(_KEY_BYTES + 1)
            if facts.st_uid != os.geteuid():
                raise PermissionError(errno.EPERM, "it belongs to another user")
            if facts.st_mode & 0o077:
                os.fchmod(stream.fileno(), 0o600)
                _log.warning(
                    f"Others could use {file}, the key that signs your checkpoints; now only you can. If one of them "
                    "may have copied it, remove it: the next run makes another one, to which all checkpoints so far "
                    "are as foreign as somebody else's."
                )
    except FileNotFoundError:
        return None
    if len(key) != _KEY_BYTES:
        raise CheckpointError(
            f"{file}, the key by which runs know your own checkpoints, is damaged: it has not {_KEY_BYTES} bytes.",
            "Restore it from a backup, or remove it: the next run makes a new one, and checkpoints of earlier runs are "
            "then loaded like those of others, with torch's safe loader unless you give --trust_checkpoint.",
        )
    return key


def _make_key(file: Path) -> bytes:
    """Returns a new key after storing it; of several processes at once, all return that of the first one."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "wb") as stream:
            stream.write(secrets.token_bytes(_KEY_BYTES))
            stream.flush()
            os.fsync(stream.fileno())  # else the file could be empty after a power cut
        with suppress(FileExistsError):  # no process replaces another one's key
            os.link(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
    return _read_key(file) or secrets.token_bytes(_KEY_BYTES)

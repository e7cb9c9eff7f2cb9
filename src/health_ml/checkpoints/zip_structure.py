"""The few facts about a zip archive that can be read in constant time, whatever its size.

Field layouts are those of the ZIP specification (PKWARE APPNOTE.TXT): 4.3.7 local file header, 4.3.14 and 4.3.15
records of ZIP64, 4.3.16 end of central directory.
"""

from __future__ import annotations

import struct
from typing import BinaryIO

ZIP_START = b"PK\x03\x04"
"""First bytes of an archive that is not empty."""

_DIRECTORY_START = b"PK\x01\x02"
_END_START = b"PK\x05\x06"
_END64_START = b"PK\x06\x06"
_LOCATOR64_START = b"PK\x06\x07"
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_END = struct.Struct("<4s4H2IH")
_LOCATOR64 = struct.Struct("<4sIQI")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LONGEST_COMMENT = (1 << 16) - 1
_IN_ZIP64 = 0xFFFFFFFF
_STORED = 0
_ENCRYPTED = 1


class ZipDamage(ValueError):
    """What is wrong with an archive, in words that follow a colon."""


def check_zip_end(file: BinaryIO) -> None:
    """Checks that the archive ends with its directory, which is written last: then nothing was cut off.

    :raises ZipDamage: If it does not.
    """
    size = file.seek(0, 2)
    tail_start = max(0, size - _END.size - _LONGEST_COMMENT)
    file.seek(tail_start)
    tail = file.read()
    found = tail.rfind(_END_START)
    if found < 0 or len(tail) - found < _END.size:
        raise ZipDamage("its end is missing, so it was not written or copied completely")
    end_position = tail_start + found
    fields = _END.unpack_from(tail, found)
    directory_size, directory_offset = fields[5], fields[6]
    if _IN_ZIP64 in (directory_size, directory_offset):
        directory_size, directory_offset = _read_zip64(file, end_position)
    if directory_offset + directory_size > end_position:
        raise ZipDamage("its directory points behind its end, so a part of it is missing")
    file.seek(directory_offset)
    if file.read(4) not in (_DIRECTORY_START, _END_START, _END64_START):
        raise ZipDamage("its directory is not where it should be, so bytes are missing or were added")


def find_first_record(file: BinaryIO, name: str) -> int | None:
    """Returns the position of the data of the archive's first record, or None if that record has another name.

    :param file: The archive.
    :param name: Last part of the record's name. The record has to be stored without compression.
    """
    file.seek(0)
    header = file.read(_LOCAL_HEADER.size)
    if len(header) < _LOCAL_HEADER.size:
        return None
    magic, _, flags, method, *_, name_length, extra_length = _LOCAL_HEADER.unpack(header)
    record_name = file.read(name_length)
    if magic != ZIP_START or method != _STORED or flags & _ENCRYPTED:
        return None
    if record_name.rpartition(b"/")[2] != name.encode():
        return None
    return _LOCAL_HEADER.size + int(name_length) + int(extra_length)


def _read_zip64(file: BinaryIO, end_position: int) -> tuple[int, int]:
    """Returns size and offset of the directory from the records for archives of 4 GiB and more."""
    file.seek(max(0, end_position - _LOCATOR64.size))
    locator = file.read(_LOCATOR64.size)
    if len(locator) < _LOCATOR64.size or not locator.startswith(_LOCATOR64_START):
        raise ZipDamage("the pointer to its directory is missing")
    record_offset = _LOCATOR64.unpack(locator)[2]
    if record_offset > end_position:
        raise ZipDamage("the pointer to its directory leads behind its end")
    file.seek(record_offset)
    record = file.read(_END64.size)
    if len(record) < _END64.size or not record.startswith(_END64_START):
        raise ZipDamage("the pointer to its directory leads nowhere")
    fields = _END64.unpack(record)
    return fields[8], fields[9]

"""Writes texts as words that a user can paste into a shell."""

from __future__ import annotations

import shlex

_SHORT = {"'": "\\'", "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def quoted(text: str) -> str:
    """Returns a text as one word of a shell; what no terminal can show in the quotes of ANSI C: ``$'bad\\xff'``."""
    return shlex.quote(text) if text.isprintable() else f"$'{''.join(map(_escaped, text))}'"


def _escaped(character: str) -> str:
    if character in _SHORT:
        return _SHORT[character]
    if character.isprintable():
        return character
    is_byte = "\udc80" <= character <= "\udcff"  # as Python reads a byte of a path that is not UTF-8
    data = character.encode("utf-8", "surrogateescape" if is_byte else "surrogatepass")
    return "".join(f"\\x{byte:02x}" for byte in data)

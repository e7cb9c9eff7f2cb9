"""Masks secrets wherever arguments and parameters are stored: by the name of a parameter, and by the look of a value.

A parameter whose name ends in a word such as ``password`` or ``token`` is masked whatever it holds. In all other
texts, the parts that are secret by construction are masked: passwords in URLs, SAS signatures, account keys, bearer
tokens. The rest of the text stays readable, because a record that hides everything is of no use.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

MASK = "***"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ALWAYS_SECRET = _words(
    "password passwords passwd pwd passphrase secret secrets credential credentials apikey sas signature"
)
_USUALLY_SECRET = _words("token tokens key keys auth authorization sig accountkey sharedaccesskey")
_HARMLESS_BEFORE_TOKEN = _words(
    "bos class cls end eos image mask max min new num number pad prefix sep special start stop suffix unk"
)
_HARMLESS_BEFORE_KEY = _words(
    "batch cache class column data dataset dict feature foreign group image index input join label loss map metric "
    "monitor name output partition primary query sort state target"
)
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_CERTAIN = (
    # scheme://user:password@host and https://token@host
    (re.compile(r"(?<=://)[^/\s@?#'\":]*:[^/\s@'\"]+(?=@)"), MASK),
    (re.compile(r"(?<=https://)[^/\s@?#'\":]{20,}(?=@)"), MASK),
    # shared access signatures and the keys of connection strings
    (
        re.compile(
            r"(?i)\b(sig|sharedaccesssignature|accountkey|sharedaccesskey|x-amz-signature|x-amz-security-token"
            r"|x-goog-signature)=[a-z0-9%+/_.~-]{16,}={0,2}"
        ),
        rf"\1={MASK}",
    ),
    (re.compile(r"(?i)\b(bearer) +[a-z0-9._~+/-]{16,}=*"), rf"\1 {MASK}"),
    (re.compile(r"(?i)\b(authorization: *basic) +[a-z0-9+/]{4,}=*"), rf"\1 {MASK}"),
    # tokens that their issuers made recognisable: GitHub, Hugging Face, Slack, AWS, JSON web tokens
    (
        re.compile(r"\b(?:gh[pousr]_\w{20,}|github_pat_\w{20,}|hf_\w{20,}|xox[abprs]-[\w-]{10,}|AKIA[0-9A-Z]{16})\b"),
        MASK,
    ),
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]{8,}"), MASK),
)
# In a value this is a secret if the name is one; in the text of a program it is most often an ordinary name.
_ASSIGNMENT = re.compile(r"(?<![\w.-])([\w.-]+)=([^&;\s'\"]+)")


def is_secret_name(name: str) -> bool:
    """Returns True if a parameter of this name holds a secret: ``storage_password``, ``apiKey``, ``hub.token``.

    Names that only sound like it do not: ``pad_token``, ``num_tokens``, ``sort_key``, ``key_size``.
    """
    words = [word.lower() for word in _WORD.findall(name)]
    if not words:
        return False
    last, before = words[-1], words[-2] if len(words) > 1 else ""
    if last in _ALWAYS_SECRET:
        return True
    if last not in _USUALLY_SECRET:
        return False
    return before not in (_HARMLESS_BEFORE_TOKEN if last.startswith("token") else _HARMLESS_BEFORE_KEY)


def mask_text(text: str) -> str:
    """Returns a value with passwords in URLs, signatures, keys and tokens masked."""
    return _ASSIGNMENT.sub(_mask_assignment, mask_program_text(text))


def mask_program_text(text: str) -> str:
    """Returns the text of a program with only those parts masked that can be nothing but secrets.

    An expression such as ``login(token=token)`` stays as it is.
    """
    for pattern, replacement in _CERTAIN:
        text = pattern.sub(replacement, text)
    return text


def _mask_assignment(match: re.Match[str]) -> str:
    return f"{match[1]}={MASK}" if is_secret_name(match[1]) else match[0]


def mask_value(name: str, value: Any) -> Any:
    """Returns the value of a parameter with what is secret in it masked.

    A secret name masks any text and any container of values; numbers, flags and None stay, unless the name can mean
    nothing else (a numeric password). Values that are not text are returned as they are if the name is harmless.
    """
    if is_secret_name(name) and _can_be_secret(name, value):
        return MASK
    return mask_text(value) if isinstance(value, str) else value


def _can_be_secret(name: str, value: Any) -> bool:
    if value is None or value == "" or isinstance(value, bool):
        return False
    if isinstance(value, (int, float)):
        return _WORD.findall(name)[-1].lower() in _ALWAYS_SECRET
    return True


def mask_arguments(argv: Sequence[str]) -> list[str]:
    """Returns the command line with secrets masked, both in ``--token=value`` and in ``--token value``."""
    masked: list[str] = []
    is_value_of_secret = False
    for argument in argv:
        name, has_value, value = argument.partition("=")
        is_flag = argument.startswith("--")  # as the command line has it: "-x" after a flag is its value
        if is_value_of_secret and not is_flag:
            masked.append(MASK)
        elif is_flag and has_value:
            masked.append(f"{name}={mask_value(name, value)}")
        else:
            masked.append(mask_text(argument))
        is_value_of_secret = is_flag and not has_value and is_secret_name(name)
    return masked

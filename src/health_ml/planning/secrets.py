"""Masks secrets wherever arguments and parameters are stored: by the name of a parameter, and by the look of a value.

A parameter whose name ends in a word such as ``password`` or ``token`` is masked whatever it holds. In all other
texts, the parts that are secret by construction are masked: passwords in URLs, SAS signatures, account keys, bearer
tokens. The rest of the text stays readable, because a record that hides everything is of no use.

A secret that has no look of its own is known by where it came from: what an environment variable, a flag or an entry
of a config file with the name of a secret holds is masked wherever it turns up afterwards in this process.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any
from urllib.parse import quote

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
    # keys in the headers of a request
    (
        re.compile(
            r"(?i)\b(x-(?:api-key|auth-token|functions-key|vault-token)|ocp-apim-subscription-key)([\"']?: *[\"']?)"
            r"[^\s\"',;<{$*][^\s\"',;]{5,}"
        ),
        rf"\1\2{MASK}",
    ),
    # tokens that their issuers made recognisable: GitHub, Hugging Face, Slack, AWS, JSON web tokens
    (
        re.compile(
            r"\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|hf_[A-Za-z0-9]{20,}|xox[abprs]-[\w-]{10,}|AKIA[0-9A-Z]{16})\b"
        ),
        MASK,
    ),
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]{8,}"), MASK),
    (
        re.compile(r"(-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----).{1,20000}?(?=-----END )", re.DOTALL),
        rf"\1\n{MASK}\n",
    ),
)
# In a value this is a secret if the name is one; in the text of a program it is most often an ordinary name.
_ASSIGNMENT = re.compile(r"(?<![\w.-])([\w.-]+)=([^&;\s'\"]*[^&;\s'\":])")


# name = "value", "name": "value" and name="value" in the text of a program or of a config.
_LITERAL = re.compile(r"""(?<![\w.-])([\w.-]+)(["']?[ \t]*[:=][ \t]*)(["'])([^"'\n]{6,})(?=\3)""")
_PLACEHOLDER = re.compile(r"(?i)[<\[({$%].*|(.)\1*|.*(example|change.?me|placeholder|dummy).*|none|null|true|false")
_RANDOM = re.compile(r"(?=[^\d]*\d)(?=[^A-Za-z]*[A-Za-z])[\w+/=~.-]{16,}")

_DISTINCT_PASSWORD = re.compile(r"(?=.*[^A-Za-z]).{8,}", re.DOTALL)
_DISTINCT_TOKEN = re.compile(r"(?=\D*\d)(?=[^A-Za-z]*[A-Za-z])\S{16,}")
"""What is masked wherever it turns up; a word or a short text could be a part of something else."""

_known: set[str] = set()
_known_pattern: re.Pattern[str] | None = None


@contextmanager
def secrets_of_one_command() -> Iterator[None]:
    """Forgets at its end which secrets :func:`remember_secrets` was told in the body."""
    before = set(_known)
    try:
        yield
    finally:
        _set_known(before)


def remember_secrets(values: Mapping[str, Any]) -> None:
    """Masks from now on, in this process, what parameters or variables with the name of a secret hold.

    :param values: Values by name. In nested mappings, each name counts; a secret name makes all below it secret.
    """
    found = {form for name, text in _secret_texts(values) if _is_distinct(name, text) for form in _forms(text)}
    if not found <= _known:
        _set_known(_known | found)


def remember_secret_arguments(argv: Sequence[str]) -> None:
    """Masks from now on, in this process, the secrets on a command line."""
    for argument, following in pairwise([*argv, ""]):
        if argument.startswith("--"):
            name, equals, value = argument.partition("=")
            remember_secrets({name: value if equals or following.startswith("--") else following})


def _set_known(known: set[str]) -> None:
    global _known, _known_pattern
    _known = known
    longest_first = sorted(map(re.escape, known), key=len, reverse=True)
    _known_pattern = re.compile("|".join(longest_first)) if known else None


def _secret_texts(values: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yields each text that is a secret, with the name that says so."""
    if isinstance(values, Mapping):
        for key, item in values.items():
            yield from _secret_texts(item, name if is_secret_name(name) else str(key))
    elif isinstance(values, Iterable) and not isinstance(values, (str, bytes)):
        for item in values if isinstance(values, (list, tuple, set, frozenset)) else ():
            yield from _secret_texts(item, name)
    elif isinstance(values, str):
        yield from (("password", match[1]) for match in _URL_PASSWORD.finditer(values))
        if is_secret_name(name):
            yield name, values


_URL_PASSWORD = re.compile(r"(?<=://)[^/\s@?#'\":]*:([^/\s@'\"]+)(?=@)")


def _forms(text: str) -> set[str]:
    """Returns a text as it is, and as it looks in JSON and in a URL."""
    return {text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1], quote(text, "", errors="replace")}


def _is_distinct(name: str, text: str) -> bool:
    """False for what may turn up elsewhere without being the secret: words, numbers, and paths of files."""
    is_password = _WORD.findall(name)[-1].lower() in _ALWAYS_SECRET
    pattern = _DISTINCT_PASSWORD if is_password else _DISTINCT_TOKEN
    return pattern.fullmatch(text) is not None and not text.isdecimal() and MASK not in text and not _exists(text)


def _exists(path: str) -> bool:
    try:
        return os.path.exists(path)
    except ValueError:  # a zero byte
        return False


def holds_certain_secret(text: str) -> bool:
    """True if a text holds what can be nothing but a secret, or a secret that is known; a variable in braces is none.

    ``postgresql://me:{password}@host`` says where a password goes, ``postgresql://me:hunter22@host`` has one.
    """
    if _known_pattern is not None and _known_pattern.search(text):
        return True
    matches = (match[0] for pattern, _ in _CERTAIN for match in pattern.finditer(text))
    return not all(_VARIABLE.search(match) for match in matches)


_VARIABLE = re.compile(r"[{}<>]|%\(|\$\w|\*\*\*|:(password|passwd|pass|pw)$", re.IGNORECASE)


def words_of(name: str) -> list[str]:
    """Returns the words of a name in lower case: those of ``DB_PASSWORD`` and ``dbPassword`` are the same."""
    return [word.lower() for word in _WORD.findall(name)]


def is_secret_name(name: str) -> bool:
    """Returns True if a parameter of this name holds a secret: ``storage_password``, ``apiKey``, ``hub.token``.

    Names that only sound like it do not: ``pad_token``, ``num_tokens``, ``sort_key``, ``key_size``.
    """
    words = words_of(name)
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
    if _known_pattern is not None:
        text = _known_pattern.sub(MASK, text)
    for pattern, replacement in _CERTAIN:
        text = pattern.sub(replacement, text)
    return _LITERAL.sub(_mask_literal, text)


def _mask_literal(match: re.Match[str]) -> str:
    name, between, quote, value = match.groups()
    if not is_secret_name(name) or _PLACEHOLDER.fullmatch(value):
        return match[0]
    is_certain = _WORD.findall(name)[-1].lower() in _ALWAYS_SECRET
    is_masked = is_certain or _RANDOM.fullmatch(value) is not None
    return f"{name}{between}{quote}{MASK}" if is_masked else match[0]


_HOLES = frozenset({"VALUE", "TEXT"})
"""What stands for a value in advice such as ``--set hub_token=VALUE``."""


def _mask_assignment(match: re.Match[str]) -> str:
    is_secret = is_secret_name(match[1]) and _can_be_secret(match[1], match[2]) and match[2].rstrip(".") not in _HOLES
    return f"{match[1]}={MASK}" if is_secret else match[0]


def mask_value(name: str, value: Any) -> Any:
    """Returns the value of a parameter with what is secret in it masked.

    A secret name masks any text and any container of values; numbers, flags and None stay, unless the name can mean
    nothing else (a numeric password). A word stays as ``auth``, the way to sign in. Values that are not text are
    returned as they are if the name is harmless.
    """
    if is_secret_name(name) and _can_be_secret(name, value):
        return MASK
    return mask_text(value) if isinstance(value, str) else value


def mask_certain(name: str, text: str) -> str:
    """Returns a text with only what can be nothing but a secret masked, for values that a program goes on with.

    A secret name is not enough: a model may call any word its ``key`` or ``token``.
    """
    is_certain = is_secret_name(name) and _is_distinct(name, text) and any(letter.isdigit() for letter in text)
    return MASK if is_certain else mask_program_text(text)


def _can_be_secret(name: str, value: Any) -> bool:
    if value is None or value == "" or isinstance(value, bool):
        return False
    if isinstance(value, (int, float)):
        return _WORD.findall(name)[-1].lower() in _ALWAYS_SECRET
    return not (isinstance(value, str) and name.lstrip("-") == "auth" and value.replace("_", "").isalpha())


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

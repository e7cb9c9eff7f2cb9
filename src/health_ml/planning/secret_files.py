"""Finds files that look like secrets, before they travel to a place where others can read them.

The name decides where a name can mean nothing else. Everything else is looked into, if it is small and its name says
that it may hold settings or a key; the bulk of a tree costs one comparison of its name. Values are never shown.

A file whose name speaks of secrets or settings may hold any secret. Of all other settings, most describe models, where
``pad_token`` and ``max_tokens`` are ordinary: there a name has to be clearly that of a secret, and the value has to
look like one.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from health_ml.errors import SnapshotError, did_you_mean
from health_ml.planning.file_hashes import SnapshotFile
from health_ml.planning.ignore_patterns import Pattern, PatternList, bytes_view
from health_ml.planning.secrets import (
    MASK,
    holds_certain_secret,
    is_secret_name,
    mask_program_text,
    mask_value,
    words_of,
)
from health_ml.planning.tree_walk import shown_path

LOOK_INTO_BYTES = 1 << 16
SHORTEST_SECRET = 6
SHORTEST_KEY = 8
SHORTEST_TOKEN = 16
ALLOWED_SOURCE = "--allow_secret_files"

_SECRET_NAME = re.compile(
    r"""
    \.env(\..+)?                                    # variables for a shell, by custom with passwords
    | [._]netrc | \.pgpass | \.my\.cnf | \.htpasswd | \.pypirc | \.git-credentials | \.databrickscfg
    | id_(rsa|dsa|ecdsa|ed25519)(_sk)?              # keys of ssh
    | .+\.(p12|pfx|ppk|jks|keystore|kdbx)           # stores of keys
    | \.?credentials(\.(json|csv|ini|ya?ml|toml|txt))? | client_secrets?.*\.json | kaggle\.json
    | accesstokens\.json | msal_token_cache\..+ | \.?(hf_|api_|access_)?token(\.txt)?
    """,
    re.VERBOSE,
)
_EXAMPLE_NAME = re.compile(r".*[._-](example|sample|template|dist|defaults?)(\.[a-z]+)?")
_MAY_HOLD_KEY = re.compile(r"[^.]+|\.[^.]+|.+\.(pem|key|crt|cer|asc|gpg|priv|ssh)")
_MAY_HOLD_SETTINGS = re.compile(
    r"""
    .*(config|settings|service[-_]?account|profile).*\.(json|ya?ml|toml|ini|cfg|conf|properties)
    | .*(secret|token|credential|password|passwd|auth|api[-_]?key).*\.(json|ya?ml|toml|ini|cfg|conf|txt|properties|env)
    | .+\.env | \.npmrc | \.yarnrc(\.yml)? | pip\.conf | \.?s3cfg | \.boto | rclone\.conf | \.dockercfg
    | \.?docker.*config\.json
    """,
    re.VERBOSE,
)
_SUFFIXES_OF_SETTINGS = (".yaml", ".yml", ".ini", ".cfg", ".conf", ".toml", ".properties", ".env")
_PRIVATE_KEY = re.compile(rb"-----BEGIN [A-Z0-9 ]*PRIVATE KEY( BLOCK)?-----")
_SETTING = re.compile(
    r"""
    (?:^|[{,;]) [ \t]* (?:-[ \t]+)* (?:export[ \t]+)? (?:[^=:\s"']{0,200}:)?    # npm writes //registry/:_authToken=…
    ["']? ([\w.-]+) ["']? [ \t]*[:=][ \t]* ["']? ([^\s"'\#,}]+)
    """,
    re.MULTILINE | re.VERBOSE,
)
_PLACEHOLDER = re.compile(
    r"(?i)[<\[({$%].*|(.)\1*|\*+|x+|.*(your|example|change.?me|placeholder|dummy|todo).*|none|null|true|false"
    r"|[-+]?[\d_]+(\.\d*)?(e[-+]?\d+)?"  # the number of tokens, not one of them
)
_PASSWORDS = ("password", "passwd", "passphrase", "pwd")
_KEYS = frozenset({"secret", "apikey", "accountkey", "sharedaccesskey", "connectionstring"})
_BEFORE_KEY = frozenset({"api", "access", "private", "account", "secret", "shared"})
_HARMLESS = re.compile(
    r"(/|\.\.?/|~).*|.*\.(pem|key|txt|json|ya?ml|env|toml)"  # where the secret is
    r"|[A-Z][A-Z\d]*(_[A-Z\d]+)+|env(iron)?[:.].*|(?i:password|passwd|secret)"  # what the variable with it is called
)
_ISSUED = re.compile(r"(hf|gh[pousr])_\w{8,}|sk-[\w-]{16,}")
_RUNS_OF_LETTERS_OR_DIGITS = re.compile(r"[a-z]+|[A-Z]+|\d+")


class SecretFile(NamedTuple):
    """A file that looks like a secret.

    :param path: Path from the snapshot's folder.
    :param reason: What gives it away, without the secret.
    """

    path: str
    reason: str


def check_secret_files(
    folder: Path, files: Iterable[SnapshotFile], *, allowed: Sequence[str] = (), settings: Sequence[str] = ()
) -> None:
    """Raises an error if a file that travels looks like a secret and was not allowed to travel.

    :param folder: The folder of the snapshot.
    :param files: The files that travel.
    :param allowed: Patterns in the syntax of ``.gitignore`` of files that may travel all the same.
    :param settings: Paths of files that are known to hold settings, whatever they are called.
    :raises SnapshotError: With every such file, or with every pattern in ``allowed`` that no such file matches.
    """
    found = find_secret_files(folder, files, settings=settings)
    patterns = {text: _pattern_list(text) for text in allowed}
    refused = refused_files(found, allowed=allowed)
    if refused:
        listed = "\n  ".join(f"{shown_path(secret.path)}: {secret.reason}" for secret in refused)
        raise SnapshotError(
            f"These files look like secrets and would travel with the job:\n  {listed}\n",
            "Name them in .amlignore if the job does not need them, or allow them with "
            f"{ALLOWED_SOURCE}={','.join(shown_path(secret.path) for secret in refused)}.",
        )
    unused = [text for text, pattern in patterns.items() if not any(_matches(pattern, secret) for secret in found)]
    if unused:
        hints = [did_you_mean(text, [secret.path for secret in found]) for text in unused]
        raise SnapshotError(
            f"{ALLOWED_SOURCE} names {', '.join(map(repr, unused))}, but no file that looks like a secret matches.",
            " ".join(["Remove it, so that it does not let a later file through.", *filter(None, hints)]),
        )


def refused_files(found: Iterable[SecretFile], *, allowed: Sequence[str]) -> list[SecretFile]:
    """Returns those of the files that look like secrets that were not allowed to travel."""
    patterns = [_pattern_list(text) for text in allowed]
    return [secret for secret in found if not any(_matches(pattern, secret) for pattern in patterns)]


def find_secret_files(folder: Path, files: Iterable[SnapshotFile], *, settings: Sequence[str] = ()) -> list[SecretFile]:
    """Returns the files that look like secrets, in the given order.

    :param folder: Where the files are.
    :param settings: Paths of files that are known to hold settings, whatever they are called.
    """
    known = frozenset(os.path.relpath(os.path.normpath(folder / path), folder) for path in settings)
    found = []
    for file in files:
        reason = _reason(folder, file, known)
        if reason:
            found.append(SecretFile(file.path, reason))
    return found


def _reason(folder: Path, file: SnapshotFile, known_settings: frozenset[str]) -> str:
    """Returns what gives a file away as a secret, or an empty text."""
    name = file.path.rpartition("/")[2].lower()
    is_secret = _SECRET_NAME.fullmatch(name)
    may_hold_key = _MAY_HOLD_KEY.fullmatch(name)
    may_hold_settings = _MAY_HOLD_SETTINGS.fullmatch(name)
    is_settings = name.endswith(_SUFFIXES_OF_SETTINGS) or file.path in known_settings
    if not (is_secret or may_hold_key or may_hold_settings or is_settings):
        return ""
    if not file.size or _EXAMPLE_NAME.fullmatch(name):
        return ""
    if is_secret:
        return "its name is that of a file with secrets"
    if file.size > LOOK_INTO_BYTES:
        return ""
    try:
        content = (folder / file.path).read_bytes()
    except OSError as error:  # whoever stores the snapshot says so
        logging.getLogger(__name__).debug("%s cannot be searched for secrets: %s", file.path, error)
        return ""
    if _PRIVATE_KEY.search(content):
        return "it holds a private key"
    text = content.decode("utf-8", "replace")
    if may_hold_settings:
        return _reason_in_settings(text, is_json=name.endswith(".json"))
    return _clear_reason_in_settings(text) if is_settings else ""


def _reason_in_settings(text: str, *, is_json: bool) -> str:
    settings = _json_settings(text) if is_json else None
    for name, value in _settings_in(text) if settings is None else settings:
        is_secret = is_secret_name(name) and mask_value(name, value) == MASK
        if is_secret and len(value) >= SHORTEST_SECRET and not _PLACEHOLDER.fullmatch(value):
            return f"it holds a value for {name!r}"
    return "it holds a token or a key" if mask_program_text(text) != text else ""


def _clear_reason_in_settings(text: str) -> str:
    """Returns what can hardly be anything but a secret in a file that may well be about something else."""
    for name, value in _settings_in(text):
        if _is_clear_secret(name, value):
            return f"it holds a value for {name!r}"
    return "it holds a token or a key" if holds_certain_secret(text) else ""


def _is_clear_secret(name: str, value: str) -> bool:
    if len(value) < SHORTEST_SECRET or _PLACEHOLDER.fullmatch(value) or _HARMLESS.fullmatch(value):
        return False
    *_, before, last = ("", "", *words_of(name))
    if last.endswith(_PASSWORDS):
        return True
    is_key = last in _KEYS or (last == "key" and before in _BEFORE_KEY) or (before, last) == ("connection", "string")
    if is_key:
        return len(value) >= SHORTEST_KEY and any(character.isdigit() for character in value)
    return last == "token" and is_secret_name(name) and _looks_random(value)


def _looks_random(value: str) -> bool:
    """True for a token; names of models and layers have few changes between letters and digits."""
    is_mixed = len(_RUNS_OF_LETTERS_OR_DIGITS.findall(value.replace("-", ""))) > SHORTEST_TOKEN // 4
    return _ISSUED.fullmatch(value) is not None or (len(value) >= SHORTEST_TOKEN and is_mixed)


def _settings_in(text: str) -> Iterator[tuple[str, str]]:
    return ((match.group(1), match.group(2)) for match in _SETTING.finditer(text))


def _json_settings(text: str) -> list[tuple[str, str]] | None:
    """Returns the names and texts in a JSON document, or None if it is none."""
    try:
        return list(_texts_in(json.loads(text)))
    except (ValueError, RecursionError):
        return None


def _texts_in(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _texts_in(item, str(key))
    elif isinstance(value, list):
        for item in value:
            yield from _texts_in(item, name)
    elif isinstance(value, str):
        yield name, value


def _pattern_list(text: str) -> PatternList:
    pattern = Pattern.parse(bytes_view(text), source=ALLOWED_SOURCE, number=0)
    return PatternList([pattern] if pattern is not None and not pattern.is_negated else [])


def _matches(patterns: PatternList, secret: SecretFile) -> bool:
    """True if a pattern matches a file or one of the folders above it."""
    path = bytes_view(secret.path)
    is_folder = False
    while path:
        if patterns.match(path.rpartition("/")[2], path, is_folder=is_folder) is not None:
            return True
        path, is_folder = path.rpartition("/")[0], True
    return False

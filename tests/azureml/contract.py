"""Checks request bodies against Microsoft's type definitions of the api-version that a request names."""

from __future__ import annotations

import json
import os
import re
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from tests.azureml.state import Received

VARIABLE = "HIML_AZUREML_CONTRACT"
BESIDE_REPOSITORY = Path(__file__).resolve().parents[3] / "shared" / "azureml"
REQUIRED, READ_ONLY = 1, 2
RESOURCE_PATH = re.compile(r".*/workspaces/[^/]+/(jobs|computes|datastores)/[^/]+|"
                           r".*/workspaces/[^/]+/(codes|environments|data|models)/[^/]+/versions/[^/]+")  # fmt: skip

KNOWN_QUIRKS = (
    re.compile(r"properties\.properties\.hash_version: a text is needed"),
    re.compile(r"properties\.objective\.goal: '(maximize|minimize)' is none of"),
)
"""Where the unmodified SDK differs from the definitions and the real service accepts it."""


def contract_folder() -> Path | None:
    """Returns the folder with ``types`` and ``recordings``, or None if this machine does not have it."""
    named = os.environ.get(VARIABLE)
    folder = Path(named) if named else BESIDE_REPOSITORY
    return folder if (folder / "types").is_dir() else None


MISSING = f"the contract data of AzureML is not on this machine; {VARIABLE} names its folder"
"""Why a test that needs the definitions or recordings is skipped."""


class Contract:
    """The definitions, if they are there; without them no problem is ever found."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    @property
    def is_available(self) -> bool:
        """True if bodies are checked."""
        return self.folder is not None

    def problems(self, received: Received) -> list[str]:
        """Returns what is wrong with the body of a PUT request, one sentence for each mistake."""
        match = RESOURCE_PATH.fullmatch(received.path) if received.method == "PUT" else None
        if self.folder is None or match is None:
            return []
        kind = match[1] or f"{match[2]}/versions"
        found = self.check(received.query.get("api-version", ""), kind, received.body)
        return [problem for problem in found if not any(quirk.match(problem) for quirk in KNOWN_QUIRKS)]

    def check(self, version: str, kind: str, body: Any) -> list[str]:
        """Returns what is wrong with a body for a kind of resource, for example ``data/versions``."""
        if self.folder is None:
            return []
        path = self.folder / "types" / f"{version}.json"
        if not path.is_file():
            return [f"there are no definitions for api-version {version!r}"]
        definitions = _load(path)
        body_type = definitions.resources.get(f"microsoft.machinelearningservices/workspaces/{kind}")
        if body_type is None:
            return [f"{kind} is not in api-version {version}"]
        checker = _Checker(definitions)
        # The id and the name of the resource are in the path.
        checker.check_object(definitions.follow(body_type), body, "", ignored=frozenset({"id", "name", "type"}))
        return checker.problems


FRACTIONS = frozenset({"slackAmount", "slackFactor"})
"""Numbers with a decimal point in the service's specification. The definitions are those of Bicep, which has none."""


class Definitions:
    """The types of one api-version, a list whose entries refer to each other by index."""

    def __init__(self, types: list[dict[str, Any]]) -> None:
        self.types = types

    @cached_property
    def resources(self) -> dict[str, Any]:
        """Returns the reference to the body of each kind of resource, by its name in lower case."""
        found = [entry for entry in self.types if entry["$type"] == "ResourceType"]
        return {entry["name"].partition("@")[0].lower(): entry["body"] for entry in found}

    def follow(self, reference: dict[str, str]) -> dict[str, Any]:
        """Returns the type that a reference names."""
        return self.types[int(reference["$ref"].rpartition("/")[2])]


@lru_cache(maxsize=8)
def _load(path: Path) -> Definitions:
    return Definitions(json.loads(path.read_text()))


class _Checker:
    def __init__(self, definitions: Definitions) -> None:
        self.follow = definitions.follow
        self.problems: list[str] = []

    def _complain(self, path: str, text: str) -> None:
        self.problems.append(f"{path.lstrip('.')}: {text}")

    def check(self, kind: dict[str, Any], value: Any, path: str) -> None:
        """Compares one value with its type; null stands for a value that is left out."""
        name = kind["$type"]
        if value is None or name == "AnyType":
            return
        if name in ("ObjectType", "DiscriminatedObjectType"):
            self.check_object(kind, value, path)
        elif name == "ArrayType":
            self._check_list(kind, value, path)
        elif name == "UnionType":
            self._check_union(kind, value, path)
        elif name == "StringType":
            self._check_text(kind, value, path)
        elif name == "StringLiteralType":
            if value != kind["value"]:
                self._complain(path, f"{value!r} is not {kind['value']!r}")
        elif name == "IntegerType":
            self._check_number(value, path)
        elif name == "BooleanType" and not isinstance(value, bool):
            self._complain(path, f"true or false is needed, not {value!r}")

    def _check_number(self, value: Any, path: str) -> None:
        numbers = (int, float) if path.rpartition(".")[2] in FRACTIONS else (int,)
        if not isinstance(value, numbers) or isinstance(value, bool):
            wanted = "number" if float in numbers else "whole number"
            self._complain(path, f"a {wanted} is needed, not {value!r}")

    def _check_text(self, kind: dict[str, Any], value: Any, path: str) -> None:
        if not isinstance(value, str):
            self._complain(path, f"a text is needed, not {value!r}")
        elif "pattern" in kind and not re.search(kind["pattern"], value):
            self._complain(path, f"{value!r} does not match {kind['pattern']}")
        elif not kind.get("minLength", 0) <= len(value) <= kind.get("maxLength", len(value)):
            self._complain(path, f"{value!r} is too short or too long")

    def _check_list(self, kind: dict[str, Any], value: Any, path: str) -> None:
        if not isinstance(value, list):
            self._complain(path, f"a list is needed, not {value!r}")
            return
        for index, item in enumerate(value):
            self.check(self.follow(kind["itemType"]), item, f"{path}[{index}]")

    def _check_union(self, kind: dict[str, Any], value: Any, path: str) -> None:
        elements = [self.follow(element) for element in kind["elements"]]
        choices = [element["value"] for element in elements if element["$type"] == "StringLiteralType"]
        if value not in choices and choices:
            # An open list of names (some literals and any text) is checked too: ours must be among those known.
            self._complain(path, f"{value!r} is none of {choices}")

    def check_object(
        self, kind: dict[str, Any], value: Any, path: str, *, ignored: frozenset[str] = frozenset()
    ) -> None:
        """Compares an object with its type: names, required and read-only properties, and their values."""
        if not isinstance(value, dict):
            self._complain(path, f"an object is needed, not {value!r}")
            return
        properties = dict(kind.get("properties") or kind.get("baseProperties") or {})
        if kind["$type"] == "DiscriminatedObjectType":
            chosen = kind["elements"].get(value.get(kind["discriminator"]))
            if chosen is None:
                label = f"{path}.{kind['discriminator']}"
                self._complain(label, f"{value.get(kind['discriminator'])!r} is none of {list(kind['elements'])}")
                return
            properties |= self.follow(chosen)["properties"]
        for name, entry in properties.items():
            self._check_property(name, entry, value, f"{path}.{name}", name in ignored)
        self._check_others(kind, {name: value[name] for name in value if name not in properties}, path)

    def _check_property(
        self, name: str, entry: dict[str, Any], value: dict[str, Any], path: str, is_ignored: bool
    ) -> None:
        if name not in value:
            if entry["flags"] & REQUIRED and not is_ignored:
                self._complain(path, "is required and missing")
            return
        if entry["flags"] & READ_ONLY and value[name] is not None:
            self._complain(path, "may not be sent, only the service sets it")
        self.check(self.follow(entry["type"]), value[name], path)

    def _check_others(self, kind: dict[str, Any], others: dict[str, Any], path: str) -> None:
        additional = kind.get("additionalProperties")
        for name, value in others.items():
            if additional is None:
                self._complain(f"{path}.{name}", f"there is no such property (with value {str(value)[:60]!r})")
            else:
                self.check(self.follow(additional), value, f"{path}.{name}")

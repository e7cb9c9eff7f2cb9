"""Cuts a command line into flags, without knowing which flags exist.

That the cut does not depend on the declarations is what makes the command line safe to read in two steps: the model
can be found before the flags of the model are known. A token that starts with two dashes always is a flag; a token
after a flag without ``=`` may be its value, which its type decides later. There are no abbreviations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

PREFIX = "--"
HELP_SHORT = "-h"


@dataclass(frozen=True)
class Token:
    """One flag as the user typed it.

    :param name: Name of the flag with underscores: ``max_epochs`` for ``--max-epochs=5``.
    :param typed: What was typed before ``=``: ``--max-epochs``.
    :param text: What follows ``=``, or None if there was no ``=``.
    :param following: The next token if it is no flag and there was no ``=``: perhaps the value.
    """

    name: str
    typed: str
    text: str | None = None
    following: str | None = None

    @property
    def shown(self) -> str:
        """The flag with its value, for messages."""
        if self.text is not None:
            return f"{self.typed}={self.text}"
        return self.typed if self.following is None else f"{self.typed} {self.following}"

    @property
    def words(self) -> list[str]:
        """The words of the command line that the flag was given as."""
        if self.text is not None:
            return [f"{self.typed}={self.text}"]
        return [self.typed] if self.following is None else [self.typed, self.following]


@dataclass(frozen=True)
class TokenizedLine:
    """A command line as flags, and the tokens that belong to none."""

    tokens: tuple[Token, ...]
    strays: tuple[str, ...]


def tokenize(argv: Sequence[str]) -> TokenizedLine:
    """Returns the flags in a command line, in order, and the tokens that belong to no flag."""
    tokens: list[Token] = []
    strays: list[str] = []
    waits_for_value = False
    for token in argv:
        if token.startswith(PREFIX) and len(token) > len(PREFIX):
            tokens.append(_flag(token))
            waits_for_value = tokens[-1].text is None
        elif token == HELP_SHORT:
            tokens.append(Token("help", HELP_SHORT))
            waits_for_value = False
        elif waits_for_value:
            flag = tokens.pop()
            tokens.append(Token(flag.name, flag.typed, following=token))
            waits_for_value = False
        else:
            strays.append(token)
    return TokenizedLine(tuple(tokens), tuple(strays))


def normalized(name: str) -> str:
    """Returns the name of a flag with underscores in place of dashes, which mean the same."""
    return name.replace("-", "_")


def _flag(token: str) -> Token:
    typed, equals, text = token.partition("=")
    return Token(normalized(typed[len(PREFIX) :]), typed, text if equals else None)

"""Cutting a command line into flags."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from health_ml.cli.tokens import Token, tokenize


def test_both_spellings_of_a_value_and_of_a_name() -> None:
    line = tokenize(["--max-epochs=5", "--l_rate", "-1e-3", "--tag="])
    assert line.tokens == (
        Token("max_epochs", "--max-epochs", text="5"),
        Token("l_rate", "--l_rate", following="-1e-3"),
        Token("tag", "--tag", text=""),
    )
    assert line.strays == ()


def test_a_value_may_hold_equal_signs_and_dashes() -> None:
    (token,) = tokenize(["--src-checkpoint=https://host/a-b?x=1"]).tokens
    assert (token.name, token.text) == ("src_checkpoint", "https://host/a-b?x=1")


def test_a_flag_never_swallows_another_flag() -> None:
    tokens = tokenize(["--tag", "--hyperdrive"]).tokens
    assert [(token.name, token.following) for token in tokens] == [("tag", None), ("hyperdrive", None)]


@pytest.mark.parametrize("argv", [["x"], ["--tag=1", "x"], ["--tag", "1", "x"], ["-h", "x"]])
def test_tokens_without_flag_are_strays(argv: list[str]) -> None:
    assert tokenize(argv).strays == ("x",)


def test_short_help() -> None:
    assert [token.name for token in tokenize(["--model", "-h"]).tokens] == ["model", "help"]


@given(st.lists(st.text(max_size=8) | st.sampled_from(["--a", "--a=b", "-1", "--", "-h"]), max_size=8))
def test_every_token_is_accounted_for(argv: list[str]) -> None:
    line = tokenize(argv)
    followers = [token for token in line.tokens if token.following is not None]
    assert len(line.tokens) + len(followers) + len(line.strays) == len(argv)

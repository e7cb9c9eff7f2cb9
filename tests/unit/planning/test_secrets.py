from __future__ import annotations

import pytest

from health_ml.planning.secrets import (
    MASK,
    is_secret_name,
    mask_arguments,
    mask_program_text,
    mask_text,
    mask_value,
)

SIGNATURE = "aB3%2Fdefghijklmnop%3D"


@pytest.mark.parametrize(
    "name", ["password", "db_password", "apiKey", "hub.token", "--storage-key", "SECRET", "client_secret", "pwd"]
)
def test_secret_names(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name", ["pad_token", "num_tokens", "sort_key", "key_size", "tokenizer", "monkey", "l_rate", "secretary", "", "1"]
)
def test_names_that_only_sound_secret(name: str) -> None:
    assert not is_secret_name(name)


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("https://user:pass@host/path", f"https://{MASK}@host/path"),
        ("https://alice@host/path", "https://alice@host/path"),
        ("ssh://git@github.com/x", "ssh://git@github.com/x"),
        ("postgresql://me:p%2Fw@db:5432/x", f"postgresql://{MASK}@db:5432/x"),
        (
            f"https://a.blob.core.windows.net/c/f?sv=1&sig={SIGNATURE}&se=2",
            f"https://a.blob.core.windows.net/c/f?sv=1&sig={MASK}&se=2",
        ),
        (f"AccountName=a;AccountKey={SIGNATURE}==;X=1", f"AccountName=a;AccountKey={MASK};X=1"),
        ("see https://host/?access_token=abc&x=1", f"see https://host/?access_token={MASK}&x=1"),
        ("Authorization: Bearer abcdefghijklmnop1234", f"Authorization: Bearer {MASK}"),
        ("the basic understanding", "the basic understanding"),
        ("lr=0.1 num_tokens=5", "lr=0.1 num_tokens=5"),
        ("ghp_" + "a" * 36, MASK),
    ],
)
def test_texts(text: str, masked: str) -> None:
    assert mask_text(text) == masked
    assert mask_text(masked) == masked


def test_a_program_keeps_its_ordinary_names() -> None:
    program = f'login(token=token, password=ask())\nurl = "https://a:b@host/?sig={SIGNATURE}"\n'
    assert mask_program_text(program) == (
        f'login(token=token, password=ask())\nurl = "https://{MASK}@host/?sig={MASK}"\n'
    )


@pytest.mark.parametrize(
    ("name", "value", "masked"),
    [
        ("password", "abc", MASK),
        ("password", 1234, MASK),
        ("password", None, None),
        ("password", "", ""),
        ("token", 5, 5),
        ("use_token", True, True),
        ("url", "https://a:b@host", f"https://{MASK}@host"),
        ("l_rate", 0.1, 0.1),
    ],
)
def test_values(name: str, value: object, masked: object) -> None:
    assert mask_value(name, value) == masked


def test_arguments() -> None:
    argv = [
        "--model=X",
        "--token=abc",
        "--api_key",
        "def",
        "--l_rate",
        "-1e-3",
        "--password",
        "-x=1",
        "--password",
        "--x=1",
        f"u?sig={SIGNATURE}",
    ]
    assert mask_arguments(argv) == [
        "--model=X",
        f"--token={MASK}",
        "--api_key",
        MASK,
        "--l_rate",
        "-1e-3",
        "--password",
        MASK,
        "--password",
        "--x=1",
        f"u?sig={MASK}",
    ]

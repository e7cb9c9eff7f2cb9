from __future__ import annotations

import time

import pytest

from health_ml.planning.secrets import (
    MASK,
    is_secret_name,
    mask_arguments,
    mask_program_text,
    mask_text,
    mask_value,
    remember_secret_arguments,
    remember_secrets,
    secrets_of_one_command,
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
        ("hf_hub_download_timeout_seconds", "hf_hub_download_timeout_seconds"),
        ("sent X-Api-Key: 0f3c-Q.9 to host", f"sent X-Api-Key: {MASK} to host"),
        ('{"x-api-key": "hunter22"}', f'{{"x-api-key": "{MASK}"}}'),
        ("Ocp-Apim-Subscription-Key: abcdef", f"Ocp-Apim-Subscription-Key: {MASK}"),
        ("X-Api-Key: <key> X-Request-Id: abcdefgh", "X-Api-Key: <key> X-Request-Id: abcdefgh"),
        ("--auth=foo: it takes", "--auth=foo: it takes"),
        ("Give the value again: --set hub_token=VALUE.", "Give the value again: --set hub_token=VALUE."),
        ("--auth=user:hunter22", f"--auth={MASK}"),
        ("--hub_token=foo: it takes", f"--hub_token={MASK}: it takes"),
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
        ("auth", "managed_identity", "managed_identity"),
        ("auth", "user1", MASK),
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


# --- literals in the text of a program --------------------------------------------------------------------------------

RANDOM = "Zx9q7Lw3Kv8sTn2Rb5Yd"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        (f'API_KEY = "{RANDOM}"', f'API_KEY = "{MASK}"'),
        (f"connect(token='{RANDOM}')", f"connect(token='{MASK}')"),
        ('+    "password": "hunter22",', f'+    "password": "{MASK}",'),
        ("password='correct horse battery'", f"password='{MASK}'"),
        (
            f"-----BEGIN RSA PRIVATE KEY-----\n+{RANDOM}\n+{RANDOM}\n-----END RSA PRIVATE KEY-----",
            f"-----BEGIN RSA PRIVATE KEY-----\n{MASK}\n-----END RSA PRIVATE KEY-----",
        ),
    ],
)
def test_literals_with_secret_names_are_masked(text: str, masked: str) -> None:
    assert mask_program_text(text) == masked
    assert mask_program_text(masked) == masked


@pytest.mark.parametrize(
    "text",
    [
        'key = "train/loss"', 'sort_key="a-long-name-of-2-columns"', 'pad_token = "<pad>123456789012345"',
        'password = "${MY_PASSWORD}"', 'password = "changeme"', "token = os.environ['TOKEN_NUMBER_ONE_1']",
        'key="a/b c/d e/f 1"', f'name = "{RANDOM}"', 're.compile("-----BEGIN PRIVATE KEY-----")',
    ],
)  # fmt: skip
def test_programs_stay_readable(text: str) -> None:
    assert mask_program_text(text) == text


# --- secrets that are known by where they came from -------------------------------------------------------------------


def test_what_a_secret_name_held_is_masked_everywhere_until_the_command_ends() -> None:
    with secrets_of_one_command():
        remember_secrets({"MY_API_TOKEN": RANDOM, "settings": {"password": 'a "quoted" one', "rate": "0.123456789"}})

        assert mask_text(f"refused: {RANDOM}!") == f"refused: {MASK}!"
        assert mask_program_text(f"x{RANDOM}x") == f"x{MASK}x"
        assert mask_text('{"a": "a \\"quoted\\" one"}') == f'{{"a": "{MASK}"}}'
        assert mask_text("?q=a%20%22quoted%22%20one") == f"?q={MASK}"
        assert mask_text("0.123456789") == "0.123456789"
    assert mask_text(f"refused: {RANDOM}!") == f"refused: {RANDOM}!"


def test_the_longest_secret_is_masked_whole() -> None:
    with secrets_of_one_command():
        remember_secrets({"a_token": RANDOM})
        remember_secrets({"b_token": f"{RANDOM}-more"})
        assert mask_text(f"{RANDOM}-more {RANDOM}") == f"{MASK} {MASK}"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("password", "short1"), ("password", "HelloWorld"), ("password", "123456789012"), ("secret", "/tmp/"),
        ("password", ""), ("password", None), ("password", 12345678), ("password", True), ("password", "***1234567"),
        ("api_key", "baseline"), ("api_key", "hello-world"), ("api_key", "resnet50"), ("token", "a text with 1 space"),
        ("pad_token", RANDOM), ("harmless", RANDOM),
    ],
)  # fmt: skip
def test_what_could_be_something_else_is_not_masked_elsewhere(name: str, value: object) -> None:
    with secrets_of_one_command():
        remember_secrets({name: value})
        assert mask_text(f"see {value} there") == f"see {value} there"


def test_secrets_on_a_command_line() -> None:
    with secrets_of_one_command():
        remember_secret_arguments(
            [f"--hub_token={RANDOM}1", "--api-key", f"{RANDOM}2", "--token", "--x", f"--url=https://u:{RANDOM}3@h/"]
        )
        masked = mask_text(f"{RANDOM}1 {RANDOM}2 {RANDOM}3 --x")
    assert masked == f"{MASK} {MASK} {MASK} --x"


@pytest.mark.parametrize("piece", ["a", "a.b-", 'password = "', "-----BEGIN PRIVATE KEY-----", "://u:", "sig=", "eyJ"])
def test_no_text_takes_long(piece: str) -> None:
    text = piece * (200_000 // len(piece))
    start = time.process_time()
    mask_text(text)
    assert time.process_time() - start < 5

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from health_ml.errors import SnapshotError
from health_ml.planning.file_hashes import SnapshotFile
from health_ml.planning.secret_files import check_secret_files, find_secret_files
from health_ml.planning.snapshot import take_snapshot

KEY_HEADER = "-----BEGIN {}PRIVATE KEY-----\nMIIB\n"
LONG = "Zk3vQ9xw1Lm8"

SECRETS = {
    ".env": ("A=1", "its name"),
    "deploy/.env.production": ("A=1", "its name"),
    ".netrc": ("machine x", "its name"),
    "home/id_ed25519": ("x", "its name"),
    "store.pfx": ("x", "its name"),
    ".aws/credentials": ("x", "its name"),
    "credentials.json": ("{}", "its name"),
    "hf_token": ("x", "its name"),
    "kaggle.json": ("{}", "its name"),
    "server.pem": (KEY_HEADER.format(""), "it holds a private key"),
    "tls.key": (KEY_HEADER.format("RSA "), "it holds a private key"),
    "deploykey": (KEY_HEADER.format("OPENSSH "), "it holds a private key"),
    "backup.asc": ("-----BEGIN PGP PRIVATE KEY BLOCK-----\n", "it holds a private key"),
    "service-account.json": (json.dumps({"private_key": KEY_HEADER.format("")}), "it holds a private key"),
    "config.json": (json.dumps({"subscription_id": "s", "storage": [{"account_key": LONG}]}), "'account_key'"),
    "conf/settings.yml": (f"host: here\npassword: {LONG}\n", "'password'"),
    "config.yaml": (f"token: {LONG}\n", "'token'"),
    "settings.ini": (f'[db]\ndb_password = "{LONG}"\n', "'db_password'"),
    "app/settings.local.json": (json.dumps({"db": {"password": LONG}}), "'password'"),
    "configuration.json": (json.dumps({"url": f"https://x.blob/y?sig={LONG * 3}"}), "it holds a token or a key"),
    "broken_config.json": (f'{{"api_key": "{LONG}", ', "'api_key'"),
    "secrets.yaml": (f"database:\n  password: {LONG}\n", "'password'"),
    "my_tokens.toml": (f'github_token = "{LONG}"', "'github_token'"),
    "auth.ini": (f"[x]\nclient_secret={LONG}\n", "'client_secret'"),
    "prod.env": (f"export DB_PASSWORD='{LONG}'", "'DB_PASSWORD'"),
    ".npmrc": (f"//registry.npmjs.org/:_authToken={LONG}", "'_authToken'"),
}

HARMLESS = {
    "config.json": json.dumps({"subscription_id": "123", "resource_group": "group", "workspace_name": "workspace"}),
    "model/config.json": json.dumps({"pad_token": "[PAD] and more", "num_tokens": 12, "sort_key": "by name"}),
    "tokenizer_config.json": json.dumps({"eos_token": "<|endoftext|>", "tokenizer_class": "GPT2Tokenizer"}),
    ".env.example": "PASSWORD=" + LONG,
    "credentials.sample.json": json.dumps({"password": LONG}),
    "server.pem": "-----BEGIN CERTIFICATE-----\n",
    "model_config.yaml": "tokenizer: bert-base-uncased\npad_token: <pad>\neos_token: endoftext\nn_tokens: 123456\n",
    "settings.json": json.dumps(
        {"password": "<your password>", "api_key": "${API_KEY}", "token": "", "secret": "xxxxxxx"}
    ),
    "secrets.py": f"password = '{LONG}'",
    "secrets.yaml": "password: changeme123\ntoken: null\n",
    "id_rsa.pub": "ssh-rsa AAAA",
    "environment.yml": "name: env\n",
    "tokens.txt": "the cat sat on the mat\n",
    "Makefile": "all:\n",
    "README": "How to make a private key\n",
    ".envrc.md": "x",
    "empty/.env": "",
}


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


@pytest.mark.parametrize("path", SECRETS)
def test_secret_is_found_and_never_shown(tmp_path: Path, path: str) -> None:
    text, reason = SECRETS[path]
    write(tmp_path, path, text)
    (found,) = find_secret_files(tmp_path, take_snapshot(tmp_path).files)
    assert found.path == path
    assert reason in found.reason
    assert LONG not in found.reason


@pytest.mark.parametrize("path", HARMLESS)
def test_harmless_file_may_travel(tmp_path: Path, path: str) -> None:
    write(tmp_path, path, HARMLESS[path])
    files = take_snapshot(tmp_path).files
    assert [file.path for file in files] == [path]
    assert find_secret_files(tmp_path, files) == []


def test_all_secrets_stop_the_submission_with_one_list(tmp_path: Path) -> None:
    for path in (".env", "keys/id_rsa", "main.py"):
        write(tmp_path, path, "x")
    with pytest.raises(SnapshotError, match="These files look like secrets") as caught:
        check_secret_files(tmp_path, take_snapshot(tmp_path).files)
    message = str(caught.value)
    assert ".env: its name" in message
    assert "keys/id_rsa: its name" in message
    assert "main.py" not in message
    assert "--allow_secret_files=.env,keys/id_rsa" in message


@pytest.mark.parametrize("allowed", [(".env", "keys/id_rsa"), ("/.env", "id_*"), (".env", "keys/"), (".env", "/keys")])
def test_allowed_files_may_travel(tmp_path: Path, allowed: tuple[str, ...]) -> None:
    for path in (".env", "keys/id_rsa"):
        write(tmp_path, path, "x")
    files = take_snapshot(tmp_path).files
    assert len(find_secret_files(tmp_path, files)) == 2
    check_secret_files(tmp_path, files, allowed=allowed)


def test_exception_for_one_file_does_not_let_the_other_through(tmp_path: Path) -> None:
    for path in (".env", "keys/id_rsa"):
        write(tmp_path, path, "x")
    with pytest.raises(SnapshotError, match=r"job:\s+keys/id_rsa: its name"):
        check_secret_files(tmp_path, take_snapshot(tmp_path).files, allowed=[".env"])


def test_exception_that_is_not_needed_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, ".env", "x")
    with pytest.raises(SnapshotError, match=r"names '.enw', '', but no file.*Did you mean '.env'\?"):
        check_secret_files(tmp_path, take_snapshot(tmp_path).files, allowed=[".env", ".enw", ""])


def test_large_file_is_not_looked_into(tmp_path: Path) -> None:
    write(tmp_path, "config.json", json.dumps({"password": LONG, "data": "x" * 100_000}))
    assert find_secret_files(tmp_path, take_snapshot(tmp_path).files) == []


def test_file_that_cannot_be_read_is_left_to_others(tmp_path: Path) -> None:
    assert find_secret_files(tmp_path, [SnapshotFile("config.json", 10, 0o644, "")]) == []


def test_ordinary_files_are_not_opened(tmp_path: Path) -> None:
    files = [SnapshotFile(f"package/module_{number}.py", 4000, 0o644, "") for number in range(10_000)]
    start = time.process_time()
    assert find_secret_files(tmp_path, files) == []
    assert time.process_time() - start < 0.5  # 0.03 s here

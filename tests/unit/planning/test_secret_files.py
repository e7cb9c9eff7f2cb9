from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from health_ml.errors import SnapshotError
from health_ml.planning.file_hashes import SnapshotFile
from health_ml.planning.secret_files import check_secret_files, find_secret_files
from health_ml.planning.secrets import remember_secrets, secrets_of_one_command
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

HUB = "hf_" + "aBcDeFgHiJkLmNoPqRsTuVwXyZ"

SECRETS_IN_ANY_SETTINGS = {
    "conf.yaml": (f"model:\n  hub_token: {HUB}\n", "'hub_token'"),
    "conf.yml": ("db:\n  password: dbPassw0rdQQ!xyz\n", "'password'"),
    "conf2.yaml": (f"key: |\n  {KEY_HEADER.format('')}", "it holds a private key"),
    "conf.ini": (f"[db]\npasswd = {LONG}\n", "'passwd'"),
    "app.cfg": (f"[s3]\naws_secret_access_key={LONG}{LONG}\n", "'aws_secret_access_key'"),
    "web.conf": (f"api-key = {LONG}\n", "'api-key'"),
    "pyproject.toml": (f'[tool.x]\nclientSecret = "{LONG}"\n', "'clientSecret'"),
    "gradle.properties": (f"signing.accessKey={LONG}\n", "'signing.accessKey'"),
    "list.yaml": (f"users:\n  - dbPassword: {LONG}\n", "'dbPassword'"),
    "flow.yaml": (f"user: {{name: me, password: {LONG}}}\n", "'password'"),
    "words.yaml": ("password: correcthorsebattery\n", "'password'"),
    "github.yml": ("x: ghp_" + "a" * 36 + "\n", "a token or a key"),
    "wandb.yaml": ("wandb_token: 0123abcd4567ef890123abcd4567ef890123abcd\n", "'wandb_token'"),
    "url.toml": (f'index = "https://me:{LONG}@host/simple"\n', "a token or a key"),
    "storage.yaml": (f"connection: DefaultEndpointsProtocol=https;AccountKey={LONG * 4}==\n", "a token or a key"),
    "connection.yaml": (f"connection_string: Server=db;Id=5;Pwd={LONG}\n", "'connection_string'"),
    "sas.yaml": (f"data: https://x.blob/y?sig={LONG * 3}\n", "a token or a key"),
}

HARMLESS_SETTINGS = {
    "tokens.yaml": 'pad_token: "<pad>"\nmax_tokens: 512\ncls_token: average\ntokenizer: bert-base\nn_token: 1234567\n',
    "names.yaml": "token: bert-base-uncased-v2\nspecial_token: end-of-sequence-2024\nimage_token: patch_16x16_224\n",
    "keys.yaml": "sort_key: name_of_column_2\nkey: train/loss_1\nmetric_key: val_auc_0123456789\nkey: a1b2c3d4e5f6\n",
    "variables.yaml": "password: ${DB_PASSWORD}\nsecret: DB_SECRET_1\napi_key: ${oc.env:KEY1}\npasswd: env:MY_PASS\n",
    "paths.yaml": "private_key: keys/server1.pem\npassword: /run/secrets/db1\npwd: ./work1\nsecret: ~/key1\n",
    "workflow.yml": "secrets: inherit\nwith:\n  token: ${{ secrets.GH_TOKEN }}\n  password: ${{ secrets.PYPI_1 }}\n",
    "empty.yaml": "password:\ntoken: null\nsecret: ''\napi_key: xxxxxxxx\npassphrase: changeme12\n",
    "url.yaml": "db: postgresql://${USER}:${PASSWORD}@host/x\nindex: https://me:<password>@host\nother: http://u:{pw}@h\n",
    "hub.yaml": "hf_hub_download_timeout_seconds: 10\nimage: hf_mirror_of_the_whole_dataset\n",
    "serving.toml": 'signature = "serving_default_1"\ncredentials = "default-chain-1"\nauth = "oauth2-device"\n',
    "layers.yaml": "hidden_act: gelu_new\nsecret_layers: 12345678\nhash: 0123abcd4567ef890123abcd4567ef890123abcd\n",
    "comment.ini": "; password = see the vault\n# a token: is a word\n[db]\nhost = here\n",
    "config.yaml": "auth: managed_identity\nmodel: HelloWorld\n",
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


@pytest.mark.parametrize("path", [*SECRETS, *SECRETS_IN_ANY_SETTINGS])
def test_secret_is_found_and_never_shown(tmp_path: Path, path: str) -> None:
    text, reason = {**SECRETS, **SECRETS_IN_ANY_SETTINGS}[path]
    write(tmp_path, path, text)
    (found,) = find_secret_files(tmp_path, take_snapshot(tmp_path).files)
    assert found.path == path
    assert reason in found.reason
    assert LONG not in found.reason


@pytest.mark.parametrize(("path", "text"), [*HARMLESS.items(), *HARMLESS_SETTINGS.items()])
def test_harmless_file_may_travel(tmp_path: Path, path: str, text: str) -> None:
    write(tmp_path, path, text)
    files = take_snapshot(tmp_path).files
    assert [file.path for file in files] == [path]
    assert find_secret_files(tmp_path, files) == []


def test_the_file_of_flags_is_looked_into_whatever_it_is_called(tmp_path: Path) -> None:
    write(tmp_path, "sub/mine.txt", f"db_password: {LONG}\n")
    files = take_snapshot(tmp_path).files
    assert find_secret_files(tmp_path, files) == []
    for path in ("sub/mine.txt", "./sub/../sub/mine.txt", str(tmp_path / "sub" / "mine.txt")):
        (found,) = find_secret_files(tmp_path, files, settings=[path])
        assert found.reason == "it holds a value for 'db_password'"


def test_a_secret_of_this_command_is_found_in_settings(tmp_path: Path) -> None:
    write(tmp_path, "x.yaml", "phrase: Zk3vQ9xw1Lm8Abcdef\n")
    files = take_snapshot(tmp_path).files
    assert find_secret_files(tmp_path, files) == []
    with secrets_of_one_command():
        remember_secrets({"api_token": "Zk3vQ9xw1Lm8Abcdef"})
        assert [found.path for found in find_secret_files(tmp_path, files)] == ["x.yaml"]


def test_long_lines_of_settings_do_not_take_long(tmp_path: Path) -> None:
    for number, text in enumerate((",", "a", "[1,", "- ", "password", "x:", " ")):
        write(tmp_path, f"{number}.yaml", text * (60_000 // len(text)))
    files = take_snapshot(tmp_path).files
    start = time.process_time()
    assert find_secret_files(tmp_path, files) == []
    assert time.process_time() - start < 2


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

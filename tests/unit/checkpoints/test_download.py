"""Downloads from real servers that misbehave."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
import requests

from health_ml.checkpoints.download import DownloadLimits, download_checkpoint, file_name_of
from health_ml.checkpoints.http_answer import check_redirects
from health_ml.checkpoints.parser import CheckpointParser
from health_ml.errors import CheckpointError, OutputError
from tests.helpers.http_server import Behaviour, send, serving

PATIENCE = DownloadLimits(connect_timeout=1, read_timeout=0.3, attempts=3, pause=0.01)


@pytest.fixture
def body(checkpoint: Path) -> bytes:
    return checkpoint.read_bytes()


def left_overs(folder: Path) -> list[str]:
    """Returns the names of partial files."""
    return sorted(path.name for path in folder.iterdir() if path.suffix in (".part", ".tmp"))


def test_a_complete_download_is_kept_and_not_fetched_again(tmp_path: Path, body: bytes) -> None:
    with serving(lambda handler, _: send(handler, body)) as server:
        parser = CheckpointParser(f"{server.url}/models/best%20one.ckpt?sig=SECRET")
        first = parser.get_or_download_checkpoint(tmp_path)
        again = parser.get_or_download_checkpoint(tmp_path)
        assert len(server.requests) == 1
    assert first == again == tmp_path / "pretrained_models" / "best_one.ckpt"
    assert first.read_bytes() == body
    assert left_overs(first.parent) == []
    assert all(b"SECRET" not in path.read_bytes() for path in first.parent.iterdir())


def test_a_half_file_or_one_from_elsewhere_is_never_accepted(tmp_path: Path, body: bytes) -> None:
    (tmp_path / "m.ckpt").write_bytes(body[:100])
    with serving(lambda handler, _: send(handler, body)) as server:
        target = download_checkpoint(f"{server.url}/a/m.ckpt", tmp_path, PATIENCE)
        assert target.read_bytes() == body
        target.write_bytes(body[:50])
        assert download_checkpoint(f"{server.url}/a/m.ckpt", tmp_path, PATIENCE).read_bytes() == body
        download_checkpoint(f"{server.url}/b/m.ckpt", tmp_path, PATIENCE)
        assert [request["path"] for request in server.requests] == ["/a/m.ckpt", "/a/m.ckpt", "/b/m.ckpt"]


@pytest.mark.parametrize(
    ("status", "hint"), [(404, "Check the address"), (403, "may have expired"), (401, "asks for a login")]
)
def test_a_refusal_names_status_url_and_way_out_at_once(tmp_path: Path, status: int, hint: str) -> None:
    with serving(lambda handler, _: send(handler, b"no", status=status)) as server:
        url = f"{server.url}/m.ckpt?sig=SECRET"
        with pytest.raises(CheckpointError, match=rf"/m\.ckpt\?sig=\*\*\* failed: {status} .*{hint}"):
            download_checkpoint(url, tmp_path, PATIENCE)
        assert len(server.requests) == 1
    assert not (tmp_path / "m.ckpt").exists()


def test_a_short_body_is_an_error_that_says_how_short(tmp_path: Path, body: bytes) -> None:
    with serving(lambda handler, _: send(handler, body[:1000], announce=len(body))) as server:
        with pytest.raises(CheckpointError, match=r"failed 3 times in a row: .* \d+ bytes are missing; 1000 bytes"):
            download_checkpoint(f"{server.url}/m.ckpt", tmp_path, PATIENCE)
        assert len(server.requests) == 3
    assert not (tmp_path / "m.ckpt").exists()


def serve_ranges(body: bytes, *, break_after: int, breaks: int, etags: list[str] | None = None) -> Behaviour:
    """Returns a server that understands ranges and drops its first connections after some bytes."""

    def behave(handler: BaseHTTPRequestHandler, index: int) -> None:
        etag = (etags or ['"one"'])[min(index, len(etags or [1]) - 1)]
        start = 0
        if handler.headers["If-Range"] == etag:
            start = int(handler.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        rest = body[start:]
        sent = rest[:break_after] if index < breaks else rest
        headers = {"ETag": etag}
        if start:
            headers["Content_Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        send(handler, sent, status=206 if start else 200, announce=len(rest), **headers)

    return behave


def test_a_broken_connection_is_resumed_where_it_broke(tmp_path: Path, body: bytes) -> None:
    with serving(serve_ranges(body, break_after=1000, breaks=4)) as server:
        target = download_checkpoint(f"{server.url}/m.ckpt", tmp_path, PATIENCE)
        assert [request.get("Range") for request in server.requests] == [
            None,
            "bytes=1000-",
            "bytes=2000-",
            "bytes=3000-",
            "bytes=4000-",
        ]
    assert target.read_bytes() == body
    assert left_overs(tmp_path) == []


def test_a_download_that_was_given_up_is_continued_by_the_next_command(tmp_path: Path, body: bytes) -> None:
    impatient = DownloadLimits(attempts=1)
    with serving(serve_ranges(body, break_after=1000, breaks=1)) as server:
        with pytest.raises(CheckpointError, match=r"1000 bytes are here"):
            download_checkpoint(f"{server.url}/m.ckpt", tmp_path, impatient)
        assert download_checkpoint(f"{server.url}/m.ckpt", tmp_path, impatient).read_bytes() == body
        assert server.requests[-1]["Range"] == "bytes=1000-"


def test_a_file_that_changed_meanwhile_is_fetched_from_its_beginning(tmp_path: Path, body: bytes) -> None:
    with serving(serve_ranges(body, break_after=1000, breaks=1, etags=['"old"', '"new"'])) as server:
        assert download_checkpoint(f"{server.url}/m.ckpt", tmp_path, PATIENCE).read_bytes() == body
        assert [request.get("If-Range") for request in server.requests] == [None, '"old"']


def test_without_a_version_the_file_is_fetched_from_its_beginning(tmp_path: Path, body: bytes) -> None:
    def behave(handler: BaseHTTPRequestHandler, index: int) -> None:
        send(handler, body[:1000] if index == 0 else body, announce=len(body), ETag='W/"weak"')

    with serving(behave) as server:
        assert download_checkpoint(f"{server.url}/m.ckpt", tmp_path, PATIENCE).read_bytes() == body
        assert [request.get("Range") for request in server.requests] == [None, None]


def test_a_server_that_refuses_the_range_is_asked_for_everything(tmp_path: Path, body: bytes) -> None:
    def behave(handler: BaseHTTPRequestHandler, index: int) -> None:
        if "Range" in handler.headers:
            send(handler, b"", status=416)
        else:
            send(handler, body[:1000] if index == 0 else body, announce=len(body), ETag='"one"')

    with serving(behave) as server:
        assert download_checkpoint(f"{server.url}/m.ckpt", tmp_path, PATIENCE).read_bytes() == body


def test_another_part_than_asked_for_is_refused(tmp_path: Path, body: bytes) -> None:
    def behave(handler: BaseHTTPRequestHandler, index: int) -> None:
        facts = {"Content_Range": f"bytes 0-{len(body) - 1}/{len(body)}"} if index else {}
        send(handler, body if index else body[:1000], status=206 if index else 200, ETag='"1"', announce=9999, **facts)

    with serving(behave) as server, pytest.raises(CheckpointError, match="sends another part of"):
        download_checkpoint(f"{server.url}/m.ckpt", tmp_path, PATIENCE)


def test_a_busy_server_is_asked_again(tmp_path: Path, body: bytes) -> None:
    def behave(handler: BaseHTTPRequestHandler, index: int) -> None:
        if index < 2:
            send(handler, b"busy", status=(503, 429)[index], Retry_After="0")
        else:
            send(handler, body)

    with serving(behave) as server:
        assert download_checkpoint(f"{server.url}/m.ckpt", tmp_path, PATIENCE).read_bytes() == body


@pytest.mark.parametrize("sent", [0, 500], ids=["no answer", "a stalled answer"])
def test_a_silent_server_is_given_up(tmp_path: Path, body: bytes, sent: int) -> None:
    stop = threading.Event()

    def behave(handler: BaseHTTPRequestHandler, _: int) -> None:
        if sent:
            send(handler, body[:sent], announce=len(body))
        stop.wait(10)

    limits = DownloadLimits(connect_timeout=1, read_timeout=0.2, attempts=2, pause=0.01)
    begin = time.monotonic()
    with serving(behave) as server:
        try:
            with pytest.raises(CheckpointError, match=r"failed 2 times in a row: .*timed out"):
                download_checkpoint(f"{server.url}/m.ckpt", tmp_path, limits)
        finally:
            stop.set()
    assert time.monotonic() - begin < 5


def test_a_trickle_is_given_up(tmp_path: Path, body: bytes) -> None:
    def behave(handler: BaseHTTPRequestHandler, _: int) -> None:
        send(handler, b"", announce=len(body))
        try:
            for byte in body[:100]:
                handler.wfile.write(bytes([byte]))
                handler.wfile.flush()
                time.sleep(0.03)
        except OSError:
            pass  # the client has given up, as it should

    limits = DownloadLimits(read_timeout=0.3, attempts=1, pause=0.01, slowest_bytes_per_second=1000)
    with serving(behave) as server, pytest.raises(CheckpointError, match=r"only \d+ bytes came in"):
        download_checkpoint(f"{server.url}/m.ckpt", tmp_path, limits)


def test_nobody_listens(tmp_path: Path) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{reserved.getsockname()[1]}/m.ckpt?sig=SECRET"
        with pytest.raises(CheckpointError, match=r"sig=\*\*\* failed 2 times in a row: .*refused") as caught:
            download_checkpoint(url, tmp_path, PATIENCE)
    assert "SECRET" not in str(caught.value)


def test_a_redirect_is_followed_to_http_only(tmp_path: Path, body: bytes) -> None:
    def behave(handler: BaseHTTPRequestHandler, _: int) -> None:
        places = {"/to_file": "file:///etc/passwd", "/to_other": "/m.ckpt", "/loop": "/loop"}
        if handler.path in places:
            send(handler, b"", status=302, Location=places[handler.path])
        else:
            send(handler, body)

    with serving(behave) as server:
        assert download_checkpoint(f"{server.url}/to_other", tmp_path, PATIENCE).read_bytes() == body
        with pytest.raises(CheckpointError, match=r"redirected to where it cannot be followed: .*file:///etc/passwd"):
            download_checkpoint(f"{server.url}/to_file", tmp_path, PATIENCE)
        with pytest.raises(CheckpointError, match=r"redirected to where it cannot be followed: Exceeded 10 redirects"):
            download_checkpoint(f"{server.url}/loop", tmp_path, PATIENCE)
    assert not (tmp_path / "to_file").exists()


def send_chunked(handler: BaseHTTPRequestHandler, body: bytes, *, is_ended: bool) -> None:
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b"%x\r\n%s\r\n" % (len(body), body) + (b"0\r\n\r\n" if is_ended else b""))


def test_chunks_tell_where_the_file_ends(tmp_path: Path, body: bytes) -> None:
    with serving(lambda handler, index: send_chunked(handler, body, is_ended=index == 1)) as server:
        assert download_checkpoint(f"{server.url}/m.ckpt", tmp_path, PATIENCE).read_bytes() == body
        assert len(server.requests) == 2


def test_without_a_length_the_file_itself_has_to_be_complete(tmp_path: Path, body: bytes) -> None:
    def behave(handler: BaseHTTPRequestHandler, _: int) -> None:
        send(handler, {"/all": body, "/cut": body[:-200], "/other": b"\x80\x02N."}[handler.path], announce=-1)

    with serving(behave) as server:
        assert download_checkpoint(f"{server.url}/all", tmp_path, PATIENCE).read_bytes() == body
        with pytest.raises(CheckpointError, match=r"/cut sends is damaged: its end is missing"):
            download_checkpoint(f"{server.url}/cut", tmp_path, PATIENCE)
        with pytest.raises(CheckpointError, match=r"nobody can tell whether it is complete"):
            download_checkpoint(f"{server.url}/other", tmp_path, PATIENCE)
    assert left_overs(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"\n<!DOCTYPE html><html>Please log in</html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "a pointer of Git LFS"),
    ],
)
def test_what_is_sent_instead_of_a_file_is_refused(tmp_path: Path, content: bytes, kind: str) -> None:
    with (
        serving(lambda handler, _: send(handler, content)) as server,
        pytest.raises(CheckpointError, match=rf"is not a checkpoint but {kind}"),
    ):
        download_checkpoint(f"{server.url}/m.ckpt", tmp_path, PATIENCE)
    assert not (tmp_path / "m.ckpt").exists()
    assert left_overs(tmp_path) == []


def test_a_file_beyond_the_limit_is_refused_before_and_while_it_comes(tmp_path: Path, body: bytes) -> None:
    limits = DownloadLimits(largest_bytes=1000)
    with serving(lambda handler, index: send(handler, body, announce=-1 if index else None)) as server:
        with pytest.raises(CheckpointError, match=rf"has {len(body)} bytes; the most that is accepted is 1000"):
            download_checkpoint(f"{server.url}/m.ckpt", tmp_path, limits)
        with pytest.raises(CheckpointError, match=r"is larger than 1000 bytes"):
            download_checkpoint(f"{server.url}/m.ckpt", tmp_path, limits)


def test_a_compressed_answer_is_refused(tmp_path: Path, body: bytes) -> None:
    with serving(lambda handler, _: send(handler, body, Content_Encoding="gzip")) as server:
        with pytest.raises(CheckpointError, match=r"compressed \(gzip\), although it was asked not to"):
            download_checkpoint(f"{server.url}/m.ckpt", tmp_path, PATIENCE)
        assert server.requests[0]["Accept-Encoding"] == "identity"


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match=r"Cannot write to .*/file/pretrained"):
        download_checkpoint("http://127.0.0.1:9/m.ckpt", tmp_path / "file" / "pretrained", PATIENCE)


def test_a_full_disk_is_named(tmp_path: Path, body: bytes) -> None:
    (tmp_path / ".m.ckpt.part").symlink_to("/dev/full")
    with (
        serving(lambda handler, _: send(handler, body)) as server,
        pytest.raises(OutputError, match=r"The disk of .* is full\. Free some space"),
    ):
        download_checkpoint(f"{server.url}/m.ckpt", tmp_path, PATIENCE)


def test_one_thread_downloads_while_the_others_wait(tmp_path: Path, body: bytes) -> None:
    def slowly(handler: BaseHTTPRequestHandler, _: int) -> None:
        time.sleep(0.2)
        send(handler, body)

    with serving(slowly) as server, ThreadPoolExecutor(4) as pool:
        url = f"{server.url}/m.ckpt"
        targets = list(pool.map(lambda _: download_checkpoint(url, tmp_path, DownloadLimits()), range(4)))
        assert len(server.requests) == 1
    assert {target.read_bytes() for target in targets} == {body}


def test_one_process_downloads_while_the_others_wait(tmp_path: Path, body: bytes) -> None:
    code = (
        "import sys, pathlib; from health_ml.checkpoints.parser import CheckpointParser as P;"
        "print(P(sys.argv[1]).get_or_download_checkpoint(pathlib.Path(sys.argv[2])))"
    )

    def slowly(handler: BaseHTTPRequestHandler, _: int) -> None:
        time.sleep(1)
        send(handler, body)

    with serving(slowly) as server:
        command = [sys.executable, "-c", code, f"{server.url}/m.ckpt", str(tmp_path)]
        processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        outputs = [process.communicate(timeout=60)[0].strip() for process in processes]
        assert len(server.requests) == 1
    assert outputs == [str(tmp_path / "pretrained_models" / "m.ckpt")] * 2


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("http://h/a/b.ckpt?x=1", "b.ckpt"),
        ("http://h/..%2F..%2Fetc%2Fpasswd", "passwd"),
        ("http://h/%2E%2E", "checkpoint"),
        ("http://h/.hidden", "hidden"),
        ("http://h/a;b%00c%0A.ckpt", "a_b_c_.ckpt"),
        ("http://h/" + "x" * 500 + ".ckpt", "x" * 145 + ".ckpt"),
    ],
)
def test_file_names_are_harmless(url: str, name: str) -> None:
    assert file_name_of(url) == name


def test_a_server_that_cannot_be_trusted_is_not_asked_again(tmp_path: Path, body: bytes) -> None:
    with serving(lambda handler, _: send(handler, body)) as server:
        url = f"{server.url.replace('http:', 'https:')}/m.ckpt"
        with pytest.raises(CheckpointError, match=r"The download of https://.*/m\.ckpt cannot be trusted: .*SSL"):
            download_checkpoint(url, tmp_path, PATIENCE)
        assert server.requests == []


@pytest.mark.parametrize(
    ("hops", "is_refused"),
    [
        (["https://a/m", "http://b/m"], True),
        (["http://a/m", "https://b/m", "http://c/m?sig=SECRET"], True),
        (["http://a/m", "https://b/m"], False),
        (["http://a/m", "http://b/m"], False),
        (["https://a/m"], False),
    ],
)
def test_a_redirect_to_an_unencrypted_address_is_refused(hops: list[str], is_refused: bool) -> None:
    answers = [requests.Response() for _ in hops]
    for answer, hop in zip(answers, hops, strict=True):
        answer.url = hop
    answers[-1].history = answers[:-1]
    if not is_refused:
        check_redirects(answers[-1])
        return
    with pytest.raises(CheckpointError, match=r"redirects from https?://a/m to the unencrypted http://\w/m") as caught:
        check_redirects(answers[-1])
    assert "SECRET" not in str(caught.value)

"""What an HTTP server's answer says about the file it sends, and what is wrong with it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from health_ml.checkpoints.parser import mask_url
from health_ml.errors import CheckpointError

if TYPE_CHECKING:
    import requests

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


@dataclass(frozen=True)
class Answer:
    """Where the body belongs in the file, and how long the file is.

    :param offset: Position of the body's first byte in the file.
    :param total: Size of the complete file in bytes, or None if the server does not say.
    :param is_length_known: True if the end of the body can be told from a broken connection.
    :param validator: What identifies this version of the file when the rest is asked for later, or None.
    """

    offset: int
    total: int | None
    is_length_known: bool
    validator: str | None


def check_answer(response: requests.Response, offset: int, shown_url: str, largest_bytes: int) -> Answer:
    """Returns what a successful answer says.

    :param response: Answer with status 200 (the whole file) or 206 (the rest of it).
    :param offset: Position from which the rest was asked for, 0 for the whole file.
    :param shown_url: The URL for messages, without its secrets.
    :param largest_bytes: A larger file is refused.
    :raises CheckpointError: If the answer is no file that could be written as it is.
    """
    encoding = response.headers.get("Content-Encoding", "identity").lower()
    if encoding not in ("", "identity"):
        raise CheckpointError(
            f"The server sends {shown_url} compressed ({encoding}), although it was asked not to.",
            "Download and unpack the file with another tool and give its path.",
        )
    length = _whole_number(response.headers.get("Content-Length"))
    total = length
    if response.status_code == 206:
        match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if match is None or int(match[1]) != offset:
            raise CheckpointError(
                f"The server sends another part of {shown_url} than it was asked for.",
                "Download the file with a browser and give its path.",
            )
        total = int(match[3]) if match[3] != "*" else int(match[2]) + 1
    else:
        offset = 0
    if total is not None and total > largest_bytes:
        raise CheckpointError(f"{shown_url} has {total} bytes; the most that is accepted is {largest_bytes}.")
    is_chunked = "chunked" in response.headers.get("Transfer-Encoding", "").lower()
    return Answer(offset, total, is_length_known=total is not None or is_chunked, validator=_validator(response))


def check_redirects(response: requests.Response) -> None:
    """Checks that the server has not sent us from an encrypted connection to a plain one.

    :raises CheckpointError: If it has.
    """
    hops = [*(earlier.url for earlier in response.history), response.url]
    schemes = [urlsplit(hop).scheme for hop in hops]
    if "https" in schemes and "http" in schemes[schemes.index("https") :]:
        raise CheckpointError(
            f"The server redirects from {mask_url(hops[0])} to the unencrypted {mask_url(hops[-1])}.",
            "Give the last address if you trust the network, or download the file and give its path.",
        )


def status_error(response: requests.Response, shown_url: str) -> CheckpointError:
    """Returns the error for an answer that is no success."""
    hints = {
        401: "The server asks for a login: put one into ~/.netrc, or download the file and give its path.",
        403: "The link may have expired or lack a permission: ask for a new one.",
        404: "Check the address: open it in a browser.",
        410: "The file has been removed for good: look for its new place.",
    }
    return CheckpointError(
        f"The download of {shown_url} failed: {response.status_code} {response.reason}.",
        hints.get(response.status_code, "Open the address in a browser to see what the server expects."),
    )


def _validator(response: requests.Response) -> str | None:
    """Returns the strong ETag, else the date of the last change: what ``If-Range`` accepts."""
    etag = response.headers.get("ETag", "")
    if etag and not etag.startswith("W/"):
        return etag
    return response.headers.get("Last-Modified")


def _whole_number(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() else None

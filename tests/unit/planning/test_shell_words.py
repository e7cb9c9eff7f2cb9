from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from health_ml.planning.shell_words import quoted


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    "text",
    ["plain", "it's", 'a "b" $c', "bad\udcff0", "\udce9t\udce9 'x' \\ \n\tà", "\x01ab", "new\nline", "é\xa0", ""],
)
def test_a_shell_reads_back_what_was_quoted(text: str) -> None:
    word = quoted(text)
    assert word.isprintable()
    done = subprocess.run(["bash", "-c", f"printf %s {word}"], capture_output=True, check=True)
    assert done.stdout == os.fsencode(text)

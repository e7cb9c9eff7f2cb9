"""Every snippet of the README and of the documentation does what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.police import REPOSITORY
from tests.helpers.snippets import Page, Snippet, is_with_azureml, make_page, read_snippets, shown_as_pattern

PAGES = sorted(
    [*map(REPOSITORY.joinpath, ("README.md", "CONTRIBUTING.md", "SECURITY.md")), *(REPOSITORY / "docs").rglob("*.md")]
)


@pytest.mark.parametrize(
    "page", [str(page.relative_to(REPOSITORY)) for page in PAGES if not is_with_azureml(page.read_text())]
)
def test_snippets(page: str, tmp_path: Path) -> None:
    text = (REPOSITORY / page).read_text()
    running = make_page(tmp_path / "page", text)
    for snippet in read_snippets(text):
        running.run(snippet)


@pytest.mark.parametrize("page", [str(page.relative_to(REPOSITORY)) for page in PAGES])
def test_links_lead_somewhere(page: str) -> None:
    folder = (REPOSITORY / page).parent
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (REPOSITORY / page).read_text())
    assert [link for link in links if not (folder / link).exists()] == []


def test_documentation_builds_without_warnings(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-d", str(tmp_path / "trees")]
    finished = subprocess.run(
        [*command, str(REPOSITORY / "docs"), str(tmp_path / "html")],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stdout + finished.stderr
    flags = (tmp_path / "html" / "reference" / "flags.html").read_text()
    for flag in ("--cluster", "--max_epochs", "--l_rate_scheduler", "--local_datasets", "--output_to"):
        assert f">{flag}<" in flags


# --- the harness itself ---------------------------------------------------------------------------------------------

EXAMPLE = """
Text

<!-- file: a/b.py -->
```python
print("one")
```

```console
$ python a/b.py
one
$ python -c "print(2); print(3)"
...
3
```

1. In a list:

   ```text
   not run
   ```

<!-- exit: 3 -->
```console
$ python -c \\
    "raise SystemExit(3)"
```

<!-- not run: no such program -->
```console
$ nothing
```
"""


def test_example_page_runs(tmp_path: Path) -> None:
    page = make_page(tmp_path, EXAMPLE)
    snippets = read_snippets(EXAMPLE)
    assert [snippet.directive for snippet in snippets] == ["file", "", "exit", "not run"]
    for snippet in snippets:
        page.run(snippet)


@pytest.mark.parametrize(
    ("snippet", "message"),
    [
        (Snippet("python", "pass", 7), "the python block in line 7 has no comment that says what to do"),
        (Snippet("yaml", "a: 1", 7), "the yaml block in line 7 has no comment that says what to do"),
        (Snippet("console", "ls", 7), r"has no line that starts with '\$ '"),
        (Snippet("console", "$ ls", 7, "not run"), "does not say why it is not run"),
        (Snippet("console", "$ curl x", 7), "a page cannot run curl"),
        (Snippet("console", "$ ls\nsomething", 7), "printed(.|\n)*and the page shows(.|\n)*something"),
        (Snippet("console", "$ ls missing", 7), "exit code 2, not 0"),
        (Snippet("python", "1/0", 7, "run"), "ZeroDivisionError"),
    ],
)
def test_page_that_is_wrong_fails(snippet: Snippet, message: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=message):
        Page(tmp_path).run(snippet)


@pytest.mark.parametrize(
    ("shown", "output", "is_match"),
    [
        ("a\n...\nb", "a\nb\n", True),
        ("a\n...\nb", "a\nc\nd\nb\n", True),
        ("a\n...", "b\na\n", False),
        ("...\nx ... y\n...", "1\nx 2  y\n3\n", True),
        ("loss 0....", "loss     0.123\n", True),
        ("a", "a\nb\n", False),
        ("(a|b) [c] *", "(a|b) [c] *\n", True),
    ],
)
def test_output_that_a_page_shows(shown: str, output: str, is_match: bool) -> None:
    assert bool(shown_as_pattern(shown).fullmatch(output)) is is_match


def test_run_ids_of_the_page_stand_for_real_ones(tmp_path: Path) -> None:
    (tmp_path / "outputs" / "2031-01-01T000000Z_Mine").mkdir(parents=True)
    page = Page(tmp_path)
    page.run(Snippet("console", "$ ls outputs\n2026-05-01T120000Z_Mine\n$ ls outputs/2026-05-01T120000Z_Mine", 1))
    assert page.run_ids == {"2026-05-01T120000Z_Mine": "2031-01-01T000000Z_Mine"}

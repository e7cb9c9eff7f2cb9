"""Finding a container by name: what is found, what is imported on the way, and what the errors say."""

from __future__ import annotations

import logging
import os
import py_compile
import re
import sys
import textwrap
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import param
import pytest

from health_ml.cli.model_search import create_container, find_container
from health_ml.cli.model_suggestions import candidate_models
from health_ml.configs.hello_world import HelloWorld
from health_ml.errors import ContainerError, ModelSearchError

IMPORT = "from health_ml.lightning_container import LightningContainer\n"
MINE = IMPORT + "class Mine(LightningContainer):\n    pass\n"
FORBIDDEN = "raise RuntimeError('this module must not be imported')\n"


@pytest.fixture(autouse=True)
def _fresh_imports() -> Iterator[None]:
    """Forgets the modules and the search path of a test."""
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def write(folder: Path, **files: str) -> Path:
    """Writes modules, named with two underscores for each folder: ``pkg__sub__module="text"``."""
    for name, text in files.items():
        file = folder / (
            name.replace("__init__", "//init//").replace("__", "/").replace("//init//", "/__init__") + ".py"
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text), encoding="utf-8")
    return folder


def imported(prefix: str) -> set[str]:
    return {name for name in sys.modules if name == prefix or name.startswith(prefix + ".")}


def error_of(model: str, folder: Path) -> str:
    with pytest.raises(ModelSearchError, match=r".+") as caught:
        find_container(model, folder=folder)
    assert caught.value.exit_code == 2
    return str(caught.value)


# --- what is found ----------------------------------------------------------------------------------------------------


def test_bare_name_is_searched_in_the_shipped_configs(tmp_path: Path) -> None:
    assert find_container("HelloWorld", folder=tmp_path) is HelloWorld


@pytest.mark.parametrize(
    "model",
    ["health_ml.HelloWorld", "health_ml.configs.HelloWorld", "health_ml.configs.hello_world.HelloWorld"],
)
def test_name_below_any_parent_package(model: str, tmp_path: Path) -> None:
    assert find_container(model, folder=tmp_path) is HelloWorld


@pytest.mark.parametrize("model", ["pkg.Mine", "pkg.sub.Mine", "pkg.sub.good.Mine"])
def test_only_the_defining_module_is_imported(model: str, tmp_path: Path) -> None:
    other = '"""The class Mine is mentioned here."""\n# class Mine(LightningContainer):\n' + FORBIDDEN
    write(tmp_path, pkg__sub__good=MINE, pkg__sub__other=other, pkg__unrelated=FORBIDDEN)
    assert find_container(model, folder=tmp_path).__name__ == "Mine"
    assert imported("pkg") == {"pkg", "pkg.sub", "pkg.sub.good"}


def test_module_in_the_folder_itself(tmp_path: Path) -> None:
    write(tmp_path, single=MINE)
    assert find_container("single.Mine", folder=tmp_path).__module__ == "single"


def test_no_class_is_instantiated(tmp_path: Path) -> None:
    write(
        tmp_path,
        pkg__a=IMPORT
        + """
class Mine(LightningContainer):
    def __init__(self):
        raise RuntimeError("created")
""",
    )
    assert find_container("pkg.Mine", folder=tmp_path).__name__ == "Mine"


@pytest.mark.parametrize(
    "text",
    [
        IMPORT + "if True:\n    class Mine(LightningContainer):\n        pass\n",
        IMPORT + "try:\n    import missing_thing\nexcept ImportError:\n    class Mine(LightningContainer): pass\n",
        IMPORT + "def make():\n    class Made(LightningContainer): pass\n    return Made\nMine = make()\n",
        IMPORT + "Mine: type = type('Made', (LightningContainer,), {})\n",
        IMPORT + "globals()['Mine'] = type('Made', (LightningContainer,), {})\n",
        IMPORT + "globals()['Mi' + 'ne'] = type('Made', (LightningContainer,), {})\n",
        IMPORT + "import sys\nsetattr(sys.modules[__name__], 'Mi' + 'ne', type('Made', (LightningContainer,), {}))\n",
        IMPORT
        + "def __getattr__(name):\n    if name != 'Mi' + 'ne':\n        raise AttributeError(name)\n"
        + "    return type('Made', (LightningContainer,), {})\n",
        "from health_ml.configs.hello_world import HelloWorld as Mine\n",
        "class Mine_: pass\nfrom health_ml.configs.hello_world import HelloWorld\nclass \\\n  Mine(HelloWorld): pass\n",
    ],
)
def test_names_made_in_unusual_ways(text: str, tmp_path: Path) -> None:
    write(tmp_path, odd__module=text, odd__unrelated=FORBIDDEN)
    container = find_container("odd.Mine", folder=tmp_path)
    assert container.__name__ in ("Mine", "Made", "HelloWorld")


def test_star_import_from_another_package(tmp_path: Path) -> None:
    write(tmp_path, library__parts=MINE, mypkg__front="from library.parts import *\n", mypkg__unrelated=FORBIDDEN)
    assert find_container("mypkg.Mine", folder=tmp_path).__module__ == "library.parts"


def test_name_in_the_package_file_wins_over_those_below(tmp_path: Path) -> None:
    write(tmp_path, pkg__init__="from pkg.a import Mine\n", pkg__a=MINE, pkg__b=MINE + FORBIDDEN)
    assert find_container("pkg.Mine", folder=tmp_path).__module__ == "pkg.a"


def test_model_and_container_of_the_same_name(tmp_path: Path) -> None:
    write(tmp_path, pkg__models="import torch\nclass Mine(torch.nn.Module):\n    pass\n", pkg__containers=MINE)
    assert find_container("pkg.Mine", folder=tmp_path).__module__ == "pkg.containers"


def test_reexport_is_the_same_class_and_no_second_match(tmp_path: Path) -> None:
    write(tmp_path, pkg__a=MINE, pkg__b="from pkg.a import Mine\n")
    assert find_container("pkg.Mine", folder=tmp_path).__module__ == "pkg.a"


def test_name_with_letters_outside_ascii(tmp_path: Path) -> None:
    write(tmp_path, pkg__a=MINE.replace("Mine", "Größe"))
    assert find_container("pkg.Größe", folder=tmp_path).__name__ == "Größe"


def test_odd_folders_and_files_survive(tmp_path: Path) -> None:
    write(
        tmp_path,
        pkg__sub__good=MINE,
        pkg__node_modules__a=MINE + FORBIDDEN,
        pkg__venv__lib__a=MINE + FORBIDDEN,
        pkg__init__="",
    )
    for hidden in (".hidden", "__pycache__", "not-a-package"):
        (tmp_path / "pkg" / hidden).mkdir()
        (tmp_path / "pkg" / hidden / "a.py").write_text(MINE + FORBIDDEN)
    (tmp_path / "pkg" / "venv" / "pyvenv.cfg").touch()
    (tmp_path / "pkg" / "undecodable.py").write_bytes(b"Mine = '\xff\xfe'\0")
    (tmp_path / "pkg" / "not-a-module.py").write_text(MINE)
    (tmp_path / "pkg" / "broken_link.py").symlink_to(tmp_path / "nowhere.py")
    (tmp_path / "pkg" / "loop").symlink_to(tmp_path / "pkg")
    (tmp_path / "pkg" / "sub" / "again").symlink_to(tmp_path / "pkg" / "sub")
    (tmp_path / "pkg" / "folder.py").mkdir()
    os.mkfifo(tmp_path / "pkg" / "pipe.py")
    assert find_container("pkg.Mine", folder=tmp_path).__module__ == "pkg.sub.good"


def test_package_that_is_a_link(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", good=MINE)
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "linked").symlink_to(tmp_path / "elsewhere")
    assert find_container("pkg.Mine", folder=tmp_path).__module__ == "pkg.linked.good"


def test_namespace_package_in_two_places(tmp_path: Path) -> None:
    write(tmp_path / "one", shared__a="")
    write(tmp_path / "two", shared__b=MINE)
    sys.path.append(str(tmp_path / "two"))
    assert find_container("shared.Mine", folder=tmp_path / "one").__module__ == "shared.b"


def test_the_folder_stays_importable(tmp_path: Path) -> None:
    write(tmp_path, pkg__a=MINE)
    find_container("pkg.Mine", folder=tmp_path)
    find_container("pkg.Mine", folder=tmp_path)
    assert sys.path.count(str(tmp_path)) == 1


def test_module_in_an_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        archive.writestr("zipped/__init__.py", "")
        archive.writestr("zipped/module.py", MINE)
    sys.path.append(str(tmp_path / "archive.zip"))
    assert find_container("zipped.module.Mine", folder=tmp_path).__name__ == "Mine"


def test_compiled_module(tmp_path: Path) -> None:
    write(tmp_path, source=MINE)
    py_compile.compile(str(tmp_path / "source.py"), cfile=str(tmp_path / "pkg" / "compiled.pyc"))
    assert find_container("pkg.compiled.Mine", folder=tmp_path).__name__ == "Mine"


def test_reading_the_source_warns_of_nothing(tmp_path: Path) -> None:
    write(tmp_path, pkg__a=MINE, pkg__b="Mine_text = '\\d'\nclass Mine_(object): pass\n# class Mine\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find_container("pkg.Mine", folder=tmp_path).__module__ == "pkg.a"


# --- what the errors say ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import missing_library\n" + MINE, "ModuleNotFoundError: No module named 'missing_library' ({}, line 1: "),
        (MINE + "x = (1,\ny = 2\n", "SyntaxError: '(' was never closed ({}, line 4: x = (1,)"),
        (MINE + "raise RuntimeError('no luck')\n", "RuntimeError: no luck ({}, line 4: raise RuntimeError('no luck'))"),
        (MINE + "raise SystemExit(3)\n", "SystemExit: 3 ({}, line 4: raise SystemExit(3))"),
        (MINE + "import json\njson.loads('no')\n", "({}, line 5: json.loads('no'))"),
        (MINE + "x = '\0'\n", "source code string cannot contain null bytes"),
    ],
)
@pytest.mark.parametrize("model", ["broken.Mine", "broken.module.Mine"])
def test_error_in_the_users_module_is_the_answer(model: str, text: str, expected: str, tmp_path: Path) -> None:
    write(tmp_path, broken__module=text)
    message = error_of(model, tmp_path)
    assert expected.format(tmp_path / "broken" / "module.py") in message
    assert "broken.module" in message
    assert "no container" not in message


def test_error_in_a_parent_package_is_the_answer(tmp_path: Path) -> None:
    write(tmp_path, pkg__init__="import missing_library\n", pkg__a=MINE)
    assert f"({tmp_path / 'pkg' / '__init__.py'}, line 1: import missing_library)" in error_of("pkg.Mine", tmp_path)


def test_error_in_a_module_that_the_users_module_imports(tmp_path: Path) -> None:
    write(tmp_path, pkg__a="from pkg.helpers import thing\n" + MINE, pkg__helpers="thing = 1 / 0\n")
    message = error_of("pkg.Mine", tmp_path)
    assert f"ZeroDivisionError: division by zero ({tmp_path / 'pkg' / 'helpers.py'}, line 1: thing = 1 / 0)" in message


def test_broken_reexport_does_not_hide_the_definition(tmp_path: Path) -> None:
    write(tmp_path, pkg__a=MINE, pkg__b="from pkg.missing import Mine\n", pkg__c="x = Mine(\n")
    assert find_container("pkg.Mine", folder=tmp_path).__module__ == "pkg.a"


def test_broken_reexport_alone_is_the_answer(tmp_path: Path) -> None:
    write(tmp_path, pkg__b="from pkg.missing import Mine\n")
    assert "No module named 'pkg.missing'" in error_of("pkg.Mine", tmp_path)


def test_several_matches_are_listed_with_files(tmp_path: Path) -> None:
    write(tmp_path, pkg__a=MINE, pkg__b=MINE)
    message = error_of("pkg.Mine", tmp_path)
    assert "There are 2 classes called 'Mine'" in message
    for module in ("a", "b"):
        assert f"--model=pkg.{module}.Mine ({tmp_path / 'pkg' / module}.py)" in message
    assert find_container("pkg.b.Mine", folder=tmp_path).__module__ == "pkg.b"


def test_a_second_match_that_is_broken_is_listed_too(tmp_path: Path) -> None:
    write(tmp_path, pkg__a=MINE, pkg__b="import missing_library\n" + MINE)
    message = error_of("pkg.Mine", tmp_path)
    assert f"--model=pkg.a.Mine ({tmp_path / 'pkg' / 'a.py'})" in message
    assert "which cannot be imported: ModuleNotFoundError: No module named 'missing_library'" in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("class Mine:\n    pass\n" + FORBIDDEN, "is a class without base classes"),
        ("from torch.nn import Module\nclass Mine(Module):\n    pass\n", "is a class derived from Module"),
        ("def Mine():\n    pass\n", "is a function"),
        ("import json as Mine\n", "is a module"),
        ("Mine = 3\n", "is an object of type int"),
        (IMPORT + "Mine = LightningContainer\n", "is the base class of all containers itself"),
        (MINE.replace("Mine(", "Real(") + "Mine = Real()\n", "is an object of type Real"),
    ],
)
def test_what_is_not_a_container_is_named(text: str, expected: str, tmp_path: Path) -> None:
    write(tmp_path, pkg__a=text)
    message = error_of("pkg.Mine", tmp_path)
    assert f"pkg.a.Mine ({tmp_path / 'pkg' / 'a.py'}) {expected}, not a subclass of LightningContainer" in message
    assert "Derive a class" in message


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("HelloWrld", "Did you mean --model=HelloWorld?"),
        ("helloworld", "Did you mean --model=HelloWorld?"),
        ("Mine", "no container called 'Mine' below 'health_ml.configs'. Did you mean --model=pkg.sub.good.Mine?"),
        ("Nonsense", "Did you mean --model=HelloWorld?"),
        ("pkg.Mne", "no container called 'Mne' below 'pkg'. Did you mean --model=pkg.sub.good.Mine?"),
        ("pkg.sub.good.mine", "no container called 'mine' in 'pkg.sub.good'. Did you mean --model=pkg.sub.good.Mine?"),
        ("pkg.sub.god.Mine", "'pkg.sub' has no 'god'. Did you mean --model=pkg.sub.good.Mine?"),
        ("pkg.sub.good.deeper.Mine", "'pkg.sub.good' has no 'deeper'. Did you mean --model=pkg.sub.good.Mine?"),
        ("pgk.sub.good.Other", "There is no module 'pgk'"),
        ("pgk.sub.good.Other", "Did you mean --model=pkg.sub.good.Mine?"),
        ("", "Parameter 'model' needs to be set to specify which model to run."),
        ("pkg/sub/good.py", "is not a dotted name of a class. Write --model=<package>.<module>.<class>, for example "),
        ("pkg/sub/good.py", "--model=pkg.sub.good.MyContainer."),
        ("pkg..Mine", "for example --model=pkg.Mine."),
        ("-Mine", "is not a dotted name"),
    ],
)
def test_nothing_found_names_what_to_type(model: str, expected: str, tmp_path: Path) -> None:
    write(tmp_path, pkg__sub__good=MINE + FORBIDDEN, pkg__unrelated="class Minx:\n    pass\n" + FORBIDDEN)
    assert expected in error_of(model, tmp_path)
    assert not imported("pkg")


def test_a_folder_of_the_search_path_is_not_part_of_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, src__pkg____init__="", src__pkg__good=MINE)
    assert error_of("Mine", tmp_path).endswith("Did you mean --model=src.pkg.good.Mine?")
    monkeypatch.syspath_prepend(str(tmp_path / "src"))
    assert error_of("Mine", tmp_path).endswith("Did you mean --model=pkg.good.Mine?")
    assert error_of("pkg.Mne", tmp_path).endswith("Did you mean --model=pkg.good.Mine?")


def test_nearest_container_comes_before_a_nearer_class(tmp_path: Path) -> None:
    write(tmp_path, pkg__a=MINE, pkg__b="class Base: pass\nclass Mines: pass\n", pkg__c="class Unique: pass\n")
    assert "Did you mean --model=pkg.a.Mine?" in error_of("pkg.Minee", tmp_path)
    assert "Did you mean --model=pkg.c.Unique?" in error_of("pkg.Uniques", tmp_path)


def test_module_of_the_same_name_from_elsewhere_is_reported(tmp_path: Path) -> None:
    write(tmp_path / "one", twin=MINE)
    write(tmp_path / "two", twin=MINE)
    find_container("twin.Mine", folder=tmp_path / "one")
    sys.path.remove(str(tmp_path / "one"))
    assert f"has loaded is {tmp_path / 'one' / 'twin.py'}" in error_of("twin.Mine", tmp_path / "two")


# --- containers of version 1 of param ---------------------------------------------------------------------------------

PARAM1 = (
    IMPORT
    + """
import param
from typing import List
class Mine(LightningContainer):
    size: int = param.Integer(3)
    names: List[str] = param.List(default=["a"], class_=str)
"""
)


def test_container_of_param_1_loads_with_a_hint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, old=PARAM1)
    before = param.List.__init__
    with caplog.at_level(logging.WARNING):
        container = create_container(find_container("old.Mine", folder=tmp_path))
    assert param.List.__init__ is before
    assert container.names == ["a"]
    assert container.param["names"].item_type is str
    assert container.size == 3
    hints = [record.getMessage() for record in caplog.records if "item_type" in record.getMessage()]
    assert len(hints) == 1
    assert f"{tmp_path / 'old.py'}, line 7" in hints[0]


def test_spelling_of_param_1_is_accepted_only_during_the_import(tmp_path: Path) -> None:
    write(tmp_path, old=PARAM1 + FORBIDDEN)
    before = param.List.__init__
    assert "must not be imported" in error_of("old.Mine", tmp_path)
    assert param.List.__init__ is before
    with pytest.raises(TypeError, match="class_"):
        param.List(class_=str)


# --- creating it ------------------------------------------------------------------------------------------------------


def test_constructor_error_names_the_users_line(tmp_path: Path) -> None:
    text = MINE.replace(
        "    pass\n", "    def __init__(self):\n        super().__init__()\n        self.x = {}['key']\n"
    )
    write(tmp_path, pkg__a=text)
    container_class = find_container("pkg.Mine", folder=tmp_path)
    place = re.escape(f"KeyError: 'key' ({tmp_path / 'pkg' / 'a.py'}, line 5: self.x = {{}}['key'])")
    with pytest.raises(ContainerError, match=rf"Mine cannot be created: {place}\. Mend the constructor\."):
        create_container(container_class)


def test_constructor_that_ends_the_process_is_a_failure(tmp_path: Path) -> None:
    write(tmp_path, pkg__a=MINE.replace("    pass\n", "    def __init__(self):\n        raise SystemExit(0)\n"))
    container_class = find_container("pkg.Mine", folder=tmp_path)
    with pytest.raises(ContainerError, match="Mine cannot be created: SystemExit: 0"):
        create_container(container_class)


def test_constructor_that_needs_arguments(tmp_path: Path) -> None:
    write(tmp_path, pkg__a=MINE.replace("    pass\n", "    def __init__(self, size):\n        super().__init__()\n"))
    container_class = find_container("pkg.Mine", folder=tmp_path)
    with pytest.raises(ContainerError, match=r"missing 1 required positional argument.*give every argument.*default"):
        create_container(container_class)


def test_wrong_default_in_the_constructor_names_the_users_line(tmp_path: Path) -> None:
    text = MINE.replace("    pass\n", "    def __init__(self):\n        super().__init__(max_epochs=0)\n")
    write(tmp_path, pkg__a=text)
    container_class = find_container("pkg.Mine", folder=tmp_path)
    with pytest.raises(ContainerError, match=r"max_epochs.*at least 1.*line 4: super\(\).__init__\(max_epochs=0\)"):
        create_container(container_class)


# --- completion -------------------------------------------------------------------------------------------------------


def test_candidates_are_read_from_the_source(tmp_path: Path) -> None:
    write(
        tmp_path,
        pkg__a=MINE + FORBIDDEN,
        pkg__b="from pkg.a import Mine\nclass Child(Mine): pass\nclass Other: pass\n" + FORBIDDEN,
    )
    assert candidate_models(tmp_path) == ["HelloWorld", "pkg.a.Mine", "pkg.b.Child"]
    assert not imported("pkg")

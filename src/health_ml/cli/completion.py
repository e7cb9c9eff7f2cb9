"""Shell completion: the scripts that ``--completion`` prints, and the candidates that they ask for.

A Tab has to be answered at once, so neither torch nor the model is imported: the parameters of a model are read from
the source text of its class.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import param

from health_ml.cli.command_line import RunnerFlags
from health_ml.cli.describe import choices_of, is_boolean
from health_ml.cli.model_suggestions import candidate_models
from health_ml.cli.tokens import normalized
from health_ml.deep_learning_config import CONTAINER_PARAMETER_GROUPS, parameters_of
from health_ml.experiment_config import ExperimentConfig

_BASH = r"""# Completion for bash: eval "$(himl-runner --completion=bash)"
_himl_runner() {
    local line="${COMP_LINE:0:COMP_POINT}" current
    local -a words
    read -r -a words <<< "$line"
    [[ "$line" == *[[:space:]] ]] && words+=("")
    current="${words[${#words[@]}-1]}"
    local IFS=$'\n'
    COMPREPLY=($(himl-runner --complete_words "${words[@]:1}" 2>/dev/null))
    if [[ "$current" == *=* && "$COMP_WORDBREAKS" == *=* ]]; then
        COMPREPLY=("${COMPREPLY[@]#"${current%%=*}="}")
    fi
    [[ ${#COMPREPLY[@]} -eq 1 && "${COMPREPLY[0]}" == *= ]] && compopt -o nospace
    return 0
}
complete -o default -F _himl_runner himl-runner"""

_ZSH = r"""#compdef himl-runner
# Completion for zsh: eval "$(himl-runner --completion=zsh)"
_himl_runner() {
    local -a found
    found=("${(@f)$(himl-runner --complete_words "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    if [[ -z "${found[1]}" ]]; then
        _files
        return
    fi
    compadd -Q -S '' -- ${(M)found:#*=}
    compadd -Q -- ${found:#*=}
}
compdef _himl_runner himl-runner"""

_FISH = r"""# Completion for fish: himl-runner --completion=fish | source
complete -c himl-runner -a '(himl-runner --complete_words (commandline -opc)[2..-1] (commandline -ct) 2>/dev/null)'"""

_SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def completion_script(shell: str) -> str:
    """Returns the script that teaches a shell to complete the flags of ``himl-runner``."""
    return _SCRIPTS[shell]


def candidates(words: Sequence[str], *, folder: Path) -> list[str]:
    """Returns what the last word can become.

    :param words: The words of the command line after the name of the program, the last of them unfinished.
    :param folder: The current folder, where models are looked for.
    """
    current = words[-1] if words else ""
    previous = words[-2] if len(words) > 1 else ""
    own = _own_parameters(_model_in(words), folder)
    known: dict[str, param.Parameter[Any] | None] = {**own, **_common_parameters()}
    if current.startswith("--") and "=" in current:
        flag, _, start = current.partition("=")
        return [f"{flag}={value}" for value in _values(flag, known, folder=folder) if value.startswith(start)]
    if current.startswith("-"):
        return sorted(flag for flag in _flags(known) if flag.startswith(f"--{normalized(current[2:])}"))
    if previous.startswith("--") and "=" not in previous:
        return [value for value in _values(previous, known, folder=folder) if value.startswith(current)]
    return [] if current else sorted(_flags(known))


def _common_parameters() -> dict[str, param.Parameter[Any]]:
    owners: list[type[param.Parameterized]] = [RunnerFlags, ExperimentConfig, *CONTAINER_PARAMETER_GROUPS]
    return {name: parameter for owner in owners for name, parameter in parameters_of(owner).items()}


def _flags(known: Mapping[str, param.Parameter[Any] | None]) -> Iterator[str]:
    for name, parameter in known.items():
        is_switch = parameter is not None and is_boolean(parameter)
        yield f"--{name}" if is_switch else f"--{name}="


def _values(flag: str, known: Mapping[str, param.Parameter[Any] | None], *, folder: Path) -> list[str]:
    name = normalized(flag.removeprefix("--"))
    if name == "model":
        return candidate_models(folder)
    parameter = known.get(name)
    return choices_of(parameter) if parameter is not None else []


def _model_in(words: Sequence[str]) -> str:
    """Returns the model that the finished words name, or an empty string."""
    for position, word in enumerate(words[:-1]):
        if word.startswith("--model="):
            return word.partition("=")[2]
        if word == "--model":
            return words[position + 1]
    return ""


# --- models, from their source text -----------------------------------------------------------------------------------


def _own_parameters(model: str, folder: Path) -> dict[str, param.Parameter[Any] | None]:
    """Returns the names of the parameters that a container declares; their types are not known."""
    name = model.rpartition(".")[2]
    return {
        target: None for found in _classes(model, folder) if found.name == name for target in _declared_names(found)
    }


def _declared_names(class_: ast.ClassDef) -> Iterator[str]:
    for statement in class_.body:
        value = getattr(statement, "value", None)
        if not isinstance(value, ast.Call):
            continue
        if isinstance(statement, ast.Assign):
            yield from (target.id for target in statement.targets if isinstance(target, ast.Name))
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            yield statement.target.id


def _configs_folder() -> Path:
    return Path(__file__).resolve().parent.parent / "configs"


def _classes(model: str, folder: Path) -> Iterator[ast.ClassDef]:
    """Yields the classes in the files that the name of a model can mean."""
    package, _, name = model.rpartition(".")
    if not name:
        return
    place = folder.joinpath(*package.split(".")) if package else _configs_folder()
    files = [place.with_suffix(".py")] if package and place.with_suffix(".py").is_file() else []
    for file in files or sorted(place.rglob("*.py")):
        yield from _classes_in(file, name)


def _classes_in(file: Path, word: str) -> Iterator[ast.ClassDef]:
    try:
        text = file.read_bytes()
        if word.encode() not in text:
            return
        tree = ast.parse(text)
    except (OSError, SyntaxError, ValueError, RecursionError):
        return  # a file that cannot be read completes to nothing
    yield from (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))

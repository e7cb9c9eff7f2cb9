"""Runs the fuzzer atheris: ``python -m tests.fuzz [SECONDS] [TARGET ...]``, each target in a process of its own.

Needs the extra ``fuzz``. What a target found worth keeping stays in ``.fuzz/TARGET`` and is where the next run starts.
An input that breaks a promise is written to ``.fuzz/`` and ends the run with exit code 1.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CORPUS = Path(".fuzz")
SEEDS = {
    "command_line": [b"--model=HelloWorld\n--max_epochs\n5", b"--config=a.yaml\n-h\n--set=a=b"],
    "source_checkpoint": [b"run_1:folder/a.ckpt", b"https://me:x@host:80/a/b.ckpt?sig=1#f", b"../a.ckpt"],
    "environment": [b"HIML_ATTEMPT=1\nLOCAL_RANK=0\nMASTER_PORT=80\nHIML_RUN_FOLDER=/x\nAZUREML_RUN_ID=a"],
    "sweep": [b"l_rate=loguniform(1e-5,1e-1) seed=0..4..2", b"a=choice('x,y',[1,2]) b=qnormal(0,1,.5)"],
    "small_languages": [b"1h30m", b"bandit(slack_factor=0.1, evaluation_interval=2)"],
    "ignore_file": [b"a/b/c.log\n!*.l[a-z]g\n/a/**/c\n[[:digit:]]\\!\n"],
    "config_file": [b"max_epochs: 3\ntrainer: {a: [1, 2]}\nx: &a !!str b\n<<: {y: *a}\n"],
    "pickled": [b"\x80\x02}q\x00(X\x05\x00\x00\x00epochq\x01K\x01X\x0b\x00\x00\x00global_stepq\x02K\x02u."],
    "record_file": [b'{"time":1.0,"step":1,"epoch":0,"attempt":0,"metrics":{"a":"nan"}}\n{"status":"RUNNING"}\n'],
    "stored_documents": [b'{"version":1,"files":[["a",1,420,"ff"]],"content_hash":"","dimensions":[["a",{}]]}'],
    "secrets": [b"https://u:p@h/?sig=abcdefghijklmnopqrst&token=x Bearer abcdefghijklmnopqrstuvwx"],
}


def main(arguments: list[str]) -> int:
    """Fuzzes each target for some seconds and returns the exit code."""
    from tests.fuzz.targets import TARGETS

    seconds = int(arguments[0]) if arguments else 60
    broken = []
    for name in arguments[1:] or TARGETS:
        folder = CORPUS / name
        folder.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(SEEDS.get(name, [])):
            (folder / f"seed-{number}").write_bytes(seed)
        print(f"--- {name}", flush=True)
        options = [f"-max_total_time={seconds}", "-timeout=10", "-rss_limit_mb=4096", "-verbosity=0"]
        options += ["-print_final_stats=1", f"-artifact_prefix={CORPUS}/{name}-"]
        code = subprocess.run([sys.executable, __file__, "--one", name, *options, str(folder)], check=False).returncode
        if code:
            broken.append(name)
    print(f"Broken: {', '.join(broken)}; see {CORPUS}/" if broken else "Nothing found.")
    return 1 if broken else 0


def fuzz_one(name: str, options: list[str]) -> None:
    """Fuzzes one target until its time is over; does not return."""
    import atheris

    with atheris.instrument_imports(include=["health_ml", "yaml", "pickletools"]):
        from tests.fuzz.targets import TARGETS
    atheris.Setup([sys.argv[0], *options], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
        fuzz_one(sys.argv[2], sys.argv[3:])
    sys.exit(main(sys.argv[1:]))

"""python -m tests.mutants [--only ROOM]: apply each fault of mutants.yaml in a copy, run its tests.

A mutant is killed if a test fails, alive if all pass, stale if the text that it changes does not
stand exactly once in its file, and broken if the tests cannot run at all. The exit code is 1 unless
all are killed. Heavy libraries are imported once; each mutant's tests run in a fork.
"""

import argparse
import importlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests import conftest  # noqa: F401  sets the environment that libraries read when they load

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = ("numpy", "torch", "pytorch_lightning", "transformers", "datasets", "hydra", "pytest")
PASSED, FAILED = 0, 1  # pytest's exit codes


@dataclass(frozen=True)
class Mutant:
    """A fault: where, which text becomes which, and pytest's arguments for what must see it."""

    file: str
    old: str
    new: str
    tests: str

    @property
    def room(self) -> str:
        """The first folder of its file."""
        return self.file.split("/")[0]

    def __str__(self) -> str:
        return f"{self.file}: {' '.join(self.old.split())[:60]!r} -> {self.new[:40]!r}"


def mutants() -> list[Mutant]:
    """Read the list."""
    text = Path(__file__).with_name("mutants.yaml").read_text(encoding="utf-8")
    return [Mutant(**each) for each in yaml.safe_load(text)]


def is_stale(mutant: Mutant, root: Path = ROOT) -> bool:
    """Whether the text that a mutant changes is gone, or stands more than once."""
    path = root / mutant.file
    return not path.exists() or path.read_text(encoding="utf-8").count(mutant.old) != 1


def run_tests(copy: Path, arguments: str, seconds: int) -> int | None:
    """Run tests of a copy in a fork of this process; return pytest's exit code, None: too long."""
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            os.chdir(copy)
            with (copy / "output.txt").open("w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            for name in [each for each in sys.modules if each.split(".")[0] == "tests"]:
                del sys.modules[name]
            sys.path = [str(copy), *(p for p in sys.path if p not in ("", str(ROOT)))]
            pytest = importlib.import_module("pytest")
            fixed = ["-x", "-q", "-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib"]
            fixed += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # of what is imported here
            code = int(pytest.main([*fixed, "--rootdir", str(copy), *shlex.split(arguments)]))
        except BaseException as error:  # noqa: BLE001  a fork must not go on as its parent
            print(repr(error), flush=True)
            code = 3
        os._exit(code)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.killpg(child, 9)
    os.waitpid(child, 0)
    return None


def copied(folder: Path) -> Path:
    """Copy what git knows, as it is here, and return where it is."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    return folder


def verdict(mutant: Mutant, copy: Path, seconds: int) -> str:
    """Apply a mutant, run its tests, and take it back."""
    if is_stale(mutant, copy):
        return "stale"
    path = copy / mutant.file
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        code = run_tests(copy, mutant.tests, seconds)
    finally:
        path.write_text(text, encoding="utf-8")
    return {PASSED: "alive", FAILED: "killed", None: "killed"}.get(code, "broken")


def main() -> int:
    """Print a verdict on each mutant, and the kill rate by room."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--only", help="a room, or a part of a file's name")
    parser.add_argument("--list", action="store_true", help="print them, and which are stale")
    parser.add_argument("--seconds", type=int, default=300, help="for the tests of one mutant")
    asked = parser.parse_args()
    chosen = [m for m in mutants() if asked.only is None or asked.only in m.file]
    if not chosen:
        parser.error(f"--only {asked.only}: no mutant of such a file")
    if asked.list:
        print(*(f"{'stale ' if is_stale(m) else '      '} {m}" for m in chosen), sep="\n")
        return 0
    for name in LIBRARIES:
        importlib.import_module(name)
    found: dict[Mutant, str] = {}
    sys.dont_write_bytecode = True  # two texts of one size and second would share compiled code
    with tempfile.TemporaryDirectory(prefix="frugal-mutants-") as folder:
        copy = copied(Path(folder))
        for mutant in chosen:
            found[mutant] = verdict(mutant, copy, asked.seconds)
            print(f"{found[mutant]:7}{mutant}", flush=True)
            if found[mutant] == "broken":
                print((copy / "output.txt").read_text()[-800:])
    print()
    for room in sorted({mutant.room for mutant in chosen}):
        verdicts = [each for mutant, each in found.items() if mutant.room == room]
        print(f"{room:20}{verdicts.count('killed'):4} of {len(verdicts)}")
    killed = list(found.values()).count("killed")
    print(f"{'all':20}{killed:4} of {len(found)} killed")
    return 0 if killed == len(found) else 1


if __name__ == "__main__":
    sys.exit(main())

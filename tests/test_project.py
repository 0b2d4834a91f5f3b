"""The project is what its front page says: commands exist, rooms are named, layers are checked."""

import ast
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests import structure

ROOT = Path(__file__).resolve().parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
ROOMS = sorted(init.parent.name for init in ROOT.glob("*/__init__.py"))
SINGLE = ("atomic.py", "device.py", "ledger.py", "terminal.py", "weights.py")
# `make` targets: "name: prerequisites ## help", not "name := value" and not a rule for a file.
TARGETS = dict(
    re.findall(r"^([a-z-]+):(?!=)[^#\n]*(?:## (.+)|.*)$", (ROOT / "Makefile").read_text(), re.M)
)


def sources(*names: str) -> Iterator[Path]:
    """Yield the Python files under the given rooms and top-level modules."""
    for name in names:
        yield from [ROOT / name] if name.endswith(".py") else sorted((ROOT / name).rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Return the top-level names that a file imports, wherever in the file it does."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    found = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    found |= {n.module or "" for n in nodes if isinstance(n, ast.ImportFrom) and not n.level}
    return {name.partition(".")[0] for name in found} - sys.stdlib_module_names


def requirements() -> list[Requirement]:
    extras = PROJECT["project"]["optional-dependencies"].values()
    lines = [*PROJECT["project"]["dependencies"], *(line for extra in extras for line in extra)]
    return [Requirement(line) for line in lines]


def test_every_make_target_is_explained_by_make_help() -> None:
    shown = subprocess.run(
        ["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert {"setup", "run", "test", "clean"} <= TARGETS.keys()
    assert [name for name, text in TARGETS.items() if not text or text not in shown] == []


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_says_what_it_is_for(room: str) -> None:
    assert ast.get_docstring(ast.parse((ROOT / room / "__init__.py").read_text()))


def test_every_room_stands_under_the_layer_contract() -> None:
    linter = PROJECT["tool"]["importlinter"]
    contracts = {contract["id"]: contract for contract in linter["contracts"]}
    layered = set(re.findall(r"\w+", " ".join(contracts["layers"]["layers"])))
    rooms = set(ROOMS) - {"tests"}
    assert set(linter["root_packages"]) == rooms
    assert rooms <= layered
    for contract in ("entry", "one-lightning"):
        assert set(contracts[contract]["source_modules"]) == rooms
    pure = set(re.findall(r"\w+", contracts["layers"]["layers"][-1])) & rooms
    assert set(contracts["pure"]["source_modules"]) == pure


def test_the_single_modules_keep_to_their_layer() -> None:
    """import-linter takes packages only: the top and the bottom of the house are checked here."""
    assert imports(ROOT / "ledger.py") == imports(ROOT / "terminal.py") == {"rich"}
    assert imports(ROOT / "atomic.py") == imports(ROOT / "weights.py") == set()
    assert imports(ROOT / "device.py") == {"torch"}
    assert imports(ROOT / "run.py") <= {"hydra", "omegaconf", "runner"}


def test_nothing_of_ours_is_in_site_packages() -> None:
    folders = {Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")}
    ours = [*ROOMS, "atomic", "conf", "device", "docs", "ledger", "run", "terminal", "weights"]
    found = [p for folder in folders for p in folder.iterdir() if p.name.split(".")[0] in ours]
    assert found == []


@pytest.mark.slow
def test_pip_install_of_this_folder_would_install_metadata_only(tmp_path: Path) -> None:
    source = tmp_path / "source"
    top = [ROOT / "pyproject.toml", ROOT / "LICENSE"]
    for path in [*sources(*ROOMS, *SINGLE), *top]:
        copy = source / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    (source / "README.md").write_text("frugal")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(tmp_path)]
    subprocess.run([*pip, str(source)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert names
    assert [name for name in names if ".dist-info/" not in name] == []


def test_everything_imported_is_declared() -> None:
    """A package that only comes along with another one may stay away tomorrow."""
    declared = {canonicalize_name(requirement.name) for requirement in requirements()}
    installed = declared & {canonicalize_name(each.name) for each in metadata.distributions()}
    provided = {
        file.parts[0].removesuffix(".py")
        for name in installed
        for file in metadata.files(name) or []
    }
    ours = {*ROOMS, "atomic", "device", "hydra_plugins", "ledger", "run", "terminal", "weights"}
    undeclared = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in sources(*ROOMS, *SINGLE, "run.py")
        for name in imports(path) - ours - provided
        if canonicalize_name(name) not in declared  # of an extra that is not installed
    }
    assert undeclared == set()


def test_the_pinned_versions_are_allowed_and_complete() -> None:
    pins = {
        canonicalize_name(pin.name): next(iter(pin.specifier)).version
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
        for pin in [Requirement(line)]
    }
    for requirement in requirements():
        assert requirement.specifier, f"{requirement.name} has no bounds"
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)])


# What does not keep to the limits yet. This may only shrink.
TOO_LARGE: set[str] = set()
CIRCLES: set[str] = set()


def test_no_function_or_class_is_too_large() -> None:
    assert structure.too_large(structure.everything()) == TOO_LARGE


def test_no_room_has_a_circle_of_imports() -> None:
    found = {circle for room in structure.ROOMS for circle in structure.circles(room)}
    assert found == CIRCLES


def test_no_logic_is_written_twice() -> None:
    assert structure.repeated(structure.everything()) == set()


def test_what_is_too_large_circular_or_repeated_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In two modules that import each other, one inside a function."""
    monkeypatch.setattr(structure, "ROOT", tmp_path)
    logic = "\n".join(f"    value_{number} = {number}" for number in range(80))
    (tmp_path / "room").mkdir()
    for name, other in (("one", "two"), ("two", "one")):
        text = f"def {name}():\n    from room import {other}\n{logic}\n"
        (tmp_path / "room" / f"{name}.py").write_text(text)
    files = structure.sources("room")
    assert structure.too_large(files) == {"room/one.py: one", "room/two.py: two"}
    assert structure.circles("room") == {"room.one, room.two"}
    assert structure.repeated(files) == {"room/one.py, room/two.py"}
    (tmp_path / "room" / "two.py").write_text(f"def two():\n{logic[:80]}\n")
    assert structure.circles("room") == structure.repeated(files) == set()

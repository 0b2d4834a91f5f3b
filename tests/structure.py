"""How large the house is and how it hangs together: sizes, import circles, repeated logic.

`python -m tests.structure` prints the lines of each room and what is too large, circular or written
twice; tests/test_project.py keeps it so.
"""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROOMS = sorted({init.parent.name for init in ROOT.glob("*/__init__.py")} - {"tests"})
FUNCTION, CLASS, REPEATED = 80, 450, 6  # lines


def sources(room: str) -> list[Path]:
    """Return the Python files of a room."""
    return sorted((ROOT / room).rglob("*.py"))


def everything() -> list[Path]:
    """Return all Python files but those of tests."""
    return [path for room in ROOMS for path in sources(room)] + sorted(ROOT.glob("*.py"))


def name(path: Path) -> str:
    """Return a file's path from the root."""
    return path.relative_to(ROOT).as_posix()


def too_large(files: list[Path]) -> set[str]:
    """Return `file: name` of each function and class that is longer than allowed."""
    found = set()
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            limit = {ast.FunctionDef: FUNCTION, ast.AsyncFunctionDef: FUNCTION, ast.ClassDef: CLASS}
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > limit[type(node)]:
                    found.add(f"{name(path)}: {node.name}")
    return found


def circles(room: str) -> set[str]:
    """Return `module, module` for each group of a room's modules that import each other."""
    modules = {name(path).removesuffix(".py").replace("/", "."): path for path in sources(room)}
    modules = {key.removesuffix(".__init__"): path for key, path in modules.items()}
    graph = {key: _imported(path, modules) - {key} for key, path in modules.items()}
    reached = {key: _reached(key, graph) for key in graph}
    circular = {key for key in graph if key in reached[key]}
    groups = {
        frozenset(b for b in circular if b in reached[a] and a in reached[b]) for a in circular
    }
    return {", ".join(sorted(group)) for group in groups}


def _imported(path: Path, modules: dict[str, Path]) -> set[str]:
    """Modules that a file imports, wherever in the file it does."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (full & modules.keys()) or {node.module}
    return found & modules.keys()


def _reached(start: str, graph: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        if (key := waiting.pop()) not in found:
            found.add(key)
            waiting += graph[key]
    return found


def repeated(files: list[Path]) -> set[str]:
    """Return `file, file` for each run of six lines of logic that stands more than once.

    Signatures, imports, comments, docstrings and lone brackets are no logic.
    """
    places: dict[tuple[str, ...], set[tuple[str, int]]] = defaultdict(set)
    for path in files:
        lines = list(_logic(path))
        for first in range(len(lines) - REPEATED + 1):
            places[tuple(lines[first : first + REPEATED])].add((name(path), first))
    found = set()
    for where in places.values():
        ordered = sorted(where)
        if len(ordered) > 1:
            found.add(", ".join(sorted({file for file, _ in ordered})))
    return found


def _logic(path: Path) -> Iterator[str]:
    """Yield the lines of a file that compute something."""
    text = path.read_text(encoding="utf-8")
    skipped: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant):
            continue
        if isinstance(node, ast.Expr | ast.Import | ast.ImportFrom):
            skipped |= {*range(node.lineno, (node.end_lineno or node.lineno) + 1)}
        elif isinstance(node, ast.FunctionDef):  # a signature is an interface, not logic
            skipped |= {*range(node.lineno, node.body[0].lineno)}
    for number, line in enumerate(text.splitlines(), start=1):
        kept = "".join(line.split("  #")[0].split())
        if number not in skipped and len(kept) > 3 and not kept.startswith(("#", "@")):
            yield kept


def lines(room: str) -> int:
    """Return how many lines of Python a room has."""
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in sources(room))


def main() -> None:
    """Print it all."""
    sizes = {room: lines(room) for room in ROOMS}
    sizes["top level"] = sum(len(p.read_text().splitlines()) for p in ROOT.glob("*.py"))
    for room, count in {**sizes, "all": sum(sizes.values())}.items():
        print(f"{room:20}{count:7,}")
    for title, found in (
        ("too large", too_large(everything())),
        ("circles", {each for room in ROOMS for each in circles(room)}),
        ("repeated", repeated(everything())),
    ):
        print(f"\n{title}:", *sorted(found) or ["nothing"], sep="\n  ")


if __name__ == "__main__":
    main()

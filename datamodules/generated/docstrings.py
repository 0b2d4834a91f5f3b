"""Text found in the Python environment: the sources `docstrings` (English) and `code` (Python).

Every machine that can run the laboratory holds some 16 million characters of English in the
docstrings of the standard library, torch, transformers and numpy. The files are parsed, never
imported. Parsing 120 MB of source is work for every core, so this file, which needs the standard
library only, is also the worker: run as a script it reads file names from stdin and writes their
texts to stdout.
"""

import ast
import contextlib
import gc
import hashlib
import importlib.util
import io
import json
import os
import subprocess
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

PACKAGES = ("torch", "transformers", "numpy")

# Files that keep their prose in string arguments or in a table, not in docstrings.
PROSE_TABLES = frozenset(
    {"topics.py", "_torch_docs.py", "_tensor_docs.py", "_storage_docs.py", "_add_newdocs.py"}
)
SHORTEST_TABLE_STRING = 200  # characters: below that lie signatures and dictionary keys

# Other installations' packages, compiled files, and tests: a fifth of the source, 3 % of the prose.
SKIPPED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "__pycache__", "test", "tests", "testing", "encodings"}
)


def package_folders() -> list[Path]:
    """Return the folders of the standard library and of those of `PACKAGES` that are installed."""
    folders = [Path(sysconfig.get_paths()["stdlib"])]
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            folders.append(Path(spec.origin).parent)
    return folders


def list_modules(folders: list[Path]) -> tuple[list[Path], str]:
    """Return the Python files under `folders` in a fixed order, and a digest of names and sizes.

    Another version of a package has another digest; where the environment lies does not matter.
    """
    files: list[Path] = []
    digest = hashlib.blake2b(sys.version.encode(), digest_size=16)
    for folder in folders:
        for path, size in sorted(_python_files(str(folder))):
            files.append(Path(path))
            digest.update(f"{path.removeprefix(str(folder))} {size}\n".encode())
    return files, digest.hexdigest()


def _python_files(folder: str) -> Iterator[tuple[str, int]]:
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in SKIPPED_FOLDERS]
        for path in (os.path.join(place, name) for name in names if name.endswith(".py")):
            yield path, os.stat(path).st_size


def read_documents(files: list[Path], workers: int) -> list[str]:
    """Return one document per module: its docstrings in order, each only where it first occurs.

    Args:
        files: the modules, in the order of the result; those without prose leave no document.
        workers: how many processes parse at once, at least 1.
    """
    # The largest go first and round-robin, so that the workers end together.
    by_size = sorted(range(len(files)), key=lambda i: -files[i].stat().st_size)
    shares = [by_size[worker::workers] for worker in range(workers)]
    texts: list[list[str]] = [[] for _ in files]
    with ThreadPoolExecutor(workers) as pool:
        for share, found in zip(shares, pool.map(partial(_run_worker, files), shares), strict=True):
            for index, module_texts in zip(share, found, strict=True):
                texts[index] = module_texts

    seen: set[str] = set()
    documents = []
    for module_texts in texts:
        new = [text for text in dict.fromkeys(module_texts) if text not in seen]
        seen.update(new)
        if new:
            documents.append("\n\n".join(new) + "\n")
    return documents


def _run_worker(files: list[Path], share: list[int]) -> list[list[str]]:
    names = json.dumps([str(files[index]) for index in share])
    done = subprocess.run(
        [sys.executable, "-I", __file__], input=names, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout)


def module_texts(file: Path) -> list[str]:
    """Return the docstrings of a module, its classes and functions, or the long strings of a table.

    A file that this Python cannot parse (another version's syntax, a broken encoding) has no texts.
    """
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return []
    if file.name in PROSE_TABLES:
        strings = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
        found = [s.strip() for s in strings if isinstance(s, str)]
        found = [text for text in found if len(text) >= SHORTEST_TABLE_STRING]
    else:
        found = list(_docstrings(tree))
    # A lone surrogate, legal in a Python literal, cannot be written as UTF-8.
    return [text.encode("utf-8", "ignore").decode() for text in found]


def _docstrings(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef,
) -> Iterator[str]:
    docstring = ast.get_docstring(node)
    if docstring:
        yield docstring
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _docstrings(child)


def read_code(file: Path) -> str:
    """Return a module's source without its docstrings, so that `code` holds none of `docstrings`.

    A file that this Python cannot parse has no text.
    """
    try:
        source = file.read_bytes().decode()
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return ""
    lines = io.StringIO(source, newline="").readlines()  # a form feed ends no line of Python
    for node in ast.walk(tree):
        documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
            first, last = node.body[0].lineno, node.body[0].end_lineno or 0
            lines[first - 1 : last] = [""] * (last - first + 1)
    return "".join(lines)


if __name__ == "__main__":
    gc.disable()  # syntax trees are all live objects: collecting among them doubles the time
    warnings.simplefilter("ignore")  # invalid escapes in other people's files
    with contextlib.suppress(BrokenPipeError):  # the parent was killed
        json.dump([module_texts(Path(name)) for name in json.load(sys.stdin)], sys.stdout)

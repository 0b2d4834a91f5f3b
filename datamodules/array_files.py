"""Named arrays of .npz, MATLAB and HDF5 files: one list of them, whatever the container.

Groups, structs and sparse matrices become names with slashes and plain arrays. Arrays of HDF5 files
are read when they are asked for, so that what nobody needs stays on the disk.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SUFFIXES = (".npz", ".mat", ".h5", ".hdf5")
HDF5 = b"\x89HDF\r\n\x1a\n"  # at the beginning, or behind MATLAB's 512 bytes


@dataclass(frozen=True)
class Array:
    """An array of a file; the axes of a MATLAB file's are in MATLAB's order.

    Args:
        path: The file.
        name: With its groups or structs: `train/image`.
        shape: Of the whole.
        kind: NumPy's letter of its type; empty for what is no array (a cell, a pickle, a broken
            link).
        matlab: Whether MATLAB wrote it, so that the order of its axes is known.
        load: Reads it.
    """

    path: Path
    name: str
    shape: tuple[int, ...]
    kind: str
    matlab: bool
    load: Callable[[], NDArray[Any]]

    def __str__(self) -> str:
        return f"{self.path}, {self.name}"

    @property
    def numeric(self) -> bool:
        """Whether it holds real numbers."""
        return self.kind != "" and self.kind in "biuf"

    @property
    def words(self) -> bool:
        """Whether it holds texts."""
        return self.kind != "" and self.kind in "US"

    def read(self) -> NDArray[Any]:
        """Return the values.

        Raises:
            ValueError: The file is damaged here.
        """
        try:
            return self.load()
        except Exception as error:  # parsers of damaged files raise anything
            raise ValueError(f"datamodule.path={self}: cannot be read: {error}") from error


def arrays_of(path: Path, opened: ExitStack) -> list[Array]:
    """List the arrays of a file.

    Args:
        path: Ends with one of `SUFFIXES`; MATLAB 7.3 and HDF5 need h5py.
        opened: Keeps the file open; arrays can be read until it is closed.

    Raises:
        ValueError: The file cannot be read.
        ImportError: A package is not installed.
    """
    with path.open("rb") as stream:
        start = stream.read(512 + len(HDF5))
    if path.suffix.lower() == ".npz":
        found = _npz(path)
    elif path.suffix.lower() == ".mat" and not (start.startswith(HDF5) or start.endswith(HDF5)):
        found = _matlab_5(path)
    else:
        found = _hdf5(path, opened, start.startswith(b"MATLAB"))
    try:
        return list(found)
    except ImportError:
        raise
    except Exception as error:  # parsers of damaged files raise anything
        raise ValueError(f"datamodule.path={path}: cannot be read: {error}") from error


def _npz(path: Path) -> Iterator[Array]:
    # Opened here: NumPy leaves a file open that is no zip file.
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
        for name in file.files:
            try:
                yield _in_memory(path, name, file[name], False)
            except ValueError as error:
                if "allow_pickle" not in str(error):
                    raise
                yield Array(path, name, (), "", False, lambda: np.empty(0))


def _in_memory(path: Path, name: str, values: Any, matlab: bool) -> Array:
    return Array(path, name, values.shape, values.dtype.kind, matlab, lambda: values)


def _matlab_5(path: Path) -> Iterator[Array]:
    from scipy.io import loadmat

    def walk(content: Mapping[str, Any], prefix: str) -> Iterator[Array]:
        for name, value in content.items():
            if hasattr(value, "toarray"):
                kind = value.dtype.kind
                yield Array(path, prefix + name, value.shape, kind, True, value.toarray)
            elif isinstance(value, np.ndarray) and value.dtype.names:
                for place, entry in enumerate(value.flat):
                    number = f"({place + 1})" if value.size > 1 else ""
                    fields = {field: entry[field] for field in value.dtype.names}
                    yield from walk(fields, f"{prefix}{name}{number}/")
            elif isinstance(value, np.ndarray):
                yield _in_memory(path, prefix + name, value, True)

    yield from walk(loadmat(path, squeeze_me=False, struct_as_record=True), "")


def _hdf5(path: Path, opened: ExitStack, by_matlab: bool) -> Iterator[Array]:
    try:
        import h5py
    except ImportError as error:
        raise ImportError(
            f"datamodule.path={path}: needs the package h5py, of the extra hashing: "
            "pip install h5py -c constraints.txt"
        ) from error

    reverse = path.suffix.lower() == ".mat"  # HDF5 stores MATLAB's arrays with their axes reversed

    def walk(group: Any, prefix: str) -> Iterator[Array]:
        for key, node in group.items():
            name = prefix + key
            if key in ("#refs#", "#subsystem#"):
                continue
            if node is None:  # a link to nowhere
                yield Array(path, name, (), "", False, lambda: np.empty(0))
            elif "MATLAB_sparse" in node.attrs:
                shape: tuple[int, ...] = (int(node.attrs["MATLAB_sparse"]), node["jc"].size - 1)
                kind = node["data"].dtype.kind if "data" in node else "f"
                yield Array(path, name, shape, kind, True, partial(_dense, node, shape))
            elif isinstance(node, h5py.Group):
                yield from walk(node, name + "/")
            else:
                matlab = by_matlab or "MATLAB_class" in node.attrs
                shape = node.shape or ()
                kind = node.dtype.kind
                if h5py.check_string_dtype(node.dtype):
                    kind = "U"
                elif node.attrs.get("MATLAB_class") == b"char":
                    kind = ""
                if node.attrs.get("MATLAB_empty"):
                    shape = (0,)
                shape = shape[::-1] if reverse else shape
                content = node.asstr() if kind == "U" else node
                yield Array(path, name, shape, kind, matlab, partial(_whole, content, reverse))

    yield from walk(opened.enter_context(h5py.File(path)), "")


def _whole(dataset: Any, reverse: bool) -> NDArray[Any]:
    values: NDArray[Any] = dataset[()]
    return values.T if reverse else values


def _dense(node: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    """A sparse matrix of MATLAB 7.3: values and rows column by column, and where columns begin."""
    from scipy.sparse import csc_matrix

    if "data" not in node:  # all zero
        return np.zeros(shape)
    matrix = csc_matrix((node["data"][()], node["ir"][()], node["jc"][()]), shape=shape)
    matrix.check_format(full_check=True)
    values: NDArray[Any] = matrix.toarray()
    return values

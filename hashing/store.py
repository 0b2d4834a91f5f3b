"""Codes on disk, one bit a bit: kept, added to, and never changed.

A store's folder holds `codes.bin` (the items' codes end to end, k/8 bytes each, memory-mapped),
`names.txt` (one name a line, where items have names) and `store.json`, which says how many items
are valid, in which parts they came, and what the parts' fingerprints are. Adding items writes
behind the valid bytes and then replaces `store.json` at once: whoever reads meanwhile, or after a
kill, finds the store as it was.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor

from atomic import replacing

CHUNK_ITEMS = 1 << 20  # packed or written at once
FORMAT = 1  # of the folder
LONE = "surrogatepass"  # what Python makes of a file's name that is no UTF-8
Packed = NDArray[np.uint8]


def pack(codes: Tensor | NDArray[Any]) -> Packed:
    """Pack sign codes into bits: bit j of an item is 1 where its code j is 1.

    Args:
        codes: Of -1 and 1, (n, bits), any number type; bits a multiple of 8.

    Returns:
        uint8 (n, bits / 8), lowest bit first.

    Raises:
        ValueError: Bits are not a multiple of 8, or a value is neither -1 nor 1.
    """
    if isinstance(codes, Tensor):
        codes = codes.detach().cpu()
        codes = codes.float().numpy() if codes.is_floating_point() else codes.numpy()
    array = np.asarray(codes)
    if array.dtype.kind not in "if":
        raise ValueError(
            f"codes of {array.dtype} hold no -1: must be signs of -1 and 1, not packed yet"
        )
    if array.ndim != 2:
        raise ValueError(f"codes of shape {array.shape}: must be (items, bits)")
    check_bits(array.shape[1])
    packed = np.empty((len(array), array.shape[1] // 8), dtype=np.uint8)
    for start in range(0, len(array), CHUNK_ITEMS):
        part = array[start : start + CHUNK_ITEMS]
        wrong = (part != 1) & (part != -1)
        if wrong.any():
            row, bit = np.argwhere(wrong)[0]
            raise ValueError(
                f"code of row {start + row} is {part[row, bit]} at bit {bit}: must be -1 or 1; "
                "take the signs first (hashing.networks.binarise)"
            )
        packed[start : start + len(part)] = np.packbits(part > 0, axis=1, bitorder="little")
    return packed


def check_bits(bits: int) -> None:
    """Refuse a code length that does not fill whole bytes.

    Raises:
        ValueError: It is not a multiple of 8, or below 8.
    """
    if bits < 8 or bits % 8:
        near = max(8, 8 * round(bits / 8))
        raise ValueError(f"bits={bits}: must be a multiple of 8, such as 16, 32, 64 or {near}")


@dataclass(frozen=True)
class Part:
    """Items that were added together.

    Args:
        items: How many.
        codes: Fingerprint of their packed codes, BLAKE2b in hexadecimal.
        names: Fingerprint of their lines in `names.txt`; None where items have no names.
    """

    items: int
    codes: str
    names: str | None


class CodeStore:
    """Binary codes of items in the order in which they came, k/8 bytes each.

    Original codes stay as they are (DLCH, arXiv 2304.13357): items are added behind those that are
    there, and a code or a name that is stored once cannot be changed. In memory a store is never
    altered: `append` returns a longer one.

    Args:
        codes: Sign codes (n, bits) of -1 and 1.
        names: Of each item, unique and of one line each; None where rows are enough.

    Raises:
        ValueError: There are no codes or they cannot be packed; names are too few, doubled or of
            several lines.
    """

    def __init__(self, codes: Tensor | NDArray[Any], names: Sequence[str] | None = None) -> None:
        self._codes = pack(codes)
        if not self._codes.size:
            raise ValueError(f"codes of shape {tuple(codes.shape)}: a store needs at least one")
        self._names = None if names is None else _checked_names(names, len(self._codes))
        self.parts: tuple[Part, ...] = (_part(self._codes, self._names),)

    @classmethod
    def _of(cls, codes: Packed, names: list[str] | None, parts: tuple[Part, ...]) -> "CodeStore":
        store = cls.__new__(cls)
        store._codes, store._names, store.parts = codes, names, parts
        return store

    def __len__(self) -> int:
        return len(self._codes)

    @property
    def bits(self) -> int:
        """Length of a code."""
        return 8 * int(self._codes.shape[1])

    @property
    def packed(self) -> Packed:
        """The codes, uint8 (n, bits / 8), not to be written to; a memory map after `load`."""
        view = self._codes.view()
        view.flags.writeable = False
        return view

    @property
    def names(self) -> Sequence[str]:
        """Name of each item, `row 17` where it was given none."""
        return [f"row {i}" for i in range(len(self))] if self._names is None else self._names

    def append(
        self, codes: Tensor | NDArray[Any], names: Sequence[str] | None = None
    ) -> "CodeStore":
        """Return this store with more items behind its own.

        Args:
            codes: Sign codes of the same length.
            names: Of the new items, if and only if this store has names.

        Raises:
            ValueError: The new items do not fit, or one of them is stored already.
        """
        new = CodeStore(codes, names)
        if new.bits != self.bits:
            raise ValueError(f"codes of {new.bits} bits do not fit a store of {self.bits}")
        both: list[str] | None = None
        if self._names is not None and new._names is not None:
            arriving = set(new._names)
            again = next((name for name in self._names if name in arriving), None)
            if again is not None:
                raise ValueError(
                    f"{again!r} is stored already, and what is stored is not changed; leave it "
                    "out, or build a new store"
                )
            both = [*self._names, *new._names]
        elif self._names is not None:
            raise ValueError("the store has names and the new items have none")
        elif new._names is not None:
            raise ValueError("the new items have names and the store has none")
        longer = np.concatenate([self._codes, new._codes])
        return self._of(longer, both, (*self.parts, *new.parts))

    def check_unchanged(self, codes: Tensor | NDArray[Any]) -> None:
        """Compare codes with those of the first items here, bit by bit.

        Args:
            codes: Sign codes of the first items, as many as there are.

        Raises:
            ValueError: A code differs; the message names its item.
        """
        theirs = pack(codes)
        items, width = theirs.shape
        if 8 * width != self.bits or items > len(self):
            raise ValueError(
                f"{items} codes of {8 * width} bits are not the first of {len(self)} of {self.bits}"
            )
        differs = np.any(theirs != self._codes[:items], axis=1)
        if differs.any():
            raise ValueError(
                f"the code of {self.names[int(differs.argmax())]!r} is not the one that is stored: "
                "what is stored is not changed"
            )

    def save(self, folder: str | Path) -> None:
        """Write what the folder does not hold yet: everything, or the parts that were appended.

        Args:
            folder: Empty or absent, or a store that these items continue.

        Raises:
            ValueError: The folder is a file, is damaged, or holds other codes than this store's
                first; it stays as it is.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise ValueError(f"{folder}: a file stands there; choose another folder") from error
        codes, names = folder / "codes.bin", folder / "names.txt"
        with FileLock(folder / "store.lock"):
            bits, saved = _read_record(folder) or (self.bits, ())
            if bits != self.bits or saved != self.parts[: len(saved)]:
                raise ValueError(
                    f"{folder} holds other codes than the first of this store: what is stored "
                    "is not changed; load it and append to it, or choose another folder"
                )
            done = sum(part.items for part in saved)
            _write_behind(codes, done * bits // 8, [self._codes[done:]])
            if self._names is not None:
                end = sum(map(len, _lines(self._names[:done])))
                _write_behind(names, end, _lines(self._names[done:]))
            record = {"format": FORMAT, "bits": bits, "parts": [asdict(p) for p in self.parts]}
            with replacing(folder / "store.json") as stream:
                json.dump(record, stream, indent=1)

    @classmethod
    def load(cls, folder: str | Path, verify: bool = True) -> "CodeStore":
        """Open a saved store; codes stay on disk and are read when they are used.

        Args:
            folder: Written by `save`.
            verify: Read everything once and compare the fingerprints: about 1.5 s a gigabyte.

        Raises:
            ValueError: There is no store, or it is damaged; the message names the file.
        """
        folder = Path(folder)
        found = _read_record(folder)
        if found is None:
            raise ValueError(f"{folder} holds no store of codes (store.json is missing)")
        bits, parts = found
        items, width = sum(part.items for part in parts), bits // 8
        file, lines = folder / "codes.bin", folder / "names.txt"
        _check_size(file, items * width)
        codes = np.memmap(file, np.uint8, mode="r", shape=(items, width))
        names = None if parts[0].names is None else _read_names(lines, items)
        end = 0
        for part in parts if verify else ():
            start, end = end, end + part.items
            there = _part(codes[start:end], names and names[start:end])
            if there.codes != part.codes:
                raise ValueError(f"{file}: codes {start} to {end - 1} were changed: damaged")
            if there.names != part.names:
                raise ValueError(f"{lines}: lines {start + 1} to {end} were changed: damaged")
        return cls._of(codes, names, parts)


# --- files -------------------------------------------------------------------------------------


def _read_record(folder: Path) -> tuple[int, tuple[Part, ...]] | None:
    file = folder / "store.json"
    if not file.exists():
        return None
    try:
        record = json.loads(file.read_bytes())
        if record["format"] != FORMAT:
            raise ValueError(f"format {record['format']!r}: this version reads {FORMAT} alone")
        bits, parts = record["bits"], tuple(Part(**part) for part in record["parts"])
        if type(bits) is not int:
            raise ValueError(f"bits {bits!r}: must be a number")
        check_bits(bits)
        for part in parts:
            _check_part(part, parts[0].names is not None)
        if not parts:
            raise ValueError("it has no parts")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ValueError(f"{file} is not the record of a store of codes: {reason}") from error
    return bits, parts


def _check_part(part: Part, named: bool) -> None:
    if type(part.items) is not int or part.items < 1:
        raise ValueError(f"items {part.items!r}: must be a number of at least 1")
    for key, fingerprint in (("codes", part.codes), *((("names", part.names),) if named else ())):
        if not isinstance(fingerprint, str) or not re.fullmatch(r"[0-9a-f]{32}", fingerprint):
            raise ValueError(f"{key} {fingerprint!r}: must be a fingerprint of 32 digits")
    if not named and part.names is not None:
        raise ValueError(f"names {part.names!r}: the first part has none")


def _read_names(file: Path, items: int) -> list[str]:
    """Read the names of so many items; behind them an unfinished write may have left anything."""
    try:
        *lines, _ = file.read_bytes().split(b"\n", items)
        if len(lines) < items:
            raise ValueError(f"has {len(lines)} lines, not {items}")
        return [line.decode(errors=LONE) for line in lines]
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: {error}: the store is damaged") from error


def _check_size(file: Path, size: int) -> None:
    if (file.stat().st_size if file.is_file() else 0) < size:
        raise ValueError(f"{file} is shorter than store.json says: damaged")


def _write_behind(file: Path, start: int, blocks: Iterable[Any]) -> None:
    """Write at `start`, over what an unfinished write may have left there, and down to the disk."""
    _check_size(file, start)
    with file.open("r+b" if file.exists() else "w+b") as stream:
        stream.seek(start)
        stream.truncate()
        for block in blocks:
            stream.write(_bytes(block))
        stream.flush()
        os.fsync(stream.fileno())


def _part(codes: Packed, names: Sequence[str] | None) -> Part:
    return Part(len(codes), _digest([codes]), None if names is None else _digest(_lines(names)))


def _digest(blocks: Iterable[Any]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for block in blocks:
        digest.update(_bytes(block))
    return digest.hexdigest()


def _bytes(block: Packed | bytes) -> Any:
    return np.ascontiguousarray(block).data if isinstance(block, np.ndarray) else block


def _lines(names: Sequence[str]) -> Iterator[bytes]:
    for first in range(0, len(names), CHUNK_ITEMS):
        text = "".join(f"{name}\n" for name in names[first : first + CHUNK_ITEMS])
        yield text.encode(errors=LONE)


def _checked_names(names: Sequence[str], items: int) -> list[str]:
    checked = list(names)
    if len(checked) != items:
        raise ValueError(f"{len(checked)} names for {items} codes: give one for each")
    seen = set()
    for row, name in enumerate(checked):
        if "\n" in name or "\r" in name:
            raise ValueError(f"name of row {row}, {name!r}: must be of one line")
        if name in seen:
            raise ValueError(f"name of row {row}, {name!r}: another row has it too")
        seen.add(name)
    return checked

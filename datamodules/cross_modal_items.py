"""Items that are known both as a picture and as a text: what every source of them returns.

Below them: the rows that cannot be trained on are refused, or left out and counted.
"""

import itertools
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class CrossModalItems:
    """Pairs of an image and a text, row by row, with their classes.

    Args:
        image: Features, float32 (n, features), or RGB pictures, uint8 (n, 3, height, width).
        text: Features, float32 (n, features).
        labels: Multi-hot, uint8 (n, classes); every row has at least one class.
        classes: The classes' names.
        names: Of each item, for messages and results: a file's path, or `row 17`.
        captions: The text of each item in words, where there are words.
        skipped: How many items of the source were left out, by reason.
        split: Rows of `query`, `retrieval` (and `validation`), where the source publishes a split.
    """

    image: NDArray[Any]
    text: NDArray[np.float32]
    labels: NDArray[np.uint8]
    classes: tuple[str, ...]
    names: tuple[str, ...]
    captions: tuple[str, ...] | None = None
    skipped: Mapping[str, int] = field(default_factory=dict)
    split: Mapping[str, NDArray[np.int64]] | None = None

    def __len__(self) -> int:
        return len(self.labels)


def without_bad_rows(
    items: CrossModalItems,
    bad_rows: str = "refuse",
    problems: Mapping[str, NDArray[np.bool_]] | None = None,
    left_out: Mapping[str, NDArray[np.bool_]] | None = None,
) -> CrossModalItems:
    """Return items of any source, refused or reduced to what can be trained on.

    Args:
        items: As a source gives them.
        bad_rows: `refuse` or `skip`.
        problems: Further bad rows that the source found, by what is wrong.
        left_out: Rows that are left out and counted in any case, by reason.

    Raises:
        ValueError: A row has NaN or no class (with `refuse`), rows do not match, or a class never
            occurs (skipped: its column is left out).
    """
    lengths = {"image": len(items.image), "text": len(items.text), "names": len(items.names)}
    if set(lengths.values()) != {len(items.labels)}:
        counts = ", ".join(f"{key} {count}" for key, count in lengths.items())
        raise ValueError(f"rows do not match: labels {len(items.labels)}, {counts}")
    if len(items.classes) != items.labels.shape[1]:
        raise ValueError(
            "datamodule.class_names: "
            f"{len(items.classes)} names for {items.labels.shape[1]} columns of labels"
        )
    name, times = Counter(items.classes).most_common(1)[0] if items.classes else ("", 0)
    if times > 1:
        raise ValueError(f"datamodule.class_names: {name!r} stands there {times} times")
    problems = {
        **(problems or {}),
        "text that is not finite": _not_finite(items.text),
        "no class": np.asarray(items.labels.sum(1) == 0),
    }
    if items.image.dtype != np.uint8:
        problems["image that is not finite"] = _not_finite(items.image)
    bad = np.zeros(len(items), dtype=bool)
    for rows in (left_out or {}).values():
        bad |= rows
    problems = {words: rows & ~bad for words, rows in problems.items()}
    lost = {words: int(rows.sum()) for words, rows in (left_out or {}).items() if rows.any()}
    skipped = {**items.skipped, **lost}
    for words, rows in problems.items():
        if bad_rows == "refuse" and rows.any():
            first = int(np.argmax(rows))
            raise ValueError(
                f"{items.names[first]}: {words} ({int(rows.sum())} such rows in all); mend the "
                "file, or leave such rows out with datamodule.bad_rows=skip"
            )
        if rows.any():
            skipped[words] = skipped.get(words, 0) + int(rows.sum())
        bad |= rows
    present: NDArray[np.bool_] = np.any(items.labels[~bad], axis=0)
    if bad_rows == "refuse" and not present.all():
        absent = [name for name, there in zip(items.classes, present, strict=True) if not there]
        source = re.sub(r", (\w+ )?row \d+$", "", items.names[0])
        raise ValueError(
            f"class {', '.join(absent)}: occurs in no item of {source}; drop "
            "the column, or leave it out with datamodule.bad_rows=skip"
        )
    if bad.any() or not present.all():
        if not present.all():
            skipped["class without items"] = int((~present).sum())
        items = _select(items, ~bad, present, skipped)
    return items


def _select(
    items: CrossModalItems,
    kept: NDArray[np.bool_],
    classes: NDArray[np.bool_],
    skipped: Mapping[str, int],
) -> CrossModalItems:
    count = int(kept.sum())
    # A slice where only the end is left out: that copies nothing.
    rows: Any = slice(count) if kept[:count].all() else np.flatnonzero(kept)
    place = np.cumsum(kept) - 1
    split = items.split and {part: place[r[kept[r]]] for part, r in items.split.items()}
    return CrossModalItems(
        image=items.image[rows],
        text=items.text[rows],
        labels=np.ascontiguousarray(items.labels[rows][:, classes]),
        classes=tuple(c for c, there in zip(items.classes, classes, strict=True) if there),
        names=tuple(itertools.compress(items.names, kept)),
        captions=items.captions and tuple(itertools.compress(items.captions, kept)),
        skipped=skipped,
        split=split,
    )


def _not_finite(values: NDArray[Any]) -> NDArray[np.bool_]:
    return ~np.isfinite(values.reshape(len(values), -1)).all(1)

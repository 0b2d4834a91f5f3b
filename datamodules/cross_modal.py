"""Image-text pairs whose classes arrive in sessions: who is original, who is new, who is a query.

From top to bottom: the classes of each session, and from them the session of each item; the split
into queries, validation and the rest; a part of the data that is read by row, in one place only;
the datamodule, whose training batches are those of the module's plan.
"""

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, cast

import numpy as np
import pytorch_lightning as pl
import torch
from annotated_types import MinLen
from numpy.typing import NDArray
from torch.utils.data import Dataset

from datamodules.batches import Batch, BatchLoader, Rows, batches_trained, in_order
from datamodules.cross_modal_items import CrossModalItems, without_bad_rows
from datamodules.cross_modal_sources import Axes, Fields, Options, Source, check, paths_of
from datamodules.feature_files import read_features
from datamodules.pictures import read_picture
from datamodules.settings import OpenShare, Seed, Whole, Workers, arguments

READ_AT_ONCE = 512  # items in a batch that is only encoded
SHOWN_SIDE = 256  # pixels of a file's picture in a grid, at most


def session_of_items(
    labels: NDArray[np.uint8], order: Rows, classes_per_session: Sequence[int]
) -> Rows:
    """Return for each item the session in which it arrives.

    An item is original when it has none of the new classes; else it arrives with the last of its
    classes.

    Args:
        labels: Multi-hot, (n, classes), at least one class in a row.
        order: The classes in the order in which they arrive.
        classes_per_session: How many arrive in each session; their sum is the number of classes.

    Raises:
        ValueError: The sum differs.
    """
    if sum(classes_per_session) != len(order):
        words = " + ".join(map(str, classes_per_session))
        raise ValueError(
            f"datamodule.classes_per_session={list(classes_per_session)}: {words} is "
            f"{sum(classes_per_session)}, and the data has {len(order)} classes"
        )
    session = np.empty(len(order), dtype=np.int64)
    session[order] = np.repeat(np.arange(len(classes_per_session)), classes_per_session)
    return np.where(labels > 0, session, -1).max(1)


def split(
    items: CrossModalItems, queries: int | float, validation: float, seed: int
) -> dict[str, Rows]:
    """Return the rows of `query`, `validation` and `retrieval` items, each item in one of them.

    Queries are the published ones where there is a published split, else drawn: so many, or such a
    share. Validation items are a share of the rest. What remains is the retrieval part: the items
    that are learned from and searched.

    Raises:
        ValueError: A part would be empty.
    """
    draw = np.random.default_rng([seed, 7])
    published = items.split or {}
    if published:
        query, rest = published["query"], draw.permutation(published["retrieval"])
    else:
        order = draw.permutation(len(items))
        count = queries if isinstance(queries, int) else round(queries * len(items))
        query, rest = order[:count], order[count:]
    if "validation" in published:
        parts = {"query": query, "validation": published["validation"], "retrieval": rest}
    else:
        held_out = round(validation * len(rest))
        parts = {"query": query, "validation": rest[:held_out], "retrieval": rest[held_out:]}
    for part, rows in parts.items():
        if not len(rows):
            raise ValueError(
                f"the {part} part of {len(items)} items is empty: change datamodule.queries or "
                "datamodule.validation"
            )
    return {part: np.sort(rows) for part, rows in parts.items()}


class Pairs(Dataset[Batch]):
    """A part of the items; `__getitem__` is the one place where their images and texts are read.

    Moments are mean and standard deviation of `image` and `text`, where these are standardised.
    """

    def __init__(
        self,
        items: CrossModalItems,
        rows: Rows,
        moments: dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]],
    ) -> None:
        self.items, self.rows, self.moments = items, rows, moments
        self.labels = torch.from_numpy(items.labels[rows])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: Rows) -> Batch:
        """Return some pairs: `rows` (numbers within this part), `image`, `text` and `labels`."""
        rows, numbers = self.rows[indices], torch.from_numpy(np.asarray(indices, dtype=np.int64))
        return {
            "rows": numbers,
            "image": torch.from_numpy(self.standardised("image", self.items.image[rows])),
            "text": torch.from_numpy(self.standardised("text", self.items.text[rows])),
            "labels": self.labels[numbers],
        }

    def standardised(self, part: str, values: NDArray[Any]) -> NDArray[Any]:
        """Images or texts as the networks read them."""
        if part not in self.moments:
            return values
        mean, deviation = self.moments[part]
        return (values - mean) / deviation


class CrossModalDataModule(pl.LightningDataModule):
    """Image-text pairs with classes that arrive in sessions, for lifelong hashing.

    A batch holds `rows`, `image` ((B, features) or uint8 (B, 3, h, w)), `text` (B, features) and
    `labels` (B, classes). Training batches are those of the module's plan. The validation part is
    carved out of the training part; the queries are read by `test` alone.

    Args:
        source: `features` (files), `generated` (pictures rendered here) or `folder` (raw pictures
            and texts, encoded by pretrained networks).
        path: For features: a file (.npz, .mat, .h5) or a list of files; for folder: the folder.
        fields: For features: the names of `image`, `text` and `labels` in the file; None finds the
            names that the field uses.
        axes: For features: how axes lie, see `read_features`; None finds it from all shapes.
        class_names: For features: the classes' names.
        options: For generated and folder: settings of the source.
        classes_per_session: How many classes are original, and how many arrive in each increment.
        class_seed: Draws which classes are original; None takes them in the order of their columns.
        queries: Queries where the source publishes no split: a number, or a share below 1.
        validation: Share of the training part that is held out for validation.
        standardise: Of `image` and `text`, those that are brought to mean 0 and deviation 1, by the
            original items' moments.
        bad_rows: `refuse` items with NaN, without a class or equal to a query of a published split,
            and classes without items; or `skip` and count them.
        batch_size: Items in a batch.
        split_seed: Draws queries and validation items.
        seed: Orders the batches.
        num_workers: Processes that read ahead.
        cache_dir: Where encoded features and generated pictures are kept.

    Raises:
        ValueError: Settings that cannot work; names the config key. So does `setup`, where the data
            cannot be used.
    """

    serves: ClassVar[str] = "pairs"
    check: ClassVar[str] = "datamodules.cross_modal_sources:check"
    # Keys that are read only where another one has one of some values.
    read_where: ClassVar[dict[str, tuple[str, Any]]] = {
        "path": ("source", ("features", "folder")),
        "cache_dir": ("source", ("generated", "folder")),
    }

    def __init__(
        self,
        source: Source = "features",
        path: str | list[str] | None = None,
        fields: Fields | None = None,
        axes: Axes | None = None,
        class_names: list[str] | None = None,
        options: Options | None = None,
        classes_per_session: Annotated[list[Whole], MinLen(1)] | None = None,
        class_seed: Seed | None = None,
        queries: Whole | OpenShare = 0.1,
        validation: OpenShare = 0.1,
        standardise: list[Literal["image", "text"]] | None = None,
        bad_rows: Literal["refuse", "skip"] = "refuse",
        batch_size: Whole = 128,
        split_seed: Seed = 0,
        seed: Seed = 0,
        num_workers: Workers = 0,
        cache_dir: str = ".cache",
    ) -> None:
        classes_per_session = [8, 2] if classes_per_session is None else classes_per_session
        standardise = ["image", "text"] if standardise is None else standardise
        self.settings = arguments(CrossModalDataModule, locals())
        check(self.settings)
        super().__init__()
        self.batch_size, self.seed, self.num_workers = batch_size, seed, num_workers
        self.items: CrossModalItems | None = None
        self._training: BatchLoader | None = None

    def setup(self, stage: str) -> None:
        """Read the items once, and split them; each stage needs the same."""
        if self.items is not None:
            return
        settings = self.settings
        items = self._read()
        order, seed = np.arange(len(items.classes)), settings["class_seed"]
        order = order if seed is None else np.random.default_rng(seed).permutation(order)
        sessions = session_of_items(items.labels, order, settings["classes_per_session"])
        parts = split(items, settings["queries"], settings["validation"], settings["split_seed"])
        self.groups = {part: sessions[rows] for part, rows in parts.items()}
        ends = np.cumsum(settings["classes_per_session"])
        for part, part_groups in self.groups.items():
            for number, end in enumerate(ends):
                if not (part_groups == number).any():
                    arriving = order[end - settings["classes_per_session"][number] : end]
                    names = ", ".join(items.classes[column] for column in arriving)
                    raise ValueError(
                        f"datamodule: the {part} part has no item of session {number} (classes "
                        f"{names}); change class_seed, split_seed or classes_per_session"
                    )
        original = parts["retrieval"][self.groups["retrieval"] == 0]
        moments = {}
        for name in settings["standardise"]:
            values = getattr(items, name)
            if values.dtype == np.uint8:
                continue  # pictures: the network scales them
            known = values[original].astype(np.float32)
            # The mean of equal numbers is rounded, and then their deviation is not 0.
            varies = (known != known[0]).any(0)
            mean, deviation = known.mean(0), known.std(0)
            moments[name] = np.where(varies, mean, known[0]), np.where(varies, deviation, 1)
        self.parts = {part: Pairs(items, rows, moments) for part, rows in parts.items()}
        self.classes, self.order = items.classes, order
        self.image_shape: tuple[int, ...] = items.image.shape[1:]
        self.text_features: int = items.text.shape[1]
        self.items = items

    def _read(self) -> CrossModalItems:
        settings = self.settings
        options = settings["options"] or {}
        if settings["source"] == "features":
            return read_features(
                paths_of(settings["path"]),
                settings["fields"],
                settings["class_names"],
                settings["bad_rows"],
                settings["axes"],
            )
        if settings["source"] == "generated":
            from datamodules.generated.pictures import render

            items = render(**options, cache_dir=settings["cache_dir"])
        else:
            from datamodules.picture_folders import encode_folder

            items = encode_folder(settings["path"], cache_dir=settings["cache_dir"], **options)
        return without_bad_rows(items, settings["bad_rows"])

    def encode_query(self, query: str) -> tuple[str, torch.Tensor]:
        """Turn a query into what a network reads, after `setup`.

        Args:
            query: Words, or a picture's path, where the source has an encoder for them; or
                `image:17` or `text:17`, that side of the 17th item of the query part.

        Returns:
            `image` or `text`, and one row.

        Raises:
            ValueError: The query cannot be encoded.
        """
        settings, options = self.settings, self.settings["options"] or {}
        modality, _, number = query.partition(":")
        if modality in ("image", "text") and number.isdecimal():
            if int(number) >= len(self.parts["query"]):
                raise ValueError(f"query={query}: there are {len(self.parts['query'])} queries")
            return modality, self.parts["query"][np.array([int(number)])][modality]
        if settings["source"] == "features":
            raise ValueError(
                f"query={query}: feature files come without an encoder for words and pictures; "
                "give image:NUMBER or text:NUMBER, an item of the query part"
            )
        values: NDArray[Any]
        if settings["source"] == "generated":
            from datamodules.generated import pictures

            words = options.get("label_words_in_captions", False)
            modality, values = pictures.encode_query(query, self.image_shape[-1], words)
        else:
            from datamodules import picture_folders

            names = ("image_encoder", "text_encoder")
            chosen = {name: options[name] for name in names if name in options}
            modality, values = picture_folders.encode_query(query, **chosen)
        return modality, torch.from_numpy(self.parts["query"].standardised(modality, values))

    def picture(self, row: int) -> NDArray[np.uint8] | None:
        """The RGB picture of one of `items`, where there are pictures; a file's, made small."""
        assert self.items is not None, "setup comes first"
        if self.items.image.ndim == 4:
            return self.items.image[row]
        if self.settings["source"] == "folder":
            picture = read_picture(self.items.names[row])
            picture.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
            return np.asarray(picture)
        return None

    @functools.cached_property
    def fingerprint(self) -> str:
        """After `setup`, a digest of the items, their labels and parts, wherever they lie.

        Of features it is over their values, of pictures with captions over names and captions.
        """
        assert self.items is not None, "setup comes first"
        digest = hashlib.blake2b(digest_size=16)
        digest.update(repr((self.classes, self.image_shape, self.text_features)).encode())
        for part, pairs in self.parts.items():
            digest.update(part.encode())
            digest.update(pairs.rows.tobytes())
            digest.update(self.groups[part].tobytes())
        digest.update(self.items.labels.tobytes())
        if self.items.captions is None:
            for values in (self.items.image, self.items.text):
                digest.update(np.ascontiguousarray(values).data)
        else:  # what encoders make of a picture differs in the last digits between machines
            names = (Path(name).name for name in self.items.names)
            words = "\n".join([*names, *self.items.captions])
            digest.update(words.encode(errors="surrogatepass"))  # of names that are no UTF-8
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """Return, after `setup`, what the data is and how large, for reports and run.json."""
        assert self.items is not None, "setup comes first"
        counts = np.cumsum(self.settings["classes_per_session"])
        return {
            "source": self.settings["source"],
            "items": len(self.items),
            "skipped": dict(self.items.skipped),
            "classes_by_session": [
                [self.classes[column] for column in part]
                for part in np.split(self.order, counts[:-1])
            ],
            "items_by_session": {
                part: np.bincount(groups).tolist() for part, groups in self.groups.items()
            },
        }

    def train_dataloader(self) -> BatchLoader:
        """Return the loader of the plan's batches, standing where the run stopped."""
        assert self.trainer is not None, "the trainer asks for it"
        plan = cast(Any, self.trainer.lightning_module).plan  # a `hashing.sessions.SessionPlan`
        part, position = self.parts["retrieval"], batches_trained(self.trainer)
        order, workers = {"items": len(part)}, self.num_workers
        self._training = BatchLoader(part, plan.batch, plan.steps, workers, position, order)
        return self._training

    @property
    def seconds(self) -> float:
        """Time that training has spent waiting for its batches."""
        return 0.0 if self._training is None else self._training.seconds

    def val_dataloader(self) -> BatchLoader:
        """Return the loader of the validation part."""
        return self.in_order("validation")

    def test_dataloader(self) -> BatchLoader:
        """Return the loader of the queries."""
        return self.in_order("query")

    def in_order(self, part: str, rows: Rows | None = None) -> BatchLoader:
        """Return a loader of a part's items, or of some of its rows, in their order."""
        pairs = self.parts[part]
        return in_order(pairs, range(len(pairs)) if rows is None else rows, READ_AT_ONCE)

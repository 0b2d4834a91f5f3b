"""Questions about databases, one at a time or in dialogues, for rewriters and parsers.

From top to bottom: the three parts of a data set, made from files or generated; what of them is
used, with everything that is left out counted; the datamodule, whose batches are lists of examples.
"""

from __future__ import annotations

import hashlib
import json
import random
import sqlite3
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge
from torch.utils.data import Dataset

from datamodules.batches import BatchLoader, EpochLoader, OrderedDataModule, Rows, in_order
from datamodules.cache import build_once
from datamodules.dialogue_sources import check, paths_of, read_dialogues
from datamodules.generated.dialogues import converse
from datamodules.generated.domains import World, databases_for_testing, make_worlds
from datamodules.settings import OpenShare, Seed, Share, Whole, arguments
from text2sql.dialogue import Example, Interaction, Turn, examples
from text2sql.prediction_files import find_databases
from text2sql.schema import Schema, read_tables

Part = Literal["train", "val", "test"]
PARTS: tuple[Part, ...] = ("train", "val", "test")
# The layouts whose turns are not of the dialogues that a parser is to be used on.
OUT_OF_DOMAIN = ("Spider", "CANARD")


@dataclass(frozen=True)
class Spoken:
    """An interaction, and whether it is one of the dialogues that a parser is to be used on.

    Args:
        interaction: The turns.
        in_domain: False for single questions (Spider) and for dialogues about something else than a
            database (CANARD): their annotation is there already, wherever a parser is to be used.
        rewritten: Whether it is one later turn of a dialogue, in the words of its rewrite.
    """

    interaction: Interaction
    in_domain: bool
    rewritten: bool = False

    @property
    def group(self) -> str:
        """What must not be on two sides of a split: the database, or the article (CANARD)."""
        return self.interaction.db_id or self.interaction.turns[0].utterance


# --- where dialogues come from ---------------------------------------------------------------


def _read(files: Sequence[Path], key: str, dropped: Counter[str]) -> list[Spoken]:
    """Read files in their order; what the readers leave out is counted."""
    found: list[Spoken] = []
    for file in files:
        try:
            dialogues = read_dialogues(file)
        except ValueError as error:
            raise ValueError(f"datamodule.{key}: {error}") from error
        in_domain = dialogues.layout not in OUT_OF_DOMAIN
        found += [Spoken(interaction, in_domain) for interaction in dialogues.interactions]
        for reason, count in dialogues.skipped.items():
            dropped[f"{file.name}: {reason}"] += count
    return found


def _without_leaks(
    train: Sequence[Spoken], test: Sequence[Spoken], leaks: str, dropped: Counter[str]
) -> list[Spoken]:
    """Keep test databases out of training."""
    tested = {spoken.interaction.db_id for spoken in test} - {""}
    clean = [spoken for spoken in train if spoken.interaction.db_id not in tested]
    count = len(train) - len(clean)
    if count and leaks == "error":
        shared = sorted({s.interaction.db_id for s in train} & tested)
        raise ValueError(
            f"datamodule.train: {count} interactions are about databases of datamodule.test "
            f"({', '.join(shared[:5])}{', ...' if len(shared) > 5 else ''}): what is tested would "
            "be known from training. Give other files, or leave these interactions out: "
            "datamodule.leaks=drop"
        )
    if count:
        dropped["train: interactions about databases of the test part"] += count
    return clean


def _held_out(train: Sequence[Spoken], wanted: int | float, seed: int) -> set[str]:
    """Draw the databases (of CANARD: articles) of the validation part."""
    groups = sorted({spoken.group for spoken in train})
    count = wanted if isinstance(wanted, int) else max(1, round(wanted * len(groups)))
    if count >= len(groups):
        raise ValueError(
            f"datamodule.val_databases={wanted}: there are {len(groups)} databases in the training "
            "files, and at least one must be left to train on"
        )
    return set(random.Random(f"{seed} validation").sample(groups, count))


def _write_databases(worlds: Mapping[str, World], cache_dir: Path) -> dict[str, Path]:
    """Write DB/DB.sqlite into a folder of the cache, unless the same is there already."""
    scripts = {db_id: world.script() for db_id, world in worlds.items()}
    digest = hashlib.blake2b(json.dumps(scripts).encode(), digest_size=8).hexdigest()
    folder = cache_dir / f"generated_dialogues-{digest}"

    def build(unfinished: Path) -> dict[str, Any]:
        for db_id, script in scripts.items():
            (unfinished / db_id).mkdir()
            with closing(sqlite3.connect(unfinished / db_id / f"{db_id}.sqlite")) as database:
                database.executescript(f"BEGIN; {script} COMMIT;")
        return {"databases": list(scripts)}

    build_once(folder, build)
    return {db_id: folder / db_id / f"{db_id}.sqlite" for db_id in scripts}


def _generate(
    settings: Mapping[str, Any], worlds: Mapping[str, World], schemas: Mapping[str, Schema]
) -> tuple[list[Spoken], list[Spoken]]:
    """Make training dialogues, single questions about the same databases, and test dialogues."""
    seed = settings["split_seed"]
    tested = databases_for_testing()
    trained = [db_id for db_id in worlds if db_id not in tested]

    def talk(db_ids: Sequence[str], total: int, draws: int) -> list[Interaction]:
        per_database = -(-total // len(db_ids))
        return [
            conversation.interaction
            for db_id in db_ids
            for conversation in converse(worlds[db_id], schemas[db_id], per_database, draws)
        ][:total]

    train = [Spoken(talked, True) for talked in talk(trained, settings["dialogues"], seed)]
    for talked in talk(trained, settings["questions"], seed + 1):
        last = talked.turns[-1]
        assert last.rewrite is not None
        question = Interaction(talked.db_id, (Turn(last.rewrite, last.query),))
        train.append(Spoken(question, False))
    test = talk(tested, settings["test_dialogues"], seed)
    return train, [Spoken(talked, True) for talked in test]


# --- what of them is used --------------------------------------------------------------------


def _keep_annotation(
    train: Sequence[Spoken], share: float, rewrites: float, seed: int
) -> list[Spoken]:
    """Take the annotation from in-domain turns, but for a share of those that have one.

    A share of these keeps its rewrite, the others their SQL alone. The turns that keep something at
    a lower share keep it at every higher one, so that a curve over shares compares growing sets.
    """
    places = [
        (number, index)
        for number, spoken in enumerate(train)
        for index, turn in enumerate(spoken.interaction.turns)
        if spoken.in_domain and (turn.query is not None or turn.rewrite is not None)
    ]
    random.Random(f"{seed} annotation").shuffle(places)
    count = round(share * len(places))
    bare, changed = set(places[count:]), set(places[round(rewrites * count) :])
    kept = []
    for number, spoken in enumerate(train):
        turns = tuple(
            Turn(turn.utterance, None if (number, index) in bare else turn.query)
            if (number, index) in changed
            else turn
            for index, turn in enumerate(spoken.interaction.turns)
        )
        kept.append(replace(spoken, interaction=replace(spoken.interaction, turns=turns)))
    return kept


def _as_single_turns(part: Sequence[Spoken], name: Part, dropped: Counter[str]) -> list[Spoken]:
    """Make a question of its own of every turn, in the words of its rewrite."""
    found = []
    for spoken in part:
        for index, turn in enumerate(spoken.interaction.turns):
            first = not index and bool(spoken.interaction.db_id)
            words = turn.rewrite or (turn.utterance if first else None)
            if words is None:
                dropped[f"{name}: turns without a rewrite, which cannot be single questions"] += 1
                continue
            alone = Interaction(spoken.interaction.db_id, (Turn(words, turn.query, words),))
            found.append(Spoken(alone, spoken.in_domain, rewritten=index > 0))
    return found


_KEEPS: dict[str, Callable[[Example, Interaction], bool]] = {
    "all": lambda example, interaction: True,
    "first": lambda example, interaction: example.turn == 0,
    "last": lambda example, interaction: example.turn == len(interaction.turns) - 1,
    "query": lambda example, interaction: example.query is not None,
    "rewrite": lambda example, interaction: example.rewrite is not None,
}


class Examples(Dataset[list[Example]]):
    """Examples that are read by several numbers at once."""

    def __init__(self, all_of_them: list[Example]) -> None:
        self.all = all_of_them

    def __len__(self) -> int:
        return len(self.all)

    def __getitem__(self, numbers: Rows) -> list[Example]:
        """Return the examples of these numbers."""
        return [self.all[number] for number in numbers]


# --- the datamodule --------------------------------------------------------------------------


class MultiTurnSql(OrderedDataModule):
    """Turns of dialogues about databases; a batch is a list of `text2sql.dialogue.Example`.

    Nothing is tokenised: what a model reads of a turn is the model's business. Databases are never
    shared between the three parts. Training batches are a function of (seed, number of the batch)
    and resume within an epoch; the other parts keep the order of their files.

    Args:
        source: "files", or "generated": dialogues about twelve small databases, made here.
        root: For files: the folder that `train`, `test`, `tables` and `databases` lie in.
        train: For files: files of dialogues or questions under `root`, or absolute; see LAYOUTS in
            datamodules/dialogue_sources.py.
        test: For files: likewise, those that are only tested on.
        tables: For files: Spider's tables.json, or several such files; None reads the schemas from
            the SQLite files.
        databases: For files: folders with DB/DB.sqlite; None: no cell values, no execution. A
            database that is in none of them is counted and goes without.
        val_databases: How many of the training databases (a number, or a share below 1) are held
            out for validation. Of conversations about no database (CANARD) articles are held out.
        keep: Turns that become examples, in all parts: "all", "first" or "last" of their dialogue,
            or those that have a "query" or a "rewrite". The others stay in the history.
        annotated: From 0 to 1: the share of the annotated in-domain training turns that keep their
            annotation (query and rewrite). Single questions (Spider) and CANARD keep theirs.
        rewrites: From 0 to 1: the share of those turns that keep their rewrite beside the query.
        as_single_turn: Make a single question of every turn that has a rewrite, in all parts.
        leaks: Training interactions about a database of the test files: "error", or "drop" them.
        limit: Use only so many interactions of each part, drawn by `split_seed`; None for all.
        dialogues: For generated: dialogues for training and validation.
        test_dialogues: For generated: dialogues for testing, about three databases of their own.
        questions: For generated: single questions about the training databases, out of domain as
            Spider's are for SParC.
        batch_size: Turns in a batch on each device.
        seed: Orders the training batches.
        split_seed: Draws what is generated, held out, annotated and limited: the same for runs that
            are compared over several seeds.
        cache_dir: For generated: where the SQLite files are kept.

    Raises:
        ValueError: Settings that cannot work; names the config key. So does `setup`, where a file
            cannot be read or a part is too small.
    """

    serves: ClassVar[str] = "turns"
    check: ClassVar[str] = "datamodules.dialogue_sources:check"
    # Keys that are read only where another one has one of some values.
    read_where: ClassVar[dict[str, tuple[str, Any]]] = {
        "dialogues": ("source", ("generated",)), "test_dialogues": ("source", ("generated",)),
        "questions": ("source", ("generated",)), "cache_dir": ("source", ("generated",)),
        "leaks": ("source", ("files",)),
    }  # fmt: skip

    def __init__(
        self,
        source: Literal["files", "generated"] = "generated",
        root: str | None = None,
        train: list[str] | None = None,
        test: list[str] | None = None,
        tables: str | list[str] | None = None,
        databases: list[str] | None = None,
        val_databases: Whole | OpenShare = 0.1,
        keep: Literal["all", "first", "last", "query", "rewrite"] = "all",
        annotated: Share = 1.0,
        rewrites: Share = 1.0,
        as_single_turn: bool = False,
        leaks: Literal["error", "drop"] = "error",
        limit: Whole | None = None,
        dialogues: Annotated[int, Ge(10)] = 2000,
        test_dialogues: Whole = 300,
        questions: Annotated[int, Ge(0)] = 0,
        batch_size: Whole = 16,
        seed: Seed = 0,
        split_seed: Seed = 0,
        cache_dir: str = ".cache",
    ) -> None:
        self.settings = arguments(MultiTurnSql, locals())
        check(self.settings)
        super().__init__(batch_size, seed)
        self.schemas: dict[str, Schema] = {}
        self.databases: dict[str, Path] = {}
        self.dropped: Counter[str] = Counter()
        """What was left out, by part or file and reason; known after `setup`."""
        self.annotation: dict[str, int] = {}
        """Annotated in-domain turns that training uses; known after `setup`."""
        self._parts: dict[Part, Examples] = {}

    def setup(self, stage: str) -> None:
        """Read or make the dialogues once, and part them; each stage needs the same."""
        if self._parts:
            return
        settings, dropped = self.settings, self.dropped
        if settings["source"] == "generated":
            worlds = make_worlds(settings["split_seed"])
            self.databases = _write_databases(worlds, Path(settings["cache_dir"]))
            self.schemas = {k: Schema.from_sqlite(file) for k, file in self.databases.items()}
            train, test = _generate(settings, worlds, self.schemas)
        else:
            paths = paths_of(settings)
            train = _read(paths["train"], "train", dropped)
            test = _read(paths["test"], "test", dropped)
            train = _without_leaks(train, test, settings["leaks"], dropped)
            self._find(paths, {s.interaction.db_id for s in (*train, *test)} - {""})
        held_out = _held_out(train, settings["val_databases"], settings["split_seed"])
        parts: dict[Part, list[Spoken]] = {
            "train": [spoken for spoken in train if spoken.group not in held_out],
            "val": [spoken for spoken in train if spoken.group in held_out],
            "test": test,
        }
        self.held_out = sorted(held_out)
        parts = {name: self._limited(name, part) for name, part in parts.items()}
        parts["train"] = _keep_annotation(
            parts["train"], settings["annotated"], settings["rewrites"], settings["split_seed"]
        )
        if settings["as_single_turn"]:
            parts = {name: _as_single_turns(part, name, dropped) for name, part in parts.items()}
        self._parts = {name: self._examples(name, part) for name, part in parts.items()}
        self._count(parts)
        _, world_size = self.place
        for name in PARTS:
            needed = self.batch_size * world_size if name == "train" else world_size
            if len(self._parts[name]) < needed:
                raise ValueError(
                    f"datamodule: the {name} part has {len(self._parts[name])} turns, at least "
                    f"{needed} are needed; left out: {dict(dropped) or 'nothing'}. Change "
                    "datamodule.keep, annotated, limit, val_databases or batch_size, or the files"
                )
        if dropped:
            words = "; ".join(f"{reason}: {count}" for reason, count in dropped.items())
            self._say(f"Left out: {words}.")

    def _find(self, paths: Mapping[str, Sequence[Path]], names: set[str]) -> None:
        """Find the schemas and SQLite files of databases."""
        self.databases = find_databases(paths["databases"], sorted(names), all_needed=False)
        for path in paths["tables"]:
            self.schemas |= read_tables(path)
        if not paths["tables"]:
            self.schemas = {k: Schema.from_sqlite(file) for k, file in self.databases.items()}
        unknown = sorted(names - self.schemas.keys())
        if unknown:
            raise ValueError(
                f"datamodule.tables: no schema of {', '.join(unknown[:5])}"
                f"{f' and {len(unknown) - 5} more' if len(unknown) > 5 else ''}; give a "
                "tables.json that has them (datamodule.tables), or their SQLite files "
                "(datamodule.databases)"
            )
        if paths["databases"] and (missing := names - self.databases.keys()):
            self.dropped["databases without a SQLite file (no cell values)"] += len(missing)

    def _limited(self, name: Part, part: list[Spoken]) -> list[Spoken]:
        limit = self.settings["limit"]
        if limit is None or len(part) <= limit:
            return part
        draw = random.Random(f"{self.settings['split_seed']} limit {name}")
        self.dropped[f"{name}: interactions above datamodule.limit"] += len(part) - limit
        return [part[number] for number in sorted(draw.sample(range(len(part)), limit))]

    def _examples(self, name: Part, part: Sequence[Spoken]) -> Examples:
        interactions = [spoken.interaction for spoken in part]
        keeps = _KEEPS[self.settings["keep"]]
        every = list(examples(interactions, self.schemas, self.databases))
        kept = [e for e in every if keeps(e, interactions[e.interaction])]
        if len(kept) < len(every):
            reason = f"{name}: turns that datamodule.keep={self.settings['keep']} leaves out"
            self.dropped[reason] += len(every) - len(kept)
        return Examples(kept)

    def _count(self, parts: Mapping[Part, Sequence[Spoken]]) -> None:
        """Count what training uses of the annotation of in-domain turns.

        The rewrite of a dialogue's first turn is the turn itself, which nobody needs to annotate.
        """
        spoken = parts["train"]
        used = [e for e in self._parts["train"].all if spoken[e.interaction].in_domain]
        self.annotation = {
            "turns": len(used),
            "query": sum(example.query is not None for example in used),
            "rewrite": sum(
                e.rewrite is not None and (e.turn > 0 or spoken[e.interaction].rewritten)
                for e in used
            ),
        }

    def examples(self, split: Part) -> list[Example]:
        """Return the examples of a part, in the order of its files."""
        return list(self._parts[split].all)

    def describe(self) -> dict[str, Any]:
        """Return, after `setup`, what the data is and how large, for reports and run.json."""
        described: dict[str, Any] = {
            "source": self.settings["source"],
            "keep": self.settings["keep"],
            "annotated": self.settings["annotated"],
            "rewrites": self.settings["rewrites"],
        }
        for name in PARTS:
            part = self._parts[name].all
            described[name] = {
                "turns": len(part),
                "interactions": len({example.interaction for example in part}),
                "databases": len({e.schema.db_id for e in part if e.schema is not None}),
                "with_query": sum(example.query is not None for example in part),
                "with_rewrite": sum(example.rewrite is not None for example in part),
            }
        return {
            **described,
            "held_out": self.held_out,
            "annotated_in_domain": dict(self.annotation),
            "left_out": dict(self.dropped),
        }

    def train_dataloader(self) -> EpochLoader:
        """Return the loader of the training batches, standing where the run stopped."""
        part = self._parts["train"]
        said = json.dumps([(e.history, e.utterance, e.rewrite, e.query) for e in part.all])
        digest = hashlib.blake2b(said.encode(), digest_size=8).hexdigest()
        return self._training_loader(part, {"training turns": digest})

    def val_dataloader(self) -> BatchLoader:
        """Return the loader of the validation part, in order."""
        return self._in_order("val")

    def test_dataloader(self) -> BatchLoader:
        """Return the loader of the test part, in order."""
        return self._in_order("test")

    def _in_order(self, name: Part) -> BatchLoader:
        # Ranks take turns; the last batches of some may be one turn shorter, or absent.
        rank, world_size = self.place
        part = self._parts[name]
        return in_order(part, range(rank, len(part), world_size), self.batch_size)

"""Dialogues in batches: no database on two sides, annotation by share, resumed to the batch."""

import json
import os
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from datamodules.generated.domains import databases_for_testing
from datamodules.multi_turn_sql import PARTS, MultiTurnSql
from runner.parts import build
from runner.signatures import bind, signature
from runner.validate import CONF
from tests.text2sql.conftest import entry_of
from text2sql.dialogue import Example
from text2sql.execute import Database
from text2sql.schema import Schema
from text2sql.sql import parse

DATABASES = ("cats", "dogs", "fish", "birds")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as SParC's site hands it out, with Spider's questions and CANARD's beside it."""
    root = tmp_path_factory.mktemp("sparc")
    entries = []
    for db_id in DATABASES[:3]:  # birds have a schema only
        path = root / "database" / db_id / f"{db_id}.sqlite"
        path.parent.mkdir(parents=True)
        with closing(sqlite3.connect(path)) as database:
            database.execute("CREATE TABLE pet (name TEXT, age INTEGER)")
        entries.append(entry_of(Schema.from_sqlite(path)))
    entries.append(entries[0] | {"db_id": "birds"})
    write(root / "tables.json", entries)
    write(root / "train.json", [dialogue(d, n) for d in DATABASES[:3] for n in range(4)])
    write(root / "dev.json", [dialogue("birds", n) for n in range(3)])
    write(root / "spider.json", [question(d, n) for d in DATABASES[:3] for n in range(2)])
    canard = [
        {"History": [title, "Life"], "Question": f"And {n}?", "Rewrite": f"{title} and {n}?"}
        for title in ("Ada", "Ben", "Cy")
        for n in range(3)
    ]
    write(root / "canard.json", canard)
    return root


def write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


def dialogue(db_id: str, number: int) -> dict[str, Any]:
    sql = [
        f"SELECT name FROM pet WHERE age > {number}",
        f"SELECT age FROM pet WHERE age > {number}",
    ]
    turns = [
        {"utterance": f"Which {db_id} are older than {number}?", "query": sql[0]},
        {"utterance": "How old are they?", "query": sql[1]},
        {"utterance": "Their names?"},
    ]
    if number % 2:
        turns = turns[:2]
    final = {"utterance": f"How old are {db_id} older than {number}?", "query": sql[1]}
    return {"database_id": db_id, "interaction": turns, "final": final}


def question(db_id: str, number: int) -> dict[str, str]:
    return {"db_id": db_id, "question": f"{db_id} {number}?", "query": "SELECT name FROM pet"}


def files(root: Path, **settings: Any) -> MultiTurnSql:
    """A datamodule on `root`, opened."""
    given: dict[str, Any] = {
        "train": ["train.json"],
        "test": ["dev.json"],
        "tables": "tables.json",
        "databases": ["database"],
        "val_databases": 1,
        "batch_size": 2,
    }
    data = MultiTurnSql(source="files", root=str(root), **given | settings)
    data.setup("fit")
    return data


@pytest.fixture(scope="module")
def generated(cache_dir: Path) -> MultiTurnSql:
    return opened(cache_dir)


def opened(cache_dir: Path, **settings: Any) -> MultiTurnSql:
    given = {"dialogues": 90, "test_dialogues": 240, "val_databases": 2, "questions": 30}
    data = MultiTurnSql(cache_dir=str(cache_dir), **given | settings)
    data.setup("fit")
    return data


def names(data: MultiTurnSql, part: Any) -> set[str]:
    return {e.schema.db_id for e in data.examples(part) if e.schema is not None}


# --- parts -----------------------------------------------------------------------------------


def test_files_become_examples_with_history_schema_and_database(root: Path) -> None:
    data = files(root)
    last = [e for e in data.examples("test") if e.interaction == 0][-1]
    assert last.history == ("Which birds are older than 0?", "How old are they?")
    assert (last.utterance, last.query, last.database) == ("Their names?", None, None)
    assert last.schema == data.schemas["birds"]
    trained = data.examples("train")[0]
    assert trained.database == root / "database" / trained.schema.db_id / (
        trained.schema.db_id + ".sqlite"
    )
    assert trained.rewrite == trained.utterance
    assert set(data.databases) == set(DATABASES[:3])
    left_out = data.describe()["left_out"]
    assert left_out["databases without a SQLite file (no cell values)"] == 1
    # Of even dialogues the last turn has no SQL that could be the final question's.
    assert [e.rewrite for e in data.examples("test") if e.turn == 1] == [
        None,
        "How old are birds older than 1?",
        None,
    ]


def test_no_database_is_on_two_sides(root: Path, generated: MultiTurnSql) -> None:
    for data in (files(root), files(root, train=["train.json", "spider.json"]), generated):
        train, val, test = (names(data, part) for part in PARTS)
        assert train
        assert val
        assert test
        assert not (train & val | train & test | val & test)
    assert names(generated, "test") == set(databases_for_testing())


def test_validation_databases_are_drawn_by_the_split_seed(root: Path) -> None:
    drawn = {seed: names(files(root, split_seed=seed), "val") for seed in range(6)}
    assert drawn[0] == names(files(root, split_seed=0, seed=5), "val")
    assert len({frozenset(some) for some in drawn.values()}) > 1
    assert len(names(files(root, val_databases=0.7), "val")) == 2
    with pytest.raises(ValueError, match=r"val_databases=3: there are 3 databases"):
        files(root, val_databases=3)


def test_training_on_a_test_database_is_refused_or_dropped(root: Path) -> None:
    leaking = {"train": ["train.json", "dev.json"], "test": [str(root / "dev.json")]}
    with pytest.raises(ValueError, match=r"3 interactions .* \(birds\).*datamodule\.leaks=drop"):
        files(root, **leaking)
    data = files(root, **leaking, leaks="drop")
    assert data.dropped["train: interactions about databases of the test part"] == 3
    clean = files(root)
    assert [e.utterance for e in data.examples("train")] == [
        e.utterance for e in clean.examples("train")
    ]


def test_canard_is_parted_by_article_and_needs_no_schema(root: Path) -> None:
    settings = {"train": ["canard.json"], "tables": None, "databases": None, "keep": "rewrite"}
    data = files(root, **settings, test=["canard.json"])
    assert len(data.examples("train")) == 6
    titles = {part: {e.history[0] for e in data.examples(part)} for part in ("train", "val")}
    assert not titles["train"] & titles["val"]
    assert all(e.schema is None and e.rewrite for e in data.examples("train"))
    assert data.annotation == {"turns": 0, "query": 0, "rewrite": 0}


def test_a_database_without_a_schema_is_refused_by_name(root: Path) -> None:
    with pytest.raises(ValueError, match=r"datamodule\.tables: no schema of birds; give"):
        files(root, tables=None)
    write(root / "dev2.json", [dialogue("birds", 0) | {"database_id": 3}])
    with pytest.raises(ValueError, match=r"datamodule\.test: .*dev2\.json: entry 0: database_id"):
        files(root, test=["dev2.json"])


def test_a_part_that_is_too_small_is_refused_with_the_reason(root: Path) -> None:
    with pytest.raises(ValueError, match=r"train part has 20 turns, at least 99.*batch_size"):
        files(root, batch_size=99)


SITES = {  # configs, with what the data's site calls the files, and ours
    "sparc": {"train.json": "train.json", "dev.json": "dev.json"},
    "cosql": {
        "sql_state_tracking/cosql_train.json": "train.json",
        "sql_state_tracking/cosql_dev.json": "dev.json",
    },
    "spider": {"train_spider.json": "spider.json", "dev.json": "dev.json"},
    "canard": {"train.json": "canard.json", "test.json": "canard.json"},
}


@pytest.mark.parametrize("name", [*SITES, "generated_dialogues"])
def test_configs_need_nothing_but_the_folder(name: str, root: Path, tmp_path: Path) -> None:
    overrides = ["datamodule.batch_size=2", f"paths.cache_dir={tmp_path}"]
    if name in SITES:
        overrides += [f"datamodule.root={tmp_path}", "datamodule.val_databases=1"]
        (tmp_path / "database").symlink_to(root / "database")
        for there, here in ({"tables.json": "tables.json"} | SITES[name]).items():
            (tmp_path / there).parent.mkdir(exist_ok=True)
            (tmp_path / there).symlink_to(root / here)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", [f"datamodule={name}", *overrides])
    node: Any = OmegaConf.to_container(cfg.datamodule, resolve=True)
    arguments = {key: value for key, value in node.items() if key != "_target_"}
    assert not bind("datamodule", arguments, signature(node["_target_"]))
    data = build("datamodule", node)
    data.setup("fit")
    assert all(data.examples(part) for part in PARTS)


# --- what is used ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keep", "count"), [("all", 20), ("first", 8), ("last", 8), ("query", 16), ("rewrite", 12)]
)
def test_keep_chooses_turns_and_counts_the_others(keep: Any, count: int, root: Path) -> None:
    data = files(root, keep=keep)
    assert len(data.examples("train")) == count
    if keep == "last":
        assert {len(e.history) for e in data.examples("train")} == {1, 2}
    left_out = data.dropped[f"train: turns that datamodule.keep={keep} leaves out"]
    assert left_out == 20 - count


def annotated(data: MultiTurnSql) -> set[tuple[int, int]]:
    return {(e.interaction, e.turn) for e in data.examples("train") if e.query is not None}


def test_annotation_is_kept_by_share_and_the_shares_are_nested(root: Path) -> None:
    kept = [annotated(files(root, annotated=share)) for share in (0.0, 0.25, 0.5, 1.0)]
    assert [len(places) for places in kept] == [0, 4, 8, 16]
    assert kept[0] < kept[1] < kept[2] < kept[3]
    assert annotated(files(root, annotated=0.5, split_seed=3)) != kept[2]
    none = files(root, annotated=0.0)
    assert none.annotation == {"turns": 20, "query": 0, "rewrite": 0}
    assert none.describe()["val"]["with_query"] == 8
    assert none.describe()["test"]["with_query"] == 6


def test_rewrites_can_be_fewer_than_queries(root: Path) -> None:
    def written(share: float, annotated: float = 1.0) -> set[tuple[int, int]]:
        data = files(root, rewrites=share, annotated=annotated)
        assert data.annotation["query"] == 16 * annotated
        parts = (data.describe(), files(root).describe())
        assert all(p["test"] == parts[0]["test"] and p["val"] == parts[0]["val"] for p in parts)
        # A first turn is its own rewrite.
        later = (e for e in data.examples("train") if e.rewrite is not None and e.turn)
        return {(e.interaction, e.turn) for e in later}

    assert not written(0.0)
    assert written(0.25) < written(0.5) < written(1.0)
    assert written(0.5, annotated=0.5) == written(0.25)


def test_single_questions_keep_their_annotation_and_are_not_counted(root: Path) -> None:
    data = files(root, train=["train.json", "spider.json"], annotated=0.0, keep="query")
    assert len(data.examples("train")) == 4
    assert data.annotation == {"turns": 0, "query": 0, "rewrite": 0}
    assert files(root, train=["train.json", "spider.json"]).annotation == files(root).annotation


def test_every_rewrite_can_be_a_single_question(root: Path) -> None:
    data = files(root, as_single_turn=True)
    made = data.examples("train")
    assert len(made) == 12
    assert all(e.turn == 0 and not e.history and e.utterance == e.rewrite for e in made)
    assert sum(e.utterance.startswith("How old are") for e in made) == 4
    assert len({e.interaction for e in made}) == 12
    reason = "train: turns without a rewrite, which cannot be single questions"
    assert data.dropped[reason] == 8
    assert data.annotation == {"turns": 12, "query": 12, "rewrite": 4}


def test_limit_draws_interactions(root: Path) -> None:
    data = files(root, limit=2)
    assert [data.describe()[part]["interactions"] for part in PARTS] == [2, 2, 2]
    assert data.dropped["train: interactions above datamodule.limit"] == 6


def test_the_generated_source_has_sql_rewrites_and_single_questions(
    generated: MultiTurnSql,
) -> None:
    described = generated.describe()
    assert described["test"]["interactions"] == 240
    dialogues = sum(described[part]["interactions"] for part in ("train", "val"))
    assert dialogues == 90 + 30
    assert described["annotated_in_domain"]["turns"] < described["train"]["turns"]
    for part in PARTS:
        for example in generated.examples(part)[::7]:
            assert example.rewrite
            assert parse(str(example.query), example.schema)
            assert Database(example.database).execute(example.query).status == "ok"
    json.dumps(described)


def test_generated_databases_are_written_once(cache_dir: Path, generated: MultiTurnSql) -> None:
    (file, *_) = generated.databases.values()
    written = file.stat().st_mtime_ns
    again = opened(cache_dir)
    assert again.databases == generated.databases
    assert file.stat().st_mtime_ns == written
    said = [[e.utterance for e in data.examples("train")] for data in (again, generated)]
    assert said[0] == said[1]
    assert opened(cache_dir, split_seed=1).databases != generated.databases


# --- batches ---------------------------------------------------------------------------------


def test_batches_are_lists_of_examples_each_once_an_epoch(root: Path) -> None:
    data = files(root, batch_size=3)
    loader = data.train_dataloader()
    epochs = [list(loader), list(loader)]
    assert len(loader) == 6  # 20 turns: two wait for another epoch
    for batches in epochs:
        assert all(isinstance(batch, list) and len(batch) == 3 for batch in batches)
        counts = Counter(id(example) for batch in batches for example in batch)
        assert len(counts) == 18
    assert epochs[0] != epochs[1]
    assert files(root, batch_size=3, seed=1).train_dataloader().batch(0).tolist() != (
        loader.batch(0).tolist()
    )
    known = {id(example) for example in data.examples("train")}
    assert {id(e) for batches in epochs for batch in batches for e in batch} <= known
    val = [example for batch in data.val_dataloader() for example in batch]
    test = [example for batch in data.test_dataloader() for example in batch]
    assert val == data.examples("val")
    assert test == data.examples("test")
    assert len(list(data.test_dataloader())) == len(data.test_dataloader())


class Killed(Exception):
    """Stands for a killed process."""


class Reader(pl.LightningModule):
    """Notes the utterances of every training batch; dies after some of them."""

    def __init__(self, seen: list[list[str]], die_after: int = -1, file: str = "") -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.seen, self.die_after, self.file = seen, die_after, file

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        return batch

    def training_step(self, batch: list[Example], batch_idx: int) -> torch.Tensor:
        self.seen.append([f"{e.interaction}.{e.turn} {e.utterance}" for e in batch])
        return self.weight * len(batch)

    def validation_step(self, batch: list[Example], batch_idx: int) -> None:
        assert all(isinstance(example, Example) for example in batch)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if len(self.seen) == self.die_after:
            self.trainer.save_checkpoint(self.file)
            raise Killed

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(module: Reader, data: MultiTurnSql, checkpoint: str | None = None) -> None:
    quiet = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    trainer = pl.Trainer(max_epochs=3, accelerator="cpu", devices=1, **quiet)
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint)


# The modules override the hook because Lightning's own cannot move a frozen dataclass.
@pytest.mark.filterwarnings("ignore:You have overridden `transfer_batch_to_device`")
@pytest.mark.parametrize("die_after", [2, 10, 13])
def test_a_run_that_was_cut_goes_on_with_the_next_batch(
    die_after: int, root: Path, tmp_path: Path
) -> None:
    whole: list[list[str]] = []
    fit(Reader(whole), files(root))
    assert len(whole) == 30
    file = str(tmp_path / "last.ckpt")
    seen: list[list[str]] = []
    with pytest.raises(Killed):
        fit(Reader(seen, die_after, file), files(root))
    fit(Reader(seen), files(root), file)
    assert seen == whole
    for changed in ({"seed": 1}, {"batch_size": 3}, {"annotated": 0.5}):
        with pytest.raises(ValueError, match=r"trained on other batches.*resume=never"):
            fit(Reader([]), files(root, **changed), file)


# --- the real files --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "test", "tables", "counts"),
    [
        (
            ["derived/cosql_train_light.json"],
            ["cosql/dev.json"],
            "cosql/tables.json",
            (7343, 2159, 1007, 293),
        ),
        (
            ["spider/train_spider_light.json", "derived/sparc_train_partial.json"],
            ["sparc/dev.json"],
            "sparc/tables.json",
            (7000 + 9038, 7000 + 3002, 1203, 422),
        ),
    ],
)
def test_counts_of_the_real_files(
    train: list[str], test: list[str], tables: str, counts: tuple[int, ...]
) -> None:
    if not (folder := os.environ.get("FRUGAL_DATA")):
        pytest.skip("FRUGAL_DATA is not set: no benchmark data here")
    root = Path(folder) / "text2sql"
    places = ["database", "database_schema_only"]
    data = files(root, train=train, test=test, tables=tables, databases=places, val_databases=0.1)
    described = data.describe()
    found = [
        sum(described[part][key] for part in parts)
        for parts in (("train", "val"), ("test",))
        for key in ("turns", "interactions")
    ]
    assert tuple(found) == counts
    assert described["val"]["databases"] == 14
    assert described["test"]["databases"] == 20
    assert not names(data, "train") & names(data, "test")
    assert all(e.database is not None for e in data.examples("test"))

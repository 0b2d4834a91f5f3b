"""SqlParser trains, validates, resumes bit for bit, and says in words what is wrong."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from lightning_modules.checkpoints import built, restored
from lightning_modules.sql_parser import SqlParser
from tests.lightning_modules.test_utterance_rewriter import Concerts, StopAt, bert_folder, trainer
from tests.test_methods import assert_equal
from tests.text2sql.conftest import make
from tests.text2sql.questions import SIZES, dialogues
from text2sql.schema import Schema


@pytest.fixture
def data(tmp_path: Path) -> Concerts:
    database = make(tmp_path / "concerts.sqlite")
    return Concerts(dialogues(Schema.from_sqlite(database), database), batch_size=3)


def module(**options: Any) -> SqlParser:
    settings: dict[str, Any] = {
        "architecture": {"model_type": "bert", **SIZES}, "vocab_size": 300, "width": 32,
        "layers": 1, "decoder_layers": 1, "heads": 2, "optimizer": {"lr": 3e-3}, **options,
    }  # fmt: skip
    return SqlParser(**settings)


def test_it_learns_and_scores_exact_and_execution_match(
    data: Concerts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pl.seed_everything(1, verbose=False)
    made, data.batch_size = module(dropout=0.0, width=64, optimizer={"lr": 6e-3}), 9
    run = trainer(tmp_path, 120, limit_val_batches=0)
    run.fit(made, datamodule=data)
    run.test(made, datamodule=data, verbose=False)
    metrics = {name: float(value) for name, value in run.callback_metrics.items()}
    assert metrics["test/exact"] > 0.6
    assert metrics["test/execution"] >= metrics["test/exact"] - 0.2
    assert {"test/loss", "test/exact_interaction", "test/execution_interaction"} <= metrics.keys()
    assert "by hardness" in capsys.readouterr().out
    assert len(made.samples) == len(data.turns)
    assert {"question", "sql", "gold", "exact", "execution"} <= made.samples[0].keys()


@pytest.mark.parametrize(
    ("changes", "options", "words"),
    [
        ({"query": None}, {}, "none of 9 training turns: 0 have SQL. "),
        ({"query": "SELECT name FROM singer WHERE age IS NULL"}, {}, "9 have SQL, but .* IS NULL"),
        ({}, {"max_nodes": 10}, r"9 have SQL, but .*module\.max_nodes"),
    ],
)
def test_turns_of_which_none_teaches_are_refused(
    changes: Any, options: Any, words: str, data: Concerts, tmp_path: Path
) -> None:
    data.turns = [replace(turn, **changes) for turn in data.turns]
    with pytest.raises(ValueError, match=words):
        trainer(tmp_path, 1).fit(module(**options), datamodule=data)


def test_the_baseline_reads_the_turns_before_newest_first(data: Concerts) -> None:
    example = data.turns[2]
    assert module().question(example) == "How many singers are from France?"
    assert module(read="utterance").question(example) == "How many are there?"
    both = module(read="utterance", history=1).question(example)
    assert both == "How many are there? | Which of them are from France?"
    every = module(read="utterance", history=9).question(example)
    assert every.endswith("Which of them are from France? | Show all singers.")


def test_a_stopped_run_goes_on_bit_for_bit(data: Concerts, tmp_path: Path) -> None:
    def save(run: pl.Trainer, name: str) -> Path:
        run.save_checkpoint(tmp_path / name)
        return tmp_path / name

    run = trainer(tmp_path, 6)
    run.fit(module(), datamodule=data)
    whole = save(run, "whole.ckpt")
    stopped = trainer(tmp_path, 6, StopAt(3))
    stopped.fit(module(), datamodule=data)
    half = save(stopped, "half.ckpt")
    again = trainer(tmp_path, 6)
    again.fit(module(), datamodule=data, ckpt_path=half)
    expected, actual = (
        torch.load(path, weights_only=True) for path in (whole, save(again, "again.ckpt"))
    )
    assert actual["global_step"] == 6
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "rng_states"):
        assert_equal(actual[key], expected[key], key)
    assert actual["parser_tokenizer"] == expected["parser_tokenizer"]


def test_a_checkpoint_says_what_it_learned_from_and_how_sure_it_may_be(
    data: Concerts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {"source": "generated", "train": {"with_query": 1234, "databases": 7}}
    monkeypatch.setattr(Concerts, "describe", lambda self: said, raising=False)
    made = module()
    run = trainer(tmp_path, 3)
    run.fit(made, datamodule=data)
    assert made.confidence is not None
    run.save_checkpoint(tmp_path / "made.ckpt")
    again = module()
    again.on_load_checkpoint(torch.load(tmp_path / "made.ckpt", weights_only=True))
    assert again.confidence == made.confidence
    first, second = again.about()
    assert "1,234 questions about 7 databases, all generated" in first
    assert "delta_parser_spider" in second
    again.trained_on = {**said, "source": "files"}
    assert again.about() == ["The parser learned from 1,234 questions about 7 databases."]
    assert module().about() == []
    # Nothing was judged: what was learned before stays.
    again.calibrate([])
    assert again.confidence == made.confidence


def test_a_checkpoint_is_read_without_the_encoder_that_it_began_with(
    data: Concerts, tmp_path: Path
) -> None:
    """All weights are its own, and it keeps the config and the tokenizer."""
    folder = bert_folder(tmp_path / "bert", SIZES)
    named: dict[str, Any] = {"architecture": None, "pretrained": str(folder)}
    made, data.batch_size = module(**named), len(data.turns)
    run = trainer(tmp_path, 2)
    run.fit(made, datamodule=data)
    run.save_checkpoint(tmp_path / "made.ckpt")
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match=r"module\.pretrained=.* cannot be loaded"):
        module(**named).configure_model()
    again = module(**named)
    again.await_checkpoint(torch.load(tmp_path / "made.ckpt", weights_only=True))
    longer = trainer(tmp_path, 3)
    longer.fit(again, datamodule=data, ckpt_path=tmp_path / "made.ckpt")
    longer.save_checkpoint(tmp_path / "again.ckpt")
    part = restored(SqlParser, "parser_from", str(tmp_path / "again.ckpt"))
    texts = [(example.utterance, example.about, example.database) for example in data.turns]
    assert part.eval().reader.best(texts, 1) == again.eval().reader.best(texts, 1)


def test_a_training_goes_on_from_another_ones_network(data: Concerts, tmp_path: Path) -> None:
    run = trainer(tmp_path, 3)
    first = module()
    run.fit(first, datamodule=data)
    run.save_checkpoint(tmp_path / "first.ckpt")
    second = module(init=str(tmp_path / "first.ckpt"), history=2, read="utterance")
    second.configure_model()
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    with pytest.raises(ValueError, match=r"module\.init=.*nowhere"):
        module(init=str(tmp_path / "nowhere.ckpt")).configure_model()


def test_a_checkpoint_is_tested_on_other_data_with_its_own_word_pieces(
    data: Concerts, tmp_path: Path
) -> None:
    run = trainer(tmp_path, 1, limit_val_batches=0)
    first = module()
    run.fit(first, datamodule=data)
    run.save_checkpoint(tmp_path / "first.ckpt")
    data.turns = [replace(e, utterance=f"zyx wvu {e.utterance} tsr") for e in data.turns]
    second, tested = module(), trainer(tmp_path, 1)
    tested.test(second, datamodule=data, ckpt_path=tmp_path / "first.ckpt")
    assert second.word_pieces == first.word_pieces is not None
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_an_older_checkpoints_settings_are_read_by_their_names_of_today() -> None:
    settings = dict(module().hparams)
    older = {"encoder": settings.pop("pretrained"), "seconds": settings.pop("sql_timeout")}
    assert dict(built(SqlParser, {**settings, **older}).hparams) == dict(module().hparams)


def test_turns_without_sql_are_left_out_of_training_and_counted(
    data: Concerts, tmp_path: Path
) -> None:
    data.turns, data.batch_size = (
        [data.turns[0], *(replace(t, query=None) for t in data.turns[1:])],
        9,
    )
    run = trainer(tmp_path, 1, limit_val_batches=0)
    run.fit(module(), datamodule=data)
    assert float(run.callback_metrics["train/left_out"]) == 8


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pretrained": "bert", "architecture": {}}, "one only"),
        ({"architecture": None}, "give pretrained or architecture"),
        ({"width": 30, "heads": 4}, r"module\.width=30"),
        ({"history": 4}, r"module\.history=4: .*read=utterance"),
    ],
)
def test_what_cannot_work_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        module(**options)


def test_an_encoder_that_reads_too_little_is_refused(data: Concerts, tmp_path: Path) -> None:
    made = module(architecture={"model_type": "bert", **SIZES, "max_position_embeddings": 64})
    with pytest.raises(ValueError, match=r"reads 64 wordpieces.*at least 192"):
        trainer(tmp_path, 1).fit(made, datamodule=data)


def test_an_encoder_that_is_not_there_is_named() -> None:
    made = module(architecture=None, pretrained="package:no_such_package/model")
    with pytest.raises(ValueError, match=r"module\.pretrained.*no_such_package"):
        made.configure_model()

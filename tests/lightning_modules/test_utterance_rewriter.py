"""UtteranceRewriter trains, tests and resumes bit for bit, supervised and dual; errors in words."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from callbacks.checkpoint import AtomicCheckpointIO
from callbacks.rng_state import RngState
from callbacks.samples import ModuleSamples
from lightning_modules import utterance_rewriter
from lightning_modules.utterance_rewriter import UtteranceRewriter
from tests.test_methods import assert_equal
from tests.text2sql.rewriters import (
    LENGTHS,
    SIZES,
    causal_lm_folder,
    seq2seq_folder,
    tokenizer,
    turns,
)
from text2sql.dialogue import Example
from text2sql.encoder import build_encoder
from text2sql.rewrites import most_faithful
from text2sql.schema import Schema


class Concerts(pl.LightningDataModule):
    """The turns about concerts, as every part of the data."""

    def __init__(self, turns: list[Example], batch_size: int = 4) -> None:
        super().__init__()
        self.turns, self.batch_size = turns, batch_size

    def examples(self, split: str) -> list[Example]:
        return self.turns

    def _loader(self) -> Any:
        return DataLoader(self.turns, self.batch_size, collate_fn=list)

    train_dataloader = val_dataloader = test_dataloader = _loader


@pytest.fixture(scope="module")
def schema() -> Schema:
    entry = {
        "db_id": "concerts",
        "table_names": ["singer", "stadium"],
        "table_names_original": ["singer", "stadium"],
        "column_names": [[-1, "*"], [0, "name"], [0, "age"], [1, "name"], [1, "capacity"]],
        "column_names_original": [[-1, "*"], [0, "name"], [0, "age"], [1, "name"], [1, "capacity"]],
        "column_types": ["text", "text", "number", "text", "number"],
        "primary_keys": [],
        "foreign_keys": [],
    }
    return Schema.from_entry(entry)


@pytest.fixture
def data(schema: Schema) -> Concerts:
    return Concerts(turns(schema))


def module(**options: Any) -> UtteranceRewriter:
    dropout = {"hidden_dropout_prob": 0.1}  # so that the random state matters
    network = {"architecture": {**SIZES, **dropout}, "vocab_size": 300, "decoder_layers": 1}
    network |= {**LENGTHS, **options.pop("network", {})}
    settings: dict[str, Any] = {"optimizer": {"lr": 3e-3}, "beam": 2, **options}
    return UtteranceRewriter(network=network, **settings)


def bert_folder(folder: Path, sizes: Mapping[str, Any] = SIZES) -> Path:
    """A randomly built BERT with a tokenizer, as `from_pretrained` loads it."""
    words = tokenizer()
    build_encoder({"model_type": "bert", **sizes}, words).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def trainer(folder: Path, steps: int, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    settings: dict[str, Any] = {"val_check_interval": 1.0, "num_sanity_val_steps": 1, **options}
    return pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(folder),
        plugins=[AtomicCheckpointIO()],
        callbacks=[RngState(seed=1), *callbacks],
        **settings,
    )


def trained(folder: Path, data: Concerts, steps: int, **options: Any) -> tuple[Any, Path]:
    made = module(**options)
    run = trainer(folder, steps)
    run.fit(made, datamodule=data)
    path = folder / f"{steps}.ckpt"
    run.save_checkpoint(path)
    return made, path


def test_it_learns_writes_samples_and_scores(data: Concerts, tmp_path: Path) -> None:
    made = module()
    run = trainer(
        tmp_path, 120, ModuleSamples(str(tmp_path)), val_check_interval=40,
        check_val_every_n_epoch=None,
    )  # fmt: skip
    run.fit(made, datamodule=data)
    metrics = {name: float(value) for name, value in run.callback_metrics.items()}
    names = ("loss", "bleu", "rouge_l", "exact", "restored_f1", "schema_share", "schema_share_gold")
    assert {f"val/{name}" for name in names} <= metrics.keys()
    assert metrics["val/exact"] > 0.5
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert {row["step"] for row in rows} == {40, 80, 120}
    assert rows[-7]["utterance"] == "Which of them are from France?"  # 7 turns are later ones
    assert {"history", "rewrite", "gold", "split"} <= rows[0].keys()
    first, *_, last = data.turns
    written = made.rewrite([first, replace(last, history=()), last])
    assert written[1] == last.utterance  # a first turn stands as it is
    assert made.rewrite([last]) == written[2:]


def test_at_most_so_many_rewrites_are_scored_at_a_validation_and_all_at_a_test(
    data: Concerts, tmp_path: Path
) -> None:
    made = module(scored_rewrites=3)
    run = trainer(tmp_path, 2)
    run.fit(made, datamodule=data)
    assert len(made.samples) == 3
    run.test(made, datamodule=data, verbose=False)
    assert len(made.samples) == 7
    assert {"test/loss", "test/bleu"} <= run.callback_metrics.keys()


def test_turns_without_a_rewrite_are_left_out_of_supervised_training(
    data: Concerts, tmp_path: Path
) -> None:
    golds = data.turns[:4]
    data.turns = [*golds, *(replace(e, rewrite=None) for e in data.turns[4:])]
    made = module()
    trainer(tmp_path, 4).fit(made, datamodule=data)
    # First turns are complete as they are: from them alone there is nothing to learn.
    data.turns = [replace(e, rewrite=None if e.history else e.utterance) for e in data.turns]
    with pytest.raises(ValueError, match="no turn of the training data that follows another has"):
        trainer(tmp_path, 4).fit(module(), datamodule=data)


@pytest.mark.parametrize("mode", ["supervised", "dual"])
def test_a_stopped_run_goes_on_bit_for_bit(mode: str, data: Concerts, tmp_path: Path) -> None:
    """Weights, optimizer, random states and the tokenizer are those of a run that never stopped."""
    options: dict[str, Any] = {"simplifier": True, "scored_rewrites": 2}
    if mode == "dual":
        _, start = trained(tmp_path, data, 3, **options)
        dual = {"mode": "dual", "init": str(start), "dual": {"samples": 2}}
        options = {"scored_rewrites": 2, **dual}
    _, whole = trained(tmp_path, data, 6, **options)
    # The same schedule for the run that is stopped: it must not know that it will be.
    stopped = trainer(tmp_path, 6, StopAt(4))
    made = module(**options)
    stopped.fit(made, datamodule=data)
    half = tmp_path / "half.ckpt"
    stopped.save_checkpoint(half)
    again = trainer(tmp_path, 6)
    resumed = module(**options)
    again.fit(resumed, datamodule=data, ckpt_path=half)
    path = tmp_path / "resumed.ckpt"
    again.save_checkpoint(path)
    expected, actual = (torch.load(p, weights_only=True) for p in (whole, path))
    assert actual["global_step"] == 6
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "rng_states"):
        assert_equal(actual[key], expected[key], key)
    assert actual["rewriter_tokenizer"] == expected["rewriter_tokenizer"]


class StopAt(pl.Callback):
    """Ends a run after a step, as a signal would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.should_stop = True
            trainer.fit_loop.epoch_loop.max_steps = self.step


def test_a_checkpoint_brings_its_tokenizer(data: Concerts, tmp_path: Path) -> None:
    """On other data the word pieces would be others: those of the checkpoint count."""
    made, path = trained(tmp_path, data, 2)
    other = Concerts(data.turns[:1])
    again = module()
    trainer(tmp_path, 1).test(again, datamodule=other, ckpt_path=path, verbose=False)
    for name, value in made.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    # And without a trainer, as the pipeline reads it.
    content = torch.load(path, weights_only=True)
    alone = module()
    alone.on_load_checkpoint(content)
    alone.load_state_dict(content["state_dict"])
    assert alone.rewrite(data.turns) == again.rewrite(data.turns)


def test_dual_learning_begins_with_a_supervised_training(data: Concerts, tmp_path: Path) -> None:
    """Zero annotation: pairs of another source first, then turns that nobody rewrote."""
    supervised, start = trained(tmp_path, data, 3, simplifier=True)
    unlabelled = Concerts([replace(e, rewrite=None) for e in data.turns])
    made = module(mode="dual", init=str(start), dual={"samples": 2})
    run = trainer(tmp_path, 2, limit_val_batches=0)
    run.fit(made, datamodule=unlabelled)
    parts = {"database", "pronoun", "fluency", "reconstruction"}
    logged = {str(name) for name in run.callback_metrics}
    assert {f"dual/rewriter/reward_{part}" for part in parts} <= logged
    assert "dual/supervised" not in logged
    same = [torch.equal(v, made.state_dict()[k]) for k, v in supervised.state_dict().items()]
    assert not all(same)
    _, alone = trained(tmp_path, data, 2)
    with pytest.raises(ValueError, match="holds no simplifier; train it with"):
        trainer(tmp_path, 2).fit(module(mode="dual", init=str(alone)), datamodule=data)
    with pytest.raises(ValueError, match=r"module\.init=nowhere: no checkpoint can be read"):
        trainer(tmp_path, 2).fit(module(mode="dual", init="nowhere"), datamodule=data)


def test_a_parser_may_judge(data: Concerts, tmp_path: Path) -> None:
    _, start = trained(tmp_path, data, 2, simplifier=True)
    made = module(mode="dual", init=str(start), dual={"samples": 2})
    made.verify = lambda examples, texts: [1.0] * len(texts)
    run = trainer(tmp_path, 2, limit_val_batches=0)
    run.fit(made, datamodule=data)
    assert float(run.callback_metrics["dual/rewriter/reward_parser"]) == 1.0


@pytest.mark.parametrize(
    ("kind", "base"),
    [
        ("seq2seq", lambda folder: seq2seq_folder(folder, "bart")),
        ("causal_lm", lambda folder: causal_lm_folder(folder, "gpt2")),
        ("pointer_generator", bert_folder),
    ],
)
def test_a_pretrained_network_trains_and_is_read_again_without_its_base(
    kind: str, base: Callable[[Path], Path], data: Concerts, tmp_path: Path
) -> None:
    """All weights are the checkpoint's, which keeps the config and the tokenizer."""
    folder = base(tmp_path / "base")
    network: Any = {"kind": kind, "pretrained": str(folder), "architecture": None}
    made = module(network=network, simplifier=True)
    run = trainer(tmp_path, 2, limit_val_batches=0)
    run.fit(made, datamodule=data)
    written = made.eval().rewrite(data.turns)
    assert len(written) == len(data.turns)
    run.save_checkpoint(tmp_path / "made.ckpt")
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match=r"module\.network\.pretrained=.* cannot be loaded"):
        module(network=network).configure_model()
    again = module(network=network, simplifier=True)
    content = torch.load(tmp_path / "made.ckpt", weights_only=True)
    again.on_load_checkpoint(content)
    again.load_state_dict(content["state_dict"])
    assert again.eval().rewrite(data.turns) == written


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "dual"}, r"module\.init: mode=dual goes on from a supervised training"),
        ({"network": {"pretrained": "x"}}, r"module\.network: give pretrained .* not both"),
        ({"network": {"architecture": None}}, r"module\.network: give pretrained"),
        ({"network": {"source_tokens": 9999}}, r"source_tokens=9999, .* the encoder reads \d+ at"),
        ({"network": {"kind": "seq2seq"}}, r"kind=seq2seq: needs module\.network\.pretrained"),
    ],
)
def test_what_cannot_run_is_refused_in_words(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        module(**options)


@pytest.mark.parametrize(
    ("history", "utterance", "texts", "expected"),
    [
        # A question that stands alone stays, whatever was asked before.
        ("Show the stadiums.", "How many singers are from Brazil?",
         ["How many singers are there?", "How many stadiums are from Brazil?"], None),
        ("Show the stadiums.", "How many singers are there?",
         ["How many stadiums are there?"], None),
        # Nor is it only put in other words.
        ("Show the stadiums.", "How many singers are from Peru?",
         ["How many singers from perus are?"], None),
        # What leads over to it may go.
        ("Show the stadiums.", "Now another question. How many singers are there?",
         ["How many singers are there?"], 0),
        # The likeliest one that keeps the value.
        ("How old are singers from Peru?", "What about those from Chile?",
         ["How old are singers from Peru?", "How old are singers from Chile?"], 1),
        ("Which singers are older than 30?", "And than 41?",
         ["Which singers are older than 30?", "Which singers are older than 41?"], 1),
        ("Show the ages of singers.", "And their names?",
         ["Show the ages of singers.", "Show the names of singers."], 1),
        # People leave names out as well, where the turn needs what was before.
        ("Show the singers.", "What is the age of these?", ["How old are the singers?"], 0),
        # No text at all is none.
        ("Show the singers.", "And the others?", ["", "Show the other singers."], 1),
        # Nothing is lost: the first one.
        ("Show the singers.", "Only those from Peru.",
         ["Show the singers from Peru.", "Show singers from Peru."], 0),
    ],
)  # fmt: skip
def test_a_rewrite_keeps_what_the_turn_says(
    history: str, utterance: str, texts: list[str], expected: int | None, schema: Schema,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    example = Example(0, 1, (history,), utterance, None, None, schema, None)
    best = utterance if expected is None else texts[expected]
    assert most_faithful(example, texts) == best
    assert most_faithful(replace(example, schema=None), texts) == texts[0]
    made = module()
    monkeypatch.setattr(made, "rewriter", None, raising=False)
    monkeypatch.setattr(
        utterance_rewriter, "hypotheses", lambda _, some, *__: dict.fromkeys(some, texts)
    )
    assert made.rewrite([example]) == [best]

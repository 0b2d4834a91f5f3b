"""The pipeline trains, tests three readings and talks; task=evaluate scores anybody's files."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir

import runner
from datamodules.dialogue_sources import read_dialogues
from lightning_modules.text_to_sql import READINGS, TextToSql
from lightning_modules.utterance_rewriter import UtteranceRewriter
from runner.errors import ConfigError
from runner.explain import with_new_keys
from runner.validate import CONF
from tests.lightning_modules.test_sql_parser import module as parser
from tests.lightning_modules.test_utterance_rewriter import Concerts, trainer
from tests.text2sql.conftest import make
from tests.text2sql.questions import SIZES, dialogues
from text2sql.schema import Schema


def run(**settings: str) -> dict[str, float]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        pairs = [f"{key}={value}" for key, value in settings.items()]
        given = ["experiment=delta_sparc", "task=evaluate", *pairs]
        return runner.run(compose("config", with_new_keys(given)))


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    make(tmp_path / "databases" / "concerts" / "concerts.sqlite")
    (tmp_path / "gold.txt").write_text(
        "SELECT name FROM singer\tconcerts\nSELECT age FROM singer\tconcerts\n\n"
        "SELECT title FROM concert\tconcerts\n"
    )
    (tmp_path / "predictions.txt").write_text(
        "SELECT name FROM singer\nSELECT name FROM singer\n\nSELECT title FROM concert\n"
    )
    return {
        "gold": f"{tmp_path}/gold.txt",
        "predictions": f"{tmp_path}/predictions.txt",
        "database": f"{tmp_path}/databases",
        "json": f"{tmp_path}/scores.json",
    }


def test_scores_and_verdicts_are_written(
    files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = run(**files)
    assert metrics == {
        "exact": 2 / 3,
        "exact_interaction": 0.5,
        "execution": 2 / 3,
        "execution_interaction": 0.5,
    }
    written = json.loads(Path(files["json"]).read_text())
    assert {key: written[key] for key in metrics} == metrics
    assert [verdict["exact"] for verdict in written["verdicts"]] == [True, False, True]
    printed = capsys.readouterr().out
    assert "by hardness" in printed
    assert "executed on 1 databases, 1 SQLite files" in printed


def test_a_missing_prediction_is_refused_unless_asked_for(files: dict[str, str]) -> None:
    path = Path(files["predictions"])
    path.write_text("SELECT name FROM singer\n\nSELECT title FROM concert\n")
    with pytest.raises(ConfigError, match="interaction 0, turn 1"):
        run(**files)
    assert run(**files, **{"module.missing": "wrong"})["exact"] == 2 / 3
    assert run(**files, **{"module.missing": "skip"})["exact"] == 1


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("gold", "null", "gold: task=evaluate needs"),
        ("predictions", "/nowhere.txt", "nowhere.txt: cannot be read"),
        ("database", "/nowhere", "/nowhere: no such folder"),
        ("database", "null", "module.tables"),
        ("json", "/nowhere/x.json", "json=/nowhere/x.json: there is no folder"),
    ],
)
def test_what_is_missing_is_named(key: str, value: str, words: str, files: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=words):
        run(**{**files, key: value})


# --- the pipeline --------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> Concerts:
    database = make(tmp_path / "concerts.sqlite")
    return Concerts(dialogues(Schema.from_sqlite(database), database), batch_size=9)


def rewriter(**options: Any) -> UtteranceRewriter:
    network: Any = {"architecture": {**SIZES, "max_position_embeddings": 96}, "vocab_size": 300}
    network |= {"decoder_layers": 1, "source_tokens": 64, "target_tokens": 24}
    return UtteranceRewriter(network=network, beam=2, **options)


def pipeline(**options: Any) -> TextToSql:
    settings: dict[str, Any] = {"optimizer": {"lr": 3e-3}, **options}
    if "parser_from" not in options:
        settings.setdefault("parser", parser())
    if "rewriter_from" not in options:
        settings.setdefault("rewriter", rewriter())
    return TextToSql(**settings)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A pipeline's checkpoint, trained until it knows the dialogues, and their database."""
    folder = tmp_path_factory.mktemp("pipeline")
    database = make(folder / "concerts" / "concerts.sqlite")
    data = Concerts(dialogues(Schema.from_sqlite(database), database), batch_size=9)
    run = trainer(folder, 150, limit_val_batches=0)
    pl.seed_everything(1, verbose=False)
    run.fit(pipeline(optimizer={"lr": 6e-3}), datamodule=data)
    run.save_checkpoint(folder / "pipeline.ckpt")
    return folder / "pipeline.ckpt", database


def restored(path: Path, **options: Any) -> TextToSql:
    content = torch.load(path, weights_only=True)
    module = TextToSql(**options)
    module.on_load_checkpoint(content)
    module.load_state_dict(content["state_dict"])
    return module


def test_rewrites_are_parsed_better_than_utterances(
    trained: tuple[Path, Path], data: Concerts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = trained
    module = pipeline()
    run = trainer(tmp_path, 1)
    run.test(module, datamodule=data, ckpt_path=str(path), verbose=False)
    metrics = {name: float(value) for name, value in run.callback_metrics.items()}
    names = ("exact", "exact_interaction", "execution", "execution_interaction")
    assert {f"test/{r}/{name}" for r in READINGS for name in names} <= metrics.keys()
    assert metrics["test/gold/exact"] >= metrics["test/rewritten/exact"]
    assert metrics["test/rewritten/exact"] > metrics["test/raw/exact"]
    assert len(module.samples) == len(data.turns)
    assert {"rewrite", "gold rewrite", "SQL", "raw exact", "gold execution"} <= set(
        module.samples[0]
    )
    assert "exact match by turn" in capsys.readouterr().out


def test_the_parser_chooses_rewrites_for_turns_that_have_none(
    trained: tuple[Path, Path], data: Concerts, tmp_path: Path
) -> None:
    path, _ = trained
    golds = {(e.interaction, e.turn): e.rewrite for e in data.turns}
    later = [e for e in data.turns if e.history]
    data.turns = [replace(e, rewrite=None) for e in data.turns]
    target = tmp_path / "annotated.json"
    metrics = restored(path).annotate(data, json=str(target))
    assert metrics["turns"] == len(later)
    assert metrics["annotated"] > 0.5
    part = read_dialogues(target).interactions
    found = {
        (number, place): turn
        for number, dialogue in enumerate(part)
        for place, turn in enumerate(dialogue.turns)
    }
    assert len(found) == len(data.turns)
    for example in data.turns:
        turn = found[example.interaction, example.turn]
        assert (turn.utterance, turn.query) == (example.utterance, example.query)
        assert example.history or turn.rewrite == example.utterance
    written = {
        key: found[key].rewrite for e in later if found[key := (e.interaction, e.turn)].rewrite
    }
    # It knows these dialogues: what it chose is mostly what annotators wrote.
    assert sum(golds[key] == text for key, text in written.items()) > len(written) / 2
    # What nobody could mean is not annotated.
    strict = restored(path, max_nll=1e-6)
    assert strict.annotate(data, json=str(target))["annotated"] < 0.5
    # Unjudged, every turn gets what the rewriter writes first.
    unjudged = restored(path, max_nll=None)
    assert unjudged.annotate(data, json=str(target))["annotated"] == 1.0
    words = {t.rewrite for d in read_dialogues(target).interactions for t in d.turns[1:]}
    unjudged.rewriter.beam = 4
    assert words == set(unjudged.rewriter.rewrite([e for e in data.turns if e.history]))
    # Rewrites that are there stay as they are; what is about no database is left out.
    data.turns = [replace(e, rewrite="As it was?") for e in data.turns]
    data.turns.append(replace(data.turns[0], interaction=99, schema=None, database=None))
    assert restored(path).annotate(data, json=str(target))["turns"] == 0
    assert {t.rewrite for d in read_dialogues(target).interactions for t in d.turns} == {
        "As it was?"
    }


def test_annotating_says_what_it_needs(
    trained: tuple[Path, Path], data: Concerts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = trained
    for settings, words in (({}, "json: task=annotate"), ({"json": "/nowhere/x"}, "no folder")):
        with pytest.raises(ValueError, match=words):
            restored(path).annotate(data, **settings)
    monkeypatch.setattr(Concerts, "describe", lambda _: {"keep": "first"}, raising=False)
    with pytest.raises(ValueError, match=r"datamodule\.keep=first"):
        restored(path).annotate(data, json=str(tmp_path / "x.json"))
    assert not list(tmp_path.glob("*x.json*"))


def test_a_checkpoint_alone_says_what_the_parts_are(trained: tuple[Path, Path]) -> None:
    path, database = trained
    module = restored(path)
    turns = dialogues(Schema.from_sqlite(database), database)
    assert module.rewrite(turns[:1]) == [turns[0].utterance]
    assert module.parser is not None
    texts = module.rewrite(turns)
    asked = [(text, e.about, e.database) for e, text in zip(turns, texts, strict=True)]
    assert len(module.parser.reader.best(asked, 1)) == len(turns)


def test_parts_of_runs_of_their_own_stay_as_they_are(
    trained: tuple[Path, Path], data: Concerts, tmp_path: Path
) -> None:
    data.batch_size = len(data.turns)
    run = trainer(tmp_path, 2, limit_val_batches=0)
    run.fit(parser(), datamodule=data)
    run.save_checkpoint(tmp_path / "parser.ckpt")
    settings: Any = {
        "parser_from": str(tmp_path / "parser.ckpt"),
        "schedule": {"decay": "constant"},
    }
    module = pipeline(**settings)
    further = trainer(tmp_path, 2, limit_val_batches=0)
    further.fit(module, datamodule=data)
    expected = torch.load(tmp_path / "parser.ckpt", weights_only=True)["state_dict"]
    for name, value in module.parser.state_dict().items():
        assert torch.equal(value, expected[name]), name
    alone = TextToSql(parser_from=str(tmp_path / "parser.ckpt"))
    with pytest.raises(ValueError, match="nothing to train"):
        trainer(tmp_path, 1).fit(alone, datamodule=data)
    trainer(tmp_path, 1).test(alone, datamodule=data, verbose=False)
    further.save_checkpoint(tmp_path / "pipeline.ckpt")
    (tmp_path / "parser.ckpt").unlink()
    again = pipeline(**settings)
    again.await_checkpoint(torch.load(tmp_path / "pipeline.ckpt", weights_only=True))
    longer = trainer(tmp_path, 4, limit_val_batches=0)
    longer.fit(again, datamodule=data, ckpt_path=tmp_path / "pipeline.ckpt")
    for name, value in again.parser.state_dict().items():
        assert torch.equal(value, expected[name]), name
    changed = zip(again.rewriter.parameters(), module.rewriter.parameters(), strict=True)
    assert not all(torch.equal(new, old) for new, old in changed)


def test_dual_learning_hears_the_parser(data: Concerts, tmp_path: Path) -> None:
    for name, part in (("parser", parser()), ("rewriter", rewriter(simplifier=True))):
        run = trainer(tmp_path, 2, limit_val_batches=0)
        run.fit(part, datamodule=data)
        run.save_checkpoint(tmp_path / f"{name}.ckpt")
    dual = rewriter(mode="dual", init=str(tmp_path / "rewriter.ckpt"), dual={"samples": 2})
    module = pipeline(parser_from=str(tmp_path / "parser.ckpt"), rewriter=dual)
    data.turns = [replace(example, rewrite=None, query=None) for example in data.turns]
    run = trainer(tmp_path, 2, limit_val_batches=0)
    run.fit(module, datamodule=data)
    assert {"dual/rewriter/reward_parser", "dual/simplifier/reward"} <= set(run.callback_metrics)
    run.save_checkpoint(tmp_path / "dual.ckpt")
    whole = {name: str(tmp_path / "dual.ckpt") for name in ("parser_from", "rewriter_from")}
    again = TextToSql(**whole)
    again.configure_model()
    for name, value in module.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    assert again.rewrite(data.turns) == module.rewrite(data.turns)
    with pytest.raises(ValueError, match=r"module\.parser_from=RUN"):
        pipeline(rewriter=dual)


def test_the_parsers_verdict_is_a_match_or_a_result(
    trained: tuple[Path, Path], data: Concerts
) -> None:
    path, _ = trained
    module = restored(path)
    golds = [example.rewrite or "" for example in data.turns]
    known = module.verify(data.turns, golds)
    assert sum(known) > len(known) / 2
    nothing = [replace(example, query=None) for example in data.turns]
    assert set(module.verify(nothing, golds)) <= {0.0, 1.0}
    module.rewriter.dual_settings["verdict"] = "likelihood"
    likely = module.verify(data.turns, golds)
    # What matches is likelier than not, choice by choice; another turn's question is less likely.
    assert all(chance > 0.5 for chance, match in zip(likely, known, strict=True) if match)
    assert sum(module.verify(data.turns, golds[1:] + golds[:1])) < 0.8 * sum(likely)
    # A value that is left out is paid for, and the rest of the question still counts.
    place = next(i for i, e in enumerate(data.turns) if "'" in (e.query or ""))
    example, (value,) = data.turns[place], re.findall("'(.+?)'", data.turns[place].query or "")
    assert value in golds[place]
    without = golds[place].replace(value, "somewhere")
    (chance,) = module.verify([example], [without])
    assert 0 < chance < likely[place] / 1.5
    assert example.schema is not None
    assert example.query is not None
    asked = (without, example.schema, example.database), example.query
    assert module.parser.reader.costs([asked]) == [float("inf")]
    mixed = module.verify([data.turns[0], nothing[1]], golds[:2])
    assert mixed[0] == pytest.approx(likely[0])
    assert mixed[1] in {0.0, 1.0}
    assert module.verify([replace(nothing[0], database=None)], golds[:1]) == [0.0]
    assert module.verify([replace(nothing[0], schema=None, database=None)], golds[:1]) == [0.0]


def test_recursive_rewriting_reads_the_rewrite_before(
    trained: tuple[Path, Path], data: Concerts, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = trained
    module = restored(path, recursive=True)
    seen: list[tuple[str, ...]] = []
    inner = module.rewriter.rewrite

    def watched(examples: Any) -> list[str]:
        seen.extend(example.history for example in examples)
        return inner(examples)

    monkeypatch.setattr(module.rewriter, "rewrite", watched)
    written = module.rewrite(data.turns[:3])
    assert seen[-3:] == [(), (written[0],), (written[1],)]
    # Whichever turns come together, as on several devices or where some turns have no SQL.
    assert module.rewrite([data.turns[2], data.turns[0]]) == [written[2], written[0]]


def test_a_conversation_shows_question_sql_and_result(
    trained: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, database = trained
    before = database.read_bytes()
    lines = iter(
        [
            ":why", "Show all singers.", "Which of them are from France?", "How many are there?",
            ":why", ":schema", ":what", "", ":reset", "Which singers are older than 30?", ":quit",
        ]
    )  # fmt: skip
    monkeypatch.setattr("builtins.input", lambda *_: next(lines))
    metrics = restored(path).chat(None, database=str(database))
    assert metrics["turns"] == 4
    assert 0 < metrics["seconds_per_turn"] < 30
    out = capsys.readouterr().out
    for words in ("question", "SELECT", "Nothing was asked yet", "names tables", "forgotten"):
        assert words in out
    assert "singer_in_concert" in out  # :schema
    assert database.read_bytes() == before


def test_a_conversation_ends_with_its_input(
    trained: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(*_: Any) -> str:
        raise EOFError

    monkeypatch.setattr("builtins.input", ended)
    path, database = trained
    assert restored(path).chat(None, database=str(database))["turns"] == 0


def test_what_a_conversation_needs_is_named(trained: tuple[Path, Path], tmp_path: Path) -> None:
    path, _ = trained
    with pytest.raises(ValueError, match="database=FILE"):
        restored(path).chat(None)
    with pytest.raises(ValueError, match=r"nothing\.sqlite"):
        restored(path).chat(None, database=f"{tmp_path}/nothing.sqlite")


def test_parts_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"parser_from"):
        TextToSql().configure_model()
    with pytest.raises(ValueError, match=r"module\.parser: reads history=4 utterances"):
        pipeline(parser=parser(history=4, read="utterance")).configure_model()
    (tmp_path / "other.ckpt").write_bytes(b"")
    torch.save({"hyper_parameters": {"no": 1}, "state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"module\.rewriter_from=.*UtteranceRewriter"):
        TextToSql(parser=parser(), rewriter_from=str(tmp_path / "other.ckpt")).configure_model()

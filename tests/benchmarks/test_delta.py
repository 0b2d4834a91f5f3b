"""The benchmark of DELTA: speed, arms and the curve of annotation, in a JSON that goes on."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import delta
from tests.test_experiments import tiny_parser, tiny_rewriter


def run(path: Path, cache_dir: Path, *arguments: str) -> dict[str, Any]:
    """Run it on few dialogues, with tiny models."""
    sizes = ("dialogues=90", "test_dialogues=9", "questions=40", "batch_size=8")
    small = [*tiny_parser("module.parser"), *tiny_rewriter("module.rewriter")]
    small += [f"paths.cache_dir={cache_dir}", *(f"datamodule.{size}" for size in sizes)]
    overrides = [part for each in small for part in ("--override", each)]
    return delta.main(
        ["--quick", "--steps", "40", "--turns", "6", "--timed", "4", "--batches", "1", "4",
         "--json", str(path), *overrides, *arguments]
    )  # fmt: skip


@pytest.mark.slow
def test_speed_and_arms_of_what_it_trains_and_of_runs_that_are_given(
    tmp_path: Path,
    cache_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    trained: dict[str, Any] = {}
    fit = delta.Laboratory.fit

    def remembered(self: delta.Laboratory, model: Any, *given: Any) -> None:
        fit(self, model, *given)
        trained[f"{type(model).__name__} {getattr(model, 'history', 0)}"] = model

    monkeypatch.setattr(delta.Laboratory, "fit", remembered)
    path = tmp_path / "delta.json"
    run(path, cache_dir)
    result = json.loads(path.read_text())
    assert set(result["arms"]) == {"raw", "rewritten", "gold rewrite", "end-to-end"}
    for arm in result["arms"].values():
        assert 0 <= arm["exact_interaction"] <= arm["exact"] <= 1
        assert arm["turns"] == 6
    speed = result["speed"]
    for rates in speed["turns_per_second"].values():
        assert all(rates[batch] > 0 for batch in ("1", "4"))
    assert all(0 < share < 1 for share in speed["grammar_share"].values())
    assert {"settings", "seeds", "versions", "data"} <= result.keys()
    assert "turns per second" in capsys.readouterr().out

    # The same models from their checkpoints: nothing is trained, and they answer the same.
    places = {}
    for name, model in trained.items():
        content = {"hyper_parameters": dict(model.hparams), "state_dict": model.state_dict()}
        model.on_save_checkpoint(content)
        places[name] = tmp_path / f"{name}.ckpt"
        torch.save(content, places[name])
    monkeypatch.setattr(delta.Laboratory, "fit", None)
    given = ["--parser", str(places["SqlParser 0"]), "--no-speed"]
    given += ["--rewriter", f"one={places['UtteranceRewriter 0']}"]
    given += ["--end-to-end", str(places["SqlParser 4"])]
    again = run(tmp_path / "given.json", cache_dir, *given)["arms"]
    assert set(again) == {"raw", "one", "gold rewrite", "end-to-end"}
    assert again["one"]["exact"] == result["arms"]["rewritten"]["exact"]
    assert again["end-to-end"]["exact"] == result["arms"]["end-to-end"]["exact"]


@pytest.mark.slow
def test_the_curve_goes_on_from_its_json_and_is_drawn(
    tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "delta.json"
    only = ("--no-speed", "--no-arms", "--curve", "--shares")
    run(path, cache_dir, *only, "0")
    found = json.loads(path.read_text())["curve"]
    assert set(found) == {"end-to-end", "decoupled"}
    assert found["decoupled"]["0"]["seed 1"]["annotated_turns"] == 0
    # What is known already is not trained again.
    monkeypatch.setattr(delta.Laboratory, "end_to_end", None)
    monkeypatch.setattr(delta.Laboratory, "decoupled", None)
    run(path, cache_dir, *only, "0")
    assert json.loads(path.read_text())["curve"] == found
    monkeypatch.undo()
    run(path, cache_dir, *only, "0", "1")
    result = json.loads(path.read_text())
    assert result["curve"]["decoupled"]["0"] == found["decoupled"]["0"]
    assert result["curve"]["decoupled"]["1"]["seed 1"]["annotated_turns"] > 100
    assert result["ledger"]["quality"][0]["better"] == "higher"
    assert path.with_suffix(".png").stat().st_size > 10_000


def test_the_ledger_holds_turns_at_equal_match() -> None:
    """Decoupled reaches with 10 turns what end-to-end has with 100; or never does."""
    rows = [(0, 0.1, 0.3), (10, 0.2, 0.5), (100, 0.45, 0.6)]
    found: delta.Curve = {way: {} for way in delta.WAYS}
    for turns, theirs, ours in rows:
        for way, match in zip(delta.WAYS, (theirs, ours), strict=True):
            row = {"exact": match, "annotated_turns": turns}
            found[way][str(turns)] = {"seed 1": row, "seed 2": row}
    ledger = delta.ledger_of(found)
    (saving,) = ledger.savings
    assert (saving.spent, saving.baseline, saving.saved) == (10, 100, 0.9)
    assert ledger.quality[0].gain == pytest.approx(0.05)
    for row in found["decoupled"].values():
        row["seed 1"]["exact"] = 0.0
    assert delta.ledger_of(found).savings == ()
    assert delta.ledger_of({}) is None


def test_what_cannot_be_compared_is_refused(tmp_path: Path, cache_dir: Path) -> None:
    with pytest.raises(SystemExit):
        delta.parse(["--rewriter", "run"])
    with pytest.raises(SystemExit):
        delta.parse(["--parser", "run", "--rewriter", "a", "--rewriter", "b"])
    with pytest.raises(ValueError, match="there is nothing to train on"):
        run(
            tmp_path / "x.json", cache_dir, "--no-speed", "--no-arms", "--curve", "--shares", "0",
            "--override", "datamodule.questions=0",
        )  # fmt: skip

"""The picture shows what stands in the runs' records, each over the FLOPs that it spent."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import picture


def run_folder(folder: Path, losses: dict[int, float], saved: float | None, **record: Any) -> None:
    """Leave what a training of 10 steps leaves; with `saved` by a method that counts FLOPs."""
    folder.mkdir(parents=True)
    flops = {"quantity": "FLOPs counted, blocks", "unit": "FLOPs", "baseline": 10e12}
    ledger = {"method": "EST", "baseline": "dense", "quality": [], "notes": []}
    ledgers = {}
    if saved is not None:
        ledgers["est"] = {**ledger, "savings": [{**flops, "spent": (1 - saved) * 10e12}]}
    content = {"status": "finished", "task": "train", "seed": 1, "id": "a", "ledgers": ledgers}
    content["arm"] = "dense" if saved is None else "est"
    metrics = {"val/loss": list(losses.values())[-1]}
    (folder / "run.json").write_text(json.dumps({**content, "metrics": metrics, **record}))
    with (folder / "metrics.csv").open("w", newline="") as file:
        rows = csv.DictWriter(file, ["step", "val/loss", "est/counted_flops_saved_blocks"])
        rows.writeheader()
        for step, loss in losses.items():
            # A row of training says what was saved until now, the next one is the validation's.
            rows.writerow({"step": step, "est/counted_flops_saved_blocks": saved or ""})
            rows.writerow({"step": step, "val/loss": loss})


def test_losses_and_savings_are_those_of_the_records(tmp_path: Path) -> None:
    run_folder(tmp_path / "est" / "1", {5: 5.5, 10: 4.25}, 0.4)
    run_folder(tmp_path / "est" / "2", {5: 5.7, 10: 4.375}, 0.4, seed=2)
    run_folder(tmp_path / "est" / "3", {5: 1.0}, 0.4, status="failed")
    run_folder(tmp_path / "dense" / "1", {5: 5.0, 10: 4.0}, None)
    arms = [f"EST={tmp_path}/est", f"dense={tmp_path}/dense"]
    pictures = [tmp_path / name / "picture.svg" for name in ("a", "b")]
    for path in pictures:
        picture.main([*arms, "--out", str(path)])
    drawn = pictures[0].read_text()
    for words in ("4.250  4.375", "4.000  -", "seeds 1 2", "40.0 %", "EST", "dense"):
        assert f">{words}<" in drawn
    assert drawn == pictures[1].read_text()


def test_a_method_s_steps_cost_less_than_dense_ones(tmp_path: Path) -> None:
    run_folder(tmp_path / "est", {5: 5.5, 10: 4.25}, 0.4)
    run_folder(tmp_path / "dense", {5: 5.0, 10: 4.0}, None)
    (est,), (dense,) = picture.read(tmp_path / "est"), picture.read(tmp_path / "dense")
    assert picture.ledger_of(est)[1] == 1e12
    assert picture.over_flops(est, 1e12) == {5: (3e12, 5.5), 10: (6e12, 4.25)}
    assert picture.over_flops(dense, 1e12) == {5: (5e12, 5.0), 10: (10e12, 4.0)}


def test_an_arm_is_drawn_once_a_seed_at_the_steps_that_all_seeds_have(tmp_path: Path) -> None:
    run_folder(tmp_path / "old", {5: 9.0, 10: 9.0}, None, started="2026-01-01", id="b")
    run_folder(tmp_path / "new", {5: 5.0, 10: 4.0}, None, started="2026-01-02")
    run_folder(tmp_path / "two", {10: 4.5}, None, seed=2)
    assert [run.folder.name for run in picture.read(tmp_path)] == ["new", "two"]
    run_folder(tmp_path / "est", {5: 5.5, 10: 4.25}, 0.4)
    arms = [f"EST={tmp_path}/est", f"dense={tmp_path}/[nt]*"]
    picture.main([*arms, "--out", str(tmp_path / "a.svg")])
    assert ">4.000  4.500<" in (tmp_path / "a.svg").read_text()


@pytest.mark.parametrize(
    ("arms", "words"),
    [
        (["EST={}/nothing"], "there is no such folder"),
        (["EST={}/failed"], "no run folder of a finished training"),
        (["dense={}/dense"], "name EST's runs first"),
        (["{}/dense"], "NAME=FOLDER"),
        (["EST={}/dense", "EST={}/dense"], "a name of its own"),
        (["EST={}/both"], "differ in more than their seeds"),
    ],
)
def test_what_cannot_be_drawn_is_said(
    arms: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_folder(tmp_path / "dense", {5: 5.0, 10: 4.0}, None)
    run_folder(tmp_path / "failed", {5: 5.0, 10: 4.0}, None, status="failed")
    run_folder(tmp_path / "both" / "1", {5: 5.0, 10: 4.0}, None)
    run_folder(tmp_path / "both" / "2", {5: 5.0, 10: 4.0}, 0.4)
    with pytest.raises(SystemExit):
        picture.main([*(arm.format(tmp_path) for arm in arms), "--out", str(tmp_path / "a.svg")])
    assert words in capsys.readouterr().err
    assert not (tmp_path / "a.svg").exists()

"""Tables are filled from run.json, by hand-computed figures; what has finished is not run again."""

import json
import pydoc_data.topics
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import reproduce
from benchmarks.reproduce import TABLES, Arm, Cell, Claim, Run, Scale, Table, figure_of, verdict
from ledger import Ledger
from reports import registry

SMALL = Table(
    name="small",
    title="Small",
    arms={"dense": Arm("est_gpt2"), "ours": Arm("est_gpt2", steps=0.5)},
    cells={
        "loss": Cell(value="metrics.val/other | metrics.val/loss"),
        "minus": Cell(value="metrics.val/loss", against="dense"),
        "time": Cell(value="metrics.seconds", against="dense", how="saved", percent=True),
        "saved": Cell(ledger=("est", "FLOPs"), percent=True),
    },
    paper=(
        Claim("a quarter is saved", "ours", "saved", 0.25, 0.01, "higher"),
        Claim("the loss does not rise", "ours", "minus", 0.0, 0.01, "lower"),
    ),
    scales={"demo": Scale(seeds=(1, 2), steps=100)},
)


def run_folder(
    folder: Path, loss: float, seconds: float, digest: str = "x", **more: Any
) -> registry.Run:
    """What a run leaves, as far as a table reads it."""
    folder.mkdir(parents=True)
    record = {
        "id": folder.name,
        "task": "train",
        "status": "finished",
        "config_hash": digest,
        "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
        "metrics": {"val/loss": loss, "seconds": seconds},
        "ledgers": {},
        **more,
    }
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "metrics.csv").write_text("step,val/loss\n1,3.5\n2,\n3,2.5\n4,3.0\n")
    return registry.read(folder)


def ledger(spent: float, baseline: float | None) -> dict[str, Any]:
    row = {"quantity": "FLOPs", "unit": "FLOPs", "spent": spent, "baseline": baseline}
    return {"est": asdict(Ledger("EST", "dense")) | {"savings": [row]}}


def test_cells_equal_a_computation_by_hand(tmp_path: Path) -> None:
    runs = {
        ("dense", 1): run_folder(tmp_path / "a", 3.0, 100),
        ("dense", 2): run_folder(tmp_path / "b", 3.2, 100),
        ("ours", 1): run_folder(tmp_path / "c", 3.1, 80, ledgers=ledger(74, 100)),
        ("ours", 2): run_folder(tmp_path / "d", 3.1, 70, ledgers=ledger(76, 100)),
    }
    filled = reproduce.fill(SMALL, runs)
    assert filled["ours"]["loss"] == {1: 3.1, 2: 3.1}
    assert filled["ours"]["minus"] == pytest.approx({1: 0.1, 2: -0.1})
    assert filled["ours"]["time"] == pytest.approx({1: 0.2, 2: 0.3})
    assert filled["ours"]["saved"] == pytest.approx({1: 0.26, 2: 0.24})
    assert set(filled["dense"]) == {"loss"}  # itself is no baseline of itself; it has no ledger

    result = reproduce.result_of(SMALL, "demo", SMALL.scales["demo"], runs)
    assert [claim["verdict"] for claim in result["paper"]] == ["same", "same"]
    assert result["seconds"] == 350
    text = reproduce.markdown(SMALL, json.loads(json.dumps(result)))
    assert "| dense | 3.1 +- 0.1414 |  |  |  |" in text
    assert "| ours | 3.1 +- 0 | 0 +- 0.1414 | 25.0 % +- 7.1 % | 25.0 % +- 1.4 % |" in text
    assert "| a quarter is saved | 25.0 % | 25.0 % | same |" in text


def test_an_arm_may_have_a_baseline_of_its_own(tmp_path: Path) -> None:
    """Losses of two tasks say nothing about each other."""
    arms = {**SMALL.arms, "dense, other task": Arm("b", against="dense, other task")}
    arms["ours, other task"] = Arm("b", against="dense, other task")
    runs = {
        (arm, 1): run_folder(tmp_path / arm, loss, 1.0)
        for arm, loss in zip(arms, (3.0, 3.5, 1.0, 1.25), strict=True)
    }
    filled = reproduce.fill(replace(SMALL, arms=arms), runs)
    assert {arm: cells["minus"] for arm, cells in filled.items() if "minus" in cells} == {
        "ours": {1: 0.5},
        "ours, other task": {1: 0.25},
    }


def test_what_was_not_run_stays_empty(tmp_path: Path) -> None:
    runs = {("ours", 2): run_folder(tmp_path / "c", 3.1, 80, ledgers=ledger(1, None))}
    result = reproduce.result_of(SMALL, "demo", SMALL.scales["demo"], runs)
    assert result["arms"] == {"dense": {}, "ours": {"loss": {2: 3.1}}}
    assert {claim["verdict"] for claim in result["paper"]} == {"not run at this scale"}
    text = reproduce.markdown(SMALL, result)
    assert "| dense |  |  |  |  |" in text
    assert "Missing: dense, seed 1; ours, seed 1; dense, seed 2." in text


def test_figures_of_a_run(tmp_path: Path) -> None:
    more = {"data": {"annotated": {"query": 7}}}
    run = run_folder(tmp_path / "run", 3.0, 1.0, **more)
    assert figure_of(Cell(value="data.annotated.query"), run) == 7
    assert figure_of(Cell(value="lowest.val/loss"), run) == 2.5
    assert figure_of(Cell(value="lowest.val/none"), run) is None
    assert figure_of(Cell(value=("metrics.val/loss", "metrics.seconds")), run) == 2.0
    assert figure_of(Cell(value=("metrics.val/loss", "metrics.none")), run) is None


@pytest.mark.parametrize(
    ("value", "figure", "better", "words"),
    [
        (0.24, 0.25, "higher", "same"),
        (0.40, 0.25, "higher", "same"),  # better
        (0.10, 0.25, "higher", "same direction"),
        (-0.10, 0.25, "higher", "different"),
        (0.10, 0.0, "lower", "different"),
        (-0.5, 0.0, "lower", "same"),
        (None, 0.0, "lower", "not run at this scale"),
    ],
)
def test_verdicts(value: float | None, figure: float, better: Any, words: str) -> None:
    assert verdict(Claim("", "", "", figure, 0.02, better), value) == words


def test_a_claim_of_an_effect_without_a_figure_needs_one() -> None:
    claim = Claim("it is ahead", "", "", figure=0.0, within=0.0, better="higher")
    assert [verdict(claim, value) for value in (0.01, 0.0, -0.01)] == ["same", *["different"] * 2]
    assert verdict(Claim("80 %", "", "", 0.8, 0.0, "higher"), 0.8) == "same"


def test_a_finished_run_of_the_same_config_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[Run] = []

    def start(self: Run) -> int:
        started.append(self)
        if (self.arm, self.seed) == ("ours", 2):
            return 3  # refused, say
        run_folder(self.folder / f"run-{len(started)}", 3.0, 1.0, self.digest)
        return 0

    monkeypatch.setattr(Run, "start", start)
    monkeypatch.setattr(reproduce, "checked", lambda overrides: {"overrides": overrides})
    args = reproduce.parse(["est", "--results", str(tmp_path / "results")])
    scale = SMALL.scales["demo"]
    runs = reproduce.runs_of(SMALL, scale, tmp_path)
    steps = [run.overrides[-1] for run in runs[:2]]
    assert steps == ["trainer.max_steps=100", "trainer.max_steps=50"]
    assert reproduce.reproduce(SMALL, scale, runs, args) == 1
    assert [(run.arm, run.seed) for run in started] == [
        ("dense", 1), ("ours", 1), ("dense", 2), ("ours", 2)
    ]  # fmt: skip
    assert "ours, seed 2 ended with code 3" in capsys.readouterr().out
    result = json.loads((tmp_path / "results" / "small-demo.json").read_text())
    assert set(result["runs"]) == {"dense, seed 1", "ours, seed 1", "dense, seed 2"}
    # Again: the one that failed, and no other. Longer: all.
    assert reproduce.reproduce(SMALL, scale, runs, args) == 1
    assert len(started) == 5
    further = {"ours": ["module.only=1"]}
    longer = reproduce.runs_of(SMALL, Scale(seeds=(1,), steps=200, arm_overrides=further), tmp_path)
    assert ["module.only=1" in run.overrides for run in longer] == [False, True]
    assert reproduce.reproduce(SMALL, scale, longer, args) == 0
    assert len(started) == 7


def test_the_pages_section_says_what_the_results_say(tmp_path: Path) -> None:
    """Again and again, and nothing else of the page changes."""
    table = Table.read(TABLES / "dlch.yaml")
    runs = {}
    for arm, share in (("lifelong", 0.75), ("no update", 0.6)):
        metrics = {f"val/map_all_{d}": share for d in ("i2t", "t2i")} | {"seconds": 1.0}
        runs[arm, 1] = run_folder(tmp_path / "runs" / arm, 0, 1, metrics=metrics)
    folder = tmp_path / "results"
    folder.mkdir()
    result = reproduce.result_of(table, "demo", table.scales["demo"], runs)
    (folder / "dlch-demo.json").write_text(json.dumps(result))
    page = "\n".join(["before", *reproduce.MARKS, "after"])
    once = reproduce.page_with(page, folder)
    assert once.startswith("before\n")
    assert once.endswith("\nafter")
    assert "| [dlch](results/dlch-demo.md) | demo | retrieval gains over 20 % | 20.0 % |" in once
    assert "| 25.0 % | same | 1 |" in once
    assert "| 80.0 % |  | not run at this scale | 0 |" in once
    assert reproduce.page_with(once, folder) == once


def test_a_table_that_names_what_it_has_not_is_refused(tmp_path: Path) -> None:
    content = yaml.safe_load((TABLES / "dlch.yaml").read_text())
    content["cells"]["gain over no update"]["against"] = "nothing"
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    with pytest.raises(ValueError, match="arm 'nothing' is not one of: lifelong"):
        Table.read(tmp_path / "bad.yaml")


@pytest.mark.parametrize("name", sorted(path.stem for path in TABLES.glob("*.yaml")))
def test_every_table_can_be_run_for_a_demo(name: str, tmp_path: Path) -> None:
    table = Table.read(TABLES / f"{name}.yaml")
    args = reproduce.parse([name, "--outputs", str(tmp_path)])
    runs = reproduce.runs_of(table, reproduce.asked_of(table, args), tmp_path)  # checks each
    assert len({run.digest for run in runs}) == len(runs) >= 3
    assert set(table.scales) == set(reproduce.SCALES)


def test_each_model_gets_its_own_tokens_for_a_parameter(tmp_path: Path) -> None:
    arms = {"GPT-2": Arm("est_gpt2"), "Llama": Arm("est_tinyllama")}
    table = replace(SMALL, arms={**arms, "half": Arm("est_tinyllama", steps=0.5)})
    runs = reproduce.runs_of(table, Scale(tokens_per_parameter=10), tmp_path)
    steps = {run.arm: int(run.overrides[-1].removeprefix("trainer.max_steps=")) for run in runs}
    # Parameters of four blocks of width 64, and steps of 64 x 64 tokens.
    parameters = {"GPT-2": 4 * 49_984, "Llama": 4 * 44_160}
    for arm, count in parameters.items():
        assert steps[arm] == round(10 * count / 4096)
    assert steps["half"] == round(5 * parameters["Llama"] / 4096)


def test_refused_before_anything_starts(capsys: pytest.CaptureFixture[str]) -> None:
    assert reproduce.main(["est", "--arms", "sparse"]) == 2
    assert "est has no arm 'sparse'" in capsys.readouterr().err
    assert reproduce.main(["dlch", "--seeds", "1", "--set", "datamodule.clas_seed=1"]) == 2
    assert "Did you mean datamodule.class_seed" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_is_found_by_its_config(
    tmp_path: Path, cache_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of run.py itself: two arms of a few steps, and a second call that runs nothing."""
    text = tmp_path / "topics.txt"
    text.write_text("\n".join(pydoc_data.topics.topics.values())[:100_000])
    arguments = ["est", "--arms", "dense", "EST", "--tokens-per-parameter", "0.04"]
    for setting in (
        "datamodule=text",
        f"datamodule.files={text}",
        "datamodule.batch_size=8",
        f"paths.cache_dir={cache_dir}",
    ):
        arguments += ["--set", setting]
    arguments += ["--outputs", str(tmp_path / "runs"), "--results", str(tmp_path)]
    assert reproduce.main(arguments) == 0
    result = json.loads((tmp_path / "est-demo.json").read_text())
    assert result["arms"]["EST"]["block FLOPs saved"]["1"] > 0.2
    capfd.readouterr()
    assert reproduce.main(arguments) == 0
    assert "run 1 of" not in capfd.readouterr().out

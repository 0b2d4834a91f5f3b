"""Arms hold what differs by seed alone; means, spreads and intervals equal a hand computation."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from reports.configs import differences, shortened
from reports.registry import Run, find
from reports.statistics import Arm, arms_of, baseline_of, paired, saved, spread
from tests.reports.study import make_run, make_study


def arms(folder: Path) -> dict[str, Arm]:
    return {arm.label: arm for arm in arms_of(find([folder])[0])[0]}


def test_a_study_of_two_arms_and_three_seeds_by_hand(tmp_path: Path) -> None:
    make_study(tmp_path)
    found = arms(tmp_path)
    assert [len(found[label].runs) for label in ("dense", "est")] == [3, 3]
    ours, base = (found[label].values("train/loss") for label in ("est", "dense"))
    mean = spread([*ours.values()])
    assert mean is not None
    assert mean.mean == pytest.approx(4.4)
    assert mean.std == pytest.approx(math.sqrt((0.3**2 + 0.1**2 + 0.2**2) / 2))
    gap = paired(ours, base)
    assert gap is not None
    assert gap.interval is not None
    # Differences 0.1, 0.3, 0.2: their standard deviation is 0.1; t of 2 degrees is 4.302653.
    half = 4.302653 * 0.1 / math.sqrt(3)
    assert gap.mean == pytest.approx(0.2)
    assert gap.n == 3
    assert gap.interval == pytest.approx((0.2 - half, 0.2 + half), abs=1e-6)
    share = saved(found["est"].savings()["EST", "FLOPs counted, blocks"])
    assert share is not None
    assert share.mean == pytest.approx(0.25)
    assert share.std == pytest.approx(0)
    assert share.n == 3


def test_pairs_are_the_seeds_that_both_have() -> None:
    gap = paired({"1": 2.0, "2": 3.0, "7": 100.0}, {"1": 1.0, "2": 1.0, "9": 50.0})
    assert gap is not None
    assert (gap.mean, gap.n) == (1.5, 2)
    assert paired({"1": 2.0}, {"2": 1.0}) is None
    single = paired({"1": 2.0}, {"1": 1.5})
    assert single is not None
    assert (single.mean, single.interval) == (0.5, None)


def test_one_run_has_a_mean_and_no_spread() -> None:
    one = spread([3.0])
    assert one is not None
    assert (one.mean, one.std) == (3.0, None)
    assert spread([]) is None


def test_settings_in_which_arms_differ_tell_arms_of_one_name_apart(tmp_path: Path) -> None:
    make_run(tmp_path, "lr", 1, steps=range(10, 51, 10))
    make_run(tmp_path, "lr", 2)
    assert set(arms(tmp_path)) == {"lr (max_steps=50)", "lr (max_steps=100)"}


def test_a_setting_that_repeats_one_nearer_to_the_top_is_told_once(tmp_path: Path) -> None:
    for rate in (1, 2):
        folder = make_run(tmp_path, "x", 1, loss=rate, method={"rate": rate})
        config = folder / "config.yaml"
        config.write_text(f"{config.read_text()}rate: {rate}\n")
    assert set(arms(tmp_path)) == {"x (rate=1)", "x (rate=2)"}


def test_seeds_of_the_data_are_seeds_by_which_runs_are_paired(tmp_path: Path) -> None:
    for seed, classes in ((1, 1), (1, 2), (2, 1)):
        base = 4.0 + seed + classes / 10
        for name, loss in (("a", base), ("b", base + classes)):
            data = {"class_seed": classes, "source": name}
            make_run(tmp_path, name, seed, loss=loss, data=data)
    found = arms(tmp_path)
    assert {label: len(arm.runs) for label, arm in found.items()} == {"a": 3, "b": 3}
    gap = paired(*(found[label].values("train/loss") for label in ("b", "a")))
    assert gap is not None
    assert gap.mean == pytest.approx(4 / 3)
    assert gap.n == 3
    # A comparison of runs still shows it.
    assert differences([run.config for run in found["a"].runs]) == {
        "datamodule.class_seed": [1, 2, 1]
    }


def test_arms_of_one_method_and_its_baseline_have_names_of_their_own(tmp_path: Path) -> None:
    """A node that one of them lacks hides no setting in which the others differ."""
    for loss, rate in ((4.0, 0.25), (4.5, 0.5)):
        make_run(
            tmp_path, "x", 1, loss=loss, method={"_target_": "callbacks.est.EST", "rate": rate}
        )
    make_run(tmp_path, "x", 1, loss=5.0)
    names = {"x (est=EST, rate=0.25)", "x (est=EST, rate=0.5)", "x (est=null)"}
    assert set(arms(tmp_path)) == names


def test_runs_names_tell_arms_of_one_experiment_apart_and_the_nearest_is_the_baseline(
    tmp_path: Path,
) -> None:
    record = {"experiment": "est_gpt2"}
    make_run(tmp_path, "est_gpt2", 1, method={"_target_": "a.EST"}, record=record)
    make_run(tmp_path, "est_gpt2-dense", 1, record=record)
    make_run(tmp_path, "short", 1, steps=range(10, 51, 10), record=record)
    found = arms(tmp_path)
    assert set(found) == {"est_gpt2", "est_gpt2-dense", "short"}
    assert baseline_of([*found.values()]) is found["est_gpt2-dense"]


def test_settings_with_one_last_word_are_told_by_their_whole_keys() -> None:
    keys = ("module.optimizer.name", "module.lr", "module.parser.lr", "trainer.max_steps")
    assert shortened(keys, ["name"]) == {**{key: key for key in keys[:3]}, keys[3]: "max_steps"}


def test_names_that_carry_the_seed_are_one_arm(tmp_path: Path) -> None:
    make_run(tmp_path, "run-1", 1)
    make_run(tmp_path, "run-2", 2)
    assert {label: len(arm.runs) for label, arm in arms(tmp_path).items()} == {"run": 2}


def test_only_finished_runs_count_and_the_newest_of_a_seed(tmp_path: Path) -> None:
    make_run(tmp_path, "a", 1, loss=5.0, record={"started": "2026-01-01"})
    newest = make_run(tmp_path, "a", 1, loss=4.0, record={"started": "2026-01-02"})
    make_run(tmp_path, "a", 2, record={"status": "failed"})
    (arm,), left_out = arms_of(find([tmp_path])[0])
    assert [run.folder for run in arm.runs] == [newest]
    assert len(left_out) == 2
    assert left_out[0].endswith("failed")


def test_a_test_of_a_checkpoint_belongs_to_the_run_that_trained_it(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "a", 1)
    record = {
        "task": "test",
        "checkpoint": str(folder / "checkpoints" / "best.ckpt"),
        "metrics": {"test/accuracy": 0.75},
        "id": "other",
    }
    make_run(tmp_path, "a", 1, loss=0.0, record=record)
    (arm,), left_out = arms_of(find([tmp_path])[0])
    assert left_out == []
    assert arm.values("test/accuracy") == {"1": 0.75}
    assert arm.values("train/loss") == {"1": 4.0}


def evaluated(folder: Path, number: int, task: str, metrics: dict[str, float], **data: Any) -> None:
    """Leave a validation or test of a run's best checkpoint."""
    record = {
        "task": task,
        "checkpoint": str(folder / "checkpoints" / "best.ckpt"),
        "metrics": metrics,
        "id": f"test{number}",
        "started": f"2026-01-02T00:00:0{number}+00:00",
    }
    make_run(folder.parents[1], "a", 1, loss=10.0 + number, record=record, data=data)


def test_a_test_changes_no_figure_of_the_training_and_the_newest_counts(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "a", 1)
    evaluated(folder, 1, "test", {"test/accuracy": 0.25})
    evaluated(folder, 2, "test", {"test/accuracy": 0.5})
    evaluated(folder, 3, "validate", {"val/loss": 1.0})
    evaluated(folder, 4, "test", {"test/accuracy": 0.75}, source="other", num_workers=2)
    (arm,), left_out = arms_of(find([tmp_path])[0])
    assert arm.values("test/accuracy") == {"1": 0.5}
    assert arm.values("val/loss") == {"1": 4.5}
    assert [line.partition(": ")[2] for line in left_out] == [
        "test2 is newer, a test of the same run",
        f"test of {arm.runs[0].id} with other data: datamodule.source=other",
        f"the last figures of {arm.runs[0].id} stand for it",
    ]


def test_a_copy_of_a_run_counts_once(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "outputs", "a", 1)
    shutil.copytree(tmp_path / "outputs", tmp_path / "moved")
    (arm,), left_out = arms_of(find([tmp_path / "outputs", tmp_path / "moved"])[0])
    assert len(arm.runs) == 1
    copy = tmp_path / "moved" / folder.relative_to(tmp_path / "outputs")
    assert left_out == [f"{copy}: a copy of {folder}"]


def test_the_baseline_is_the_arm_without_a_method_or_the_one_asked_for(tmp_path: Path) -> None:
    make_study(tmp_path)
    found = arms(tmp_path)
    both = list(found.values())
    assert baseline_of(both) is found["dense"]
    assert baseline_of(both, "est") is found["est"]
    assert baseline_of(both, found["est"].runs[0].id) is found["est"]
    assert baseline_of([found["est"]]) is None
    with pytest.raises(ValueError, match=r"baseline=nobody.*dense, est"):
        baseline_of(both, "nobody")


def test_what_was_not_finite_is_no_value(tmp_path: Path) -> None:
    make_run(tmp_path, "a", 1, record={"metrics": {"val/loss": None, "train/loss": 1.0}})
    (run,), _ = find([tmp_path])
    assert isinstance(run, Run)
    assert (run.figures, run.not_finite) == ({"train/loss": 1.0}, ["val/loss"])

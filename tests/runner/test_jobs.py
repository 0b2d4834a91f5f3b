"""Jobs as commands of their own: they go the way of a job that Hydra runs itself."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from rich.console import Console

from reports.run_record import RUN_FILE, RunRecord, SweepJob, write_record
from runner import jobs, validate
from runner.errors import FailedRun
from runner.jobs import Sweep, end_of
from tests.runner.laboratory import CONF, finish, start


def leave(folder: Path, status: str, job: SweepJob | None = None, **fields: Any) -> Path:
    """Write a run folder as far as a sweep reads it."""
    folder.mkdir(parents=True)
    config = {"callbacks": {"checkpoint": {"monitor": "val/loss"}}}
    OmegaConf.save(OmegaConf.create(config), folder / "config.yaml")
    write_record(folder, RunRecord(folder.name, "train", status, sweep=job, **fields))
    return folder


def test_the_command_of_a_job_has_the_options_but_not_the_sweeps_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", "-m", f"--config-dir={CONF}", "seed=1,2"])
    monkeypatch.setenv("FRUGAL_CACHE", "/cache")
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    given = ["hydra/launcher=pool", "hydra.launcher.workers=3", f"hydra.searchpath=[file://{CONF}]"]
    with initialize_config_dir(str(validate.CONF), version_base="1.3"):
        config = compose("config", [*given, "experiment=tiny"], return_hydra_config=True)
    made = jobs.command(config, ["experiment=tiny", "seed=2"], 2, tmp_path / "log", A="b")
    program = [sys.executable, str(Path("run.py").resolve()), f"--config-dir={CONF}"]
    further = [f"hydra.searchpath=[file://{CONF}]", "hydra.job.num=1"]
    assert [*made.words] == [*program, "experiment=tiny", "seed=2", *further]
    assert made.environment["FRUGAL_CACHE"] == "/cache"
    assert made.environment["A"] == "b"
    assert "WANDB_API_KEY" not in made.environment


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        ("finished", 0, ("finished", "finished in 3 s, val/loss 0.5", 0.5)),
        ("running", -9, ("killed", "killed\n  its output: log", 0.5)),
        ("failed", 1, ("failed", "failed: no memory\n  its output: log", 0.5)),
        (None, 0, ("finished", "finished", None)),
        (None, 1, ("failed", "failed\n  its output: log", None)),
        (None, -9, ("killed", "killed\n  its output: log", None)),
    ],
)
def test_what_became_of_a_job_is_what_its_folder_says(
    tmp_path: Path, status: str | None, code: int, expected: tuple[str, str, float | None]
) -> None:
    folder = tmp_path / "a"
    if status is not None:
        reason = "no memory\nmore" if status == "failed" else None
        leave(folder, status, metrics={"val/loss": 0.5}, seconds=3.0, reason=reason)
    end = end_of(folder, Path("log"), code)
    assert (end.status, end.words, end.value) == expected


def test_the_table_has_every_job_of_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One finished, one killed in its run, one before it, one that nobody started."""
    leave(tmp_path / "a" / "1", "finished", SweepJob("s", 1, 4), seed=1)
    leave(tmp_path / "a" / "2", "running", SweepJob("s", 2, 4), seed=2)
    leave(tmp_path / "a" / "9", "finished", SweepJob("other", 1, 1))
    monkeypatch.setattr(jobs, "Console", lambda: Console(width=100))
    jobs.show(Sweep("s", tmp_path, 4, {1: "finished", 2: "killed", 3: "failed"}))
    said = capsys.readouterr().out
    assert "Jobs of the sweep: 1 finished, 1 killed, 1 failed, 1 not started." in said
    rows = [[cell.strip() for cell in line.split("│")[1:3]] for line in said.splitlines()]
    assert [row for row in rows if row] == [["1", "1"], ["2", "2"], ["3", ""], ["4", ""]]


class Engine:
    """Jobs that end at once: every second one fails."""

    workers = None

    def start(self, command: Any) -> Any:
        return type(
            "Done", (), {"code": lambda self: command.number % 2, "stop": lambda self: None}
        )()


def test_hydra_gets_what_each_job_reached_or_why_it_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", "-m"])
    leave(tmp_path / "a" / "4", "finished", SweepJob("s", 4, 4), metrics={"val/loss": 0.25})
    config = OmegaConf.create(
        {"hydra": {"sweep": {"dir": str(tmp_path / "m")}, "overrides": {"hydra": []}}}
    )
    jobs.begin(Sweep("s", tmp_path, 4))
    try:
        returns = jobs.launch(Engine(), config, [["a=1", "seed=1"], ["a=1", "seed=2"]], 2)
    finally:
        jobs.forget()
    assert returns[1].return_value == 0.25
    with pytest.raises(FailedRun, match="failed"):
        _ = returns[0].return_value
    assert "job 4/4 seed=2: finished" in capsys.readouterr().out


@pytest.mark.slow
def test_a_pool_goes_on_when_a_worker_is_killed(tmp_path: Path) -> None:
    """Four jobs, two at once; two of them kill themselves in a step."""
    kill = "callbacks.kill=null,{_target_: tests.runner.tiny.Kill, at: 3}"
    arguments = ["-m", "hydra/launcher=pool", "workers=2", "experiment=tiny", "seed=1,2", kill]
    code, output = finish(start(tmp_path, *arguments, "trainer.max_steps=6"))
    assert code == 1, output
    assert "Jobs of the sweep: 2 finished, 2 killed." in output
    (place,) = (tmp_path / "multirun").iterdir()
    records = [json.loads(path.read_text()) for path in (tmp_path / "tiny").glob(f"*/{RUN_FILE}")]
    told = sorted((r["sweep"]["job"], r["seed"], r["status"]) for r in records)
    assert told == [(1, 1, "finished"), (2, 1, "running"), (3, 2, "finished"), (4, 2, "running")]
    assert {r["sweep"]["id"] for r in records} == {place.name}
    assert {r["sweep"]["jobs"] for r in records} == {4}
    assert all(" -m " in r["command"] and "seed=1,2" in r["command"] for r in records)
    assert "job 1/4: experiment=tiny seed=1" in (place / "job-1.log").read_text()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_search_that_is_killed_goes_on_and_runs_no_trial_twice(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    arguments = ["-m", "hydra/sweeper=search", "experiment=tiny", "trials=4", "workers=2"]
    process = start(tmp_path, *arguments, "trainer.max_steps=30", "hydra.sweeper.startup=2")
    storage = f"sqlite:///{tmp_path}/search/tiny/study.db"
    end = time.monotonic() + 240
    while not any(log.stat().st_size for log in tmp_path.glob("tiny/*/metrics.csv")):
        assert time.monotonic() < end
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    finish(process)
    begun = optuna.load_study(study_name=None, storage=storage).trials
    code, output = finish(
        start(tmp_path, *arguments, "trainer.max_steps=30", "hydra.sweeper.startup=2")
    )
    assert code == 0, output
    found = optuna.load_study(study_name=None, storage=storage).trials
    assert [t.params for t in found[: len(begun)]] == [t.params for t in begun]
    assert len(found) == 4
    assert {t.state.name for t in found} <= {"COMPLETE", "PRUNED"}
    records = [json.loads(path.read_text()) for path in (tmp_path / "tiny").glob(f"*/{RUN_FILE}")]
    finished = [r["sweep"]["job"] for r in records if r["status"] == "finished"]
    assert len(finished) == len(set(finished))
    for trial in found:
        if trial.state.name == "COMPLETE":
            (record,) = [
                r
                for r in records
                if r["sweep"]["job"] == trial.number + 1 and r["status"] == "finished"
            ]
            assert record["metrics"]["val/loss"] == trial.value


def test_main_returns_the_metric_that_is_watched(tmp_path: Path) -> None:
    """What Hydra hands to a sweeper."""
    import run

    given = [f"hydra.searchpath=[file://{CONF}]", "experiment=tiny", "name=tiny"]
    given += [f"paths.output_dir={tmp_path}", "trainer.max_steps=1"]
    with initialize_config_dir(str(validate.CONF), version_base="1.3"):
        cfg = compose("config", given)
        reached = run.main(cfg)
    (record,) = tmp_path.glob(f"tiny/*/{RUN_FILE}")
    assert reached == json.loads(record.read_text())["metrics"]["val/loss"]

"""A search asks, runs and tells; killed, it goes on, and no trial is lost or run twice."""

import re
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from reports.run_record import RunRecord, write_record
from runner import jobs, search, validate
from runner.engines import Command
from runner.errors import ConfigError
from runner.folder import Start, from_json
from runner.resume import CHILD
from runner.search import Space, space_of
from tests.runner.laboratory import CONF

optuna = pytest.importorskip("optuna")

PLAN = {"trials": 6, "study": None, "startup": 2, "prune_after": None, "seed": 1}
STEPS = (10, 20, 30, 40)


class Engine:
    """Runs that take no time: their loss is the learning rate's distance from 0.01, falling."""

    workers: int | None = 2

    def __init__(self, ends: Mapping[int, str] | None = None, dies_at: int | None = None) -> None:
        self.ends, self.dies_at = ends or {}, dies_at
        self.started: list[tuple[int, Start]] = []

    def start(self, command: Command) -> "Run":
        if len(self.started) == self.dies_at:
            raise MemoryError("the search is killed")
        start = from_json(command.environment[CHILD])
        self.started.append((command.number, start))
        return Run(command, start, self.ends.get(command.number, "finished"))


class Run:
    def __init__(self, command: Command, start: Start, end: str) -> None:
        (lr,) = [w.partition("=")[2] for w in command.words if w.startswith("module.lr=")]
        self.distance = abs(float(lr) - 0.01)
        self.start, self.end, self.steps, self.stopped = start, end, iter(STEPS), False
        start.folder.mkdir(parents=True, exist_ok=start.resumed)
        config = {"callbacks": {"checkpoint": {"monitor": "val/loss"}}}
        OmegaConf.save(OmegaConf.create(config), start.folder / "config.yaml")
        self.rows = ["step,val/loss"]
        self.write("running")

    def write(self, status: str, **metrics: float) -> None:
        record = RunRecord(self.start.run_id, "train", status, seconds=1.0, metrics=metrics)
        write_record(self.start.folder, record)

    def code(self) -> int | None:
        if self.stopped:
            self.write("interrupted")
            return 128 + signal.SIGTERM
        step = next(self.steps, None)
        if step is None and self.end == "endless":
            return None
        if step is not None:
            self.rows.append(f"{step},{self.distance + 1 / step}")
            (self.start.folder / "metrics.csv").write_text("\n".join([*self.rows, ""]))
            return None
        if self.end == "killed":
            return -signal.SIGKILL
        loss = {"val/loss": self.distance} if self.end == "finished" else {}
        self.write(self.end, **loss)
        return int(self.end != "finished")

    def stop(self) -> None:
        self.stopped = True


def look(
    outputs: Path, engine: Engine, *overrides: str, searched: str | None = None, **plan: Any
) -> list[Any]:
    """Search for the tiny experiment's learning rate; return the study's trials."""
    given = [f"hydra.searchpath=[file://{CONF}]", "experiment=tiny", f"paths.output_dir={outputs}"]
    given += ["hydra/sweeper=search", "name=tiny", "module.width=8", *overrides]
    with initialize_config_dir(str(validate.CONF), version_base="1.3"):
        config = compose("config", given, return_hydra_config=True)
        if searched is not None:
            config.hydra.sweeper.params["module.lr"] = searched
        space = space_of(config)
        search.search(config, engine, space, {**PLAN, **plan})
    return trials(outputs)


def trials(outputs: Path) -> list[Any]:
    storage = f"sqlite:///{outputs}/search/tiny/study.db"
    return optuna.load_study(study_name=None, storage=storage).trials


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.engines.PAUSE", 0.0)


def test_a_search_runs_its_trials_and_says_the_best(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = Engine({2: "failed"})
    found = look(tmp_path, engine)
    assert [t.state.name for t in found] == ["COMPLETE", "FAIL", *4 * ["COMPLETE"]]
    assert [number for number, _ in engine.started] == [1, 2, 3, 4, 5, 6]
    assert len({start.folder for _, start in engine.started}) == 6
    assert {1e-3 <= t.params["module.lr"] <= 1e-1 for t in found} == {True}
    assert found[0].value == pytest.approx(abs(found[0].params["module.lr"] - 0.01))
    best = min((t for t in found if t.value is not None), key=lambda t: t.value)
    said = capsys.readouterr().out
    assert f"The best, trial {best.number + 1}:" in said
    again = next(line for line in said.splitlines() if line.startswith("python run.py"))
    assert {"experiment=tiny", "module.width=8"} < {*again.split()}
    assert again.endswith(f" module.lr={best.params['module.lr']}")


def test_a_search_that_was_killed_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One trial has a checkpoint, one has none, one had not been started."""
    first = Engine({1: "endless", 2: "endless"}, dies_at=4)
    first.workers = 3
    with pytest.raises(MemoryError):
        look(tmp_path, first)
    before = trials(tmp_path)
    folders = dict(first.started)
    assert [t.state.name for t in before] == [
        *("RUNNING", "RUNNING", "COMPLETE", "COMPLETE", "RUNNING")
    ]
    saved = folders[1].folder
    monkeypatch.setattr(
        search, "newest_whole", lambda f: (f / "step.ckpt" if f == saved else None, [])
    )
    second = Engine()
    found = look(tmp_path, second)
    assert [t.state.name for t in found] == 6 * ["COMPLETE"]
    assert [number for number, _ in second.started] == [1, 2, 5, 6]
    again = dict(second.started)
    assert again[1] == Start(saved, folders[1].run_id, saved / "step.ckpt")
    assert {again[number].resumed for number in (2, 5, 6)} == {False}
    assert again[2].folder != folders[2].folder
    assert [t.params for t in found[: len(before)]] == [t.params for t in before]
    third = Engine()
    look(tmp_path, third)
    assert third.started == []


def test_a_run_that_ended_while_nobody_looked_is_told_and_not_repeated(tmp_path: Path) -> None:
    first = Engine({1: "endless"}, dies_at=2)
    with pytest.raises(MemoryError):
        look(tmp_path, first)
    number, start = first.started[0]
    record = RunRecord(start.run_id, "train", "finished", metrics={"val/loss": 0.125})
    write_record(start.folder, record)
    second = Engine()
    found = look(tmp_path, second)
    assert (found[number - 1].state.name, found[number - 1].value) == ("COMPLETE", 0.125)
    assert number not in dict(second.started)


def test_a_trial_without_prospects_is_stopped(tmp_path: Path) -> None:
    """After half of its steps at the earliest, and after as many trials as are drawn at random."""
    found = look(tmp_path, Engine(), trials=12, startup=4, prune_after=0.5)
    pruned = [t for t in found if t.state.name == "PRUNED"]
    assert pruned
    assert {t.state.name for t in found} == {"COMPLETE", "PRUNED"}
    for trial in pruned:
        assert trial.number >= 4
        assert max(trial.intermediate_values) >= 20
    assert len(look(tmp_path, Engine(), trials=12, startup=4, prune_after=0.5)) == 12


def test_a_killed_trial_is_gone_on_with_by_the_next_command(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        look(tmp_path, Engine({3: "killed"}))
    assert ended.value.code == 1
    assert [t.state.name for t in trials(tmp_path)].count("COMPLETE") == 5
    engine = Engine()
    found = look(tmp_path, engine)
    assert [number for number, _ in engine.started] == [3]
    assert [t.state.name for t in found] == 6 * ["COMPLETE"]


def test_a_study_is_of_one_search(tmp_path: Path) -> None:
    look(tmp_path, Engine(), trials=2)
    for overrides, searched, words in (
        (["trainer.max_steps=50"], None, "trainer.max_steps: 40 -> 50"),
        ([], "interval(1,2)", "searched: "),
    ):
        with pytest.raises(ConfigError, match=r"another search[^$]*" + re.escape(words)):
            look(tmp_path, Engine(), *overrides, searched=searched)
    assert len(look(tmp_path, Engine(), "name=other", study="tiny", trials=3)) == 3


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("callbacks.checkpoint.monitor=test/loss", "a metric of validation"),
        ("callbacks.checkpoint.monitor=null", "a metric of validation"),
        ("resume=auto", "go on by themselves"),
    ],
)
def test_what_cannot_be_searched_is_refused(tmp_path: Path, override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        look(tmp_path, Engine(), override)


def test_a_search_that_would_start_all_at_once_is_refused(tmp_path: Path) -> None:
    engine = Engine()
    engine.workers = None
    with pytest.raises(ConfigError, match="workers=4"):
        look(tmp_path, engine)


def test_the_corners_of_a_space_have_every_end_and_every_choice() -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_overrides(
        ["a=interval(1,2)", "b=choice(x,y,z)", "c=int(interval(1,8))", "d=range(1,8,3)"]
    )
    assert Space(("e=1",), tuple(parsed)).corners() == [
        ["e=1", "a=1.0", "b=x", "c=1", "d=1"],
        ["e=1", "a=2.0", "b=y", "c=8", "d=4"],
        ["e=1", "a=2.0", "b=z", "c=8", "d=7"],
    ]


@pytest.mark.parametrize("name", sorted(p.stem for p in (validate.CONF / "search").glob("*.yaml")))
def test_what_is_shipped_can_be_searched(name: str) -> None:
    """Every end and every choice is accepted by the experiment."""
    with initialize_config_dir(str(validate.CONF), version_base="1.3"):
        given = ["hydra/sweeper=search", f"experiment={name}"]
        config = compose("config", given, return_hydra_config=True)
        space = space_of(config)
        assert len(space.searched) > 1
        for corner in space.corners():
            assert jobs.checked(config, corner).settings["name"].startswith(name)

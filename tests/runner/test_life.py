"""What a run leaves: its record, its metrics, its W&B run, its exported model; one id in all."""

import csv
import errno
import json
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from callbacks.checkpoint import Checkpointing
from reports.registry import find
from reports.run_record import RunRecord, write_json, write_record
from runner import life
from runner.command import guard
from runner.errors import ConfigError, FailedRun, disk_behind, memory_behind
from runner.folder import lock, open_folder, stored_config
from runner.parts import build
from runner.record import MetricsFile
from runner.validate import checked
from tests.forked import Child
from tests.runner.laboratory import ROOT, forked, run, wandb_run
from tests.runner.tiny import TinyModule


def folder_of(outputs: Path) -> Path:
    (folder,) = (outputs / "tiny").iterdir()
    return folder


@pytest.mark.usefixtures("pictures")
def test_record_of_a_finished_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = run(tmp_path)
    folder = folder_of(tmp_path)
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["reason"] is None
    assert folder.name.endswith(f"-{record['id']}")
    assert len(record["id"]) == 8
    saved = torch.load(folder / record["checkpoint"], weights_only=True)
    assert 0 < saved["frugal"].pop("seconds") <= record["metrics"]["seconds"] <= record["seconds"]
    assert saved["frugal"] == {"id": record["id"], "experiment": "tiny"}
    assert record["metrics"]["val/loss"] == pytest.approx(metrics["val/loss"])
    assert record["ledgers"]["tiny"]["savings"][0]["spent"] == 40
    assert str(tmp_path) not in json.dumps(record), "the record names this machine's folders"
    assert {"torch", "pytorch-lightning", "hydra-core"} <= record["versions"].keys()
    assert stored_config(folder)["module"]["width"] == 16
    assert (folder / "plots" / "curves.png").stat().st_size > 1000
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        "best.ckpt",
        "step-00000035.ckpt",
        "step-00000040.ckpt",
    ]
    printed = capsys.readouterr().out
    assert "val/loss" in printed
    assert "tiny against dense" in printed
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows if row["val/loss"]] == ["10", "20", "30", "40"]
    assert all(float(row["perf/tokens_per_second"]) > 0 for row in rows if row["train/loss"])
    assert sum("step " in line for line in printed.splitlines()) < 5, "a log file would be flooded"


def test_record_of_a_failed_run(tmp_path: Path) -> None:
    """The error passes through, and the record says what it was."""
    with pytest.raises(RuntimeError, match="as the test wants it"):
        run(tmp_path, "module.fail_at=7")
    record = json.loads((folder_of(tmp_path) / "run.json").read_text())
    assert record["status"] == "failed"
    assert record["reason"] == "RuntimeError: as the test wants it"
    assert "as the test wants it" in (folder_of(tmp_path) / "traceback.txt").read_text()


def test_numbers_that_are_not_finite_end_a_run_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["run.py"])  # not pytest's options
    code = guard(lambda: run(tmp_path, "module.lr=1e20", "trainer.gradient_clip_val=null"))
    shown = capsys.readouterr()
    assert code == 1, shown.err
    folder = folder_of(tmp_path)
    record = json.loads((folder / "run.json").read_text(), parse_constant=pytest.fail)
    assert record["status"] == "failed"
    assert record["reason"].startswith("step ")
    assert f"Failed: {record['reason']}" in shown.out
    assert "Traceback" not in shown.out + shown.err


def test_no_folder_when_a_constructor_refuses(tmp_path: Path) -> None:
    """What only the built object can judge is refused in words as well, and leaves no folder."""
    with pytest.raises(ConfigError, match=r"trainer: .*quick"):
        run(tmp_path, "trainer.strategy=quick")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("monitor", ["val/loss", "train/lr"])
def test_a_validation_before_the_first_step_saves_the_best(tmp_path: Path, monitor: str) -> None:
    """With three micro-batches a step the first two validations come before it or between two.

    What a step logs is not known yet at the first one.
    """
    run(
        tmp_path,
        f"callbacks.checkpoint.monitor={monitor}",
        "trainer.max_steps=4",
        "trainer.accumulate_grad_batches=3",
        "trainer.val_check_interval=2",
    )
    folder = folder_of(tmp_path)
    best = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["global_step"] in range(5)
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"


def test_numbers_that_json_does_not_have_become_null(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    nan, inf = float("nan"), float("inf")
    write_json(
        path, {"metrics": {"loss": nan, "best": 1.5}, "rows": [(inf, -inf, 2)], "path": path}
    )
    found = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert found["metrics"] == {"loss": None, "best": 1.5}
    assert found["rows"] == [[None, None, 2]]


def test_json_is_never_half_written(tmp_path: Path) -> None:
    """A reader finds a whole file at any moment, and the old one if a writer is killed."""
    path = tmp_path / "run.json"
    write_json(path, {"number": -1})
    code = (
        "import sys; from pathlib import Path; from reports.run_record import write_json\n"
        "print('ready', flush=True)\n"
        "for n in range(10**9): write_json(Path(sys.argv[1]), {'number': n, 'rest': 'x' * 100_000})"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    writer.stdout.readline()
    seen: set[int] = set()
    while len(seen) < 50:
        seen.add(json.loads(path.read_text())["number"])
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    assert json.loads(path.read_text())["number"] >= max(seen)


def test_metrics_file_grows_columns_and_forgets_steps(tmp_path: Path) -> None:
    MetricsFile(str(tmp_path)).log_metrics({"a": 1.0}, step=4)
    MetricsFile(str(tmp_path)).log_metrics({"b": 2.0}, step=9)
    file = MetricsFile(str(tmp_path))
    file.log_metrics({"a": 3.0, "b": 4.0}, step=14)
    assert file.rows()[1] == {"step": "9", "a": "", "b": "2.0"}
    file.keep_to(10)
    assert [row["step"] for row in file.rows()] == ["4", "9"]
    file.log_metrics({"a": 5.0}, step=14)
    assert [row["a"] for row in file.rows()] == ["1.0", "", "5.0"]


def test_a_step_is_in_the_table_before_its_checkpoint_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a kill between the two would lose its row; each is there once."""
    saved: list[tuple[str, list[dict[str, str]]]] = []
    save = Checkpointing.save

    def watched(self: Checkpointing, trainer: Any) -> Path:
        saved.append((f"{trainer.global_step}", MetricsFile(str(self.folder.parent)).rows()))
        return save(self, trainer)

    monkeypatch.setattr(Checkpointing, "save", watched)
    run(tmp_path)
    assert [step for step, rows in saved if step not in [row["step"] for row in rows]] == []
    steps = [row["step"] for row in saved[-1][1] if row["train/loss"]]
    assert steps == [str(5 * n) for n in range(1, 9)]


def test_two_processes_cannot_share_a_run_and_readers_see_which_is_at_work(tmp_path: Path) -> None:
    write_record(tmp_path, RunRecord("abcdefgh", "train", "running"))
    held = lock(tmp_path)
    code = (
        "from pathlib import Path; from reports.registry import read; "
        "from runner.folder import is_locked\n"
        "print(is_locked(Path('{0}')), read(Path('{0}')).state)"
    )

    def seen_by_another_process() -> str:
        command = [sys.executable, "-c", code.format(tmp_path)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()

    assert seen_by_another_process() == "True running"
    held.close()
    assert seen_by_another_process() == "False killed"


def test_a_folder_whose_process_died_at_once_goes_with_the_next_run(tmp_path: Path) -> None:
    """Not that of a process which has only just begun, and nothing that somebody else has put."""
    first, second, dead, foreign = (tmp_path / f"2026-01-01_00-00-0{n}-aaaaaaaa" for n in range(4))
    (dead / "config.yaml.tmp").parent.mkdir()
    (dead / "config.yaml.tmp").touch()
    (foreign / "thesis.txt").parent.mkdir()
    (foreign / "thesis.txt").touch()
    (tmp_path / "notes").mkdir()

    def begin() -> None:
        with open_folder(first, resumed=False):
            (tmp_path / "begun").touch()
            time.sleep(60)

    beginning = Child(begin)
    while not (tmp_path / "begun").exists():
        time.sleep(0.01)
    open_folder(second, resumed=False).close()
    assert {p.name for p in tmp_path.iterdir() if p.is_dir()} == {
        first.name, second.name, foreign.name, "notes"
    }  # fmt: skip
    beginning.kill()
    beginning.wait(10)
    open_folder(second, resumed=True).close()
    assert not first.exists()


def full_disk(module: TinyModule, folder: Path, files: object) -> None:
    (folder / "model.pt").write_bytes(b"half")
    raise OSError(errno.ENOSPC, "No space left on device")


def test_test_and_export_take_the_model_from_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither an experiment nor a module is named: the checkpoint's own run says what it is."""
    run(tmp_path)
    folder = folder_of(tmp_path)
    bare = ["~module", "~datamodule", "callbacks=default", f"ckpt_path={folder}"]
    metrics = run(tmp_path, *bare, "task=test")
    assert metrics["test/loss"] == pytest.approx(run(tmp_path, *bare, "task=validate")["val/loss"])
    run(tmp_path, *bare, "task=export")
    exported = folder / "export" / "step-00000040"
    card = (exported / "README.md").read_text()
    assert f"`{json.loads((folder / 'run.json').read_text())['id']}`" in card
    assert "| steps | 50.0 % |" in card
    state = torch.load(folder / "checkpoints" / "step-00000040.ckpt", weights_only=True)[
        "state_dict"
    ]
    weights = torch.load(exported / "model.pt", weights_only=True)
    assert torch.equal(weights["0.weight"], state["model.0.weight"])
    monkeypatch.setattr(TinyModule, "export", full_disk)
    with pytest.raises(OSError, match="No space left"):
        run(tmp_path, *bare, "task=export")
    assert [path.name for path in (folder / "export").iterdir()] == ["step-00000040"]
    assert (exported / "README.md").read_text() == card
    with pytest.raises(ConfigError, match=r"module\.width: 16 -> 8"):
        run(tmp_path, "task=test", f"ckpt_path={folder}", "module.width=8")


class Louder(TinyModule):
    """What it says of its loss in a test may be set anew."""

    adjustable: ClassVar[tuple[str, ...]] = ("loudness",)

    def __init__(self, loudness: float = 1.0, **rest: Any) -> None:
        super().__init__(**rest)
        self.loudness = loudness


def test_what_no_weight_depends_on_may_differ_from_the_run(tmp_path: Path) -> None:
    """A test takes it from the command line, else from the run."""
    louder = f"module._target_={__name__}.Louder"
    run(tmp_path, louder, "+module.loudness=2", "trainer.max_steps=10")
    again = ("task=test", f"ckpt_path={folder_of(tmp_path)}")
    assert checked([*again])["module"]["loudness"] == 2
    module = checked([*again, "module.loudness=6"])["module"]
    assert (module["loudness"], module["width"]) == (6, 16)
    with pytest.raises(ConfigError, match=r"module\.width: 16 -> 8"):
        checked([*again, "module.width=8"])


def test_a_validation_looks_at_what_the_run_looked_at(tmp_path: Path) -> None:
    """One of two batches, as the run's own validations did: the figure is the run's."""
    metrics = run(tmp_path, "trainer.limit_val_batches=1", "trainer.max_steps=10")
    bare = ["~module", "~datamodule", "callbacks=default", f"ckpt_path={folder_of(tmp_path)}"]
    assert run(tmp_path, *bare, "task=validate")["val/loss"] == pytest.approx(metrics["val/loss"])


class Warming(TinyModule):
    """Its learning rate would rise for longer than the training is."""

    schedule_settings: ClassVar[dict[str, Any]] = {"warmup": 2000, "final": 0.0, "decay": "linear"}


def test_dry_run_says_that_a_warm_up_does_not_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = f"module._target_={Warming.__module__}.{Warming.__qualname__}"
    run(tmp_path, target, "dry_run=true")
    said = "module.schedule.warmup=2000 is not shorter than the training, which has 40 steps"
    assert said in capsys.readouterr().out


def test_dry_run_builds_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counted = run(tmp_path, "dry_run=true", "trainer.accumulate_grad_batches=2")
    printed = capsys.readouterr().out
    assert counted["parameters"] == 32 * 16 + 16 * 32 + 32
    assert "float32" in printed
    assert "plan" in printed
    assert not list(tmp_path.iterdir())


def test_a_signal_does_not_hide_that_another_process_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does one that comes while the record is written."""
    note = life._Run._note

    def signalled(*args: Any, **kwargs: Any) -> None:
        signal.raise_signal(signal.SIGTERM)
        note(*args, **kwargs)

    monkeypatch.setattr(life._Run, "_note", signalled)
    with pytest.raises(FailedRun, match="another process of this run has ended"):
        run(tmp_path, "+callbacks.deserted._target_=tests.runner.tiny.Deserted")
    record = json.loads((folder_of(tmp_path) / "run.json").read_text())
    assert record["status"] == "failed"
    assert record["reason"].startswith("another process")


@pytest.mark.parametrize("mode", ["fast", "overfit", "profile"])
def test_debug(tmp_path: Path, mode: str) -> None:
    extra = ["trainer.max_steps=20", "trainer.val_check_interval=1"] if mode == "overfit" else []
    run(tmp_path, f"debug={mode}", *extra)
    folder = folder_of(tmp_path)
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"
    if mode == "profile":
        assert "run_training_batch" in (folder / "fit-profile.txt").read_text()


def test_multirun_keeps_runs_apart_and_goes_on_after_a_failure(tmp_path: Path) -> None:
    """Three seeds, the second fails: three folders, three W&B runs, exit code not 0."""
    code, output = forked(
        tmp_path,
        "-m",
        "experiment=tiny",
        "logger=default",
        "seed=1,2,3",
        "module.fail_seed=2",
        "trainer.max_steps=10",
    )
    folders = list((tmp_path / "tiny").iterdir())
    assert len(folders) == 3, output
    assert code == 1
    states, sweeps, seeds = {}, set(), {}
    for folder in folders:
        record = json.loads((folder / "run.json").read_text())
        states[record["seed"]] = record["status"]
        assert (record["sweep"]["job"], record["sweep"]["jobs"]) == (record["seed"], 3)
        assert f"seed={record['seed']}" in record["overrides"]
        sweeps.add((record["sweep"]["id"], record["arm"]))
        (offline,) = tmp_path.glob(f"wandb/offline-run-*-{record['id']}")
        sent = list(offline.glob("files/media/images/plots/square_*.png"))  # what a method draws
        assert len(sent) == (record["status"] == "finished")
        seeds[record["seed"]] = wandb_run(offline)
    assert all(of["config"]["seed"] == seed for seed, of in seeds.items()), "a job's, not all jobs'"
    assert {of["config"]["arm"] for of in seeds.values()} == {arm for _, arm in sweeps}
    assert states == {1: "finished", 2: "failed", 3: "finished"}
    assert len(sweeps) == 1
    assert "job 2/3: experiment=tiny logger=default seed=2 module.fail_seed=2" in output
    assert "Jobs of the sweep: 2 finished, 1 failed." in output


def test_nothing_is_sent_when_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every address but this machine's own is out of reach, and the run does not notice."""
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: Any) -> None:
        near = ("127.0.0.1", "::1", "localhost")
        if self.family != socket.AF_UNIX and address[0] not in near:
            (tmp_path / "calls").write_text(repr(address))
            raise OSError("no network in this test")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", refuse)
    for name in ("https_proxy", "http_proxy"):  # for what is no Python: W&B's own process
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    arguments = ["experiment=tiny", "logger=default", "trainer.max_steps=5"]
    code, output = forked(tmp_path / "outputs", *arguments)
    assert code == 0, output
    assert not (tmp_path / "calls").exists()
    (log,) = (tmp_path / "outputs").glob("wandb/debug-internal.log")
    assert "http" not in log.read_text(errors="replace").lower()


def test_what_wandb_keeps_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are its axis, its config names every key once, its summary is the run's table."""
    monkeypatch.setenv("WANDB_DATA_DIR", "as a run before it in this process has left it")
    monkeypatch.delenv("WANDB_DATA_DIR")
    run(tmp_path, "logger=default", "callbacks.samples={_target_: tests.runner.tiny.Pictures}")
    record = json.loads((folder_of(tmp_path) / "run.json").read_text())
    (offline,) = tmp_path.glob(f"wandb/offline-run-*-{record['id']}")
    kept = wandb_run(offline)
    assert kept["axes"] == ["step", "tokens", "FLOPs"]
    assert kept["axis of all others"] == "step"
    steps = [row["step"] for row in kept["history"]]
    assert steps == sorted(steps)
    assert steps[-1] == 40
    further = {"_wandb", "arm", "experiment"}
    assert set(kept["config"]) - further == set(stored_config(folder_of(tmp_path)))
    ledger = {"tiny/steps_spent": 40, "tiny/steps_baseline": 80, "tiny/steps_saved": 0.5}
    figures = {name: value for name, value in record["metrics"].items() if name != "method/rate"}
    summary = {name: v for name, v in kept["summary"].items() if isinstance(v, int | float)}
    own = {name: value for name, value in summary.items() if not name.startswith("_")}
    assert own == pytest.approx(figures | ledger)
    assert kept["summary"]["val/samples"]["_type"] == "table-file"
    waiting = [path.read_bytes()[:4] for path in tmp_path.glob("wandb/.data/artifacts/staging/*")]
    assert waiting.count(b"\x89PNG") == 1, "the table's picture"
    assert kept["system"], "the machine was not watched"
    assert find([tmp_path])[1] == [], "W&B's folder is taken for a run"


def test_a_module_adds_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A task of the module's own reads a checkpoint if it needs one, and leaves no folder."""
    run(tmp_path, "task=greet", "query=hello")
    assert "greetings: hello, TinyData" in capsys.readouterr().out
    assert not tmp_path.joinpath("tiny").exists()
    run(tmp_path)
    (folder,) = (tmp_path / "tiny").iterdir()
    weights = torch.load(folder / "checkpoints" / "step-00000040.ckpt", weights_only=True)
    total = sum(float(w.sum()) for w in weights["state_dict"].values())
    assert run(tmp_path, "task=count", f"ckpt_path={folder}") == {"sum": pytest.approx(total)}
    kept = json.loads((folder / "count.json").read_text())
    assert kept["metrics"] == {"sum": pytest.approx(total)}
    assert kept["checkpoint"] == "best.ckpt"
    assert len(list((tmp_path / "tiny").iterdir())) == 1


def test_a_clock_that_goes_back_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second run says that it began before the first; both are whole, and told apart."""
    from datetime import datetime, timedelta

    from runner import record, resume

    hours = iter(range(0, -1000, -1))

    class Back(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Back":
            return super().now(tz) + timedelta(hours=next(hours))

    for module in (record, resume):
        monkeypatch.setattr(module, "datetime", Back)
    for _ in range(2):
        run(tmp_path, "trainer.max_steps=5")
    run(tmp_path, "trainer.max_steps=5", "resume=auto", "seed=2")
    records = [json.loads(f.read_text()) for f in tmp_path.glob("tiny/*/run.json")]
    assert len({each["id"] for each in records}) == 3
    assert {each["status"] for each in records} == {"finished"}
    assert all(each["ended"] < each["started"] and each["seconds"] >= 0 for each in records)


def test_what_the_trainer_refuses_of_the_data_is_said_in_words(tmp_path: Path) -> None:
    """A share of the validation that is no batch: Lightning says so once it has the loaders."""
    with pytest.raises(FailedRun, match=r"trainer: .* Try at least `limit_val_batches="):
        run(tmp_path, "trainer.limit_val_batches=0.001")
    record = json.loads((folder_of(tmp_path) / "run.json").read_text())
    assert (record["status"], record["reason"][:8]) == ("failed", "trainer:")


@pytest.mark.parametrize(
    ("room", "statement", "words"),
    [
        ("datamodules.files", "raise ValueError('no such file')", "no such file"),
        ("pytorch_lightning.loops", "raise ValueError('no  batch')", "trainer: no batch"),
        ("hashing.store", "max([])", None),
        ("hashing.store", "raise TypeError('a fault of ours')", None),
        ("torch.nn", "raise ValueError('about an argument of ours')", None),
    ],
)
def test_a_refusal_that_a_started_run_meets_is_told_from_a_fault(
    room: str, statement: str, words: str | None
) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        exec(statement, {"__name__": room})
    assert life._refusal(caught.value) == words


def test_a_part_of_the_module_names_its_keys_in_full() -> None:
    node = {"_target_": "lightning_modules.utterance_rewriter.UtteranceRewriter", "mode": "dual"}
    network = {"architecture": {"model_type": "bert"}}
    with pytest.raises(ConfigError, match=r"^module\.rewriter\.init: mode=dual"):
        build("module.rewriter", {**node, "network": network})


def test_a_full_disk_is_found_behind_what_libraries_say_of_it() -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "last.ckpt")
    torn = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")
    torn.__context__ = full
    for error in (full, torn, sqlite3.OperationalError("disk I/O error")):
        assert (disk_behind(error) or "").startswith("the disk does not take what the run writes: ")
    other = ValueError("a fault of ours, met while another error was handled")
    other.__context__ = full
    assert disk_behind(other) is None
    assert disk_behind(RuntimeError("8 devices requested and 4 there")) is None


def test_too_little_memory_is_found_behind_what_libraries_say_of_it() -> None:
    with pytest.raises(RuntimeError) as too_large:
        torch.empty(2**62)
    with pytest.raises(MemoryError) as far_too_large:
        np.empty(2**50)
    wrapped = RuntimeError("the model cannot be built")
    wrapped.__cause__ = far_too_large.value
    for error in (too_large.value, far_too_large.value, wrapped, MemoryError()):
        assert "dry_run=true says how much" in (memory_behind(error) or "")
    assert memory_behind(RuntimeError("size mismatch")) is None

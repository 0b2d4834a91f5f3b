"""A run that is killed and resumed is the run that was never killed, bit for bit.

Weights, optimizer, schedule, random states, loop counters: all that a checkpoint holds. The model
has dropout, validation draws random numbers, and checkpoints fall on every place in an epoch.
"""

import csv
import json
import multiprocessing
import shutil
import signal
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from callbacks.checkpoint import Checkpointing
from datamodules.vocabulary import ORIGINAL
from reports.configs import arm_hash, config_hash
from reports.run_record import read_record, write_record
from runner import pretrained, resume, signatures
from runner.errors import ConfigError
from runner.folder import Start, checkpoint_of, fill, lock, retire_newer, stored_config
from runner.job import difference
from runner.stored import on_its_own, with_stored
from runner.validate import asked, checked
from tests.runner.laboratory import forked, run
from tests.runner.tiny import TinyModule

LAST = "step-00000040.ckpt"


def checkpoints(outputs: Path) -> list[Path]:
    return sorted(outputs.glob("tiny/*/checkpoints/step-*.ckpt"))


def folder_of(outputs: Path) -> Path:
    (folder,) = (outputs / "tiny").iterdir()
    return folder


def unequal(first: Any, second: Any, key: str = "") -> list[str]:
    """Return the keys at which two checkpoints differ."""
    if isinstance(first, dict) and isinstance(second, dict):
        keys = first.keys() | second.keys()
        return [
            k for name in keys for k in unequal(first.get(name), second.get(name), f"{key}.{name}")
        ]
    if (
        isinstance(first, list | tuple)
        and isinstance(second, list | tuple)
        and len(first) == len(second)
    ):
        pairs = enumerate(zip(first, second, strict=True))
        return [k for index, (a, b) in pairs for k in unequal(a, b, f"{key}[{index}]")]
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return [] if torch.equal(first, second) else [key]
    return [] if first == second else [key]


def assert_same(first: Path, second: Path) -> None:
    a, b = (torch.load(path, weights_only=True) for path in (first, second))
    for content in (a, b):
        del content["frugal"]
        content["callbacks"]["Checkpointing"]["metrics"].pop("perf/tokens_per_second", None)
    assert a["rng_states"][0]["torch"].numel() > 1000
    assert unequal(a, b) == []


def interrupted_at(source: Path, target: Path, step: int) -> None:
    """Copy a finished run as it would be if it had been killed after a step's checkpoint."""
    shutil.copytree(source, target)
    for path in (target / "checkpoints").glob("step-*.ckpt"):
        if path.name > f"step-{step:08d}.ckpt":
            path.unlink()
    record = json.loads((target / "run.json").read_text())
    (target / "run.json").write_text(json.dumps({**record, "status": "running"}))


@pytest.mark.parametrize(
    ("extra", "cuts"),
    [
        # 16 batches an epoch. 10, 20: a validation is due; 16, 32: an epoch ends; 40: nothing is
        # left to do.
        pytest.param([], [(7, 12), (10,), (16,), (40,)], id="plain"),
        # 15 batches an epoch, so that every fourth step takes 3 micro-batches and not 4.
        pytest.param(
            ["datamodule.count=60", "trainer.accumulate_grad_batches=4"],
            [(7,), (8, 13), (9,)],
            id="accumulate",
        ),
        pytest.param(["trainer.val_check_interval=16"], [(16,), (17,)], id="validation-at-end"),
        pytest.param(
            ["trainer.limit_val_batches=0", "trainer.num_sanity_val_steps=0"],
            [(16,)],
            id="no-validation",
        ),
    ],
)
def test_resumed_from_any_step_is_bit_equal(
    tmp_path: Path, extra: list[str], cuts: list[tuple[int, ...]]
) -> None:
    """Cut after a step; of some the resumed run once more: a second resumption must hold too."""
    every = ["trainer.checkpoint_every=1", "callbacks.checkpoint.keep_last=100", *extra]
    run(tmp_path / "whole", *every)
    whole = folder_of(tmp_path / "whole")
    finished = json.loads((whole / "run.json").read_text())
    for steps in cuts:
        source = whole
        for step in steps:
            outputs = tmp_path / f"from-{steps[0]}-{step}"
            folder = outputs / "tiny" / whole.name
            interrupted_at(source, folder, step)
            run(outputs, *every, "resume=auto")
            assert_same(whole / "checkpoints" / LAST, folder / "checkpoints" / LAST)
            record = json.loads((folder / "run.json").read_text())
            assert record["status"] == "finished"
            # Also where nothing was left to do but the end: the record is the whole run's.
            assert record["ledgers"] == finished["ledgers"]
            assert record["metrics"].keys() == finished["metrics"].keys()
            assert record["metrics"]["train/loss"] == finished["metrics"]["train/loss"]
            assert record["resumed"][-1]["checkpoint"] == f"step-{step:08d}.ckpt"
            assert set(losses(folder)) == set(losses(whole))
            source = folder


def test_what_a_validation_draws_changes_no_training_bit_equal(tmp_path: Path) -> None:
    """A resumed run may have had fewer validations, or have them elsewhere."""
    few = ["trainer.max_steps=15", "trainer.checkpoint_every=15"]
    run(tmp_path / "validated", *few)
    run(tmp_path / "not", *few, "trainer.limit_val_batches=0", "trainer.num_sanity_val_steps=0")
    ended = [torch.load(checkpoints(tmp_path / name)[-1]) for name in ("validated", "not")]
    assert unequal(*(each["state_dict"] for each in ended)) == []


def losses(folder: Path) -> list[tuple[str, str, str]]:
    with (folder / "metrics.csv").open() as file:
        rows = csv.DictReader(file)
        return [(row["step"], row["train/loss"], row.get("val/loss", "")) for row in rows]


def test_a_kill_between_the_newest_and_the_best_checkpoint_costs_no_best(tmp_path: Path) -> None:
    """They are two names of one file: the second is given when the run goes on."""
    run(tmp_path / "whole")
    whole, outputs = folder_of(tmp_path / "whole"), tmp_path / "killed"
    assert torch.load(whole / "checkpoints" / "best.ckpt", weights_only=True)["global_step"] == 40
    killed = outputs / "tiny" / whole.name
    interrupted_at(whole, killed, 40)
    best = killed / "checkpoints" / "best.ckpt"
    best.rename(f"{best}.tmp")
    run(outputs, "resume=auto")
    assert torch.load(best, weights_only=True)["global_step"] == 40
    assert not Path(f"{best}.tmp").exists()


def test_sigkill_and_damaged_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path / "whole")
    kill = ["+callbacks.kill._target_=tests.runner.tiny.Kill", "+callbacks.kill.at=23"]
    code, _ = forked(tmp_path / "killed", "experiment=tiny", "name=tiny", *kill)
    assert code == -signal.SIGKILL
    folder = folder_of(tmp_path / "killed")
    assert json.loads((folder / "run.json").read_text())["status"] == "running"
    newest = checkpoints(tmp_path / "killed")[-1]
    assert newest.name == "step-00000020.ckpt"
    damage(newest)
    capsys.readouterr()
    run(tmp_path / "killed", "resume=auto")
    assert "step-00000020.ckpt is damaged" in capsys.readouterr().out
    record = json.loads((folder_of(tmp_path / "killed") / "run.json").read_text())
    assert record["resumed"][0]["checkpoint"] == "step-00000015.ckpt"
    ends = [folder_of(tmp_path / name) / "checkpoints" / LAST for name in ("whole", "killed")]
    assert_same(*ends)


def damage(path: Path) -> None:
    """Change one byte of a weight: the file opens, loads, and only a checksum tells."""
    with zipfile.ZipFile(path) as archive:
        entry = max(archive.infolist(), key=lambda info: info.file_size)
    content = bytearray(path.read_bytes())
    name, extra = struct.unpack("<HH", content[entry.header_offset + 26 : entry.header_offset + 30])
    content[entry.header_offset + 30 + name + extra + entry.file_size // 2] ^= 0xFF
    path.write_bytes(content)


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.write_text, (self.path, "executed")


def foreign(path: Path, kind: str) -> None:
    """Write a file in a checkpoint's place that is none, or another run's."""
    known = {"state_dict": {}, "global_step": 9, "frugal": {"id": "other", "experiment": "tiny"}}
    match kind:
        case "empty":
            path.write_bytes(b"")
        case "cut":
            torch.save(known, path)
            path.write_bytes(path.read_bytes()[:-100])
        case "zip":
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("archive/data.pkl", b"\x80\x02]q\x00K\x01.")
                archive.writestr("notes.txt", "a zip file and no checkpoint")
        case "list":
            torch.save([1, 2], path)
        case "weights":
            torch.save({"weights": torch.rand(10)}, path)
        case "malicious":
            torch.save({**known, "more": Malicious(path.with_name("executed"))}, path)
        case "other run":
            torch.save(known, path)


def test_a_file_that_is_no_checkpoint_of_the_run_is_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever lies there as the newest file: the one before it is used, nothing is executed."""
    run(tmp_path, "trainer.max_steps=10")
    folder = folder_of(tmp_path)
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, "status": "running"}))
    settings = {**stored_config(folder), "resume": "auto"}
    newest = folder / "checkpoints" / "step-00000011.ckpt"
    for kind in ("empty", "cut", "zip", "list", "weights", "malicious", "other run"):
        foreign(newest, kind)
        start = resume.find(settings, folder.parent)
        assert isinstance(start, Start), kind
        assert start.checkpoint is not None
        assert start.checkpoint.name == "step-00000010.ckpt", kind
        assert any(newest.name in line for line in start.words), kind
        with pytest.raises(ConfigError, match=r"the file is .*Take the run folder"):
            resume.find({**settings, "resume": str(newest)}, folder.parent)
        with pytest.raises(ConfigError, match="the file is"):
            run(tmp_path, "task=test", f"ckpt_path={newest}")
    assert not newest.with_name("executed").exists()


@pytest.mark.parametrize("name", ["run.json", "config.yaml"])
def test_a_damaged_run_is_skipped_by_name(tmp_path: Path, name: str) -> None:
    """One broken folder among an experiment's runs stops no run, and is said."""
    run(tmp_path, "trainer.max_steps=5")
    folder = folder_of(tmp_path)
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, "status": "running"}))
    settings = {**stored_config(folder), "resume": "auto"}
    broken = folder.with_name("9999-broken")
    shutil.copytree(folder, broken)
    contents = [b"", b"{", b"[1]", b"\xff\xfe\x00", b"null", b"callbacks: 7", b"a: [", b"{}"]
    if name == "config.yaml":
        whole = yaml.safe_load((folder / name).read_text())
        for key, value in (("trainer", None), ("datamodule", 7), ("callbacks", "x"), ("name", 1)):
            contents.append(yaml.safe_dump({**whole, key: value}).encode())
    for content in contents:
        (broken / name).write_bytes(content)
        start = resume.find(settings, folder.parent)
        assert isinstance(start, Start), content
        assert start.folder == folder
        assert any(f"{broken / name}" in line for line in start.words), content
        with pytest.raises(ConfigError, match="9999-broken"):
            resume.find({**settings, "resume": str(broken)}, folder.parent)
        with pytest.raises(ConfigError, match="9999-broken"):
            run(tmp_path, "task=export", "~module", f"ckpt_path={broken}")


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "step-00000001.ckpt"
    torch.save({"state_dict": {"w": torch.zeros(2)}, "global_step": 1}, file)
    module = TinyModule()
    module.configure_model()
    with pytest.raises(ConfigError, match=r"step-00000001\.ckpt: no checkpoint of this TinyModule"):
        fill(module, file)


@pytest.mark.parametrize(("every", "steps"), [(10, (13, 20)), (16, (16,))])
def test_sigterm_saves_the_step_and_marks_the_run(
    tmp_path: Path, every: int, steps: tuple[int, ...]
) -> None:
    """A step at which a validation is due is saved with it; an epoch has 16."""
    common = ["trainer.checkpoint_every=7", f"trainer.val_check_interval={every}"]
    run(tmp_path / "whole", *common)
    whole = folder_of(tmp_path / "whole")
    for step in steps:
        stop = [
            "+callbacks.kill._target_=tests.runner.tiny.Kill",
            f"+callbacks.kill.at={step - 1}",
            "+callbacks.kill.name=SIGTERM",
        ]
        outputs = tmp_path / str(step)
        with pytest.raises(SystemExit) as stopped:
            run(outputs, *common, *stop)
        assert stopped.value.code == 128 + signal.SIGTERM
        folder = folder_of(outputs)
        record = json.loads((folder / "run.json").read_text())
        assert record["status"] == "interrupted"
        assert f"SIGTERM after step {step} of 40" in record["reason"]
        last = checkpoints(outputs)[-1]
        assert last.name == f"step-{step:08d}.ckpt"
        saved = torch.load(last, weights_only=True)["callbacks"]["Checkpointing"]
        assert saved["validated_step"] == step // every * every
        run(outputs, *common, f"resume={folder}")
        assert_same(whole / "checkpoints" / LAST, folder / "checkpoints" / LAST)
        assert losses(folder) == losses(whole), "each row once"


def test_second_sigint_stops_at_once(tmp_path: Path) -> None:
    stop = ["+callbacks.kill._target_=tests.runner.tiny.Kill", "+callbacks.kill.at=12"]
    twice = ["+callbacks.kill.name=SIGINT", "+callbacks.kill.times=2"]
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path, *stop, *twice)
    assert stopped.value.code == 128 + signal.SIGINT
    assert checkpoints(tmp_path)[-1].name == "step-00000010.ckpt"
    assert json.loads((folder_of(tmp_path) / "run.json").read_text())["status"] == "interrupted"


def test_resume_refuses_another_run(tmp_path: Path) -> None:
    """Another width is another model: refused, and both values shown. A longer run is allowed."""
    run(tmp_path, "trainer.max_steps=5")
    folder = folder_of(tmp_path)
    for change, key in (
        ("module.width=8", "module.width: 16 -> 8"),
        ("datamodule.count=32", "datamodule.count: 64 -> 32"),
        ("callbacks.tiny.rate=0.25", "callbacks.tiny.rate: 0.5 -> 0.25"),
        ("callbacks.tiny=null", "callbacks.tiny: Method -> None"),
    ):
        with pytest.raises(ConfigError, match=key):
            run(tmp_path, f"resume={folder}", change)
    before = (folder / "run.json").read_text()
    newest = folder / "checkpoints" / "step-00000005.ckpt"
    content = torch.load(newest)
    content["frugal"]["seconds"] = 1000.0
    torch.save(content, newest)
    run(tmp_path, f"resume={folder}", "trainer.max_steps=8")
    after = json.loads((folder / "run.json").read_text())
    assert after["id"] == json.loads(before)["id"]
    assert after["checkpoint"] == "checkpoints/step-00000008.ckpt"
    # The time of the training before is the run's as well.
    assert 1000 < after["metrics"]["seconds"] <= after["seconds"] < 1300
    assert after["phases"]["training"] < 300
    ended = torch.load(folder / after["checkpoint"])["frugal"]["seconds"]
    assert 1000 < ended <= after["metrics"]["seconds"]


def test_what_changes_time_and_memory_only_may_change() -> None:
    """As a training that ran out of memory needs it."""
    free = ("module.gradient_checkpointing", "module.compile", "datamodule.num_workers")
    changes = dict.fromkeys((*free, "module.optimizer.lr", "trainer.precision"), (1, 2))
    config: dict[str, Any] = {"module": {}, "datamodule": {}, "callbacks": None}
    assert resume.changes_that_forbid_resuming(changes, config, config) == ["module.optimizer.lr"]


class Following(TinyModule):
    """Its learning rate falls until the last step."""

    follows_length: ClassVar[bool] = True


def test_another_length_is_refused_unless_it_is_asked_for(tmp_path: Path) -> None:
    target = f"module._target_={Following.__module__}.{Following.__qualname__}"
    given = [target, "trainer.max_steps=5"]
    run(tmp_path, *given)
    folder = folder_of(tmp_path)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for change in ("trainer.max_steps=8", "trainer.max_steps=4", "trainer.max_epochs=2"):
        key, _, value = change.partition("=")
        with pytest.raises(ConfigError, match=rf"stretch=true .*\n  {key}: \S+ -> {value}"):
            run(tmp_path, *given, f"resume={folder}", change)
        settings = {**stored_config(folder), "resume": "auto"}
        settings["trainer"] = {**settings["trainer"], key.removeprefix("trainer."): int(value)}
        write_record(folder, replace(read_record(folder), status="interrupted"))
        told = resume.find(settings, folder.parent)
        assert isinstance(told, str)
        assert f"{key}: " in told
        (folder / "run.json").write_bytes(before[folder / "run.json"])
    with pytest.raises(ConfigError, match=r"step-00000005\.ckpt has taken 5 steps already, more"):
        run(tmp_path, *given, f"resume={folder}", "trainer.max_steps=4", "stretch=true")
    assert {path: path.read_bytes() for path in before} == before
    # Without a limit on epochs these do not change the length.
    run(tmp_path, *given, f"resume={folder}", "trainer.accumulate_grad_batches=2")
    run(tmp_path, *given, f"resume={folder}", "trainer.max_steps=8", "stretch=true")
    assert read_record(folder).checkpoint == "checkpoints/step-00000008.ckpt"


def test_what_changes_the_steps_of_an_epoch_changes_the_length() -> None:
    stored = {
        "module": {"_target_": "lightning_modules.causal_lm.CausalLM"},
        "callbacks": None,
        "trainer": {"max_steps": 100, "max_epochs": 3, "accumulate_grad_batches": 1, "devices": 1},
        "stretch": False,
    }
    for key in ("accumulate_grad_batches", "devices", "limit_train_batches"):
        settings = {**stored, "trainer": {**stored["trainer"], key: 2}}  # type: ignore[dict-item]
        changes = difference(stored, settings)
        assert resume.changes_of_length(changes, stored, settings) == [f"trainer.{key}"]
        assert resume.changes_of_length(changes, stored, {**settings, "stretch": True}) == []


@pytest.mark.parametrize(
    "target",
    [
        "callbacks.est.EvolvingSubnetworkTraining",
        "callbacks.sat.SparsityAcceleratedTraining",
        "lightning_modules.causal_lm.CausalLM",
        "lightning_modules.lifelong_hashing.LifelongHashing",
        "lightning_modules.sql_parser.SqlParser",
        "lightning_modules.text_to_sql.TextToSql",
        "lightning_modules.utterance_rewriter.UtteranceRewriter",
    ],
)
def test_methods_and_modules_say_that_they_follow_the_length(target: str) -> None:
    assert signatures.attribute(target, "follows_length") is True


def test_auto_takes_only_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """resume=auto leaves runs that finished, have another seed or model, or are still at work."""
    run(tmp_path, "trainer.max_steps=5")
    folder = folder_of(tmp_path)
    run(tmp_path, "trainer.max_steps=5", "resume=auto")
    assert "resume=auto: a new run" in capsys.readouterr().out
    assert len(list((tmp_path / "tiny").iterdir())) == 2
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, "status": "interrupted"}))
    settings = {**stored_config(folder), "resume": "auto"}
    assert isinstance(resume.find(settings, folder.parent), Start)
    told = resume.find({**settings, "seed": 2}, folder.parent)
    assert isinstance(told, str)
    assert "seed: 1 -> 2" in told
    other = {**settings, "module": {**settings["module"], "width": 8}}
    assert isinstance(resume.find(other, folder.parent), str)
    (folder / ".lock").unlink()
    (folder / ".lock").mkdir()  # as little to be written to as another user's
    assert isinstance(resume.find(settings, folder.parent), str)
    with pytest.raises(ConfigError, match=r"cannot be read or written: .*\.lock"):
        resume.find({**settings, "resume": str(folder)}, folder.parent)
    (folder / ".lock").rmdir()
    with held(folder):
        assert isinstance(resume.find(settings, folder.parent), str)
        for path in (folder, folder / "checkpoints" / "step-00000005.ckpt"):
            with pytest.raises(ConfigError, match="another process is at work"):
                resume.find({**settings, "resume": str(path)}, folder.parent)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Another process is at work in a run folder."""
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()

    def hold() -> None:
        with lock(folder):
            ready.set()
            done.wait(60)

    process = context.Process(target=hold)
    process.start()
    try:
        assert ready.wait(60)
        yield
    finally:
        done.set()
        process.join()


def test_a_run_stands_for_its_best_checkpoint_and_else_for_its_newest_whole_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    best, old, new = (
        folder / f"{name}.ckpt" for name in ("best", "step-00000005", "step-00000010")
    )
    for path in (best, old, new):
        torch.save({"state_dict": {"w": torch.rand(99)}, "global_step": 5}, path)
    assert checkpoint_of("module.init", tmp_path) == best
    assert checkpoint_of("module.init", old) == old
    damage(best)
    assert checkpoint_of("module.init", tmp_path) == new
    assert "best.ckpt is damaged; another" in capsys.readouterr().out
    damage(new)
    assert checkpoint_of("module.init", str(tmp_path)) == old
    with pytest.raises(ConfigError, match=rf"module\.init={new}: the file is damaged"):
        checkpoint_of("module.init", new)
    damage(old)
    with pytest.raises(ConfigError, match=rf"module\.init={tmp_path}: no whole checkpoint in"):
        checkpoint_of("module.init", tmp_path)


def test_a_part_from_a_run_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    asking = ["experiment=delta_parser", f"paths.output_dir={tmp_path}"]
    with pytest.raises(ConfigError, match=r"module\.init=/nowhere: no such file or folder"):
        checked([*asking, "module.init=/nowhere"])
    (tmp_path / "checkpoints").mkdir()
    job = asked([*asking, f"module.init={tmp_path}"])
    with pytest.raises(ConfigError, match=r"module\.init=.*: no whole checkpoint in"):
        pretrained.resolve(job)
    torch.save({"state_dict": {}, "global_step": 1}, tmp_path / "checkpoints" / "best.ckpt")
    made = pretrained.resolve(job)
    assert made.settings["module"]["init"] == str(tmp_path / "checkpoints" / "best.ckpt")
    assert made.recorded["module"]["init"] == job.settings["module"]["init"] == str(tmp_path)


def test_checkpoints_of_another_future_are_put_aside(tmp_path: Path) -> None:
    """Those after the step gone on from; the best one says in its content of which step it is."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    names = [f"step-{step:08d}.ckpt" for step in (5, 10, 15)]
    for name in names:
        (folder / name).touch()
    torch.save({"state_dict": {}, "global_step": 10}, folder / "best.ckpt")
    retire_newer(tmp_path, 10)
    kept = ["best.ckpt", *names[:2], f"{names[2]}.unused"]
    assert sorted(p.name for p in folder.iterdir()) == kept
    retire_newer(tmp_path, 9)
    kept = ["best.ckpt.unused", names[0], f"{names[1]}.unused", f"{names[2]}.unused"]
    assert sorted(p.name for p in folder.iterdir()) == kept


def test_going_on_from_the_best_checkpoint_loses_nothing_again(tmp_path: Path) -> None:
    """Later checkpoints of the first time are no newer ones of this time."""
    worst = "callbacks.checkpoint.mode=max"
    run(tmp_path, worst)
    best = folder_of(tmp_path) / "checkpoints" / "best.ckpt"
    assert torch.load(best, weights_only=True)["global_step"] == 10
    kill = ["+callbacks.kill._target_=tests.runner.tiny.Kill", "+callbacks.kill.at=23"]
    forked(tmp_path, "experiment=tiny", "name=tiny", worst, f"resume={best}", *kill)
    assert [path.stem for path in checkpoints(tmp_path)] == ["step-00000015", "step-00000020"]
    assert torch.load(best, weights_only=True)["global_step"] == 10


def test_the_last_validation_has_a_say_in_the_best_of_the_metric_that_is_watched(
    tmp_path: Path,
) -> None:
    """Also where it comes after the last step; a value of another metric is no best one."""
    run(tmp_path, "trainer.max_steps=13")
    folder = folder_of(tmp_path) / "checkpoints"
    assert (folder / "best.ckpt").samefile(folder / "step-00000013.ckpt")
    state = torch.load(folder / "best.ckpt", weights_only=True)["callbacks"]["Checkpointing"]
    assert state["best_step"] == 10
    changes: list[dict[str, Any]] = [{}, {"monitor": "train/loss"}, {"mode": "max"}]
    for changed, best in zip(changes, (10, -1, -1), strict=True):
        callback = Checkpointing(str(folder), **changed)
        callback.load_state_dict(state)
        assert callback.best_step == best


def test_the_hash_of_a_config_says_what_decides_and_not_where_files_go() -> None:
    def digest(*overrides: str) -> str:
        return config_hash(checked(["experiment=sat_cpt", *overrides]))

    here = digest("paths.cache_dir=/here", "paths.output_dir=/here/runs")
    assert digest("paths.cache_dir=/there", "paths.output_dir=/there/runs") == here
    assert digest("paths.cache_dir=/here", "paths.output_dir=/here/runs", "seed=2") != here


def test_runs_of_one_arm_differ_by_their_seeds_only() -> None:
    def arm(*overrides: str) -> str:
        return arm_hash(checked(["experiment=est_gpt2", *overrides]))

    assert arm() == arm("seed=2") == arm("seed=3", "resume=auto", "tags=[a]", "datamodule.seed=5")
    assert arm() != arm("trainer.max_steps=7")
    assert arm() != arm("callbacks.est=null")


def test_what_only_training_reads_comes_from_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another learning rate is no other model; another width is, and so is another class."""
    model = {"_target_": "lightning_modules.causal_lm.CausalLM", "architecture": {"n_embd": 8}}
    stored = {
        "name": "stored",
        "paths": {"run_dir": str(tmp_path)},
        "module": {**model, "optimizer": {"lr": 0.1}, "schedule": {"warmup": 0.2}},
        "datamodule": {"_target_": "datamodules.language_modeling.LanguageModelingDataModule"},
        "callbacks": None,
        "trainer": {},
    }
    OmegaConf.save(stored, tmp_path / "config.yaml")
    (tmp_path / "run.json").write_text('{"id": "a", "task": "train", "status": "finished"}')
    asked: dict[str, Any] = {
        **stored,
        "task": "test",
        "ckpt_path": str(tmp_path),
        "resume": "never",
    }
    given = {**model, "optimizer": {"lr": 0.3}, "schedule": {"warmup": 0.4}}
    assert with_stored({**asked, "module": given})["module"] == stored["module"]
    for changed, words in (
        ({"architecture": {"n_embd": 16}}, r"module\.architecture\.n_embd: 8 -> 16"),
        ({"_target_": "lightning_modules.sql_parser.SqlParser"}, r"module\._target_: .*CausalLM"),
    ):
        with pytest.raises(ConfigError, match=words):
            with_stored({**asked, "module": {**given, **changed}})
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    home = {"ckpt_path": f"~/{tmp_path.name}"}
    assert with_stored({**asked, **home, "module": given})["ckpt_path"] == str(tmp_path)


def test_a_run_is_read_without_the_base_that_it_began_with(tmp_path: Path) -> None:
    """Where it keeps its own copy of what that is, and what is read is that run's."""
    named = {"pretrained": "/nowhere/base"}
    stored: dict[str, Any] = {
        "name": "stored",
        "paths": {"run_dir": str(tmp_path)},
        "module": {"_target_": "lightning_modules.causal_lm.CausalLM", **named},
        "datamodule": {"_target_": "datamodules.instruction.InstructionDataModule"},
        "callbacks": None,
        "trainer": {},
    }
    stored["datamodule"]["tokenizer"] = {**named, "sample_chars": 7}
    OmegaConf.save(stored, tmp_path / "config.yaml")
    assert on_its_own(stored, None) == on_its_own(stored, tmp_path) == stored
    for part in ("model", "tokenizer"):
        (tmp_path / part).mkdir()
    kept = {"pretrained": str(tmp_path / "model")}
    assert on_its_own(stored, tmp_path) == {**stored, "module": {**stored["module"], **kept}}
    (tmp_path / "tokenizer" / ORIGINAL).write_text("{}")
    own = on_its_own(stored, tmp_path)["datamodule"]["tokenizer"]
    assert own == {"pretrained": str(tmp_path / "tokenizer"), "sample_chars": 7}
    other = {**stored, "datamodule": {"tokenizer": {"pretrained": "gpt2"}}}
    assert on_its_own(other, tmp_path)["datamodule"] == other["datamodule"]
    scratch = {**stored, "module": {"architecture": {}}}
    assert on_its_own(scratch, tmp_path) == scratch

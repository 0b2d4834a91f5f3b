"""A run that is killed and resumed is the run that was never killed, bit for bit.

Weights, optimizer, schedule, random states, loop counters: all that a checkpoint holds. The model
has dropout, validation draws random numbers, and checkpoints fall on every place in an epoch.
"""

import csv
import json
import shutil
import signal
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from runner import resume
from runner.validate import ConfigError, checked
from tests.runner.laboratory import finish, run, start

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
    a.pop("frugal"), b.pop("frugal")
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
    ("extra", "steps"),
    [
        # 16 batches an epoch. 10, 20: a validation is due; 16, 32: an epoch ends; 40: nothing is
        # left to do.
        pytest.param([], (7, 10, 16, 32, 40), id="plain"),
        # 15 batches an epoch, so that every fourth step takes 3 micro-batches and not 4.
        pytest.param(
            ["datamodule.count=60", "trainer.accumulate_grad_batches=4"], (7, 8, 9), id="accumulate"
        ),
        pytest.param(["trainer.val_check_interval=16"], (16, 17), id="validation-at-epoch-end"),
        pytest.param(
            ["trainer.limit_val_batches=0", "trainer.num_sanity_val_steps=0"],
            (16,),
            id="no-validation",
        ),
    ],
)
def test_resumed_from_any_step_is_bit_equal(
    tmp_path: Path, extra: list[str], steps: tuple[int, ...]
) -> None:
    """Cut after `steps`, and each resumed run cut once more: a second resumption must hold too."""
    every = ["trainer.checkpoint_every=1", "callbacks.checkpoint.keep_last=100", *extra]
    run(tmp_path / "whole", *every)
    whole = folder_of(tmp_path / "whole")
    for step in steps:
        source = whole
        for again in sorted({step, min(step + 5, 40)}):
            outputs = tmp_path / f"from-{step}-{again}"
            folder = outputs / "tiny" / whole.name
            interrupted_at(source, folder, again)
            run(outputs, *every, "resume=auto")
            assert_same(whole / "checkpoints" / LAST, folder / "checkpoints" / LAST)
            record = json.loads((folder / "run.json").read_text())
            assert record["status"] == "finished"
            assert record["resumed"][-1]["checkpoint"] == f"step-{again:08d}.ckpt"
            assert set(losses(folder)) == set(losses(whole))
            source = folder


def losses(folder: Path) -> list[tuple[str, str, str]]:
    with (folder / "metrics.csv").open() as file:
        rows = csv.DictReader(file)
        return [(row["step"], row["train/loss"], row.get("val/loss", "")) for row in rows]


def test_sigkill_and_damaged_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path / "whole")
    kill = ["+callbacks.kill._target_=tests.runner.tiny.Kill", "+callbacks.kill.at=23"]
    code, _ = finish(start(tmp_path / "killed", "experiment=tiny", "name=tiny", *kill))
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


def test_truncated_checkpoint_is_not_whole(tmp_path: Path) -> None:
    path = tmp_path / "step-00000001.ckpt"
    torch.save({"weights": torch.rand(1000)}, path)
    assert resume.is_whole(path)
    path.write_bytes(path.read_bytes()[:-100])
    assert not resume.is_whole(path)


def test_sigterm_saves_the_step_and_marks_the_run(tmp_path: Path) -> None:
    run(tmp_path / "whole")
    stop = [
        "+callbacks.kill._target_=tests.runner.tiny.Kill",
        "+callbacks.kill.at=12",
        "+callbacks.kill.name=SIGTERM",
    ]
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path / "stopped", *stop)
    assert stopped.value.code == 128 + signal.SIGTERM
    folder = folder_of(tmp_path / "stopped")
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "interrupted"
    assert "SIGTERM after step 13 of 40" in record["reason"]
    assert checkpoints(tmp_path / "stopped")[-1].name == "step-00000013.ckpt"
    run(tmp_path / "stopped", f"resume={folder}")
    ends = [folder_of(tmp_path / name) / "checkpoints" / LAST for name in ("whole", "stopped")]
    assert_same(*ends)


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
        ("callbacks.tiny=null", "callbacks.tiny.rate: 0.5 -> None"),
    ):
        with pytest.raises(ConfigError, match=key):
            run(tmp_path, f"resume={folder}", change)
    before = (folder / "run.json").read_text()
    run(tmp_path, f"resume={folder}", "trainer.max_steps=8")
    after = json.loads((folder / "run.json").read_text())
    assert after["id"] == json.loads(before)["id"]
    assert after["checkpoint"] == "checkpoints/step-00000008.ckpt"


def test_auto_takes_only_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """resume=auto leaves runs that finished, have another seed or model, or are still at work."""
    run(tmp_path, "trainer.max_steps=5")
    folder = folder_of(tmp_path)
    run(tmp_path, "trainer.max_steps=5", "resume=auto")
    assert "resume=auto: a new run" in capsys.readouterr().out
    assert len(list((tmp_path / "tiny").iterdir())) == 2
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, "status": "interrupted"}))
    settings = {**resume.stored_config(folder), "resume": "auto"}
    assert isinstance(resume.find(settings, folder.parent), resume.Start)
    told = resume.find({**settings, "seed": 2}, folder.parent)
    assert isinstance(told, str)
    assert "seed: 1 -> 2" in told
    other = {**settings, "module": {**settings["module"], "width": 8}}
    assert isinstance(resume.find(other, folder.parent), str)


def test_the_hash_of_a_config_says_what_decides_and_not_where_files_go() -> None:
    def digest(*overrides: str) -> str:
        return resume.config_hash(checked(["experiment=sat_cpt", *overrides]))

    here = digest("paths.cache_dir=/here", "paths.output_dir=/here/runs")
    assert digest("paths.cache_dir=/there", "paths.output_dir=/there/runs") == here
    assert digest("paths.cache_dir=/here", "paths.output_dir=/here/runs", "seed=2") != here

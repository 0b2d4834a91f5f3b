"""Two gloo processes are one run: one folder, one record, one stop, the same end after a resume."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runner.laboratory import ROOT, finish, start
from tests.runner.test_resume import LAST, assert_same, folder_of

pytestmark = pytest.mark.slow

TINY = ["experiment=tiny", "name=tiny"]
STOP = [
    "+callbacks.kill._target_=tests.runner.tiny.Kill",
    "+callbacks.kill.at=12",
    "+callbacks.kill.name=SIGTERM",
]


@pytest.mark.parametrize("trainer", ["ddp", "ddp_spawn"])
def test_stopped_and_resumed(tmp_path: Path, trainer: str) -> None:
    chosen = [*TINY, f"trainer={trainer}"]
    code, output = finish(start(tmp_path / "whole", *chosen))
    assert code == 0, output
    code, output = finish(start(tmp_path / "stopped", *chosen, *STOP))
    assert code == 128 + signal.SIGTERM, output
    record = json.loads((folder_of(tmp_path / "stopped") / "run.json").read_text())
    assert record["status"] == "interrupted"
    code, output = finish(start(tmp_path / "stopped", *chosen, "resume=auto"))
    assert code == 0, output
    assert "from step-00000013.ckpt" in output.replace("\n", "")
    whole, stopped = (folder_of(tmp_path / name) for name in ("whole", "stopped"))
    assert_same(whole / "checkpoints" / LAST, stopped / "checkpoints" / LAST)
    for folder in (whole, stopped):
        record = json.loads((folder / "run.json").read_text())
        assert record["status"] == "finished"
        assert record["ledgers"]["tiny"]["savings"][0]["spent"] == 40


def test_torchrun_makes_one_run(tmp_path: Path) -> None:
    """Processes that were not started by one another agree on the folder."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
        *("-m", "tests.runner.laboratory", *TINY, "trainer=ddp", f"paths.output_dir={tmp_path}"),
    ]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stdout + result.stderr
    record = json.loads((folder_of(tmp_path) / "run.json").read_text())
    assert record["status"] == "finished"


def test_multirun_of_spawned_processes(tmp_path: Path) -> None:
    """The way out that the refusal of ddp in a multirun names."""
    arguments = ["-m", *TINY, "trainer=ddp_spawn", "trainer.max_steps=5", "seed=1,2"]
    code, output = finish(start(tmp_path, *arguments))
    assert code == 0, output
    assert len(list((tmp_path / "tiny").iterdir())) == 2

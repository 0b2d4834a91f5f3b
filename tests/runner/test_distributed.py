"""Two gloo processes are one run: one folder, one record, one stop, the same end after a resume."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.runner.laboratory import ROOT, finish, start
from tests.runner.test_resume import LAST, assert_same, folder_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

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


@pytest.mark.parametrize("started", ["ddp", "ddp_spawn", "torchrun"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_killed_ends_the_run(tmp_path: Path, started: str, rank: int) -> None:
    """In words and within a minute, whichever it is; `resume=auto` goes on."""
    chosen = [*TINY, "trainer=ddp" if started == "torchrun" else f"trainer={started}"]
    kill = ["+callbacks.kill._target_=tests.runner.tiny.Kill", "+callbacks.kill.at=12"]

    def run(*more: str) -> tuple[int, str]:
        if started == "torchrun":
            return torchrun(*chosen, f"paths.output_dir={tmp_path / 'killed'}", *more)
        return finish(start(tmp_path / "killed", *chosen, *more))

    code, output = run(*kill, f"+callbacks.kill.rank={rank}")
    ended = time.time()
    assert code != 0, output
    # The kill came two steps after this was written.
    newest = max(folder_of(tmp_path / "killed").glob("checkpoints/step-*.ckpt"))
    assert newest.name == "step-00000010.ckpt"
    assert ended - newest.stat().st_mtime < 60
    assert "another process of this run has ended" in output.replace("\n", " ")
    assert "Traceback" not in output or started == "torchrun"  # whose own it is
    if rank == 1:  # the first process, which keeps the record, lives on
        record = json.loads((folder_of(tmp_path / "killed") / "run.json").read_text())
        assert record["status"] == "failed"
    code, output = run("resume=auto")
    assert code == 0, output
    assert "from step-00000010.ckpt" in output.replace("\n", "")
    code, said = finish(start(tmp_path / "whole", *TINY, "trainer=ddp"))
    assert code == 0, said
    whole, killed = (folder_of(tmp_path / name) for name in ("whole", "killed"))
    assert_same(whole / "checkpoints" / LAST, killed / "checkpoints" / LAST)


def torchrun(*arguments: str) -> tuple[int, str]:
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
        *("-m", "tests.runner.laboratory", *arguments),
    ]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    return result.returncode, result.stdout + result.stderr


def test_torchrun_makes_one_run(tmp_path: Path) -> None:
    """Processes that were not started by one another agree on the folder."""
    code, output = torchrun(*TINY, "trainer=ddp", f"paths.output_dir={tmp_path}")
    assert code == 0, output
    record = json.loads((folder_of(tmp_path) / "run.json").read_text())
    assert record["status"] == "finished"


@pytest.mark.parametrize("way", ["trainer=ddp_spawn", "trainer=ddp hydra/launcher=pool workers=1"])
def test_multirun_of_several_processes(tmp_path: Path, way: str) -> None:
    """The ways out that the refusal of ddp in a multirun names."""
    arguments = ["-m", *TINY, *way.split(), "trainer.max_steps=5", "seed=1,2"]
    code, output = finish(start(tmp_path, *arguments))
    assert code == 0, output
    assert len(list((tmp_path / "tiny").iterdir())) == 2

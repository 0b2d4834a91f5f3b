"""A run that is killed at any moment, and gone on with, is the run that was never killed."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

import tests.forked
from tests.forked import Child
from tests.resilience.kills import (
    EVENT,
    RESUMABLE,
    STACK,
    Laboratory,
    differences,
    moment_of,
    orphans,
)

KILLS = 20


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Laboratory:
    return Laboratory(tmp_path_factory.mktemp("laboratory"))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", RESUMABLE)
def test_nothing_is_lost_by_a_kill(name: str, laboratory: Laboratory) -> None:
    record = laboratory.try_kills(name, KILLS, seed=1)
    assert record.faults == []
    assert record.killed >= KILLS
    assert record.resumed + record.anew >= record.runs


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_kill_ends_what_it_has_started(tmp_path: Path) -> None:
    """W&B's process, beside files of its own."""
    record = Laboratory(tmp_path).try_kills("est_gpt2", 4, 2, "logger=default")
    assert record.faults == []


def test_a_child_that_a_signal_ends_says_where_it_was() -> None:
    """As the allocator ends one whose memory is damaged; torch's launchers only name the signal."""

    def damaged() -> None:
        os.abort()

    def parent() -> None:
        signal.signal(signal.SIGABRT, signal.SIG_DFL)  # as a library may do in a test's process
        if (pid := os.fork()) == 0:
            damaged()
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == -signal.SIGABRT

    said = Child(parent).wait(60).said
    assert "Fatal Python error: Aborted" in said
    assert "in damaged" in said


def test_what_a_kill_leaves_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of another session."""
    monkeypatch.setattr(tests.forked, "LEAVE", 0.2)

    def work() -> None:
        subprocess.Popen(["sleep", "60"], start_new_session=True)
        (tmp_path / "began").touch()
        time.sleep(60)

    child = Child(work)
    while not (tmp_path / "began").exists():
        time.sleep(0.01)
    child.kill()
    ended = child.wait(10)
    assert (ended.code, ended.survivors) == (-signal.SIGKILL, ("sleep 60",))


def test_a_lost_loss_and_a_half_made_file_are_seen(tmp_path: Path) -> None:
    for name in ("whole", "killed"):
        folder = tmp_path / name / "outputs" / "est" / "run"
        (folder / "checkpoints").mkdir(parents=True)
        keys = ("state_dict", "optimizer_states", "lr_schedulers", "rng_states", "global_step")
        for file in ("step-2.ckpt", "best.ckpt"):
            torch.save(dict.fromkeys(keys, 1), folder / "checkpoints" / file)
        (folder / "run.json").write_text('{"status": "finished"}')
        (folder / "metrics.csv").write_text("step,val/loss\n1,2.5\n2,2.0\n")
    assert differences(tmp_path / "whole", tmp_path / "killed") == []
    killed = tmp_path / "killed" / "outputs" / "est" / "run"
    (killed / "metrics.csv").write_text("step,val/loss\n2,2.0\n")
    (killed / "checkpoints" / "best.ckpt.tmp").touch()
    assert differences(tmp_path / "whole", tmp_path / "killed") == [".losses"]
    assert len(list(orphans(tmp_path / "killed"))) == 1


def test_moments_are_named() -> None:
    stack = f"Current thread ({STACK}):\n"
    loops = "".join(
        f'  File "/x/pytorch_lightning/loops/{name}.py", line 1 in run\n'
        for name in ("evaluation_loop", "training_epoch_loop")
    )
    assert moment_of(stack + loops) == "validation"
    assert moment_of(stack) == "start or end"
    assert moment_of(f"{EVENT} open /a/outputs/x/run.json.tmp\n") == "run.json"
    assert moment_of(f"{EVENT} os.rename /a/cache/models/b\n") == "cache"

"""What cannot run is refused in words: exit code 2, under 5 s, no run folder, no traceback.

The time is that of the whole process, Python's start included. It is taken as user + system time,
so that a machine that is busy with other things does not fail the test; nothing in it waits.
"""

import os
import resource
import time
from pathlib import Path

import pytest

from tests.runner.laboratory import finish, start

SECONDS = 5.0


def refused(outputs: Path, *arguments: str) -> str:
    """Return the words of a refusal, after checking the rest of the promise."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code, words = finish(start(outputs, *arguments))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert code == 2, words
    assert "Traceback" not in words
    assert not outputs.exists(), "something was left behind"
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < SECONDS
    return words


CASES = {
    "key": (
        ["trainer.max_stepz=3"],
        "trainer.max_stepz: no such key. Did you mean trainer.max_steps?",
    ),
    "key-elsewhere": (["max_steps=3"], "max_steps: no such key. Did you mean trainer.max_steps?"),
    "added-key": (["+module.widht=3"], "module.widht: no such key. Did you mean module.width?"),
    "argument-not-in-file": (
        ["trainer.overfit_batches=1"],
        "an argument of pytorch_lightning.Trainer; to set it, write +trainer.overfit_batches=...",
    ),
    "wandb-argument": (["+logger.wandb.grup=a", "logger=default"], "logger.wandb.group?"),
    "option": (
        ["trainer=dddp"],
        "Did you mean trainer=ddp? Options: cpu, ddp, ddp_spawn, default, fsdp, gpu",
    ),
    "experiment": (
        ["experiment=tini"],
        "experiment=tini: no such option. Did you mean experiment=tiny?",
    ),
    "type": (["trainer.max_steps=abc"], "trainer.max_steps='abc' must be int"),
    "steps": (
        ["trainer.max_steps=-1"],
        "trainer.max_steps=-1: at least 1; schedules are fractions",
    ),
    "task": (["task=tran"], "task=tran: no such task. Did you mean task=train?"),
    "own-task": (["task=cuont"], "task=cuont: no such task. Did you mean task=count?"),
    "task-without-checkpoint": (["task=count"], "task=count needs ckpt_path=PATH"),
    "node": (["callbacks.tiny=5"], "callbacks.tiny=5: must be keys with a _target_, or null"),
    "type-of-module": (["module.lr=fast"], "module.lr='fast' must be float"),
    "target": (["module._target_=os.system"], "module._target_=os.system: must begin with one of"),
    "class": (
        ["module._target_=tests.runner.tiny.TinyModul"],
        "no such class or function. Did you mean tests.runner.tiny.TinyModule?",
    ),
    "interpolation": (["module.width=${nothing}"], "module.width: Interpolation key 'nothing'"),
    "method": (["callbacks.tiny.rate=7"], "callbacks.tiny.rate=7 must be in (0, 1]"),
    "checkpoint": (["task=test"], "task=test needs ckpt_path=PATH"),
    "resume": (["resume=nowhere"], "resume=nowhere: must be never, auto"),
    "ddp": (
        ["trainer.strategy=ddp", "trainer.devices=2"],
        "trainer.strategy=ddp with callbacks.tiny: the method leaves parameters without a gradient",
    ),
    "auto-is-ddp": (["trainer.devices=2"], "trainer.strategy=auto with callbacks.tiny"),
    "fsdp": (["trainer.strategy=fsdp"], "trainer.strategy=fsdp with callbacks.tiny"),
    "fsdp-module": (["trainer=fsdp"], "this module does not split its parameters"),
    "fsdp-method": (["trainer=fsdp"], "fullysharded with callbacks.tiny"),
    "nothing": (["name=a"], "Nothing to train. Choose an experiment, or a module and a datamodule"),
    "null-group": (["experiment=null"], "experiment=null: a group takes one of its options"),
    "syntax": (["a=b=c"], "a=b=c: not of the form key=value"),
    "sweep": (["-m", "seed=1,2", "trainer.max_stepz=1,2"], "Did you mean trainer.max_steps?"),
    # The first job could run: it must not start before the second one is refused.
    "later-job": (["-m", "module.width=8,wide"], "module.width='wide' must be int"),
    "sweep-ddp": (["-m", "seed=1,2", "trainer=ddp"], "torchrun --nproc-per-node=N run.py"),
}


@pytest.mark.parametrize("case", CASES)
def test_refused(tmp_path: Path, case: str) -> None:
    arguments, expected = CASES[case]
    if case not in ("nothing", "null-group", "experiment"):
        arguments = [*arguments, "experiment=tiny"]
    assert expected in refused(tmp_path / "outputs", *arguments)


def test_real_experiment_is_refused_in_time(tmp_path: Path) -> None:
    """With the real model and method, whose sizes the check needs, measured on the wall."""
    began = time.perf_counter()
    words = refused(tmp_path / "outputs", "experiment=est_gpt2", "callbacks.est.rates.heads=0.01")
    busy = os.getloadavg()[0] > (os.cpu_count() or 1)
    assert "callbacks.est.rates.heads" in words
    assert time.perf_counter() - began < (60 if busy else SECONDS)


def test_full_error_shows_the_traceback(tmp_path: Path) -> None:
    """HYDRA_FULL_ERROR=1 is for whoever wants to see where a refusal comes from."""
    process = start(tmp_path, "experiment=tiny", "trainer.max_steps=abc", HYDRA_FULL_ERROR="1")
    code, words = finish(process)
    assert code == 1
    assert "Traceback" in words
    assert "ConfigError: trainer.max_steps='abc' must be int" in words

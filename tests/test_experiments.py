"""Every experiment is composed; those for two cores run; a killed one goes on bit for bit."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

import runner
from runner.validate import CONF, experiments
from tests.test_methods import assert_equal

PAPER_SCALE = sorted(
    name for name in experiments() if name.endswith("_paper") and not name.startswith("dlch")
)
HASHING = sorted(name for name in experiments() if name.startswith("dlch"))
SMALL = sorted(set(experiments()) - set(PAPER_SCALE) - set(HASHING))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """English of about 100 kB, from the standard library."""
    import pydoc_data.topics

    path = tmp_path_factory.mktemp("text") / "topics.txt"
    path.write_text("\n".join(pydoc_data.topics.topics.values())[:100_000])
    return path


def tiny(text: Path, outputs: Path, cache: Path) -> list[str]:
    """Overrides that make an experiment small, whatever its architecture."""
    return [
        "datamodule=text",
        f"datamodule.files={text}",
        "datamodule.context_length=16",
        "datamodule.vocab_size=300",
        "datamodule.batch_size=4",
        f"paths.output_dir={outputs}",
        f"paths.cache_dir={cache}",
    ]


@pytest.mark.parametrize("name", SMALL)
def test_small_experiments_run(name: str, text: Path, tmp_path: Path, cache_dir: Path) -> None:
    """From composition to report, with every stage and a ledger where there is a method."""
    overrides = [f"experiment={name}", "debug=fast", *tiny(text, tmp_path, cache_dir)]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", overrides)
    metrics = runner.run(cfg)
    assert metrics["val/loss"] < 6
    (folder,) = (tmp_path / "debug").iterdir()
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "finished"
    assert bool(record["ledgers"]) == (cfg.callbacks.est is not None)
    assert (folder / "plots" / "curves.png").stat().st_size > 10_000


@pytest.mark.parametrize("strategy", ["lifelong", "no_update"])
@pytest.mark.parametrize("name", HASHING)
def test_hashing_experiments_run(name: str, strategy: str, tmp_path: Path) -> None:
    """On features of 24 classes, whatever the experiment's data is; the sessions are cut short."""
    draw = np.random.default_rng(0)
    labels = np.eye(24, dtype=np.uint8)[np.arange(480) % 24]
    image, text = (labels @ draw.normal(size=(24, 8)).astype(np.float32) for _ in range(2))
    np.savez(tmp_path / "features.npz", image=image, text=text, labels=labels)
    overrides = [
        f"experiment={name}",
        "debug=fast",
        "datamodule=features",
        f"datamodule.path={tmp_path / 'features.npz'}",
        "datamodule.classes_per_session=[20,4]",
        "datamodule.queries=0.2",
        "datamodule.validation=0.2",
        "module.text_width=16",
        f"strategy={strategy}",
        f"paths.output_dir={tmp_path}",
    ]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", overrides)
    metrics = runner.run(cfg)
    assert 0 < metrics["val/map_all_i2t"] <= 1
    assert {"session_0/map_all_t2i", "session_1/map_new_t2i"} <= metrics.keys()
    (folder,) = (tmp_path / "debug").iterdir()
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["ledgers"]["module"]["savings"][0]["unit"] == "steps"


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")  # inductor's own
@pytest.mark.parametrize("name", PAPER_SCALE)
def test_paper_scale_experiments_are_checked_and_planned(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A dry run builds the model without weights and prints what each stage will cost."""
    overrides = [f"experiment={name}", "trainer=ddp", "trainer.devices=8", "dry_run=true"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        runner.run(compose("config", overrides))
    assert {"est_gpt2_paper": "26.7%", "est_tinyllama_paper": "25.0%"}[
        name
    ] in capsys.readouterr().out


def start(root: Path, *overrides: str) -> "subprocess.Popen[bytes]":
    """Start `python run.py OVERRIDES`."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "run.py", *overrides],
        cwd=root,
        env=environment,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        (),
        ("trainer.accumulate_grad_batches=4",),
        ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"),
    ],
    ids=["plain", "accumulation 4", "two DDP processes"],
)
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_sigkill_in_any_stage_and_resume_is_bit_exact(
    stage: int, options: tuple[str, ...], root: Path, text: Path, tmp_path: Path, cache_dir: Path
) -> None:
    """Weights, optimizer, RNG and EST's state are those of a run that nobody killed."""
    common = [
        "experiment=est_gpt2",
        "logger=csv",
        "name=killed",
        "module.architecture.resid_pdrop=0.1",
        "trainer.max_steps=150",
        "trainer.checkpoint_every=4",
        "trainer.val_check_interval=50",
        "trainer.limit_val_batches=2",
        *options,
    ]
    whole = [*common, *tiny(text, tmp_path / "whole", cache_dir)]
    assert start(root, *whole).wait(timeout=300) == 0
    first, last = ((4, 16), (24, 64), (76, 140))[stage - 1]
    target = random.Random(repr((stage, options))).randint(first, last)
    killed = [*common, *tiny(text, tmp_path / "killed", cache_dir)]
    process = start(root, *killed)
    while max(_steps(tmp_path / "killed"), default=0) < target:
        assert process.poll() is None
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert max(_steps(tmp_path / "killed")) < 150
    assert start(root, *killed, "resume=auto").wait(timeout=300) == 0

    (folder,) = (tmp_path / "killed" / "killed").iterdir()
    assert json.loads((folder / "run.json").read_text())["resumed"]
    expected, actual = (_last(tmp_path / name) for name in ("whole", "killed"))
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "rng_states"):
        assert_equal(actual[key], expected[key], key)
    method = "EvolvingSubnetworkTraining"
    assert_equal(actual["callbacks"][method], expected["callbacks"][method], method)


def _steps(outputs: Path) -> list[int]:
    return [int(path.stem.split("-")[1]) for path in outputs.glob("*/*/checkpoints/step-*.ckpt")]


def _last(outputs: Path) -> Any:
    path = max(outputs.glob("*/*/checkpoints/step-*.ckpt"))
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["global_step"] == 150
    return checkpoint

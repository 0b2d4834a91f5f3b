"""On a GPU: oracles of EST and SAT, bf16, one run of each method, and resuming.

`FRUGAL_GPU=cpu python -m pytest -m gpu` is a rehearsal without one.
"""

import copy
import json
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop
from transformers import masking_utils

import runner
from lightning_modules.lifelong_hashing import LifelongHashing
from runner.validate import CONF
from subnetworks.anatomy import dimensions_of
from subnetworks.chooser import UnitChooser
from subnetworks.fused import fuse, loss_from_hidden
from subnetworks.importance import SCORES
from subnetworks.schedule import Rates
from subnetworks.slicing import SlicedModel, activate
from subnetworks.spec import SubnetworkSpec, planned_subnetwork, sample_subnetwork
from tests.subnetworks.models import SmallModel, batch, build, subnetwork_of
from tests.subnetworks.test_slicing import cross_entropy
from tests.test_experiments import small, tiny_hashing, tiny_parser, tiny_rewriter

DEVICE = os.environ.get("FRUGAL_GPU", "cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        DEVICE == "cuda" and not torch.cuda.is_available(), reason="there is no GPU here"
    ),
]
HALF = Rates(layers=0.5, heads=0.5, neurons=0.5)


def assert_small(original: Any, on_device: Any, spec: SubnetworkSpec, logits: Any) -> None:
    """Logits and gradients are those of the small model, computed on the CPU."""
    oracle = SmallModel(original, spec)
    expected = oracle(batch())
    cross_entropy(expected, batch()).backward()
    torch.testing.assert_close(logits.cpu(), expected, atol=1e-3, rtol=1e-3)
    gradients = oracle.gradients(original)
    for name, parameter in on_device.named_parameters():
        gradient = gradients[name]
        if gradient is not None:
            torch.testing.assert_close(parameter.grad.cpu(), gradient, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_est_runs_the_small_model(name: str) -> None:
    original = build(name)
    model, ids = copy.deepcopy(original).to(DEVICE), batch().to(DEVICE)
    generator = torch.Generator().manual_seed(0)
    spec = sample_subnetwork(dimensions_of(model.config), HALF, generator)
    with activate(model, spec):
        output = model(input_ids=ids, labels=ids, use_cache=False)
        output.loss.backward()
    assert_small(original, model, spec, output.logits)


@pytest.mark.parametrize("importance", SCORES)
def test_sat_runs_the_small_model_of_the_chosen_units(importance: str) -> None:
    original = build("llama")
    model, ids = copy.deepcopy(original).to(DEVICE), batch().to(DEVICE)
    sliced = SlicedModel(model)
    chooser = UnitChooser(sliced.anatomy, importance)
    spec = planned_subnetwork(dimensions_of(model.config), Rates(heads=0.5, neurons=0.5))
    chooser.begin_step(0)
    if chooser.needs_probe:
        chooser.probe(model, {"input_ids": ids, "labels": ids})
    with activate(sliced, spec, chooser):
        output = model(input_ids=ids, labels=ids, use_cache=False)
        output.loss.backward()
    assert_small(original, model, subnetwork_of(sliced), output.logits)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_fused_loss_and_norms_are_hugging_faces(precision: str) -> None:
    ids, found, mixed = batch().to(DEVICE), [], precision == "bf16-mixed"
    for fused in (False, True):
        weights = torch.bfloat16 if precision == "bf16-true" else torch.float32
        model = build("llama").to(DEVICE, weights).train()
        if fused:
            fuse(model)
        context = loss_from_hidden(model) if fused else nullcontext()
        with context, torch.autocast(DEVICE, torch.bfloat16, enabled=mixed):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters())])
    tolerance = 1e-4 if precision == "32-true" else 0.05
    for left, right in zip(*found, strict=True):
        assert (right - left).norm() <= tolerance * left.norm() + 1e-6


def test_bf16_is_near_to_fp32() -> None:
    model, ids = build("llama").to(DEVICE), batch().to(DEVICE)
    generator = torch.Generator().manual_seed(0)
    spec = sample_subnetwork(dimensions_of(model.config), HALF, generator)
    losses = []
    for bf16 in (False, True):
        with activate(model, spec), torch.autocast(DEVICE, torch.bfloat16, enabled=bf16):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            loss.backward()
        losses.append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert losses[1] != losses[0]


@pytest.fixture
def waiting_is_an_error(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What has the host wait for the GPU raises, from the fourth step to the eighth; the steps.

    But for what Hugging Face's code reads of every batch, whether texts are packed in it, and where
    a session of lifelong hashing begins and ends.
    """
    steps: list[int] = []

    @contextmanager
    def mode(name: str) -> Iterator[None]:
        if DEVICE == "cpu":
            yield
            return
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings():  # it says that it is a prototype
            warnings.simplefilter("ignore")
            torch.cuda.set_sync_debug_mode(name)
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)

    def within(where: Any, what: str, name: Callable[[], str]) -> None:
        original = getattr(where, what)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with mode(name()):
                return original(*args, **kwargs)

        monkeypatch.setattr(where, what, wrapped)

    def of_step() -> str:
        steps.append(len(steps) + 1)
        return "error" if 3 < len(steps) < 9 else "default"

    within(_TrainingEpochLoop, "advance", of_step)
    within(masking_utils, "find_packed_sequence_indices", lambda: "default")
    for what in ("_begin", "_finish"):
        within(LifelongHashing, what, lambda: "default")
    return steps


QUIET = (
    *("trainer.max_steps=9", "trainer.val_check_interval=9", "trainer.checkpoint_every=9"),
    *("trainer.log_every_n_steps=9", "trainer.limit_val_batches=0"),
)
"""One step more than are watched: at the last one all is written."""


@pytest.mark.parametrize(
    "method",
    [
        ("experiment=est_gpt2",),
        ("experiment=est_gpt2", "callbacks=est_paper"),
        ("module=llama", "callbacks=sat"),
        ("module=llama", "callbacks=sat", "callbacks.sat.importance=maxip"),
    ],
    ids=["est", "est paper", "sat", "sat maxip"],
)
def test_no_step_waits_for_the_gpu(
    method: tuple[str, ...], tmp_path: Path, cache_dir: Path, waiting_is_an_error: list[int]
) -> None:
    run(*method, *text_data(tmp_path, cache_dir), *QUIET)
    assert waiting_is_an_error == [*range(1, 10)]


def test_no_step_of_dlch_waits_for_the_gpu(tmp_path: Path, waiting_is_an_error: list[int]) -> None:
    """Of the original data and of increments, with the codes that are computed between them."""
    run(*hashing_data(tmp_path), *QUIET, "trainer.max_steps=12")
    assert len(waiting_is_an_error) > 8  # sessions are cut to whole steps: there may be fewer


def test_no_step_of_delta_waits_for_the_gpu(
    tmp_path: Path, cache_dir: Path, waiting_is_an_error: list[int]
) -> None:
    run("experiment=delta", *dialogue_data(tmp_path, cache_dir), *QUIET)
    assert waiting_is_an_error == [*range(1, 10)]


def run(*overrides: str) -> dict[str, float]:
    trainer = "trainer=cpu" if DEVICE == "cpu" else "trainer=gpu"
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return runner.run(compose("config", [*overrides, "debug=fast", trainer]))


def text_data(folder: Path, cache: Path) -> list[str]:
    import pydoc_data.topics

    text = folder / "topics.txt"
    text.write_text("\n".join(pydoc_data.topics.topics.values())[:50_000])
    return ["datamodule=text", f"datamodule.files={text}", *small(folder / "runs", cache)]


def hashing_data(folder: Path) -> list[str]:
    return [*tiny_hashing("dlch_wikipedia", folder), f"paths.output_dir={folder}"]


def dialogue_data(folder: Path, cache: Path) -> list[str]:
    sizes = ("dialogues=90", "test_dialogues=9", "batch_size=8")
    return [
        *(*tiny_parser("module.parser"), *tiny_rewriter("module.rewriter")),
        *(f"datamodule.{size}" for size in sizes),
        *(f"paths.output_dir={folder}", f"paths.cache_dir={cache}"),
    ]


def test_est_resumes(tmp_path: Path, cache_dir: Path) -> None:
    """From its middle on a run comes to the weights that it has come to before."""
    data = text_data(tmp_path, cache_dir)
    run("experiment=est_gpt2", *data)
    (folder,) = (tmp_path / "runs" / "debug").iterdir()
    last = folder / "checkpoints" / "step-00000010.ckpt"
    before = torch.load(last, map_location="cpu", weights_only=True)["state_dict"]
    middle = folder / "checkpoints" / "step-00000005.ckpt"
    run("experiment=est_gpt2", *data, f"resume={middle}")
    assert len(json.loads((folder / "run.json").read_text())["resumed"]) == 1
    after = torch.load(last, map_location="cpu", weights_only=True)["state_dict"]
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, atol=1e-4, rtol=1e-4)


def test_sat_trains(tmp_path: Path, cache_dir: Path) -> None:
    data = text_data(tmp_path, cache_dir)
    assert run("module=llama", "callbacks=sat", *data)["val/loss"] < 6.5


def test_dlch_trains(tmp_path: Path) -> None:
    metrics = run(*hashing_data(tmp_path))
    assert 0 < metrics["val/map_all_i2t"] <= 1


def test_delta_trains(tmp_path: Path, cache_dir: Path) -> None:
    metrics = run("experiment=delta", *dialogue_data(tmp_path, cache_dir))
    assert 0 <= metrics["val/rewritten/exact"] <= 1

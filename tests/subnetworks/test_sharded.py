"""A model that FSDP splits over two processes learns on sub-networks as a whole one does."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.multiprocessing.spawn import start_processes

from subnetworks.anatomy import Anatomy, dimensions_of
from subnetworks.chooser import UnitChooser
from subnetworks.schedule import Rates
from subnetworks.slicing import SlicedModel, activate
from subnetworks.spec import SubnetworkSpec, planned_subnetwork, sample_subnetwork
from tests.subnetworks.models import CONFIGS, batch, build

WORLD = 2
# By name: the architecture, what is left out, and how it is chosen.
CASES: dict[str, tuple[str, dict[str, Any], str | None]] = {
    "gpt2, drawn": ("gpt2", {"rates": Rates(0.5, 0.5, 0.5), "layer_rescale": "inverse"}, None),
    "llama, drawn": ("llama", {"rates": Rates(0.25, 0.5, 0.25)}, None),
    "qwen3, one branch": ("qwen3", {"rates": Rates(neurons=0.5)}, None),
    "llama, wanda": ("llama", {"rates": Rates(heads=0.5, neurons=0.5)}, "wanda"),
    "llama, wanda, one layer whole": (
        "llama",
        {"rates": Rates(heads=0.5, neurons=0.5), "layer_factors": {1: 0.0}},
        "wanda",
    ),
    "gpt2, magnitude": ("gpt2", {"rates": Rates(heads=0.5, neurons=0.5)}, "magnitude"),
    "llama, activation": ("llama", {"rates": Rates(heads=0.5, neurons=0.5)}, "activation"),
    "gpt2, taylor": ("gpt2", {"rates": Rates(heads=0.5, neurons=0.5)}, "taylor"),
    "llama, wanda, forward only": (
        "llama",
        {"rates": Rates(heads=0.5, neurons=0.5), "forward_only": 0.5},
        "wanda",
    ),
    "gpt2, magnitude, forward only": (
        "gpt2",
        {"rates": Rates(heads=0.5, neurons=0.5), "frozen": 0.5, "forward_only": 0.5},
        "magnitude",
    ),
    "llama, wanda, context forward only": (
        "llama",
        {"rates": Rates(heads=0.5, neurons=0.5), "context_forward_only": True},
        "wanda",
    ),
    "llama, nothing": ("llama", {"rates": Rates()}, None),
}
# A draw, a choice by the batch, a choice by the weights, all forward only; more in `test-slow`.
FAST = ["gpt2, drawn", "llama, wanda", "gpt2, taylor", "gpt2, magnitude, forward only"]
GROUPS = {"fast": FAST, "slow": [case for case in CASES if case not in FAST]}


def spec_of(case: str) -> SubnetworkSpec:
    name, options, importance = CASES[case]
    dimensions = dimensions_of(CONFIGS[name])
    if importance is not None:
        return planned_subnetwork(dimensions, **options)
    return sample_subnetwork(dimensions, generator=torch.Generator().manual_seed(3), **options)


def learn(model: Any, case: str, parts: list[list[Tensor]], checkpointing: bool) -> dict[str, Any]:
    """Two steps of two micro-batches each, and a validation between them: losses and gradients."""
    spec, importance = spec_of(case), CASES[case][2]
    if checkpointing:
        model.activation_checkpointing_enable()
    sliced, seen = SlicedModel(model), []
    gradients: dict[str, Tensor] = {}
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for step, micro_batches in enumerate(parts):
        chooser = None
        if importance is not None:
            chooser = UnitChooser(Anatomy(model), importance)
            chooser.begin_step(step)
            if chooser.needs_probe:
                ids = micro_batches[0]
                chooser.probe(model, {"input_ids": ids, "labels": ids})
        with activate(sliced, spec, chooser):
            for ids in micro_batches:
                loss = model(input_ids=ids, labels=ids, use_cache=False).loss
                (loss / len(micro_batches)).backward()
                seen.append(loss.detach())
        gradients = {n: whole(p.grad) for n, p in model.named_parameters() if p.grad is not None}
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            ids = micro_batches[0]
            seen.append(model(input_ids=ids, labels=ids, use_cache=False).loss)
    weights = {name: whole(value) for name, value in model.named_parameters()}
    return {"losses": seen, "gradients": gradients, "weights": weights}


def whole(value: Tensor) -> Tensor:
    full = value.full_tensor() if isinstance(value, DTensor) else value
    return full.detach().clone()


def data(rank: int | None) -> list[list[Tensor]]:
    """What a process reads; None: a single one, which reads what both of them do."""
    steps = [[batch(4, seed=10 * s + m) for m in range(2)] for s in range(2)]
    if rank is None:
        return steps
    return [[ids[2 * rank : 2 * rank + 2] for ids in micro] for micro in steps]


def one_of_two(rank: int, folder: str, group: str, checkpointing: bool) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(WORLD)}
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=WORLD)
    mesh = init_device_mesh("cpu", (WORLD,))
    results = {}
    for case in GROUPS[group]:
        model = build(CASES[case][0])
        for block in Anatomy(model).layers:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        results[case] = learn(model, case, data(rank), checkpointing)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("group", "checkpointing"),
    [
        pytest.param("fast", False, id="fast"),
        pytest.param("fast", True, id="fast, checkpointed", marks=pytest.mark.slow),
        pytest.param("slow", False, id="slow", marks=pytest.mark.slow),
        pytest.param("slow", True, id="slow, checkpointed", marks=pytest.mark.slow),
    ],
)
def test_learns_as_one_process_does(group: str, checkpointing: bool, tmp_path: Path) -> None:
    """Losses, gradients and weights: those of one process that reads what both of them read."""
    arguments = (str(tmp_path), group, checkpointing)
    start_processes(one_of_two, arguments, nprocs=WORLD, start_method="fork")
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(WORLD)]
    for case in GROUPS[group]:
        compare(case, checkpointing, [rank[case] for rank in ranks])


def compare(case: str, checkpointing: bool, ranks: list[dict[str, Any]]) -> None:
    model: nn.Module = build(CASES[case][0])
    # The choice is made on the first micro-batch of all ranks together.
    expected = learn(model, case, data(None), checkpointing)
    losses = torch.stack([torch.stack(rank["losses"]) for rank in ranks]).mean(0)
    torch.testing.assert_close(losses, torch.stack(expected["losses"]), atol=1e-5, rtol=1e-5)
    for rank in ranks:
        for kind in ("gradients", "weights"):
            assert rank[kind].keys() == expected[kind].keys()
            for name, value in expected[kind].items():
                torch.testing.assert_close(
                    rank[kind][name],
                    value,
                    atol=1e-5,
                    rtol=1e-4,
                    msg=lambda m, n=name: f"{case}, {n}: {m}",
                )

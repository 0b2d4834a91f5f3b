"""What a training on sub-networks spent: FLOPs planned and counted, and seconds, against dense."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import torch
from transformers import PretrainedConfig

from subnetworks.anatomy import dimensions_of
from subnetworks.flops import FlopCount, StepFlops, planned_flops
from subnetworks.spec import SubnetworkSpec

SECONDS_KEPT = 1000
"""Step times kept for each kind of step, the newest: a median needs no more."""


@dataclass
class _Kind:
    """Steps whose sub-networks have equal counts, and so equal cost."""

    planned: StepFlops
    counted: StepFlops | None = None
    steps: int = 0
    seconds: list[float] = field(default_factory=list)


class StepMeter:
    """Adds up what the steps of a training cost.

    The FLOPs of the first step of every kind (equal counts of layers, heads and neurons) are
    counted while it runs, and its time is left out because counting slows it down. The baseline of
    the clock is the full-model steps of the same training.

    Args:
        config: Config of the model.
        n_parameters: Parameters that the optimizer updates.
        micro_batches: Micro-batches in an optimizer step.
    """

    def __init__(self, config: PretrainedConfig, n_parameters: int, micro_batches: int) -> None:
        self._config = config
        self._n_parameters = n_parameters
        self._micro_batches = micro_batches
        self._full = SubnetworkSpec.full(dimensions_of(config))
        self._kinds: dict[str, _Kind] = {}
        self._dense_planned = StepFlops()
        self._running: tuple[ExitStack, FlopCount, _Kind] | None = None

    def begin(self, spec: SubnetworkSpec, batch_size: int, context_length: int) -> bool:
        """Before the first micro-batch of a step; returns whether its FLOPs are being counted."""
        if not self._dense_planned.total:
            self._dense_planned = self.plan(self._full, batch_size, context_length)
        kind = self._kinds.get(spec.signature)
        if kind is None:
            kind = _Kind(self.plan(spec, batch_size, context_length))
            self._kinds[spec.signature] = kind
        if kind.counted is not None:
            return False
        stack = ExitStack()
        # The counter sees operations as they are dispatched: a compiled block would hide its own.
        stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
        stack.enter_context(stance)
        self._running = (stack, stack.enter_context(FlopCount(self._config)), kind)
        return True

    def end_backward(self) -> None:
        """After the first micro-batch's backward pass; harmless if nothing is being counted."""
        if self._running is None:
            return
        stack, count, kind = self._running
        self._running = None
        flops = count.flops
        stack.close()
        kind.counted = (flops * self._micro_batches).with_optimizer(self._n_parameters)

    def abandon(self) -> None:
        """Stop counting without a result: the step failed."""
        if self._running is not None:
            self._running[0].close()
            self._running = None

    def end_step(self, spec: SubnetworkSpec, seconds: float | None) -> None:
        """After the optimizer step; `seconds` is `None` where the step's time tells nothing."""
        kind = self._kinds[spec.signature]
        kind.steps += 1
        if seconds is not None:
            kind.seconds = [*kind.seconds[1 - SECONDS_KEPT :], seconds]

    def plan(self, spec: SubnetworkSpec, batch_size: int, context_length: int) -> StepFlops:
        """FLOPs of an optimizer step on a sub-network, in closed form."""
        flops = planned_flops(self._config, spec, batch_size, context_length)
        return (flops * self._micro_batches).with_optimizer(self._n_parameters)

    @property
    def steps(self) -> int:
        """Optimizer steps taken."""
        return sum(kind.steps for kind in self._kinds.values())

    @property
    def planned(self) -> tuple[StepFlops, StepFlops]:
        """FLOPs of the steps taken, in closed form: spent, and dense."""
        return self._sum({key: kind.planned for key, kind in self._kinds.items()}), (
            self._dense_planned * self.steps
        )

    @property
    def counted(self) -> tuple[StepFlops, StepFlops]:
        """FLOPs of the steps taken, as counted: spent, and dense.

        Where no full-model step has run, the dense side is in closed form.
        """
        counted = {key: kind.counted or kind.planned for key, kind in self._kinds.items()}
        dense = counted.get(self._full.signature, self._dense_planned)
        return self._sum(counted), dense * self.steps

    @property
    def seconds(self) -> tuple[float, float | None]:
        """Time of the steps taken, each at its kind's median: spent, and at the dense median."""
        medians = {key: median(kind.seconds) for key, kind in self._kinds.items() if kind.seconds}
        dense = medians.get(self._full.signature)
        spent = sum(kind.steps * medians.get(key, 0.0) for key, kind in self._kinds.items())
        timed = sum(kind.steps for key, kind in self._kinds.items() if key in medians)
        return spent, None if dense is None else dense * timed

    def _sum(self, per_kind: Mapping[str, StepFlops]) -> StepFlops:
        return sum((per_kind[key] * kind.steps for key, kind in self._kinds.items()), StepFlops())

    def state_dict(self) -> dict[str, Any]:
        """Plain containers from which a resumed training goes on adding."""
        return {
            "dense_planned": asdict(self._dense_planned),
            "kinds": {key: asdict(kind) for key, kind in self._kinds.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        self._dense_planned = StepFlops(**state["dense_planned"])
        self._kinds = {
            key: _Kind(
                StepFlops(**kind["planned"]),
                None if kind["counted"] is None else StepFlops(**kind["counted"]),
                kind["steps"],
                list(kind["seconds"]),
            )
            for key, kind in state["kinds"].items()
        }

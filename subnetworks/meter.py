"""What a training on sub-networks spent: FLOPs planned and counted, and seconds, against dense."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any, Self

from transformers import PretrainedConfig

from subnetworks.anatomy import dimensions_of
from subnetworks.flops import FlopCount, StepFlops, planned_flops
from subnetworks.spec import SubnetworkSpec

SECONDS_KEPT = 1000
"""Step times kept for each kind of step, the newest: a median needs no more."""


@dataclass
class _Kind:
    """Steps whose sub-networks have equal counts, and which do the same beside.

    FLOPs are without the optimizer's, `seconds` are per token of a step. `executed` is counted over
    planned FLOPs, of the blocks and of everything, in the one micro-batch that was counted.
    """

    steps: int = 0
    tokens: int = 0
    planned: StepFlops = field(default_factory=StepFlops)
    dense: StepFlops = field(default_factory=StepFlops)
    executed: tuple[float, float] | None = None
    seconds: list[float] = field(default_factory=list)


@dataclass
class Spent:
    """What the steps of a training cost, beside what dense steps would have cost.

    Args:
        n_parameters: Parameters that the optimizer updates.
        full: Signature of the full model's spec; its steps are the baseline of the clock.
    """

    n_parameters: int
    full: str
    extra: StepFlops = field(default_factory=StepFlops)
    kinds: dict[str, _Kind] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Optimizer steps taken."""
        return sum(kind.steps for kind in self.kinds.values())

    @property
    def planned(self) -> tuple[StepFlops, StepFlops]:
        """FLOPs of the steps taken, in closed form: spent, and dense."""
        kinds = self.kinds.values()
        return self._sum(kind.planned for kind in kinds), self._sum(kind.dense for kind in kinds)

    @property
    def counted(self) -> tuple[StepFlops, StepFlops]:
        """FLOPs of the steps taken, as counted: spent, and dense.

        Where no full-model step has run, the dense side is its plan, times what the largest
        sub-network was counted over its own: activations are recomputed, adapters run, in both.
        """

        def scaled(flops: StepFlops, by: tuple[float, float] | None) -> StepFlops:
            blocks, total = by or (1.0, 1.0)
            return StepFlops(flops.blocks * blocks, flops.total * total)

        kinds = self.kinds.values()
        full = self.kinds.get(self.full) or max(
            kinds, key=lambda kind: kind.planned.blocks / kind.dense.blocks, default=_Kind()
        )
        spent = self._sum(scaled(kind.planned, kind.executed) for kind in kinds)
        dense = self._sum(scaled(kind.dense, full.executed) for kind in kinds)
        return spent + self.extra, dense

    @property
    def seconds(self) -> tuple[float, float | None]:
        """Time of the steps taken, each token at its kind's median: spent, and at the dense one."""
        medians = {key: median(kind.seconds) for key, kind in self.kinds.items() if kind.seconds}
        dense = medians.get(self.full)
        spent = sum(kind.tokens * medians.get(key, 0.0) for key, kind in self.kinds.items())
        timed = sum(kind.tokens for key, kind in self.kinds.items() if key in medians)
        return spent, None if dense is None else dense * timed

    def _sum(self, flops: Iterable[StepFlops]) -> StepFlops:
        return sum(flops, StepFlops()).with_optimizer(self.n_parameters * self.steps)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Rebuild what `asdict` took apart, for a checkpoint."""
        sides = ("planned", "dense")
        kinds = {
            key: _Kind(**{**kind, **{side: StepFlops(**kind[side]) for side in sides}})
            for key, kind in content["kinds"].items()
        }
        return cls(**{**content, "extra": StepFlops(**content["extra"]), "kinds": kinds})


class StepMeter:
    """Adds up what the steps of a training cost, while they run.

    The FLOPs of the first micro-batch of every kind of sub-network (equal counts of layers, heads
    and neurons) are counted while it runs; its step's time is left out because counting slows it
    down. Micro-batches may differ in shape.

    Args:
        config: Config of the model.
        n_parameters: Parameters that the optimizer updates.
        frozen_weights: Whether the model's own weights are not among them (LoRA).
        spent: What earlier steps of the training cost; `None` if there were none.
    """

    def __init__(
        self,
        config: PretrainedConfig,
        n_parameters: int,
        frozen_weights: bool = False,
        spent: Spent | None = None,
    ) -> None:
        self._config = config
        self._flops = partial(planned_flops, config, frozen_weights=frozen_weights)
        self._full = SubnetworkSpec.full(dimensions_of(config))
        self.spent = Spent(n_parameters, self._full.signature) if spent is None else spent
        self._running: tuple[FlopCount, _Kind, StepFlops] | None = None
        self._step_tokens = 0

    def begin(
        self,
        spec: SubnetworkSpec,
        batch_size: int,
        context_length: int,
        trained_tokens: int | None = None,
        beside: str = "",
    ) -> bool:
        """Before each micro-batch; returns whether its FLOPs are being counted.

        Args:
            spec: The sub-network that will run.
            batch_size: Sequences.
            context_length: Tokens of each.
            trained_tokens: Of all these, those that predict something; see `planned_flops`.
            beside: What its step does beside its passes: it takes time, and is not in every step.
        """
        self._kind = kind = self.spent.kinds.setdefault(spec.signature + beside, _Kind())
        shape = batch_size, context_length
        planned = self._flops(spec, *shape, trained_tokens=trained_tokens)
        kind.planned += planned
        kind.dense += self._flops(self._full, *shape)
        kind.tokens += batch_size * context_length
        self._step_tokens += batch_size * context_length
        if kind.executed is not None:
            return False
        self._running = (FlopCount(self._config).__enter__(), kind, planned)
        return True

    def end_backward(self) -> None:
        """After a micro-batch's backward pass; harmless if nothing is being counted."""
        if self._running is None:
            return
        count, kind, planned = self._running
        self._running = None
        count.__exit__(None, None, None)
        flops = count.flops
        kind.executed = (flops.blocks / planned.blocks, flops.total / planned.total)

    def add(self, flops: StepFlops) -> None:
        """FLOPs that a method spends beside its steps, as counted."""
        self.spent.extra += flops

    def abandon(self) -> None:
        """Stop counting without a result: the step failed."""
        if self._running is not None:
            self._running[0].__exit__(None, None, None)
            self._running = None

    def end_step(self, seconds: float | None) -> None:
        """After the optimizer step; `seconds` is `None` where the step's time tells nothing."""
        kind = self._kind
        kind.steps += 1
        if seconds is not None:
            kind.seconds = [*kind.seconds[1 - SECONDS_KEPT :], seconds / self._step_tokens]
        self._step_tokens = 0

    def plan(self, spec: SubnetworkSpec, batch_size: int, context_length: int) -> StepFlops:
        """FLOPs of an optimizer step on a sub-network, in closed form."""
        flops = self._flops(spec, batch_size, context_length)
        return flops.with_optimizer(self.spent.n_parameters)

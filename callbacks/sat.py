"""Sparsity-Accelerated Training: leave inactive heads and neurons out of further training."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, cast

import pytorch_lightning as pl
import torch
from annotated_types import Ge, Interval
from torch import Tensor

from callbacks.subnetwork import SubnetworkTraining
from subnetworks.anatomy import Anatomy, dimensions_of
from subnetworks.chooser import UnitChooser
from subnetworks.families import Unit
from subnetworks.flops import FlopCount
from subnetworks.importance import SCORES
from subnetworks.ladder import (
    Ladder,
    Omission,
    OmissionStage,
    Selection,
    Share,
    check,
    stages_of,
)
from subnetworks.schedule import GroupedQueries, Rates, Schedule
from subnetworks.spec import SubnetworkSpec, planned_subnetwork

SIZES = (
    "grouped_queries",
    "layer_factors",
    "multiple_of",
    "rescale_units",
    "frozen",
    "forward_only",
    "context_forward_only",
)
"""Settings that, with the ladder, say how many units of each layer run."""


class SparsityAcceleratedTraining(SubnetworkTraining):
    """Each optimizer step trains the most important heads and neurons; fewer are left out later.

    Paper: SAT, "Sparsity-Accelerated Training for Large Language Models", arXiv 2406.01392. What
    the paper says and what is our decision stands in docs/methods/sat.md.

    The units are chosen once for each optimizer step: before it, or, by an importance that reads
    the input, when its first micro-batch reaches a branch, from what that branch reads.
    `SubnetworkTraining` says how the sub-network runs.

    Args:
        omission: Share of the `heads` and of the `neurons` of each layer that is left out at the
            ladder's sparsest, each in [0, 1).
        ladder: Arguments of `subnetworks.ladder.ladder`; or a list of stages, each with `until`
            (fraction of all steps, the last one 1) and omission rates `heads` and `neurons`.
        importance: A name in `subnetworks.importance.SCORES`.
        selection: `top_k`, or `sample` in proportion to the scores.
        grouped_queries: `groups` chooses whole key/value groups, `within_groups` query heads of
            each.
        refresh_every: Steps between two computations of the scores, at least 1.
        probe_sequences: Sequences of the step's first micro-batch, over all ranks, on which
            an importance that probes runs the full model.
        layer_factors: {layer: factor in [0, 1] on its omission rates}; 0 exempts a layer, negative
            layers count from the end.
        multiple_of: Round counts of neurons to multiples of this (64 suits tensor cores).
        rescale_units: Multiply each branch by the inverse of its share that runs forward.
        frozen: Share of the units left out, in [0, 1], that run in both passes all the same, the
            most important ones of them: they contribute and pass gradients on, untrained.
        forward_only: Share of them, the next ones, that run in the forward pass all the same; at
            most 1 - `frozen`.
        context_forward_only: Tokens that predict nothing (prompts, padding) run in the forward pass
            only, on every rung of the ladder.
        freeze_unsampled: Keep inactive rows and their moments untouched by the optimizer.
        seed: Seed of the draws, below 2**32; the same on every rank.

    Raises:
        ValueError: A setting cannot run, or the precision is `16-mixed`.
    """

    method: ClassVar[str] = "sat"
    check: ClassVar[str] = "subnetworks.ladder:check"
    read_where: ClassVar[dict[str, tuple[str, Any]]] = {
        "omission": ("ladder.rungs", True),  # a list of stages has rates of its own
        "probe_sequences": ("importance", "subnetworks.importance:PROBING"),
        "selection": ("importance", "subnetworks.importance:SCORING"),
        "refresh_every": ("importance", "subnetworks.importance:SCORING"),
    }

    def __init__(
        self,
        omission: Omission | None = None,
        ladder: Ladder | Sequence[OmissionStage] | None = None,
        importance: str = "wanda",
        selection: Selection = "top_k",
        grouped_queries: GroupedQueries = "groups",
        refresh_every: Annotated[int, Ge(1)] = 1,
        probe_sequences: Annotated[int, Ge(1)] = 1,
        layer_factors: Mapping[int, Share] | None = None,
        multiple_of: Annotated[int, Ge(1)] = 1,
        rescale_units: bool = False,
        frozen: Share = 0.0,
        forward_only: Share = 0.0,
        context_forward_only: bool = False,
        freeze_unsampled: bool = False,
        seed: Annotated[int, Interval(ge=0, lt=2**32)] = 0,
    ) -> None:
        settings: dict[str, Any] = {
            "omission": dict(omission or {}),
            "ladder": [dict(s) for s in ladder] if isinstance(ladder, list) else ladder,
            "importance": importance,
            "selection": selection,
            "grouped_queries": grouped_queries,
            "refresh_every": refresh_every,
            "probe_sequences": probe_sequences,
            "layer_factors": dict(layer_factors or {}),
            "multiple_of": multiple_of,
            "rescale_units": rescale_units,
            "frozen": frozen,
            "forward_only": forward_only,
            "context_forward_only": context_forward_only,
        }
        check(settings, None)
        super().__init__(settings, Schedule(stages_of(omission, ladder)), freeze_unsampled, seed)
        self._planned: dict[tuple[Any, Rates], SubnetworkSpec] = {}
        self._chooser_state: dict[str, Any] = {}
        self._trained: dict[tuple[int, Unit], Tensor] = {}
        self._previous: Mapping[tuple[int, Unit], Tensor] | None = None
        """Active units of the step before, None before the first."""
        self._gathered = False

    def draw(self, config: Any, step: int, max_steps: int) -> SubnetworkSpec:
        """A sub-network of the step's counts; its units stand for those that will be chosen."""
        dimensions, rates = dimensions_of(config), self.schedule.rates_at(step, max_steps)
        if (dimensions, rates) not in self._planned:
            self._planned[dimensions, rates] = planned_subnetwork(
                dimensions, rates, **{key: self.settings[key] for key in SIZES}
            )
        return self._planned[dimensions, rates]

    def refuse(self, pl_module: pl.LightningModule) -> None:
        """Raise `ValueError` for what this model cannot run."""
        super().refuse(pl_module)
        check(self.settings, vars(dimensions_of(cast(Any, pl_module).hf_config)))
        importance = self.settings["importance"]
        compiled = getattr(pl_module, "compiled", False)
        if compiled and self.settings["context_forward_only"]:
            raise ValueError(
                "context_forward_only runs tokens apart from each other, which module.compile does "
                "not see; set one of the two to false"
            )
        in_parts = ("frozen", "forward_only")
        if compiled is True and any(self.settings[key] for key in in_parts):
            raise ValueError(
                f"{', '.join(in_parts)} run a branch in parts, which module.compile=true does not "
                "see; set module.compile=branches or false, or both of them to 0"
            )
        if compiled is True and SCORES[importance].reads_input:
            raise ValueError(
                f"importance={importance} chooses inside the forward pass, which "
                "module.compile=true would freeze; set module.compile=branches or false, or take "
                + ", ".join(name for name, score in SCORES.items() if not score.reads_input)
            )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the model's parts, and make the chooser."""
        super().on_fit_start(trainer, pl_module)
        self.chooser = self.chooser_of(self._sliced.anatomy)

    def chooser_of(self, anatomy: Anatomy) -> UnitChooser:
        """What chooses the units of a model."""
        keys = ("importance", "selection", "grouped_queries", "refresh_every")
        return UnitChooser(anatomy, seed=self.seed, **{key: self.settings[key] for key in keys})

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on with the scores of a checkpoint."""
        super().on_train_start(trainer, pl_module)
        self._gathered = False
        self.chooser.load_state_dict(self._chooser_state)

    def gather(self, spec: SubnetworkSpec, batch: Mapping[str, Tensor]) -> None:
        """Choose the step's units, or let the branches choose them, and gather their weights."""
        self._previous = self._sliced.units if self._gathered else None
        self._gathered = True
        self.chooser.begin_step(self._step, batch.get("attention_mask"))
        self._beside = "; scores" if not spec.is_full and self.chooser.needs_scores else ""
        if not spec.is_full and self.chooser.needs_probe:
            # The first ones of what one process would read: the ranks' parts follow each other.
            own = self.settings["probe_sequences"] - self._rank * len(batch["input_ids"])
            count = max(1, own)
            inputs = {k: v[:count] for k, v in batch.items() if k != "labels"}
            inputs["labels"] = batch.get("labels", batch["input_ids"])[:count]
            with FlopCount(self._sliced.anatomy.model.config) as flops:
                self.chooser.probe(self._sliced.anatomy.model, inputs, counts=own > 0)
            self._meter.add(flops.flops)
        self._sliced.gather(spec, self.chooser)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Remember what was trained, and write the gradients into the model's parameters."""
        units = self._sliced.units
        for key, indices in units.items():
            if key not in self._trained:
                total = self._sliced.anatomy.dimensions.total(key[1])
                # Steps before were dense here.
                self._trained[key] = torch.full((total,), self._step > 0, device=indices.device)
        for key, seen in self._trained.items():
            seen |= self._active(units, key)
        super().on_before_optimizer_step(trainer, pl_module, optimizer)

    def further_metrics(self) -> dict[str, float]:
        """Omission, what was chosen again, what was trained so far, and what choosing cost."""
        assert self._spec is not None
        d = self._spec.dimensions
        metrics: dict[str, float] = {}
        active = self._sliced.units
        units: tuple[Unit, ...] = ("heads", "neurons")
        for unit in units:
            total = d.n_layers * d.total(unit)
            metrics[f"omission_{unit}"] = 1 - self._spec.count(unit) / total
            # A layer's kind that was never cut has been trained as a whole.
            cut = [key for key in self._trained if key[1] == unit]
            if not cut:
                continue
            now = torch.stack([self._active(active, key) for key in cut])
            if self._previous is not None:
                before = torch.stack([self._active(self._previous, key) for key in cut])
                metrics[f"overlap_{unit}"] = float((now & before).sum() / now.sum())
            seen = torch.stack([self._trained[key] for key in cut])
            metrics[f"coverage_{unit}"] = float(seen.float().mean())
        spent = self._meter.spent.seconds[0]
        if spent:
            metrics["choosing_share"] = self.chooser.seconds / spent
        return metrics

    def _active(self, units: Mapping[tuple[int, Unit], Tensor], key: tuple[int, Unit]) -> Tensor:
        """Which units of a layer's kind were active, (units,); all, where it was not cut."""
        seen = self._trained[key]
        if key not in units:
            return torch.ones_like(seen)
        return torch.zeros_like(seen).index_fill_(0, units[key].to(seen.device), True)

    def state_dict(self) -> dict[str, Any]:
        """The base's, scores that later steps still use, and which units were trained."""
        scores = self.chooser.state_dict() if hasattr(self, "chooser") else self._chooser_state
        trained = {f"{layer}.{unit}": seen for (layer, unit), seen in self._trained.items()}
        return {**super().state_dict(), "scores": scores, "trained": trained}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        super().load_state_dict(state_dict)
        self._chooser_state = dict(state_dict["scores"])
        for key, seen in state_dict["trained"].items():
            layer, _, unit = key.partition(".")
            self._trained[int(layer), cast(Unit, unit)] = seen

"""Evolving Subnetwork Training: pre-train sub-networks that grow into the full model."""

from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, ClassVar, cast

import pytorch_lightning as pl
import torch
from annotated_types import Interval

from callbacks.subnetwork import SubnetworkTraining
from subnetworks.anatomy import dimensions_of
from subnetworks.schedule import (
    EnteringLayers,
    GroupedQueries,
    Hold,
    LayerRescale,
    Schedule,
    UnitOrder,
    check,
)
from subnetworks.spec import SubnetworkSpec, sample_subnetwork


class EvolvingSubnetworkTraining(SubnetworkTraining):
    """Each optimizer step trains one sub-network; its size grows in stages.

    Paper: EST, "Evolving Subnetwork Training for Large Language Models", arXiv 2406.06962. What the
    paper says and what is our decision stands in docs/methods/est.md.

    Before the first micro-batch of an optimizer step a sub-network is drawn from (seed, global
    step), or the one that was drawn before is held; `SubnetworkTraining` says how it runs.

    Args:
        rates: Share of `layers`, `heads` and `neurons` that a stage draws where it samples them,
            each in (0, 1]; `None` for a kind that no stage samples.
        stages: The stages, see `subnetworks.schedule.Schedule`.
        hold: Optimizer steps that a draw is held, at least 1, or `stage`: to the end of its stage.
            A stage begins with a new draw; held steps have the rates of the step of the draw.
        units: `random` draws uniformly. `nested` takes the first heads and neurons, and layers
            spread over the depth: the same at every draw, and part of every later stage's.
        entering_layers: What a layer trains from when a stage takes it in for the first time:
            `initial`, its initial weights, or `copied`, those that the nearest layer of the stages
            before has by then (as stacking does, arXiv 2405.15319). `copied` needs `hold=stage` and
            `units=nested`.
        grouped_queries: `groups` draws whole key/value groups, `within_groups` query heads of each.
        shared_indices: Draw one index set for all layers instead of one a layer.
        rescale_units: Multiply each branch by the inverse of its rate.
        layer_rescale: `inverse` multiplies a drawn layer's branches by the inverse of its
            probability; `none` leaves them.
        exempt_layers: Layers that are never skipped; negative ones count from the end.
        freeze_unsampled: Keep inactive rows and their moments untouched by the optimizer.
        seed: Seed of the draws, below 2**32; the same on every rank.

    Raises:
        ValueError: A setting cannot run, or the precision is `16-mixed`.
    """

    method: ClassVar[str] = "est"
    check: ClassVar[str] = "subnetworks.schedule:check"
    read_where: ClassVar[dict[str, tuple[str, Any]]] = {
        "shared_indices": ("units", ("random",)),
        "seed": ("units", ("random",)),
    }

    def __init__(
        self,
        rates: Mapping[str, float | None],
        stages: Sequence[Mapping[str, Any]],
        hold: Hold = 1,
        units: UnitOrder = "random",
        entering_layers: EnteringLayers = "initial",
        grouped_queries: GroupedQueries = "groups",
        shared_indices: bool = False,
        rescale_units: bool = True,
        layer_rescale: LayerRescale = "none",
        exempt_layers: Sequence[int] = (),
        freeze_unsampled: bool = False,
        seed: Annotated[int, Interval(ge=0, lt=2**32)] = 0,
    ) -> None:
        settings: dict[str, Any] = {
            "rates": dict(rates),
            "stages": [dict(stage) for stage in stages],
            "hold": hold,
            "units": units,
            "entering_layers": entering_layers,
            "grouped_queries": grouped_queries,
            "shared_indices": shared_indices,
            "rescale_units": rescale_units,
            "layer_rescale": layer_rescale,
            "exempt_layers": list(exempt_layers),
        }
        check(settings, None)
        super().__init__(settings, Schedule(settings["stages"], rates), freeze_unsampled, seed)
        apart = ("rates", "stages", "hold", "entering_layers")
        self._draw_options = {key: value for key, value in settings.items() if key not in apart}
        self._trained: set[int] | None = None
        """Layers that were trained by now; None where a checkpoint does not say it."""

    def draw(self, config: Any, step: int, max_steps: int) -> SubnetworkSpec:
        """The sub-network of a step: a pure function of the settings, the seed and the step."""
        step = self.schedule.drawn_at(step, max_steps, self.settings["hold"])
        generator = torch.Generator().manual_seed((self.seed << 32) + step)
        rates = self.schedule.rates_at(step, max_steps)
        return sample_subnetwork(dimensions_of(config), rates, generator, **self._draw_options)

    def gather(self, spec: SubnetworkSpec, batch: Mapping[str, torch.Tensor]) -> None:
        """Gather the step's weights, after layers that enter have got theirs."""
        active = spec.active_layers
        if self._trained is None:
            config = self._sliced.anatomy.model.config
            self._trained = self.trained_before(config, self._step, self._max_steps)
        if self.settings["entering_layers"] == "copied":
            self._sliced.copy_layers(sources(active, self._trained))
        self._trained |= set(active)
        super().gather(spec, batch)

    def trained_before(self, config: Any, step: int, max_steps: int) -> set[int]:
        """The layers of the stages before a step, where no checkpoint says which were trained."""
        firsts = (0, *self.schedule.ends(max_steps)[:-1])
        return {
            layer
            for first in firsts
            if first < step
            for layer in self.draw(config, first, max_steps).active_layers
        }

    def state_dict(self) -> dict[str, Any]:
        """The base's, and which layers were trained."""
        trained = None if self._trained is None else sorted(self._trained)
        return {**super().state_dict(), "trained": trained}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        super().load_state_dict(state_dict)
        trained = state_dict.get("trained")  # older files have none
        self._trained = None if trained is None else set(trained)

    def refuse(self, pl_module: pl.LightningModule) -> None:
        """Raise `ValueError` for rates that leave this model less than one unit, among others."""
        super().refuse(pl_module)
        check(self.settings, vars(dimensions_of(cast(Any, pl_module).hf_config)))


def sources(active: Collection[int], trained: Collection[int]) -> dict[int, int]:
    """The layers that enter a training, each with the nearest one that was trained by then.

    Args:
        active: The layers of the next step.
        trained: Those of all steps before; of none no layer enters.

    Returns:
        {entering layer: layer it is copied from}.
    """
    if not trained:
        return {}
    entering = set(active) - set(trained)
    return {layer: min(trained, key=lambda t: (abs(t - layer), t)) for layer in entering}

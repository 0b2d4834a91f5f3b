"""Evolving Subnetwork Training: pre-train sub-networks that grow into the full model."""

from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any, ClassVar, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from rich.table import Table

from ledger import Ledger, Saving
from subnetworks.anatomy import dimensions_of
from subnetworks.meter import StepMeter
from subnetworks.schedule import GroupedQueries, LayerRescale, Schedule, check
from subnetworks.slicing import FreezeUnsampled, SlicedModel
from subnetworks.spec import SubnetworkSpec, sample_subnetwork


class EvolvingSubnetworkTraining(Callback):
    """Each optimizer step trains one random sub-network; its size grows in stages.

    Paper: EST, "Evolving Subnetwork Training for Large Language Models", arXiv 2406.06962. What the
    paper says and what is our decision stands in docs/methods/est.md.

    Before the first micro-batch of an optimizer step a sub-network is drawn from
    (seed, global step) and its weights are gathered; it runs in every micro-batch's forward and
    backward pass; before the optimizer step the gradients are written into the model's own
    parameters. Validation, tests and checkpoints see the full model only.

    Args:
        rates: Share of `layers`, `heads` and `neurons` that a stage draws where it samples them,
            each in (0, 1].
        stages: The stages, see `subnetworks.schedule.Schedule`.
        grouped_queries: `groups` draws whole key/value groups, `within_groups` query heads of each.
        shared_indices: Draw one index set for all layers instead of one a layer.
        rescale_units: Multiply each branch by the inverse of its rate.
        layer_rescale: `inverse` multiplies a drawn layer's branches by the inverse of its
            probability; `none` leaves them.
        exempt_layers: Layers that are never skipped; negative ones count from the end.
        freeze_unsampled: Keep inactive rows and their moments untouched by the optimizer.
        seed: Seed of the draws, below 2**31; the same on every rank.

    Raises:
        ValueError: A setting cannot run, or the precision is `16-mixed`.
    """

    leaves_parameters_unused: ClassVar[bool] = True
    changes_shapes: ClassVar[bool] = False
    check: ClassVar[str] = "subnetworks.schedule:check"

    def __init__(
        self,
        rates: Mapping[str, float],
        stages: Sequence[Mapping[str, Any]],
        grouped_queries: GroupedQueries = "groups",
        shared_indices: bool = False,
        rescale_units: bool = True,
        layer_rescale: LayerRescale = "none",
        exempt_layers: Sequence[int] = (),
        freeze_unsampled: bool = False,
        seed: int = 0,
    ) -> None:
        self.settings: dict[str, Any] = {
            "rates": dict(rates),
            "stages": [dict(stage) for stage in stages],
            "grouped_queries": grouped_queries,
            "shared_indices": shared_indices,
            "rescale_units": rescale_units,
            "layer_rescale": layer_rescale,
            "exempt_layers": list(exempt_layers),
        }
        check(self.settings, None)
        self.schedule = Schedule(self.settings["stages"], rates)
        self._draw_options: dict[str, Any] = {
            key: value for key, value in self.settings.items() if key not in ("rates", "stages")
        }
        self.freeze_unsampled = freeze_unsampled
        self.seed = seed
        self.stage = ""
        """The current stage in words, for the progress bar."""
        self._step = -1
        self._spec: SubnetworkSpec | None = None
        self._started: float | None = None
        self._meter_state: dict[str, Any] | None = None

    def draw(self, config: Any, step: int, max_steps: int) -> SubnetworkSpec:
        """The sub-network of a step: a pure function of the settings, the seed and the step."""
        generator = torch.Generator().manual_seed((self.seed << 32) + step)
        rates = self.schedule.rates_at(step, max_steps)
        return sample_subnetwork(dimensions_of(config), rates, generator, **self._draw_options)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse what cannot work, before the model is built."""
        dimensions = dimensions_of(cast(Any, pl_module).hf_config)
        check(self.settings, vars(dimensions))
        if trainer.precision == "16-mixed":
            raise ValueError(
                "trainer.precision=16-mixed: its loss scaling does not reach the gradients of a "
                "sub-network; use bf16-mixed or 32-true"
            )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the model's parts; nothing is drawn yet."""
        module = cast(Any, pl_module)
        self._sliced = SlicedModel(module.model)
        self._frozen: list[FreezeUnsampled] = []
        self._max_steps = int(trainer.estimated_stepping_batches)
        self._meter = StepMeter(
            module.hf_config,
            sum(p.numel() for p in module.model.parameters() if p.requires_grad),
            trainer.accumulate_grad_batches,
        )
        if self._meter_state is not None:
            self._meter.load_state_dict(self._meter_state)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Have the optimizer spare inactive rows, if it should."""
        self._step = -1
        if self.freeze_unsampled:
            self._frozen = [FreezeUnsampled(self._sliced, o) for o in trainer.optimizers]

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Draw once per optimizer step; run each micro-batch on the sub-network."""
        step = trainer.global_step
        if step != self._step:
            self._step = step
            self._spec = self.draw(cast(Any, pl_module).hf_config, step, self._max_steps)
            index = self.schedule.stage_at(step, self._max_steps)
            self.stage = f"{index + 1}/{len(self.schedule.stages)}"
            self._sliced.gather(self._spec)
            if self._meter.begin(self._spec, *batch["input_ids"].shape):
                self._started = None
        self._sliced.attach()

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give the model back after each micro-batch."""
        self._sliced.detach()
        self._meter.end_backward()

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Write the gradients into the model's parameters, before they are clipped."""
        for frozen in self._frozen:
            frozen.save()
        self._sliced.write_gradients(average_over_ranks=trainer.world_size > 1)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Account for the step, and log it."""
        self._sliced.detach()
        if trainer.global_step == self._step:
            return
        assert self._spec is not None
        now = perf_counter()
        self._meter.end_step(self._spec, None if self._started is None else now - self._started)
        self._started = now
        if trainer.global_step % cast(Any, trainer).log_every_n_steps == 0:
            pl_module.log_dict(self._log(self._spec))

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the time of a validation out of the step's."""
        self._started = None

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Leave the model whole."""
        if hasattr(self, "_sliced"):
            self._sliced.detach()
            self._meter.abandon()

    def _log(self, spec: SubnetworkSpec) -> dict[str, float]:
        (planned, dense_planned), (counted, dense) = self._meter.planned, self._meter.counted
        d = spec.dimensions
        step_blocks = self._meter.plan(spec, 1, 1).blocks
        full_blocks = self._meter.plan(SubnetworkSpec.full(d), 1, 1).blocks
        return {
            "est/stage": float(self.schedule.stage_at(self._step, self._max_steps) + 1),
            "est/active_layers": float(spec.count("layers")),
            "est/active_heads": float(spec.count("heads")),
            "est/active_neurons": float(spec.count("neurons")),
            "est/active_fraction": step_blocks / full_blocks,
            "est/planned_flops_saved_blocks": 1 - planned.blocks / dense_planned.blocks,
            "est/counted_flops_saved_blocks": 1 - counted.blocks / dense.blocks,
            "est/counted_flops_saved_all": 1 - counted.total / dense.total,
        }

    def curves(self) -> tuple[str, ...]:
        """Logged metrics to draw below the loss."""
        return ("est/active_fraction", "est/counted_flops_saved_blocks")

    def ledger(self) -> Ledger | None:
        """What the steps taken so far saved against dense steps; `None` before the first."""
        if not hasattr(self, "_meter") or not self._meter.steps:
            return None
        (planned, dense_planned), (counted, dense) = self._meter.planned, self._meter.counted
        seconds, dense_seconds = self._meter.seconds
        return Ledger(
            method="EST",
            baseline=f"dense training for the same {self._meter.steps:,} steps",
            savings=(
                Saving("FLOPs planned, blocks", "FLOPs", planned.blocks, dense_planned.blocks),
                Saving("FLOPs planned, all", "FLOPs", planned.total, dense_planned.total),
                Saving("FLOPs counted, blocks", "FLOPs", counted.blocks, dense.blocks),
                Saving("FLOPs counted, all", "FLOPs", counted.total, dense.total),
                Saving("time of the steps", "s", seconds, dense_seconds),
            ),
            notes=(
                "all: with LM head and optimizer. time: medians of this run's steps, the baseline "
                "from its full-model steps.",
            ),
        )

    def plan(self, module: Any, batch_shape: tuple[int, int], max_steps: int) -> Table:
        """What each stage will run, for a dry run.

        Args:
            module: The LightningModule.
            batch_shape: Sequences and tokens of a sequence in an optimizer step.
            max_steps: Optimizer steps of the training.

        Returns:
            A table with a row for each stage.
        """
        config = module.hf_config
        full = SubnetworkSpec.full(dimensions_of(config))
        meter = StepMeter(config, 0, 1)
        dense = meter.plan(full, *batch_shape)
        table = Table(title="EST: planned FLOPs of an optimizer step, without the optimizer's")
        for name in ("stage", "steps", "sub-network at its first step", "blocks", "all", "saved"):
            table.add_column(name, justify="left" if name.startswith("sub") else "right")
        spent, first = 0.0, 0
        for index, end in enumerate(self.schedule.ends(max_steps)):
            if end == first:  # too short for one step
                continue
            spec = self.draw(config, first, max_steps)
            flops = meter.plan(spec, *batch_shape)
            row = (str(index + 1), f"{first:,} to {end - 1:,}", str(spec))
            saved = 1 - flops.blocks / dense.blocks
            table.add_row(*row, f"{flops.blocks:.4g}", f"{flops.total:.4g}", f"{saved:.1%}")
            stage = self.schedule.stages[index]
            # Where the rates move, 100 steps stand for the stage: a plan, not a count.
            stride = end - first if stage.start == stage.end else max(1, (end - first) // 100)
            steps = range(first, end, stride)
            drawn = [meter.plan(self.draw(config, s, max_steps), *batch_shape) for s in steps]
            spent += (end - first) * sum(flops.blocks for flops in drawn) / len(drawn)
            first = end
        share = 1 - spent / (dense.blocks * max_steps)
        table.add_section()
        table.add_row("all", f"{max_steps:,}", "", f"{spent:.4g}", "", f"{share:.1%}")
        return table

    def state_dict(self) -> dict[str, Any]:
        """The settings that the draws depend on, the last sub-network, and what was spent."""
        return {
            "settings": self.settings,
            "seed": self.seed,
            "step": self._step,
            "spec": None if self._spec is None else self._spec.to_dict(),
            "meter": self._meter.state_dict() if hasattr(self, "_meter") else None,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            ValueError: The checkpoint was drawn with other settings or another seed.
        """
        for key in ("settings", "seed"):
            if state_dict[key] != getattr(self, key):
                raise ValueError(
                    f"callbacks.est: the checkpoint's {key} differ: {state_dict[key]} there, "
                    f"{getattr(self, key)} here; resume with the same ones"
                )
        self._meter_state = state_dict["meter"]

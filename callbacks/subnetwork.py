"""What every method that trains sub-networks does in a training step, and its account of it."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from time import perf_counter
from typing import Any, ClassVar, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.strategies import ModelParallelStrategy
from rich.table import Table

from ledger import Ledger, Saving
from subnetworks import families
from subnetworks.anatomy import dimensions_of
from subnetworks.context import predicting
from subnetworks.meter import Spent, StepMeter
from subnetworks.schedule import Schedule
from subnetworks.slicing import FreezeUnsampled, SlicedModel
from subnetworks.spec import SubnetworkSpec


class SubnetworkTraining(Callback):
    """Each optimizer step trains one sub-network; its size follows a schedule.

    Before the first micro-batch of an optimizer step the sub-network's weights are gathered; it
    runs in every micro-batch's forward and backward pass; before the optimizer step the gradients
    are written into the model's own parameters. Validation, tests and checkpoints see the full
    model only.

    Args:
        settings: What the sub-networks depend on, as plain containers; a resumed training must have
            the same.
        schedule: The stages.
        freeze_unsampled: Keep inactive rows and their moments untouched by the optimizer.
        seed: Seed of the draws, below 2**32; the same on every rank.
    """

    leaves_parameters_unused: ClassVar[bool] = True
    runs_on_split_parameters: ClassVar[bool] = True
    changes_shapes: ClassVar[bool] = False
    scaled_losses: ClassVar[bool] = False
    """Whether it works under the loss scaling of fp16."""
    follows_length: ClassVar[bool] = True
    """Its course is a share of the whole training's steps."""
    reads: ClassVar[str] = "tokens"
    """What the data must serve: it works on language models."""
    fits: ClassVar[str] = "subnetworks.families:fits"
    method: ClassVar[str]
    """Short name: the prefix of the metrics, and the callback's key in the config."""

    def __init__(
        self, settings: Mapping[str, Any], schedule: Schedule, freeze_unsampled: bool, seed: int
    ) -> None:
        self.settings = dict(settings)
        self.schedule = schedule
        self.freeze_unsampled = freeze_unsampled
        self.seed = seed
        self.stage = ""
        """The current stage in words, for the progress bar."""
        self._step = -1
        self._spec: SubnetworkSpec | None = None
        self._beside = ""
        """What the step does beside its passes, in words."""
        self._started: float | None = None
        self._spent: Spent | None = None

    @abstractmethod
    def draw(self, config: Any, step: int, max_steps: int) -> SubnetworkSpec:
        """The sub-network of a step, or one of its size; a pure function of settings and step."""

    def refuse(self, pl_module: pl.LightningModule) -> None:
        """Raise `ValueError` for settings that this model cannot run; nothing is made by then."""
        families.fits(self.settings, cast(Any, pl_module).hf_config)

    def gather(self, spec: SubnetworkSpec, batch: Mapping[str, torch.Tensor]) -> None:
        """Gather the step's weights; `batch` is its first micro-batch."""
        self._sliced.gather(spec)

    def further_metrics(self) -> dict[str, float]:
        """What a method logs beside sizes and FLOPs, without prefix."""
        return {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse what cannot work, before the model is built."""
        self.refuse(pl_module)
        if stage == "fit" and trainer.precision == "16-mixed":
            raise ValueError(
                "trainer.precision=16-mixed: its loss scaling does not reach the gradients of a "
                "sub-network; use bf16-mixed or 32-true"
            )
        if self.freeze_unsampled and isinstance(trainer.strategy, ModelParallelStrategy):
            raise ValueError(
                f"trainer=fsdp with callbacks.{self.method}.freeze_unsampled=true: rows cannot be "
                "put back where they are split over the devices; take trainer=ddp, or false"
            )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the model's parts; nothing is drawn yet."""
        module = cast(Any, pl_module)
        self._rank = trainer.global_rank
        self._sliced = SlicedModel(module.backbone)
        self._frozen: list[FreezeUnsampled] = []
        self._max_steps = int(trainer.estimated_stepping_batches)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on from a checkpoint, which is read before `on_fit_start` or, with FSDP, after it."""
        self._step = -1
        module = cast(Any, pl_module)
        trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
        frozen = not next(iter(self._sliced.anatomy.weights(0, "mlp"))).value.requires_grad
        self._meter = StepMeter(module.hf_config, trained, frozen, self._spent)
        self._spent = self._meter.spent
        if self.freeze_unsampled:
            self._frozen = [FreezeUnsampled(self._sliced, o) for o in trainer.optimizers]

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Gather once per optimizer step; run each micro-batch on the sub-network."""
        step = trainer.global_step
        if step != self._step:
            self._step = step
            self._started = perf_counter() if self._started is None else self._started
            self._spec = self.draw(cast(Any, pl_module).hf_config, step, self._max_steps)
            index = self.schedule.stage_at(step, self._max_steps)
            self.stage = f"{index + 1}/{len(self.schedule.stages)}"
            self.gather(self._spec, batch)
        assert self._spec is not None
        trained, (batch_size, context_length) = None, batch["input_ids"].shape
        if self._spec.context_forward_only:
            labels = batch.get("labels", batch["input_ids"])
            trained = int(predicting(labels).sum())
        if self._meter.begin(self._spec, batch_size, context_length, trained, self._beside):
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
        self._meter.end_step(None if self._started is None else now - self._started)
        self._started = now
        if trainer.global_step % cast(Any, trainer).log_every_n_steps == 0:
            pl_module.log_dict(self._log(self._spec))

    def on_validation_start(self, *_: Any, **__: Any) -> None:
        """Stop the clock, for a validation or a checkpoint."""
        self._started = None

    on_save_checkpoint = on_validation_start

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Leave the model whole."""
        if hasattr(self, "_sliced"):
            self._sliced.detach()
        if hasattr(self, "_meter"):
            self._meter.abandon()

    def _log(self, spec: SubnetworkSpec) -> dict[str, float]:
        spent = self._meter.spent
        (planned, dense_planned), (counted, dense) = spent.planned, spent.counted
        d = spec.dimensions
        step_blocks = self._meter.plan(spec, 1, 1).blocks
        full_blocks = self._meter.plan(SubnetworkSpec.full(d), 1, 1).blocks
        metrics = {
            "stage": float(self.schedule.stage_at(self._step, self._max_steps) + 1),
            "active_layers": float(spec.count("layers")),
            "active_heads": float(spec.count("heads")),
            "active_neurons": float(spec.count("neurons")),
            "active_fraction": step_blocks / full_blocks,
            "planned_flops_saved_blocks": 1 - planned.blocks / dense_planned.blocks,
            "counted_flops_saved_blocks": 1 - counted.blocks / dense.blocks,
            "counted_flops_saved_all": 1 - counted.total / dense.total,
            **self.further_metrics(),
        }
        return {f"{self.method}/{name}": value for name, value in metrics.items()}

    def flops(self) -> float:
        """FLOPs that this process has spent, in closed form, as those of a dense training are."""
        return 0.0 if self._spent is None else (self._spent.planned[0] + self._spent.extra).total

    def curves(self) -> tuple[str, ...]:
        """Logged metrics to draw below the loss."""
        return (f"{self.method}/active_fraction", f"{self.method}/counted_flops_saved_blocks")

    def ledger(self) -> Ledger | None:
        """What the steps taken so far saved against dense steps; `None` before the first."""
        spent = self._spent
        if spent is None or not spent.steps:
            return None
        (planned, dense_planned), (counted, dense) = spent.planned, spent.counted
        seconds, dense_seconds = spent.seconds
        time = Saving("time of the steps", "s", seconds, dense_seconds, estimated=True)
        return Ledger(
            method=self.method.upper(),
            baseline=f"dense training for the same {spent.steps:,} steps",
            savings=(
                Saving("FLOPs planned, blocks", "FLOPs", planned.blocks, dense_planned.blocks),
                Saving("FLOPs planned, all", "FLOPs", planned.total, dense_planned.total),
                Saving("FLOPs counted, blocks", "FLOPs", counted.blocks, dense.blocks),
                Saving("FLOPs counted, all", "FLOPs", counted.total, dense.total),
                *([time] if seconds else []),  # no step was timed that was not counted as well
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
        meter = StepMeter(config, 0, frozen_weights=module.lora is not None)
        dense = meter.plan(full, *batch_shape)
        title = "planned FLOPs of an optimizer step, without the optimizer's"
        table = Table(title=f"{self.method.upper()}: {title}")
        for name in ("stage", "steps", "sub-network at its first step", "blocks", "all", "saved"):
            table.add_column(name, justify="left" if name.startswith("sub") else "right")
        spent, first = 0.0, 0
        for index, end in enumerate(self.schedule.ends(max_steps)):
            if end == first:  # too short for one step
                continue
            spec = self.draw(config, first, max_steps)
            if spec.context_forward_only:
                table.caption = "all tokens planned in both passes: the data say how many are not"
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
        """The settings that the draws depend on, and what was spent."""
        return {
            "settings": self.settings,
            "seed": self.seed,
            "spent": None if self._spent is None else asdict(self._spent),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            ValueError: The checkpoint was drawn with other settings or another seed.
        """
        for key in ("settings", "seed"):
            if state_dict[key] != getattr(self, key):
                raise ValueError(
                    f"callbacks.{self.method}: the checkpoint's {key} differ: {state_dict[key]} "
                    f"there, {getattr(self, key)} here; resume with the same ones"
                )
        spent = state_dict["spent"]
        self._spent = None if spent is None else Spent.from_dict(spent)

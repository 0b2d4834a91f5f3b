"""Language modelling: any Hugging Face causal language model, from scratch or pretrained."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torchmetrics import MeanMetric
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from atomic import replacing_folder
from language.chat_rendering import ChatRenderer
from lightning_modules.counted_loss import CountedLoss
from lightning_modules.hugging_face import (
    Lora,
    adapt,
    load,
    model_config,
    refuse_unbuildable,
    without_weights,
)
from lightning_modules.language_tasks import LanguageTasks
from lightning_modules.optimization import (
    Optimizer,
    Schedule,
    adamw_with_schedule,
    optimization,
)
from subnetworks.anatomy import dimensions_of
from subnetworks.context import predicting
from subnetworks.families import ARCHITECTURES
from subnetworks.flops import planned_flops
from subnetworks.fused import RECOMPILE_LIMIT, compile_branches, fuse, loss_from_hidden
from subnetworks.spec import SubnetworkSpec

Batch = Mapping[str, Tensor]


class CausalLM(LanguageTasks, CountedLoss):
    """Next-token prediction with AdamW, warm-up and decay by step.

    A batch holds `input_ids` of shape (batch, context) and optionally `labels` and
    `attention_mask`; without labels every token is predicted from those before it. The model is
    built in `configure_model`, so that construction is instant at any size.

    Args:
        architecture: `model_type` and the arguments of its Hugging Face config.
        pretrained: A folder or hub id to load; the architecture then says what it must be.
        lora: Train low-rank adapters only: `rank`, `alpha`, `dropout`, and `targets`, names of
            linear layers (all of the blocks' if left out).
        optimizer: `lr`, `betas`, `eps` and `weight_decay` of AdamW; decay applies to matrices and
            embeddings, not to biases and norms.
        schedule: `warmup` (steps, or a fraction of all steps below 1), `final` (share of the peak
            learning rate at the end) and `decay` (`cosine`, `linear`, `wsd` or `constant`; see
            `learning_rate_factor`).
        attn_implementation: An attention function of Hugging Face: `sdpa`, `eager`, ...
        compile: `true` compiles each transformer block, and the loss; `branches` the attention and
            the MLP of each block instead of the block, so that a method sees what they read.
        gradient_checkpointing: Recompute each block's activations in the backward pass.

    Raises:
        ValueError: A value is not allowed; the message names its key.
    """

    # What a callback may monitor, by its `mode`: whether less or more of it is better.
    validated: ClassVar[dict[str, tuple[str, ...]]] = {
        "min": ("train/loss", "val/loss", "val/perplexity", "old/loss", "old/perplexity"),
    }
    reads: ClassVar[str] = "tokens"
    """What the data must serve."""
    splits_parameters: ClassVar[bool] = True
    """Over the devices, under `trainer=fsdp`."""
    follows_length: ClassVar[bool] = True
    """Its course is a share of the whole training's steps."""
    adjustable: ClassVar[tuple[str, ...]] = ("attn_implementation", "compile")
    """Arguments on which no weight depends: tasks that read a run may set them anew."""

    def __init__(
        self,
        architecture: dict[str, Any] | None = None,
        pretrained: str | None = None,
        lora: Lora | None = None,
        optimizer: Optimizer | None = None,
        schedule: Schedule | None = None,
        attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa",
        compile: bool | Literal["branches"] = False,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        pretrained = pretrained and os.path.expanduser(pretrained)
        self.hf_config = model_config(architecture, pretrained)
        self.hf_config._attn_implementation = attn_implementation  # a plan of FLOPs asks for it
        self.pretrained, self.lora = pretrained, lora
        self.attn_implementation = attn_implementation
        self.compiled = compile
        self.gradient_checkpointing = gradient_checkpointing
        self.optimizer_settings, self.schedule_settings = optimization(
            optimizer,
            schedule,
            Optimizer(lr=6e-4, betas=[0.9, 0.95], weight_decay=0.1),
            Schedule(warmup=0.02, final=0.1, decay="cosine"),
        )
        source = "architecture" if pretrained is None else "pretrained"
        refuse_unbuildable(source, self.hf_config, attn_implementation, lora)
        if compile == "branches" and (family := self.hf_config.model_type) not in ARCHITECTURES:
            raise ValueError(
                f"module.compile=branches: where these lie in a {family} is not known; set "
                f"module.compile=true, or take one of: {', '.join(ARCHITECTURES)}"
            )
        self.model: Any = None
        self._awaits_checkpoint = False
        self.losses = nn.ModuleDict({split: MeanMetric() for split in ("val", "old", "test")})

    def configure_model(self) -> None:
        """Build or load the model, once, in training mode."""
        if self.model is None:
            self._build(with_weights=not self._awaits_checkpoint)

    def _build(self, with_weights: bool) -> None:
        assert self.device_mesh is None or self.lora is None, "the runner refuses the two together"
        if self.pretrained is not None and with_weights:
            model = load(self.pretrained, self.attn_implementation)
        elif self.pretrained is not None:
            model = without_weights(self.pretrained, self.hf_config, self.attn_implementation)
        else:
            model = AutoModelForCausalLM.from_config(
                self.hf_config, attn_implementation=self.attn_implementation
            )
        model.loss_type = "ForCausalLM"  # else a warning that it was guessed
        # `from_pretrained` returns a model in eval mode, and Lightning would keep it so.
        model.train()
        self.model = model if self.lora is None else adapt(model, self.lora)
        if self.gradient_checkpointing:
            model.activation_checkpointing_enable()
        names = set(model._no_split_modules or ())
        blocks = [block for block in model.modules() if type(block).__name__ in names]
        if self.compiled == "branches":
            fuse(model, compile_branches(blocks, self.hf_config))
        elif self.compiled:  # norms too
            for block in blocks:
                block.compile(recompile_limit=RECOMPILE_LIMIT)
        else:
            fuse(model)
        if self.device_mesh is not None:
            # FSDP2: each process keeps its rows of every parameter, and a block has whole weights
            # only while it runs. The last call has what no block has.
            for part in (*blocks, model):
                fully_shard(part, mesh=self.device_mesh["data_parallel"])

    def forward(self, batch: Batch) -> Tensor:
        """Mean loss of a batch in nats per predicted token; 0 if nothing is predicted."""
        assert self.model is not None, "configure_model builds the model"
        with loss_from_hidden(self.backbone, bool(self.compiled)):
            loss = self.model(
                input_ids=batch["input_ids"],
                attention_mask=batch.get("attention_mask"),
                position_ids=batch.get("position_ids"),
                labels=batch.get("labels", batch["input_ids"]),
                use_cache=False,
            ).loss
        return torch.where(_predicted(batch) > 0, loss, 0.0)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one micro-batch, for a mean over all tokens that its step predicts."""
        return self.counted({"train/loss": (self(batch), _predicted(batch))})

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add a batch to the validation loss; a second loader's is that of the old domain."""
        self._evaluate(("val", "old")[dataloader_idx], batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch to the test loss."""
        self._evaluate("test", batch)

    def on_validation_epoch_end(self) -> None:
        """Log validation perplexity."""
        self._log_perplexity("val")
        if cast(MeanMetric, self.losses["old"]).update_called:
            self._log_perplexity("old")

    def on_test_epoch_end(self) -> None:
        """Log test perplexity."""
        self._log_perplexity("test")

    def _evaluate(self, split: str, batch: Batch) -> None:
        metric = cast(MeanMetric, self.losses[split])
        metric.update(self(batch), _predicted(batch))
        self.log(f"{split}/loss", metric, on_epoch=True, add_dataloader_idx=False)

    def _log_perplexity(self, split: str) -> None:
        # The metric has summed over the ranks; `sync_dist` averages equal values.
        perplexity = cast(MeanMetric, self.losses[split]).compute().exp()
        self.log(f"{split}/perplexity", perplexity, sync_dist=True)

    def flops_of(self, sequences: int, context_length: int, steps: int) -> float | None:
        """FLOPs of a training of the full model, in closed form.

        Args:
            sequences: In all of its steps.
            context_length: Tokens of each.
            steps: Optimizer steps.

        Returns:
            None for a family whose parts are not known.
        """
        try:
            full = SubnetworkSpec.full(dimensions_of(self.hf_config))
        except ValueError:
            return None
        frozen = self.lora is not None
        flops = planned_flops(self.hf_config, full, sequences, context_length, frozen)
        trained = sum(p.numel() for p in self.parameters() if p.requires_grad)
        return flops.with_optimizer(trained * steps).total

    def configure_optimizers(self) -> Any:
        """AdamW with decay groups, and the learning rate by step."""
        return adamw_with_schedule(self, self.optimizer_settings, self.schedule_settings)

    def await_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Know that all weights will be a checkpoint's: a pretrained model's need not be there.

        LoRA's checkpoints hold the base's as well.
        """
        self._awaits_checkpoint = True

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Build the model before its weights, all of them, are loaded outside of a trainer."""
        self.await_checkpoint(checkpoint)
        self.configure_model()

    def keep_base(self, folder: Path) -> None:
        """Write what of a pretrained model is no weight, so that checkpoints are read without it.

        Args:
            folder: Where to; made.
        """
        if self.pretrained is not None:
            advice = self.backbone.generation_config
            assert advice is not None, "a causal language model generates"
            with replacing_folder(folder) as unfinished:
                self.backbone.config.save_pretrained(unfinished)
                advice.to_json_file(unfinished / "generation_config.json")

    def export(self, folder: str | Path, files: Iterable[Any] = ()) -> None:
        """Write the model, and a tokenizer if given, so that `from_pretrained` loads them.

        Adapters are merged into the weights in float32, after which this module trains no more.
        The tokenizer's special tokens become the model's; it writes until one of them, or the token
        that the chat template sets behind an answer. Of a base's advice on generation that
        contradicts itself the tokens alone are kept.

        Args:
            folder: Where to write.
            files: Objects with `save_pretrained`, such as the tokenizer.
        """
        assert self.model is not None, "configure_model builds the model"
        # A sum rounded to 8 bits is not what was trained.
        model = self.model if self.lora is None else self.model.float().merge_and_unload()
        for each in files:
            if hasattr(each, "eos_token_id"):
                _take_special_tokens(model, each)
        writing = model.generation_config
        try:
            writing.validate(strict=True)
        except ValueError:  # Hugging Face would not save it: Llama 2's, of an older time
            tokens = {name: getattr(writing, name) for name in (*_ENDS, "pad_token_id")}
            model.generation_config = GenerationConfig(**tokens)
        for each in (model, *files):
            each.save_pretrained(folder)


def _predicted(batch: Batch) -> Tensor:
    """How many tokens of a batch are predicted."""
    return predicting(batch.get("labels", batch["input_ids"])).sum()


_ENDS = ("bos_token_id", "eos_token_id")


def _take_special_tokens(model: PreTrainedModel, tokenizer: Any) -> None:
    writing = model.generation_config
    assert writing is not None, "a causal language model generates"
    for config in (model.config, writing):
        for name in _ENDS:
            stated, own = getattr(config, name, None), getattr(tokenizer, name)
            # Chat models may end at one of several tokens.
            if not (isinstance(stated, list) and own in stated):
                setattr(config, name, own)
    # Not the model's: its row takes no gradient then, and many tokenizers pad with the end.
    writing.pad_token_id = tokenizer.pad_token_id
    if tokenizer.chat_template is not None:
        ends = writing.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        if further := ChatRenderer(tokenizer).ends().difference(ends):
            writing.eos_token_id = [*ends, *further]

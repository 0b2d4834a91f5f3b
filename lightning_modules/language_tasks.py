"""What can be done with a trained language model: generate, talk, judge sentences, lm-eval."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from language.chat_rendering import ChatRenderer
from language.generation import Sampling, Writer, text_ids
from language.minimal_pairs import accuracies, judge, read_pairs
from language.talk import Talk
from language.text_encoder import saved_tokenizer
from subnetworks.families import longest_context
from terminal import literal


class LanguageTasks:
    """Tasks of a module with a Hugging Face causal language model, on the fastest device there is.

    They take the model of a run (`ckpt_path`), or a pretrained one as it is (`module.pretrained`).
    """

    tasks: ClassVar[dict[str, bool]] = {
        "generate": False,
        "talk": False,
        "minimal_pairs": False,
        "lm_eval": False,
    }
    without_data: ClassVar[tuple[str, ...]] = ("generate", "talk", "minimal_pairs", "lm_eval")
    measures: ClassVar[tuple[str, ...]] = ("minimal_pairs", "lm_eval")
    """Tasks whose figures are kept in the run folder."""

    model: Any
    pretrained: str | None
    lora: Any

    @property
    def backbone(self) -> PreTrainedModel:
        """The Hugging Face model itself, without what may be wrapped around it."""
        assert self.model is not None, "configure_model builds the model"
        return self.model if self.lora is None else self.model.get_base_model()

    def generate(
        self,
        datamodule: Any,
        *,
        ckpt_path: str | None,
        seed: int,
        prompt: str | None = None,
        max_new_tokens: Annotated[int, Ge(1)] = 128,
        sampling: Sampling,
    ) -> dict[str, float]:
        """Write how a text goes on, until the model ends it.

        Args:
            datamodule: Not used.
            ckpt_path: The run, or its checkpoint.
            seed: Of what is drawn.
            prompt: The text's beginning; control tokens in it are text.
            max_new_tokens: How many tokens are written at most.
            sampling: How it chooses each of them.

        Returns:
            `tokens`, `seconds_to_first_token` and `tokens_per_second`.

        Raises:
            ValueError: There is no prompt, or no room for it in the model's context.
        """
        if prompt is None:
            raise ValueError('prompt: task=generate needs a beginning, such as prompt="Once upon"')
        tokenizer = self._tokenizer(ckpt_path)
        writer = self._writer(tokenizer, sampling, max_new_tokens)
        ids = text_ids(tokenizer, prompt)
        if writer.context is not None and len(ids) >= writer.context:
            raise ValueError(
                f"prompt: it has {len(ids)} tokens, and the model's context of {writer.context} "
                "has no room for more"
            )
        console = Console(highlight=False)

        def show(piece: str) -> None:
            console.print(literal(piece), end="", soft_wrap=True)

        show(prompt)
        torch.manual_seed(seed)
        written = writer.write(ids, show)
        console.print()
        if written.stop == "context":
            console.print(f"(The model's context of {writer.context} tokens is full.)", style="dim")
        return _speed(len(written.ids), written.first, written.seconds)

    def talk(
        self,
        datamodule: Any,
        *,
        ckpt_path: str | None,
        seed: int,
        system: str | None = None,
        max_new_tokens: Annotated[int, Ge(1)] = 512,
        sampling: Sampling,
    ) -> dict[str, float]:
        """Hold a conversation by the model's own chat template, see `language.talk`.

        Args:
            datamodule: Not used.
            ckpt_path: The run, or its checkpoint.
            seed: Of what is drawn.
            system: What the model is told before the first turn.
            max_new_tokens: How many tokens an answer has at most.
            sampling: How it chooses each of them.

        Returns:
            `turns`, the longest `seconds_to_first_token`, `tokens` and `tokens_per_second`.

        Raises:
            ValueError: The model has no chat template, or one that takes no system prompt.
        """
        tokenizer = self._tokenizer(ckpt_path)
        if tokenizer.chat_template is None:
            raise ValueError(
                "task=talk: this model's tokenizer has no chat template, for it was not trained on "
                "conversations. Take task=generate, or train it on some: datamodule=instruction"
            )
        renderer = ChatRenderer(tokenizer)
        writer = self._writer(tokenizer, sampling, max_new_tokens, renderer.ends())
        conversation = Talk(writer, renderer, Console(highlight=False), system)
        torch.manual_seed(seed)
        conversation.hold()
        speed = _speed(conversation.tokens, conversation.first, conversation.seconds)
        return {"turns": float(conversation.turns), **speed}

    def minimal_pairs(
        self,
        datamodule: Any,
        *,
        ckpt_path: str | None,
        blimp: str | None = None,
        limit: Annotated[int, Ge(1)] | None = None,
    ) -> dict[str, float]:
        """Measure how often the right one of two sentences is likelier, as lm-eval does for BLiMP.

        Args:
            datamodule: Not used.
            ckpt_path: The run, or its checkpoint.
            blimp: A folder of jsonl files whose lines have sentence_good and sentence_bad.
            limit: Only the first so many pairs of each file.

        Returns:
            The share of right pairs, by file, and their `mean`.

        Raises:
            ValueError: There are no such files.
        """
        if blimp is None:
            raise ValueError("blimp: task=minimal_pairs needs blimp=FOLDER, BLiMP's jsonl files")
        pairs = read_pairs(blimp, limit)
        tokenizer, model = self._tokenizer(ckpt_path), self.backbone
        context = longest_context(model.config)
        right = {name: judge(model, tokenizer, each, context) for name, each in pairs.items()}
        found = accuracies(right)
        _show(found)
        return found

    def lm_eval(
        self,
        datamodule: Any,
        *,
        ckpt_path: str | None,
        tasks: list[str] | None = None,
        blimp: str | None = None,
        limit: Annotated[int, Ge(1)] | None = None,
        batch_size: Annotated[int, Ge(1)] = 16,
    ) -> dict[str, float]:
        """Measure tasks of EleutherAI's lm-eval; needs the extra lm_eval.

        Args:
            datamodule: Not used.
            ckpt_path: The run, or its checkpoint.
            tasks: Names of its tasks or groups, such as [blimp,lambada_openai].
            blimp: A folder of BLiMP's jsonl files, which `blimp` then reads instead of the hub.
            limit: Only the first so many examples of each task.
            batch_size: How many sequences are computed together.

        Returns:
            Every metric, as task/metric; and `blimp/mean`, over the files, of a local BLiMP.

        Raises:
            ValueError: There is no such task, or its data cannot be had.
        """
        if not tasks:
            raise ValueError("tasks: task=lm_eval needs some, such as tasks=[blimp]")
        from language.harness import evaluate

        tokenizer = self._tokenizer(ckpt_path)
        results = evaluate(self.backbone, tokenizer, tasks, blimp, limit, batch_size)
        found = {f"{task}/{name}": v for task, all in results.items() for name, v in all.items()}
        shares = [v for name, v in found.items() if name.startswith("blimp_")]
        if blimp is not None and shares:
            found["blimp/mean"] = sum(shares) / len(shares)
        _show(found)
        return found

    def _tokenizer(self, ckpt_path: str | None) -> PreTrainedTokenizerFast:
        """Make the model ready, and return the tokenizer of its training."""
        if ckpt_path is None and self.pretrained is None:
            raise ValueError("ckpt_path: give a run folder, or a model by module.pretrained")
        module: Any = self
        module.configure_model()
        module.eval()
        if (device := torch.accelerator.current_accelerator(check_available=True)) is not None:
            module.to(device)
        source = self.pretrained
        if ckpt_path is not None:
            path = Path(ckpt_path)
            kept = (path if path.is_dir() else path.parent.parent) / "tokenizer"
            source = str(kept) if kept.is_dir() else source
        if source is None:
            raise ValueError(f"ckpt_path={ckpt_path}: there is no tokenizer in its run folder")
        return saved_tokenizer(source)

    def _writer(
        self,
        tokenizer: PreTrainedTokenizerFast,
        sampling: Sampling,
        max_new_tokens: int,
        ends: set[int] | None = None,
    ) -> Writer:
        context = longest_context(self.backbone.config)
        return Writer(self.backbone, tokenizer, sampling, max_new_tokens, context, ends or ())


def _speed(tokens: int, first: float, seconds: float) -> dict[str, float]:
    per_second = tokens / seconds if seconds else 0.0
    return {
        "tokens": float(tokens),
        "seconds_to_first_token": first,
        "tokens_per_second": per_second,
    }


def _show(metrics: Mapping[str, float]) -> None:
    table = Table(show_header=False)
    for name, value in metrics.items():
        table.add_row(literal(name), f"{value:.4f}")
    Console().print(table)

"""Samples are what the model alone would write; right answers are counted as GSM8K counts them."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import pytorch_lightning as pl
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from callbacks.samples import GenerationSamples, exact_match, generate, share_context
from datamodules.instruction import InstructionDataModule
from lightning_modules.causal_lm import CausalLM

GSM8K = re.compile(r"#### *(-?[0-9.,]+)")


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("2 + 2 = 4\n#### 4", True),
        ("#### 1,004", False),
        ("#### 5\nNo: #### 4.", True),
        ("the answer is 4", False),
        ("", False),
        ("#### -4", False),
    ],
)
def test_exact_match_compares_the_last_final_answer(answer: str, right: bool) -> None:
    assert exact_match(answer, "So it is four.\n#### 4", GSM8K) == right


def test_thousands_separators_do_not_matter() -> None:
    assert exact_match("#### 12345", "#### 12,345", GSM8K)


@pytest.mark.parametrize(
    ("references", "measured"),
    [(["so #### 4", "#### 12"], True), (["so #### 4", "Hello."], False), (["Hello."], False)],
)
def test_the_metric_is_of_data_whose_answers_all_end_so(
    references: list[str], measured: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = GenerationSamples("folder", answer_pattern=GSM8K.pattern)
    trainer: Any = SimpleNamespace(is_global_zero=True)
    for _ in range(2):
        assert (samples._pattern_of(references, trainer) is not None) == measured
    said = capsys.readouterr().out
    assert said.count("No exact_match: not all answers end as '#### ") == (not measured)


def test_a_batch_of_prompts_is_answered_as_each_alone(cache_dir: Path) -> None:
    """Padding on the left changes nothing, and the model is left as it was."""
    data = InstructionDataModule(
        count=200, chat_template="default", vocab_size=400, cache_dir=str(cache_dir)
    )
    data.prepare_data()
    data.setup("validate")
    torch.manual_seed(1)
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32}
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    config = AutoConfig.for_model("llama", **sizes, **ends, intermediate_size=64, vocab_size=400)
    model = AutoModelForCausalLM.from_config(config).train()
    prompts = [prompt.ids for prompt in data.prompts(3)]
    assert len({len(ids) for ids in prompts}) > 1
    state = torch.get_rng_state()
    together = generate(model, prompts, data.tokenizer, 8)
    alone = [generate(model, [ids], data.tokenizer, 8)[0] for ids in prompts]
    assert together == alone
    ended = generate(model, prompts[:1], data.tokenizer, 8, ends=range(400))[0]
    assert together[0].startswith(ended)
    assert len(ended) < len(together[0])
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("limit", "asked", "shares"),
    [
        (None, 64, (None, 64)),
        (512, 64, (448, 64)),
        (128, 64, (64, 64)),
        (64, 64, (32, 32)),
        (16, 64, (8, 8)),
        (3, 64, (2, 1)),
    ],
)
def test_prompt_and_answer_share_the_context(
    limit: int | None, asked: int, shares: tuple[int | None, int]
) -> None:
    assert share_context(limit, asked) == shares


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize(("context", "words"), [(32, 16), (200, None)])
def test_long_prompts_are_shortened_to_what_the_model_holds(
    tmp_path: Path,
    cache_dir: Path,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    context: int,
    words: int | None,
) -> None:
    data = InstructionDataModule(
        count=200,
        chat_template="default",
        vocab_size=400,
        context_length=96,
        batch_size=1,
        cache_dir=str(cache_dir),
    )
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16}
    architecture = {
        "model_type": kind,
        **sizes,
        "vocab_size": 400,
        "max_position_embeddings": context,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    module = CausalLM(architecture=architecture)
    seen = []
    samples = GenerationSamples(str(tmp_path), prompts=4, max_new_tokens=24)
    trainer = pl.Trainer(
        accelerator="cpu",
        callbacks=[samples],
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data.prepare_data()
    data.setup("validate")
    module.configure_model()
    module.model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(int(kwargs["position_ids"].max()) + 1), with_kwargs=True
    )
    cast(Any, trainer).datamodule = data
    trainer.strategy.connect(module)
    module.trainer = trainer
    samples._sample(trainer, module, "val", 4)
    said = capsys.readouterr().out
    longest = max(len(prompt.ids) for prompt in data.prompts(4))
    assert 32 < longest + 24 < 200
    assert max(seen) <= context
    rows = [json.loads(line) for line in samples.file.read_text().splitlines()]
    assert len(rows) == 4
    if words is None:
        assert not said
        assert max(seen) == longest + 23
    else:
        assert "4 of 4 prompts are shortened to their last 16 tokens" in said
        ends = [data.tokenizer.decode(prompt.ids[-16:]) for prompt in data.prompts(4)]
        assert [row["prompt"] for row in rows] == ends


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"answer_pattern": "("}, "answer_pattern="),
        ({"answer_pattern": "####"}, "needs a group"),
    ],
)
def test_settings_that_cannot_work_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        GenerationSamples("folder", **options)

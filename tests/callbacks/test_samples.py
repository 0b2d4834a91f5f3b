"""Samples are what the model alone would write; right answers are counted as GSM8K counts them."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from callbacks.samples import GenerationSamples, exact_match, generate
from datamodules.instruction import InstructionDataModule

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
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prompts": 0}, "prompts=0: must be at least 1"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"answer_pattern": "("}, "answer_pattern="),
        ({"answer_pattern": "####"}, "needs a group"),
    ],
)
def test_settings_that_cannot_work_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        GenerationSamples("folder", **options)

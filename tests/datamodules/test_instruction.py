"""Instruction data: only answers are trained, conversations do not mix, every row is checked."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.conversations import DEFAULT_TEMPLATE
from datamodules.instruction import IGNORED, InstructionDataModule, grouped_batch, pack
from lightning_modules.causal_lm import CausalLM


def data(cache: Path, **options: Any) -> InstructionDataModule:
    """A data module on few generated problems, set up for fitting."""
    defaults: dict[str, Any] = {
        "count": 400,
        "chat_template": "default",
        "context_length": 96,
        "batch_size": 4,
        "vocab_size": 400,
        "val_fraction": 0.1,
    }
    module = InstructionDataModule(**{**defaults, **options, "cache_dir": str(cache)})
    module.prepare_data()
    module.setup("fit")
    return module


def write(path: Path, *rows: object) -> str:
    path.write_text(
        "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)
    )
    return str(path)


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_labels_are_the_answers_and_nothing_else(packed: bool, cache_dir: Path) -> None:
    module = data(cache_dir, packed=packed)
    batch = next(iter(module.train_dataloader()))
    trained = batch["labels"] != IGNORED
    assert torch.equal(batch["labels"][trained], batch["input_ids"][trained])
    text = str(module.tokenizer.decode(batch["input_ids"][trained]))
    assert "####" in text
    assert "How many" not in text
    assert "<|user|>" not in text
    # Whatever the model answers, it learns to stop.
    ends = (batch["labels"] == module.tokenizer.eos_token_id).sum()
    begins = (trained & ~trained.roll(1, 1)).sum()
    assert ends == begins


def test_every_conversation_is_read_once_an_epoch(cache_dir: Path) -> None:
    for packed in (True, False):
        module = data(cache_dir, packed=packed, batch_size=1)
        seen = sum(int((b["labels"] != IGNORED).sum()) for b in module.train_dataloader())
        samples = module.samples["train"]
        expected = sum(int((samples[i][1] != IGNORED).sum()) for i in range(len(samples.ends)))
        assert seen == expected


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_packed_conversations_do_not_see_each_other(model_type: str, cache_dir: Path) -> None:
    """The loss of a packed block is that of its conversations, each alone in a row."""
    module = data(cache_dir, batch_size=1, context_length=160)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {"bos_token_id": 0, "eos_token_id": 0}
    architecture = {"model_type": model_type, "vocab_size": 400, **sizes, **special}
    if model_type == "llama":
        architecture["intermediate_size"] = 64
    torch.manual_seed(0)
    model = CausalLM(architecture=architecture)
    model.configure_model()
    model.eval()
    blocks = module.blocks["train"]
    block = next(i for i, members in enumerate(blocks.members) if len(members) >= 2)
    packed = blocks[np.array([block])]
    total, count = 0.0, 0
    for sample in blocks.members[block]:
        ids, labels = (torch.from_numpy(a)[None] for a in blocks.samples[sample])
        predicted = int((labels != IGNORED).sum())
        total += model({"input_ids": ids, "labels": labels}).item() * predicted
        count += predicted
    assert model(packed).item() == pytest.approx(total / count, abs=1e-5)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=80), st.integers(50, 90))
def test_packing_keeps_every_sample_and_fits(lengths: list[int], capacity: int) -> None:
    array = np.array(lengths)
    blocks = pack(array, capacity)
    assert sorted(np.concatenate(blocks).tolist()) == list(range(len(lengths)))
    filled = [int(array[block].sum()) for block in blocks]
    assert max(filled) <= capacity
    # No two blocks would fit into one: what best fit cannot leave behind.
    assert all(a + b > capacity for i, a in enumerate(filled) for b in filled[i + 1 :])


@settings(max_examples=30)
@given(st.integers(8, 300), st.integers(1, 4), st.integers(1, 2), st.integers(0, 5))
def test_grouped_batches_cover_an_epoch(count: int, size: int, world: int, seed: int) -> None:
    lengths = np.random.default_rng(seed).integers(1, 100, count)
    per_epoch = count // (size * world)
    read = [
        grouped_batch(number, lengths, size, seed, rank, world)
        for number in range(per_epoch)
        for rank in range(world)
    ]
    everything = np.concatenate(read)
    assert len(everything) == len(set(everything.tolist())) == per_epoch * size * world
    if count >= 64 and size * world >= 2:
        spread = np.mean([np.ptp(lengths[batch]) for batch in read])
        assert spread < 25  # of 100, where chance would give more


def test_chat_messages_train_every_answer(tmp_path: Path) -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one?"},
        {"role": "assistant", "content": "first answer"},
        {"role": "user", "content": "two?"},
        {"role": "assistant", "content": "second answer"},
    ]
    file = write(
        tmp_path / "chat.jsonl",
        *[
            {"messages": [*turns[:-1], {**turns[-1], "content": f"second answer {i}"}]}
            for i in range(40)
        ],
    )
    module = data(
        tmp_path, source="jsonl", files=file, messages_column="messages", packed=False, batch_size=1
    )
    batch = next(iter(module.train_dataloader()))
    labels = batch["labels"][batch["labels"] != IGNORED]
    text = str(module.tokenizer.decode(labels))
    assert text.startswith("first answer<|endoftext|>\nsecond answer")
    prompt = module.prompts(1)[0]
    assert str(module.tokenizer.decode(prompt.ids)).endswith("two?<|endoftext|>\n<|assistant|>\n")
    assert prompt.reference.startswith("second answer")


def test_prompts_are_the_tokens_that_training_saw(cache_dir: Path) -> None:
    """A generation starts from the very ids that stand before the answer in training."""
    module = data(cache_dir)
    ids, labels = module.samples["val"][0]
    prompt = module.prompts(1)[0]
    assert prompt.ids == ids[: len(prompt.ids)].tolist()
    assert labels[len(prompt.ids)] != IGNORED
    assert set(labels[: len(prompt.ids)].tolist()) == {IGNORED}


def test_over_long_conversations_are_counted_or_refused_never_cut(
    cache_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = data(cache_dir, context_length=60)
    long = int((module.samples["train"].lengths > 60).sum())
    assert 0 < long == module.over_long["train"]
    assert module.describe()["over_long"]["train"] == long
    assert f"Left out: {long} of" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"more than datamodule.context_length=60 tokens"):
        data(cache_dir, context_length=60, over_long="refuse")


ROW = {"question": "2 + 2?", "answer": "4"}
BAD_ROWS = {
    "not json": ("{broken", r"rows.jsonl:2 is not JSON: .*column 2"),
    "not an object": ("[1]", r"rows.jsonl:2 is not an object"),
    "missing field": (
        {"question": "x"},
        r"rows.jsonl:2: 'answer' is missing \(there are: question",
    ),
    "empty answer": ({"question": "x", "answer": " "}, r"rows.jsonl:2: 'answer' is empty"),
    "no text": (
        {"question": 3, "answer": "4"},
        r"rows.jsonl:2: 'question' has no text \(it is 3\)",
    ),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_rows_are_refused_with_file_and_line(name: str, tmp_path: Path) -> None:
    row, words = BAD_ROWS[name]
    file = write(tmp_path / "rows.jsonl", ROW, row)
    with pytest.raises(ValueError, match=words):
        data(tmp_path / "cache", source="jsonl", files=file)
    assert [p for p in (tmp_path / "cache").iterdir() if p.suffix != ".lock"] == []


BAD_MESSAGES = {
    "no list": ({"text": "x"}, r"'messages' is not a list of messages \(there are: text\)"),
    "role": ({"messages": [{"role": "robot", "content": "x"}]}, r"messages\[0\] needs a role"),
    "empty": ({"messages": [{"role": "user", "content": ""}]}, r"messages\[0\].content is empty"),
    "no answer": ({"messages": [{"role": "user", "content": "x"}]}, r"ends with user, not with"),
}


@pytest.mark.parametrize("name", BAD_MESSAGES)
def test_bad_messages_are_refused(name: str, tmp_path: Path) -> None:
    row, words = BAD_MESSAGES[name]
    file = write(tmp_path / "rows.jsonl", row)
    with pytest.raises(ValueError, match=words):
        data(tmp_path, source="jsonl", files=file, messages_column="messages")


def test_a_tokenizer_without_a_template_is_refused(cache_dir: Path) -> None:
    with pytest.raises(ValueError, match=r"has no chat template of its own; set datamodule.chat_t"):
        data(cache_dir, chat_template=None)
    with pytest.raises(ValueError, match=r"datamodule.chat_template=nowhere.jinja: no such file"):
        data(cache_dir, chat_template="nowhere.jinja")


def test_a_template_that_rewrites_the_past_is_refused(tmp_path: Path) -> None:
    """Where more turns change what was rendered before, answers cannot be told apart."""
    template = tmp_path / "odd.jinja"
    template.write_text("{{ messages | length }}" + DEFAULT_TEMPLATE)
    turns = [{"role": r, "content": r} for r in ("user", "assistant", "user", "assistant")]
    file = write(tmp_path / "rows.jsonl", {"messages": turns})
    with pytest.raises(ValueError, match="renders the beginning of a conversation otherwise"):
        data(
            tmp_path,
            source="jsonl",
            files=file,
            messages_column="messages",
            chat_template=str(template),
        )


def test_test_files_are_neither_trained_on_nor_validated(tmp_path: Path) -> None:
    train = write(
        tmp_path / "train.jsonl", *[{"question": f"{i}?", "answer": "y"} for i in range(60)]
    )
    test = write(
        tmp_path / "test.jsonl", *[{"question": f"t{i}?", "answer": "secret"} for i in range(9)]
    )
    module = data(tmp_path, source="jsonl", files=[train, test], test_files=test, vocab_size=300)
    for loader in (module.train_dataloader(), module.val_dataloader()):
        for batch in loader:
            assert "secret" not in str(module.tokenizer.decode(batch["input_ids"].flatten()))
    assert len(module.prompts(100, test=True)) == 9
    assert all(p.reference == "secret" for p in module.prompts(100, test=True))

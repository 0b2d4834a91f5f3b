"""Instruction data: only answers are trained, conversations do not mix, every row is checked."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.conversations import DEFAULT_TEMPLATE, open_conversations
from datamodules.instruction import BadRows, InstructionDataModule
from datamodules.packing import grouped_batch, pack
from lightning_modules.causal_lm import CausalLM
from subnetworks.context import IGNORED
from tests.language.test_chat_rendering import CHATML, byte_level, fast


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


def test_what_is_written_ends_where_the_template_ends_an_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model learns that token, which need not be the end of a text; where there is none it is
    said."""
    (tmp_path / "endless.jinja").write_text("{% for m in messages %}{{ m.content }}\n{% endfor %}")
    module = data(tmp_path, chat_template=str(tmp_path / "endless.jinja"))
    assert module.ends == set()
    assert "does not learn to end one" in capsys.readouterr().out
    tokenizer = fast(byte_level(), CHATML)
    tokenizer.save_pretrained(tmp_path / "own")
    own = {"pretrained": str(tmp_path / "own")}
    module = data(tmp_path, tokenizer=own, chat_template=None, vocab_size=450, context_length=512)
    assert module.ends == {tokenizer.convert_tokens_to_ids("<|im_end|>")}
    assert "does not learn to end one" not in capsys.readouterr().out


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


@settings(max_examples=30, deadline=None)
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
    assert module.describe()["tokens_per_batch"] == 4 * 60
    assert f"Left out: {long} of" in capsys.readouterr().out
    samples = module.samples["train"]
    kept = np.flatnonzero(samples.lengths <= 60)[:1000]
    marks = np.concatenate([samples[sample][1] != IGNORED for sample in kept])
    assert module.describe()["share_of_answer_tokens"] == marks.mean()
    with pytest.raises(ValueError, match=r"more than datamodule.context_length=60 tokens"):
        data(cache_dir, context_length=60, over_long="refuse")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"context_length": 4}, r"too long, .* datamodule.context_length \(up\) or datamodule.ba"),
        (
            {"packed": False, "batch_size": 10**6},
            r"for 1000000 conversations; give more text, or change datamodule.batch_size \(",
        ),
    ],
)
def test_advice_on_too_little_text_helps(
    settings: dict[str, Any], words: str, cache_dir: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        data(cache_dir, **settings)


ROW = {"question": "2 + 2?", "answer": "4"}
BAD_ROWS: dict[str, tuple[Any, str]] = {
    "not json": ("{broken", r"rows.jsonl:2 is not JSON: .*column 2"),
    "not an object": ("[1]", r"rows.jsonl:2 is not an object"),
    "missing field": (
        {"question": "x"},
        r"rows.jsonl:2: 'answer' is missing \(there are: question",
    ),
    "empty answer": ({"question": "x", "answer": " "}, r"rows.jsonl:2: 'answer' is empty"),
    "null": ({"question": "x", "answer": None}, r"rows.jsonl:2: 'answer' has no text \(it is None"),
    "surrogate": (
        {"question": "\ud800?", "answer": "4"},
        r"rows.jsonl:2: 'question' holds half a surrogate pair",
    ),
    "twice": ('{"question": "a", "question": "b", "answer": "c"}', "'question' stands there twice"),
    "no text": (
        {"question": 3, "answer": "4"},
        r"rows.jsonl:2: 'question' has no text \(it is 3\)",
    ),
}


@pytest.mark.parametrize("key", ["files", "val_files", "test_files"])
def test_a_bad_row_is_reported_under_the_key_that_names_its_file(key: str, tmp_path: Path) -> None:
    good, bad = write(tmp_path / "good.jsonl", ROW), write(tmp_path / "bad.jsonl", ROW, "{")
    other = write(tmp_path / "other.jsonl", ROW)
    files: dict[str, Any] = {"source": "jsonl", "files": good, "val_files": other, key: bad}
    with pytest.raises(ValueError, match=rf"^datamodule\.{key}: .*bad\.jsonl:2 is not JSON"):
        InstructionDataModule(**files, batch_size=1).check_files()


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
    "null": ({"messages": [{"role": "user", "content": None}]}, r"\[0\].content has no text"),
    "number": ({"messages": [{"role": "user", "content": 3}]}, r"\[0\].content has no text"),
    "picture": (
        {"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}]},
        r"\[0\].content has a part that is not text but image",
    ),
    "tools": (
        {"messages": [{"role": "assistant", "content": "x"}], "tools": "{"},
        r"'tools' is not JSON",
    ),
    "sharegpt": (
        {"messages": [{"from": "narrator", "value": "x"}]},
        r"messages\[0\] needs a role",
    ),
    "nothing asked": (
        {"messages": [{"from": "gpt", "value": "x"}]},
        "the conversation begins with an answer",
    ),
    "no answer": ({"messages": [{"role": "user", "content": "x"}]}, r"ends with user, not with"),
}


@pytest.mark.parametrize("name", BAD_MESSAGES)
def test_bad_messages_are_refused(name: str, tmp_path: Path) -> None:
    row, words = BAD_MESSAGES[name]
    file = write(tmp_path / "rows.jsonl", row)
    with pytest.raises(ValueError, match=words):
        data(tmp_path, source="jsonl", files=file, messages_column="messages")


def test_bad_rows_are_skipped_counted_and_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.jsonl"
    good = [{"question": f"{i} + 1?", "answer": f"It is {i + 1}."} for i in range(60)]
    # A template of its own refuses a row that is well-formed.
    template = tmp_path / "strict.jinja"
    refusing = "{% if messages[0].content == 'no' %}{{ raise_exception('No.') }}{% endif %}"
    template.write_text(refusing + DEFAULT_TEMPLATE)
    bad = [row for row, _ in BAD_ROWS.values()] + [{"question": "no", "answer": "x"}]
    write(file, *good[:30], *bad, *good[30:])
    options: dict[str, Any] = {"source": "jsonl", "files": str(file), "vocab_size": 300}
    options |= {"chat_template": str(template), "batch_size": 1}
    module = data(tmp_path / "cache", **options, bad_rows="skip")
    found = module.describe()
    assert found["bad_rows"] == len(bad)
    assert sum(found["conversations"].values()) == len(good)
    assert module.folder is not None
    lines = (module.folder / "bad_rows.txt").read_text().splitlines()
    assert [int(line.split("rows.jsonl:")[1].split(":")[0].split(" ")[0]) for line in lines] == [
        *range(31, 31 + len(bad))
    ]
    for line, (_, words) in zip(lines, BAD_ROWS.values(), strict=False):
        assert re.search(words.replace("rows.jsonl:2", ""), line)
    assert lines[-1].endswith("the chat template refuses it: No.")
    said = capsys.readouterr().out
    assert f"Left out: {len(bad)} rows, listed in {module.folder}" in said
    # The whole cache does not make a job that refuses such rows run.
    with pytest.raises(ValueError, match=r"rows.jsonl:31 is not JSON.*bad_rows=skip"):
        data(tmp_path / "cache", **options)
    write(tmp_path / "none.jsonl", *bad)
    with pytest.raises(ValueError, match="the train part has 0 tokens in 0 conversations, too few"):
        data(tmp_path, **options | {"files": f"{tmp_path}/none.jsonl", "bad_rows": "skip"})


def test_what_is_left_out_is_said_once(cache_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = data(cache_dir, context_length=60)
    for stage in ("fit", "validate", "test"):
        module.setup(stage)
    assert capsys.readouterr().out.count("Left out") == 2  # of train and of val


def test_end_tokens_that_users_spell_are_text(tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": "Write <|endoftext|> now"},
        {"role": "assistant", "content": "It is <|endoftext|> here"},
    ]
    file = write(tmp_path / "chat.jsonl", *[{"messages": turns}] * 8)
    held_out = write(tmp_path / "val.jsonl", {"messages": turns})
    module = data(
        tmp_path,
        source="jsonl",
        files=file,
        val_files=held_out,
        messages_column="messages",
        vocab_size=300,
        batch_size=1,
    )
    ids, labels = module.samples["train"][0]
    end = module.tokenizer.eos_token_id
    assert [int((some == end).sum()) for some in (ids, labels)] == [2, 1]
    prompt = module.prompts(1)[0]
    assert prompt.reference == "It is <|endoftext|> here"
    assert prompt.ids.count(end) == 1


def test_several_fields_make_a_prompt_without_empty_ones(tmp_path: Path) -> None:
    """Alpaca's rows have an instruction, an input that is often empty, and an output."""
    rows = [{"instruction": "Add.", "input": given, "output": "3"} for given in ("1, 2", "", None)]
    settings = {"source": "jsonl", "files": write(tmp_path / "a.jsonl", *rows), "val_fraction": 0.5}
    columns = {"prompt_column": ["instruction", "input"], "answer_column": "output"}
    module = InstructionDataModule(**settings, **columns, chat_template="default")
    read = list(open_conversations(module.settings).read(BadRows("refuse").refuse))
    prompts = [conversation.messages[0]["content"] for conversation in read]
    assert prompts == ["Add.\n\n1, 2", "Add.", "Add."]
    write(tmp_path / "a.jsonl", {"instruction": " ", "input": "", "output": "3"})
    with pytest.raises(ValueError, match=r"a.jsonl:1: 'instruction' is empty"):
        list(open_conversations(module.settings).read(BadRows("refuse").refuse))
    write(tmp_path / "a.jsonl", {"messages": [], "output": "3"})
    with pytest.raises(ValueError, match=r"prompt_column or datamodule.messages_column=messages"):
        list(open_conversations(module.settings).read(BadRows("refuse").refuse))


def test_sharegpt_parts_and_tools_are_read(tmp_path: Path) -> None:
    calls = [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]
    rows = [
        {"talk": [{"from": "human", "value": "one?"}, {"from": "gpt", "value": "ONE"}]},
        {
            "talk": [
                {"role": "developer", "content": "Be brief."},
                {"role": "user", "content": [{"type": "text", "text": "t"}, {"text": "wo?"}]},
                {"role": "assistant", "content": "TWO"},
            ]
        },
        {
            "talk": [
                {"role": "user", "content": "three?"},
                {"role": "assistant", "content": None, "tool_calls": calls},
                {"role": "tool", "content": "3"},
                {"role": "assistant", "content": "THREE"},
            ],
            "tools": json.dumps([{"name": "add"}]),
        },
    ]
    template = tmp_path / "tools.jinja"
    template.write_text(
        "{% if tools %}<|tools|>{{ tools | tojson }}\n{% endif %}"
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
        "{% for call in m.tool_calls or [] %}{{ call.function.name }}{% endfor %}"
        "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    file, held_out = write(tmp_path / "a.jsonl", *rows), write(tmp_path / "b.jsonl", rows[0])
    module = data(
        tmp_path,
        source="jsonl",
        files=file,
        val_files=held_out,
        messages_column="talk",
        chat_template=str(template),
        vocab_size=300,
        batch_size=1,
    )
    read = [
        str(module.tokenizer.decode(some[some != IGNORED]))
        for sample in range(3)
        for some in module.samples["train"][sample]
    ]
    end = "<|endoftext|>"
    assert read == [
        f"<|user|>one?{end}<|assistant|>ONE{end}",
        f"ONE{end}",
        f"<|developer|>Be brief.{end}<|user|>two?{end}<|assistant|>TWO{end}",
        f"TWO{end}",
        f'<|tools|>[{{"name": "add"}}]\n<|user|>three?{end}<|assistant|>add{end}'
        f"<|tool|>3{end}<|assistant|>THREE{end}",
        f"add{end}THREE{end}",
    ]


def test_own_files_are_looked_at_without_a_tokenizer(tmp_path: Path) -> None:
    later = {"source": "jsonl", "tokenizer": {"pretrained": str(tmp_path / "later")}}
    good = write(
        tmp_path / "good.jsonl", *[{"question": f"{i}?", "answer": "x"} for i in range(60)]
    )
    InstructionDataModule(**later, files=good, batch_size=2).check_files()
    bad = write(tmp_path / "bad.jsonl", ROW, {**ROW, "answer": None})
    with pytest.raises(ValueError, match=r"bad.jsonl:2: 'answer' has no text \(it is None\)"):
        InstructionDataModule(**later, files=bad).check_files()
    with pytest.raises(ValueError, match=r"has 1 answers.*1 rows are left out.*too few for 16"):
        InstructionDataModule(**later, files=bad, bad_rows="skip").check_files()


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

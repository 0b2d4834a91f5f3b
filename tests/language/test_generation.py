"""Text is what transformers' `generate` writes, shown as it comes, within the context."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from language.generation import Decoder, Sampling, Writer, text_ids
from tests.language.test_chat_rendering import KINDS, byte_level, fast
from tests.subnetworks.models import FAMILIES

GREEDY = Sampling(greedy=True)


def model(name: str = "llama", context: int = 64) -> Any:
    config = copy.deepcopy(FAMILIES[name])
    config.vocab_size, config.max_position_embeddings = 450, context
    config.tie_word_embeddings = False
    config.bos_token_id = config.eos_token_id = config.pad_token_id = None
    torch.manual_seed(0)
    built = AutoModelForCausalLM.from_config(config).eval()
    for parameter in built.parameters():  # a fresh model repeats one token
        parameter.data += 0.4 * torch.randn_like(parameter)
    return built


def writer(built: Any, context: int | None = 64, tokens: int = 20, **further: Any) -> Writer:
    return Writer(built, fast(byte_level()), GREEDY, tokens, context, **further)


def reference(built: Any, ids: list[int], tokens: int, ends: list[int]) -> list[int]:
    output = built.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        max_new_tokens=tokens,
        do_sample=False,
        eos_token_id=ends,
        pad_token_id=ends[0],
    )
    return [token for token in output[0, len(ids) :].tolist() if token not in ends]


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_greedy_tokens_are_those_of_transformers(name: str) -> None:
    """Also where the second text begins as the first, whose keys and values are used again."""
    built = model(name)
    one = writer(built)
    first = [random.Random(0).randrange(20, 400) for _ in range(9)]
    answer = one.write(first).ids
    assert answer == reference(built, first, 20, one.ends)
    assert len(set(answer)) > 2
    for ids in ([*first, *answer, 33], [*first, 34], first, [77, 78]):
        assert one.write(ids).ids == reference(built, ids, 20, one.ends)


def test_what_a_model_brings_beside_its_ends_decides_nothing() -> None:
    """A penalty makes another token the likeliest; a model from scratch was given no ends."""
    built = model()
    plain = writer(built).write([40, 41]).ids
    built.generation_config.update(repetition_penalty=5.0, eos_token_id=[plain[0], 7])
    assert writer(built).write([40, 41]).ids == plain
    assert built.generation_config.repetition_penalty == 5.0
    built.config.name_or_path = "pretrained"
    assert {plain[0], 7} < set(writer(built).ends)
    assert not writer(built).write([40, 41]).ids


def test_a_compiled_model_writes_uncompiled() -> None:
    def backend(graph: Any, inputs: Any) -> Any:
        raise AssertionError("each layer's keys and values would be compiled for")

    built, ids = model(), [44, 78, 33]
    expected = writer(built).write(ids).ids
    for block in built.model.layers:
        block.compile(backend=backend)
    assert writer(built).write(ids).ids == expected


def test_keys_and_values_are_used_again() -> None:
    built = model()
    one = writer(built, tokens=4)
    read: list[int] = []
    built.model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    ids = list(range(20, 40))
    answer = one.write(ids).ids
    assert read[0] == 20
    del read[:]
    one.write([*ids, *answer, 50, 51])
    assert read[0] == 3, "the last token written was never read"


def test_a_text_stops_where_it_should(monkeypatch: pytest.MonkeyPatch) -> None:
    built = model(context=16)
    one = writer(built, context=16)
    ids = [40, 41, 42, 43]
    long = one.write(ids)
    assert (long.stop, len(long.ids)) == ("context", 12)
    short = writer(built, context=16, tokens=5).write(ids)
    assert (short.stop, short.ids) == ("length", long.ids[:5])
    end = next(token for token in long.ids[3:] if token not in long.ids[:3])
    ended = writer(built, context=16, ends=[end]).write(ids)
    assert (ended.stop, ended.ids) == ("end", long.ids[: long.ids.index(end)])

    pieces: list[str] = []

    def stop(piece: str) -> None:
        pieces.append(piece)
        raise KeyboardInterrupt

    stopped = one.write(ids, stop)
    assert stopped.stop == "interrupted"
    assert stopped.text == pieces[0] if pieces else not stopped.text
    assert one.write(ids).ids == long.ids, "what was broken off is not used again"


def test_seeds_and_settings_decide_what_is_drawn() -> None:
    built, tokenizer = model(), fast(byte_level())

    def drawn(seed: int, **settings: Any) -> list[int]:
        torch.manual_seed(seed)
        return Writer(built, tokenizer, Sampling(**settings), 12, 64).write([40, 41]).ids

    greedy = drawn(0, greedy=True)
    assert drawn(1) == drawn(1) != drawn(2)
    assert drawn(1, top_k=1) == drawn(1, top_p=1e-6) == drawn(1, temperature=1e-6) == greedy
    assert drawn(1, temperature=50.0) != greedy


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_are_the_text(kind: str) -> None:
    """Characters of several tokens come whole; a text of a tokenizer's own ends as it is."""
    tokenizer = fast(KINDS[kind]())
    (text,) = ["The quick naïve dog, 日本 2 + 2"]
    ids = tokenizer(text, add_special_tokens=False).input_ids
    for seam in (1, 4, 9):
        decoder = Decoder(tokenizer, ids[:seam])
        pieces = [decoder.step(token) for token in ids[seam:]]
        whole = tokenizer.decode(ids, skip_special_tokens=True)
        begin = tokenizer.decode(ids[:seam], skip_special_tokens=True)
        if not begin.endswith("\ufffd"):
            assert begin + "".join(pieces) + decoder.rest() == whole
        assert not any("\ufffd" in piece for piece in pieces)


def test_bytes_that_are_no_text_come_last() -> None:
    tokenizer = fast(byte_level())
    ids = tokenizer("日", add_special_tokens=False).input_ids
    decoder = Decoder(tokenizer, [50])
    assert [decoder.step(token) for token in ids[:-1]] == [""] * (len(ids) - 1)
    assert "\ufffd" in decoder.rest()


def test_control_tokens_in_a_prompt_are_text() -> None:
    tokenizer = fast(byte_level())
    ids = text_ids(tokenizer, "a</s>b")
    assert tokenizer.eos_token_id not in ids
    assert tokenizer.decode(ids) == "a</s>b"
    assert text_ids(tokenizer, "") == [tokenizer.bos_token_id]

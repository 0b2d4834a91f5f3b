"""A conversation's tokens are those of its whole rendering; what users wrote is never control."""

import itertools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from datamodules.conversations import DEFAULT_TEMPLATE
from language.chat_rendering import ChatRenderer, Rendering
from language.conversation import Conversation
from language.text_encoder import TextEncoder

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Nothing between a control token and a content but what the content brings, and no line ends.
BARE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content }}"
    "{{ eos_token }}{% else %}[INST] {{ m.content | trim }} [/INST]{% endif %}{% endfor %}"
)
CONTROL = ("<|im_start|>", "<|im_end|>", "<|end|>", "<s>", "</s>", "[INST]", "[/INST]")
SENTENCES = [
    "user assistant system The quick brown fox jumps over the lazy dog . 2 + 2 = 4",
    "Write a word , then <|stop|> [now] / and s > t < u ; naïve Straße 日本",
] * 20


def byte_level() -> Tokenizer:
    """As GPT-2's, Llama 3's and Qwen's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=list(CONTROL), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


def sentence_piece_bpe() -> Tokenizer:
    """As Llama 2's and Mistral's: a space before each stretch of text, merges across words."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<unk>", *CONTROL], show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


def unigram() -> Tokenizer:
    """As T5's and XGLM's: the model itself finds a control token in plain text."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    trainer = trainers.UnigramTrainer(
        vocab_size=120,
        special_tokens=["<unk>", *CONTROL],
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


def word_piece() -> Tokenizer:
    """As BERT's, but that words end at spaces alone: so does this model."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordPieceTrainer(
        vocab_size=200, special_tokens=["<unk>", *CONTROL], show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": byte_level,
    "sentencepiece": sentence_piece_bpe,
    "unigram": unigram,
    "wordpiece": word_piece,
}


def fast(backend: Tokenizer, template: str = CHATML) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", chat_template=template
    )
    # Added behind the vocabulary: one that only a template makes a control token, and a word.
    tokenizer.add_tokens([AddedToken("<think>"), AddedToken("dog food", normalized=False)])
    return tokenizer


TOKENIZERS = {
    (kind, name): fast(make(), template)
    for kind, make in KINDS.items()
    for name, template in (("chatml", CHATML), ("bare", BARE))
}
if folder := os.environ.get("FRUGAL_DATA"):
    stories: Any = AutoTokenizer.from_pretrained(Path(folder) / "lm" / "stories260k" / "hf")
    stories.chat_template = BARE
    TOKENIZERS["stories", "bare"] = stories
RENDERERS = {name: ChatRenderer(tokenizer) for name, tokenizer in TOKENIZERS.items()}

plain = (
    st.text(
        st.sampled_from("abc The dog food.,<|>[/]sé日本\n\t ￼\u0301\U0001f469\U000f0000\U00013000"),
        max_size=25,
    )
    .map(lambda text: text + "x")
    .filter(lambda text: not any(token in text for token in CONTROL))
)
spelling = st.lists(
    st.one_of(st.sampled_from([*CONTROL, "<think>", " ", "\n", "<unk>"]), plain), min_size=1
).map("".join)


def turns(contents: st.SearchStrategy[str]) -> st.SearchStrategy[list[dict[str, str]]]:
    pairs = st.lists(st.tuples(contents, contents), min_size=1, max_size=3)
    return pairs.map(
        lambda some: [
            {"role": role, "content": content}
            for pair in some
            for role, content in zip(("user", "assistant"), pair, strict=True)
        ]
    )


def rendered(renderer: ChatRenderer, messages: list[dict[str, Any]], **more: Any) -> Rendering:
    (only,) = renderer.render(Conversation(tuple(messages), "train", "here", **more))
    return only


def spelled(renderer: ChatRenderer, text: str) -> str:
    """Give control tokens in a text for the encoder their spelling back."""
    for token, name in renderer.encoder.names.items():
        text = text.replace(name, token)
    return text


def control_ids(tokenizer: PreTrainedTokenizerFast) -> set[int]:
    return {tokenizer.convert_tokens_to_ids(token) for token in CONTROL}


@pytest.mark.parametrize("name", RENDERERS, ids="-".join)
@settings(deadline=None, max_examples=40)
@given(st.data())
def test_tokens_are_those_of_the_whole_rendering(name: tuple[str, str], data: Any) -> None:
    messages = data.draw(turns(plain))
    renderer, tokenizer = RENDERERS[name], TOKENIZERS[name]
    rendering = rendered(renderer, messages)
    ((ids, marks),) = renderer.encode([rendering])
    whole: Any = tokenizer.apply_chat_template(messages, tokenize=True)
    assert ids.tolist() == whole["input_ids"]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert spelled(renderer, rendering.text) == text
    # What is learned: each answer from where a generation begins, with the end of its turn.
    tail, space = ("<|im_end|>\n", "") if name[1] == "chatml" else ("</s>", " ")
    said = [spelled(renderer, rendering.text[slice(*span)]) for span in rendering.answers]
    assert said == [space + m["content"] + tail for m in messages if m["role"] == "assistant"]
    # A token is learned if it has a character of an answer.
    inside = [False] * len(text)
    for number in range(1, len(messages), 2):
        begin, end = (
            len(tokenizer.apply_chat_template(some, tokenize=False, add_generation_prompt=prompt))
            for some, prompt in ((messages[:number], True), (messages[: number + 1], False))
        )
        inside[begin:end] = [True] * (end - begin)
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    expected = [any(inside[a : max(b, a + 1)]) for a, b in offsets["offset_mapping"]]
    assert marks.tolist() == expected


@pytest.mark.parametrize("name", RENDERERS, ids="-".join)
@settings(deadline=None, max_examples=40)
@given(st.data())
def test_what_users_wrote_is_text(name: tuple[str, str], data: Any) -> None:
    messages = data.draw(turns(spelling.filter(str.strip)))
    renderer, tokenizer = RENDERERS[name], TOKENIZERS[name]
    rendering = rendered(renderer, messages)
    ((ids, _),) = renderer.encode([rendering])
    assert spelled(renderer, rendering.text) == tokenizer.apply_chat_template(
        messages, tokenize=False
    )
    # Control tokens are as many and the same as where nothing of the kind was written.
    harmless = [{**message, "content": "x"} for message in messages]
    ((expected, _),) = renderer.encode([rendered(renderer, harmless)])
    control = control_ids(tokenizer)
    found, wanted = ([i for i in some.tolist() if i in control] for some in (ids, expected))
    assert found == wanted
    if name[0] in ("byte-level", "stories"):  # which tell all characters
        decoded = tokenizer.decode(ids)
        assert re.sub(r"\s", "", decoded) == re.sub(r"\s", "", spelled(renderer, rendering.text))


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
def test_ordinary_text_joins_with_what_stands_around_a_spelled_token(kind: str) -> None:
    """The tokens are those of the text as one, read without any control token."""
    tokenizer, renderer = TOKENIZERS[kind, "chatml"], RENDERERS[kind, "chatml"]
    content = "Write <|im_end|> then </s>dog food"
    ((ids, _),) = renderer.encode(
        [
            rendered(
                renderer,
                [{"role": "user", "content": content}, {"role": "assistant", "content": "b"}],
            )
        ]
    )
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    stretch = ids.tolist()[1 : ids.tolist().index(end)]
    assert stretch == tokenizer.encode(
        f"user\n{content}", add_special_tokens=False, split_special_tokens=True
    )
    assert tokenizer.convert_tokens_to_ids("dog food") in stretch


def test_a_token_that_the_template_writes_is_control_though_it_is_not_special() -> None:
    tokenizer = fast(byte_level(), CHATML.replace("assistant\n", "assistant\n<think>"))
    think = tokenizer.convert_tokens_to_ids("<think>")
    assert not tokenizer.added_tokens_decoder[think].special
    encoder = TextEncoder(tokenizer)
    assert think not in encoder.encode(["a <think> b"])[0]
    assert encoder.encode([f"a {encoder.names['<think>']} b"])[0].tolist().count(think) == 1
    # Named by a template that is out of use, it is none the less.
    assert "<think>" in TextEncoder(fast(byte_level()), ["<think>"]).names
    assert "<think>" not in TextEncoder(fast(byte_level())).names
    tokenizer = fast(byte_level())
    tokenizer.chat_control_tokens = ["<think>"]
    assert "<think>" in TextEncoder(tokenizer).names


def test_a_token_that_merges_could_make_stays_text() -> None:
    """It was an ordinary word when the tokenizer was trained, and was declared special later."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        ["STOP STOPPED STOPPED"] * 9,
        trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False),
    )
    assert "STOP" in backend.get_vocab()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="STOP")
    encoder = TextEncoder(tokenizer)
    ids = encoder.encode(["STOP STOPPED"])[0]
    assert tokenizer.eos_token_id not in ids
    assert tokenizer.decode(ids) == "STOP STOPPED"


def test_a_tokenizer_that_cuts_or_pads_does_neither_here() -> None:
    tokenizer = fast(byte_level())
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(length=64)
    short, long = TextEncoder(tokenizer).encode(["a", "The quick brown fox jumps over it all"])
    assert len(short) == 1
    assert len(long) > 4


# --- templates -------------------------------------------------------------------------------

# As Qwen3's: reasoning is found in answers, and left out once another question has followed.
REASONING = (
    "{% set ns = namespace(last=0) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}"
    "{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% set content = m.content %}{% set reasoning = m.reasoning_content or '' %}"
    "{% if m.role == 'assistant' and '</think>' in content %}"
    "{% set reasoning = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if reasoning and loop.index0 > ns.last %}<think>\n{{ reasoning }}\n</think>\n\n{% endif %}"
    "{{ content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def renderer_of(template: str) -> ChatRenderer:
    tokenizer = fast(byte_level(), template)
    tokenizer.add_tokens(["</think>"])
    return ChatRenderer(tokenizer)


def talk(*contents: str) -> tuple[dict[str, Any], ...]:
    roles = itertools.cycle(("user", "assistant"))
    return tuple(
        {"role": role, "content": content} for role, content in zip(roles, contents, strict=False)
    )


def learned(renderer: ChatRenderer, renderings: list[Rendering]) -> list[list[str]]:
    return [
        [spelled(renderer, rendering.text[slice(*span)]) for span in rendering.answers]
        for rendering in renderings
    ]


def test_reasoning_that_is_left_out_later_is_learned_where_it_stands() -> None:
    renderer = renderer_of(REASONING)
    messages = talk("1?", "<think>\none\n</think>\n\nA", "2?", "<think>\ntwo\n</think>\n\nB")
    renderings = renderer.render(Conversation(messages, "train", "here"))
    assert learned(renderer, renderings) == [
        ["<think>\none\n</think>\n\nA<|im_end|>\n"],
        ["<think>\ntwo\n</think>\n\nB<|im_end|>\n"],
    ]
    whole: Any = renderer.tokenizer.apply_chat_template(list(messages), tokenize=True)
    ids = renderer.encode(renderings)[-1][0]
    assert ids.tolist() == whole["input_ids"]
    think = renderer.tokenizer.convert_tokens_to_ids("<think>")
    assert ids.tolist().count(think) == 1
    # Without reasoning nothing changes in between: one text has both answers.
    assert len(renderer.render(Conversation(talk("1?", "A", "2?", "B"), "train", "here"))) == 1


def test_only_what_the_template_looks_for_is_more_than_text() -> None:
    renderer = renderer_of(REASONING)
    messages = talk("</think> is what?", "<think>\nmm\n</think>\n\nAn end, as <|im_end|> is.")
    ((ids, _),) = renderer.encode(renderer.render(Conversation(messages, "train", "here")))
    count = {
        token: ids.tolist().count(renderer.tokenizer.convert_tokens_to_ids(token))
        for token in ("<think>", "</think>", "<|im_end|>")
    }
    assert count == {"<think>": 1, "</think>": 1, "<|im_end|>": 2}


def test_a_generation_prompt_may_hold_more_than_an_answer_begins_with() -> None:
    renderer = renderer_of(CHATML.replace("assistant\n{% endif", "assistant\n<think>{% endif"))
    renderings = renderer.render(Conversation(talk("1?", "A", "2?", "B"), "train", "here"))
    assert learned(renderer, renderings) == [["A<|im_end|>\n", "B<|im_end|>\n"]]


TOOLS = [{"type": "function", "function": {"name": "add", "description": "<|im_end|> Adds."}}]
TOOL_TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for call in m.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CALLING: tuple[dict[str, Any], ...] = (
    {"role": "user", "content": "2+2?"},
    {
        "role": "assistant",
        "tool_calls": [{"function": {"name": "add", "arguments": {"a": 2, "<|im_end|>": 2}}}],
    },
    {"role": "tool", "content": "4"},
    {"role": "assistant", "content": "Four."},
)


def test_tools_are_rendered_where_the_template_takes_them() -> None:
    renderer = renderer_of(TOOL_TEMPLATE)
    (rendering,) = renderer.render(Conversation(CALLING, "train", "here", TOOLS))
    assert learned(renderer, [rendering])[0][0].startswith('{"name": "add", "arguments"')
    ((ids, _),) = renderer.encode([rendering])
    end = renderer.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert ids.tolist().count(end) == 4  # of the turns; not of the schema, not of the call
    for template, words in (
        (CHATML, "the chat template takes no tools"),
        (TOOL_TEMPLATE.replace("m.tool_calls", "m.calls"), "takes no tool_calls"),
    ):
        with pytest.raises(ValueError, match=f"^here: .*{words}"):
            renderer_of(template).render(Conversation(CALLING, "train", "here", TOOLS))


PARTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% for part in m.content %}{{ part.text | upper }};{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_parts_are_given_in_the_form_that_the_template_takes() -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    messages = (*talk("q")[:1], {"role": "assistant", "content": parts})
    conversation = Conversation(messages, "train", "here")
    joined = renderer_of(CHATML)
    assert learned(joined, joined.render(conversation)) == [["one two<|im_end|>\n"]]
    parted = renderer_of(PARTS.replace(" | upper", ""))
    assert learned(parted, parted.render(conversation)) == [["one ;two;<|im_end|>\n"]]
    assert "user\nq;" in parted.render(conversation)[0].text


@pytest.mark.parametrize(
    ("template", "messages", "words"),
    [
        (
            CHATML.replace("%}<|im_start|>{{", "if m.role != 'developer' %}<|im_start|>{{"),
            ({"role": "developer", "content": "a"}, *talk("a", "b")),
            r"leaves out messages\[0\], whose role is developer",
        ),
        (
            "{% if messages | length > 2 %}{{ raise_exception('Too long.') }}{% endif %}" + CHATML,
            talk("a", "b", "c", "d"),
            "the chat template refuses it: Too long",
        ),
        ("{{ messages | length }}" + CHATML, talk("a", "b"), "renders the beginning .* otherwise"),
        (CHATML, talk("a", "b")[1:], "here: the conversation begins with an answer"),
    ],
)
def test_what_a_template_does_not_take_is_refused(template: str, messages: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        renderer_of(template).render(Conversation(messages, "train", "here"))


def test_the_default_template_takes_every_role() -> None:
    renderer = renderer_of(DEFAULT_TEMPLATE)
    messages = ({"role": "developer", "content": "Be brief."}, *talk("a <|end|>", "b</s>"))
    (rendering,) = renderer.render(Conversation(messages, "train", "here"))
    ((ids, marks),) = renderer.encode([rendering])
    end = renderer.tokenizer.eos_token_id
    assert [int((some == end).sum()) for some in (ids, ids[marks])] == [3, 1]

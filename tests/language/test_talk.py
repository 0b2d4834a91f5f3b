"""A conversation reads what training read, forgets in words, and ends in words."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from rich.console import Console

from language.chat_rendering import ChatRenderer
from language.conversation import Conversation
from language.generation import Sampling, Writer
from language.talk import Talk
from tests.language.test_chat_rendering import BARE, CHATML, byte_level, fast
from tests.language.test_generation import model


class Conversing:
    """A conversation with a tiny model, of which every prompt is kept."""

    def __init__(
        self, context: int = 256, template: str = CHATML, system: str | None = None, tokens: int = 6
    ) -> None:
        self.tokenizer = fast(byte_level(), template)
        self.renderer = ChatRenderer(self.tokenizer)
        self.model = model(context=context)
        ends = self.renderer.ends()
        self.writer = Writer(
            self.model, self.tokenizer, Sampling(greedy=True), tokens, context, ends
        )
        self.read: list[list[int]] = []
        write = self.writer.write

        def kept(ids: Any, show: Any = str) -> Any:
            self.read.append(list(ids))
            return write(ids, show)

        self.writer.write = kept  # type: ignore[method-assign]
        self.out = io.StringIO()
        console = Console(file=self.out, width=200, highlight=False)
        self.talk = Talk(self.writer, self.renderer, console, system)

    def hold(self, patch: pytest.MonkeyPatch, *lines: str | BaseException) -> str:
        waiting: Iterator[str | BaseException] = iter(lines)

        def typed(prompt: str = "") -> str:
            line = next(waiting, EOFError())
            if isinstance(line, BaseException):
                raise line
            return line

        patch.setattr("builtins.input", typed)
        self.talk.hold()
        return self.out.getvalue()


def test_every_turn_reads_the_conversation_as_training_renders_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a user spells of control tokens is text there as here."""
    one = Conversing(system="Be brief.")
    out = one.hold(monkeypatch, "The dog?", "<|im_end|> fox", "", "/quit")
    messages = [one.talk._system[0], *(m for turn in one.talk._turns for m in turn)]
    assert [m["role"] for m in messages] == ["system", *["user", "assistant"] * 2]
    (rendering,) = one.renderer.render(Conversation(tuple(messages), "train", "here"))
    ((ids, marks),) = one.renderer.encode([rendering])
    prompt = one.read[1]
    assert ids[: len(prompt)].tolist() == prompt
    assert not marks[: len(prompt)][-1]
    assert marks[len(prompt)]
    assert messages[2]["content"] in out
    assert one.talk.turns == 2


@pytest.mark.parametrize(("template", "end"), [(CHATML, "<|im_end|>"), (BARE, "</s>")])
def test_answers_end_at_the_templates_token(template: str, end: str) -> None:
    tokenizer = fast(byte_level(), template)
    renderer = ChatRenderer(tokenizer)
    assert renderer.ends() == {tokenizer.convert_tokens_to_ids(end)}


def test_the_oldest_turns_are_forgotten_and_memory_does_not_grow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = Conversing(context=128)
    sizes: list[int] = []
    write = one.writer.write

    def measured(ids: Any, show: Any = str) -> Any:
        written = write(ids, show)
        cache = one.writer._cache
        held = [t for layer in cache.layers for t in (layer.keys, layer.values)] if cache else []
        sizes.append(sum(t.untyped_storage().nbytes() for t in held))
        return written

    one.writer.write = measured  # type: ignore[method-assign]
    out = one.hold(monkeypatch, *[f"word {n}" for n in range(100)])
    assert one.talk.turns == 100
    assert max(map(len, one.read)) <= 128 - 6
    assert len(one.talk._turns) < 12
    assert max(sizes[20:]) <= max(sizes[:20])
    assert "turns are forgotten" in out
    assert out.count("forgotten") < 30, "several at once"


def test_commands_and_ends_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Conversing()
    out = one.hold(
        monkeypatch, "The fox", "/clear", "The dog", "/nothing", "/help",
        KeyboardInterrupt(), KeyboardInterrupt(),
    )  # fmt: skip
    assert len(one.read[0]) == len(one.read[1]), "the first turn is forgotten"
    for words in ("is forgotten", "no command /nothing", "/quit   leave", "Ctrl-C once more"):
        assert words in out
    assert out.endswith("The conversation ends.\n")
    assert Conversing().hold(monkeypatch, "The fox").endswith("The conversation ends.\n")


def test_what_has_no_room_is_said_and_the_conversation_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = Conversing(context=64)
    out = one.hold(monkeypatch, "zqj " * 60, "The fox")
    assert "No answer: that has " in out
    assert one.talk.turns == 1


def test_what_a_model_writes_is_not_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Conversing()
    token = one.tokenizer("\x1b", add_special_tokens=False).input_ids[0]

    def wrote(*args: Any, streamer: Any, input_ids: torch.Tensor, **further: Any) -> Any:
        streamer.put(input_ids)
        streamer.put(torch.tensor([token]))
        streamer.end()
        raise KeyboardInterrupt

    monkeypatch.setattr(one.model, "generate", wrote)
    out = one.hold(monkeypatch, "The fox")
    assert "\x1b" not in out
    assert "\\x1b" in out
    assert "Stopped. The conversation goes on." in out


def test_system_prompts_that_go_nowhere_are_refused() -> None:
    silent = "{% for m in messages if m.role != 'system' %}{{ m.content }}</s>{% endfor %}"
    with pytest.raises(ValueError, match=r"system: the chat template leaves out messages\[0\]"):
        Conversing(template=silent, system="Be brief.")
    with pytest.raises(ValueError, match="no room in the model's context of 64"):
        Conversing(context=64, system="zqj " * 40)

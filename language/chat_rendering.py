"""Conversations as token ids: rendered by the chat template, read whole, answers marked."""

from __future__ import annotations

import functools
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from language.conversation import Conversation, text_of
from language.text_encoder import TextEncoder

PRIVATE = range(0xF0000, 0xFFFFE)  # characters without a meaning: two mark what users wrote
PROBE = "What is that?"


@dataclass(frozen=True, slots=True)
class Rendering:
    """A conversation as the model reads it.

    Args:
        text: What a `TextEncoder` reads: the template's control tokens stand under its names.
        answers: (begin, end) in `text` of what the assistant writes, ends of turns included.
    """

    text: str
    answers: tuple[tuple[int, int], ...]


class ChatRenderer:
    """Renders conversations by a tokenizer's chat template, and tells answers from prompts.

    Control tokens are those that the template writes. What a conversation itself spells is text,
    except where the template looks for it: `</think>`, by which some templates find the reasoning
    in an answer.

    Args:
        tokenizer: A fast tokenizer with the chat template in use.
        templates: Further templates whose control tokens are no text, such as the one replaced.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, templates: Iterable[str] = ()) -> None:
        self.tokenizer = tokenizer
        self.encoder = TextEncoder(tokenizer, templates)

    def render(self, conversation: Conversation) -> list[Rendering]:
        """Return the texts from which every answer is learned, once each.

        That is one text, unless the template renders a turn in another way once others have
        followed: what is asked then, and was said before, is another text, with its own answer.

        Raises:
            ValueError: The template refuses the conversation, leaves something of it out, or writes
                prompts that are no beginning of the answered conversation.
        """
        messages, where, tools = conversation.messages, conversation.where, conversation.tools
        template = self.tokenizer.get_chat_template(tools=tools)
        for field, used in (
            ("tools", tools is not None),
            ("tool_calls", any("tool_calls" in message for message in messages)),
        ):
            if used and field not in template:
                raise ValueError(f"{where}: the chat template takes no {field}")
        renderings: list[Rendering] = []
        text = ""
        answers: tuple[tuple[int, int], ...] = ()
        if messages[0]["role"] == "assistant":
            raise ValueError(f"{where}: the conversation begins with an answer, to nothing")
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = self._text(messages[:number], tools, where, prompt=True)
            answered = self._text(messages[: number + 1], tools, where)
            # Some templates let a generation begin with what they leave out of answers: <think>.
            begin = len(os.path.commonprefix((prompt, answered)))  # noqa: RUF071 - of characters
            asked = ""
            if begin < len(prompt):
                asked = self._text(messages[:number], tools, where)
            if begin < len(asked) or not prompt.startswith(asked):
                raise ValueError(
                    f"{where}: the chat template renders the beginning of a conversation otherwise "
                    "than the whole, so that answers cannot be told from prompts; choose "
                    "datamodule.chat_template=default or a Jinja file"
                )
            if begin == len(answered):
                raise ValueError(f"{where}: the chat template leaves out messages[{number}]")
            if not answered.startswith(text):
                renderings.append(Rendering(text, answers))
                answers = ()
            text, answers = answered, (*answers, (begin, len(answered)))
        self.refuse_omissions(messages, where, tools, text)
        return [*renderings, Rendering(text, answers)]

    def prompt(self, messages: Sequence[Mapping[str, Any]], where: str) -> list[int]:
        """Return the token ids that an answer to messages goes on from.

        Args:
            messages: The last of them is not the assistant's.
            where: What they are, for an error.

        Raises:
            ValueError: The template refuses them.
        """
        text = self._text(messages, None, where, prompt=True)
        (ids,) = self.encoder.encode([text])
        return [int(token) for token in ids]

    def ends(self) -> set[int]:
        """Return the control token that the template writes behind an answer, if it writes one."""
        said = [{"role": "user", "content": PROBE}, {"role": "assistant", "content": PROBE}]
        try:
            text = self._text(said, None, "a conversation")
        except ValueError:  # a template of other roles
            return set()
        (ids,) = self.encoder.encode([text.rpartition(PROBE)[2]])
        added = self.tokenizer.added_tokens_decoder.items()
        controls = {number for number, token in added if token.content in self.encoder.names}
        return set([int(token) for token in ids if token in controls][:1])

    def encode(
        self, renderings: Sequence[Rendering]
    ) -> list[tuple[NDArray[np.int64], NDArray[np.bool_]]]:
        """Return token ids, and which of them belong to answers: all with a character of one."""
        encoded = self.encoder.encode_with_offsets([rendering.text for rendering in renderings])
        found = []
        for rendering, (ids, offsets) in zip(renderings, encoded, strict=True):
            begins, ends = offsets.reshape(-1, 2).T
            marks = np.zeros(len(ids), dtype=bool)
            for begin, end in rendering.answers:
                marks |= (np.maximum(ends, begins + 1) > begin) & (begins < end)
            found.append((ids, marks))
        return found

    # --- what a template takes -------------------------------------------------------------------

    @functools.cached_property
    def _takes(self) -> tuple[bool, bool]:
        """Whether the template takes contents as text, and as a list of parts."""
        found = []
        for content in (PROBE, [{"type": "text", "text": PROBE}]):
            try:
                text = self._apply([{"role": "user", "content": content}], None)
            except ValueError:
                text = ""
            found.append(PROBE in text and not re.search(r"""['"]type['"]""", text))
        return found[0] or not found[1], found[1]

    def _in_form(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Give a message's content a form that the template takes: its own if possible."""
        takes_text, takes_parts = self._takes
        content = message.get("content")
        if isinstance(content, list) and not takes_parts:
            content = text_of(message)
        elif isinstance(content, str) and not takes_text:
            content = [{"type": "text", "text": content}]
        return {**message, "content": content}

    def refuse_omissions(
        self,
        messages: Sequence[Mapping[str, Any]],
        where: str,
        tools: list[Any] | None = None,
        text: str | None = None,
    ) -> None:
        """Refuse messages of which the template passes over one in silence, say a system prompt.

        Args:
            messages: The messages.
            where: What they are, for an error.
            tools: Functions that the assistant may call.
            text: What the template makes of them, if that is known.

        Raises:
            ValueError: It does, or it refuses them.
        """
        text = self._text(messages, tools, where) if text is None else text
        for number, message in enumerate(messages):
            said = text_of(message).strip()
            # Every template takes a user; an omission of others shows if they say another thing.
            is_user = message["role"] == "user"
            if message["role"] == "assistant" or not said or (is_user and said in text):
                continue
            other = {**message, "content": PROBE + said}
            others = [*messages[:number], other, *messages[number + 1 :]]
            if self._text(others, tools, where) == text:
                raise ValueError(
                    f"{where}: the chat template leaves out messages[{number}], whose role is "
                    f"{message['role']}"
                )

    # --- whose control token it is ---------------------------------------------------------------

    def _text(
        self, messages: Sequence[Mapping[str, Any]], tools: Any, where: str, prompt: bool = False
    ) -> str:
        """Render messages for the encoder."""
        formed = [self._in_form(message) for message in messages]
        try:
            plain = self._apply(formed, tools, prompt)
        except ValueError as error:
            raise ValueError(f"{where}: the chat template refuses it: {error}") from error
        given: list[Any] = [*formed, tools]
        spelled = [
            (place, token)
            for place, value in enumerate(given)
            for token in dict.fromkeys(self.encoder.pattern.findall("\0".join(_strings(value))))
        ]
        if not spelled:
            return self.encoder.pattern.sub(lambda match: self.encoder.names[match[0]], plain)
        used = {*plain, *itertools.chain.from_iterable(_strings(given))}
        free = (mark for mark in map(chr, PRIVATE) if mark not in used)
        marks = next(free), next(free)

        def marked(chosen: list[tuple[int, str]]) -> str | None:
            """Render with marks around what users spelled; `None` where that changes the rest."""
            tokens: list[set[str]] = [set() for _ in given]
            for place, token in chosen:
                tokens[place].add(token)
            inputs = [
                _mapped(value, functools.partial(self._mark, own, marks))
                for value, own in zip(given, tokens, strict=True)
            ]
            try:
                text = self._apply(inputs[:-1], inputs[-1], prompt)
            except ValueError:
                return None
            return text if text.replace(marks[0], "").replace(marks[1], "") == plain else None

        text = marked(spelled)
        if text is None:  # the template looks for some of them
            chosen: list[tuple[int, str]] = []
            for one in spelled:
                if marked([*chosen, one]) is not None:
                    chosen.append(one)
            text = marked(chosen)
        assert text is not None
        begin, end = marks
        pattern = self.encoder.pattern.pattern
        return re.sub(
            f"{begin}({pattern}){end}|({pattern})|[{begin}{end}]",
            lambda match: match[1] or self.encoder.names.get(match[2], ""),
            text,
        )

    def _mark(self, tokens: set[str], marks: tuple[str, str], text: str) -> str:
        return self.encoder.pattern.sub(
            lambda match: match[0].join(marks) if match[0] in tokens else match[0], text
        )

    def _apply(self, messages: list[dict[str, Any]], tools: Any, prompt: bool = False) -> str:
        try:
            text = self.tokenizer.apply_chat_template(
                messages, tools, tokenize=False, add_generation_prompt=prompt
            )
        except Exception as error:
            raise ValueError(str(error)) from error
        assert isinstance(text, str)
        return text


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """Change every text in JSON data, keys included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(key): _mapped(inner, change) for key, inner in value.items()}
    if isinstance(value, list):
        return [_mapped(inner, change) for inner in value]
    return value


def _strings(value: Any) -> Iterator[str]:
    """Every text in JSON data, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        inner = value if isinstance(value, list) else [*value.keys(), *value.values()]
        yield from itertools.chain.from_iterable(map(_strings, inner))

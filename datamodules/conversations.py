"""Where instruction data comes from: conversations with an assistant, checked row by row.

A source is a stream that reads the same each time, as in `text_sources`. A row holds a prompt and
its answer (GSM8K: `question`, `answer`) or a list of chat `messages`; both become messages. The
tokenizer's chat template turns them into text, of which only what the assistant says is trained.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datamodules.text_sources import (
    Piece,
    check_datasets,
    check_fraction,
    check_numbers,
    check_tokenizer,
    choices,
    digest_file,
    falls_below,
    find_files,
    identity_of,
    jsonl_rows,
    load_rows,
    parquet_rows,
)
from datamodules.text_sources import check as check_text

if TYPE_CHECKING:  # settings are checked before transformers is imported
    from transformers import PreTrainedTokenizerFast

Row = tuple[str, Any]
"""Where a row stands, for messages to the user, and the row."""

FILE_SOURCES = ("jsonl", "parquet")
SOURCES = ("arithmetic", *FILE_SOURCES, "hub")
ROLES = ("system", "user", "assistant")

DEFAULT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
"""Ours, for tokenizers without a template; it needs no special token but the end of text."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages, the last of which is the assistant's.

    Args:
        messages: (role, content) in their order.
        part: `train`, `val` or `test`.
        where: File and line, for messages to the user.
    """

    messages: tuple[tuple[str, str], ...]
    part: str
    where: str


@dataclass(frozen=True)
class ConversationSource:
    """Conversations that can be read again and again.

    Args:
        identity: What they depend on, as JSON data.
        read: Reads everything from the start, in the same order each time.
    """

    identity: dict[str, Any]
    read: Callable[[], Iterator[Conversation]]
    size: int | None = None

    def pieces(self) -> Iterator[Piece]:
        """The contents as text, from which a tokenizer can be trained."""
        for conversation in self.read():
            for _, content in conversation.messages:
                yield Piece(content, ends_document=True, held_out=conversation.part != "train")


def open_conversations(settings: Mapping[str, Any]) -> ConversationSource:
    """Find the conversations that the settings name.

    Without validation files a fraction of the training rows is held out, by a hash of the content.
    A test part is read from `test_files` or a data set's `test_split` only, and never trained on.

    Args:
        settings: The datamodule's arguments, as `check` takes them.

    Raises:
        ValueError: A file is missing or empty, or a data set cannot be reached; while reading, a
            row that is not a conversation: names file, line and field.
    """
    kind, fraction = settings["source"], settings["val_fraction"]
    rows: list[tuple[str, Callable[[], Iterator[Row]]]] = []
    identity: dict[str, Any] = {}
    if kind == "arithmetic":
        rows.append(("train", partial(_word_problems, settings["count"])))
        identity["count"] = settings["count"]
    elif kind == "hub":
        nodes = {name: node for name, node in settings["datasets"].items() if node is not None}
        for name, node in nodes.items():
            identity[name] = identity_of(node)
            splits = {"train": node.get("split") or "train", "test": node.get("test_split")}
            plain = {key: value for key, value in node.items() if key != "test_split"}
            for part, split in splits.items():
                if split is not None:
                    one = {**plain, "split": split}
                    rows.append((part, partial(_hub_rows, name, one, settings["streaming"])))
    else:
        files = {
            part: find_files(settings[key], key)
            for part, key in (("test", "test_files"), ("val", "val_files"), ("train", "files"))
        }
        held_out = {*files["test"], *files["val"]}
        files["train"] = [file for file in files["train"] if file not in held_out]
        example = f'{{"{settings["prompt_column"]}": "...", "{settings["answer_column"]}": "..."}}'
        if settings["messages_column"] is not None:
            example = f'{{"{settings["messages_column"]}": [{{"role": "user", "content": "..."}}]}}'
        read_file = partial(jsonl_rows, example=example) if kind == "jsonl" else parquet_rows
        for part, paths in files.items():
            identity[part] = [digest_file(file) for file in paths]
            rows += [(part, partial(read_file, path)) for path in paths]
        if files["val"]:
            fraction = None
    columns = {key: settings[key] for key in ("prompt_column", "answer_column", "messages_column")}

    def read() -> Iterator[Conversation]:
        for part, open_rows in rows:
            for where, record in open_rows():
                messages = _messages(record, where, columns)
                side = part
                if part == "train" and fraction is not None:
                    text = "\0".join(content for _, content in messages)
                    side = "val" if falls_below(text, fraction) else "train"
                yield Conversation(messages, side, where)

    identity = {"source": kind, **identity, **columns, "val_fraction": fraction}
    return ConversationSource(identity, read)


def _hub_rows(name: str, node: Mapping[str, Any], streaming: bool) -> Iterator[Row]:
    for number, row in enumerate(load_rows(name, node, streaming)):
        yield f"datamodule.datasets.{name}, {node['split']}, row {number}", row


def _messages(
    record: object, where: str, columns: Mapping[str, str | None]
) -> tuple[tuple[str, str], ...]:
    """Check one row; `ValueError` says which field of which line is wrong."""
    if not isinstance(record, Mapping):
        raise ValueError(f"{where} is not an object but {repr(record)[:40]}")

    def text(holder: Mapping[str, Any], field: str, key: str | None = None) -> str:
        value = holder.get(field)
        if not isinstance(value, str) or not value.strip():
            what = "is empty" if isinstance(value, str) else f"has no text (it is {value!r:.40})"
            if field not in holder:
                what = f"is missing (there are: {', '.join(map(str, holder))})"
            mend = f"; set datamodule.{key}, or mend the row" if key else "; mend the row"
            raise ValueError(f"{where}: {field!r} {what}{mend}")
        return value

    column = columns["messages_column"]
    if column is None:
        prompt = text(record, str(columns["prompt_column"]), "prompt_column")
        answer = text(record, str(columns["answer_column"]), "answer_column")
        return (("user", prompt), ("assistant", answer))
    given = record.get(column)
    if not isinstance(given, list) or not given:
        raise ValueError(
            f"{where}: {column!r} is not a list of messages (there are: "
            f"{', '.join(map(str, record))}); set datamodule.messages_column"
        )
    messages = []
    for index, message in enumerate(given):
        if not isinstance(message, Mapping) or message.get("role") not in ROLES:
            raise ValueError(
                f"{where}: {column}[{index}] needs a role ({', '.join(ROLES)}) and a content"
            )
        content = message.get("content")
        if not isinstance(content, str) or not content.strip():
            raise ValueError(f"{where}: {column}[{index}].content is empty or no text")
        messages.append((str(message["role"]), content))
    if messages[-1][0] != "assistant":
        raise ValueError(f"{where}: {column} ends with {messages[-1][0]}, not with an answer")
    return tuple(messages)


# --- rendering -----------------------------------------------------------------------------------


def chat_template(named: str | None) -> str | None:
    """The template that `datamodule.chat_template` names; `None`: the tokenizer's own.

    Args:
        named: `default`, the path of a Jinja file, or `None`.

    Raises:
        ValueError: There is no such file.
    """
    if named is None or named == "default":
        return named and DEFAULT_TEMPLATE
    path = Path(named).expanduser()
    if not path.is_file():
        raise ValueError(
            f"datamodule.chat_template={named}: no such file; give default, a Jinja file, or null "
            "for the tokenizer's own"
        )
    return path.read_text(encoding="utf-8")


def segments(
    conversation: Conversation, tokenizer: PreTrainedTokenizerFast
) -> list[tuple[str, bool]]:
    """A conversation as text, in segments: what is read, and (`True`) what the assistant says.

    An assistant's segment begins where a generation would, and holds the end of its turn, so that
    the tokens before it are the very ones that a prompt is made of.

    Raises:
        ValueError: The template refuses the conversation, or renders a beginning of it differently
            from the whole.
    """
    messages = [{"role": role, "content": content} for role, content in conversation.messages]

    def render(count: int, prompt: bool) -> str:
        try:
            text = tokenizer.apply_chat_template(
                messages[:count], tokenize=False, add_generation_prompt=prompt
            )
        except Exception as error:
            raise ValueError(
                f"{conversation.where}: the chat template refuses it: {error}"
            ) from error
        assert isinstance(text, str)
        return text

    found: list[tuple[str, bool]] = []
    done = ""
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt, answered = render(index, True), render(index + 1, False)
        if not (prompt.startswith(done) and answered.startswith(prompt)):
            raise ValueError(
                f"{conversation.where}: the chat template renders the beginning of a conversation "
                "otherwise than the whole, so that answers cannot be told from prompts; choose "
                "datamodule.chat_template=default or a Jinja file"
            )
        found += [(prompt[len(done) :], False), (answered[len(prompt) :], True)]
        done = answered
    return found


# --- generated word problems ---------------------------------------------------------------------

_NAMES = (
    "Ada",
    "Ben",
    "Carla",
    "Dan",
    "Emma",
    "Finn",
    "Grace",
    "Hugo",
    "Iris",
    "Jack",
    "Kate",
    "Leo",
)
_THINGS = ("apples", "books", "coins", "eggs", "flowers", "pencils", "shells", "stamps", "cards")


def _word_problems(count: int) -> Iterator[Row]:
    """Arithmetic in one or two steps, written as GSM8K writes its answers; no network needed."""
    draw = random.Random(0)
    for number in range(count):
        name, other = draw.sample(_NAMES, 2)
        thing = draw.choice(_THINGS)
        a, b, c = draw.randint(2, 20), draw.randint(2, 20), draw.randint(2, 9)
        kind = draw.randrange(4)
        if kind == 0:
            question = f"{name} has {a} {thing} and finds {b} more. How many {thing} are there now?"
            steps, result = [f"{name} has {a} + {b} = {a + b} {thing}."], a + b
        elif kind == 1:
            question = (
                f"{name} has {a + b} {thing} and gives {b} of them to {other}. "
                f"How many {thing} does {name} keep?"
            )
            steps, result = [f"{name} keeps {a + b} - {b} = {a} {thing}."], a
        elif kind == 2:
            question = f"{name} fills {c} boxes with {b} {thing} each. How many {thing} is that?"
            steps, result = [f"That is {c} * {b} = {c * b} {thing}."], c * b
        else:
            question = (
                f"{name} has {a} {thing}. {other} has {c} times as many. "
                f"How many {thing} do they have together?"
            )
            steps = [
                f"{other} has {c} * {a} = {c * a} {thing}.",
                f"Together they have {a} + {c * a} = {a + c * a} {thing}.",
            ]
            result = a + c * a
        answer = "\n".join([*steps, f"#### {result}"])
        yield f"problem {number}", {"question": question, "answer": answer}


# --- settings ----------------------------------------------------------------------------------


def check(settings: Mapping[str, Any], dimensions: Mapping[str, int] | None = None) -> None:
    """Refuse settings that cannot work, before anything heavy is imported or computed.

    Args:
        settings: The datamodule's config node or arguments; absent ones keep their defaults.
        dimensions: Not used: the sizes of a model, which other checks take.

    Raises:
        ValueError: Names the full config key, what is wrong with it and what is allowed.
    """
    old_domain = settings.get("old_domain")
    if old_domain is not None:
        check_text({"old_domain": old_domain})
    check_numbers(settings, {"count": 1})
    source = settings.get("source", "arithmetic")
    if source not in SOURCES:
        raise ValueError(f"datamodule.source={source}: {choices(source, SOURCES)}")
    given = {}
    for key in ("files", "val_files", "test_files"):
        if settings.get(key) and source not in FILE_SOURCES:
            raise ValueError(
                f"datamodule.{key} is not read by source={source}; set datamodule.source=jsonl or "
                "parquet"
            )
        given[key] = set(find_files(settings.get(key), key))
    if source in FILE_SOURCES and not given["files"] - given["val_files"] - given["test_files"]:
        raise ValueError(
            f"datamodule.files: source={source} needs training files that are neither validation "
            "nor test files; give a path or a pattern such as datamodule.files=data/*.jsonl"
        )
    check_fraction(settings, bool(given["val_files"]))
    if settings.get("over_long", "skip") not in ("skip", "refuse"):
        raise ValueError(f"datamodule.over_long={settings['over_long']!r}: must be skip or refuse")
    check_datasets(source, settings.get("datasets"), ("test_split",))
    check_tokenizer(settings)
    chat_template(settings.get("chat_template"))

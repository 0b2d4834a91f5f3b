"""Where instruction data comes from: conversations with an assistant, checked row by row.

A source is a stream that reads the same each time, as in `text_sources`. A row holds a prompt and
its answer (GSM8K: `question`, `answer`) or a list of chat `messages`; both become messages. The
tokenizer's chat template turns them into text, of which only what the assistant says is trained.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from datamodules.files import digest_file, find_parts, read_rows, read_text, refuse_surrogates
from datamodules.generated.problems import word_problems
from datamodules.hub import datasets_of, identity_of, load_rows
from datamodules.text_sources import Piece, check_sources, falls_below
from language.conversation import Conversation, text_of

Row = tuple[str, Any]
"""Where a row stands, for messages to the user, and the row."""

FILE_SOURCES = ("jsonl", "parquet")
KEYS = ("test_files", "val_files", "files")  # of files, held-out ones first
Source = Literal["arithmetic", "jsonl", "parquet", "hub"]
ROLES = ("system", "developer", "user", "assistant", "tool", "function")
SHAREGPT_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "function_response": "tool",
    "observation": "tool",
}

DEFAULT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
"""Ours, for tokenizers without a template; it needs no special token but the end of text."""


@dataclass(frozen=True)
class ConversationSource:
    """Conversations that can be read again and again.

    Args:
        identity: What they depend on, as JSON data.
        read: Reads everything from the start, in the same order each time; calls what it is given
            with an error for each row that is no conversation, and goes on if that returns.
    """

    identity: dict[str, Any]
    read: Callable[[Callable[[ValueError], object]], Iterator[Conversation]]
    size: int | None = None

    def pieces(self) -> Iterator[Piece]:
        """The contents as text, from which a tokenizer can be trained."""
        for conversation in self.read(lambda error: None):
            for message in conversation.messages:
                if text := text_of(message):
                    yield Piece(text, ends_document=True, held_out=conversation.part != "train")


def open_conversations(settings: Mapping[str, Any]) -> ConversationSource:
    """Find the conversations that the settings name.

    Without validation files a fraction of the training rows is held out, by a hash of the content.
    A test part is read from `test_files` or a data set's `test_split` only, and never trained on.

    Args:
        settings: The datamodule's arguments, as `check` takes them.

    Raises:
        ValueError: A file is missing or empty, or a data set cannot be reached; while reading, a
            file that cannot be read.
    """
    kind, fraction = settings["source"], settings["val_fraction"]
    rows: list[tuple[str, Callable[[], Iterator[Row]]]] = []
    identity: dict[str, Any] = {}
    if kind == "arithmetic":
        rows.append(("train", partial(word_problems, settings["count"])))
        identity["count"] = settings["count"]
    elif kind == "hub":
        for name, node in datasets_of(settings).items():
            identity[name] = identity_of(node)
            splits = {"train": node.get("split") or "train", "test": node.get("test_split")}
            plain = {key: value for key, value in node.items() if key != "test_split"}
            for part, split in splits.items():
                if split is not None:
                    one = {**plain, "split": split}
                    rows.append((part, partial(_hub_rows, name, one, settings["streaming"])))
    else:
        files = find_parts(settings, KEYS)
        fields = [*_names(settings["prompt_column"]), settings["answer_column"]]
        example = json.dumps(dict.fromkeys(fields, "..."))
        if settings["messages_column"] is not None:
            example = f'{{"{settings["messages_column"]}": [{{"role": "user", "content": "..."}}]}}'
        for part, key in (("test", "test_files"), ("val", "val_files"), ("train", "files")):
            identity[part] = [digest_file(file) for file in files[key]]
            for file in files[key]:
                where = f"datamodule.{key}: {file}"
                rows.append((part, partial(read_rows, kind, file, where, example)))
        if files["val_files"]:
            fraction = None
    columns = {key: settings[key] for key in ("prompt_column", "answer_column", "messages_column")}

    def read(refuse: Callable[[ValueError], object]) -> Iterator[Conversation]:
        for part, open_rows in rows:
            for where, record in open_rows():
                try:
                    messages, tools = _messages(record, where, columns)
                except ValueError as error:
                    refuse(error)
                    continue
                side = part
                if part == "train" and fraction is not None:
                    text = "\0".join(map(text_of, messages))
                    side = "val" if falls_below(text, fraction) else "train"
                yield Conversation(messages, side, where, tools)

    identity = {"source": kind, **identity, **columns, "val_fraction": fraction}
    return ConversationSource(identity, read)


def _hub_rows(name: str, node: Mapping[str, Any], streaming: bool) -> Iterator[Row]:
    for number, row in enumerate(load_rows(name, node, streaming)):
        yield f"datamodule.datasets.{name}, {node['split']}, row {number}", row


def _messages(
    record: object, where: str, columns: Mapping[str, Any]
) -> tuple[tuple[dict[str, Any], ...], list[Any] | None]:
    """Check one row: messages and tools, or a `ValueError` that says which field is wrong."""
    if isinstance(record, ValueError):
        raise record
    if not isinstance(record, Mapping):
        raise ValueError(f"{where} is not an object but {repr(record)[:40]}")
    column = columns["messages_column"]
    if column is None:
        return tuple(
            {"role": role, "content": _column(record, columns[key], where, key)}
            for role, key in (("user", "prompt_column"), ("assistant", "answer_column"))
        ), None
    given = record.get(column)
    if not isinstance(given, list) or not given:
        raise ValueError(
            f"{where}: {column!r} is not a list of messages (there are: "
            f"{', '.join(map(str, record))}); set datamodule.messages_column"
        )
    messages = tuple(
        _message(message, f"{where}: {column}[{index}]") for index, message in enumerate(given)
    )
    if messages[-1]["role"] != "assistant":
        raise ValueError(f"{where}: {column} ends with {messages[-1]['role']}, not with an answer")
    tools = record.get("tools") or None
    if isinstance(tools, str):  # as data sets of one schema for all rows have to keep them
        try:
            tools = json.loads(tools) or None
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: 'tools' is not JSON: {error}") from error
    if tools is not None and not isinstance(tools, list):
        raise ValueError(f"{where}: 'tools' is not a list of JSON schemas")
    return messages, tools


def _names(fields: str | list[str]) -> list[str]:
    return [fields] if isinstance(fields, str) else fields


def _column(record: Mapping[str, Any], fields: str | list[str], where: str, key: str) -> Any:
    """Check what stands in a field, or in several, of which empty ones are passed over."""
    names = _names(fields)
    for field in names:
        if field not in record:
            lists = (name for name, value in record.items() if isinstance(value, list))
            messages = next((f" or datamodule.messages_column={name}" for name in lists), "")
            raise ValueError(
                f"{where}: {field!r} is missing (there are: {', '.join(map(str, record))}); set "
                f"datamodule.{key}{messages}"
            )
    said = [field for field in names if str(record[field] or "").strip()] or names[:1]
    found = [_content(record[field], f"{where}: {field!r}") for field in said]
    return "\n\n".join(text_of({"content": each}) for each in found) if found[1:] else found[0]


def _message(message: object, where: str) -> dict[str, Any]:
    if isinstance(message, Mapping) and "from" in message and "role" not in message:  # ShareGPT
        role = SHAREGPT_ROLES.get(str(message["from"]), message["from"])
        message = {"role": role, "content": message.get("value")}
    if not isinstance(message, Mapping) or message.get("role") not in ROLES:
        raise ValueError(f"{where} needs a role ({', '.join(ROLES)}) and a content")
    said = {key: value for key, value in message.items() if value is not None}
    if not (message["role"] == "assistant" and said.get("tool_calls") and not said.get("content")):
        said["content"] = _content(message.get("content"), f"{where}.content")
    return said


def _content(content: object, where: str) -> Any:
    """Check that a content, text or a list of parts of text, says something that can be encoded."""
    text = content
    if isinstance(content, list):
        for part in content:
            if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
                kind = part.get("type") if isinstance(part, Mapping) else repr(part)
                raise ValueError(f"{where} has a part that is not text but {str(kind)[:40]}")
        text = text_of({"content": content})
    if not isinstance(text, str):
        raise ValueError(f"{where} has no text (it is {content!r:.40})")
    if not text.strip():
        raise ValueError(f"{where} is empty")
    refuse_surrogates(text, where)
    return content


# --- the template --------------------------------------------------------------------------------


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
    return read_text(path, f"datamodule.chat_template={named}")


# --- settings ----------------------------------------------------------------------------------


def check(settings: Mapping[str, Any], dimensions: Mapping[str, int] | None = None) -> None:
    """Refuse settings that cannot work together: see `text_sources.check`."""
    check_sources({"source": "arithmetic", **settings}, FILE_SOURCES, KEYS)
    chat_template(settings.get("chat_template"))

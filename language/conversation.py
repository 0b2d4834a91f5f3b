"""What a conversation is, for readers and renderers; imports nothing heavy."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages, the last of which is the assistant's.

    Args:
        messages: In their order, as chat templates take them: `role`, `content` (text, a list of
            parts, or None beside `tool_calls`), and what else the row says of them.
        part: `train`, `val` or `test`.
        where: File and line, for messages to the user.
        tools: JSON schemas of the functions that the assistant may call; None for none.
    """

    messages: tuple[Mapping[str, Any], ...]
    part: str
    where: str
    tools: list[Any] | None = None


def text_of(message: Mapping[str, Any]) -> str:
    """Return a message's content as text: that of its parts, end to end."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)

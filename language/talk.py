"""A conversation with a language model in a terminal, by the model's own chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from language.chat_rendering import ChatRenderer
from language.generation import Writer, Written
from terminal import ask, literal

COMMANDS = {
    "/clear": "forget the conversation",
    "/help": "these commands",
    "/quit": "leave; so do Ctrl-D and a second Ctrl-C",
}
_LEAVE = "Ctrl-C once more, /quit or Ctrl-D leaves; /help lists the commands."
_STOPS = {
    "length": "Cut after max_new_tokens={}.",
    "context": "Cut: the model's context is full.",
    "interrupted": "Stopped. The conversation goes on.",
}


class Talk:
    """Turns of a user and answers of a model, until the user leaves.

    A conversation that no longer fits the model's context, with as much room as an answer may take,
    loses its oldest turns, more of them at once than it must: the model then reads everything anew.

    Args:
        writer: The model.
        renderer: Renders messages by the template of its training.
        console: Where everything is printed.
        system: What the model is told first; None: what the template says.

    Raises:
        ValueError: The chat template takes no system prompt, or the context has no room for it.
    """

    def __init__(
        self, writer: Writer, renderer: ChatRenderer, console: Console, system: str | None = None
    ) -> None:
        self.writer, self.renderer, self.console = writer, renderer, console
        self._system = [] if system is None else [{"role": "system", "content": system}]
        limit, wanted = writer.context, writer.max_new_tokens
        self._room = None if limit is None else limit - min(wanted, limit // 2)
        self._turns: list[list[dict[str, Any]]] = []
        self.turns, self.first, self.tokens, self.seconds = 0, 0.0, 0, 0.0
        question = [{"role": "user", "content": "?"}]
        renderer.refuse_omissions([*self._system, *question], "system")
        if not self._fits(self._ids(question)):
            raise ValueError(
                f"system: with it a question has no room in the model's context of {limit} tokens"
            )

    def hold(self) -> None:
        """Answer until `/quit`, the end of the input, a second Ctrl-C, or a closed output."""
        try:
            self._print(" ".join(COMMANDS))
            while (line := ask(self.console, _LEAVE)) is not None and line != "/quit":
                if line:
                    self._take(line)
        except BrokenPipeError:
            return

    def _take(self, line: str) -> None:
        if line == "/clear":
            self._turns.clear()
            self._print("The conversation is forgotten.")
        elif line == "/help":
            for name, what in COMMANDS.items():
                self._print(f"{name:8}{what}")
        elif line.startswith("/") and len(line.split()) == 1:
            self._print(f"There is no command {line}. /help lists them.")
        else:
            self._answer({"role": "user", "content": line})

    def _answer(self, question: dict[str, Any]) -> None:
        try:
            ids = self._remembered(question)
        except ValueError as error:
            self._print(f"No answer: {error}.")
            return
        written = self.writer.write(ids, self._show)
        self.console.print()
        if written.stop in _STOPS:
            self._print(_STOPS[written.stop].format(self.writer.max_new_tokens))
        elif not written.text.strip():
            self._print("The model says nothing.")
        self._turns.append([question, {"role": "assistant", "content": written.text.strip()}])
        self._count(written)

    def _remembered(self, question: dict[str, Any]) -> list[int]:
        """Return what the model reads, after forgetting turns for which there is no room.

        Raises:
            ValueError: The question alone has no room, or the template refuses it.
        """
        ids = self._ids([question])
        if not self._fits(ids):
            raise ValueError(f"that has {len(ids)} tokens, and there is room for {self._room}")
        ids = self._ids([question], self._turns)
        if self._fits(ids):
            return ids
        before = len(self._turns)
        while self._turns and not self._fits(ids, 2):
            del self._turns[0]
            ids = self._ids([question], self._turns)
        gone = before - len(self._turns)
        self._print(
            f"The model's context of {self.writer.context} tokens is full: the oldest "
            f"{'turn is' if gone == 1 else f'{gone} turns are'} forgotten."
        )
        return ids

    def _fits(self, ids: Sequence[int], times: int = 1) -> bool:
        return self._room is None or times * len(ids) <= self._room

    def _ids(
        self, question: list[dict[str, Any]], turns: Sequence[list[dict[str, Any]]] = ()
    ) -> list[int]:
        said = [message for turn in turns for message in turn]
        return self.renderer.prompt([*self._system, *said, *question], "the conversation")

    def _count(self, written: Written) -> None:
        self.turns += 1
        self.first = max(self.first, written.first)
        self.tokens += len(written.ids)
        self.seconds += written.seconds

    def _show(self, piece: str) -> None:
        self.console.print(literal(piece), end="", soft_wrap=True)

    def _print(self, words: str) -> None:
        self.console.print(Text.assemble((literal(words).plain, "dim")), soft_wrap=True)

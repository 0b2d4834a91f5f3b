"""A terminal's two sides: what people and files wrote is shown as it is, what is typed is read.

Rich reads brackets as markup and hands terminal escapes on; both can come from a cell, a question
or a file's name.
"""

import unicodedata

from rich.console import Console
from rich.text import Text

# Written as escapes: control characters, lone surrogates, separators of lines and paragraphs (by
# their Unicode classes), and the marks that turn the direction of text around.
_OBEYED, _HARMLESS = frozenset(("Cc", "Cs", "Zl", "Zp")), "\n\t"
_DIRECTIONS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def literal(value: object, characters: int | None = None, lines: int | None = None) -> Text:
    """Return a value as text that a terminal shows as it is: no markup, no control characters.

    Args:
        value: Anything; None is NULL and bytes are hexadecimal, as SQL writes them.
        characters: How many are shown at most; None: all. What is cut is marked with its size.
        lines: Likewise.
    """
    if value is None:
        return Text("NULL", "dim")
    if isinstance(value, bytes | bytearray | memoryview):
        raw = bytes(value)
        shown = raw if characters is None else raw[: characters // 2]
        text, size, unit = f"x'{shown.hex()}'", len(raw), "bytes"
        whole = len(shown) == size
    else:
        text, unit = str(value), "characters"
        size = len(text)
        kept = text[:characters]
        kept = kept if lines is None else "\n".join(kept.split("\n", lines)[:lines])
        whole, text = kept == text, "".join(map(_visible, kept))
    found = Text(text)
    return found if whole else found.append(f" ... ({size:,} {unit})", "dim")


def _visible(character: str) -> str:
    obeyed = unicodedata.category(character) in _OBEYED or character in _DIRECTIONS
    if obeyed and character not in _HARMLESS:
        return character.encode("unicode_escape").decode()
    return character


def ask(console: Console, leave: str) -> str | None:
    """Read a line that is typed, or that comes through a pipe; None where there are no more.

    Args:
        console: Where the prompt is shown.
        leave: How to leave, said after a first Ctrl-C; a second one is an end.

    Returns:
        The line, without space around it. Before None it was said that the conversation ends.

    Raises:
        BrokenPipeError: Nobody reads what is printed.
    """
    pressed = False
    while True:
        try:
            return console.input("[bold]> [/bold]").strip()
        except KeyboardInterrupt:
            if pressed:
                break
            pressed = True
            console.print(f"\n{leave}", markup=False, highlight=False, soft_wrap=True)
        except UnicodeDecodeError:
            console.print("That is not text in this terminal's encoding.", highlight=False)
        except BrokenPipeError:
            raise
        except (EOFError, OSError, ValueError, RuntimeError):
            break  # the input has ended, was closed, or is no more
    console.print("\nThe conversation ends.", highlight=False)
    return None

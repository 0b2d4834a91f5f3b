"""A document in three languages: Markdown, LaTeX, and one HTML file that needs nothing else.

Each has its template, page.md, page.tex or page.html. Names of runs and metrics are other people's
text: each language escapes all of it, and characters that are obeyed instead of shown are written
as escapes.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from terminal import literal


@dataclass(frozen=True)
class Link:
    """Words that lead to a file or folder, given relative to the document's folder."""

    words: str
    target: str


@dataclass(frozen=True)
class Code:
    """A command."""

    words: str


Cell = str | Link | Code


@dataclass(frozen=True)
class Heading:
    """The title of what follows."""

    words: str


@dataclass(frozen=True)
class Lines:
    """Sentences, each a line of its own."""

    lines: Sequence[str]


@dataclass(frozen=True)
class Table:
    """Headings and rows; a row of a single cell is the heading of those below it.

    Args:
        headings: Of the columns; the first is set to the left.
        rows: Likewise long, or of one cell.
        note: A sentence below the table.
        left: The columns beside the first that are set to the left.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    left: Sequence[int] = ()

    def is_left(self, column: int) -> bool:
        """Whether a column is set to the left."""
        return column == 0 or column in self.left

    @property
    def ends_with_code(self) -> bool:
        """Whether commands, which are long, stand in the last column."""
        return any(isinstance(row[-1], Code) for row in self.rows if len(row) > 1)


@dataclass(frozen=True)
class Picture:
    """A figure: NAME.svg, .png and .pdf in a folder `figures`, NAME-narrow.svg for a phone."""

    name: str
    caption: str


Block = Heading | Lines | Table | Picture


def markdown(title: str, blocks: Sequence[Block]) -> str:
    """Return a document in Markdown."""
    return _render("page.md", title, blocks, text=_in_markdown, code=_code_in_markdown)


def latex(title: str, blocks: Sequence[Block]) -> str:
    """Return a document in LaTeX; its tables can be copied into a paper that loads booktabs."""
    return _render("page.tex", title, blocks, text=_in_latex)


def webpage(title: str, blocks: Sequence[Block], folder: Path) -> str:
    """Return a document as one HTML file: styles and figures are in it, nothing is fetched.

    `folder` is the document's own, in which the figures are.
    """
    svg = partial(_svg, folder / "figures")
    return _render("page.html", title, blocks, text=_in_html, code=_code_in_html, svg=svg)


def _render(
    template: str, title: str, blocks: Sequence[Block], **filters: Callable[[str], str]
) -> str:
    """Fill a template, in which `<<` and `<%` begin what Jinja reads: LaTeX is full of braces."""
    environment = Environment(
        block_start_string="<%",
        block_end_string="%>",
        variable_start_string="<<",
        variable_end_string=">>",
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
        loader=FileSystemLoader(Path(__file__).parent),
    )
    environment.filters.update(filters, url=quote)
    for kind in (Link, Code, Heading, Lines, Picture):
        environment.tests[kind.__name__.lower()] = kind.__instancecheck__
    return environment.get_template(template).render(title=title, blocks=blocks)


# --- other people's text, escaped ---


def plain(words: str) -> str:
    """Return text in which no character is obeyed, on one line."""
    return re.sub(r"\s+", " ", literal(words).plain)


def _in_markdown(words: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>#|~$&])", r"\\\1", plain(words))


def _code_in_markdown(words: str) -> str:
    words = plain(words)
    fence = "`" * (max((len(run) for run in re.findall("`+", words)), default=0) + 1)
    space = " " if "`" in words else ""
    return f"{fence}{space}{words}{space}{fence}".replace("|", "\\|")


_TEX: dict[str, str | int | None] = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    "'": r"\textquotesingle{}",
    '"': r"\textquotedbl{}",
    "-": r"-{}",  # two of them are no dash
    "\u2212": r"$-$",
    "\u00b1": r"$\pm$",
    **{c: f"\\{c}" for c in "{}$&#_%"},
}


def _in_latex(words: str) -> str:
    return plain(words).translate(str.maketrans(_TEX))


def _in_html(words: str) -> str:
    """Return text in which a number stays on one line with its unit."""
    return re.sub(r"(?<=[\d\u00b1]) (?![(\[\u00b1])", "&nbsp;", _code_in_html(words))


def _code_in_html(words: str) -> str:
    return html.escape(plain(words))


def _svg(folder: Path, name: str) -> str:
    """Return an SVG file as an element that the page may shrink, its idle ids left out.

    Its letters of 9 pt are about as large as the page's. Matplotlib numbers every group; several
    figures in one page would share those names.
    """
    text = (folder / f"{name}.svg").read_text(encoding="utf-8")
    width, widest = r'(<svg[^>]*?) width="([\d.]+)pt"', r'\1 style="max-width:calc(1.42*\2pt)"'
    text = re.sub(width, widest, text[text.index("<svg") :], count=1)
    used = set(re.findall(r"#([\w.-]+)", text))
    return re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", text)

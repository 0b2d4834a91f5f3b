"""A document in three languages: Markdown, LaTeX, and one HTML file that needs nothing else.

Names of runs and metrics are other people's text: each language escapes all of it, and characters
that are obeyed instead of shown are written as escapes.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from urllib.parse import quote

from terminal import literal

PAGE, PAPER = (Path(__file__).with_name(name) for name in ("page.html", "page.tex"))


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


@dataclass(frozen=True)
class Picture:
    """A figure: NAME.svg, .png and .pdf in a folder `figures`, NAME-narrow.svg for a phone."""

    name: str
    caption: str


Block = Heading | Lines | Table | Picture


def plain(words: str) -> str:
    """Return text in which no character is obeyed, on one line."""
    return re.sub(r"\s+", " ", literal(words).plain)


# --- Markdown


def markdown(title: str, blocks: Sequence[Block]) -> str:
    """Return a document in Markdown."""
    return "\n\n".join([f"# {_md(title)}", *map(_md_block, blocks)]) + "\n"


def _md(words: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>#|~$&])", r"\\\1", plain(words))


def _md_cell(cell: Cell) -> str:
    if isinstance(cell, Link):
        return f"[{_md(cell.words)}]({quote(cell.target)})"
    if isinstance(cell, Code):
        words = plain(cell.words)
        fence = "`" * (max((len(run) for run in re.findall("`+", words)), default=0) + 1)
        space = " " if "`" in words else ""
        return f"{fence}{space}{words}{space}{fence}".replace("|", "\\|") if words else ""
    return _md(cell)


def _md_block(block: Block) -> str:
    if isinstance(block, Heading):
        return f"## {_md(block.words)}"
    if isinstance(block, Lines):
        return "\n".join(f"* {_md(line)}" for line in block.lines)
    if isinstance(block, Picture):
        return f"![{_md(block.caption)}](figures/{quote(block.name)}.svg)\n\n{_md(block.caption)}"
    rule = [":--" if c == 0 or c in block.left else "--:" for c in range(len(block.headings))]
    rows = [[_md(heading) for heading in block.headings], rule]
    for row in block.rows:
        if len(row) == 1:
            rows.append([f"**{_md_cell(row[0])}**", *[""] * (len(block.headings) - 1)])
        else:
            rows.append([_md_cell(cell) for cell in row])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{table}\n\n{_md(block.note)}" if block.note else table


# --- LaTeX

_TEX: dict[str, str | int | None] = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
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
    **{c: f"\\{c}" for c in "$&#_%"},
}


def latex(title: str, blocks: Sequence[Block]) -> str:
    """Return a document in LaTeX; its tables can be copied into a paper that loads booktabs."""
    body = "\n\n".join(map(_tex_block, blocks))
    return Template(PAPER.read_text(encoding="utf-8")).substitute(title=_tex(title), body=body)


def _tex(words: str) -> str:
    return plain(words).translate(str.maketrans(_TEX))


def _tex_cell(cell: Cell) -> str:
    if isinstance(cell, Link):
        target = quote(cell.target).replace("%", r"\%")
        return f"\\href{{run:{target}}}{{{_tex(cell.words)}}}"
    if isinstance(cell, Code):
        return f"\\texttt{{{_tex(cell.words)}}}"
    return _tex(cell)


def _tex_block(block: Block) -> str:
    if isinstance(block, Heading):
        return f"\\section*{{{_tex(block.words)}}}"
    if isinstance(block, Lines):
        return "\n\n".join(_tex(line) for line in block.lines)
    if isinstance(block, Picture):
        return (
            "\\begin{figure}[htbp]\n\\centering\n"
            f"\\includegraphics[width=\\linewidth]{{figures/{block.name}.pdf}}\n"
            f"\\caption{{{_tex(block.caption)}}}\n\\end{{figure}}"
        )
    code = [any(isinstance(row[-1], Code) for row in block.rows if len(row) > 1)]
    count = len(block.headings)
    columns = ["l" if c == 0 or c in block.left else "r" for c in range(count)]
    if code[0]:
        columns[-1] = "p{0.5\\linewidth}"
    lines = [" & ".join(map(_tex, block.headings)) + r" \\", r"\midrule", r"\endhead"]
    for row in block.rows:
        cells = " & ".join(map(_tex_cell, row))
        lines.append(
            f"\\addlinespace\n\\multicolumn{{{count}}}{{l}}{{\\textbf{{{cells}}}}} \\\\"
            if len(row) == 1
            else f"{cells} \\\\"
        )
    table = "\n".join(
        [f"\\begin{{longtable}}{{{''.join(columns)}}}", r"\toprule", *lines, r"\bottomrule"]
    )
    note = f"\n\n{_tex(block.note)}" if block.note else ""
    return f"{table}\n\\end{{longtable}}{note}"


# --- HTML


def webpage(title: str, blocks: Sequence[Block], folder: Path) -> str:
    """Return a document as one HTML file: styles and figures are in it, nothing is fetched.

    `folder` is the document's own, in which the figures are.
    """
    body = "\n".join(_html_block(block, folder) for block in blocks)
    return Template(PAGE.read_text(encoding="utf-8")).substitute(title=_html(title), body=body)


def _html(words: str) -> str:
    """Return text in which a mean and its deviation stay on one line."""
    return html.escape(plain(words)).replace(" \u00b1 ", "&nbsp;\u00b1&nbsp;")


def _html_cell(cell: Cell) -> str:
    if isinstance(cell, Link):
        return f'<a href="{quote(cell.target)}">{_html(cell.words)}</a>'
    if isinstance(cell, Code):
        return f"<code>{_html(cell.words)}</code>" if cell.words else ""
    return _html(cell)


def _html_block(block: Block, folder: Path) -> str:
    if isinstance(block, Heading):
        return f"<h2>{_html(block.words)}</h2>"
    if isinstance(block, Lines):
        return f"<ul>{''.join(f'<li>{_html(line)}</li>' for line in block.lines)}</ul>"
    if isinstance(block, Picture):
        caption = f"<figcaption>{_html(block.caption)}</figcaption>"
        svgs = [
            f'<div class="{kind}" role="img" aria-label="{_html(block.caption)}">'
            f"{_svg(folder / 'figures' / f'{block.name}{suffix}.svg')}</div>"
            for kind, suffix in (("roomy", ""), ("narrow", "-narrow"))
        ]
        return f"<figure>\n{''.join(svgs)}\n{caption}</figure>"

    def placed(column: int) -> str:
        return ' class="left"' if column in block.left else ""

    head = "".join(f"<th{placed(c)}>{_html(words)}</th>" for c, words in enumerate(block.headings))
    rows = [
        f'<td class="group" colspan="{len(block.headings)}">{_html_cell(row[0])}</td>'
        if len(row) == 1
        else "".join(f"<td{placed(c)}>{_html_cell(cell)}</td>" for c, cell in enumerate(row))
        for row in block.rows
    ]
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    note = f'<p class="note">{_html(block.note)}</p>' if block.note else ""
    table = f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"
    return f'<div class="wide">{table}</div>{note}'


def _svg(path: Path) -> str:
    """Return an SVG file as an element: as wide as the page allows, its idle ids left out.

    Matplotlib numbers every group; several figures in one page would share those names.
    """
    text = path.read_text(encoding="utf-8")
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text[text.index("<svg") :], count=1)
    used = set(re.findall(r"#([\w.-]+)", text))
    return re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", text)

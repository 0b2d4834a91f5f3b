"""What people and files wrote is shown as it is, and nothing of it is obeyed."""

import io

import pytest
from rich.console import Console

from terminal import literal


def shown(value: object, **limits: int) -> str:
    out = io.StringIO()
    console = Console(file=out, width=200, force_terminal=True, color_system="standard")
    console.print(literal(value, **limits))
    return out.getvalue().removesuffix("\n")


@pytest.mark.parametrize(
    "text",
    ["[/b]", "[red]Bob[/red]", "a [b", "\\[x]", ":smile:", "ok ok", "é漢🙂", "a\nb", "👩‍👩‍👧"],
)
def test_text_is_shown_as_it_is(text: str) -> None:
    assert shown(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b[31mred\x1b]0;title\x07", "\\x1b[31mred\\x1b]0;title\\x07"),
        ("\x9b2J", "\\x9b2J"),
        ("a\rb\x00\x7f\x08", "a\\rb\\x00\\x7f\\x08"),
        ("\udcff", "\\udcff"),
        ("user\u202egnp.exe\u2066", "user\\u202egnp.exe\\u2066"),
        ("one\u2028two", "one\\u2028two"),
    ],
)
def test_what_a_terminal_would_obey_is_written_out(text: str, expected: str) -> None:
    assert shown(text) == expected


def test_values_are_written_as_sql_writes_them() -> None:
    assert "NULL" in shown(None)
    assert shown(b"\x00\xff") == "x'00ff'"
    assert shown(float("inf")) == "inf"
    assert shown(-(2**63)) == "-9223372036854775808"


def test_what_is_too_large_is_cut_and_marked() -> None:
    assert shown("x" * 300_000, characters=10).startswith(
        "x" * 10 + "\x1b[2m ... (300,000 characters)"
    )
    assert "abcdefghij" in shown("abcdefghij", characters=10)
    assert "(" not in shown("abcdefghij", characters=10)
    cut = shown("1\n2\n3\n4", lines=2)
    assert "1\n2" in cut
    assert "(7 characters)" in cut
    assert "3" not in cut
    assert shown("1\n2", lines=2) == "1\n2"
    assert "(1,000 bytes)" in shown(b"\xab" * 1000, characters=8)

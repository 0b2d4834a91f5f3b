"""Arithmetic in words: problems and answers in the form of GSM8K, for instruction data."""

import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Literal

from typing_extensions import TypedDict

from datamodules.settings import read_table


class Problem(TypedDict):
    """A kind of problem; names, things and numbers stand in braces."""

    question: str
    steps: list[str]
    result: Literal["a", "sum", "boxes", "both"]


class Problems(TypedDict):
    """The table: who, what, and the kinds of problems."""

    names: tuple[str, ...]
    things: tuple[str, ...]
    problems: list[Problem]


@cache
def _table() -> Problems:
    table: Problems = read_table(Path(__file__).with_suffix(".yaml"), Problems)
    return table


def word_problems(count: int) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield problems in one or two steps, the same each time, each after its name for messages."""
    table, draw = _table(), random.Random(0)
    for number in range(count):
        name, other = draw.sample(table["names"], 2)
        thing = draw.choice(table["things"])
        a, b, c = draw.randint(2, 20), draw.randint(2, 20), draw.randint(2, 9)
        problem = draw.choice(table["problems"])
        numbers = {"a": a, "b": b, "c": c, "sum": a + b}
        numbers |= {"boxes": c * b, "times": c * a, "both": a + c * a}
        words = {"name": name, "other": other, "thing": thing, **numbers}
        steps = [step.format(**words) for step in problem["steps"]]
        answer = "\n".join([*steps, f"#### {numbers[problem['result']]}"])
        yield (
            f"problem {number}",
            {"question": problem["question"].format(**words), "answer": answer},
        )

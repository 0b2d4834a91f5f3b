"""What a question about a database means, and that in words and in SQL.

The words around it stand in phrases.yaml. A phrase keeps the words in which it was first said, so
that the question in full adds to an utterance what stands in the history.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

from typing_extensions import TypedDict

from datamodules.generated.domains import Domain, Things
from datamodules.settings import read_table
from text2sql.schema import Schema
from text2sql.sql import STAR, ColumnUnit, Condition, Query, SelectItem, ValueUnit
from text2sql.words import plural

NAMED = "called {}"


class Comparison(TypedDict):
    """How a bound of a number is said: with a price ABOVE 5, whose price is MORE than 5."""

    side: tuple[str, ...]
    than: tuple[str, ...]


class Phrases(TypedDict):
    """What stands in phrases.yaml."""

    show: tuple[str, ...]
    by_name: tuple[str, ...]
    one: tuple[str, ...]
    who: str
    count: tuple[str, ...]
    each: tuple[str, ...]
    most: tuple[str, ...]
    which: tuple[str, ...]
    aggregates: dict[str, tuple[str, ...]]
    above: Comparison
    below: Comparison
    utterances: dict[str, tuple[str, ...]]
    framed: dict[str, dict[str, str | None]]


# What may stand in braces in the table.
PLACEHOLDERS = frozenset(
    """a_column are be columns count first group groups last noun relation rows side the their them
    value way words x""".split()  # noqa: SIM905
)


@cache
def phrases() -> Phrases:
    """Return the table of phrases."""
    table: Phrases = read_table(Path(__file__).with_name("phrases.yaml"), Phrases, PLACEHOLDERS)
    return table


# --- what a question means -------------------------------------------------------------------


@dataclass(frozen=True)
class Restriction:
    """A condition on rows, with the words in which it was first said.

    Args:
        field: The words of the column; "id" with the operators "in" and "not in".
        operator: "=", "!=", ">", "<", ">=", "<=", "in" or "not in".
        value: What it is compared with; "average" for the column's average over the table; for the
            last two operators the noun of the table that refers to the row.
        phrase: The words, with {} for the value.
    """

    field: str
    operator: str
    value: str | int
    phrase: str

    @property
    def words(self) -> str:
        """The whole phrase."""
        return self.phrase.format(self.value)


@dataclass(frozen=True)
class Order:
    """An order of rows by a column, with the words in which it was first said.

    Args:
        field: The words of the column.
        descending: Whether the greatest value comes first.
        count: How many rows are wanted; None for all.
        words: Before the noun if there is a count ("oldest"), else after all ("sorted by age").
    """

    field: str
    descending: bool
    count: int | None
    words: str


@dataclass(frozen=True)
class Question:
    """What is asked: rows, and what of them is shown.

    Args:
        noun: The rows' table.
        frame: The sentence around it.
        shown: The columns that are shown, or the one that is aggregated; empty to count.
        restrictions: On the rows.
        parent: At least one restriction on the rows' parents, or none.
        aggregate: "" to list, or "avg", "max", "min", "sum" or "count".
        word: How the aggregate is said, one of its words in the table; "" for the first.
        group: The column whose values part the rows; "" for none.
        form: "plain"; with `group` also "most" (the value with the most rows) or "which" (the
            values that have such rows).
        order: Of the rows.
        other: A second restriction on rows of the same value of `group`, with form "which".
        combination: "intersect" (such rows too) or "except" (no such rows); "" without `other`.
    """

    noun: str
    frame: str
    shown: tuple[str, ...] = ()
    restrictions: tuple[Restriction, ...] = ()
    parent: tuple[Restriction, ...] = ()
    aggregate: str = ""
    word: str = ""
    group: str = ""
    form: Literal["plain", "most", "which"] = "plain"
    order: Order | None = None
    other: Restriction | None = None
    combination: str = ""

    def narrowed(self, restriction: Restriction) -> Question:
        """The same about fewer rows."""
        return replace(self, restrictions=(*self.restrictions, restriction))

    @property
    def lists(self) -> bool:
        """Whether columns of rows are shown."""
        return not self.aggregate and not self.group

    @property
    def is_set(self) -> bool:
        """Whether it is about a set of rows that can be looked at more closely."""
        return not self.group and not self.limited and not self.one

    @property
    def limited(self) -> bool:
        """Whether only the first rows of an order are wanted."""
        return self.order is not None and self.order.count is not None

    @property
    def one(self) -> bool:
        """Whether it is about one row."""
        if self.order is not None and self.order.count == 1:
            return True
        return any(restriction.phrase == NAMED for restriction in self.restrictions)


# --- in words --------------------------------------------------------------------------------


def _listed(parts: Sequence[str]) -> str:
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last


def _rows(things: Things, question: Question, restrictions: Sequence[Restriction]) -> str:
    """The rows in words, without article: "oldest singer from Peru"."""
    order = question.order
    noun = things.noun if question.one else plural(things.noun)
    parts = [noun]
    if order is not None and order.count is not None:
        after = order.words.startswith("with ")
        parts = [*([str(order.count)] if order.count > 1 else []), order.words, noun]
        parts = [noun, order.words] if after else parts
    if restrictions:
        parts.append(" and ".join(restriction.words for restriction in restrictions))
    if question.parent:
        one = any(restriction.phrase == NAMED for restriction in question.parent)
        parts += [things.relation, f"the {things.parent}" if one else plural(things.parent)]
        parts.append(" and ".join(restriction.words for restriction in question.parent))
    return " ".join(parts)


def _are(things: Things, question: Question) -> str:
    """The rows as a clause, "singers are from Peru"; "" where they make none."""
    order, noun = question.order, plural(things.noun)
    if question.parent or question.other is not None:
        return ""
    if order is not None:
        if question.restrictions or order.count != 1:
            return ""
        noun = things.noun
        after = order.words.removeprefix("with ")
        return f"{noun} is the {after}" if after == order.words else f"{noun} has {after}"
    if question.one:
        return ""
    words = [restriction.words for restriction in question.restrictions]
    if len(words) == 1 and words[0].startswith("that "):
        return f"{noun} {words[0].removeprefix('that ')}"
    if any(phrase.startswith(("whose", "that ")) for phrase in words):
        return ""
    having = [phrase.startswith(("with ", "not with ")) for phrase in words]
    if not words:
        return f"{noun} are there"
    if not any(having):
        return f"{noun} are {' and '.join(words)}"
    plain = all(phrase.startswith("with ") for phrase in words)
    return f"{noun} have {' and '.join(w.removeprefix('with ') for w in words)}" if plain else ""


def _frame(question: Question, things: Things, are: str) -> str:
    """The sentence, or a plain one where the question has outgrown it."""
    frame = question.frame
    named = question.lists and question.shown == (things.name.words,)
    counted = question.aggregate == "count" and not question.group
    if "{are}" in frame and not (are and (named or counted)):
        return phrases()["count"][0] if counted else phrases()["show"][0]
    if "{the}" in frame:
        sorts = question.order is not None and question.order.count is None
        of_one = frame in (phrases()["one"][1], phrases()["who"])
        if not named or sorts or (of_one and not question.one):
            return phrases()["show"][0]
    return frame


def say(question: Question, domain: Domain) -> str:
    """The question in words that need no history."""
    things = domain.table(question.noun)
    rows = _rows(things, question, question.restrictions)
    if question.other is not None:
        second = _rows(things, question, (question.other,))
        both = question.combination == "intersect"
        rows = f"both {rows} and {second}" if both else f"{rows} but no {second}"
    one = question.one
    if question.aggregate == "count":
        x = f"the number of {rows}"
    elif question.aggregate:
        word = question.word or phrases()["aggregates"][question.aggregate][0]
        x = f"the {word} {question.shown[0]} of {rows}"
    elif question.shown:
        shown = _listed([words if one else plural(words) for words in question.shown])
        x = f"the {shown} of {'the ' if one or question.limited else ''}{rows}"
    else:
        x = ""
    if question.order is not None and question.order.count is None:
        x += f" {question.order.words}"
    single = question.aggregate or (one and len(question.shown) == 1)
    are = _are(things, question)
    the = rows if question.restrictions else f"all {rows}"
    if one or question.limited:
        the = f"the {rows}"
    groups = plural(question.group) if question.group else ""
    words = {"x": x, "are": are, "the": the, "be": "is" if single else "are", "rows": rows}
    return _frame(question, things, are).format(**words, group=question.group, groups=groups)


# --- in SQL ----------------------------------------------------------------------------------


class QueryWriter:
    """Writes questions about one database as queries.

    The schema is as read from the SQLite file that `World.script` makes.
    """

    def __init__(self, domain: Domain, schema: Schema) -> None:
        self.domain, self.schema = domain, schema

    def _table(self, noun: str) -> int:
        found = self.schema.find_table(self.domain.written(noun))
        assert found is not None, noun
        return found

    def _column(self, noun: str, words: str) -> int:
        name = self.domain.written(f"{noun} id" if words == "id" else words)
        found = self.schema.find_column(self._table(noun), name)
        assert found is not None, (noun, words)
        return found

    def _unit(self, noun: str, words: str) -> ValueUnit:
        return ValueUnit(ColumnUnit(self._column(noun, words)))

    def _restriction(self, noun: str, given: Restriction) -> Condition:
        left, operator = self._unit(noun, given.field), given.operator
        if operator in ("in", "not in"):
            child = str(given.value)
            key = ValueUnit(ColumnUnit(self._column(child, f"{noun} id")))
            inner = Query((SelectItem(key),), (self._table(child),))
            return Condition(left, "in", inner, negated=operator == "not in")
        if given.value == "average":
            unit = SelectItem(left, "avg")
            return Condition(left, operator, Query((unit,), (self._table(noun),)))
        value = given.value
        return Condition(left, operator, float(value) if isinstance(value, int) else value)

    def query(self, question: Question) -> Query:
        """Return the query that answers a question."""
        noun = question.noun
        things = self.domain.table(noun)
        sources: tuple[int, ...] = (self._table(noun),)
        on: tuple[Condition | str, ...] = ()
        conditions = [self._restriction(noun, given) for given in question.restrictions]
        if question.parent:
            parent = things.parent
            sources = (*sources, self._table(parent))
            key = ColumnUnit(self._column(parent, "id"))
            on = (Condition(self._unit(noun, f"{parent} id"), "=", key),)
            conditions += [self._restriction(parent, given) for given in question.parent]
        where = tuple(part for condition in conditions for part in ("and", condition))[1:]
        count = SelectItem(ValueUnit(ColumnUnit(STAR)), "count")
        select = tuple(SelectItem(self._unit(noun, words)) for words in question.shown)
        if question.aggregate:
            aggregated = question.aggregate != "count"
            select = (replace(select[0], aggregate=question.aggregate),) if aggregated else (count,)
        query = Query(select, sources, on, where)
        if question.group:
            unit = self._unit(noun, question.group)
            if question.form == "which":
                return self._which(question, replace(query, select=(SelectItem(unit),)), noun)
            query = replace(query, select=(SelectItem(unit), *select), group_by=(unit.left,))
            if question.form == "most":
                by_count = ValueUnit(ColumnUnit(STAR, "count"))
                query = replace(
                    query, select=(SelectItem(unit),), order_by=(by_count,), order="desc", limit=1
                )
        if question.order is not None:
            order = question.order
            query = replace(
                query,
                order_by=(self._unit(noun, order.field),),
                order="desc" if order.descending else "asc",
                limit=order.count,
            )
        return query

    def _which(self, question: Question, query: Query, noun: str) -> Query:
        if question.other is None:
            return replace(query, distinct=True)
        second = replace(query, where=(self._restriction(noun, question.other),))
        return replace(query, combination=question.combination, combined=second)

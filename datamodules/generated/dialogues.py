"""Dialogues about small databases that are made here: utterance, rewrite and SQL of every turn.

Nothing to download. A dialogue is a walk over questions: a question is held as what it means (what
is shown, of which rows, in which order), and each pattern of DIALOGUE changes that meaning as
people do when they go on talking ("only those from Peru", "and the oldest?"). Words and SQL are
both written from the meaning: the rewrite says all of it, the utterance only what is new. A phrase
keeps the words in which it was first said, so that a rewrite adds what stands in the history.

From top to bottom: what a question means, in words and in SQL; the patterns; dialogues.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from datamodules.generated.domains import Domain, Field, Row, Things, World
from text2sql.dialogue import Interaction, Turn
from text2sql.schema import Schema
from text2sql.sql import (
    STAR,
    ColumnUnit,
    Condition,
    Query,
    SelectItem,
    ValueUnit,
    to_sql,
)

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
    """An order of rows, with the words in which it was first said.

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
        aggregate: "" to list, or one of AGGREGATED, or "count".
        word: How the aggregate is said, one of AGGREGATED's words; "" for the first.
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

    @property
    def lists(self) -> bool:
        """Whether columns of rows are shown."""
        return not self.aggregate and not self.group

    @property
    def is_set(self) -> bool:
        """Whether it is about a set of rows that can be looked at more closely."""
        return not self.group and (self.order is None or self.order.count is None) and not self.one

    @property
    def one(self) -> bool:
        """Whether it is about one row."""
        if self.order is not None and self.order.count == 1:
            return True
        return any(restriction.phrase == NAMED for restriction in self.restrictions)


AGGREGATED = {
    "avg": ("average", "mean"),
    "max": ("maximum", "highest", "largest"),
    "min": ("minimum", "lowest", "smallest"),
    "sum": ("total",),
}
NAMED = "called {}"
SHOW = (
    "Show {x}.",
    "List {x}.",
    "Give me {x}.",
    "Find {x}.",
    "What {be} {x}?",
    "Tell me {x}.",
    "I would like to see {x}.",
    "Could you return {x}?",
)
# Of rows that are shown by their names alone; SHOW[0] stands in where a question outgrows them.
BY_NAME = ("Which {are}?", "Which {are}?", "Show {the}.", "List {the}.", "Give me {the}.")
ONE = ("Which {are}?", "Which is {the}?", "Show {the}.")
WHO = "Who is {the}?"
COUNT = (
    "How many {rows} are there?",
    "Count the {rows}.",
    "What is the number of {rows}?",
    "Tell me how many {rows} there are.",
    "How many {are}?",
    "How many {are}?",
)
EACH = (
    "For each {group}, show {x}.",
    "What is {x} for each {group}?",
    "Give me {x} by {group}.",
)
MOST = (
    "Which {group} has the most {rows}?",
    "What is the {group} with the most {rows}?",
    "Find the {group} that has the most {rows}.",
)
WHICH = (
    "Which {groups} have {rows}?",
    "Find the {groups} that have {rows}.",
    "Show the different {groups} that have {rows}.",
)


def plural(words: str) -> str:
    """The plural of a noun of the domains, or of the last word of several."""
    if words.endswith("y") and words[-2] not in "aeiou":
        return words[:-1] + "ies"
    if words == "species":
        return words
    return words + ("es" if words.endswith(("s", "x", "ch", "sh")) else "s")


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
        return COUNT[0] if counted else SHOW[0]
    if "{the}" in frame:
        sorts = question.order is not None and question.order.count is None
        if not named or sorts or (frame in (ONE[1], WHO) and not question.one):
            return SHOW[0]
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
        word = question.word or AGGREGATED[question.aggregate][0]
        x = f"the {word} {question.shown[0]} of {rows}"
    elif question.shown:
        shown = _listed([words if one else plural(words) for words in question.shown])
        definite = one or (question.order is not None and question.order.count is not None)
        x = f"the {shown} of {'the ' if definite else ''}{rows}"
    else:
        x = ""
    if question.order is not None and question.order.count is None:
        x += f" {question.order.words}"
    single = question.aggregate or (one and len(question.shown) == 1)
    are = _are(things, question)
    counted = question.order is not None and question.order.count is not None
    return _frame(question, things, are).format(
        x=x,
        are=are,
        the=f"the {rows}" if one or counted else rows if question.restrictions else f"all {rows}",
        be="is" if single else "are",
        rows=rows,
        group=question.group,
        groups=plural(question.group) if question.group else "",
    )


class _Tree:
    """Writes questions about one database as queries."""

    def __init__(self, domain: Domain, schema: Schema) -> None:
        self.domain, self.schema = domain, schema

    def table(self, noun: str) -> int:
        found = self.schema.find_table(self.domain.written(noun))
        assert found is not None, noun
        return found

    def column(self, noun: str, words: str) -> int:
        name = self.domain.written(f"{noun} id" if words == "id" else words)
        found = self.schema.find_column(self.table(noun), name)
        assert found is not None, (noun, words)
        return found

    def unit(self, noun: str, words: str) -> ValueUnit:
        return ValueUnit(ColumnUnit(self.column(noun, words)))

    def restriction(self, noun: str, given: Restriction) -> Condition:
        left, operator = self.unit(noun, given.field), given.operator
        if operator in ("in", "not in"):
            child = str(given.value)
            key = ValueUnit(ColumnUnit(self.column(child, f"{noun} id")))
            inner = Query((SelectItem(key),), (self.table(child),))
            return Condition(left, "in", inner, negated=operator == "not in")
        if given.value == "average":
            unit = SelectItem(left, "avg")
            return Condition(left, operator, Query((unit,), (self.table(noun),)))
        value = given.value
        return Condition(left, operator, float(value) if isinstance(value, int) else value)

    def query(self, question: Question) -> Query:
        noun = question.noun
        things = self.domain.table(noun)
        sources: tuple[int, ...] = (self.table(noun),)
        on: tuple[Condition | str, ...] = ()
        conditions = [self.restriction(noun, given) for given in question.restrictions]
        if question.parent:
            parent = things.parent
            sources = (*sources, self.table(parent))
            key = ColumnUnit(self.column(parent, "id"))
            on = (Condition(self.unit(noun, f"{parent} id"), "=", key),)
            conditions += [self.restriction(parent, given) for given in question.parent]
        where = tuple(part for condition in conditions for part in ("and", condition))[1:]
        count = SelectItem(ValueUnit(ColumnUnit(STAR)), "count")
        select = tuple(SelectItem(self.unit(noun, words)) for words in question.shown)
        if question.aggregate:
            aggregated = question.aggregate != "count"
            select = (replace(select[0], aggregate=question.aggregate),) if aggregated else (count,)
        query = Query(select, sources, on, where)
        if question.group:
            unit = self.unit(noun, question.group)
            if question.form == "which":
                return self.which(question, replace(query, select=(SelectItem(unit),)), noun)
            query = replace(query, select=(SelectItem(unit), *select), group_by=(unit.left,))
            if question.form == "most":
                by_count = ValueUnit(ColumnUnit(STAR, "count"))
                query = replace(
                    query,
                    select=(SelectItem(unit),),
                    order_by=(by_count,),
                    order="desc",
                    limit=1,
                )
        if question.order is not None:
            order = question.order
            query = replace(
                query,
                order_by=(self.unit(noun, order.field),),
                order="desc" if order.descending else "asc",
                limit=order.count,
            )
        return query

    def which(self, question: Question, query: Query, noun: str) -> Query:
        if question.other is None:
            return replace(query, distinct=True)
        second = replace(query, where=(self.restriction(noun, question.other),))
        return replace(query, combination=question.combination, combined=second)


# --- patterns --------------------------------------------------------------------------------


class _Talk:
    """One dialogue in the making: its draws, its database and the questions so far."""

    def __init__(self, world: World, draw: random.Random) -> None:
        self.world, self.domain, self.draw = world, world.domain, draw
        self.questions: list[Question] = []

    @property
    def last(self) -> Question:
        return self.questions[-1]

    @property
    def things(self) -> Things:
        return self.domain.table(self.last.noun)

    def pick(self, *texts: str) -> str:
        return self.draw.choice(texts)

    def rows(self, noun: str, restrictions: Sequence[Restriction]) -> list[Row]:
        """The rows that meet all restrictions that name a value; all rows if none does."""
        rows = self.world.rows[noun]
        found = [row for row in rows if all(_meets(row, given) for given in restrictions)]
        return found or list(rows)

    def restriction(
        self, noun: str, known: Sequence[Restriction], but: Sequence[str] = ()
    ) -> Restriction:
        """A restriction on a column that `known` and `but` do not name, which some row meets."""
        things = self.domain.table(noun)
        used = {given.field for given in known} | set(but)
        rows = self.rows(noun, known)
        free = [field for field in things.fields[1:] if field.words not in used]
        field = self.draw.choice(free)
        if not field.is_number:
            value = str(self.draw.choice(rows)[field.words])
            said = (f"whose {field.words} is {{}}", f"with the {field.words} {{}}")
            phrase = self.pick(field.phrase, field.phrase, *said)
            return Restriction(field.words, "=", value, phrase)
        return self.bound(field, rows)

    def bound(self, field: Field, rows: Sequence[Row]) -> Restriction:
        """A number's lower or upper bound that some of the rows meet."""
        above = self.draw.random() < 0.5
        values = sorted(int(row[field.words]) for row in rows)
        middle = values[len(values) // 4 : -(len(values) // 4) or None]
        value = self.draw.choice(middle) + (-1 if above else 1)
        sides = ("above", "over", "of more than") if above else ("below", "under", "of less than")
        long = f"with {_a(field.words)} {self.pick(*sides)} {{}}"
        than = ("more", "greater", "higher") if above else ("less", "smaller", "lower")
        whose = f"whose {field.words} is {self.pick(*than)} than {{}}"
        phrase = self.pick(f"{field.more if above else field.less} {{}}", long, whose)
        return Restriction(field.words, ">" if above else "<", value, phrase)

    def other_field(self, things: Things, but: Sequence[str]) -> str | None:
        free = [field.words for field in things.fields if field.words not in but]
        return self.draw.choice(free) if free else None

    def their(self) -> str:
        return "its" if self.last.one and not self.things.person else "their"


def _meets(row: Row, given: Restriction) -> bool:
    if given.operator in ("in", "not in") or given.value == "average":
        return True
    value = row[given.field]
    if isinstance(value, str) or isinstance(given.value, str):
        return (value == given.value) == (given.operator == "=")
    compare = {">": value > given.value, "<": value < given.value}
    compare |= {">=": value >= given.value, "<=": value <= given.value}
    return compare.get(given.operator, value == given.value)


def _a(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


# A pattern adds the next utterance: returns its words and what is asked, None if it does not fit.
_Step = tuple[str, Question] | None


def _opening(talk: _Talk) -> _Step:
    """Ask something that needs no history."""
    nouns = [things.noun for things in talk.domain.tables]
    question = _fresh(talk, talk.draw.choice(nouns))
    return say(question, talk.domain), question


def _fresh(talk: _Talk, noun: str) -> Question:
    draw, things = talk.draw, talk.domain.table(noun)
    kind = draw.choices(
        ("list", "count", "aggregate", "each", "most", "which", "extreme", "named"),
        (40, 14, 8, 7, 6, 11, 6, 8),
    )[0]
    if kind == "named":
        name = str(draw.choice(talk.world.rows[noun])[things.name.words])
        asked = draw.choice(things.fields[1:]).words
        called = Restriction(things.name.words, "=", name, NAMED)
        return Question(noun, draw.choice(SHOW), (asked,), (called,))
    wanted = draw.choices((0, 1, 2), (45, 43, 12))[0]
    group = draw.choice(things.categories).words if kind in ("each", "most", "which") else ""
    restrictions: list[Restriction] = []
    for _ in range(min(wanted, len(things.fields) - 2)):
        restrictions.append(talk.restriction(noun, restrictions, [group]))
    known = tuple(restrictions)
    if kind == "count":
        return Question(noun, draw.choice(COUNT), (), known, aggregate="count")
    if kind == "aggregate":
        field = draw.choice(things.numbers).words
        aggregate = draw.choice(list(AGGREGATED))
        word = draw.choice(AGGREGATED[aggregate])
        return Question(noun, draw.choice(SHOW), (field,), known, aggregate=aggregate, word=word)
    if kind == "each":
        return Question(noun, draw.choice(EACH), (), known, aggregate="count", group=group)
    if kind == "most":
        return Question(noun, draw.choice(MOST), (), known, group=group, form="most")
    if kind == "which":
        known = (talk.restriction(noun, (), [group]),)
        return Question(noun, draw.choice(WHICH), (), known, group=group, form="which")
    shown = [things.name.words]
    if draw.random() < 0.35:
        shown.append(draw.choice(things.fields[1:]).words)
    by_name = len(shown) == 1 and draw.random() < 0.5
    if kind == "extreme":
        order = _extreme(draw, draw.choice(things.numbers), 1)
        if draw.random() < 0.4:
            words = draw.choice(AGGREGATED["max" if order.descending else "min"])
            order = replace(order, words=f"with the {words} {order.field}")
        frames = (*ONE, WHO, WHO) if things.person else ONE
        frame = draw.choice(frames if by_name else SHOW)
        return Question(noun, frame, tuple(shown), known, order=order)
    return Question(noun, draw.choice(BY_NAME if by_name else SHOW), tuple(shown), known)


def _extreme(draw: random.Random, field: Field, count: int) -> Order:
    most = draw.random() < 0.5
    return Order(field.words, most, count, field.most if most else field.least)


def _refine(talk: _Talk) -> _Step:
    """Keep only some of the rows: "only those from Peru"."""
    last, things = talk.last, talk.things
    if not last.is_set or len(last.restrictions) > 2:
        return None
    used = {given.field for given in last.restrictions}
    if all(field.words in used for field in things.fields[1:]):
        return None
    added = talk.restriction(last.noun, last.restrictions)
    question = replace(last, restrictions=(*last.restrictions, added))
    words, many = added.words, plural(things.noun)
    forms = [
        f"Only those {words}.",
        f"Just the ones {words}, please.",
        f"Of these, keep those {words}.",
        f"I mean only the {many} {words}.",
        f"And of them those {words}?",
    ]
    if not words.startswith(("with", "whose")):
        if last.aggregate == "count":
            forms.append(f"How many of them are {words}?")
            if talk.draw.random() < 0.3:
                return forms[-1], replace(question, frame=COUNT[0])
        elif last.lists:
            forms.append(f"Which of them are {words}?")
    return talk.pick(*forms), question


def _substitute(talk: _Talk) -> _Step:
    """Ask the same for another value: "and for Peru?"."""
    last, draw = talk.last, talk.draw
    if not last.restrictions or last.other is not None:
        return None
    known, given = last.restrictions[:-1], last.restrictions[-1]
    if given.operator not in ("=", ">", "<") or given.value == "average":
        return None
    field = talk.things.field(given.field)
    if field.is_number:
        low, high = (int(value) for value in field.values)
        value: str | int = draw.randint(low + (high - low) // 5, high - (high - low) // 5)
    else:
        rows = talk.world.rows[last.noun]
        value = draw.choice(sorted({str(row[given.field]) for row in rows} - {str(given.value)}))
    if value == given.value:
        return None
    new = replace(given, value=value)
    many = plural(last.noun)
    forms = [f"What about {value}?", f"And {value}?", f"How about {value} instead?"]
    if not last.one:
        forms += [f"And for {many} {new.words}?", f"What about those {new.words}?"]
    return talk.pick(*forms), replace(last, restrictions=(*known, new))


def _negate(talk: _Talk) -> _Step:
    """Ask for the rows that were left out: "and those not from Peru?"."""
    last = talk.last
    if not last.restrictions or not last.is_set:
        return None
    known, given = last.restrictions[:-1], last.restrictions[-1]
    opposite = {"=": "!=", ">": "<=", "<": ">="}.get(given.operator)
    if opposite is None or given.value == "average" or given.phrase == NAMED:
        return None
    if given.phrase.startswith("whose"):
        phrase = given.phrase.replace(" is ", " is not ", 1)
    else:
        phrase = f"not {given.phrase}"
    new = replace(given, operator=opposite, phrase=phrase)
    forms = [f"And those {new.words}?", f"What about the ones {new.words}?", "And the others?"]
    forms += ["What about all the other ones?", f"No, those {new.words}."]
    return talk.pick(*forms), replace(last, restrictions=(*known, new))


def _project(talk: _Talk) -> _Step:
    """Show another column of the same rows: "what are their ages?"."""
    last = talk.last
    if last.one or not (last.lists or (last.aggregate and last.is_set)):
        return None
    words = talk.other_field(talk.things, last.shown)
    if words is None:
        return None
    question = replace(last, shown=(words,), aggregate="")
    many = plural(words)
    return _framed(
        talk,
        question,
        {
            f"What are their {many}?": SHOW[4],
            f"Show their {many} instead.": SHOW[0],
            f"Give me the {many} of these {plural(last.noun)}.": SHOW[2],
            f"List their {many}.": SHOW[1],
            f"Tell me the {many} of those.": SHOW[5],
        },
    )


def _framed(talk: _Talk, question: Question, forms: Mapping[str, str]) -> _Step:
    """An utterance that brings its own frame, which the rewrite takes over."""
    utterance = talk.draw.choice(list(forms))
    return utterance, replace(question, frame=forms[utterance])


def _extend(talk: _Talk) -> _Step:
    """Show a column beside the others: "add their ages"."""
    last = talk.last
    if not last.lists or len(last.shown) > 2:
        return None
    words = talk.other_field(talk.things, last.shown)
    if words is None:
        return None
    shown = words if last.one else plural(words)
    their = talk.their()
    forms = (
        f"Also show {their} {shown}.",
        f"Add the {shown}, please.",
        f"And {their} {shown} too.",
    )
    return talk.pick(*forms), replace(last, shown=(*last.shown, words))


def _entity(talk: _Talk) -> _Step:
    """Ask another thing about the one row that was found: "what is its price?"."""
    last = talk.last
    if not last.one or not last.lists:
        return None
    named = [given.field for given in last.restrictions if given.phrase == NAMED]
    words = talk.other_field(talk.things, (*last.shown, *named))
    if words is None:
        return None
    their = talk.their()
    question = replace(last, shown=(words,))
    return _framed(
        talk,
        question,
        {
            f"What is {their} {words}?": SHOW[4],
            f"Tell me {their} {words}.": SHOW[5],
            f"And {their} {words}?": last.frame,
            f"Show the {words} of this {last.noun}.": SHOW[0],
        },
    )


def _count(talk: _Talk) -> _Step:
    """Count the rows: "how many are there?"."""
    last = talk.last
    if not last.is_set or last.aggregate == "count" or last.form != "plain":
        return None
    question = replace(last, shown=(), aggregate="count", order=None)
    forms = {
        "How many are there?": COUNT[0],
        "How many of them are there?": COUNT[0],
        "Count them.": COUNT[1],
        "What is their number?": COUNT[2],
        "Tell me how many there are.": COUNT[3],
    }
    return _framed(talk, question, forms)


def _aggregate(talk: _Talk) -> _Step:
    """Sum the rows up in a number: "what is their average age?"."""
    last = talk.last
    if not last.is_set or (last.aggregate and last.aggregate != "count"):
        return None
    field = talk.draw.choice(talk.things.numbers).words
    aggregate = talk.draw.choice(list(AGGREGATED))
    name = talk.pick(*AGGREGATED[aggregate])
    question = replace(last, shown=(field,), aggregate=aggregate, word=name, order=None)
    forms = {
        f"What is their {name} {field}?": SHOW[4],
        f"Give me their {name} {field}.": SHOW[2],
        f"Find the {name} {field} of these.": SHOW[3],
        f"And the {name} {field}?": SHOW[4],
    }
    return _framed(talk, question, forms)


def _reaggregate(talk: _Talk) -> _Step:
    """Sum the same column up in another way: "and the maximum?"."""
    last = talk.last
    if last.aggregate not in AGGREGATED:
        return None
    other = talk.draw.choice([name for name in AGGREGATED if name != last.aggregate])
    word = talk.pick(*AGGREGATED[other])
    forms = (f"And the {word}?", f"What about the {word}?", f"The {word} as well, please.")
    return talk.pick(*forms), replace(last, aggregate=other, word=word)


def _superlative(talk: _Talk) -> _Step:
    """Ask for the first row in some order: "and the oldest?"."""
    last = talk.last
    if not last.is_set or last.form != "plain" or not (last.lists or last.aggregate):
        return None
    order = _extreme(talk.draw, talk.draw.choice(talk.things.numbers), 1)
    shown = last.shown if last.lists else (talk.things.name.words,)
    forms = (
        f"And the {order.words}?",
        f"Only the {order.words} one.",
        f"Which of them is the {order.words}?",
        f"What about the {order.words} one?",
    )
    frame = last.frame if last.lists else SHOW[4]
    question = replace(last, shown=shown, aggregate="", order=order, frame=frame)
    return talk.pick(*forms), question


def _opposite(talk: _Talk) -> _Step:
    """Ask for the other end of the order: "and the youngest?"."""
    last = talk.last
    if last.order is None or last.order.count is None:
        return None
    field = talk.things.field(last.order.field)
    down = not last.order.descending
    order = replace(last.order, descending=down, words=field.most if down else field.least)
    ending = "?" if last.one else " ones?"
    forms = (f"And the {order.words}{ending}", f"What about the {order.words}{ending}")
    return talk.pick(*forms, f"Now the {order.words}."), replace(last, order=order)


def _top(talk: _Talk) -> _Step:
    """Ask for the first few rows: "just the three oldest"."""
    last = talk.last
    if not last.is_set or not last.lists:
        return None
    order = _extreme(talk.draw, talk.draw.choice(talk.things.numbers), talk.draw.randint(2, 5))
    forms = (
        f"Just the {order.count} {order.words}.",
        f"Only the {order.count} {order.words} of them, please.",
        f"And the {order.count} {order.words} ones?",
    )
    return talk.pick(*forms), replace(last, order=order)


def _sort(talk: _Talk) -> _Step:
    """Put the rows in order: "sort them by age"."""
    last = talk.last
    if not last.is_set or not last.lists:
        return None
    field = talk.draw.choice(talk.things.numbers)
    down = talk.draw.random() < 0.5
    ends = (field.most, field.least) if down else (field.least, field.most)
    phrase, utterances = talk.draw.choice(
        (
            (
                f"sorted by {field.words} in {'descending' if down else 'ascending'} order",
                ("Sort them by {} in {} order.", "I want that by {} in {} order."),
            ),
            (
                f"sorted from the {ends[0]} to the {ends[1]}",
                ("Sort them from the {} to the {}.", "Order that from the {} to the {}."),
            ),
        )
    )
    by_field = phrase.startswith("sorted by")
    given = (field.words, "descending" if down else "ascending") if by_field else ends
    order = Order(field.words, down, None, phrase)
    return talk.pick(*utterances).format(*given), replace(last, order=order)


def _each(talk: _Talk) -> _Step:
    """Part what is counted or summed up: "and for each country?"."""
    last = talk.last
    fixed = {given.field for given in last.restrictions if given.operator == "="}
    groups = [field.words for field in talk.things.categories if field.words not in fixed]
    if not last.is_set or not last.aggregate or not groups:
        return None
    group = talk.draw.choice(groups)
    forms = {
        f"And for each {group}?": EACH[1],
        f"Break that down by {group}.": EACH[2],
        f"For each {group}, please.": EACH[0],
        f"What is that for each {group}?": EACH[1],
    }
    return _framed(talk, replace(last, group=group, order=None), forms)


def _most(talk: _Talk) -> _Step:
    """Ask which group is the largest: "which country has the most?"."""
    last = talk.last
    fixed = {given.field for given in last.restrictions if given.operator == "="}
    groups = [field.words for field in talk.things.categories if field.words not in fixed]
    counted = last.aggregate == "count" and last.form == "plain"
    if not (counted or last.is_set) or not groups or last.form != "plain":
        return None
    group = last.group or talk.draw.choice(groups)
    question = replace(last, shown=(), aggregate="", group=group, form="most", order=None)
    forms = {
        f"Which {group} has the most?": MOST[0],
        f"Which {group} has the most of them?": MOST[0],
        f"And what is the {group} with the most?": MOST[1],
        f"Find the {group} that has the most.": MOST[2],
    }
    return _framed(talk, question, forms)


def _combine(talk: _Talk, combination: str, forms: Sequence[str]) -> _Step:
    last = talk.last
    if last.form != "which" or last.other is not None or last.parent:
        return None
    given = last.restrictions[0]
    field = talk.things.field(given.field)
    rows = talk.world.rows[last.noun]
    if field.is_number:
        other = talk.bound(field, rows)
    else:
        values = sorted({str(row[field.words]) for row in rows} - {str(given.value)})
        other = replace(given, operator="=", phrase=field.phrase, value=talk.draw.choice(values))
    if other == given or len(last.restrictions) > 1:
        return None
    second = f"{plural(last.noun)} {other.words}"
    question = replace(last, other=other, combination=combination)
    return talk.pick(*forms).format(rows=second, groups=plural(last.group)), question


def _intersect(talk: _Talk) -> _Step:
    """Keep the groups that have other rows too: "which of these also have ...?"."""
    forms = ("Which of these also have {rows}?", "Only those {groups} that also have {rows}.")
    return _combine(talk, "intersect", (*forms, "And which of them have {rows} as well?"))


def _except(talk: _Talk) -> _Step:
    """Keep the groups that do not have other rows: "which of these have no ...?"."""
    forms = ("Which of these have no {rows}?", "Leave out the {groups} that have {rows}.")
    return _combine(talk, "except", (*forms, "But only those without {rows}."))


def _related(talk: _Talk) -> _Step:
    """Go on to the rows that belong to these: "what are the titles of their albums?"."""
    last = talk.last
    children = talk.domain.children(last.noun)
    fits = last.is_set or any(given.phrase == NAMED for given in last.restrictions)
    childless = any(given.operator == "not in" for given in last.restrictions)
    if not children or not fits or childless or not last.restrictions or last.group:
        return None
    child = talk.draw.choice(children)
    shown = talk.draw.choice(child.fields).words
    question = Question(child.noun, SHOW[0], (shown,), (), last.restrictions)
    many, rows, their = plural(shown), plural(child.noun), talk.their()
    them = "it" if their == "its" else "them"
    forms = {
        f"What are the {many} of {their} {rows}?": SHOW[4],
        f"Show the {many} of {their} {rows}.": SHOW[0],
        f"Now list the {many} of the {rows} {child.relation} {them}.": SHOW[1],
        f"Give me the {many} of {their} {rows}.": SHOW[2],
    }
    if talk.draw.random() < 0.3:
        counted = replace(question, shown=(), aggregate="count")
        return _framed(
            talk, counted, {f"How many {rows} are there {child.relation} {them}?": COUNT[0]}
        )
    return _framed(talk, question, forms)


def _average(talk: _Talk) -> _Step:
    """Compare rows with all of them: "only those above the average age"."""
    last = talk.last
    used = {given.field for given in last.restrictions}
    fields = [field.words for field in talk.things.numbers if field.words not in used]
    if not last.is_set or not fields or len(last.restrictions) > 2:
        return None
    words = talk.draw.choice(fields)
    above = talk.draw.random() < 0.5
    side = "above" if above else "below"
    added = Restriction(words, ">" if above else "<", "average", f"with {_a(words)} {side} {{}}")
    forms = (
        f"Only those {added.words}.",
        f"Which of them have {_a(words)} {side} average?",
        f"Just the {plural(last.noun)} {added.words}.",
    )
    return talk.pick(*forms), replace(last, restrictions=(*last.restrictions, added))


def _without(talk: _Talk) -> _Step:
    """Ask whether other rows belong to these: "which of them have no albums?"."""
    last = talk.last
    children = talk.domain.children(last.noun)
    if not last.is_set or not children or any(g.field == "id" for g in last.restrictions):
        return None
    child = talk.draw.choice(children)
    none = talk.draw.random() < 0.6
    phrase = f"that have {'no' if none else 'some'} {plural(child.noun)}"
    added = Restriction("id", "not in" if none else "in", child.noun, phrase)
    forms = (
        f"Only those {phrase}.",
        f"Which of them {phrase.removeprefix('that ')}?",
        f"Just the ones {phrase}, please.",
    )
    return talk.pick(*forms), replace(last, restrictions=(*last.restrictions, added))


def _widen(talk: _Talk) -> _Step:
    """Take the restrictions back: "and for all of them?"."""
    last = talk.last
    if not last.restrictions or not (last.is_set or last.group) or last.other or last.parent:
        return None
    if last.form == "which":
        return None
    many = plural(last.noun)
    forms = (f"And for all {many}?", f"Forget that, take all {many}.", "And without any condition?")
    return talk.pick(*forms), replace(last, restrictions=())


def _switch(talk: _Talk) -> _Step:
    """Ask about other rows altogether."""
    others = [t.noun for t in talk.domain.tables if t.noun != talk.last.noun]
    question = _fresh(talk, talk.draw.choice(others))
    before = talk.pick("", "", "Something else: ", "Now another question. ", "Thanks. ")
    words = say(question, talk.domain)
    return before + (words[0].lower() + words[1:] if before.endswith(": ") else words), question


def _back(talk: _Talk) -> _Step:
    """Go back to rows that were left: "back to the singers, what are their ages?"."""
    others = (q for q in reversed(talk.questions) if q.noun != talk.last.noun)
    left = next((q for q in others if q.is_set and q.form == "plain" and not q.parent), None)
    if left is None:
        return None
    things = talk.domain.table(left.noun)
    words = talk.other_field(things, left.shown)
    if words is None:
        return None
    question = replace(left, shown=(words,), aggregate="", order=None)
    many, rows = plural(words), plural(left.noun)
    forms = {
        f"Back to the {rows}: what are their {many}?": SHOW[4],
        f"Again those {rows} from before: show their {many}.": SHOW[0],
        f"For the {rows} I asked about first, list the {many}.": SHOW[1],
    }
    return _framed(talk, question, forms)


OPENING = "opening"
DIALOGUE: dict[str, Callable[[_Talk], _Step]] = {
    "refine": _refine,
    "substitute": _substitute,
    "negate": _negate,
    "project": _project,
    "extend": _extend,
    "entity": _entity,
    "count": _count,
    "aggregate": _aggregate,
    "reaggregate": _reaggregate,
    "superlative": _superlative,
    "opposite": _opposite,
    "top": _top,
    "sort": _sort,
    "each": _each,
    "most": _most,
    "intersect": _intersect,
    "except": _except,
    "related": _related,
    "average": _average,
    "without": _without,
    "widen": _widen,
    "switch": _switch,
    "back": _back,
}
"""How a dialogue goes on, by name."""

# --- dialogues -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Conversation:
    """A dialogue and how it came about.

    Args:
        interaction: Its turns; each has a rewrite and a query.
        patterns: OPENING, then the name in DIALOGUE of the pattern of each later turn.
    """

    interaction: Interaction
    patterns: tuple[str, ...]


def converse(
    world: World, schema: Schema, count: int, seed: int, turns: tuple[int, int] = (2, 5)
) -> list[Conversation]:
    """Make dialogues about one database.

    Args:
        world: The database.
        schema: Its schema, as read from the SQLite file that `World.script` makes.
        count: How many dialogues.
        seed: Another seed, other dialogues.
        turns: Least and greatest number of turns.
    """
    draw = random.Random(f"{seed} {world.domain.db_id} dialogues")
    tree = _Tree(world.domain, schema)
    return [_conversation(world, tree, draw, draw.randint(*turns)) for _ in range(count)]


def _conversation(world: World, tree: _Tree, draw: random.Random, length: int) -> Conversation:
    talk = _Talk(world, draw)
    turns: list[Turn] = []
    patterns: list[str] = []
    while len(turns) < length:
        name, step = _next_step(talk, draw)
        utterance, question = step
        talk.questions.append(question)
        patterns.append(name)
        query = to_sql(tree.query(question), tree.schema)
        turns.append(Turn(utterance, query, say(question, world.domain)))
    return Conversation(Interaction(world.domain.db_id, tuple(turns)), tuple(patterns))


def _next_step(talk: _Talk, draw: random.Random) -> tuple[str, tuple[str, Question]]:
    if not talk.questions:
        step = _opening(talk)
        assert step is not None, "an opening fits always"
        return OPENING, step
    names = draw.sample(list(DIALOGUE), len(DIALOGUE))
    if draw.random() < 0.9:  # a switch fits always: left to chance it would be the most frequent
        names.append(names.pop(names.index("switch")))
    if draw.random() < 0.8:  # and a way back fits hardly ever
        names.insert(0, names.pop(names.index("back")))
    for name in names:
        step = DIALOGUE[name](talk)
        if step is not None and step[1] != talk.last:
            return name, step
    raise AssertionError("a switch of topic fits always")

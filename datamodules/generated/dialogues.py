"""Dialogues about small databases that are made here: utterance, rewrite and SQL of every turn.

A dialogue is a walk over questions: a question is held as what it means, and each pattern of
DIALOGUE changes that meaning as people do when they go on talking ("only those from Peru", "and the
oldest?"). Words and SQL are both written from the meaning: the rewrite says all of it, the
utterance only what is new.

From top to bottom: what patterns draw from; openings; the patterns; dialogues.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from datamodules.generated.domains import Field, Row, Things, World
from datamodules.generated.questions import (
    NAMED,
    Order,
    QueryWriter,
    Question,
    Restriction,
    phrases,
    say,
)
from text2sql.dialogue import Interaction, Turn
from text2sql.schema import Schema
from text2sql.sql import to_sql
from text2sql.words import plural

Step = tuple[str, Question]
"""The next utterance, and what is asked by it."""


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

    def say(self, *patterns: str, **words: object) -> str:
        """An utterance of one of the patterns, drawn from their phrases."""
        texts = [text for name in patterns for text in phrases()["utterances"][name]]
        return (self.draw.choice(texts) if len(texts) > 1 else texts[0]).format(**words)

    def framed(self, pattern: str, question: Question, **words: object) -> tuple[str, Question]:
        """An utterance that brings its own frame, which the rewrite takes over."""
        frames = phrases()["framed"][pattern]
        text = self.draw.choice(list(frames))
        return text.format(**words), replace(question, frame=frames[text] or question.frame)

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
            long = f"whose {field.words} is {{}}", f"with the {field.words} {{}}"
            phrase = self.draw.choice((field.phrase, field.phrase, *long))
            return Restriction(field.words, "=", value, phrase)
        return self.bound(field, rows)

    def bound(self, field: Field, rows: Sequence[Row]) -> Restriction:
        """A number's lower or upper bound that some of the rows meet."""
        above = self.draw.random() < 0.5
        values = sorted(int(row[field.words]) for row in rows)
        middle = values[len(values) // 4 : -(len(values) // 4) or None]
        value = self.draw.choice(middle) + (-1 if above else 1)
        said = phrases()["above" if above else "below"]
        long = f"with {_a(field.words)} {self.draw.choice(said['side'])} {{}}"
        whose = f"whose {field.words} is {self.draw.choice(said['than'])} than {{}}"
        phrase = self.draw.choice((f"{field.more if above else field.less} {{}}", long, whose))
        return Restriction(field.words, ">" if above else "<", value, phrase)

    def extreme(self, field: Field, count: int) -> Order:
        """The first rows by a number, from above or below."""
        most = self.draw.random() < 0.5
        return Order(field.words, most, count, field.most if most else field.least)

    def aggregate(self, but: str = "") -> tuple[str, str]:
        """An aggregate, and a word for it."""
        words = phrases()["aggregates"]
        name = self.draw.choice([name for name in words if name != but])
        return name, self.draw.choice(words[name])

    def open_categories(self) -> list[str]:
        """The columns of shared texts of which no value is demanded."""
        fixed = {given.field for given in self.last.restrictions if given.operator == "="}
        return [field.words for field in self.things.categories if field.words not in fixed]

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


# --- openings ------------------------------------------------------------------------------------


def _opening(talk: _Talk) -> Step:
    """Ask something that needs no history."""
    question = _fresh(talk, talk.draw.choice(talk.domain.tables).noun)
    return say(question, talk.domain), question


def _fresh(talk: _Talk, noun: str) -> Question:
    draw, things, said = talk.draw, talk.domain.table(noun), phrases()
    kind = draw.choices(
        ("list", "count", "aggregate", "each", "most", "which", "extreme", "named"),
        (40, 14, 8, 7, 6, 11, 6, 8),
    )[0]
    if kind == "named":
        name = str(draw.choice(talk.world.rows[noun])[things.name.words])
        asked = draw.choice(things.fields[1:]).words
        called = Restriction(things.name.words, "=", name, NAMED)
        return Question(noun, draw.choice(said["show"]), (asked,), (called,))
    wanted = draw.choices((0, 1, 2), (45, 43, 12))[0]
    group = draw.choice(things.categories).words if kind in ("each", "most", "which") else ""
    restrictions: list[Restriction] = []
    for _ in range(min(wanted, len(things.fields) - 2)):
        restrictions.append(talk.restriction(noun, restrictions, [group]))
    known = tuple(restrictions)
    if kind == "count":
        return Question(noun, draw.choice(said["count"]), (), known, aggregate="count")
    if kind == "aggregate":
        field = draw.choice(things.numbers).words
        aggregate, word = talk.aggregate()
        frame = draw.choice(said["show"])
        return Question(noun, frame, (field,), known, aggregate=aggregate, word=word)
    if kind == "each":
        return Question(noun, draw.choice(said["each"]), (), known, aggregate="count", group=group)
    if kind == "most":
        return Question(noun, draw.choice(said["most"]), (), known, group=group, form="most")
    if kind == "which":
        known = (talk.restriction(noun, (), [group]),)
        return Question(noun, draw.choice(said["which"]), (), known, group=group, form="which")
    shown = [things.name.words]
    if draw.random() < 0.35:
        shown.append(draw.choice(things.fields[1:]).words)
    by_name = len(shown) == 1 and draw.random() < 0.5
    if kind == "extreme":
        order = talk.extreme(draw.choice(things.numbers), 1)
        if draw.random() < 0.4:
            words = draw.choice(said["aggregates"]["max" if order.descending else "min"])
            order = replace(order, words=f"with the {words} {order.field}")
        frames = (*said["one"], said["who"], said["who"]) if things.person else said["one"]
        frame = draw.choice(frames if by_name else said["show"])
        return Question(noun, frame, tuple(shown), known, order=order)
    frame = draw.choice(said["by_name"] if by_name else said["show"])
    return Question(noun, frame, tuple(shown), known)


# --- patterns: each adds an utterance, or None where it does not fit -------------------------


def _refine(talk: _Talk) -> Step | None:
    """Keep only some of the rows: "only those from Peru"."""
    last, things = talk.last, talk.things
    if not last.is_set or len(last.restrictions) > 2:
        return None
    used = {given.field for given in last.restrictions}
    if all(field.words in used for field in things.fields[1:]):
        return None
    added = talk.restriction(last.noun, last.restrictions)
    question = last.narrowed(added)
    words, kinds = {"words": added.words, "rows": plural(things.noun)}, ["refine"]
    if not added.words.startswith(("with", "whose")):
        if last.aggregate == "count":
            if talk.draw.random() < 0.3:
                frame = phrases()["count"][0]
                return talk.say("refine a count", **words), replace(question, frame=frame)
            kinds.append("refine a count")
        elif last.lists:
            kinds.append("refine a list")
    return talk.say(*kinds, **words), question


def _substitute(talk: _Talk) -> Step | None:
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
    kinds = ["substitute"] if last.one else ["substitute", "substitute for rows"]
    words = talk.say(*kinds, value=value, rows=plural(last.noun), words=new.words)
    return words, replace(last, restrictions=(*known, new))


def _negate(talk: _Talk) -> Step | None:
    """Ask for the rows that were left out: "and those not from Peru?"."""
    last = talk.last
    if not last.restrictions or not last.is_set:
        return None
    known, given = last.restrictions[:-1], last.restrictions[-1]
    opposite = {"=": "!=", ">": "<=", "<": ">="}.get(given.operator)
    if opposite is None or given.value == "average" or given.phrase == NAMED:
        return None
    whose = given.phrase.startswith("whose")
    phrase = given.phrase.replace(" is ", " is not ", 1) if whose else f"not {given.phrase}"
    new = replace(given, operator=opposite, phrase=phrase)
    return talk.say("negate", words=new.words), replace(last, restrictions=(*known, new))


def _project(talk: _Talk) -> Step | None:
    """Show another column of the same rows: "what are their ages?"."""
    last = talk.last
    if last.one or not (last.lists or (last.aggregate and last.is_set)):
        return None
    words = talk.other_field(talk.things, last.shown)
    if words is None:
        return None
    question = replace(last, shown=(words,), aggregate="")
    return talk.framed("project", question, columns=plural(words), rows=plural(last.noun))


def _extend(talk: _Talk) -> Step | None:
    """Show a column beside the others: "add their ages"."""
    last = talk.last
    if not last.lists or len(last.shown) > 2:
        return None
    words = talk.other_field(talk.things, last.shown)
    if words is None:
        return None
    shown = words if last.one else plural(words)
    utterance = talk.say("extend", words=shown, their=talk.their())
    return utterance, replace(last, shown=(*last.shown, words))


def _entity(talk: _Talk) -> Step | None:
    """Ask another thing about the one row that was found: "what is its price?"."""
    last = talk.last
    if not last.one or not last.lists:
        return None
    named = [given.field for given in last.restrictions if given.phrase == NAMED]
    words = talk.other_field(talk.things, (*last.shown, *named))
    if words is None:
        return None
    question = replace(last, shown=(words,))
    return talk.framed("entity", question, words=words, their=talk.their(), noun=last.noun)


def _count(talk: _Talk) -> Step | None:
    """Count the rows: "how many are there?"."""
    last = talk.last
    if not last.is_set or last.aggregate == "count" or last.form != "plain":
        return None
    return talk.framed("count", replace(last, shown=(), aggregate="count", order=None))


def _aggregate(talk: _Talk) -> Step | None:
    """Sum the rows up in a number: "what is their average age?"."""
    last = talk.last
    if not last.is_set or (last.aggregate and last.aggregate != "count"):
        return None
    field = talk.draw.choice(talk.things.numbers).words
    aggregate, word = talk.aggregate()
    question = replace(last, shown=(field,), aggregate=aggregate, word=word, order=None)
    return talk.framed("aggregate", question, words=f"{word} {field}")


def _reaggregate(talk: _Talk) -> Step | None:
    """Sum the same column up in another way: "and the maximum?"."""
    last = talk.last
    if last.aggregate in ("", "count"):
        return None
    other, word = talk.aggregate(but=last.aggregate)
    return talk.say("reaggregate", words=word), replace(last, aggregate=other, word=word)


def _superlative(talk: _Talk) -> Step | None:
    """Ask for the first row in some order: "and the oldest?"."""
    last = talk.last
    if not last.is_set or last.form != "plain" or not (last.lists or last.aggregate):
        return None
    order = talk.extreme(talk.draw.choice(talk.things.numbers), 1)
    shown = last.shown if last.lists else (talk.things.name.words,)
    frame = last.frame if last.lists else phrases()["show"][4]
    question = replace(last, shown=shown, aggregate="", order=order, frame=frame)
    return talk.say("superlative", words=order.words), question


def _opposite(talk: _Talk) -> Step | None:
    """Ask for the other end of the order: "and the youngest?"."""
    last = talk.last
    if last.order is None or last.order.count is None:
        return None
    field = talk.things.field(last.order.field)
    down = not last.order.descending
    order = replace(last.order, descending=down, words=field.most if down else field.least)
    kind = "opposite of one" if last.one else "opposite of several"
    return talk.say(kind, words=order.words), replace(last, order=order)


def _top(talk: _Talk) -> Step | None:
    """Ask for the first few rows: "just the three oldest"."""
    last = talk.last
    if not last.is_set or not last.lists:
        return None
    order = talk.extreme(talk.draw.choice(talk.things.numbers), talk.draw.randint(2, 5))
    return talk.say("top", count=order.count, words=order.words), replace(last, order=order)


def _sort(talk: _Talk) -> Step | None:
    """Put the rows in order: "sort them by age"."""
    last = talk.last
    if not last.is_set or not last.lists:
        return None
    field = talk.draw.choice(talk.things.numbers)
    down = talk.draw.random() < 0.5
    first, end = (field.most, field.least) if down else (field.least, field.most)
    way = "descending" if down else "ascending"
    kind, phrase = talk.draw.choice(
        (
            ("sort by a column", f"sorted by {field.words} in {way} order"),
            ("sort between ends", f"sorted from the {first} to the {end}"),
        )
    )
    utterance = talk.say(kind, words=field.words, way=way, first=first, last=end)
    return utterance, replace(last, order=Order(field.words, down, None, phrase))


def _each(talk: _Talk) -> Step | None:
    """Part what is counted or summed up: "and for each country?"."""
    last, groups = talk.last, talk.open_categories()
    if not last.is_set or not last.aggregate or not groups:
        return None
    group = talk.draw.choice(groups)
    return talk.framed("each", replace(last, group=group, order=None), group=group)


def _most(talk: _Talk) -> Step | None:
    """Ask which group is the largest: "which country has the most?"."""
    last, groups = talk.last, talk.open_categories()
    if not (last.aggregate == "count" or last.is_set) or not groups or last.form != "plain":
        return None
    group = last.group or talk.draw.choice(groups)
    question = replace(last, shown=(), aggregate="", group=group, form="most", order=None)
    return talk.framed("most", question, group=group)


def _combine(talk: _Talk, combination: Literal["intersect", "except"]) -> Step | None:
    """Keep the groups that have other rows too, or do not: "which of these also have ...?"."""
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
    utterance = talk.say(combination, rows=second, groups=plural(last.group))
    return utterance, replace(last, other=other, combination=combination)


def _related(talk: _Talk) -> Step | None:
    """Go on to the rows that belong to these: "what are the titles of their albums?"."""
    last = talk.last
    children = talk.domain.children(last.noun)
    fits = last.is_set or any(given.phrase == NAMED for given in last.restrictions)
    childless = any(given.operator == "not in" for given in last.restrictions)
    if not children or not fits or childless or not last.restrictions or last.group:
        return None
    child = talk.draw.choice(children)
    shown = talk.draw.choice(child.fields).words
    their = talk.their()
    words = {
        "columns": plural(shown),
        "rows": plural(child.noun),
        "relation": child.relation,
        "their": their,
        "them": "it" if their == "its" else "them",
    }
    question = Question(child.noun, phrases()["show"][0], (shown,), (), last.restrictions)
    if talk.draw.random() < 0.3:
        counted = replace(question, shown=(), aggregate="count")
        return talk.framed("count related", counted, **words)
    return talk.framed("related", question, **words)


def _average(talk: _Talk) -> Step | None:
    """Compare rows with all of them: "only those above the average age"."""
    last = talk.last
    used = {given.field for given in last.restrictions}
    fields = [field.words for field in talk.things.numbers if field.words not in used]
    if not last.is_set or not fields or len(last.restrictions) > 2:
        return None
    field = talk.draw.choice(fields)
    above = talk.draw.random() < 0.5
    side, column = "above" if above else "below", _a(field)
    added = Restriction(field, ">" if above else "<", "average", f"with {column} {side} {{}}")
    rows = plural(last.noun)
    utterance = talk.say("average", words=added.words, a_column=column, side=side, rows=rows)
    return utterance, last.narrowed(added)


def _without(talk: _Talk) -> Step | None:
    """Ask whether other rows belong to these: "which of them have no albums?"."""
    last = talk.last
    children = talk.domain.children(last.noun)
    if not last.is_set or not children or any(g.field == "id" for g in last.restrictions):
        return None
    child = talk.draw.choice(children)
    none = talk.draw.random() < 0.6
    words = f"have {'no' if none else 'some'} {plural(child.noun)}"
    added = Restriction("id", "not in" if none else "in", child.noun, f"that {words}")
    return talk.say("without", words=words), last.narrowed(added)


def _widen(talk: _Talk) -> Step | None:
    """Take the restrictions back: "and for all of them?"."""
    last = talk.last
    if not last.restrictions or not (last.is_set or last.group) or last.other or last.parent:
        return None
    if last.form == "which":
        return None
    return talk.say("widen", rows=plural(last.noun)), replace(last, restrictions=())


def _switch(talk: _Talk) -> Step:
    """Ask about other rows altogether."""
    others = [things.noun for things in talk.domain.tables if things.noun != talk.last.noun]
    question = _fresh(talk, talk.draw.choice(others))
    before, words = talk.say("switch"), say(question, talk.domain)
    return before + (words[0].lower() + words[1:] if before.endswith(": ") else words), question


def _back(talk: _Talk) -> Step | None:
    """Go back to rows that were left: "back to the singers, what are their ages?"."""
    others = (q for q in reversed(talk.questions) if q.noun != talk.last.noun)
    left = next((q for q in others if q.is_set and q.form == "plain" and not q.parent), None)
    if left is None:
        return None
    words = talk.other_field(talk.domain.table(left.noun), left.shown)
    if words is None:
        return None
    question = replace(left, shown=(words,), aggregate="", order=None)
    return talk.framed("back", question, columns=plural(words), rows=plural(left.noun))


OPENING = "opening"
DIALOGUE: dict[str, Callable[[_Talk], Step | None]] = {
    "refine": _refine, "substitute": _substitute, "negate": _negate, "project": _project,
    "extend": _extend, "entity": _entity, "count": _count, "aggregate": _aggregate,
    "reaggregate": _reaggregate, "superlative": _superlative, "opposite": _opposite, "top": _top,
    "sort": _sort, "each": _each, "most": _most,
    "intersect": partial(_combine, combination="intersect"),
    "except": partial(_combine, combination="except"),
    "related": _related, "average": _average, "without": _without, "widen": _widen,
    "switch": _switch, "back": _back,
}  # fmt: skip
"""How a dialogue goes on, by name."""

# --- dialogues -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Conversation:
    """A dialogue, and its patterns: OPENING, then the name in DIALOGUE of each later turn's."""

    interaction: Interaction
    patterns: tuple[str, ...]


def converse(world: World, schema: Schema, count: int, seed: int) -> list[Conversation]:
    """Make dialogues about one database, of 2 to 5 turns; another seed, other dialogues.

    Args:
        world: The database.
        schema: Its schema, as read from the SQLite file that `World.script` makes.
        count: How many dialogues.
        seed: Of all that is drawn.
    """
    draw = random.Random(f"{seed} {world.domain.db_id} dialogues")
    writer = QueryWriter(world.domain, schema)
    return [_conversation(_Talk(world, draw), writer) for _ in range(count)]


def _conversation(talk: _Talk, writer: QueryWriter) -> Conversation:
    turns: list[Turn] = []
    patterns: list[str] = []
    for _ in range(talk.draw.randint(2, 5)):
        name, (utterance, question) = _next_step(talk)
        talk.questions.append(question)
        patterns.append(name)
        query = to_sql(writer.query(question), writer.schema)
        turns.append(Turn(utterance, query, say(question, talk.domain)))
    return Conversation(Interaction(talk.domain.db_id, tuple(turns)), tuple(patterns))


def _next_step(talk: _Talk) -> tuple[str, Step]:
    draw = talk.draw
    if not talk.questions:
        return OPENING, _opening(talk)
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

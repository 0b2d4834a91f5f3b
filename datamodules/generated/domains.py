"""What the generated dialogues are about: twelve small domains, their words and their databases.

A domain names its tables, their columns and how people speak of them; the rows are drawn. The last
three domains are for testing: no other dialogue is about them.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Field:
    """A column that people ask about.

    Args:
        words: Its name for people.
        values: What it may hold: texts, or the bounds of whole numbers.
        phrase: Of a text: how a row is said to have one, "from {}". Empty for the row's own name.
        more: Of a number: "older than"; with `less`, `most` and `least`: "younger than", "oldest",
            "youngest".
        less: See `more`.
        most: See `more`.
        least: See `more`.
    """

    words: str
    values: tuple[str, ...] | tuple[int, int]
    phrase: str = ""
    more: str = ""
    less: str = ""
    most: str = ""
    least: str = ""

    @property
    def is_number(self) -> bool:
        """Whether it holds numbers."""
        return bool(self.more)


@dataclass(frozen=True)
class Things:
    """A table of a domain.

    Args:
        noun: What one row is.
        fields: Its columns but for keys; the first one holds the row's own name.
        parent: The noun of the table that its foreign key refers to; "" for none.
        relation: What stands between the two: albums BY singers.
        person: Whether a row is a person.
    """

    noun: str
    fields: tuple[Field, ...]
    parent: str = ""
    relation: str = ""
    person: bool = False

    @property
    def name(self) -> Field:
        """The column with the row's own name."""
        return self.fields[0]

    @property
    def numbers(self) -> list[Field]:
        """The columns that hold numbers."""
        return [field for field in self.fields if field.is_number]

    @property
    def categories(self) -> list[Field]:
        """The columns that hold texts which rows share."""
        return [field for field in self.fields if field.phrase]

    def field(self, words: str) -> Field:
        """The column of that name."""
        return next(field for field in self.fields if field.words == words)


@dataclass(frozen=True)
class Domain:
    """What a generated database is about.

    Args:
        db_id: The database's name.
        tables: Its tables, parents first.
        style: How it writes names: yearly_pay, YearlyPay or YEARLY_PAY.
    """

    db_id: str
    tables: tuple[Things, ...]
    style: Literal["snake", "camel", "upper"] = "snake"

    def table(self, noun: str) -> Things:
        """The table whose rows are called so."""
        return next(things for things in self.tables if things.noun == noun)

    def children(self, noun: str) -> list[Things]:
        """The tables whose foreign key refers to that table."""
        return [things for things in self.tables if things.parent == noun]

    def written(self, words: str) -> str:
        """A name as the database writes it."""
        if self.style == "camel":
            return "".join(word.capitalize() for word in words.split())
        joined = words.replace(" ", "_")
        return joined.upper() if self.style == "upper" else joined


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _pairs(first: Sequence[str], second: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{one} {other}" for one in first for other in second)


_FIRST = _words(
    "Ada Ben Clara Dario Elena Felix Greta Hugo Irene Jonas Karin Luca Marta Nils Olga Pedro Rosa "
    "Simon Tina Viktor Wanda Yusuf Zoe Amir"
)
_LAST = _words(
    "Alvarez Brandt Castel Dupont Egger Fischer Garcia Hansen Ito Jensen Keller Lindt Moreau Novak "
    "Okafor Petrov Quinn Rossi Sato Torres Ueda Vogel Weber Young"
)
PEOPLE = tuple(
    f"{first} {_LAST[(7 * number + shift) % len(_LAST)]}"
    for number, first in enumerate(_FIRST)
    for shift in (0, 5)
)
_QUALITIES = _words("Amber Silver Crimson Golden Hidden Silent Northern Broken")
TITLES = _pairs(_QUALITIES, _words("River Garden Tower Mirror Harbour Forest Bridge Island"))
COUNTRIES = _words("France Peru Japan Norway Kenya Italy Canada India")
CITIES = _words("Lisbon Vienna Osaka Boston Nairobi Bergen Madrid Lima")


def _kind(words: str, phrase: str, values: str) -> Field:
    return Field(words, _words(values), phrase)


def _number(words: str, low: int, high: int, more: str, less: str, most: str, least: str) -> Field:
    return Field(words, (low, high), "", more, less, most, least)


def _age(low: int, high: int) -> Field:
    return _number("age", low, high, "older than", "younger than", "oldest", "youngest")


def _cost(words: str, low: int, high: int) -> Field:
    more, less = "more expensive than", "cheaper than"
    return _number(words, low, high, more, less, "most expensive", "cheapest")


def _pay(words: str, low: int, high: int) -> Field:
    more, less = "earning more than", "earning less than"
    return _number(words, low, high, more, less, "best paid", "worst paid")


def _size(words: str, low: int, high: int) -> Field:
    return _number(words, low, high, "larger than", "smaller than", "largest", "smallest")


def _year(words: str, verb: str) -> Field:
    more, less = f"{verb} after", f"{verb} before"
    return _number(words, 1950, 2020, more, less, "newest", "oldest")


def _length(words: str, low: int, high: int) -> Field:
    return _number(words, low, high, "longer than", "shorter than", "longest", "shortest")


def _weight(low: int, high: int) -> Field:
    return _number("weight", low, high, "heavier than", "lighter than", "heaviest", "lightest")


def _rating(high: int) -> Field:
    return _number("rating", 1, high, "rated above", "rated below", "best rated", "worst rated")


_PERSON = Field("name", PEOPLE)
_TITLE = Field("title", TITLES)
_COUNTRY = Field("country", COUNTRIES, "from {}")
_CITY = Field("city", CITIES, "in {}")

DOMAINS: tuple[Domain, ...] = (
    Domain(
        "music_festival",
        (
            Things(
                "singer",
                (
                    _PERSON,
                    _COUNTRY,
                    _kind("genre", "of the genre {}", "Jazz Rock Folk Opera Soul"),
                    _age(18, 75),
                ),
                person=True,
            ),
            Things(
                "album",
                (
                    _TITLE,
                    _kind("label", "on the label {}", "Bluebird Echo Parlour Sunrise"),
                    _year("year", "released"),
                    _cost("price", 5, 40),
                ),
                "singer",
                "by",
            ),
            Things(
                "concert",
                (_TITLE, _CITY, _length("duration", 40, 200), _cost("ticket price", 10, 120)),
                "singer",
                "of",
            ),
        ),
    ),
    Domain(
        "football_league",
        (
            Things(
                "team",
                (
                    Field("name", _pairs(CITIES, _words("United Rovers Stars"))),
                    _CITY,
                    _kind("division", "of the division {}", "North South East West"),
                    _year("founding year", "founded"),
                ),
            ),
            Things(
                "player",
                (
                    _PERSON,
                    _COUNTRY,
                    _kind("position", "in the position {}", "Keeper Defender Midfielder Striker"),
                    _age(17, 40),
                    _pay("wage", 900, 9000),
                ),
                "team",
                "of",
                person=True,
            ),
        ),
        "camel",
    ),
    Domain(
        "evening_school",
        (
            Things(
                "teacher",
                (
                    _PERSON,
                    Field("home town", CITIES, "from {}"),
                    _kind("degree", "with the degree {}", "Bachelor Master Doctor"),
                    _age(25, 66),
                    _pay("salary", 2000, 7000),
                ),
                person=True,
            ),
            Things(
                "course",
                (
                    Field(
                        "title",
                        _pairs(
                            _words("Modern Basic Advanced Applied"),
                            _words("Algebra Botany Ceramics Drawing Ethics French"),
                        ),
                    ),
                    Field("building", _pairs(_words("Curie Euler Noether"), ["Hall"]), "in {}"),
                    _kind("level", "of the level {}", "Beginner Intermediate Expert"),
                    _length("duration", 4, 40),
                    _cost("fee", 50, 900),
                ),
                "teacher",
                "by",
            ),
        ),
    ),
    Domain(
        "wholesale_shop",
        (
            Things(
                "supplier",
                (
                    Field("name", _pairs(_LAST, ("and Sons", "and Partners"))),
                    _COUNTRY,
                    _rating(100),
                    _size("warehouse area", 200, 9000),
                ),
            ),
            Things(
                "product",
                (
                    Field(
                        "name",
                        _pairs(
                            _words("Classic Compact Deluxe Basic"),
                            _words("Lamp Chair Kettle Clock Desk Fan Shelf"),
                        ),
                    ),
                    _kind("category", "in the category {}", "Kitchen Office Garden Bedroom"),
                    _kind("colour", "in the colour {}", "Red Blue Green White"),
                    _cost("price", 8, 400),
                    _weight(1, 60),
                ),
                "supplier",
                "from",
            ),
        ),
        "camel",
    ),
    Domain(
        "city_library",
        (
            Things("author", (_PERSON, _COUNTRY, _age(22, 90)), person=True),
            Things(
                "book",
                (
                    _TITLE,
                    _kind("genre", "of the genre {}", "Novel Poetry Drama History"),
                    _kind("language", "in {}", "English Spanish Japanese Italian"),
                    _length("page count", 60, 900),
                    _year("publication year", "published"),
                ),
                "author",
                "by",
            ),
        ),
    ),
    Domain(
        "hotel_chain",
        (
            Things(
                "hotel",
                (
                    Field("name", _pairs(_QUALITIES, _words("Inn Palace Lodge"))),
                    _CITY,
                    _kind("style", "in the style {}", "Modern Rustic Baroque"),
                    _rating(10),
                    _size("room count", 10, 300),
                ),
            ),
            Things(
                "booking",
                (
                    Field("guest", PEOPLE),
                    _kind("month", "in {}", "March June August December"),
                    _kind("channel", "by {}", "Phone Website Agency"),
                    _length("stay", 1, 21),
                    _cost("cost", 80, 4000),
                ),
                "hotel",
                "at",
            ),
        ),
        "upper",
    ),
    Domain(
        "film_archive",
        (
            Things("director", (_PERSON, _COUNTRY, _age(25, 88)), person=True),
            Things(
                "film",
                (
                    _TITLE,
                    _kind("genre", "of the genre {}", "Comedy Thriller Western Romance"),
                    _kind("studio", "from the studio {}", "Atlas Meteor Paragon"),
                    _length("running time", 60, 220),
                    _year("year", "released"),
                    _cost("budget", 1, 200),
                ),
                "director",
                "by",
            ),
        ),
    ),
    Domain(
        "clinic",
        (
            Things(
                "department",
                (
                    Field(
                        "name",
                        _words(
                            "Cardiology Neurology Oncology Radiology Surgery Urology Paediatrics "
                            "Dermatology Orthopaedics Psychiatry Pathology Pharmacy"
                        ),
                    ),
                    _kind("building", "in {}", "Annex Tower Pavilion"),
                    _size("bed count", 5, 90),
                    _cost("budget", 100, 2000),
                ),
            ),
            Things(
                "doctor",
                (
                    _PERSON,
                    _kind("rank", "of the rank {}", "Junior Senior Chief"),
                    Field("home city", CITIES, "from {}"),
                    _age(26, 68),
                    _pay("salary", 3000, 12000),
                ),
                "department",
                "of",
                person=True,
            ),
        ),
        "camel",
    ),
    Domain(
        "art_museum",
        (
            Things(
                "museum",
                (
                    Field("name", _pairs(CITIES, _words("Gallery Collection"))),
                    _CITY,
                    _year("opening year", "opened"),
                    _size("floor area", 300, 20000),
                ),
            ),
            Things(
                "painting",
                (
                    _TITLE,
                    _kind("style", "in the style {}", "Cubist Realist Abstract Gothic"),
                    _kind("material", "in {}", "Oil Acrylic Tempera"),
                    _cost("value", 10, 5000),
                    _size("height", 20, 400),
                ),
                "museum",
                "of",
            ),
        ),
    ),
    Domain(
        "airline_network",
        (
            Things(
                "airline",
                (
                    Field("name", _pairs(_QUALITIES, _words("Air Wings"))),
                    _COUNTRY,
                    _size("fleet size", 3, 300),
                    _rating(100),
                ),
            ),
            Things(
                "flight",
                (
                    Field(
                        "code",
                        tuple(
                            f"{two}{n}" for two in _words("QX ZB KR") for n in range(101, 199, 7)
                        ),
                    ),
                    Field("origin", CITIES, "leaving {}"),
                    _kind("destination", "bound for {}", "Berlin Cairo Dublin Havana Oslo"),
                    _length("distance", 200, 9000),
                    _cost("fare", 40, 1500),
                ),
                "airline",
                "of",
            ),
        ),
    ),
    Domain(
        "restaurant_guide",
        (
            Things(
                "restaurant",
                (
                    Field("name", _pairs(_QUALITIES, _words("Fork Table Oven"))),
                    _CITY,
                    _kind("cuisine", "with the cuisine {}", "Thai Greek Mexican Korean"),
                    _size("seat count", 12, 160),
                    _rating(10),
                ),
            ),
            Things(
                "dish",
                (
                    Field(
                        "name",
                        _pairs(
                            _words("Spicy Roast Grilled Cold Sweet"),
                            _words("Noodles Lamb Aubergine Soup Prawns Rice"),
                        ),
                    ),
                    _kind("menu", "on the menu {}", "Lunch Dinner Brunch"),
                    _cost("price", 4, 60),
                    _weight(80, 900),
                ),
                "restaurant",
                "at",
            ),
            Things(
                "cook",
                (_PERSON, _COUNTRY, _age(19, 64), _pay("wage", 1500, 6000)),
                "restaurant",
                "of",
                person=True,
            ),
        ),
        "camel",
    ),
    Domain(
        "farm_registry",
        (
            Things(
                "farm",
                (
                    Field(
                        "name",
                        _pairs(
                            _words("Oak Willow Stone Mill Sunny"), _words("Acres Meadow Hill Creek")
                        ),
                    ),
                    _kind("region", "in {}", "Alentejo Bavaria Cornwall Provence"),
                    _size("area", 5, 900),
                    _year("founding year", "founded"),
                ),
            ),
            Things(
                "animal",
                (
                    Field(
                        "name",
                        _words(
                            "Bella Bruno Cleo Daisy Elsa Ferdinand Ginger Hazel Iris Jasper Koko "
                            "Lola Max Nala Oscar Pepper Ruby Shadow Toby Violet Willy Ziggy Molly "
                            "Biscuit Clover Dusty Flora Gus Honey Jack"
                        ),
                    ),
                    _kind("species", "of the species {}", "Cow Goat Sheep Horse"),
                    _kind("coat", "with the coat {}", "Black Brown Spotted White"),
                    _age(1, 20),
                    _weight(20, 900),
                ),
                "farm",
                "of",
            ),
        ),
        "upper",
    ),
)
TEST = tuple(domain.db_id for domain in DOMAINS[-3:])
"""Databases that only test dialogues are about."""

# --- rows ------------------------------------------------------------------------------------

Row = dict[str, str | int]


@dataclass(frozen=True)
class World:
    """A domain with its rows.

    Args:
        domain: The domain.
        rows: By noun. Beside the fields, a row has "id" and, with a parent, "parent".
    """

    domain: Domain
    rows: Mapping[str, tuple[Row, ...]]

    def script(self) -> str:
        """The database as SQL: tables, keys and rows."""
        lines = []
        for things in self.domain.tables:
            written = self.domain.written
            key = written(f"{things.noun} id")
            columns = [f"{key} INTEGER PRIMARY KEY"]
            columns += [
                f"{written(field.words)} {'INTEGER' if field.is_number else 'TEXT'}"
                for field in things.fields
            ]
            names = ["id", *(field.words for field in things.fields)]
            if things.parent:
                parent = written(f"{things.parent} id")
                target = f"{written(things.parent)} ({parent})"
                columns += [f"{parent} INTEGER", f"FOREIGN KEY ({parent}) REFERENCES {target}"]
                names.append("parent")
            lines.append(f"CREATE TABLE {written(things.noun)} ({', '.join(columns)});")
            for row in self.rows[things.noun]:
                values = ", ".join(
                    f"'{value}'" if isinstance(value, str) else str(value)
                    for value in map(row.__getitem__, names)
                )
                lines.append(f"INSERT INTO {written(things.noun)} VALUES ({values});")
        return "\n".join(lines)


def make_worlds(seed: int) -> dict[str, World]:
    """Draw the rows of every domain's database.

    Args:
        seed: Another seed, other rows; the tables are the same.
    """
    return {domain.db_id: _make_world(domain, seed) for domain in DOMAINS}


def _make_world(domain: Domain, seed: int) -> World:
    draw = random.Random(f"{seed} {domain.db_id} rows")
    rows: dict[str, tuple[Row, ...]] = {}
    for things in domain.tables:
        count = min(
            draw.randint(20, 30) if things.parent else draw.randint(9, 14), len(things.name.values)
        )
        names = draw.sample([str(value) for value in things.name.values], count)
        # Some parents have no child, so that asking for those finds something.
        parents = [row["id"] for row in rows[things.parent][::1]][2:] if things.parent else []
        made = []
        for number, name in enumerate(names, start=1):
            row: Row = {"id": number, things.name.words: name}
            for field in things.fields[1:]:
                if field.is_number:
                    low, high = (int(value) for value in field.values)
                    row[field.words] = draw.randint(low, high)
                else:
                    row[field.words] = draw.choice([str(value) for value in field.values])
            if parents:
                row["parent"] = draw.choice(parents)
            made.append(row)
        rows[things.noun] = tuple(made)
    return World(domain, rows)

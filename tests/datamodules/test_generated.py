"""Generated data stays what it was to the last bit, and a wrong table is named."""

import hashlib
import sqlite3
from collections.abc import Callable
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import TypedDict

from datamodules.generated.dialogues import converse
from datamodules.generated.docstrings import read_documents
from datamodules.generated.domains import make_worlds
from datamodules.generated.pictures import render, vocabulary
from datamodules.generated.problems import word_problems
from datamodules.generated.questions import PLACEHOLDERS, phrases
from datamodules.settings import read_table
from text2sql.schema import Schema

TABLES = Path(__file__).parents[2] / "datamodules" / "generated"


def digest(*content: object) -> str:
    return hashlib.blake2b(repr(content).encode(), digest_size=8).hexdigest()


def dialogues(seed: int, folder: Path) -> str:
    """Databases, and what is said about them."""
    said: list[Any] = []
    for db_id, world in make_worlds(seed).items():
        with closing(sqlite3.connect(folder / f"{db_id}.sqlite")) as database:
            database.executescript(f"BEGIN; {world.script()} COMMIT;")
        schema = Schema.from_sqlite(folder / f"{db_id}.sqlite")
        for talk in converse(world, schema, 25, seed):
            turns = [(t.utterance, t.query, t.rewrite) for t in talk.interaction.turns]
            said.append((talk.patterns, turns))
    return digest(said)


def pictures(seed: int, folder: Path) -> str:
    items = render(60, size=24, seed=seed, label_words_in_captions=seed > 0)
    arrays = [array.tobytes() for array in (items.image, items.text, items.labels)]
    return digest(arrays, items.classes, items.captions, vocabulary(seed > 0))


def problems(seed: int, folder: Path) -> str:
    return digest(list(islice(word_problems(3000), seed * 1000, None)))


def docstrings(seed: int, folder: Path) -> str:
    """Of two modules that are written here: those of the environment change with it."""
    (folder / "a.py").write_text('"""First."""\ndef f():\n    """Second."""\n')
    (folder / "b.py").write_text(f'class A:\n    """First."""\ndef f():\n    """{seed}."""\n')
    (folder / "topics.py").write_text(f"x = {{'key': {'long ' * 50!r}, 'k': 'short {seed}'}}\n")
    return digest(read_documents([folder / n for n in ("a.py", "b.py", "topics.py")], 1))


GOLDEN: dict[Callable[[int, Path], str], tuple[str, str]] = {
    dialogues: ("fb10f261faa43b4a", "646a9be67e5c82b7"),
    pictures: ("be67d758d7c2ad1f", "ecb8ddaec56e9eab"),
    problems: ("764cc3c4844b1b2a", "1111dc589611bc72"),
    docstrings: ("f725c59b7460846e", "a05efdb96224e495"),
}


@pytest.mark.parametrize("make", GOLDEN)
@pytest.mark.parametrize("seed", [0, 1])
def test_what_is_generated_stays_what_it_was(
    make: Callable[[int, Path], str], seed: int, tmp_path: Path
) -> None:
    """Figures of earlier runs are of this data: a digest changes with a reason only."""
    assert make(seed, tmp_path) == GOLDEN[make][seed]


class Table(TypedDict):
    sentences: tuple[str, ...]
    numbers: dict[str, int]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("sentences: [a]", r"table\.yaml\.numbers: must be given"),
        ("{sentences: [a, 3], numbers: {}}", r"table\.yaml\.sentences\.1=3: must be a valid str"),
        ("{sentences: [a], numbers: {x: b}}", r"table\.yaml\.numbers\.x='b': must be a valid int"),
        ("{sentences: [a], numbers: {}, more: 1}", r"table\.yaml\.more: no such key"),
        ('{sentences: ["{b} {c}"], numbers: {}}', r"table\.yaml: .*\{c\} stands for nothing"),
    ],
)
def test_a_wrong_table_is_named_with_the_place_in_it(
    content: str, words: str, tmp_path: Path
) -> None:
    (tmp_path / "table.yaml").write_text(content)
    with pytest.raises(ValueError, match=words):
        read_table(tmp_path / "table.yaml", Table, {"a", "b"})


def test_tables_are_found_from_any_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    phrases.cache_clear()
    assert phrases()["who"] == "Who is {the}?"
    assert {file.stem for file in TABLES.glob("*.yaml")} == {
        *("captions", "domains", "phrases", "problems")
    }


def test_every_placeholder_of_the_phrases_is_used() -> None:
    text = (TABLES / "phrases.yaml").read_text()
    assert [name for name in PLACEHOLDERS if f"{{{name}}}" not in text] == []

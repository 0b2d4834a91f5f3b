"""Generated dialogues: SQL that runs, rewrites that only restore what was said, nothing random."""

import re
import sqlite3
import time
from collections import Counter
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest

from datamodules.generated.dialogues import DIALOGUE, OPENING, Conversation, converse
from datamodules.generated.domains import World, databases_for_testing, make_worlds
from text2sql.execute import Database
from text2sql.schema import Schema
from text2sql.sql import parse, to_sql

COUNT = 60  # dialogues about each database

# Words of the sentences around what is asked, which carry nothing of the history.
FRAMES = set(
    """show list give me find what is are tell i would like to see could you return how many there
    count the number of for each by which has have most different that both but no and with not
    a an from at whose in all sorted who names titles""".split()  # noqa: SIM905
)


@pytest.fixture(scope="module")
def worlds() -> dict[str, World]:
    return make_worlds(seed=0)


@pytest.fixture(scope="module")
def files(worlds: dict[str, World], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("databases")
    for db_id, world in worlds.items():
        with closing(sqlite3.connect(folder / f"{db_id}.sqlite")) as database:
            database.executescript(world.script())
    return {db_id: folder / f"{db_id}.sqlite" for db_id in worlds}


@pytest.fixture(scope="module")
def schemas(files: dict[str, Path]) -> dict[str, Schema]:
    return {db_id: Schema.from_sqlite(file) for db_id, file in files.items()}


@pytest.fixture(scope="module")
def talks(worlds: dict[str, World], schemas: dict[str, Schema]) -> dict[str, list[Conversation]]:
    return {k: converse(world, schemas[k], COUNT, seed=0) for k, world in worlds.items()}


def test_the_domains_differ_and_have_keys(schemas: dict[str, Schema]) -> None:
    assert len(schemas) == 12
    for schema in schemas.values():
        assert 2 <= len(schema.tables) <= 3
        assert len(schema.foreign_keys) == len(schema.tables) - 1
        assert {"text", "number"} <= {column.kind for column in schema.columns}
    shapes = [{table.words for table in schema.tables} for schema in schemas.values()]
    assert sum(map(len, shapes)) == len(set().union(*shapes))  # no table occurs twice


def test_every_query_is_the_benchmarks_sql_and_runs(
    talks: dict[str, list[Conversation]], schemas: dict[str, Schema], files: dict[str, Path]
) -> None:
    for db_id, conversations in talks.items():
        database, answered = Database(files[db_id]), Counter[bool]()
        queries = {str(turn.query) for talk in conversations for turn in talk.interaction.turns}
        for query in queries:
            assert to_sql(parse(query, schemas[db_id]), schemas[db_id]) == query
            result = database.execute(query)
            assert result.status == "ok", (query, result.message)
            answered[bool(result.rows)] += 1
        assert answered[True] > 0.9 * len(queries)  # most questions have an answer


def test_every_pattern_occurs_among_the_test_databases(
    talks: dict[str, list[Conversation]],
) -> None:
    tested = [talk for db_id in databases_for_testing() for talk in talks[db_id]]
    seen = Counter(name for talk in tested for name in talk.patterns)
    assert set(seen) == {OPENING, *DIALOGUE}
    assert len(DIALOGUE) >= 10
    assert max(seen[name] for name in DIALOGUE) < 0.2 * sum(seen.values())  # and none rules


def test_a_dialogue_begins_on_its_own_and_goes_on(talks: dict[str, list[Conversation]]) -> None:
    lengths: Counter[int] = Counter()
    for talk in (talk for conversations in talks.values() for talk in conversations):
        turns = talk.interaction.turns
        lengths[len(turns)] += 1
        assert talk.patterns[0] == OPENING
        assert turns[0].utterance == turns[0].rewrite
        assert OPENING not in talk.patterns[1:]
        for before, after in pairwise(turns):
            assert before.rewrite != after.rewrite
    assert set(lengths) == {2, 3, 4, 5}


def stems(text: str) -> set[str]:
    """Words without endings: singer and singers, country and countries are the same."""
    words = re.findall(r"\w+", text.lower())
    return {re.sub(r"(ies|y|es|s)$", "", word) for word in words}


def test_a_rewrite_restores_what_stands_in_the_history_or_the_schema(
    talks: dict[str, list[Conversation]], schemas: dict[str, Schema]
) -> None:
    frames = stems(" ".join(FRAMES))
    restored = 0
    for db_id, conversations in talks.items():
        schema = schemas[db_id]
        names = [t.words for t in schema.tables] + [c.words for c in schema.columns]
        known = stems(" ".join(names))
        for talk in conversations:
            said = known | frames
            for turn in talk.interaction.turns:
                rewrite = stems(str(turn.rewrite))
                assert rewrite <= said | stems(turn.utterance), (talk, turn)
                restored += len(rewrite - frames - stems(turn.utterance)) > 0
                said = said | stems(turn.utterance)
    assert restored > 0.4 * sum(len(t.interaction.turns) for c in talks.values() for t in c)


def test_the_same_seed_makes_the_same_dialogues(
    worlds: dict[str, World], schemas: dict[str, Schema]
) -> None:
    name = databases_for_testing()[0]
    assert make_worlds(0)[name].script() == worlds[name].script() != make_worlds(1)[name].script()
    first, again, other = (converse(worlds[name], schemas[name], 20, seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_questions_are_hardly_ever_repeated(talks: dict[str, list[Conversation]]) -> None:
    """What is learned by heart in training would otherwise come again in validation."""
    opened = [talk.interaction.turns[0].utterance for c in talks.values() for talk in c]
    assert len(set(opened)) > 0.7 * len(opened)


def test_thousands_of_dialogues_take_seconds(
    worlds: dict[str, World], schemas: dict[str, Schema]
) -> None:
    began = time.process_time()
    made = [converse(world, schemas[k], 250, seed=2) for k, world in worlds.items()]
    assert sum(map(len, made)) == 3000
    assert time.process_time() - began < 6  # 1.1 s measured

"""Every layout of the field is read as it stands; what is malformed is refused by its entry."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from datamodules.dialogue_sources import LAYOUTS, Dialogues, read_dialogues
from datamodules.multi_turn_sql import MultiTurnSql
from text2sql.dialogue import Interaction, Turn

SPIDER = {"db_id": "pets", "question": " How many cats are there? ", "query": "SELECT 1"}
SPARC = {
    "database_id": "pets",
    "interaction": [
        {"utterance": "Show all cats.", "query": "SELECT * FROM cat", "utterance_toks": []},
        {"utterance": "Their names?", "query": "SELECT Name FROM cat WHERE a = 'x'"},
    ],
    "final": {"utterance": "Name all cats.", "query": 'select name  from cat where a = "x";'},
}
PARTIAL = {
    "database_id": "pets",
    "text_list": "...",
    "turns_heuristic": ["Show all cats.", "Their names?"],
    "final": {"utterance": "Name all cats.", "query": "SELECT Name FROM cat"},
}
PAIR = {
    "id": 3,
    "database_id": "pets",
    "history": ["Show all cats."],
    "utterance": "Their names?",
    "rewrite": "Name all cats.",
    "query": "SELECT Name FROM cat",
}
FULL = {
    "db_name": "pets",
    "turns": [
        {"isUser": True, "text": "Hello!", "type": "GREETING"},
        {"isUser": False, "text": "Hi.", "query": "", "label": "GREETING"},
        {"isUser": True, "text": "Show all cats.", "type": "INFORM_SQL"},
        {"isUser": False, "text": "Here.", "query": "SELECT 1", "label": "CONFIRM_SQL"},
        {"isUser": True, "text": "Their names?", "type": "INFORM_SQL"},
        {"isUser": False, "text": "Whose?", "query": "", "label": "CLARIFY"},
    ],
}
CANARD = {
    "History": ["Anna Vissi", "1983", "What happened?", "She moved."],
    "QuAC_dialog_id": "C_1",
    "Question": "Where did she move?",
    "Question_no": 2,
    "Rewrite": "Where did Anna Vissi move?",
}


def write(folder: Path, *entries: Any) -> Path:
    path = folder / "data.json"
    path.write_text(json.dumps(entries))
    return path


def read(folder: Path, *entries: Any) -> Dialogues:
    return read_dialogues(write(folder, *entries))


def test_spider(tmp_path: Path) -> None:
    full = SPIDER | {"query_toks": [], "sql": {"select": [False, [[3, None]]]}}
    found = read(tmp_path, SPIDER, full)
    turn = Turn("How many cats are there?", "SELECT 1")
    assert found.interactions == (Interaction("pets", (turn,)),) * 2
    assert found.layout == "Spider"


def test_spider_as_the_hub_has_it(tmp_path: Path) -> None:
    from datasets import Dataset  # type: ignore[import-untyped]

    Dataset.from_list([SPIDER | {"question_toks": ["How"]}]).to_parquet(tmp_path / "s.parquet")
    found = read_dialogues(tmp_path / "s.parquet")
    assert found.interactions == read(tmp_path, SPIDER).interactions


def test_a_final_question_rewrites_the_last_turn_that_has_its_sql(tmp_path: Path) -> None:
    """Quotes, case, spaces and a final semicolon are not SQL; other SQL is another question."""
    other = SPARC | {"final": {"utterance": "Count the cats.", "query": "SELECT 2"}}
    bare = {key: value for key, value in SPARC.items() if key != "final"}
    found = read(tmp_path, SPARC, other, bare, SPARC | {"final": {"utterance": "Count."}})
    assert [i.turns[-1].rewrite for i in found.interactions] == ["Name all cats.", None, None, None]
    assert found.interactions[0].turns[0] == Turn("Show all cats.", "SELECT * FROM cat")
    assert found.skipped == {"final questions with other SQL than the last turn": 1}


def test_turns_may_lack_sql_and_may_have_rewrites(tmp_path: Path) -> None:
    turns = [{"utterance": "All cats?"}, {"utterance": "Names?", "query": None, "rewrite": "All?"}]
    found = read(tmp_path, {"database_id": "pets", "interaction": turns})
    assert found.interactions[0].turns == (Turn("All cats?"), Turn("Names?", None, "All?"))


def test_sparc_with_the_last_query_only(tmp_path: Path) -> None:
    normalised = {"utterance": "Name all cats.", "query_normalised": "select name from cat"}
    found = read(
        tmp_path,
        PARTIAL,
        PARTIAL | {"final": normalised},
        PARTIAL | {"turns_heuristic": ["Show all cats. Their names?"]},
        PARTIAL | {"final": None},
    )
    last = Turn("Their names?", "SELECT Name FROM cat", "Name all cats.")
    assert found.interactions[0] == Interaction("pets", (Turn("Show all cats."), last))
    assert found.interactions[1].turns[-1] == Turn("Their names?", None, "Name all cats.")
    assert len(found.interactions) == 2
    assert found.skipped == {
        "queries without their values as written": 1,
        "dialogues whose turns are not told apart": 2,
    }


def test_rewritten_last_turns_are_the_same_dialogues(tmp_path: Path) -> None:
    found = read(tmp_path, PAIR, PAIR | {"same_sql_as_final": False})
    assert found.interactions[0] == read(tmp_path, PARTIAL).interactions[0]
    assert found.interactions[1].turns[-1].rewrite is None
    assert found.skipped == {"final questions with other SQL than the last turn": 1}


def test_full_dialogues_give_the_questions_that_a_query_answers(tmp_path: Path) -> None:
    greeting = {"db_name": "pets", "turns": FULL["turns"][:2]}
    found = read(tmp_path, FULL, greeting)
    turns = (Turn("Show all cats.", "SELECT 1"), Turn("Their names?"))
    assert found.interactions == (Interaction("pets", turns),)
    assert found.skipped == {
        "what users said that no query answers": 2,
        "dialogues without a question": 1,
    }


def test_canard_is_about_no_database(tmp_path: Path) -> None:
    (interaction,) = read(tmp_path, CANARD).interactions
    assert interaction.db_id == ""
    assert [turn.utterance for turn in interaction.turns[:2]] == ["Anna Vissi", "1983"]
    last = Turn("Where did she move?", rewrite="Where did Anna Vissi move?")
    assert interaction.turns[-1] == last


@pytest.mark.parametrize(
    ("entry", "field"),
    [
        (SPIDER | {"question": ""}, "question"),
        (SPIDER | {"query": 3}, "query"),
        (SPIDER | {"db_id": None}, "db_id"),
        (SPARC | {"interaction": []}, "interaction"),
        (SPARC | {"interaction": [{"query": "SELECT 1"}]}, r"interaction\[0\]: utterance"),
        (SPARC | {"interaction": ["SELECT 1"]}, r"interaction\[0\]: must be an object"),
        (
            SPARC | {"interaction": [{"utterance": "a\ud800"}]},
            "utterance holds half a surrogate pair",
        ),
        (SPARC | {"final": "All cats."}, "final: must be an object"),
        (PARTIAL | {"turns_heuristic": "Show all cats."}, "turns_heuristic"),
        (PARTIAL | {"final": {"query": "SELECT 1"}}, "final: utterance"),
        (PAIR | {"history": [1]}, "history"),
        (PAIR | {"rewrite": " "}, "rewrite"),
        (FULL | {"turns": {}}, "turns"),
        (CANARD | {"History": None}, "History"),
        (CANARD | {"Rewrite": None}, "Rewrite"),
    ],
)
def test_a_malformed_entry_is_refused_by_number_and_field(
    entry: dict[str, Any], field: str, tmp_path: Path
) -> None:
    good = next(e for e in (SPIDER, SPARC, PARTIAL, PAIR, FULL, CANARD) if e.keys() == entry.keys())
    with pytest.raises(ValueError, match=rf"data\.json: entry 1.*{field}"):
        read(tmp_path, good, entry)


@pytest.mark.parametrize("entry", [{"sentence": "How many?"}, ["How many?"], None])
def test_an_unknown_layout_is_refused_with_those_that_are_known(entry: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.json: entry 0: .*no layout.*database_id") as error:
        read(tmp_path, entry)
    assert all(name in str(error.value) for name in LAYOUTS)


def test_entries_of_several_layouts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="entry 1: interaction must be a list of turns"):
        read(tmp_path, SPARC, SPIDER)


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "bad.parquet").write_text("{")
    for name, words in (
        ("none.json", "cannot be read"),
        ("bad.json", "is not JSON"),
        ("none.parquet", "no such file"),
        ("bad.parquet", "cannot be read as parquet"),
    ):
        with pytest.raises(ValueError, match=f"{name}.*{words}"):
            read_dialogues(tmp_path / name)
    with pytest.raises(ValueError, match="is empty"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"source": "file"}, "datamodule.source='file': must be 'files' or 'generated'"),
        ({"keep": "queries"}, "datamodule.keep='queries': must be 'all', .* 'query'"),
        ({"leaks": True}, "datamodule.leaks=True"),
        ({"batch_size": 0}, "datamodule.batch_size=0"),
        ({"limit": 0}, "datamodule.limit=0"),
        ({"val_databases": 0}, "datamodule.val_databases=0"),
        ({"val_databases": 1.5}, "datamodule.val_databases=1.5"),
        ({"annotated": 1.5}, "datamodule.annotated=1.5"),
        ({"rewrites": True}, "datamodule.rewrites=True"),
        ({"root": "/data"}, "datamodule.root is read by source=files only"),
        ({"source": "files"}, "datamodule.train: source=files needs at least one file"),
        (
            {"source": "files", "root": "/none", "train": ["a.json"], "test": ["b.json"]},
            "datamodule.train: no such file: /none/a.json",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        MultiTurnSql(**settings)


@pytest.mark.parametrize(
    ("file", "interactions", "turns", "queries", "rewrites"),
    [
        ("spider/dev.json", 1034, 1034, 1034, 0),
        ("spider/train_spider_light.json", 7000, 7000, 7000, 0),
        ("sparc/dev.json", 422, 1203, 1203, 411),
        ("cosql/dev.json", 293, 1007, 1007, 72),
        ("derived/cosql_train_light.json", 2159, 7343, 7343, 0),
        ("derived/cosql_train_full_dialogues_no_dev_dbs.json", 2160, 7545, 7359, 0),
        ("derived/sparc_train_partial.json", 3002, 9038, 2916, 3002),
        ("derived/sparc_train_lastturn_rewrite_pairs.json", 3002, 9038, 3002, 3002),
        ("derived/sparc_dev_lastturn_rewrite_pairs.json", 422, 1203, 422, 411),
        ("canard/dev.json", 3430, 32768, 0, 3430),
    ],
)
def test_counts_of_the_real_files(
    file: str, interactions: int, turns: int, queries: int, rewrites: int
) -> None:
    if not (folder := os.environ.get("FRUGAL_DATA")):
        pytest.skip("FRUGAL_DATA is not set: no benchmark data here")
    found = read_dialogues(Path(folder) / "text2sql" / file).interactions
    every = [turn for interaction in found for turn in interaction.turns]
    assert (len(found), len(every)) == (interactions, turns)
    assert sum(turn.query is not None for turn in every) == queries
    assert sum(turn.rewrite is not None for turn in every) == rewrites

"""Files of predictions get the community's verdicts; what does not fit together is named."""

import csv
import json
import time
from pathlib import Path
from typing import Any

import pytest

from text2sql.evaluation import (
    Evaluator,
    Gold,
    evaluate,
    find_databases,
    read_gold,
    read_predictions,
)
from text2sql.schema import Schema, read_tables

GOLD = """SELECT name FROM singer\tconcerts
SELECT name FROM singer WHERE age > 26\tconcerts

SELECT title FROM concert ORDER BY year DESC\tconcerts
"""


@pytest.fixture
def gold(tmp_path: Path) -> Path:
    file = tmp_path / "gold.txt"
    file.write_text(GOLD)
    return file


@pytest.fixture
def evaluator(schema: Schema, database: Path) -> Evaluator:
    return Evaluator({"concerts": schema}, {"concerts": database})


def predict(folder: Path, text: str) -> Path:
    file = folder / "predictions.txt"
    file.write_text(text)
    return file


def test_the_gold_file_is_all_right(gold: Path, evaluator: Evaluator) -> None:
    golds = read_gold(gold)
    assert [[turn.db_id for turn in turns] for turns in golds] == [["concerts"] * 2, ["concerts"]]
    scores = evaluate(golds, read_predictions(gold, golds), evaluator)
    assert set(scores.metrics().values()) == {1.0}
    assert scores.by_turn() == {
        "1": {"count": 2, "exact": 1, "execution": 1},
        "2": {"count": 1, "exact": 1, "execution": 1},
    }
    assert set(scores.components().values()) == {1.0}


def test_turns_and_interactions_are_counted(
    gold: Path, tmp_path: Path, evaluator: Evaluator
) -> None:
    text = (
        "SELECT name FROM singer\nSELECT name FROM singer WHERE age > 99\n\n"
        "SELECT title, 1 FROM concert\n"
    )
    golds = read_gold(gold)
    scores = evaluate(golds, read_predictions(predict(tmp_path, text), golds), evaluator)
    # Exact ignores the 99, execution does not; the last one does not even parse, but runs.
    assert [v.exact for v in scores.verdicts] == [True, True, False]
    assert [v.execution for v in scores.verdicts] == [True, False, False]
    assert [v.parsed for v in scores.verdicts] == [True, True, False]
    assert scores.metrics() == {
        "exact": 2 / 3,
        "exact_interaction": 1 / 2,
        "execution": 1 / 3,
        "execution_interaction": 0.0,
    }
    assert json.loads(json.dumps(scores.to_dict()))["interactions"] == 2


def test_predictions_without_values_are_read(schema: Schema) -> None:
    evaluator = Evaluator({"concerts": schema})
    for text in ('age > "value" LIMIT 1', "age > value LIMIT 1"):
        verdict = evaluator.judge(
            Gold("SELECT name FROM singer WHERE age > 3 LIMIT 2", "concerts"),
            f"SELECT name FROM singer WHERE {text}",
            0,
            0,
        )
        assert verdict.exact
        assert verdict.execution is None


def test_a_gold_query_that_fails_is_a_miss_and_no_crash(evaluator: Evaluator) -> None:
    gold = Gold("SELECT T1.name FROM singer", "concerts")
    verdict = evaluator.judge(gold, gold.query, 0, 0)
    assert (verdict.exact, verdict.execution, verdict.hardness) == (False, False, "unreadable")
    assert verdict.gold_status == "failed"


def test_missing_turns_are_an_error_or_counted_or_left_out(
    gold: Path, tmp_path: Path, evaluator: Evaluator
) -> None:
    golds = read_gold(gold)
    text = "SELECT name FROM singer\n\nSELECT title FROM concert ORDER BY year DESC\n"
    predictions = read_predictions(predict(tmp_path, text), golds)
    with pytest.raises(ValueError, match=r"interaction 0, turn 1 .*missing"):
        evaluate(golds, predictions, evaluator)
    wrong = evaluate(golds, predictions, evaluator, "wrong")
    assert wrong.metrics()["exact"] == 2 / 3
    assert wrong.verdicts[1].prediction is None
    # The official script pairs lines by zip: a missing last turn is in no count.
    assert evaluate(golds, predictions, evaluator, "skip").metrics()["exact"] == 1


def test_what_is_too_much_is_named(gold: Path, tmp_path: Path, evaluator: Evaluator) -> None:
    golds = read_gold(gold)
    with pytest.raises(ValueError, match="1 interactions of predictions for 2"):
        evaluate(golds, read_predictions(predict(tmp_path, "a\nb\nc"), golds), evaluator)
    with pytest.raises(ValueError, match="interaction 1: 2 predictions for 1"):
        evaluate(golds, read_predictions(predict(tmp_path, "a\nb\n\nc\nd"), golds), evaluator)


def test_spider_and_json_files_are_read(tmp_path: Path, gold: Path) -> None:
    spider = tmp_path / "dev.sql"
    spider.write_text(GOLD.replace("\n\n", "\n"))
    golds = read_gold(spider)
    assert [len(turns) for turns in golds] == [1, 1, 1]
    assert len(read_predictions(predict(tmp_path, "a\n\nb\nc"), golds)) == 3

    entries: list[Any] = [
        {"database_id": "concerts", "interaction": [{"query": "q1"}, {"query": "q2"}]},
        {"db_id": "concerts", "query": "q3"},
    ]
    dev = tmp_path / "dev.json"
    dev.write_text(json.dumps(entries))
    assert [[turn.query for turn in turns] for turns in read_gold(dev)] == [["q1", "q2"], ["q3"]]
    answers = tmp_path / "answers.json"
    answers.write_text(json.dumps([["p1", None], ["p3"]]))
    assert read_predictions(answers, golds) == [["p1", None], ["p3"]]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("gold.txt", "SELECT 1\n", r"gold.txt:1: must be SQL, a tab"),
        ("gold.txt", "\n\n", "is empty"),
        ("gold.json", "{", "not JSON"),
        ("gold.json", '[{"interaction": []}]', "entry 0: has no text under database_id"),
        ("gold.json", '[{"db_id": "a", "interaction": [{}]}]', "entry 0, turn 0"),
        ("gold.json", '[{"db_id": "a", "interaction": 3}]', "entry 0: interaction"),
    ],
)
def test_malformed_files_are_named(name: str, content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=words):
        read_gold(tmp_path / name)
    with pytest.raises(ValueError, match=r"none.txt: cannot be read"):
        read_gold(tmp_path / "none.txt")


def test_databases_are_found_and_missing_ones_named(database: Path, tmp_path: Path) -> None:
    folder = database.parent.parent
    assert find_databases([tmp_path, folder], ["concerts"]) == {"concerts": database}
    assert find_databases([database.parent], ["concerts"]) == {"concerts": database}
    assert find_databases([folder.parent], ["concerts"])["concerts"].samefile(database)
    with pytest.raises(ValueError, match="no SQLite file for pets, cars; looked for pets/pets"):
        find_databases([folder], ["pets", "concerts", "cars"])
    with pytest.raises(ValueError, match="no such folder"):
        find_databases([tmp_path / "no"], [])


def test_a_database_without_schema_or_file_is_named(schema: Schema, database: Path) -> None:
    gold = Gold("SELECT 1", "pets")
    with pytest.raises(ValueError, match="interaction 4, turn 2: database 'pets' has no schema"):
        Evaluator({}).judge(gold, "", 4, 2)
    with pytest.raises(ValueError, match="no SQLite file"):
        Evaluator({"pets": schema}, {"concerts": database}).judge(gold, "", 4, 2)


# --- the official verdicts -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["star_sparc", "star_cosql", "chatgpt_sparc"])
def test_every_turn_has_the_official_verdict(name: str, benchmark: Path) -> None:
    file = benchmark / "verdicts" / f"{name}.tsv"
    with file.open(newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    executed = any(row["exec"] for row in rows)
    databases = find_databases([benchmark], {row["db_id"] for row in rows}) if executed else {}
    evaluator = Evaluator(read_tables(benchmark / "sparc" / "tables.json"), databases)
    differing = []
    for row in rows:
        where = int(row["interaction"]), int(row["turn"])
        verdict = evaluator.judge(Gold(row["gold"], row["db_id"]), row["prediction"], *where)
        ours: tuple[str, ...] = (str(int(verdict.exact)), verdict.hardness)
        if verdict.execution is not None:
            ours += (str(int(verdict.execution)),)
        if ours != (row["exact"], row["hardness"], row["exec"])[: len(ours)]:
            differing.append((where, ours))
    assert len(rows) in (1203, 1006)
    assert differing == []


def test_published_scores_of_star_are_reproduced_in_time(benchmark: Path) -> None:
    evaluator = Evaluator(read_tables(benchmark / "sparc" / "tables.json"))
    start = time.perf_counter()
    golds = read_gold(benchmark / "sparc" / "dev_gold.txt")
    predictions = read_predictions(benchmark / "predictions" / "star_sparc_dev_predict.txt", golds)
    scores = evaluate(golds, predictions, evaluator).metrics()
    assert time.perf_counter() - start < 20
    assert [round(100 * value, 1) for value in scores.values()] == [66.9, 46.9]
    golds = read_gold(benchmark / "derived" / "cosql_dev_gold_json_order.txt")
    predictions = read_predictions(benchmark / "predictions" / "star_cosql_dev_predict.txt", golds)
    with pytest.raises(ValueError, match="interaction 148, turn 1"):
        evaluate(golds, predictions, evaluator)
    scores = evaluate(golds, predictions, evaluator, "skip").metrics()
    assert [round(100 * value, 1) for value in scores.values()] == [59.5, 30.0]


@pytest.mark.parametrize(
    ("name", "failing"),
    [
        ("spider/dev_gold.sql", []),
        ("sparc/dev_gold.txt", [(161, 1)]),
        ("derived/cosql_dev_gold_json_order.txt", [(100, 1)]),
    ],
)
def test_gold_against_itself(name: str, failing: list[tuple[int, int]], benchmark: Path) -> None:
    """All exact; what does not run is a miss."""
    golds = read_gold(benchmark / name)
    databases = find_databases([benchmark], (turn.db_id for turns in golds for turn in turns))
    evaluator = Evaluator(read_tables(benchmark / "spider" / "tables.json"), databases)
    scores = evaluate(golds, read_predictions(benchmark / name, golds), evaluator)
    assert scores.metrics()["exact"] == 1.0
    missed = [(v.interaction, v.turn) for v in scores.verdicts if not v.execution]
    assert missed == failing

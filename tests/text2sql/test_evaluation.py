"""Files of predictions get the community's verdicts; what does not fit together is named."""

import csv
import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.text2sql.conftest import make
from text2sql.evaluation import Evaluator, Gold, evaluate
from text2sql.match import executable, without_masks
from text2sql.prediction_files import find_databases, read_gold, read_predictions
from text2sql.reports import notes
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
    assert json.loads(scores.to_json())["interactions"] == 2


@pytest.mark.parametrize(
    "text",
    [
        "age > value",
        "age > value;",
        'age > "value" LIMIT 1',
        "age > (value)",
        "age > value LIMIT value",
    ],
)
def test_predictions_without_values_are_read(text: str, evaluator: Evaluator) -> None:
    """A lone `value` stands for any value, in execution for 1."""
    limit = " LIMIT 2" if "LIMIT" in text else ""
    gold = Gold(f"SELECT name FROM singer WHERE age > 3{limit}", "concerts")
    verdict = evaluator.judge(gold, f"SELECT name FROM singer WHERE {text}", 0, 0)
    assert verdict.exact
    one = text.replace("value", "1")
    same = evaluator.judge(gold, f"SELECT name FROM singer WHERE {one}", 0, 0)
    assert (verdict.execution, verdict.status) == (same.execution, same.status)


def test_a_text_that_says_value_in_gold_and_prediction_is_kept(evaluator: Evaluator) -> None:
    gold = Gold("SELECT name FROM singer WHERE name > 'value'", "concerts")
    verdict = evaluator.judge(gold, f"{gold.query} ;", 0, 0)
    assert verdict.exact
    assert verdict.execution


def test_gold_outside_of_the_language_is_matched_by_its_own_text(evaluator: Evaluator) -> None:
    gold = Gold("SELECT name FROM singer WHERE age IS NULL OR age IN (25, 30)", "concerts")
    copied = evaluator.judge(gold, gold.query.replace(" WHERE", "   WHERE") + ";", 0, 0)
    assert (copied.exact, copied.execution, copied.hardness) == (True, True, "unreadable")
    other = evaluator.judge(gold, "SELECT name FROM singer WHERE age IN (30, 25)", 0, 1)
    assert (other.exact, other.execution) == (False, True)
    assert other.components == {"unreadable": False}
    readable = Gold("SELECT name FROM singer", "concerts")
    for order in ([readable, gold], [gold, readable]):
        scores = evaluate([order], [[order[0].query, None]], evaluator, "wrong")
        components = json.loads(scores.to_json())["components"]
        assert components["unreadable"] == (order[0] is gold)
        assert components["select"] == (order[0] is readable)


@pytest.mark.parametrize(
    ("prediction", "exact"),
    [
        ("SELECT count(*) FROM singer WHERE age > 3", True),
        ("select COUNT(*) from singer t where t.age>4", True),
        ("SELECT count(*) FROM singer WHERE age < 3", False),
        ("SELECT count(*) FROM singer WHERE age > 3 LIMIT 1 OFFSET 1", False),
    ],
)
def test_gold_that_only_standard_sql_has_is_compared_by_its_meaning(
    prediction: str, exact: bool, evaluator: Evaluator
) -> None:
    gold = Gold('SELECT count(*) AS n FROM "singer" WHERE age>3 -- grown up', "concerts")
    verdict = evaluator.judge(gold, prediction, 0, 0)
    assert (verdict.exact, verdict.hardness) == (exact, "easy")
    official = Gold("SELECT count(*) FROM singer WHERE age > 3", "concerts")
    # Where the official script can read the gold query, predictions are read as it does.
    assert evaluator.judge(official, prediction, 0, 0).exact == (
        exact and "t.age" not in prediction
    )


def test_a_gold_query_that_fails_is_a_miss_and_no_crash(evaluator: Evaluator) -> None:
    gold = Gold("SELECT T1.name FROM singer", "concerts")
    verdict = evaluator.judge(gold, gold.query, 0, 0)
    assert (verdict.exact, verdict.execution, verdict.hardness) == (True, False, "unreadable")
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
    assert not any("outside" in note or "left out" in note for note in notes(wrong, None))
    # The official script pairs lines by zip: a missing last turn is in no count.
    skipped = evaluate(golds, predictions, evaluator, "skip")
    assert skipped.metrics()["exact"] == 1
    assert "missing predictions, left out of all counts: 1" in notes(skipped, None)
    with pytest.raises(ValueError, match="all 3 predictions are missing"):
        evaluate(golds, [[None, None], [None]], evaluator, "skip")


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
    assert read_predictions(answers, read_gold(dev)) == [["p1", None], ["p3"]]


_DEV = [
    {
        "database_id": "concerts",
        "interaction": [{"query": "q1", "utterance": "a"}, {"query": "q2", "utterance": "b"}],
    },
    {"database_id": "concerts", "interaction": [{"query": "q3", "utterance": "c"}]},
]


def _predicted(**changes: Any) -> str:
    """A dev.json with predictions, and changes of its first turn (None: the key goes)."""
    content = json.loads(json.dumps(_DEV))
    for entry in content:
        for turn in entry["interaction"]:
            turn["prediction"] = turn["query"].replace("q", "p")
    content[0]["interaction"][0].update(changes)
    if changes.get("prediction", "") is ...:
        del content[0]["interaction"][0]["prediction"]
    return json.dumps(content, default=str)


def _write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_json_predictions_are_never_the_gold_queries(tmp_path: Path) -> None:
    golds = read_gold(_write(tmp_path, "dev.json", json.dumps(_DEV)))

    def read(text: str, complete: bool = False) -> list[list[str | None]]:
        return read_predictions(_write(tmp_path, "answers.json", text), golds, complete)

    assert read(_predicted()) == [["p1", "p2"], ["p3"]]
    assert read(_predicted(prediction=None)) == [[None, "p2"], ["p3"]]
    assert read(_predicted(prediction=" ")) == [[None, "p2"], ["p3"]]
    with pytest.raises(ValueError, match=r"answers.json: entry 0, turn 0: the prediction is miss"):
        read(_predicted(prediction=None), complete=True)
    for text in (json.dumps(_DEV), _predicted(prediction=..., predicted_sql="p1")):
        with pytest.raises(ValueError, match=r"entry 0, turn 0: needs the key prediction.*query"):
            read(text)
    with pytest.raises(ValueError, match=r"entry 0, turn 0: must be SQL or null, has \['p1'\]"):
        read(_predicted(prediction=["p1"]))
    # A list of SQL, in the order of the turns.
    assert read('["p1", null, "p3"]') == [["p1", None], ["p3"]]
    with pytest.raises(ValueError, match=r"answers.json: 2 predictions for 3 gold ones"):
        read('["p1", "p3"]')
    with pytest.raises(ValueError, match="entry 1: must be an interaction or a question, has 'p'"):
        read(json.dumps([_DEV[0] | {"interaction": [{"prediction": "p"}]}, "p"]))


@pytest.mark.parametrize("key", ["db_id", "database_id"])
def test_a_prediction_for_another_database_is_refused(key: str, tmp_path: Path) -> None:
    golds = read_gold(_write(tmp_path, "dev.json", json.dumps(_DEV)))
    answers = _write(tmp_path, "answers.json", _predicted(**{key: "pets"}))
    with pytest.raises(ValueError, match=r"turn 0: is a prediction for pets; .* about concerts"):
        read_predictions(answers, golds)
    two = read_gold(_write(tmp_path, "gold.txt", "SELECT 1\tcars\nSELECT 2\tpets\n"))
    swapped = _write(tmp_path, "text.txt", "SELECT 1\tcars\nSELECT 2\tcars\n")
    with pytest.raises(ValueError, match=r"text.txt:2: is a prediction for cars; .* about pets"):
        read_predictions(swapped, two)
    # A second column that is no database's name, such as a score, says nothing.
    scored = _write(tmp_path, "text.txt", "SELECT 1\t0.5\nSELECT 2\tpets\n")
    assert read_predictions(scored, two) == [["SELECT 1"], ["SELECT 2"]]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    gold = _write(tmp_path, "gold.txt", "\ufeffSELECT 1\tpets\n")
    assert read_gold(gold) == [[Gold("SELECT 1", "pets")]]
    answers = _write(tmp_path, "answers.txt", "\ufeffSELECT 1\n")
    assert read_predictions(answers, read_gold(gold)) == [["SELECT 1"]]
    listed = _write(tmp_path, "answers.json", '\ufeff["SELECT 1"]')
    assert read_predictions(listed, read_gold(gold)) == [["SELECT 1"]]


def test_an_empty_line_is_a_missing_prediction_of_spider(tmp_path: Path) -> None:
    golds = [[Gold(f"SELECT {n}", "pets")] for n in range(3)]

    def read(text: str, complete: bool = False) -> list[list[str | None]]:
        return read_predictions(_write(tmp_path, "answers.txt", text), golds, complete)

    assert read("a\n\nc\n") == [["a"], [None], ["c"]]
    assert read("a\nb\n\n") == [["a"], ["b"], [None]]
    assert read("\tpets\nb\tpets\nc") == [[None], ["b"], ["c"]]
    assert read("a\n\nb\n\nc\n\n") == [["a"], ["b"], ["c"]]
    with pytest.raises(ValueError, match=r"answers.txt:2: the prediction is missing"):
        read("a\n\nc\n", complete=True)
    with pytest.raises(ValueError, match=r"txt:2: 2 interactions .* for 3"):
        read("a\nb\n")
    with pytest.raises(ValueError, match=r"txt:5: 4 interactions .* for 3"):
        read("a\nb\n\nc\nd\n")


def test_turns_that_do_not_fit_are_named_by_file_and_line(tmp_path: Path) -> None:
    golds = [[Gold("SELECT 1", "pets")] * n for n in (2, 2, 1)]

    def read(text: str, complete: bool = False) -> list[list[str | None]]:
        return read_predictions(_write(tmp_path, "answers.txt", text), golds, complete)

    assert read("a\nb\n\nc\n\ne\n") == [["a", "b"], ["c", None], ["e"]]
    with pytest.raises(ValueError, match=r"txt:4: interaction 1, turn 1 .* is missing"):
        read("a\nb\n\nc\n\ne\n", complete=True)
    with pytest.raises(ValueError, match=r"txt:4: 2 interactions of predictions for 3"):
        read("a\nb\n\nc\nd\ne\n")
    with pytest.raises(ValueError, match=r"txt:6: interaction 1: 3 predictions for 2"):
        read("a\nb\n\nc\nd\nx\n\ne\n")


def test_a_file_with_one_interaction_is_one(tmp_path: Path) -> None:
    """A blank line ends it, as in the official files; Spider's have none."""
    text = "SELECT 1\tpets\nSELECT 2\tpets\n"
    assert [len(turns) for turns in read_gold(_write(tmp_path, "gold.txt", text + "\n"))] == [2]
    assert [len(turns) for turns in read_gold(_write(tmp_path, "gold.txt", text))] == [1, 1]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("gold.txt", "SELECT 1\n", r"gold.txt:1: must be SQL, a tab"),
        ("gold.txt", "\n\n", "is empty"),
        ("gold.jsonl", '{"query": "SELECT 1", "db_id": "a"}\n', "holds JSON: make it one list"),
        ("gold.txt", '\n [["SELECT 1"]]', "holds JSON"),
        ("gold.JSON", "{", "not JSON"),
        ("gold.json", "{", "not JSON"),
        ("gold.json", '[{"query": "a"}]', "entry 0, turn 0: .* under database_id"),
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
    odd = tmp_path / "suite" / "a[1]" / "a[1].sqlite"
    odd.parent.mkdir(parents=True)
    odd.touch()
    assert find_databases([tmp_path], ["a[1]"]) == {"a[1]": odd}
    with pytest.raises(ValueError, match="no SQLite file for pets, cars; looked for pets/pets"):
        find_databases([folder], ["pets", "concerts", "cars"])
    with pytest.raises(ValueError, match="no such folder"):
        find_databases([tmp_path / "no"], [])


def test_a_database_without_schema_is_named_and_one_without_file_not_executed(
    schema: Schema, database: Path
) -> None:
    gold = Gold("SELECT 1", "pets")
    with pytest.raises(ValueError, match="interaction 4, turn 2: database 'pets' has no schema"):
        Evaluator({}).judge(gold, "", 4, 2)
    verdict = Evaluator({"pets": schema}, {"concerts": database}).judge(gold, "SELECT 1", 4, 2)
    assert (verdict.execution, verdict.status, verdict.files) == (None, "", 0)


def test_every_file_of_a_test_suite_is_asked(tmp_path: Path) -> None:
    """As the official script does: one file that tells the queries apart is enough."""
    ddl = "CREATE TABLE customer (name TEXT, age INT); INSERT INTO customer VALUES ('Ann', 41)"
    file = make(tmp_path / "shop" / "shop.sqlite", ddl)
    schemas = {"shop": Schema.from_sqlite(file)}
    gold = Gold("SELECT name FROM customer WHERE age > 40", "shop")
    prediction = "SELECT name FROM customer WHERE age > 30"
    alone = Evaluator(schemas, {"shop": file}).judge(gold, prediction, 0, 0)
    assert (alone.execution, alone.files) == (True, 1)
    make(tmp_path / "shop" / "shop_fuzz1.sqlite", f"{ddl}, ('Bo', 36)")
    make(tmp_path / "shop" / "shop_fuzz2.sqlite", ddl)
    found = find_databases([tmp_path], ["shop"])
    assert found == {"shop": file}
    evaluator = Evaluator(schemas, found)
    verdict = evaluator.judge(gold, prediction, 0, 0)
    assert (verdict.execution, verdict.files) == (False, 3)
    assert evaluator.judge(gold, gold.query, 0, 0).execution
    # A gold query that does not run on one of them is a miss, where the official script ends.
    make(tmp_path / "shop" / "shop_fuzz3.sqlite", "CREATE TABLE other (x)")
    broken = Evaluator(schemas, found).judge(gold, gold.query, 0, 0)
    assert (broken.execution, broken.gold_status) == (False, "failed")
    # Files beside each other in one folder are databases of their own.
    flat = make(tmp_path / "flat" / "shop.sqlite", ddl)
    make(tmp_path / "flat" / "pets.sqlite", "CREATE TABLE pet (x)")
    assert Evaluator(schemas, {"shop": flat}).judge(gold, prediction, 0, 0).files == 1


def test_a_prediction_that_is_too_long_to_run_is_not_read_for_it(evaluator: Evaluator) -> None:
    """sqlparse takes 10 s a megabyte."""
    before = executable.cache_info().misses
    long = "SELECT DISTINCT name FROM singer WHERE " + "age = 1 OR " * 10_000 + "age = 1"
    verdict = evaluator.judge(Gold("SELECT name FROM singer", "concerts"), long, 0, 0)
    assert (verdict.parsed, verdict.status) == (True, "refused")
    assert executable.cache_info().misses <= before + 1  # the gold query


def test_results_are_bounded_and_forgotten(tmp_path: Path) -> None:
    numbers = "WITH RECURSIVE r(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM r LIMIT 3000)"
    file = make(
        tmp_path / "many.sqlite",
        f"CREATE TABLE t (x TEXT); {numbers} INSERT INTO t SELECT hex(zeroblob(50)) || n FROM r",
    )
    evaluator = Evaluator({"many": Schema.from_sqlite(file)}, {"many": file}, kept_bytes=1_500_000)
    small = Gold("SELECT x FROM t LIMIT 3", "many")
    for n in range(9):
        verdict = evaluator.judge(
            small, f"SELECT T1.x FROM t AS T1 JOIN t AS T2 WHERE {n} < 99", 0, n
        )
        # Nothing beyond the gold query's rows is fetched.
        assert (verdict.execution, verdict.status) == (False, "longer")
    assert sum(result.size for result in evaluator._kept.values()) < 10_000
    for n in range(9):
        gold = Gold(f"SELECT x FROM t WHERE {n} < 99", "many")
        assert evaluator.judge(gold, gold.query, 0, n).execution
        assert evaluator.judge(gold, "SELECT x FROM t LIMIT 2999", 0, n).status == "ok"
    kept = sum(result.size for result in evaluator._kept.values())
    assert 1_000_000 < kept <= 1_500_000
    assert evaluator._kept_size == kept + 1000 * len(evaluator._kept)
    # What is asked again is still known: the same object.
    last = Gold("SELECT x FROM t WHERE 8 < 99", "many")
    before = evaluator._kept[file, last.query]
    evaluator.judge(last, last.query, 0, 0)
    assert evaluator._kept[file, last.query] is before
    evaluator.judge(Gold("SELECT x FROM t WHERE 0 < 99", "many"), "SELECT T1.x FROM t AS T1", 0, 0)
    assert (file, last.query) not in evaluator._kept


# --- the official verdicts -----------------------------------------------------------------------


def test_the_gold_queries_of_spiders_test_part_are_all_exact(benchmark: Path) -> None:
    """Also those that order by a column called value."""
    golds = read_gold(benchmark / "spider" / "test_gold.sql")
    evaluator = Evaluator(read_tables(benchmark / "spider" / "test_tables.json"))
    scores = evaluate(golds, [[gold.query + " " for gold in turns] for turns in golds], evaluator)
    assert len(scores.verdicts) == 2147
    assert [v.gold for v in scores.verdicts if not v.exact] == []
    # Not because they are copies: none changes when masks are taken out.
    assert all(without_masks(v.gold, evaluator.schemas[v.db_id]) == v.gold for v in scores.verdicts)


# By how the official script (`p_str.replace("value", "1")`) runs the predictions: turns that match.
_EXECUTED = {"star_sparc": 505, "star_cosql": 337, "chatgpt_sparc": 761}


@pytest.mark.parametrize("name", ["star_sparc", "star_cosql", "chatgpt_sparc"])
def test_every_turn_has_the_official_verdict(name: str, benchmark: Path) -> None:
    file = benchmark / "verdicts" / f"{name}.tsv"
    with file.open(newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    databases = find_databases([benchmark], {row["db_id"] for row in rows})
    evaluator = Evaluator(read_tables(benchmark / "sparc" / "tables.json"), databases)
    differing, matching = [], 0
    for row in rows:
        where = int(row["interaction"]), int(row["turn"])
        verdict = evaluator.judge(Gold(row["gold"], row["db_id"]), row["prediction"], *where)
        matching += bool(verdict.execution)
        ours = str(int(verdict.exact)), verdict.hardness, str(int(bool(verdict.execution)))
        if ours != (row["exact"], row["hardness"], row["exec"] or ours[2]):
            differing.append((where, ours))
    assert len(rows) in (1203, 1006)
    assert differing == []
    assert matching == _EXECUTED[name]


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

"""Match and scores of rewrites: those of the field's tools, or of brute force."""

from datetime import timedelta
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.text import BLEUScore

from tests.forked import Child
from text2sql.evaluation import Verdict
from text2sql.metrics import InteractionMatch, RewriteScores, longest_common
from text2sql.schema import Schema

WORDS = st.lists(st.sampled_from("abc"), max_size=6)


def scored(*rows: tuple[str, str, str], schema: Schema | None = None) -> dict[str, float]:
    metric = RewriteScores()
    for text, gold, utterance in rows:
        metric.update([text], [gold], [utterance], [schema])
    return {name: float(value) for name, value in metric.compute().items()}


def verdict(interaction: int, exact: bool, execution: bool | None = None) -> Verdict:
    return Verdict(
        interaction, 0, "x", "easy", exact, execution, True, {}, "", "", 0, "", "gold", "sql"
    )


def floats(found: dict[str, Any]) -> dict[str, float]:
    return {name: float(share) for name, share in found.items()}


def test_an_interaction_is_right_if_all_its_turns_are() -> None:
    match = InteractionMatch()
    match.update([verdict(3, True), verdict(3, False, True), verdict(0, True, True)])
    match.update([verdict(0, True, False)])
    assert floats(match.compute()) == {
        "exact": 0.75, "exact_interaction": 0.5,
        "execution": pytest.approx(2 / 3), "execution_interaction": 0.5,
    }  # fmt: skip
    match.reset()
    match.update([])
    assert match.compute() == {}


def test_a_process_without_turns_counts_with_the_others(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        store = f"file://{tmp_path}/store"
        dist.init_process_group(
            "gloo", init_method=store, rank=rank, world_size=2, timeout=timedelta(seconds=20)
        )
        match, scores = InteractionMatch(), RewriteScores()
        match.update([verdict(7, True), verdict(8, False)] if rank else [])
        rows = [["how old"], ["how old"], ["old"], [None]] if rank else [[], [], [], []]
        scores.update(*rows)
        assert floats(match.compute()) == {"exact": 0.5, "exact_interaction": 0.5}
        assert float(scores.compute()["exact"]) == 1.0

    children = [Child(lambda rank=rank: work(rank)) for rank in range(2)]
    ended = [child.wait(60) for child in children]
    assert [each.code for each in ended] == [0, 0], ended


@settings(deadline=None)
@given(one=WORDS, other=WORDS)
def test_the_longest_common_subsequence_is_that_of_brute_force(
    one: list[str], other: list[str]
) -> None:
    def some(words: list[str]) -> set[tuple[str, ...]]:
        return {sub for length in range(len(words) + 1) for sub in combinations(words, length)}

    assert longest_common(one, other) == max(map(len, some(one) & some(other)))


def test_a_perfect_rewrite_scores_one_whatever_its_case_and_spacing() -> None:
    row = ("which singers are from France ?", "Which singers are from France?", "From France?")
    expected = {"bleu": 1.0, "rouge_l": 1.0, "exact": 1.0, "restored_f1": 1.0}
    assert scored(row) == pytest.approx(expected)


def test_bleu_is_that_of_torchmetrics_over_the_whole_set() -> None:
    rows = [
        ("which singers are from peru", "which singers are from france now", "x"),
        ("how old are the singers", "how old are the singers there", "x"),
    ]
    texts, golds, _ = zip(*rows, strict=True)
    expected = BLEUScore(n_gram=4)(list(texts), [[gold] for gold in golds])
    assert scored(*rows)["bleu"] == pytest.approx(float(expected))


def test_only_words_that_the_utterance_lacks_are_restored() -> None:
    # Restored: singers, peru; wanted: singers, france.
    row = ("which singers are from peru", "which singers are from france", "which are from")
    assert scored(row)["restored_f1"] == pytest.approx(0.5)
    unchanged = ("what about it", "which singers", "what about it")
    assert scored(unchanged)["restored_f1"] == 0.0


def test_the_share_of_schema_words_stands_beside_that_of_gold(schema: Schema) -> None:
    found = scored(("singer name age", "the name of singers", "x"), schema=schema)
    assert found["schema_share"] == pytest.approx(1.0)
    assert found["schema_share_gold"] == pytest.approx(0.5)
    assert "schema_share" not in scored(("a", "a", "a"))


def test_batches_add_up_and_reset_forgets() -> None:
    rows = [("a b c d e", "a b c d f", "a"), ("x y", "x y", "x")]
    metric = RewriteScores()
    for text, gold, utterance in rows:
        metric.update([text], [gold], [utterance], [None])
    assert {k: float(v) for k, v in metric.compute().items()} == scored(*rows)
    metric.reset()
    metric.update(["x y"], ["x y"], ["x"], [None])
    assert float(metric.compute()["exact"]) == 1.0


def test_a_set_without_rewrites_has_no_scores() -> None:
    metric = RewriteScores()
    metric.update([], [], [], [])
    assert metric.compute() == {}
    empty = scored(("", "a", ""), ("a", "a", "a"))
    assert empty == {"bleu": 0.0, "rouge_l": 0.5, "exact": 0.5, "restored_f1": 0.0}

"""Sentences are scored as one by one and as lm-eval scores them; files are refused in words."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from language import harness
from language.minimal_pairs import accuracies, encode, judge, log_likelihoods, read_pairs
from tests.language.test_chat_rendering import byte_level, fast
from tests.language.test_generation import model

WORDS = ["The", "quick", "brown", "fox", "jumps", "over", "lazy", "dogs", "and", "naïve", "cats"]


def written(folder: Path, files: int = 2, lines: int = 15) -> Path:
    folder.mkdir()
    for number in range(files):
        rows = []
        for line in range(lines):
            good = " ".join(WORDS[(line * k + number) % len(WORDS)] for k in range(2, 5 + line % 4))
            rows.append({"sentence_good": good, "sentence_bad": " ".join(reversed(good.split()))})
        (folder / f"part_{number}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return folder


@torch.no_grad()
def one_by_one(built: Any, ids: list[int]) -> float:
    logits = built(input_ids=torch.tensor([ids])).logits[0, :-1].double()
    chosen = torch.log_softmax(logits, 1).gather(1, torch.tensor(ids[1:])[:, None])
    return float(chosen.sum())


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_sentences_are_scored_as_one_by_one(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, tokenizer = model(name, context=128), fast(byte_level())
    pairs = [pair for each in read_pairs(written(tmp_path / "a")).values() for pair in each]
    ids = encode(tokenizer, [sentence for pair in pairs for sentence in pair])
    assert all(row[0] == tokenizer.bos_token_id for row in ids)
    assert tokenizer.decode(ids[0][1:]) == f" {pairs[0][0]}"
    expected = [one_by_one(built, row) for row in ids]
    for logits in (1 << 25, 1):  # in large batches and alone
        monkeypatch.setattr("language.minimal_pairs._LOGITS", logits)
        assert log_likelihoods(built, ids) == pytest.approx(expected, abs=1e-4)
    verdicts = judge(built, tokenizer, pairs, 128)
    assert verdicts == [g >= b for g, b in zip(expected[::2], expected[1::2], strict=True)]
    assert 0 < sum(verdicts) < len(verdicts)


@torch.no_grad()
def test_a_sentence_longer_than_the_context_is_scored_by_what_the_context_holds() -> None:
    built = model(context=8)
    for length in (2, 8, 9, 10, 30):  # up to nine the last token is only predicted
        ids = torch.randint(built.config.vocab_size, (length,)).tolist()
        expected = 0.0
        for end in range(1, length):
            logits = built(input_ids=torch.tensor([ids[max(0, end - 8) : end]])).logits[0, -1]
            expected += float(torch.log_softmax(logits.double(), 0)[ids[end]])
        assert log_likelihoods(built, [ids, ids[:2]], 8)[0] == pytest.approx(expected, abs=1e-4)


def test_accuracy_is_the_mean_over_files() -> None:
    found = accuracies({"a": [True, False], "b": [True] * 10})
    assert found == {"a": 0.5, "b": 1.0, "mean": 0.75}


def test_files_that_hold_something_else_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no folder with jsonl files"):
        read_pairs(tmp_path)
    folder = written(tmp_path / "a")
    assert {name: len(each) for name, each in read_pairs(folder, 4).items()} == {
        "part_0": 4,
        "part_1": 4,
    }
    (folder / "part_1.jsonl").write_text('\n{"sentence_good": "a"}\n')
    with pytest.raises(ValueError, match=r"part_1.jsonl, line 2: no object with sentence_good"):
        read_pairs(folder)


def test_a_byte_order_mark_and_empty_lines_are_no_pairs(tmp_path: Path) -> None:
    file = tmp_path / "part.jsonl"
    row = {"sentence_good": "a b", "sentence_bad": "b a"}
    file.write_text(f"\ufeff{json.dumps(row)}\n \n{json.dumps(row)}\n\n", encoding="utf-8")
    assert read_pairs(tmp_path) == {"part": [("a b", "b a")] * 2}
    assert read_pairs(tmp_path, 1) == {"part": [("a b", "b a")]}


def test_lm_eval_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ImportError, match="of the extra lm_eval"):
        harness.evaluate(None, None, ["blimp"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_lm_eval_gives_the_same_accuracies(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="the extra lm_eval is not installed")
    built, tokenizer = model(context=128), fast(byte_level())
    folder = written(tmp_path / "a")
    ours = accuracies(
        {name: judge(built, tokenizer, each) for name, each in read_pairs(folder).items()}
    )
    theirs = harness.evaluate(built, tokenizer, ["blimp"], str(folder))
    assert {f"blimp_{name}": share for name, share in ours.items() if name != "mean"} == {
        task: metrics["acc"] for task, metrics in theirs.items()
    }
    with pytest.raises(ValueError, match="lm-eval has no blmp"):
        harness.evaluate(built, tokenizer, ["blmp"])
    with pytest.raises(ValueError, match=r"more tokens than the model's context \(4\)"):
        harness.evaluate(model(context=4), tokenizer, ["blimp"], str(folder))

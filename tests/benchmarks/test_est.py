"""The benchmark's figures: the papers' savings are counted, and the JSON has what it promises."""

import json
import pydoc_data.topics
from pathlib import Path

import pytest

from benchmarks import est, est_quality


@pytest.mark.parametrize(
    ("experiment", "blocks", "everything"),
    [
        ("est_gpt2_paper", 0.267, 0.195),
        pytest.param("est_tinyllama_paper", 0.250, 0.237, marks=pytest.mark.slow),
    ],
)
def test_default_schedules_save_what_the_papers_report(
    experiment: str, blocks: float, everything: float
) -> None:
    """Counted while the paper-scale model runs on fake tensors, over the whole schedule."""
    saved = est.schedule_savings(est.Plan.of(experiment), tokens_per_step=491_520)
    assert saved["flops_saved_blocks"] == pytest.approx(blocks, abs=0.002)
    assert saved["flops_saved_all"] == pytest.approx(everything, abs=0.002)


def test_the_json_holds_what_the_benchmark_promises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 16, "vocab_size": 50}
    monkeypatch.setitem(est.TIMED, "quick", small)
    monkeypatch.setattr(est, "peak_memory_ratio", lambda args: 1.0)
    path = tmp_path / "est.json"
    est.main(["--quick", "--no-quality", "--rounds", "2", "--json", str(path)])
    result = json.loads(path.read_text())
    assert {
        "flops_saved_blocks",
        "flops_saved_all",
        "time_saved",
        "realised",
        "tinyllama_flops_saved_blocks",
        "stages",
        "peak_memory_ratio",
        "quality",
        "versions",
    } <= result.keys()
    stages = result["stages"]
    assert [round(s["flops_saved_blocks"], 6) for s in stages] == [0.75, 0.5, 0.0]
    assert sum(s["share"] for s in stages) == pytest.approx(1.0)
    assert stages[2]["time_saved"] == 0.0


@pytest.mark.slow
def test_a_training_is_measured_once_and_shown(
    tmp_path: Path, cache_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two arms of one seed at a budget of a few steps; a second call finds them done."""
    text = tmp_path / "topics.txt"
    text.write_text("\n".join(pydoc_data.topics.topics.values())[:100_000])
    results = tmp_path / "results.jsonl"
    arguments = ["--budgets", "0.04", "--seeds", "1", "--results", str(results)]
    for override in (
        "datamodule=text",
        "datamodule.batch_size=8",
        f"datamodule.files={text}",
        f"paths.cache_dir={cache_dir}",
    ):
        arguments += ["--override", override]
    est_quality.main(arguments)
    once = results.read_text()
    est_quality.main([*arguments, "--figure", str(tmp_path / "loss.png")])
    assert results.read_text() == once
    assert (tmp_path / "loss.png").stat().st_size > 10_000
    dense, sampled = map(json.loads, once.splitlines())
    assert (dense["arm"], sampled["arm"]) == ("dense", "EST")
    assert dense["steps"] == sampled["steps"] == 4
    assert sampled["block_flops"] < dense["block_flops"]
    assert "dense" in capsys.readouterr().out

"""DLCH's benchmarks: all strategies in one run, in a JSON that goes on, and drawn; mAP at size."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import dlch, hamming_search


@pytest.mark.slow
def test_the_json_holds_every_strategy_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = np.random.default_rng(0)
    labels = np.eye(10, dtype=np.uint8)[np.arange(400) % 10]
    image, text = (labels @ draw.normal(size=(10, 8)).astype(np.float32) for _ in range(2))
    data = tmp_path / "features.npz"
    np.savez(data, image=image, text=text, labels=labels)
    path = tmp_path / "dlch.json"
    arguments = ["--quick", "--data", str(data), "--json", str(path), "--bits", "16"]
    arguments += ["--override", "datamodule.queries=0.2", "--override", "module.text_width=16"]
    dlch.main(arguments)
    result = json.loads(path.read_text())
    assert set(result["map"]) == {"lifelong", "no_update", "fine_tune", "retrain"}
    for found in result["map"].values():
        assert set(found) == {"all", "old", "new"}
        assert all(0 <= found[group][d] <= 1 for group in found for d in ("i2t", "t2i"))
    assert 0 < result["steps_saved"] < 1
    assert {"time_saved", "overhead_share", "relative_gain"} <= result.keys()
    assert result["search"]["same_results"], "our store finds what faiss finds"
    assert 0 < result["search_ratio_to_faiss"] < 10
    assert path.with_suffix(".png").stat().st_size > 10_000
    capsys.readouterr()
    dlch.main(arguments)  # every training is there
    assert json.loads(path.read_text())["map"] == result["map"]


@pytest.mark.slow
def test_map_is_measured_in_a_process_of_its_own() -> None:
    """What it reports is what the same call finds here, with that process's time and memory."""
    sizes = {"items": 300, "queries": 30, "bits": 16, "classes": 5, "rounds": 1}
    found = hamming_search.measure_map(**sizes)
    assert found.items() >= sizes.items() - {("rounds", 1)}
    here = hamming_search.mean_average_precisions(**sizes)
    for direction in ("i2t", "t2i"):
        assert found[direction] == here[direction]
    assert found["seconds"] > 0
    assert found["peak_bytes"] > 50e6, "torch alone takes more"

"""The papers' savings are counted, arms take turns, and the JSON has what it promises."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config

from benchmarks import gpu, hamming_search, steps
from benchmarks.arena import Course, Part, compare, interleaved, process_of_its_own
from subnetworks.flops import StepFlops
from subnetworks.schedule import Rates
from subnetworks.spec import Dimensions, SubnetworkSpec, planned_subnetwork


@pytest.mark.parametrize(
    ("experiment", "blocks", "everything"),
    [
        ("est_gpt2_paper", 0.267, 0.195),
        pytest.param("est_tinyllama_paper", 0.250, 0.237, marks=pytest.mark.slow),
    ],
)
def test_the_papers_schedules_save_what_they_report(
    experiment: str, blocks: float, everything: float
) -> None:
    """Counted while the paper-scale model runs on fake tensors, over the whole schedule."""
    saved = steps.counted_savings(experiment)
    assert saved["flops_saved_blocks"] == pytest.approx(blocks, abs=0.002)
    assert saved["flops_saved_all"] == pytest.approx(everything, abs=0.002)


def test_arms_take_turns_until_there_is_no_time() -> None:
    turns: list[str] = []

    def arm(name: str) -> float:
        turns.append(name)
        return float(len(turns))

    arms = {name: lambda n=name: arm(n) for name in "ab"}
    assert interleaved(arms, 2) == {"a": [1.0, 3.0], "b": [2.0, 4.0]}
    assert interleaved(arms, 9, until=perf_counter() - 1) == {"a": [5.0], "b": [6.0]}


def test_what_choosing_costs_is_of_the_timed_steps_alone() -> None:
    """Not of the turn in which a GPU's memory is measured."""
    dimensions = Dimensions(1, 2, 2, 4)
    half = planned_subnetwork(dimensions, Rates(neurons=0.5))
    chooser: Any = SimpleNamespace(seconds=0.0)

    def step(spec: SubnetworkSpec, chosen: Any = None) -> None:
        if chosen is not None:
            chosen.seconds += 0.25

    def seconds(take: Callable[[], None]) -> float:
        take()
        return 1.0

    stepper: Any = SimpleNamespace(
        config=GPT2Config(n_layer=1, n_head=2, n_inner=4),
        ids=torch.zeros(1, 1, 1),
        consecutive=1,
        step=step,
        seconds=seconds,
        flops=lambda *_: StepFlops(1.0, 1.0),
        peak_memory=lambda turn: int(turn()),
    )
    found = compare(stepper, {"sat": Course((Part(1.0, lambda: half),), chooser)}, 4)
    assert found["courses"]["sat"]["choosing_share"] == 0.25
    assert found["courses"]["sat"]["peak_bytes"] == 1


def test_the_json_holds_what_the_benchmark_promises(tmp_path: Path) -> None:
    path = tmp_path / "steps.json"
    steps.main(
        ["est_gpt2_paper", "sat_cpt", "--shape", "tiny-gpt2", "--rounds", "2",
         "--micro-batches", "1", "--batch-size", "2", "--no-count", "--no-memory",
         "--json", str(path)]
    )  # fmt: skip
    timed = json.loads(path.read_text())["timings"]
    assert set(timed) == {"tiny-gpt2, fp32", "tiny-gpt2, bf16"}
    for found in timed.values():
        est, sat = (found["courses"][name] for name in ("est_gpt2_paper", "sat_cpt"))
        saved = [part["flops_saved_blocks"] for part in est["parts"]]
        assert saved == pytest.approx([0.75, 0.5, 0.0])
        assert est["flops_saved_blocks"] == pytest.approx(0.75 * 0.133 + 0.5 * 0.334)
        # 0.6 of the steps at half of the units, the rest on four rungs down to all of them.
        assert [part["share"] for part in sat["parts"]] == pytest.approx([0.6] + [0.1] * 4)
        assert sat["parts"][-1]["time_saved"] == 0.0
        assert sat["choosing_share"] > est["choosing_share"] == 0.0


def test_what_has_no_time_is_left_out_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = {"first": (0.5, lambda until: 1), "second": (1.1, None), "third": (0.1, lambda until: 3)}
    monkeypatch.setattr(gpu, "parts", lambda args: done)
    path = tmp_path / "gpu.json"
    gpu.main(["--device", "cpu", "--shape", "tiny", "--minutes", "1", "--json", str(path)])
    result = json.loads(path.read_text())
    assert (result["first"], result["third"], result["left_out"]) == (1, 3, ["second"])
    assert result["versions"]["device"] == "cpu"
    with pytest.raises(SystemExit):
        gpu.main(["--device", "cpu", "--parts", "first", "fourth"])
    assert "fourth is none of first, second, third" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # the compiler's own, and
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # its look at gradients
@pytest.mark.slow
def test_the_first_minutes_on_a_gpu_are_rehearsed_on_a_cpu(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    gpu.main(
        [
            "--device",
            "cpu",
            "--shape",
            "tiny",
            "--minutes",
            "0.5",
            "--rounds",
            "2",
            "--json",
            str(path),
        ]
    )
    result = json.loads(path.read_text())
    assert result["dense"]["frugal"]["tokens_per_second"] > 0
    assert result["dense"]["nanogpt"]["mfu"] is None, "nobody says what a CPU could do"
    assert {"dense", "versions", "left_out", "seconds"} <= result.keys()


def test_every_arm_finds_the_same_in_what_it_saved(tmp_path: Path) -> None:
    hamming_search.build(2_000, 32, 20, tmp_path)
    queries = np.load(tmp_path / "queries.npy")
    expected = hamming_search.open_arm("store", tmp_path)(queries, 10)
    assert expected.rows.shape == (20, 10)
    for arm in ("flat", "kernel"):
        found = hamming_search.open_arm(arm, tmp_path)(queries, 10)
        assert np.array_equal(found.rows, expected.rows)
        assert np.array_equal(found.distances, expected.distances)


@pytest.mark.slow
def test_searches_are_timed_in_processes_of_their_own() -> None:
    found = hamming_search.measure(2_000, 32, queries=20, top=10, rounds=1)
    assert found["same_results"]
    assert 0 < found["search_ratio_to_faiss"] < 10


SIZES = {"items": 300, "queries": 30, "bits": 16, "classes": 5, "rounds": 1}


def test_map_is_that_of_codes_that_say_something_of_their_labels() -> None:
    found = hamming_search.mean_average_precisions(**SIZES)
    assert found.items() >= SIZES.items() - {("rounds", 1)}
    assert 0.4 < found["i2t"] < 1
    assert found["i2t"] == pytest.approx(found["t2i"], abs=0.1)


@pytest.mark.slow
def test_map_is_measured_in_a_process_of_its_own() -> None:
    """What it reports is what the same call finds here, with that process's time and memory."""
    with process_of_its_own() as call:
        found = call(partial(hamming_search.mean_average_precisions, **SIZES))
    here = hamming_search.mean_average_precisions(**SIZES)
    assert np.isclose(found["i2t"], here["i2t"])
    assert np.isclose(found["t2i"], here["t2i"])
    assert found["seconds"] > 0
    assert found["peak_bytes"] > 50e6, "torch alone takes more"

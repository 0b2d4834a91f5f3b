"""The ladder's stages, and what its settings may be."""

from typing import Any

import pytest

from runner.validate import bind
from subnetworks.ladder import check, ladder, stages_of
from subnetworks.schedule import Schedule

HALF = {"heads": 0.5, "neurons": 0.4}
LLAMA = {"n_layers": 4, "n_heads": 8, "n_kv_heads": 2, "intermediate_size": 64}


def omissions(stages: list[dict[str, float]], steps: int = 80) -> list[float]:
    schedule = Schedule(stages)
    return [round(1 - schedule.rates_at(step, steps).heads, 6) for step in range(steps)]


def test_default_holds_and_goes_down_to_dense() -> None:
    rates = omissions(ladder(HALF))
    assert rates[:48] == [0.5] * 48
    assert rates[48:] == [0.375] * 8 + [0.25] * 8 + [0.125] * 8 + [0.0] * 8
    assert 1 - Schedule(ladder(HALF)).rates_at(0, 80).neurons == pytest.approx(0.4)


def test_direction_end_and_warmup() -> None:
    rising = omissions(ladder(HALF, direction="rising", hold=0.5, end=0.5, rungs=2))
    assert rising == [0.25] * 20 + [0.375] * 20 + [0.5] * 40
    warm = omissions(ladder(HALF, hold=1.0, warmup=0.25))
    assert warm == [0.0] * 20 + [0.5] * 60


def test_explicit_list() -> None:
    stages = stages_of(None, [{"until": 0.5, "heads": 0.5}, {"until": 1.0, "neurons": 0.25}])
    assert omissions(stages, 4) == [0.5, 0.5, 0.0, 0.0]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"omission": {"heads": 0.7}},
            r"^omission.heads: .* keeps 0.6 of 2 key/value groups, below one; .* at most 0.5, or",
        ),
        (
            {"ladder": [{"until": 1.0, "neurons": 0.99}]},
            r"^ladder\[0\].neurons: .* keeps 0.64 of 64 neurons",
        ),
        ({"omission": HALF, "multiple_of": 64}, r"multiple_of=64: a layer has 64 neurons"),
        (
            {"omission": HALF, "frozen": 0.5, "forward_only": 0.75},
            r"frozen=0.5 and forward_only=0.75 are more than all units left out",
        ),
        ({"ladder": [{"until": 0.5, "heads": 0.5}]}, r"increase from above 0 to exactly 1"),
        ({"omission": HALF, "importance": "wonder"}, r"importance='wonder': must be one of"),
        ({"omission": HALF, "layer_factors": {4: 0}}, r"layer 4 is unknown; the model has 4"),
    ],
)
def test_refusals(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check(settings, LLAMA)


def test_all_but_one_unit_can_be_left_out_and_no_more() -> None:
    ten = LLAMA | {"n_heads": 10, "n_kv_heads": 10}
    check({"omission": {"heads": 0.9}}, ten)
    with pytest.raises(ValueError, match=r"it must be at most 0\.9, or"):
        check({"omission": {"heads": 0.91}}, ten)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"omission": {"heads": 1.0}}, "omission.heads=1.0 must be float in [0, 1)"),
        ({"omission": {"layers": 0.5}}, "omission.layers: no such key. There are: sat.omission."),
        ({"ladder": {"hold": 1.5}}, "ladder.hold=1.5 must be float in [0, 1]"),
        ({"forward_only": 1.5}, "forward_only=1.5 must be float in [0, 1]"),
        ({"context_forward_only": 1}, "context_forward_only=1 must be bool"),
        ({"ladder": {"rungs": 0}}, "ladder.rungs=0 must be int in [1, 1000]"),
        ({"ladder": {"step": 1}}, "ladder.step: no such key"),
        ({"ladder": {"direction": "up"}}, "ladder.direction='up' must be one of falling, rising"),
        ({"ladder": [{"until": 1.0, "layers": 0.5}]}, "ladder[0].layers: no such key"),
        ({"ladder": [{"heads": 0.5}]}, "ladder[0].until: missing"),
        ({"refresh_every": 0}, "refresh_every=0 must be int of at least 1"),
        ({"layer_factors": {0: 2}}, "layer_factors.0=2 must be float in [0, 1]"),
        ({"selection": "best"}, "selection='best' must be one of top_k, sample"),
    ],
)
def test_what_an_annotation_does_not_allow_is_refused(settings: dict[str, Any], words: str) -> None:
    """By the runner, from the source alone."""
    (said,) = bind("sat", {"_target_": "callbacks.sat.SparsityAcceleratedTraining", **settings})
    assert said.startswith(f"sat.{words}")

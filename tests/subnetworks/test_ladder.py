"""The ladder's stages, and what its settings may be."""

from typing import Any

import pytest

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
    stages = stages_of({"ladder": [{"until": 0.5, "heads": 0.5}, {"until": 1.0, "neurons": 0.25}]})
    assert omissions(stages, 4) == [0.5, 0.5, 0.0, 0.0]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"omission": {"heads": 1.0}}, r"omission.heads=1.0: an omission rate is a number"),
        ({"omission": {"layers": 0.5}}, r"omission.layers: unknown kind; allowed: heads, neurons"),
        ({"omission": {"heads": 0.7}}, r"keeps 0.6 of 2 key/value groups, below one"),
        ({"omission": HALF, "ladder": {"hold": 1.5}}, r"ladder.hold=1.5"),
        (
            {"omission": HALF, "frozen": 0.5, "forward_only": 0.75},
            r"frozen=0.5 and forward_only=0.75 are more than all units left out",
        ),
        (
            {"omission": HALF, "forward_only": 1.5},
            r"forward_only=1.5: a share of the units left out",
        ),
        (
            {"omission": HALF, "context_forward_only": 1},
            r"context_forward_only=1: must be true or false",
        ),
        ({"omission": HALF, "ladder": {"rungs": 0}}, r"ladder.rungs=0: from 1 to 1000 steps"),
        ({"omission": HALF, "ladder": {"step": 1}}, r"ladder.step: unknown key; allowed: hold"),
        ({"omission": HALF, "ladder": {"direction": "up"}}, r"ladder.direction='up'"),
        ({"ladder": [{"until": 0.5, "heads": 0.5}]}, r"increase from above 0 to exactly 1"),
        ({"ladder": [{"until": 1.0, "layers": 0.5}]}, r"ladder\[0\].layers: unknown key"),
        ({"omission": HALF, "importance": "wonder"}, r"importance='wonder': must be one of"),
        ({"omission": HALF, "refresh_every": 0}, r"refresh_every=0: must be a whole number"),
        ({"omission": HALF, "layer_factors": {4: 0}}, r"layer 4 is unknown; the model has 4"),
        ({"omission": HALF, "layer_factors": {0: 2}}, r"layer_factors\[0\]=2: a factor"),
    ],
)
def test_refusals(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check(settings, LLAMA)

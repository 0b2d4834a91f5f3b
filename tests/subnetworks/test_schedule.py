"""Schedules do what their data says, save what the papers report, and refuse what cannot run."""

import pickle
import re
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from runner.validate import bind
from subnetworks.families import UNITS
from subnetworks.schedule import Rates, Schedule, check
from subnetworks.spec import Dimensions, SubnetworkSpec, sample_subnetwork

HALF = {"layers": 0.5, "heads": 0.5, "neurons": 0.5}
STAGES = [
    {"until": 2 / 15, "sample": ["layers", "heads", "neurons"]},
    {"until": 7 / 15, "sample": ["heads", "neurons"]},
    {"until": 1.0},
]
GPT2 = {"n_layers": 12, "n_heads": 12, "n_kv_heads": 12, "intermediate_size": 3072}
TINYLLAMA = {"n_layers": 22, "n_heads": 32, "n_kv_heads": 4, "intermediate_size": 5632}


def test_stages_begin_and_end_on_their_steps() -> None:
    schedule = Schedule(STAGES, HALF)
    stages = Counter(schedule.stage_at(step, 150_000) for step in range(0, 150_000, 10))
    assert stages == {0: 2_000, 1: 5_000, 2: 8_000}
    assert schedule.rates_at(19_999, 150_000) == Rates(0.5, 0.5, 0.5)
    assert schedule.rates_at(20_000, 150_000) == Rates(1.0, 0.5, 0.5)
    assert schedule.rates_at(70_000, 150_000) == Rates()


def test_rates_move_linearly_within_a_stage() -> None:
    """A layer-only, decaying schedule is data: a plateau, a ramp, a recovery."""
    schedule = Schedule(
        [{"until": 0.5, "layers": 0.8}, {"until": 0.9, "layers": [0.8, 1.0]}, {"until": 1.0}]
    )
    rates = [schedule.rates_at(step, 1000).layers for step in range(1000)]
    assert set(rates[:500]) == {0.8}
    assert set(rates[900:]) == {1.0}
    assert rates[500] == 0.8
    assert rates[899] == 1.0
    steps = [b - a for a, b in pairwise(rates[500:900])]
    assert all(step == pytest.approx(0.2 / 399) for step in steps)


@pytest.mark.parametrize("grouped_queries", ["groups", "within_groups"])
def test_draws_are_exact_uniform_and_repeatable(grouped_queries: Any) -> None:
    dimensions = Dimensions(n_layers=6, n_heads=8, n_kv_heads=4, intermediate_size=10)

    def draw(seed: int) -> SubnetworkSpec:
        generator = torch.Generator().manual_seed(seed)
        return sample_subnetwork(
            dimensions, Rates(**HALF), generator, grouped_queries=grouped_queries
        )

    heads: Counter[int] = Counter()
    layers: Counter[int] = Counter()
    for seed in range(400):
        spec = draw(seed)
        assert (spec.count("layers"), spec.count("heads"), spec.count("neurons")) == (3, 12, 15)
        assert spec.count("kv_heads") == (6 if grouped_queries == "groups" else 12)
        layers.update(spec.active_layers)
        for layer in spec.active_layers:
            heads.update(spec.choice(layer).attention.active)
    # 400 draws at probability one half: the standard deviation is 10 for layers, 17 for heads.
    assert all(abs(layers[i] - 200) < 50 for i in range(6))
    assert all(abs(heads[i] - 600) < 85 for i in range(8))
    assert draw(7) == draw(7)
    assert hash(draw(7)) == hash(draw(7))
    assert draw(7) != draw(8)
    assert pickle.loads(pickle.dumps(draw(7))) == draw(7)


def test_layers_differ_unless_shared_and_exempt_layers_stay() -> None:
    dimensions = Dimensions(n_layers=6, n_heads=8, n_kv_heads=8, intermediate_size=64)
    generator = torch.Generator().manual_seed(0)
    own = sample_subnetwork(dimensions, Rates(1.0, 0.5, 0.5), generator)
    shared = sample_subnetwork(dimensions, Rates(1.0, 0.5, 0.5), generator, shared_indices=True)
    assert len({choice.mlp.active for choice in own.layers}) == 6
    assert len({choice.mlp.active for choice in shared.layers}) == 1
    for _ in range(50):
        spec = sample_subnetwork(
            dimensions,
            Rates(layers=0.5),
            generator,
            exempt_layers=(0, -1),
            layer_rescale="inverse",
        )
        assert {0, 5} <= set(spec.active_layers)
        assert spec.count("layers") == 3
        # One of four open layers is drawn: a probability of a quarter.
        scales = sorted(spec.choice(layer).residual_scale for layer in spec.active_layers)
        assert scales == [1.0, 1.0, 4.0]


@pytest.mark.parametrize(("hold", "draws"), [(1, 60), (7, 10), (60, 3), ("stage", 3)])
def test_a_draw_is_held_and_never_beyond_its_stage(hold: Any, draws: int) -> None:
    """Stages of 8, 20 and 32 steps: held for 7, they draw 2, 3 and 5 times, and so on."""
    schedule = Schedule(STAGES, HALF)
    drawn = [schedule.drawn_at(step, 60, hold) for step in range(60)]
    assert len(set(drawn)) == draws
    for step, of in enumerate(drawn):
        assert 0 <= step - of < (60 if hold == "stage" else hold)
        assert drawn[of] == of
        assert schedule.stage_at(of, 60) == schedule.stage_at(step, 60)


@pytest.mark.parametrize("grouped_queries", ["groups", "within_groups"])
@pytest.mark.parametrize("exempt", [(), (2, -2)])
def test_nested_subnetworks_contain_those_of_lower_rates(
    grouped_queries: Any, exempt: tuple[int, ...]
) -> None:
    dimensions = Dimensions(n_layers=11, n_heads=8, n_kv_heads=4, intermediate_size=10)
    before: SubnetworkSpec | None = None
    for rate in (0.25, 0.3, 0.5, 0.7, 0.9, 1.0):
        spec = sample_subnetwork(
            dimensions,
            Rates(rate, rate, rate),
            torch.Generator().manual_seed(int(100 * rate)),
            units="nested",
            grouped_queries=grouped_queries,
            exempt_layers=exempt,
        )
        assert spec.count("layers") == round(11 * rate)
        assert {layer % 11 for layer in exempt} <= set(spec.active_layers)
        for layer in before.active_layers if before else ():
            for branch, unit in UNITS.items():
                every = range(dimensions.total(unit))
                choices = (s.choice(layer).branch(branch) for s in (before, spec))
                inner, outer = (choice.active or every for choice in choices)
                assert set(inner) <= set(outer)
        before = spec
    assert before is not None
    assert before.count("neurons") == 110


@pytest.mark.parametrize(
    ("n_layers", "count", "layers"),
    [
        (4, 2, (0, 3)),
        (8, 4, (0, 2, 4, 7)),
        (12, 6, (0, 2, 4, 6, 8, 11)),
        (12, 3, (0, 4, 11)),
        (22, 11, (0, *range(2, 19, 2), 21)),
        (5, 1, (0,)),
    ],
)
def test_nested_layers_are_spread_from_the_first_to_the_last(
    n_layers: int, count: int, layers: tuple[int, ...]
) -> None:
    dimensions = Dimensions(n_layers, n_heads=2, n_kv_heads=2, intermediate_size=4)
    rates = Rates(layers=count / n_layers)
    spec = sample_subnetwork(dimensions, rates, torch.Generator(), units="nested")
    assert spec.active_layers == layers


WIDTH = {"stages": [{"until": 1.0, "sample": ["heads"]}], "rates": {"heads": 0.5}}

BAD: list[tuple[dict[str, Any], dict[str, int] | None, str]] = [
    ({"rates": {"heads": 1.5}}, None, "rates.heads=1.5: a rate is a number in (0, 1]"),
    ({"rates": {"heads": 0}}, None, "rates.heads=0"),
    ({"rates": {"head": 0.5}}, None, "rates.head: unknown kind; allowed: layers, heads, neurons"),
    (
        {"stages": [{"until": 1.0, "sample": ["heads"]}], "rates": {"heads": 0.5, "layers": 0.5}},
        None,
        "rates.layers=0.5: no stage samples layers at it",
    ),
    ({"stages": []}, None, "at least one stage"),
    ({"stages": [{"until": 0.5}, {"until": 0.4}, {"until": 1.0}]}, None, "must increase"),
    ({"stages": [{"until": 0.5}]}, None, "exactly 1"),
    ({"stages": [{"until": 2}]}, None, "stages[0].until=2"),
    ({"stages": [{"until": 1.0, "layer": 0.5}]}, None, "unknown key 'layer'"),
    ({"stages": [{"until": 1.0, "layers": [0.5]}]}, None, "pair [first, last]"),
    ({"rates": {}}, None, "'layers' has no rate"),
    (
        {"entering_layers": "copied", "units": "nested", "hold": 1},
        None,
        "entering_layers=copied with hold=1",
    ),
    (
        {"entering_layers": "copied", "units": "random", "hold": "stage"},
        None,
        "take units=nested",
    ),
    (
        {"rates": HALF | {"heads": 0.05}},
        GPT2,
        "rates.heads: active rate 0.05 keeps 0.6 of 12 heads",
    ),
    (
        {"rates": {}, "stages": [{"until": 1.0, "heads": 0.05}]},
        GPT2,
        "stages[0].heads: active rate 0.05 keeps 0.6 of 12 heads, below one",
    ),
    ({"rates": HALF | {"heads": 0.2}}, TINYLLAMA, "of 4 key/value groups"),
    (
        {"rates": HALF | {"heads": 0.1}, "grouped_queries": "within_groups"},
        TINYLLAMA,
        "of 8 query heads of a group",
    ),
    ({**WIDTH, "exempt_layers": [0]}, None, "exempt_layers=[0]: no stage leaves layers out"),
    ({**WIDTH, "layer_rescale": "inverse"}, GPT2, "layer_rescale=inverse: no stage leaves"),
    ({"exempt_layers": [12]}, GPT2, "layer 12 of 12 is unknown"),
    ({"exempt_layers": list(range(7))}, GPT2, "keeps 6 of 12 layers, fewer than the 7"),
]


@pytest.mark.parametrize(("settings", "dimensions", "words"), BAD)
def test_settings_that_cannot_run_are_refused_in_words(
    settings: dict[str, Any], dimensions: dict[str, int] | None, words: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        check({"rates": HALF, "stages": STAGES, **settings}, dimensions)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"layer_rescale": "sqrt"}, "layer_rescale='sqrt' must be one of none, inverse"),
        ({"units": "first"}, "units='first' must be one of random, nested"),
        ({"entering_layers": "new"}, "entering_layers='new' must be one of initial, copied"),
        ({"hold": 0}, "hold=0 must be int of at least 1"),
        ({"hold": "run"}, "hold='run' must be int of at least 1 or one of stage"),
    ],
)
def test_what_an_annotation_does_not_allow_is_refused(settings: dict[str, Any], words: str) -> None:
    """By the runner, from the source alone."""
    node = {"_target_": "callbacks.est.EvolvingSubnetworkTraining", "rates": HALF, **settings}
    (said,) = bind("est", {**node, "stages": STAGES})
    assert said.startswith(f"est.{words}")


def test_advice_on_a_rate_is_itself_allowed() -> None:
    with pytest.raises(ValueError, match="at least") as error:
        check({"rates": HALF | {"heads": 0.01}, "stages": STAGES}, GPT2)
    advice = float(str(error.value).partition("at least ")[2].partition(",")[0])
    check({"rates": HALF | {"heads": advice}, "stages": STAGES}, GPT2)


def test_checking_does_not_load_torch(root: Path) -> None:
    code = "import subnetworks.schedule, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_branches_are_multiplied_by_the_inverse_of_what_runs() -> None:
    """Two of eight heads and five of ten neurons run: four times and twice their sum."""
    dimensions = Dimensions(n_layers=1, n_heads=8, n_kv_heads=8, intermediate_size=10)
    for rescale, scales in ((True, (4.0, 2.0)), (False, (1.0, 1.0))):
        rates, generator = Rates(heads=0.25, neurons=0.5), torch.Generator()
        spec = sample_subnetwork(dimensions, rates, generator, rescale_units=rescale)
        assert (spec.choice(0).attention.scale, spec.choice(0).mlp.scale) == scales

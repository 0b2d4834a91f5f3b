"""The ladder omission rate scheduler of SAT as stages, and what its settings allow; no PyTorch."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from subnetworks.importance import SCORES
from subnetworks.schedule import GroupedQueries, check_stages

Selection = Literal["top_k", "sample"]
MOST_RUNGS = 1000
_KINDS = ("heads", "neurons")
_LADDER = ("hold", "rungs", "end", "direction", "warmup")


def ladder(
    omission: Mapping[str, float],
    *,
    hold: float = 0.6,
    rungs: int = 4,
    end: float = 0.0,
    direction: Literal["falling", "rising"] = "falling",
    warmup: float = 0.0,
) -> list[dict[str, float]]:
    """Stages of a training whose omission rates hold first and then go down in steps.

    Args:
        omission: Share of the `heads` and of the `neurons` that is left out while the rate holds,
            each in [0, 1).
        hold: Share of the steps (after the warm-up) at these rates, in [0, 1]; 1 is constant.
        rungs: Equal steps down in the rest, at most 1,000.
        end: Share of the omission rates that remains on the last rung, in [0, 1].
        direction: `falling`, from sparse to dense as in the paper; `rising`, the same backwards.
        warmup: Share of all steps that is dense before the ladder begins, in [0, 1).

    Returns:
        Stages for `subnetworks.schedule.Schedule`: `until`, and the active rates of both kinds.

    Raises:
        ValueError: A value is outside of its range.
    """
    for key, value, allowed in (
        ("ladder.hold", hold, 0 <= hold <= 1),
        ("ladder.end", end, 0 <= end <= 1),
        ("ladder.warmup", warmup, 0 <= warmup < 1),
    ):
        if not allowed:
            raise ValueError(f"{key}={value}: a share of the steps or rates, in [0, 1]")
    if not isinstance(rungs, int) or not 1 <= rungs <= MOST_RUNGS:
        raise ValueError(
            f"ladder.rungs={rungs!r}: from 1 to {MOST_RUNGS} steps; ladder.hold=1 has no steps"
        )
    if direction not in ("falling", "rising"):
        raise ValueError(f"ladder.direction={direction!r}: must be falling or rising")
    levels = [(hold, 1.0)] if hold > 0 else []
    if hold < 1:
        levels += [((1 - hold) / rungs, 1 - (1 - end) * (i + 1) / rungs) for i in range(rungs)]
    if direction == "rising":
        levels.reverse()
    stages: list[dict[str, float]] = [{"until": warmup}] if warmup > 0 else []
    passed = 0.0
    for index, (length, factor) in enumerate(levels):
        passed += length
        last = index == len(levels) - 1
        until = 1.0 if last else warmup + (1 - warmup) * passed
        stages.append({"until": until, **_active(omission, factor, "omission")})
    return stages


def stages_of(settings: Mapping[str, Any]) -> list[dict[str, float]]:
    """Stages that the callback's settings mean: a ladder, or a list of omission rates.

    Raises:
        ValueError: A key is unknown, or a value is outside of its range.
    """
    omission, given = settings.get("omission") or {}, settings.get("ladder") or {}
    if isinstance(given, Mapping):
        for key in given:
            if key not in _LADDER:
                raise ValueError(f"ladder.{key}: unknown key; allowed: {', '.join(_LADDER)}")
        return ladder(omission, **given)
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise ValueError(f"ladder={given!r}: must be a mapping or a list of stages")
    stages = []
    for index, stage in enumerate(given):
        key = f"ladder[{index}]"
        for name in stage:
            if name not in ("until", *_KINDS):
                raise ValueError(f"{key}.{name}: unknown key; allowed: until, {', '.join(_KINDS)}")
        rates = {kind: rate for kind, rate in stage.items() if kind != "until"}
        stages.append({"until": stage.get("until"), **_active(rates, 1.0, key)})
    return stages


def _active(omission: Mapping[str, float], factor: float, key: str) -> dict[str, float]:
    for kind, rate in omission.items():
        if kind not in _KINDS:
            raise ValueError(f"{key}.{kind}: unknown kind; allowed: {', '.join(_KINDS)}")
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < 1:
            raise ValueError(f"{key}.{kind}={rate!r}: an omission rate is a number in [0, 1)")
    return {kind: 1 - factor * rate for kind, rate in omission.items()}


def check(settings: Mapping[str, Any], dimensions: Mapping[str, int] | None) -> None:
    """Refuse settings of Sparsity-Accelerated Training that cannot run, before anything is built.

    Args:
        settings: The callback's arguments as plain containers.
        dimensions: `n_layers`, `n_heads`, `n_kv_heads`, `intermediate_size` of the model, or
            `None` while they are not known.

    Raises:
        ValueError: It names the setting, what is allowed and how to mend it.
    """
    for key, allowed in (
        ("importance", SCORES),
        ("selection", get_args(Selection)),
        ("grouped_queries", get_args(GroupedQueries)),
    ):
        if key in settings and settings[key] not in allowed:
            raise ValueError(f"{key}={settings[key]!r}: must be one of {', '.join(allowed)}")
    for key in ("refresh_every", "probe_sequences", "multiple_of"):
        value = settings.get(key, 1)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{key}={value!r}: must be a whole number of at least 1")
    shares = {key: settings.get(key, 0.0) for key in ("frozen", "forward_only")}
    for key, share in shares.items():
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
            raise ValueError(f"{key}={share!r}: a share of the units left out, in [0, 1]")
    if sum(shares.values()) > 1:
        raise ValueError(
            f"frozen={shares['frozen']} and forward_only={shares['forward_only']} are more than "
            "all units left out; together at most 1"
        )
    context = settings.get("context_forward_only", False)
    if not isinstance(context, bool):
        raise ValueError(f"context_forward_only={context!r}: must be true or false")
    check_stages(stages_of(settings), {}, settings, dimensions, "ladder")
    for layer, factor in (settings.get("layer_factors") or {}).items():
        n_layers = None if dimensions is None else dimensions["n_layers"]
        if not isinstance(layer, int) or (n_layers and not -n_layers <= layer < n_layers):
            raise ValueError(f"layer_factors: layer {layer!r} is unknown; the model has {n_layers}")
        if not isinstance(factor, int | float) or not 0 <= factor <= 1:
            raise ValueError(
                f"layer_factors[{layer}]={factor!r}: a factor on the omission rates, in [0, 1]"
            )

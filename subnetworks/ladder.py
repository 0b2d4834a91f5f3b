"""The ladder omission rate scheduler of SAT as stages, and what its settings allow; no PyTorch."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypedDict

from annotated_types import Interval

from subnetworks.importance import SCORES
from subnetworks.schedule import check_stages

Selection = Literal["top_k", "sample"]
Share = Annotated[float, Interval(ge=0, le=1)]
OmissionRate = Annotated[float, Interval(ge=0, lt=1)]


class Omission(TypedDict, total=False):
    """Share of the units of each layer that is left out."""

    heads: OmissionRate
    neurons: OmissionRate


class OmissionStage(Omission):
    """Rates until a share of all steps; the last stage's is 1."""

    until: Annotated[float, Interval(gt=0, le=1)]


class Ladder(TypedDict, total=False):
    """Arguments of `ladder`."""

    hold: Share
    rungs: Annotated[int, Interval(ge=1, le=1000)]
    end: Share
    direction: Literal["falling", "rising"]
    warmup: OmissionRate


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
        rungs: Equal steps down in the rest, from 1 to 1,000.
        end: Share of the omission rates that remains on the last rung, in [0, 1].
        direction: `falling`, from sparse to dense as in the paper; `rising`, the same backwards.
        warmup: Share of all steps that is dense before the ladder begins, in [0, 1).

    Returns:
        Stages for `subnetworks.schedule.Schedule`: `until`, and the active rates of both kinds.
    """
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
        stages.append({"until": until, **_active(omission, factor)})
    return stages


def stages_of(
    omission: Mapping[str, Any] | None, given: Ladder | Sequence[OmissionStage] | None
) -> list[dict[str, float]]:
    """Stages that the callback's `omission` and `ladder` mean: a ladder, or a list of its own."""
    if given is None or isinstance(given, Mapping):
        return ladder(omission or {}, **(given or {}))
    return [
        {"until": stage["until"], **_active({k: v for k, v in stage.items() if k != "until"})}
        for stage in given
    ]


def _active(omission: Mapping[str, Any], factor: float = 1.0) -> dict[str, float]:
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
    importance = settings.get("importance", "wanda")
    if importance not in SCORES:
        raise ValueError(f"importance={importance!r}: must be one of {', '.join(SCORES)}")
    frozen, forward_only = settings.get("frozen", 0.0), settings.get("forward_only", 0.0)
    if frozen + forward_only > 1:
        raise ValueError(
            f"frozen={frozen} and forward_only={forward_only} are more than all units left out; "
            "together at most 1"
        )
    given = settings.get("ladder")

    def key_of(index: int, kind: str) -> str:
        return f"ladder[{index}].{kind}" if isinstance(given, list) else f"omission.{kind}"

    stages = stages_of(settings.get("omission"), given)
    check_stages(stages, {}, settings, dimensions, key_of, of_omission=True)
    neurons = dimensions["intermediate_size"] if dimensions else math.inf
    if (multiple := settings.get("multiple_of", 1)) > 1 and multiple >= neurons:
        raise ValueError(
            f"multiple_of={multiple}: a layer has {neurons} neurons, so that all would be kept; "
            "take less"
        )
    n_layers = dimensions and dimensions["n_layers"]
    for layer in settings.get("layer_factors") or {}:
        if not isinstance(layer, int) or (n_layers and not -n_layers <= layer < n_layers):
            raise ValueError(f"layer_factors: layer {layer!r} is unknown; the model has {n_layers}")

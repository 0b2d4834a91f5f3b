"""How the share of active units changes over a training: stages as data, without PyTorch."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge

GroupedQueries = Literal["groups", "within_groups"]
LayerRescale = Literal["none", "inverse"]
UnitOrder = Literal["random", "nested"]
EnteringLayers = Literal["initial", "copied"]
Hold = Annotated[int, Ge(1)] | Literal["stage"]
KINDS = ("layers", "heads", "neurons")


@dataclass(frozen=True)
class Rates:
    """Share of the units of each kind that is active, each in (0, 1]."""

    layers: float = 1.0
    heads: float = 1.0
    neurons: float = 1.0


def active_count(rate: float, total: int) -> int:
    """Units that a rate keeps: rounded to the nearest, at least one."""
    return max(1, round(rate * total))


@dataclass(frozen=True)
class Stage:
    """A share of the training over which the rates move linearly from `start` to `end`.

    Args:
        until: End of the stage as a fraction of all steps, in (0, 1].
        start: Rates at the stage's first step.
        end: Rates at its last step; equal to `start` for a constant stage.
    """

    until: float
    start: Rates
    end: Rates


class Schedule:
    """Stages that follow each other and together span the training.

    Args:
        stages: One mapping a stage: `until` (fraction of all steps, increasing, the last one 1);
            `sample` (the kinds among `layers`, `heads`, `neurons` that are drawn at their rate in
            `rates`); and, for a kind with a rate of its own in this stage, that rate in (0, 1] or
            a pair `[first, last]` between which it moves linearly.
        rates: The rate of each kind that stages refer to, in (0, 1]; a kind without one is `None`
            or left out.

    Raises:
        ValueError: A key is unknown, a rate is outside (0, 1] or read by no stage, the ends do not
            increase to 1.
    """

    def __init__(
        self, stages: Sequence[Mapping[str, Any]], rates: Mapping[str, float | None] | None = None
    ) -> None:
        if not stages:
            raise ValueError("stages: at least one stage is needed")
        given = {kind: rate for kind, rate in (rates or {}).items() if rate is not None}
        for kind, rate in given.items():
            if kind not in KINDS:
                raise ValueError(f"rates.{kind}: unknown kind; allowed: {', '.join(KINDS)}")
            check_rate(f"rates.{kind}", rate)
        self.stages = tuple(_stage(f"stages[{i}]", s, given) for i, s in enumerate(stages))
        ends = [stage.until for stage in self.stages]
        if any(a >= b for a, b in zip([0.0, *ends], ends, strict=False)) or ends[-1] != 1.0:
            raise ValueError(
                f"stages: the values of until must increase from above 0 to exactly 1, got {ends}"
            )
        read = {kind for stage in stages for kind in stage.get("sample") or () if kind not in stage}
        for kind in given.keys() - read:
            raise ValueError(
                f"rates.{kind}={given[kind]}: no stage samples {kind} at it; name {kind} in the "
                f"sample of a stage, or set rates.{kind}=null"
            )

    def stage_at(self, step: int, max_steps: int) -> int:
        """Index of the stage that a step belongs to."""
        for index, end in enumerate(self.ends(max_steps)):
            if step < end:
                return index
        return len(self.stages) - 1

    def ends(self, max_steps: int) -> tuple[int, ...]:
        """First step after each stage."""
        return tuple(round(stage.until * max_steps) for stage in self.stages)

    def drawn_at(self, step: int, max_steps: int, hold: Hold) -> int:
        """The step whose draw a step trains: its own, or an earlier one of the same stage.

        Args:
            step: Optimizer steps already taken.
            max_steps: Steps of the whole training.
            hold: Steps that a draw is held, or `stage`: to the end of the stage.
        """
        first = (0, *self.ends(max_steps))[self.stage_at(step, max_steps)]
        return first if hold == "stage" else step - (step - first) % hold

    def rates_at(self, step: int, max_steps: int) -> Rates:
        """Rates of a step."""
        index = self.stage_at(step, max_steps)
        stage = self.stages[index]
        if stage.start == stage.end:
            return stage.start
        ends = (0, *self.ends(max_steps))
        length = ends[index + 1] - ends[index]
        share = min(1.0, (step - ends[index]) / max(1, length - 1))
        return Rates(
            **{
                kind: (1 - share) * getattr(stage.start, kind) + share * getattr(stage.end, kind)
                for kind in KINDS
            }
        )


def _stage(key: str, stage: Mapping[str, Any], rates: Mapping[str, float]) -> Stage:
    unknown = set(stage) - {"until", "sample", *KINDS}
    if unknown:
        raise ValueError(
            f"{key}: unknown key {sorted(unknown)[0]!r}; allowed: until, sample, {', '.join(KINDS)}"
        )
    sample = stage.get("sample") or ()
    for kind in sample:
        if kind not in rates:
            raise ValueError(
                f"{key}.sample={list(sample)}: {kind!r} has no rate in rates; allowed: "
                f"{', '.join(rates) or 'none'}"
            )
    until = stage.get("until")
    if not isinstance(until, int | float) or not 0 < until <= 1:
        raise ValueError(f"{key}.until={until!r}: must be a fraction of all steps in (0, 1]")
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    for kind in KINDS:
        value = stage.get(kind, rates[kind] if kind in sample else 1.0)
        pair = [value, value] if isinstance(value, int | float) else value
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            raise ValueError(f"{key}.{kind}={value!r}: must be a rate or a pair [first, last]")
        for rate in pair:
            check_rate(f"{key}.{kind}", rate)
        first[kind], last[kind] = pair
    return Stage(float(until), Rates(**first), Rates(**last))


def check_rate(key: str, rate: Any) -> None:
    """Refuse a rate outside (0, 1]."""
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate <= 1:
        raise ValueError(f"{key}={rate!r}: a rate is a number in (0, 1]; 1 leaves all units active")


def check(settings: Mapping[str, Any], dimensions: Mapping[str, int] | None) -> None:
    """Refuse settings of Evolving Subnetwork Training that cannot run, before anything is built.

    Args:
        settings: The callback's arguments as plain containers.
        dimensions: `n_layers`, `n_heads`, `n_kv_heads`, `intermediate_size` of the model, or
            `None` while they are not known.

    Raises:
        ValueError: It names the setting, what is allowed and how to mend it.
    """
    if settings.get("entering_layers") == "copied":
        for key, needed in (("hold", "stage"), ("units", "nested")):
            if (value := settings.get(key)) != needed:
                raise ValueError(
                    f"entering_layers=copied with {key}={value}: a layer that leaves again has "
                    f"weights of its own when it comes back; take {key}={needed}, or initial"
                )
    stages, rates = settings.get("stages") or (), settings.get("rates")

    def key_of(index: int, kind: str) -> str:
        return f"stages[{index}].{kind}" if kind in stages[index] else f"rates.{kind}"

    check_stages(stages, rates, settings, dimensions, key_of)
    if not any("layers" in {*stage, *(stage.get("sample") or ())} for stage in stages):
        for key, without in (("exempt_layers", []), ("layer_rescale", "none")):
            if (value := settings.get(key, without)) != without:
                raise ValueError(
                    f"{key}={value}: no stage leaves layers out; take {without}, or let one do so"
                )


def check_stages(
    stages: Sequence[Mapping[str, Any]],
    rates: Mapping[str, float | None] | None,
    settings: Mapping[str, Any],
    dimensions: Mapping[str, int] | None,
    key_of: Callable[[int, str], str],
    of_omission: bool = False,
) -> None:
    """Refuse stages that leave a model less than one unit of a kind.

    Args:
        stages: As `Schedule` takes them.
        rates: Likewise.
        settings: `grouped_queries` and `exempt_layers`, if given.
        dimensions: As in `check`.
        key_of: The setting that gives a stage, by its number, the rate of a kind.
        of_omission: Whether that is the share that is left out.

    Raises:
        ValueError: It names the setting and the first value that is allowed.
    """
    schedule = Schedule(stages, rates)
    if dimensions is None:
        return
    layers, heads = dimensions["n_layers"], dimensions["n_heads"]
    groups = dimensions["n_kv_heads"]
    if groups == heads or settings.get("grouped_queries", "groups") == "groups":
        units, name = groups, "key/value groups" if groups < heads else "heads"
    else:
        units, name = heads // groups, "query heads of a group"
    exempt = settings.get("exempt_layers") or ()
    for layer in exempt:
        if not -layers <= layer < layers:
            raise ValueError(f"exempt_layers={list(exempt)}: layer {layer} of {layers} is unknown")
    n_exempt = len({layer % layers for layer in exempt})
    for index, stage in enumerate(schedule.stages):
        for active in (stage.start, stage.end):
            for kind, rate, total, what in (
                ("heads", active.heads, units, name),
                ("neurons", active.neurons, dimensions["intermediate_size"], "neurons"),
                ("layers", active.layers, layers, "layers"),
            ):
                kept = round(rate * total, 9)  # 1 - 0.9 is a little less than a tenth
                if kept < 1:
                    # Rounded inwards, so that the advice itself is allowed.
                    least = math.ceil(1e4 / total) / 1e4
                    bound = f"at most {round(1 - least, 4)}" if of_omission else f"at least {least}"
                    raise ValueError(
                        f"{key_of(index, kind)}: active rate {rate:.4g} keeps {kept:.2g} of "
                        f"{total} {what}, below one; it must be {bound}, or the model "
                        "(module.architecture) larger"
                    )
            if active_count(active.layers, layers) < n_exempt:
                raise ValueError(
                    f"{key_of(index, 'layers')}={active.layers}: keeps "
                    f"{active_count(active.layers, layers)} of {layers} layers, fewer than the "
                    f"{n_exempt} of exempt_layers; raise the rate or exempt fewer"
                )

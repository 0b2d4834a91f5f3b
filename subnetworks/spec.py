"""Which layers, heads and neurons are active, and how they are drawn."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import torch

from subnetworks.schedule import GroupedQueries, LayerRescale, Rates, UnitOrder, active_count


@dataclass(frozen=True)
class Dimensions:
    """How many units of each kind a model has (heads and neurons: in each layer)."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    intermediate_size: int

    @property
    def queries_per_group(self) -> int:
        """Query heads that share one key/value head."""
        return self.n_heads // self.n_kv_heads

    def total(self, kind: str) -> int:
        """Units of a kind in one layer: `heads`, `kv_heads` or `neurons`."""
        return {
            "heads": self.n_heads,
            "kv_heads": self.n_kv_heads,
            "neurons": self.intermediate_size,
        }[kind]


@dataclass(frozen=True)
class LayerChoice:
    """What is active in one layer; `None` stands for all units of the kind.

    Args:
        heads: Ascending indices of query heads; under grouped queries as many in every kept group.
        kv_heads: Ascending indices of key/value heads.
        neurons: Ascending indices of intermediate neurons.
        attention_scale: Factor on what the heads contribute, before the output bias.
        mlp_scale: Factor on what the neurons contribute, before the output bias.
        residual_scale: Factor on both branches of the layer, biases included.
        frozen_heads: Query heads beside `heads` that run in both passes without being trained:
            they contribute, and pass the gradient of their input on.
        frozen_neurons: Intermediate neurons beside `neurons`, likewise.
        forward_heads: Query heads beside these that run in the forward pass only: they contribute.
        forward_neurons: Intermediate neurons, likewise.
    """

    heads: tuple[int, ...] | None = None
    kv_heads: tuple[int, ...] | None = None
    neurons: tuple[int, ...] | None = None
    attention_scale: float = 1.0
    mlp_scale: float = 1.0
    residual_scale: float = 1.0
    frozen_heads: tuple[int, ...] = ()
    frozen_neurons: tuple[int, ...] = ()
    forward_heads: tuple[int, ...] = ()
    forward_neurons: tuple[int, ...] = ()

    def units(self, kind: str) -> tuple[int, ...] | None:
        """Active units of a kind: `heads`, `kv_heads` or `neurons`."""
        return getattr(self, kind)

    def untrained(self, tier: str, branch: str) -> tuple[int, ...]:
        """Heads or neurons of a branch that are `frozen` or run `forward` only."""
        return getattr(self, f"{tier}_{'heads' if branch == 'attention' else 'neurons'}")

    def leaves_out(self, branch: str) -> bool:
        """Whether some units of a branch, `attention` or `mlp`, are inactive."""
        if branch == "mlp":
            return self.neurons is not None
        return self.heads is not None or self.kv_heads is not None

    def scale(self, branch: str) -> float:
        """Factor on what a branch's units contribute: `attention` or `mlp`."""
        return self.residual_scale * (
            self.attention_scale if branch == "attention" else self.mlp_scale
        )


FULL_LAYER = LayerChoice()
TIERS = ("frozen", "forward")
"""Units that run without being trained, the more important ones first."""


@dataclass(frozen=True)
class SubnetworkSpec:
    """One sub-network of a model: a choice for every layer, `None` for a layer that is skipped.

    It prints as its counts, hashes, compares, and rebuilds from `to_dict`.

    Args:
        dimensions: Of the model.
        layers: The choices.
        context_forward_only: Whether tokens that predict nothing run in the forward pass only.

    Raises:
        ValueError: A choice does not fit the dimensions, or no layer is active.
    """

    dimensions: Dimensions
    layers: tuple[LayerChoice | None, ...]
    context_forward_only: bool = False

    def __post_init__(self) -> None:
        if len(self.layers) != self.dimensions.n_layers:
            raise ValueError(
                f"{len(self.layers)} layer choices for {self.dimensions.n_layers} layers"
            )
        if not self.active_layers:
            raise ValueError("a sub-network needs at least one active layer")
        for index in self.active_layers:
            _check_choice(index, self.choice(index), self.dimensions)

    @classmethod
    def full(cls, dimensions: Dimensions) -> "SubnetworkSpec":
        """The whole model."""
        return cls(dimensions, (FULL_LAYER,) * dimensions.n_layers)

    @property
    def is_full(self) -> bool:
        """Whether every layer runs with all of its units, unscaled."""
        return all(choice == FULL_LAYER for choice in self.layers)

    @property
    def scales(self) -> bool:
        """Whether a branch of an active layer is multiplied by a factor."""
        choices = (self.choice(layer) for layer in self.active_layers)
        return any(c.scale(branch) != 1.0 for c in choices for branch in ("attention", "mlp"))

    @property
    def active_layers(self) -> tuple[int, ...]:
        """Indices of the layers that are executed."""
        return tuple(i for i, choice in enumerate(self.layers) if choice is not None)

    def choice(self, layer: int) -> LayerChoice:
        """The choice of an active layer."""
        choice = self.layers[layer]
        assert choice is not None, f"layer {layer} is skipped"
        return choice

    def count(self, kind: str) -> int:
        """Active units of a kind over all layers: `layers`, `heads`, `kv_heads` or `neurons`."""
        if kind == "layers":
            return len(self.active_layers)
        every = self.dimensions.total(kind)
        chosen = (self.choice(i).units(kind) for i in self.active_layers)
        return sum(every if units is None else len(units) for units in chosen)

    def count_untrained(self, tier: str, branch: str) -> int:
        """Heads or neurons of a branch over all layers that are `frozen` or run `forward` only."""
        return sum(len(self.choice(i).untrained(tier, branch)) for i in self.active_layers)

    @property
    def signature(self) -> str:
        """What sets a token's cost: how many layers have how many heads, groups and neurons."""
        kinds = ("heads", "kv_heads", "neurons")

        def size(choice: LayerChoice) -> str:
            active = ("all" if (u := choice.units(k)) is None else str(len(u)) for k in kinds)
            beside = [
                f" {tier} {len(choice.untrained(tier, 'attention'))}"
                f"/{len(choice.untrained(tier, 'mlp'))}"
                for tier in TIERS
                if choice.untrained(tier, "attention") or choice.untrained(tier, "mlp")
            ]
            return "/".join(active) + "".join(beside)

        sizes = (size(self.choice(i)) for i in self.active_layers)
        layers = " + ".join(f"{n} x {size}" for size, n in sorted(Counter(sizes).items()))
        return layers + self._context

    @property
    def _context(self) -> str:
        return "; context forward only" if self.context_forward_only else ""

    def to_dict(self) -> dict[str, Any]:
        """Plain containers from which `from_dict` rebuilds the sub-network."""
        return asdict(self)

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> "SubnetworkSpec":
        """Rebuild a sub-network, also from a JSON round trip."""

        def choice(saved: dict[str, Any]) -> LayerChoice:
            lists_as_tuples: dict[str, Any] = {
                key: tuple(value) if isinstance(value, list) else value
                for key, value in saved.items()
            }
            return LayerChoice(**lists_as_tuples)

        layers = (None if saved is None else choice(saved) for saved in state["layers"])
        dimensions = Dimensions(**state["dimensions"])
        return cls(dimensions, tuple(layers), state["context_forward_only"])

    def __str__(self) -> str:
        d = self.dimensions
        beside = self._context
        for tier, words in zip(TIERS, ("frozen", "forward only"), strict=True):
            heads, neurons = (self.count_untrained(tier, b) for b in ("attention", "mlp"))
            if heads or neurons:
                beside += f"; {words} {heads} heads, {neurons} neurons"
        return (
            f"{self.count('layers')}/{d.n_layers} layers, "
            f"{self.count('heads')}/{d.n_layers * d.n_heads} heads, "
            f"{self.count('neurons')}/{d.n_layers * d.intermediate_size} neurons{beside}"
        )


def _check_choice(layer: int, choice: LayerChoice, dimensions: Dimensions) -> None:
    for kind in ("heads", "kv_heads", "neurons"):
        units, total = choice.units(kind), dimensions.total(kind)
        if units is None:
            continue
        ascending = all(a < b for a, b in pairwise(units))
        if not units or not ascending or units[0] < 0 or units[-1] >= total:
            raise ValueError(
                f"layer {layer}: {kind} must be ascending, distinct and within 0..{total - 1}"
            )
    heads = choice.heads or range(dimensions.n_heads)
    kept = choice.kv_heads or range(dimensions.n_kv_heads)
    per_group = Counter(head // dimensions.queries_per_group for head in heads)
    if set(per_group) != set(kept) or len(set(per_group.values())) != 1:
        raise ValueError(
            f"layer {layer}: every kept key/value head needs the same number of query heads"
        )
    for kind, branch in (("heads", "attention"), ("neurons", "mlp")):
        taken, total = choice.units(kind) or (), dimensions.total(kind)
        for tier in TIERS:
            units = choice.untrained(tier, branch)
            if not units:
                continue
            ascending = all(a < b for a, b in pairwise(units))
            if not taken or {*taken} & {*units} or not ascending or units[-1] >= total:
                raise ValueError(
                    f"layer {layer}: {tier}_{kind} must be ascending, within 0..{total - 1}, and "
                    f"beside the {kind} of the other tiers"
                )
            taken += units
            groups = Counter(unit // dimensions.queries_per_group for unit in units)
            if kind == "heads" and len(set(groups.values())) > 1:
                raise ValueError(
                    f"layer {layer}: every key/value head of {tier}_heads needs as many query heads"
                )


@dataclass(frozen=True)
class _Counts:
    """Active units of a layer: key/value groups, query heads in each of them, neurons."""

    groups: int
    queries: int
    neurons: int

    @classmethod
    def of(
        cls, d: Dimensions, rates: Rates, grouped_queries: GroupedQueries, multiple_of: int = 1
    ) -> "_Counts":
        per_group = d.queries_per_group
        neurons = active_count(rates.neurons, d.intermediate_size)
        if neurons < d.intermediate_size and multiple_of > 1:
            rounded = max(1, round(neurons / multiple_of)) * multiple_of
            neurons = min(rounded, d.intermediate_size)
        if grouped_queries == "groups" or per_group == 1:
            return cls(active_count(rates.heads, d.n_kv_heads), per_group, neurons)
        return cls(d.n_kv_heads, active_count(rates.heads, per_group), neurons)


def _heads(d: Dimensions, groups: Iterable[int], queries: Iterable[int]) -> tuple[int, ...]:
    """Return the query heads at the same places of several groups."""
    places = tuple(queries)
    return tuple(group * d.queries_per_group + place for group in groups for place in places)


def _layer_choice(
    d: Dimensions,
    groups: Sequence[int],
    heads: Sequence[int],
    neurons: Sequence[int],
    rescale_units: bool,
    **further: Any,
) -> LayerChoice:
    """Return the choice of some units; `further` are fields that it has beside them.

    With `rescale_units` a branch is multiplied by total / units that run in the forward pass.
    """
    running = {"heads": len(heads), "neurons": len(neurons)}
    for kind in running:
        running[kind] += sum(len(further.get(f"{tier}_{kind}", ())) for tier in TIERS)
    return LayerChoice(
        heads=None if len(heads) == d.n_heads else tuple(heads),
        kv_heads=None if len(groups) == d.n_kv_heads else tuple(groups),
        neurons=None if len(neurons) == d.intermediate_size else tuple(neurons),
        attention_scale=d.n_heads / running["heads"] if rescale_units else 1.0,
        mlp_scale=d.intermediate_size / running["neurons"] if rescale_units else 1.0,
        **further,
    )


def planned_subnetwork(
    dimensions: Dimensions,
    rates: Rates,
    *,
    grouped_queries: GroupedQueries = "groups",
    layer_factors: Mapping[int, float] | None = None,
    multiple_of: int = 1,
    rescale_units: bool = False,
    frozen: float = 0.0,
    forward_only: float = 0.0,
    context_forward_only: bool = False,
) -> SubnetworkSpec:
    """A sub-network of the counts that the rates give, of the first units of each layer.

    It stands for one whose units are chosen later, by a chooser in the forward pass.

    Args:
        dimensions: The model's units.
        rates: Share of the heads and of the neurons that is active; all layers are.
        grouped_queries: As in `sample_subnetwork`.
        layer_factors: {layer: factor on its omission rates, 0 leaves nothing out}; negative layers
            count from the end.
        multiple_of: Round counts of neurons to multiples of this, for the tensor cores.
        rescale_units: Multiply a branch by total / units that run in the forward pass.
        frozen: Share, in [0, 1], of the units that are not active which run in both passes all
            the same.
        forward_only: Likewise, in the forward pass; at most 1 - `frozen`.
        context_forward_only: Tokens that predict nothing run in the forward pass only.

    Returns:
        The sub-network.
    """
    d = dimensions
    factors = {layer % d.n_layers: factor for layer, factor in (layer_factors or {}).items()}

    def of_layer(factor: float) -> LayerChoice:
        heads, neurons = (
            1 - min(1.0, factor * (1 - rate)) for rate in (rates.heads, rates.neurons)
        )
        n = _Counts.of(d, Rates(heads=heads, neurons=neurons), grouped_queries, multiple_of)

        def tiers(active: int, total: int) -> tuple[range, range]:
            left = total - active
            ends = round(frozen * left), round(min(1.0, frozen + forward_only) * left)
            return range(active, active + ends[0]), range(active + ends[0], active + ends[1])

        groups, queries = range(n.groups), range(n.queries)
        if n.groups < d.n_kv_heads:
            heads_beside = [_heads(d, g, queries) for g in tiers(n.groups, d.n_kv_heads)]
        else:
            heads_beside = [_heads(d, groups, q) for q in tiers(n.queries, d.queries_per_group)]
        neurons_beside = tiers(n.neurons, d.intermediate_size)
        return _layer_choice(
            d,
            groups,
            _heads(d, groups, queries),
            range(n.neurons),
            rescale_units,
            **{f"{t}_heads": u for t, u in zip(TIERS, heads_beside, strict=True)},
            **{f"{t}_neurons": tuple(u) for t, u in zip(TIERS, neurons_beside, strict=True)},
        )

    kinds = {factor: of_layer(factor) for factor in {1.0, *factors.values()}}
    layers = tuple(kinds[factors.get(i, 1.0)] for i in range(d.n_layers))
    return SubnetworkSpec(d, layers, context_forward_only)


def _spread_layers(n_layers: int, count: int, exempt: Collection[int] = ()) -> list[int]:
    """Layers spread over the depth, of which a lower count keeps a part.

    Layers are taken away one at a time, each where the gap that it leaves is the smallest; the
    first and the last one go last.
    """
    kept = list(range(n_layers))
    while len(kept) > count:
        inner = [i for i in range(1, len(kept) - 1) if kept[i] not in exempt]
        if inner:
            gone = min(inner, key=lambda i: kept[i + 1] - kept[i - 1])
        else:
            gone = max(i for i, layer in enumerate(kept) if layer not in exempt)
        del kept[gone]
    return kept


def sample_subnetwork(
    dimensions: Dimensions,
    rates: Rates,
    generator: torch.Generator,
    *,
    units: UnitOrder = "random",
    grouped_queries: GroupedQueries = "groups",
    shared_indices: bool = False,
    rescale_units: bool = True,
    layer_rescale: LayerRescale = "none",
    exempt_layers: Sequence[int] = (),
) -> SubnetworkSpec:
    """Draw a sub-network with exact counts (EST, arXiv 2406.06962).

    Args:
        dimensions: The model's units.
        rates: Share of layers, of heads and of neurons that is active.
        generator: Source of the draw, on the CPU.
        units: `random` draws uniformly. `nested` takes the first heads and neurons, and layers
            spread over the depth, so that a sub-network contains every one of lower rates.
        grouped_queries: With grouped-query attention, `groups` draws whole key/value groups with
            their query heads; `within_groups` keeps all keys and values and draws as many query
            heads in every group. With one query head a group both draw heads.
        shared_indices: One index set for all layers instead of one a layer.
        rescale_units: Multiply a branch by total / active units, so that its expectation is the
            full model's.
        layer_rescale: `inverse` multiplies the branches of a drawn layer by the inverse of its
            probability of being drawn.
        exempt_layers: Layers that are always active; negative indices count from the end.

    Returns:
        The sub-network.

    Raises:
        ValueError: The rates leave fewer layers than are exempt.
    """
    d, n = dimensions, _Counts.of(dimensions, rates, grouped_queries)

    def draw(count: int, total: int) -> Sequence[int]:
        if count == total or units == "nested":
            return range(count)
        return torch.randperm(total, generator=generator)[:count].sort().values.tolist()

    def draw_layer(residual_scale: float) -> LayerChoice:
        groups = draw(n.groups, d.n_kv_heads)
        heads = [h for g in groups for h in _heads(d, [g], draw(n.queries, d.queries_per_group))]
        neurons = draw(n.neurons, d.intermediate_size)
        return _layer_choice(
            d, groups, heads, neurons, rescale_units, residual_scale=residual_scale
        )

    exempt = {layer % d.n_layers for layer in exempt_layers}
    drawn = _drawn_layers(d.n_layers, rates.layers, exempt, None if units == "nested" else draw)
    inverse = (d.n_layers - len(exempt)) / len(drawn) if drawn else 1.0
    scales = dict.fromkeys(exempt, 1.0)
    scales |= dict.fromkeys(drawn, inverse if layer_rescale == "inverse" else 1.0)
    common = draw_layer(1.0) if shared_indices else None
    layers: list[LayerChoice | None] = [None] * d.n_layers
    for layer in sorted(scales):
        scale = scales[layer]
        layers[layer] = (
            draw_layer(scale) if common is None else replace(common, residual_scale=scale)
        )
    return SubnetworkSpec(d, tuple(layers))


def _drawn_layers(
    n_layers: int,
    rate: float,
    exempt: Collection[int],
    draw: Callable[[int, int], Sequence[int]] | None,
) -> set[int]:
    """Layers that are active beside the exempt ones; spread over the depth if nothing draws."""
    others = [layer for layer in range(n_layers) if layer not in exempt]
    count = len(others) if rate == 1.0 else active_count(rate, n_layers) - len(exempt)
    if count < 0 or (count == 0 and not exempt):
        raise ValueError(
            f"rates.layers={rate} keeps {count + len(exempt)} of {n_layers} layers, fewer than "
            f"the {len(exempt)} exempt ones; raise the rate or exempt fewer layers"
        )
    if draw is None:
        return {*_spread_layers(n_layers, count + len(exempt), exempt)} - {*exempt}
    return {others[i] for i in draw(count, len(others))}

"""Which layers, heads and neurons are active, and how they are drawn."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from typing import Any, Literal

import torch

from subnetworks.families import BRANCHES, UNITS, Branch, Unit
from subnetworks.schedule import GroupedQueries, LayerRescale, Rates, UnitOrder, active_count

Tier = Literal["active", "frozen", "forward"]
TIERS: tuple[Tier, ...] = ("active", "frozen", "forward")
"""Units that are trained, that run in both passes untrained, and that run forward only: the more
important ones first."""


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

    def total(self, unit: Unit) -> int:
        """Units of a kind in one layer."""
        totals: dict[Unit, int] = {
            "heads": self.n_heads,
            "kv_heads": self.n_kv_heads,
            "neurons": self.intermediate_size,
        }
        return totals[unit]

    def groups(self, heads: Iterable[int]) -> list[int]:
        """The key/value heads that some query heads read, ascending."""
        return sorted({head // self.queries_per_group for head in heads})


@dataclass(frozen=True)
class BranchChoice:
    """What runs of one branch of a layer: of its query heads, or of its neurons.

    The tiers are apart from each other, each of ascending indices. Query heads bring the key/value
    heads that they read; each of these has as many query heads of a tier.

    Args:
        active: Units that are trained; `None` stands for all of them.
        frozen: Units that run in both passes without being trained: they contribute, and pass the
            gradient of their input on.
        forward: Units that run in the forward pass only: they contribute.
        scale: Factor on what the units contribute, before the output bias.
    """

    active: tuple[int, ...] | None = None
    frozen: tuple[int, ...] = ()
    forward: tuple[int, ...] = ()
    scale: float = 1.0

    def units(self, tier: Tier) -> tuple[int, ...] | None:
        """The units of a tier."""
        return getattr(self, tier)


@dataclass(frozen=True)
class LayerChoice:
    """What runs of one layer.

    Args:
        attention: Of its query heads.
        mlp: Of its neurons.
        residual_scale: Factor on both branches, biases included.
    """

    attention: BranchChoice = BranchChoice()
    mlp: BranchChoice = BranchChoice()
    residual_scale: float = 1.0

    def branch(self, branch: Branch) -> BranchChoice:
        """What runs of a branch."""
        return getattr(self, branch)

    def scale(self, branch: Branch) -> float:
        """Factor on what a branch's units contribute, before the output bias."""
        return self.residual_scale * self.branch(branch).scale


FULL_LAYER = LayerChoice()


@dataclass(frozen=True)
class SubnetworkSpec:
    """One sub-network of a model: a choice for every layer, `None` for a layer that is skipped.

    It prints as its counts, hashes and compares.

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
        for layer in self.active_layers:
            for branch in BRANCHES:
                _check(layer, branch, self.choice(layer).branch(branch), self.dimensions)

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
        return any(choice.scale(branch) != 1.0 for choice in choices for branch in BRANCHES)

    @property
    def active_layers(self) -> tuple[int, ...]:
        """Indices of the layers that are executed."""
        return tuple(i for i, choice in enumerate(self.layers) if choice is not None)

    def choice(self, layer: int) -> LayerChoice:
        """The choice of an active layer."""
        choice = self.layers[layer]
        assert choice is not None, f"layer {layer} is skipped"
        return choice

    def sizes(self, layer: int, tier: Tier = "active") -> dict[Unit, int]:
        """How many units of each kind an active layer has in a tier."""
        d, choice = self.dimensions, self.choice(layer)
        heads, neurons = choice.attention.units(tier), choice.mlp.units(tier)
        return {
            "heads": d.n_heads if heads is None else len(heads),
            "kv_heads": d.n_kv_heads if heads is None else len(d.groups(heads)),
            "neurons": d.intermediate_size if neurons is None else len(neurons),
        }

    def count(self, kind: Literal["layers"] | Unit, tier: Tier = "active") -> int:
        """Layers that are active, or units of a kind that a tier has over all of them."""
        if kind == "layers":
            return len(self.active_layers)
        return sum(self.sizes(layer, tier)[kind] for layer in self.active_layers)

    @property
    def signature(self) -> str:
        """What sets a token's cost: how many layers have how many heads, groups and neurons."""
        d = self.dimensions

        def words(layer: int) -> str:
            active = self.sizes(layer).items()
            said = "/".join("all" if n == d.total(unit) else str(n) for unit, n in active)
            for tier in TIERS[1:]:
                beside = self.sizes(layer, tier)
                if beside["heads"] or beside["neurons"]:
                    said += f" {tier} {beside['heads']}/{beside['neurons']}"
            return said

        alike = Counter(words(layer) for layer in self.active_layers)
        layers = " + ".join(f"{n} x {size}" for size, n in sorted(alike.items()))
        return layers + self._context

    @property
    def _context(self) -> str:
        return "; context forward only" if self.context_forward_only else ""

    def __str__(self) -> str:
        d = self.dimensions
        beside = self._context
        words: dict[Tier, str] = {"frozen": "frozen", "forward": "forward only"}
        for tier, said in words.items():
            heads, neurons = self.count("heads", tier), self.count("neurons", tier)
            if heads or neurons:
                beside += f"; {said} {heads} heads, {neurons} neurons"
        return (
            f"{self.count('layers')}/{d.n_layers} layers, "
            f"{self.count('heads')}/{d.n_layers * d.n_heads} heads, "
            f"{self.count('neurons')}/{d.n_layers * d.intermediate_size} neurons{beside}"
        )


def _check(layer: int, branch: Branch, choice: BranchChoice, dimensions: Dimensions) -> None:
    unit = UNITS[branch]
    total = dimensions.total(unit)
    tiers = {tier: units for tier in TIERS if (units := choice.units(tier))}
    if choice.active == () or (choice.active is None and tiers):
        raise ValueError(f"layer {layer}: {unit} that are frozen or run forward need active ones")
    for tier, units in tiers.items():
        ascending = all(a < b for a, b in pairwise(units))
        if not ascending or units[0] < 0 or units[-1] >= total:
            raise ValueError(
                f"layer {layer}: {tier} {unit} must be ascending, distinct and within "
                f"0..{total - 1}"
            )
        if branch == "attention":
            per_group = Counter(head // dimensions.queries_per_group for head in units)
            if len(set(per_group.values())) > 1:
                raise ValueError(
                    f"layer {layer}: every key/value head of {tier} heads needs the same number "
                    "of query heads"
                )
    if len(tiers) > 1 and len({*chain(*tiers.values())}) < sum(map(len, tiers.values())):
        raise ValueError(f"layer {layer}: {unit} can be of one tier only")


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


def _heads(d: Dimensions, groups: Iterable[int], queries: Iterable[int]) -> list[int]:
    """Return the query heads at the same places of several groups."""
    places = tuple(queries)
    return [group * d.queries_per_group + place for group in groups for place in places]


def _branch(total: int, rescale: bool, *tiers: Sequence[int]) -> BranchChoice:
    """Return the choice of a branch from its tiers; rescaled by total / units that run forward."""
    units: dict[str, Any] = dict(zip(TIERS, map(tuple, tiers), strict=False))
    if len(tiers[0]) == total:
        units["active"] = None
    running = sum(map(len, tiers))
    return BranchChoice(**units, scale=total / running if rescale else 1.0)


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

    def tiers(active: int, total: int) -> list[range]:
        left = total - active
        shares = 0.0, frozen, min(1.0, frozen + forward_only)
        ends = [0, *(active + round(share * left) for share in shares)]
        return [range(*pair) for pair in pairwise(ends)]

    def of_layer(factor: float) -> LayerChoice:
        heads, neurons = (
            1 - min(1.0, factor * (1 - rate)) for rate in (rates.heads, rates.neurons)
        )
        n = _Counts.of(d, Rates(heads=heads, neurons=neurons), grouped_queries, multiple_of)
        if n.groups < d.n_kv_heads:
            by_tier = [_heads(d, g, range(n.queries)) for g in tiers(n.groups, d.n_kv_heads)]
        else:
            by_tier = [_heads(d, range(n.groups), q) for q in tiers(n.queries, d.queries_per_group)]
        return LayerChoice(
            _branch(d.n_heads, rescale_units, *by_tier),
            _branch(d.intermediate_size, rescale_units, *tiers(n.neurons, d.intermediate_size)),
        )

    kinds = {factor: of_layer(factor) for factor in {1.0, *factors.values()}}
    layers = tuple(kinds[factors.get(i, 1.0)] for i in range(d.n_layers))
    return SubnetworkSpec(d, layers, context_forward_only)


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

    def draw_layer() -> LayerChoice:
        groups = draw(n.groups, d.n_kv_heads)
        heads = [h for g in groups for h in _heads(d, [g], draw(n.queries, d.queries_per_group))]
        neurons = draw(n.neurons, d.intermediate_size)
        return LayerChoice(
            _branch(d.n_heads, rescale_units, heads),
            _branch(d.intermediate_size, rescale_units, neurons),
        )

    exempt = {layer % d.n_layers for layer in exempt_layers}
    others = [layer for layer in range(d.n_layers) if layer not in exempt]
    count = len(others)
    if rates.layers < 1.0:
        count = active_count(rates.layers, d.n_layers) - len(exempt)
    if count < 0:
        raise ValueError(
            f"rates.layers={rates.layers} keeps {count + len(exempt)} of {d.n_layers} layers, "
            f"fewer than the {len(exempt)} exempt ones; raise the rate or exempt fewer layers"
        )
    if units == "nested":
        drawn = {*_spread_layers(d.n_layers, count + len(exempt), exempt)} - exempt
    else:
        drawn = {others[i] for i in draw(count, len(others))}
    inverse = len(others) / count if layer_rescale == "inverse" and count else 1.0
    common = draw_layer() if shared_indices else None
    layers: list[LayerChoice | None] = [None] * d.n_layers
    for layer in sorted(exempt | drawn):
        scale = inverse if layer in drawn else 1.0
        layers[layer] = replace(common or draw_layer(), residual_scale=scale)
    return SubnetworkSpec(d, tuple(layers))


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

"""Running a model on a sub-network: smaller matrices and fewer layers, not masks.

While a sub-network is attached, the model's own modules hold compact copies of their weights (the
rows and columns of the active units) and its list of layers holds only the active ones, so that
Hugging Face's code runs unchanged on a smaller model. The parameters that the optimizer holds keep
their identity; `write_gradients` puts the compact gradients into them.

A branch is a sum over its units, so that units which run without being trained are further compact
branches on the same input, whose output is added: frozen ones pass the gradient of their input on,
others run forward only.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, product
from typing import Any, Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from transformers import PreTrainedModel

from device import send
from subnetworks import sharded
from subnetworks.anatomy import Anatomy
from subnetworks.context import ContextForwardOnly
from subnetworks.families import BRANCHES, UNITS, Branch, Cut, Unit
from subnetworks.spec import TIERS, BranchChoice, SubnetworkSpec, Tier

Units = Mapping[Unit, Tensor]
"""Units of a branch: ascending indices on the model's device; kinds left out are whole."""
Place = tuple[int, Branch]
"""A branch of a layer."""


class Chooser(Protocol):
    """Says which units of a branch run, once for each optimizer step."""

    def needs_input(self, layer: int, branch: Branch) -> bool:
        """Whether the choice depends on what the branch reads, and so waits for the forward."""

    def choose(
        self, layer: int, branch: Branch, counts: BranchChoice, branch_input: Tensor | None
    ) -> Mapping[Tier, Units]:
        """The units of each tier that `counts` has, as many as it has."""


@dataclass
class _Slice:
    """A parameter, the compact copy that stands in for it, and how one maps to the other."""

    module: nn.Module
    name: str
    original: nn.Parameter
    compact: nn.Parameter | None
    index: Tensor | None
    """Positions of the compact copy on `axis` of the original; `None`: all of them."""
    axis: int
    scale: float

    def write_gradient(self) -> None:
        """Move the compact gradient into the original's and release the compact copy."""
        assert self.compact is not None, "gradients are written once per gathering"
        gradient, self.compact = self.compact.grad, None
        if gradient is None:
            return
        if self.scale != 1.0:
            gradient.mul_(self.scale)
        if isinstance(self.original, DTensor):
            sharded.add_gradient(self.original, gradient, self.index, self.axis)
        elif self.index is not None:
            is_first = self.original.grad is None
            if is_first:
                self.original.grad = torch.zeros_like(self.original)
            whole = cast(Tensor, self.original.grad)
            put = whole.index_copy_ if is_first else whole.index_add_
            put(self.axis, self.index, gradient)
        elif self.original.grad is None:
            self.original.grad = gradient
        else:
            self.original.grad.add_(gradient)


@dataclass
class _Compact:
    """What stands in for parameters, and for sizes: these as owner, attribute and value."""

    slices: list[_Slice] = field(default_factory=list)
    attributes: list[tuple[Any, str, Any]] = field(default_factory=list)

    def add(self, other: "_Compact") -> None:
        """Take over what stands in for others."""
        self.slices += other.slices
        self.attributes += other.attributes

    @contextmanager
    def standing_in(self) -> Iterator[None]:
        """Let the model run on it, and give the model back what it had."""
        parameters = [(p.module, p.name, p.module._parameters[p.name]) for p in self.slices]
        sizes = [(owner, name, getattr(owner, name)) for owner, name, _ in self.attributes]
        try:
            for piece in self.slices:
                assert piece.compact is not None, "gather before attaching"
                piece.module._parameters[piece.name] = piece.compact
            for owner, name, value in self.attributes:
                setattr(owner, name, value)
            yield
        finally:
            for module, name, parameter in parameters:
                module._parameters[name] = parameter
            for owner, name, value in sizes:
                setattr(owner, name, value)


class SlicedModel:
    """A causal language model that can run on a sub-network of itself.

    The order in a training step is `gather` (once per optimizer step), then `attach`, forward,
    backward and `detach` for every micro-batch, then `write_gradients`; `activate` does it all.

    With a chooser the sub-network says how many units are active and the chooser which ones: at
    `gather`, or, where it needs a branch's input, when the first micro-batch reaches that branch.
    The choice holds for the step, so that later micro-batches and a recomputation under gradient
    checkpointing run on the same weights.

    Args:
        model: A Hugging Face causal language model of a known architecture.

    Raises:
        ValueError: The architecture is not known.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.anatomy = Anatomy(model)
        self.spec = SubnetworkSpec.full(self.anatomy.dimensions)
        self._chooser: Chooser | None = None
        self._sent: tuple[SubnetworkSpec, torch.device] | None = None
        """The last sub-network without a chooser, and where its units are."""
        self._named: dict[Place, dict[Tier, Units]] = {}
        """The units that it names."""
        self._units: dict[Place, Mapping[Tier, Units]] = {}
        """What is gathered, of branches that leave something out or are scaled."""
        self._open: list[Place] = []
        """Branches that wait for their input to be chosen from."""
        self._trained = _Compact()
        self._beside: dict[Place, dict[Tier, _Compact]] = {}
        """What runs untrained."""
        self._apart: list[FSDPModule] = []
        self._attached: ExitStack | None = None
        """Gives the model back what it had; None while it is itself."""
        self._context = ContextForwardOnly(self.anatomy)
        for block in self.anatomy.layers:
            sharded.introduce(block)

    @property
    def units(self) -> dict[tuple[int, Unit], Tensor]:
        """Active units of what is gathered, by layer and kind; whole kinds are left out."""
        return {
            (layer, unit): indices
            for (layer, _), tiers in self._units.items()
            for unit, indices in tiers["active"].items()
        }

    @torch.no_grad()
    def copy_layers(self, sources: Mapping[int, int]) -> None:
        """Give layers the weights of others, in place; the optimizer's states stay.

        Args:
            sources: {layer: layer whose weights it gets}.
        """
        for layer, source in sources.items():
            own = self.anatomy.layers[layer].parameters()
            for parameter, other in zip(own, self.anatomy.layers[source].parameters(), strict=True):
                parameter.copy_(other)

    # --- once per optimizer step

    def gather(self, spec: SubnetworkSpec, chooser: Chooser | None = None) -> None:
        """Copy the active units' weights; what was gathered before is dropped.

        Args:
            spec: A sub-network of this model.
            chooser: Replaces the sub-network's units by as many others.

        Raises:
            ValueError: The sub-network belongs to a model of other dimensions, or scales branches
                whose norms would undo it.
        """
        if spec.dimensions != self.anatomy.dimensions:
            raise ValueError(
                f"the sub-network is of {spec.dimensions}, the model has {self.anatomy.dimensions}"
            )
        if self.anatomy.architecture.normed_output and spec.scales:
            raise ValueError(
                f"a {self.anatomy.model.config.model_type} norms what a branch puts out, which "
                "undoes the sub-network's scales"
            )
        assert self._attached is None, "detach before gathering"
        if chooser is None and self._sent != (sent := (spec, self.anatomy.device)):
            self._sent, self._named = sent, self._send(*sent)
        self.spec, self._chooser = spec, chooser
        self._units, self._open, self._apart = {}, [], []
        self._trained, self._beside = _Compact(), {}
        for layer in spec.active_layers:
            choice = spec.choice(layer)
            leaving_out = [b for b in BRANCHES if choice.branch(b).active is not None]
            cut = [b for b in BRANCHES if b in leaving_out or choice.scale(b) != 1.0]
            if cut and isinstance(block := self.anatomy.layers[layer], FSDPModule):
                self._take_from_fsdp(layer, block, cut)
            for branch in cut:
                waits = chooser is not None and chooser.needs_input(layer, branch)
                if waits and branch in leaving_out:
                    self._open.append((layer, branch))
                else:
                    self._trained.add(self._gather_branch(layer, branch))
        if len(spec.active_layers) < len(self.anatomy.layers):
            self._skip_layers(spec.active_layers)

    def write_gradients(self, average_over_ranks: bool = False) -> None:
        """Put the compact gradients into the original parameters and drop the compact weights.

        Args:
            average_over_ranks: Average them over the data-parallel ranks first, as DDP does for
                the parameters that it sees; those of blocks that FSDP splits always are.
        """
        assert self._attached is None, "detach before writing gradients"
        if average_over_ranks:
            world_size, works = dist.get_world_size(), []
            for piece in self._trained.slices:
                gradient = None if piece.compact is None else piece.compact.grad
                if gradient is not None and not isinstance(piece.original, DTensor):
                    works.append(dist.all_reduce(gradient.div_(world_size), async_op=True))
            for work in works:
                work.wait()
        for piece in self._trained.slices:
            piece.write_gradient()
        self._trained, self._beside = _Compact(), {}

    def unsampled(self) -> Iterator[tuple[nn.Parameter, int, Tensor]]:
        """Parameters that are only partly active: each with its axis and the inactive positions."""
        for piece in self._trained.slices:
            if piece.index is not None:
                active = torch.zeros(
                    piece.original.shape[piece.axis], dtype=torch.uint8, device=piece.index.device
                ).index_fill_(0, piece.index, 1)
                n_inactive = len(active) - len(piece.index)
                # A sort instead of `nonzero`, whose length the host would have to wait for.
                yield piece.original, piece.axis, active.argsort(stable=True)[:n_inactive]

    # --- for every micro-batch

    def attach(self) -> None:
        """Let the model run on the gathered sub-network."""
        assert self._attached is None, "already attached"
        self._attached = ExitStack()
        for layer, branch in self._open:
            self._hook("register_forward_pre_hook", self._choose, layer, branch)
        for layer in self.spec.active_layers:
            for branch in BRANCHES:
                choice = self.spec.choice(layer).branch(branch)
                if choice.frozen or choice.forward:
                    self._hook("register_forward_hook", self._add_untrained, layer, branch)
        for block in self._apart:
            own_hooks = _Compact(attributes=sharded.hooks_without_fsdp(block))
            self._attached.enter_context(own_hooks.standing_in())
        if self.spec.context_forward_only:
            self._context.attach()
            self._attached.callback(self._context.detach)
        self._attached.enter_context(self._trained.standing_in())

    def detach(self) -> None:
        """Give the model its own parameters, layers and sizes back; harmless if not attached."""
        if self._attached is not None:
            self._attached.close()
            self._attached = None

    def _hook(self, register: str, function: Any, layer: int, branch: Branch) -> None:
        """Have a function called before or after a branch runs, while the model is attached."""
        assert self._attached is not None
        module = self.anatomy.branch(layer, branch)
        hook = getattr(module, register)(partial(function, layer, branch), with_kwargs=True)
        self._attached.callback(hook.remove)

    def _choose(
        self, layer: int, branch: Branch, module: nn.Module, args: Any, kwargs: dict[str, Any]
    ) -> None:
        """Before a branch runs for the first time in a step: choose from its input, and gather."""
        if (layer, branch) not in self._open:  # chosen by now: a recomputation
            return
        assert self._attached is not None, "runs while it is attached"
        compact = self._gather_branch(layer, branch, args[0] if args else kwargs["hidden_states"])
        self._trained.add(compact)
        self._attached.enter_context(compact.standing_in())
        self._open.remove((layer, branch))

    def _add_untrained(
        self,
        layer: int,
        branch: Branch,
        module: nn.Module,
        args: Any,
        kwargs: dict[str, Any],
        output: Any,
    ) -> Any:
        """After a branch ran on its active units: add what the untrained ones contribute."""
        if "past_key_values" in kwargs:  # the active heads have written theirs
            kwargs = {**kwargs, "past_key_values": None}
        for tier, compact in self._beside[layer, branch].items():
            gradients = tier == "frozen" and torch.is_grad_enabled()
            with torch.set_grad_enabled(gradients), compact.standing_in():
                added = module.forward(*args, **kwargs)
            if isinstance(output, tuple):
                output = (output[0] + added[0], *output[1:])
            else:
                output = output + added
        return output

    # --- compact copies

    def _gather_branch(
        self, layer: int, branch: Branch, branch_input: Tensor | None = None
    ) -> _Compact:
        """Settle a branch's units and copy their weights; return what stands in for active ones."""
        choice = self.spec.choice(layer).branch(branch)
        weights = ((weight.module, weight.name) for weight in self.anatomy.weights(layer, branch))
        with sharded.whole_weights(weights):
            tiers: Mapping[Tier, Units]
            if choice.active is None:
                tiers = {"active": {}}
            elif self._chooser is None:
                tiers = self._named[layer, branch]
            else:
                tiers = self._chooser.choose(layer, branch, choice, branch_input)
            compact = {
                tier: self._compact_branch(layer, branch, units, trained=tier == "active")
                for tier, units in tiers.items()
            }
        active = compact.pop("active")
        self._units[layer, branch], self._beside[layer, branch] = tiers, compact
        return active

    def _send(self, spec: SubnetworkSpec, device: torch.device) -> dict[Place, dict[Tier, Units]]:
        """The units that a sub-network names, all in one copy to a device."""
        d = self.anatomy.dimensions
        named: dict[tuple[Place, Tier, Unit], Sequence[int]] = {}
        for layer, branch in product(spec.active_layers, BRANCHES):
            choice = spec.choice(layer).branch(branch)
            for tier in TIERS:
                if not (indices := choice.units(tier)):
                    continue
                named[(layer, branch), tier, UNITS[branch]] = indices
                if branch == "attention" and len(groups := d.groups(indices)) < d.n_kv_heads:
                    named[(layer, branch), tier, "kv_heads"] = groups
        every = torch.tensor([*chain.from_iterable(named.values())], dtype=torch.long)
        parts = send(every, device).split([len(units) for units in named.values()])
        tiers: dict[Place, dict[Tier, dict[Unit, Tensor]]] = {}
        for (place, tier, unit), indices in zip(named, parts, strict=True):
            tiers.setdefault(place, {}).setdefault(tier, {})[unit] = indices
        return cast(dict[Place, dict[Tier, Units]], tiers)

    def _compact_branch(self, layer: int, branch: Branch, units: Units, trained: bool) -> _Compact:
        """A branch of some of its units; untrained: beside others, which add the output bias."""
        choice, compact = self.spec.choice(layer), _Compact()
        positions: dict[tuple[Unit, int], Tensor] = {}
        for weight in self.anatomy.weights(layer, branch):
            cut, index = weight.cut, None
            if weight.axis is not None and cut.unit in units:
                key = cut.unit, cut.fused
                if key not in positions:
                    length = weight.value.shape[weight.axis]
                    positions[key] = self._positions(cut, units[cut.unit], length)
                index = positions[key]
            scale = 1.0
            if weight.carries_scale:
                scale = choice.scale(branch)
            elif weight.name == "bias" and cut.side == "in":
                scale = choice.residual_scale if trained else 0.0
            piece = self._slice_of(
                weight.module, weight.name, index, weight.axis or 0, scale, trained
            )
            if piece is None:
                continue
            compact.slices.append(piece)
            if weight.name == "weight" and hasattr(weight.module, "nf"):  # GPT-2's Conv1D
                assert piece.compact is not None
                compact.attributes.append((weight.module, "nf", piece.compact.shape[1]))
        if "heads" in units:
            compact.attributes += self._sizes_of_attention(layer, units)
        return compact

    def _sizes_of_attention(self, layer: int, units: Units) -> list[tuple[Any, str, Any]]:
        attention, n_heads = self.anatomy.branch(layer, "attention"), len(units["heads"])
        if hasattr(attention, "split_size"):
            size = n_heads * cast(int, attention.head_dim)
            return [(attention, "split_size", size), (attention, "num_heads", n_heads)]
        if hasattr(attention, "num_key_value_groups"):
            groups = units.get("kv_heads")
            n_groups = self.anatomy.dimensions.n_kv_heads if groups is None else len(groups)
            per_group = n_heads // n_groups
            return [(attention, "num_key_value_groups", per_group)]
        return []

    def _positions(self, cut: Cut, units: Tensor, length: int) -> Tensor:
        """Where the units lie on an axis of this length, in order, for every fused part."""
        part = length // cut.fused
        width = part // self.anatomy.dimensions.total(cut.unit)
        every = torch.arange(max(width, cut.fused), device=units.device)
        rows = (units[:, None] * width + every[:width]).flatten()
        return (every[: cut.fused, None] * part + rows).flatten()

    def _slice_of(
        self,
        module: nn.Module,
        name: str,
        index: Tensor | None = None,
        axis: int = 0,
        scale: float = 1.0,
        trained: bool = True,
    ) -> _Slice | None:
        """A parameter's compact copy; `None` if the parameter can stay where it is."""
        value = cast(nn.Parameter, module._parameters[name])
        original = sharded.held(value)
        if index is None and scale == 1.0 and original is value and trained:
            return None
        with torch.no_grad():
            if index is not None:
                values = value.index_select(axis, index)
                if scale != 1.0:
                    values.mul_(scale)
            else:
                values = value.detach() if scale == 1.0 else value * scale
        compact = nn.Parameter(values, requires_grad=trained and original.requires_grad)
        return _Slice(module, name, original, compact, index, axis, scale)

    def _take_from_fsdp(self, layer: int, block: FSDPModule, branches: list[Branch]) -> None:
        """Have a block run apart from FSDP, and put together what of it is in no cut branch."""
        self._apart.append(block)
        cut = {(w.module, w.name) for b in branches for w in self.anatomy.weights(layer, b)}
        whole = [
            (module, name)
            for module in self.anatomy.layers[layer].modules()
            for name, value in module._parameters.items()
            if value is not None and (module, name) not in cut
        ]
        with sharded.whole_weights(whole):
            pieces = (self._slice_of(module, name) for module, name in whole)
            self._trained.slices += [piece for piece in pieces if piece is not None]

    def _skip_layers(self, active: tuple[int, ...]) -> None:
        anatomy = self.anatomy
        kept = nn.ModuleList(anatomy.layers[layer] for layer in active)
        kept.train(anatomy.model.training)
        self._trained.attributes.append((anatomy.parent, anatomy.layers_name, kept))
        # Qwen3 looks up the mask of the i-th executed block in `config.layer_types`.
        config = anatomy.model.config
        if (layer_types := getattr(config, "layer_types", None)) is not None:
            kept_types = [layer_types[layer] for layer in active]
            self._trained.attributes.append((config, "layer_types", kept_types))


@contextmanager
def activate(
    model: PreTrainedModel | SlicedModel, spec: SubnetworkSpec, chooser: Chooser | None = None
) -> Iterator[SlicedModel]:
    """Run forward and backward passes on a sub-network of the model.

    The weights are gathered on entry, so that the context spans one optimizer step with all its
    micro-batches. On exit the model is itself again and the gradients lie in its own parameters:
    inactive units of an active layer have zero gradient, skipped layers have none. If the body
    raises, no gradient is written.

    Args:
        model: The model, or a `SlicedModel` of it kept from step to step.
        spec: The active sub-network; the full one leaves the model as it is.
        chooser: Replaces its units by as many others, see `subnetworks.importance`.

    Yields:
        The `SlicedModel`.

    Raises:
        ValueError: The architecture is not known, or the sub-network is of another model.
    """
    sliced = model if isinstance(model, SlicedModel) else SlicedModel(model)
    sliced.gather(spec, chooser)
    sliced.attach()
    try:
        yield sliced
    finally:
        sliced.detach()
    sliced.write_gradients()


class FreezeUnsampled:
    """Keep inactive units of active layers untouched by an optimizer step.

    Without it their gradient is zero, so that their moments decay and weight decay applies to them;
    with it the rows, their moments and every other state tensor of the parameter's shape are put
    back after the step. It costs a copy of the inactive rows and of their states per step.

    Args:
        sliced: The model; its gathered sub-network tells what is inactive.
        optimizer: Holds the model's parameters.
    """

    def __init__(self, sliced: SlicedModel, optimizer: Optimizer) -> None:
        self._sliced, self._optimizer = sliced, optimizer
        self._kept: list[tuple[Tensor, int, Tensor, Tensor]] = []
        optimizer.register_step_post_hook(lambda *_: self._restore())

    @torch.no_grad()
    def save(self) -> None:
        """Put the inactive rows aside until the next step is done; before `write_gradients`."""
        self._kept = []  # of a step that was skipped
        for parameter, axis, rows in self._sliced.unsampled():
            states = [
                value
                for value in self._optimizer.state.get(parameter, {}).values()
                if torch.is_tensor(value) and value.shape == parameter.shape
            ]
            for tensor in (parameter, *states):
                self._kept.append((tensor, axis, rows, tensor.index_select(axis, rows)))

    @torch.no_grad()
    def _restore(self) -> None:
        for tensor, axis, rows, values in self._kept:
            tensor.index_copy_(axis, rows, values)
        self._kept = []

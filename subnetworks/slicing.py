"""Running a model on a sub-network: smaller matrices and fewer layers, not masks.

While a sub-network is attached, the model's own modules hold compact copies of their weights (the
rows and columns of the active units) and its list of layers holds only the active ones, so that
Hugging Face's code runs unchanged on a smaller model. The parameters that the optimizer holds keep
their identity; `write_gradients` puts the compact gradients into them.

A branch is a sum over its units, so that units which run without being trained are further compact
branches on the same input, whose output is added: frozen ones pass the gradient of their input on,
others run forward only.

Blocks whose parameters FSDP2 splits over the ranks (`fully_shard`) run apart from it while they are
cut: their weights are put together once per step, instead of in every micro-batch's passes, each
rank keeps the compact copies, and the gradients are averaged and split once. Whole blocks, the
embeddings and the head stay with FSDP.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Partial
from torch.optim import Optimizer
from transformers import PretrainedConfig, PreTrainedModel

from subnetworks.anatomy import Anatomy
from subnetworks.context import ContextForwardOnly
from subnetworks.families import BRANCHES, Branch, Cut, Unit
from subnetworks.spec import TIERS, LayerChoice, SubnetworkSpec

Units = Mapping[Unit, Tensor]
"""Active units of a branch: ascending indices on the model's device; kinds left out are whole."""


class Chooser(Protocol):
    """Says which units of a branch are active, once for each optimizer step."""

    def needs_input(self, layer: int, branch: Branch) -> bool:
        """Whether the choice depends on what the branch reads, and so waits for the forward."""

    def choose(
        self, layer: int, branch: Branch, counts: LayerChoice, branch_input: Tensor | None
    ) -> tuple[Units, Mapping[str, Units]]:
        """The active units, and by tier those that run untrained; as many as `counts` has."""


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
            self._split_gradient(gradient, self.original)
            return
        if self.index is None:
            if self.original.grad is None:
                self.original.grad = gradient
            else:
                self.original.grad.add_(gradient)
            return
        if self.original.grad is None:
            self.original.grad = torch.zeros_like(self.original)
            self.original.grad.index_copy_(self.axis, self.index, gradient)
        else:
            self.original.grad.index_add_(self.axis, self.index, gradient)

    def _split_gradient(self, gradient: Tensor, original: DTensor) -> None:
        """Average the gradient over the ranks; each keeps the rows that it has of the parameter."""
        if self.index is not None:
            whole = gradient.new_zeros(original.shape)
            gradient = whole.index_copy_(self.axis, self.index, gradient)
        mesh = original.device_mesh
        summed = DTensor.from_local(gradient.div_(mesh.size()), mesh, [Partial()], run_check=False)
        mine = summed.redistribute(placements=original.placements)
        original.grad = mine if original.grad is None else original.grad + mine


@dataclass
class _Compact:
    """What stands in for parameters and sizes: these as owner, attribute and value."""

    slices: list[_Slice]
    attributes: list[tuple[Any, str, Any]]

    def add(self, other: "_Compact") -> None:
        """Take over what stands in for others."""
        self.slices += other.slices
        self.attributes += other.attributes


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
        self.units: dict[tuple[int, Unit], Tensor] = {}
        """Active units of what is gathered, by layer and kind; whole kinds are left out."""
        self.untrained: dict[tuple[int, str], Tensor] = {}
        """Heads and neurons of what is gathered that run untrained, by layer and, for example,
        `frozen_heads`."""
        self._chooser: Chooser | None = None
        self._open: list[tuple[int, Branch]] = []
        self._trained = _Compact([], [])
        self._beside: dict[tuple[int, Branch], dict[str, _Compact]] = {}
        """What runs untrained, by tier."""
        self._attached: ExitStack | None = None
        """Gives the model back what it had; None while it is itself."""
        self._shards: dict[tuple[nn.Module, str], nn.Parameter] = {}
        """Of a branch whose weights are put together at the moment: what FSDP has of them."""
        self._apart: list[FSDPModule] = []
        self._context = ContextForwardOnly(self.anatomy)
        for block in self.anatomy.layers:
            if isinstance(block, FSDPModule):
                # FSDP remembers a block's parameters when it runs for the first time; it must not
                # find compact copies there.
                block.unshard()
                block.reshard()

    @property
    def config(self) -> PretrainedConfig:
        """The model's."""
        return self.anatomy.model.config

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
        self.spec, self._chooser = spec, chooser
        self.units, self.untrained, self._open = {}, {}, []
        self._trained, self._beside, self._apart = _Compact([], []), {}, []
        for layer in spec.active_layers:
            choice = spec.choice(layer)
            as_it_is = [
                branch
                for branch in BRANCHES
                if not choice.leaves_out(branch) and choice.scale(branch) == 1.0
            ]
            if len(as_it_is) < len(BRANCHES) and isinstance(self.anatomy.layers[layer], FSDPModule):
                self._take_from_fsdp(layer, as_it_is)
            for branch in BRANCHES:
                if branch in as_it_is:
                    continue
                if not choice.leaves_out(branch) or chooser is None:
                    with self._put_together(layer, branch):
                        units = self._to_tensors(choice, branch)
                        self._trained.add(self._gather_branch(layer, branch, *units))
                elif chooser.needs_input(layer, branch):
                    self._open.append((layer, branch))
                else:
                    with self._put_together(layer, branch):
                        units = chooser.choose(layer, branch, choice, None)
                        self._trained.add(self._gather_branch(layer, branch, *units))
        if len(spec.active_layers) < len(self.anatomy.layers):
            self._skip_layers(spec.active_layers)

    def attach(self) -> None:
        """Let the model run on the gathered sub-network."""
        assert self._attached is None, "already attached"
        self._attached = ExitStack()
        for layer, branch in self._open:
            module = self.anatomy.branch(layer, branch)
            choose = partial(self._choose, layer, branch)
            hook = module.register_forward_pre_hook(choose, with_kwargs=True)
            self._attached.callback(hook.remove)
        for layer in self.spec.active_layers:
            for branch in BRANCHES:
                if any(self.spec.choice(layer).untrained(tier, branch) for tier in TIERS):
                    add = partial(self._add_untrained, layer, branch)
                    module = self.anatomy.branch(layer, branch)
                    hook = module.register_forward_hook(add, with_kwargs=True)
                    self._attached.callback(hook.remove)
        for block in self._apart:
            self._attached.enter_context(_standing_in(_without_fsdp(block)))
        if self.spec.context_forward_only:
            self._context.attach()
            self._attached.callback(self._context.detach)
        self._attached.enter_context(_standing_in(self._trained))

    def _choose(
        self, layer: int, branch: Branch, module: nn.Module, args: Any, kwargs: dict[str, Any]
    ) -> None:
        """Before a branch runs for the first time in a step: choose from its input, and gather."""
        if (layer, branch) not in self._open:  # chosen by now: a recomputation
            return
        assert self._chooser is not None, "an open branch has a chooser"
        assert self._attached is not None, "runs while it is attached"
        branch_input = args[0] if args else kwargs["hidden_states"]
        with self._put_together(layer, branch):
            units = self._chooser.choose(layer, branch, self.spec.choice(layer), branch_input)
            compact = self._gather_branch(layer, branch, *units)
        self._trained.add(compact)
        self._attached.enter_context(_standing_in(compact))
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
            with torch.set_grad_enabled(gradients), _standing_in(compact):
                added = module.forward(*args, **kwargs)
            if isinstance(output, tuple):
                output = (output[0] + added[0], *output[1:])
            else:
                output = output + added
        return output

    def detach(self) -> None:
        """Give the model its own parameters, layers and sizes back; harmless if not attached."""
        if self._attached is not None:
            self._attached.close()
            self._attached = None

    def write_gradients(self, average_over_ranks: bool = False) -> None:
        """Put the compact gradients into the original parameters and drop the compact weights.

        Args:
            average_over_ranks: Average them over the data-parallel ranks first, as DDP does for
                the parameters that it sees; those of blocks that FSDP splits always are.
        """
        assert self._attached is None, "detach before writing gradients"
        if average_over_ranks:
            world_size = dist.get_world_size()
            gradients = [
                s.compact.grad
                for s in self._trained.slices
                if s.compact is not None and not isinstance(s.original, DTensor)
            ]
            works = []
            for gradient in gradients:
                if gradient is not None:
                    works.append(dist.all_reduce(gradient.div_(world_size), async_op=True))
            for work in works:
                work.wait()
        for piece in self._trained.slices:
            piece.write_gradient()
        self._trained, self._beside = _Compact([], []), {}

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

    @property
    def chosen(self) -> SubnetworkSpec:
        """The sub-network that ran, with the chooser's units; reads them from the device."""
        layers = list(self.spec.layers)
        for (layer, unit), indices in self.units.items():
            chosen: dict[str, Any] = {unit: tuple(indices.tolist())}
            for tier in TIERS:
                if (layer, f"{tier}_{unit}") in self.untrained:
                    beside = self.untrained[layer, f"{tier}_{unit}"].tolist()
                    chosen[f"{tier}_{unit}"] = tuple(beside)
            layers[layer] = replace(cast(LayerChoice, layers[layer]), **chosen)
        return replace(self.spec, layers=tuple(layers))

    def _to_tensors(self, choice: LayerChoice, branch: Branch) -> tuple[Units, Mapping[str, Units]]:
        kinds: tuple[Unit, ...] = ("neurons",) if branch == "mlp" else ("heads", "kv_heads")
        device = next(self.anatomy.layers[0].parameters()).device
        chosen = {kind: choice.units(kind) for kind in kinds}
        active: Units = {
            kind: torch.tensor(units, device=device)
            for kind, units in chosen.items()
            if units is not None
        }
        untrained: dict[str, Units] = {}
        for tier in TIERS:
            units = choice.untrained(tier, branch)
            if not units:
                continue
            beside: dict[Unit, Tensor] = {kinds[0]: torch.tensor(units, device=device)}
            d = self.anatomy.dimensions
            groups = sorted({head // d.queries_per_group for head in units})
            if branch == "attention" and len(groups) < d.n_kv_heads:
                beside["kv_heads"] = torch.tensor(groups, device=device)
            untrained[tier] = beside
        return active, untrained

    def _gather_branch(
        self, layer: int, branch: Branch, units: Units, untrained: Mapping[str, Units]
    ) -> _Compact:
        """Copy a branch's weights; return what stands in for those of its active units."""
        for unit, indices in units.items():
            self.units[layer, unit] = indices
        kind: Unit = "neurons" if branch == "mlp" else "heads"
        for tier, beside in untrained.items():
            self.untrained[layer, f"{tier}_{kind}"] = beside[kind]
        if untrained:
            self._beside[layer, branch] = {
                tier: self._compact_branch(layer, branch, beside, trained=False)
                for tier, beside in untrained.items()
            }
        return self._compact_branch(layer, branch, units)

    def _compact_branch(
        self, layer: int, branch: Branch, units: Units, trained: bool = True
    ) -> _Compact:
        """A branch of some of its units; untrained: beside others, which add the output bias."""
        choice, compact = self.spec.choice(layer), _Compact([], [])
        positions: dict[tuple[Unit, int], Tensor] = {}
        for weight in self.anatomy.weights(layer, branch):
            cut = weight.cut
            index = None
            if weight.axis is not None and cut.unit in units:
                index = positions.get((cut.unit, cut.fused))
                if index is None:
                    length = weight.value.shape[weight.axis]
                    index = self._positions(cut, units[cut.unit], length)
                    positions[cut.unit, cut.fused] = index
            scale = 1.0
            if weight.carries_scale:
                scale = choice.scale(branch)
            elif weight.name == "bias" and cut.side == "in":
                scale = choice.residual_scale if trained else 0.0
            axis = weight.axis or 0
            piece = self._slice_of(weight.module, weight.name, index, axis, scale, trained)
            if piece is not None:
                compact.slices.append(piece)
        for cut, projection in self.anatomy.cuts(layer):
            index = positions.get((cut.unit, cut.fused))
            if cut.side == "out" and index is not None and hasattr(projection, "nf"):
                compact.attributes.append((projection, "nf", len(index)))
        if "heads" not in units:
            return compact
        attention, n_heads = self.anatomy.branch(layer, branch), len(units["heads"])
        if hasattr(attention, "split_size"):
            size = n_heads * cast(int, attention.head_dim)
            compact.attributes.append((attention, "split_size", size))
            compact.attributes.append((attention, "num_heads", n_heads))
        elif hasattr(attention, "num_key_value_groups"):
            n_groups = self.anatomy.dimensions.n_kv_heads
            if "kv_heads" in units:
                n_groups = len(units["kv_heads"])
            per_group = n_heads // n_groups
            compact.attributes.append((attention, "num_key_value_groups", per_group))
        return compact

    def _positions(self, cut: Cut, units: Tensor, length: int) -> Tensor:
        """Where the units lie on an axis of this length, in order, for every fused part."""
        part = length // cut.fused
        width = part // self.anatomy.total(cut.unit)
        every = torch.arange(max(width, cut.fused), device=units.device)
        rows = (units[:, None] * width + every[:width]).flatten()
        return (every[: cut.fused, None] * part + rows).flatten()

    def _slice_of(
        self,
        module: nn.Module,
        name: str,
        index: Tensor | None,
        axis: int,
        scale: float,
        trained: bool = True,
    ) -> _Slice | None:
        """A parameter's compact copy; `None` if the parameter can stay where it is."""
        value = cast(nn.Parameter, module._parameters[name])
        original = self._shards.get((module, name), value)
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

    def _take_from_fsdp(self, layer: int, as_it_is: list[Branch]) -> None:
        """Have a block run apart from FSDP, and put together what of it is not cut."""
        block = self.anatomy.layers[layer]
        self._apart.append(cast(FSDPModule, block))
        cut = {
            (weight.module, weight.name)
            for branch in BRANCHES
            for weight in self.anatomy.weights(layer, branch)
            if branch not in as_it_is
        }
        whole = [
            (module, name)
            for module in block.modules()
            for name, value in module._parameters.items()
            if value is not None and (module, name) not in cut
        ]
        with self._put_together_all(whole):
            pieces = (self._slice_of(module, name, None, 0, 1.0) for module, name in whole)
            self._trained.slices += [piece for piece in pieces if piece is not None]

    def _put_together(self, layer: int, branch: Branch) -> AbstractContextManager[None]:
        """Let a branch have its whole weights where FSDP splits them over the ranks."""
        if not isinstance(self.anatomy.layers[layer], FSDPModule):
            return nullcontext()
        return self._put_together_all(
            [(weight.module, weight.name) for weight in self.anatomy.weights(layer, branch)]
        )

    @contextmanager
    def _put_together_all(self, parameters: list[tuple[nn.Module, str]]) -> Iterator[None]:
        for module, name in parameters:
            value: Tensor | None = module._parameters[name]
            if isinstance(value, DTensor):
                self._shards[module, name] = cast(nn.Parameter, value)
        try:
            for (module, name), shard in self._shards.items():
                with torch.no_grad():
                    whole = cast(DTensor, shard).full_tensor()
                module._parameters[name] = nn.Parameter(whole, requires_grad=shard.requires_grad)
            yield
        finally:
            for (module, name), shard in self._shards.items():
                module._parameters[name] = shard
            self._shards = {}

    def _skip_layers(self, active: tuple[int, ...]) -> None:
        anatomy = self.anatomy
        kept = nn.ModuleList(anatomy.layers[layer] for layer in active)
        kept.train(anatomy.model.training)
        self._trained.attributes.append((anatomy.parent, anatomy.layers_name, kept))
        # Qwen3 looks up the mask of the i-th executed block in `config.layer_types`.
        layer_types = getattr(anatomy.model.config, "layer_types", None)
        if layer_types is not None:
            kept_types = [layer_types[layer] for layer in active]
            self._trained.attributes.append((anatomy.model.config, "layer_types", kept_types))


@contextmanager
def _standing_in(compact: _Compact) -> Iterator[None]:
    """Let a model run on compact copies, and give it back what it had."""
    parameters = [(p.module, p.name, p.module._parameters[p.name]) for p in compact.slices]
    sizes = [(owner, name, getattr(owner, name)) for owner, name, _ in compact.attributes]
    try:
        for piece in compact.slices:
            assert piece.compact is not None, "gather before attaching"
            piece.module._parameters[piece.name] = piece.compact
        for owner, name, value in compact.attributes:
            setattr(owner, name, value)
        yield
    finally:
        for module, name, parameter in parameters:
            module._parameters[name] = parameter
        for owner, name, value in sizes:
            setattr(owner, name, value)


def _without_fsdp(block: FSDPModule) -> _Compact:
    """A block's hooks but FSDP's, which would put its whole weights where compact ones are."""
    state, left = block._get_fsdp_state(), _Compact([], [])
    for name in ("_forward_pre_hooks", "_forward_hooks"):
        hooks = getattr(block, name)
        others = ((k, h) for k, h in hooks.items() if getattr(h, "__self__", None) is not state)
        left.attributes.append((block, name, type(hooks)(others)))
    return left


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

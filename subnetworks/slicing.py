"""Running a model on a sub-network: smaller matrices and fewer layers, not masks.

While a sub-network is attached, the model's own modules hold compact copies of their weights (the
rows and columns of the active units) and its list of layers holds only the active ones, so that
Hugging Face's code runs unchanged on a smaller model. The parameters that the optimizer holds keep
their identity; `write_gradients` puts the compact gradients into them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from subnetworks.anatomy import Anatomy, Cut
from subnetworks.spec import FULL_LAYER, LayerChoice, SubnetworkSpec


@dataclass
class _Slice:
    """A parameter, the compact copy that stands in for it, and how one maps to the other."""

    module: nn.Module
    name: str
    original: nn.Parameter
    compact: nn.Parameter | None
    index: torch.Tensor | None
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


class SlicedModel:
    """A causal language model that can run on a sub-network of itself.

    The order in a training step is `gather` (once per optimizer step), then `attach`, forward,
    backward and `detach` for every micro-batch, then `write_gradients`; `activate` does it all.

    Args:
        model: A Hugging Face causal language model of a known architecture.

    Raises:
        ValueError: The architecture is not known.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.anatomy = Anatomy(model)
        self.spec = SubnetworkSpec.full(self.anatomy.dimensions)
        self._slices: list[_Slice] = []
        self._attributes: list[tuple[Any, str, Any]] = []
        self._saved: list[tuple[Any, str, Any]] | None = None

    @property
    def gathered(self) -> bool:
        """Whether compact weights are held, waiting for their gradients to be written."""
        return bool(self._slices)

    def gather(self, spec: SubnetworkSpec) -> None:
        """Copy the active units' weights; what was gathered before is dropped.

        Args:
            spec: A sub-network of this model.

        Raises:
            ValueError: The sub-network belongs to a model of other dimensions.
        """
        if spec.dimensions != self.anatomy.dimensions:
            raise ValueError(
                f"the sub-network is of {spec.dimensions}, the model has {self.anatomy.dimensions}"
            )
        assert self._saved is None, "detach before gathering"
        self.spec = spec
        self._slices = []
        self._attributes = []
        if spec.is_full:
            return
        for layer in spec.active_layers:
            self._gather_layer(layer, spec.choice(layer))
        if len(spec.active_layers) < len(self.anatomy.layers):
            self._skip_layers(spec.active_layers)

    def attach(self) -> None:
        """Let the model run on the gathered sub-network."""
        assert self._saved is None, "already attached"
        self._saved = []
        for piece in self._slices:
            assert piece.compact is not None, "gather before attaching"
            piece.module._parameters[piece.name] = piece.compact
        for owner, name, value in self._attributes:
            self._saved.append((owner, name, getattr(owner, name)))
            setattr(owner, name, value)

    def detach(self) -> None:
        """Give the model its own parameters, layers and sizes back; harmless if not attached."""
        if self._saved is None:
            return
        for piece in self._slices:
            piece.module._parameters[piece.name] = piece.original
        for owner, name, value in self._saved:
            setattr(owner, name, value)
        self._saved = None

    def write_gradients(self, average_over_ranks: bool = False) -> None:
        """Put the compact gradients into the original parameters and drop the compact weights.

        Args:
            average_over_ranks: Average them over the data-parallel ranks first, as DDP does for
                the parameters that it sees.
        """
        assert self._saved is None, "detach before writing gradients"
        if average_over_ranks:
            world_size = dist.get_world_size()
            gradients = [s.compact.grad for s in self._slices if s.compact is not None]
            works = []
            for gradient in gradients:
                if gradient is not None:
                    works.append(dist.all_reduce(gradient.div_(world_size), async_op=True))
            for work in works:
                work.wait()
        for piece in self._slices:
            piece.write_gradient()
        self._slices = []

    def unsampled(self) -> Iterator[tuple[nn.Parameter, int, torch.Tensor]]:
        """Parameters that are only partly active: each with its axis and the inactive positions."""
        for piece in self._slices:
            if piece.index is not None:
                inactive = torch.ones(piece.original.shape[piece.axis], dtype=torch.bool)
                inactive[piece.index.cpu()] = False
                positions = inactive.nonzero().squeeze(1).to(piece.index.device)
                yield piece.original, piece.axis, positions

    def _gather_layer(self, layer: int, choice: LayerChoice) -> None:
        if choice == FULL_LAYER:
            return
        attention = self.anatomy.attention(layer)
        positions: dict[tuple[str, int], torch.Tensor] = {}
        for cut, projection in self.anatomy.cuts(layer):
            units = choice.units(cut.unit)
            index = None
            if units is not None:
                index = positions.get((cut.unit, cut.fused))
                if index is None:
                    index = self._positions(cut, units, projection)
                    positions[cut.unit, cut.fused] = index
            self._gather_projection(cut, projection, index, choice)
            if cut.side == "out" and index is not None and hasattr(projection, "nf"):
                self._attributes.append((projection, "nf", len(index)))
        if choice.heads is None:
            return
        if hasattr(attention, "split_size"):
            size = len(choice.heads) * cast(int, attention.head_dim)
            self._attributes.append((attention, "split_size", size))
            self._attributes.append((attention, "num_heads", len(choice.heads)))
        elif hasattr(attention, "num_key_value_groups"):
            n_groups = len(choice.kv_heads or range(self.anatomy.dimensions.n_kv_heads))
            queries_per_group = len(choice.heads) // n_groups
            self._attributes.append((attention, "num_key_value_groups", queries_per_group))

    def _positions(self, cut: Cut, units: tuple[int, ...], projection: nn.Module) -> torch.Tensor:
        """Where the units lie on the projection's axis, in order, for every fused part."""
        d = self.anatomy.dimensions
        totals = {"heads": d.n_heads, "kv_heads": d.n_kv_heads, "neurons": d.intermediate_size}
        weight = cast(nn.Parameter, projection.weight)
        length = weight.shape[self.anatomy.architecture.axis(cut)]
        width = length // (cut.fused * totals[cut.unit])
        starts = torch.tensor(units) * width
        part = (starts[:, None] + torch.arange(width)).flatten()
        offsets = torch.arange(cut.fused) * (length // cut.fused)
        return (offsets[:, None] + part).flatten().to(weight.device)

    def _gather_projection(
        self, cut: Cut, projection: nn.Module, index: torch.Tensor | None, choice: LayerChoice
    ) -> None:
        if cut.side == "in":
            scale = choice.scale(cut.branch)
            self._gather_parameter(
                projection, "weight", index, self.anatomy.architecture.axis(cut), scale
            )
            self._gather_parameter(projection, "bias", None, 0, choice.residual_scale)
        else:
            self._gather_parameter(
                projection, "weight", index, self.anatomy.architecture.axis(cut), 1.0
            )
            self._gather_parameter(projection, "bias", index, 0, 1.0)

    def _gather_parameter(
        self, module: nn.Module, name: str, index: torch.Tensor | None, axis: int, scale: float
    ) -> None:
        original = module._parameters.get(name)
        if original is None or (index is None and scale == 1.0):
            return
        with torch.no_grad():
            if index is None:
                values = original * scale
            else:
                values = original.index_select(axis, index)
                if scale != 1.0:
                    values.mul_(scale)
        compact = nn.Parameter(values, requires_grad=original.requires_grad)
        self._slices.append(_Slice(module, name, original, compact, index, axis, scale))

    def _skip_layers(self, active: tuple[int, ...]) -> None:
        anatomy = self.anatomy
        kept = nn.ModuleList(anatomy.layers[layer] for layer in active)
        kept.train(anatomy.model.training)
        self._attributes.append((anatomy.parent, anatomy.layers_name, kept))
        # Qwen3 looks up the mask of the i-th executed block in `config.layer_types`.
        layer_types = getattr(anatomy.model.config, "layer_types", None)
        if layer_types is not None:
            kept_types = [layer_types[layer] for layer in active]
            self._attributes.append((anatomy.model.config, "layer_types", kept_types))


@contextmanager
def activate(model: PreTrainedModel | SlicedModel, spec: SubnetworkSpec) -> Iterator[SlicedModel]:
    """Run forward and backward passes on a sub-network of the model.

    The weights are gathered on entry, so that the context spans one optimizer step with all its
    micro-batches. On exit the model is itself again and the gradients lie in its own parameters:
    inactive units of an active layer have zero gradient, skipped layers have none. If the body
    raises, no gradient is written.

    Args:
        model: The model, or a `SlicedModel` of it kept from step to step.
        spec: The active sub-network; the full one leaves the model as it is.

    Yields:
        The `SlicedModel`.

    Raises:
        ValueError: The architecture is not known, or the sub-network is of another model.
    """
    sliced = model if isinstance(model, SlicedModel) else SlicedModel(model)
    sliced.gather(spec)
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
        self._kept: list[tuple[torch.Tensor, int, torch.Tensor, torch.Tensor]] = []
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

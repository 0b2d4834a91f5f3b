"""Where heads, key/value heads, intermediate neurons and layers live in a model."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from subnetworks.families import Branch, Cut, architecture_of, sizes
from subnetworks.spec import Dimensions


@dataclass(frozen=True)
class Weight:
    """One parameter of a projection.

    Args:
        cut: The projection.
        module: The module that holds the parameter.
        name: Its name there.
        axis: The axis along which the projection's units lie; `None`: it belongs to all of them.
        carries_scale: Whether it is a factor of what the units contribute to the residual stream.
        of_adapter: Whether it belongs to a low-rank adapter.
    """

    cut: Cut
    module: nn.Module
    name: str
    axis: int | None
    carries_scale: bool
    of_adapter: bool = False

    @property
    def value(self) -> nn.Parameter:
        """The parameter that stands there now."""
        return cast(nn.Parameter, self.module._parameters[self.name])


def dimensions_of(config: PretrainedConfig) -> Dimensions:
    """The units a model of this config has, read without building it."""
    architecture_of(config)
    found = sizes(config)
    assert found is not None, "a model of a known family has heads and layers"
    return Dimensions(**found)


class Anatomy:
    """A model with its parts found: the list of blocks, and each projection of each block.

    Args:
        model: A Hugging Face causal language model of a known architecture.

    Raises:
        ValueError: The architecture is not known.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.architecture = architecture_of(model.config)
        self.dimensions = dimensions_of(model.config)
        parent, _, self.layers_name = self.architecture.layers.rpartition(".")
        self.parent = model.get_submodule(parent)
        self.layers = tuple(model.get_submodule(self.architecture.layers).children())

    @property
    def device(self) -> torch.device:
        """The blocks'."""
        return next(self.layers[0].parameters()).device

    def branch(self, layer: int, branch: Branch) -> nn.Module:
        """The attention or MLP module of a block."""
        return self.layers[layer].get_submodule(self.architecture.branches[branch])

    def cuts(self, layer: int) -> Iterator[tuple[Cut, nn.Module]]:
        """Every projection of a block with its module; of one that LoRA wraps, the wrapped one."""
        for cut in self.architecture.cuts:
            projection = self.layers[layer].get_submodule(cut.path)
            yield cut, cast(nn.Module, getattr(projection, "base_layer", projection))

    def weights(self, layer: int, branch: Branch) -> Iterator[Weight]:
        """Every parameter of a branch's projections, low-rank adapters included.

        An adapter's first matrix reads what the projection reads, its second writes what the
        projection writes: each is cut on that side.
        """
        for cut, base in self.cuts(layer):
            if cut.branch != branch:
                continue
            consumes = cut.side == "in"
            yield Weight(cut, base, "weight", self.architecture.axis(cut), consumes)
            if base._parameters.get("bias") is not None:
                yield Weight(cut, base, "bias", None if consumes else 0, False)
            projection = self.layers[layer].get_submodule(cut.path)
            for adapter in getattr(projection, "lora_A", {}):
                first = projection.get_submodule(f"lora_A.{adapter}")
                second = projection.get_submodule(f"lora_B.{adapter}")
                yield Weight(cut, first, "weight", 1 if consumes else None, consumes, True)
                yield Weight(cut, second, "weight", None if consumes else 0, False, True)

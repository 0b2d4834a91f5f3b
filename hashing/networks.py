"""Networks that turn a picture, a text or labels into k numbers whose signs are its code."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm

from device import send


def binarise(outputs: Tensor) -> Tensor:
    """Signs of a network's outputs, never 0: an output of 0 counts as positive.

    Args:
        outputs: (n, bits).

    Returns:
        int8 (n, bits) of -1 and 1.
    """
    return torch.where(outputs >= 0, 1, -1).to(torch.int8)


def image_network(shape: Sequence[int], bits: int) -> nn.Module:
    """One linear layer on features; a small convolutional network on RGB pictures.

    Args:
        shape: (features,), or (3, height, width) with both sides at least 8; pictures are uint8.
        bits: Outputs.

    Raises:
        ValueError: The shape is neither.
    """
    if len(shape) == 1:
        return nn.Linear(shape[0], bits)
    if len(shape) != 3 or shape[0] != 3 or min(shape[1:]) < 8:
        raise ValueError(
            f"images of shape {tuple(shape)}: must be (features,), or (3, height, width) with "
            "both sides at least 8"
        )
    layers: list[nn.Module] = [_Scaled()]
    width = 3
    for wider in (24, 48, 96):
        stride = 2 if width == 3 else 1  # at full size the first layer would take most of the time
        layers += [
            nn.Conv2d(width, wider, 5 if width == 3 else 3, stride, "same" if stride == 1 else 2),
            nn.GroupNorm(8, wider),
            nn.ReLU(),
            *([nn.MaxPool2d(2)] if stride == 1 else []),
        ]
        width = wider
    # Mean and maximum over the places: colours and textures, and whether a shape is there at all.
    # Both are above 0 and nearly equal for all pictures. Without moments of their own all outputs
    # would point one way, where cosines have no slope, and the codes would follow them there.
    return nn.Sequential(
        *layers, _MeanAndMaximum(), _Standardised(2 * width), nn.Linear(2 * width, bits)
    )


def wide_network(features: int, bits: int, width: int) -> nn.Module:
    """A wide hidden layer with ReLU, as DLCH has it for texts and for labels.

    Args:
        features: Inputs.
        bits: Outputs.
        width: Hidden units; 8,192 in the authors' code.
    """
    return nn.Sequential(nn.Linear(features, width), nn.ReLU(), nn.Linear(width, bits))


class HashNetworks(nn.Module):
    """The three networks of DLCH (arXiv 2304.13357); the label network trains the first codes only.

    Args:
        image_shape: See `image_network`.
        text_features: Width of a text's features.
        classes: Width of a multi-hot row.
        bits: Length of a code.
        width: Hidden units of the text and of the label network.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        text_features: int,
        classes: int,
        bits: int,
        width: int = 8192,
    ) -> None:
        super().__init__()
        self.image = image_network(image_shape, bits)
        self.text = wide_network(text_features, bits, width)
        self.label = wide_network(classes, bits, width)

    def forward(self, batch: Mapping[str, Tensor], sides: Sequence[str]) -> dict[str, Tensor]:
        """Outputs of some networks, each (B, bits).

        Args:
            batch: `image`, `text` and `labels` of the items, on the networks' device.
            sides: Of `image`, `text` and `label`, those that are asked for.
        """
        inputs = {**batch, "label": batch["labels"].float()}
        return {side: getattr(self, side)(inputs[side]) for side in sides}


@torch.no_grad()
def encode(
    networks: HashNetworks, batches: Iterable[Mapping[str, Tensor]], sides: Sequence[str]
) -> Iterator[tuple[Mapping[str, Tensor], dict[str, Tensor]]]:
    """Yield batches with their outputs: of each item by itself, and without a gradient.

    Args:
        networks: Back in their mode at the end.
        batches: On the CPU; are sent to the networks' device.
        sides: See `HashNetworks.forward`.
    """
    training, device = networks.training, next(networks.parameters()).device
    networks.eval()
    for batch in batches:
        here = {key: send(value, device) for key, value in batch.items()}
        yield here, networks(here, sides)
    networks.train(training)


class _Scaled(nn.Module):
    """uint8 pictures as numbers in [-1, 1]."""

    def forward(self, pictures: Tensor) -> Tensor:
        return pictures.float() / 127.5 - 1


class _MeanAndMaximum(nn.Module):
    def forward(self, maps: Tensor) -> Tensor:
        return torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], 1)


class _Standardised(nn.BatchNorm1d):
    """Features of mean 0 and deviation 1: of the batch in training, of past batches after it."""

    def __init__(self, features: int) -> None:
        super().__init__(features, affine=False)

    def forward(self, features: Tensor) -> Tensor:
        if len(features) == 1:  # one item has no moments
            return batch_norm(features, self.running_mean, self.running_var, eps=self.eps)
        return super().forward(features)

"""How important heads and neurons are (SAT): one function and one row of `SCORES` for each score.

Without importing PyTorch, so that an unknown name is refused before anything heavy is loaded. A
`subnetworks.chooser.UnitChooser` adds a score up over each unit and chooses by it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Score:
    """One way to say how important a unit is.

    Args:
        function: What it takes and returns depends on `reads`.
        reads: `nothing` and `weights`: (weight, axis) -> (rows,), the rows along an axis of each
            weight that has rows or columns of the unit. `input norm` and `input mean`: (weight,
            axis, statistic) -> (rows,) of the weights that read the branch's input, with the L2
            norm or the mean of each input over the step's tokens, (inputs,). `outputs`: (values)
            -> (units,), and `gradients`: (values, gradients) -> (units,), of what the units put out
            on a probe, (tokens, units, width), and the loss's gradient with respect to it. Units
            that read `nothing` are chosen by chance.
        root: Take the square root after adding up over a unit: the parts of a norm are squares.
    """

    function: Callable[..., Tensor]
    reads: Literal["nothing", "weights", "input norm", "input mean", "outputs", "gradients"]
    root: bool = False

    @property
    def reads_input(self) -> bool:
        """Whether it is computed inside the forward pass, from what a branch reads."""
        return self.reads in ("input norm", "input mean")

    @property
    def probes(self) -> bool:
        """Whether it needs a pass of the full model."""
        return self.reads in ("outputs", "gradients")


def uniform(weight: Tensor, axis: int) -> Tensor:
    """One for every row."""
    return weight.new_ones(weight.shape[axis])


def magnitude(weight: Tensor, axis: int) -> Tensor:
    """Squared L2 norm of each row."""
    return weight.norm(dim=1 - axis).square()


def wanda(weight: Tensor, axis: int, input_norm: Tensor) -> Tensor:
    """Sum over inputs k of |w_jk| times the norm of input k (Wanda, arXiv 2306.11695)."""
    magnitudes = weight.abs()
    return (magnitudes if axis == 0 else magnitudes.T).mv(input_norm)


def maxip(weight: Tensor, axis: int, input_mean: Tensor) -> Tensor:
    """|w_j . mean input|: the size of the inner product with the mean over the tokens."""
    return (weight if axis == 0 else weight.T).mv(input_mean).abs()


def activation(values: Tensor) -> Tensor:
    """Squared L2 norm over the tokens of what each unit puts out."""
    return values.norm(dim=0).square().sum(-1)


def taylor(values: Tensor, gradients: Tensor) -> Tensor:
    """Sum over tokens of |activation x gradient|, first order in leaving a unit out at a token."""
    return (values * gradients).sum(-1).abs().sum(0)


SCORES: dict[str, Score] = {
    "uniform": Score(uniform, "nothing"),
    "magnitude": Score(magnitude, "weights", root=True),
    "wanda": Score(wanda, "input norm"),
    "maxip": Score(maxip, "input mean"),
    "activation": Score(activation, "outputs", root=True),
    "taylor": Score(taylor, "gradients"),
}
SCORING = tuple(name for name, score in SCORES.items() if score.reads != "nothing")
PROBING = tuple(name for name, score in SCORES.items() if score.probes)

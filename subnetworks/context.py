"""Tokens that predict nothing run in the forward pass only.

In fine-tuning the loss is on answers. What a prompt's tokens do for it is in the keys and values
that the answers read; this part of the gradient is left out, and with it two thirds of the cost of
the prompt's tokens.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from subnetworks.anatomy import Anatomy

IGNORED = -100  # a label that no loss is taken of


def predicted(labels: Tensor) -> Tensor:
    """The label that each token predicts: that of the token after it, (batch, tokens)."""
    return F.pad(labels, (0, 1), value=IGNORED)[..., 1:]


def predicting(labels: Tensor) -> Tensor:
    """Which tokens have a label to predict, (batch, tokens)."""
    return predicted(labels) != IGNORED


class ContextForwardOnly:
    """While attached, a model's gradients come from the tokens that predict something.

    Every module of a block that treats each token by itself (the MLP, the projections of the
    attention) runs on those tokens and, without a gradient, on the others. Values are the whole
    model's. The labels are read when the model's forward pass begins; a host waits once for a GPU
    there, to know their number.

    Args:
        anatomy: Of the model.
    """

    def __init__(self, anatomy: Anatomy) -> None:
        self._anatomy = anatomy
        self._replaced: list[tuple[nn.Module, Any]] = []
        self._trained = self._context = torch.empty(0, dtype=torch.long)

    def attach(self) -> None:
        """From now on."""
        anatomy = self._anatomy
        self._replace(anatomy.model, self._with_labels)
        for layer, block in enumerate(anatomy.layers):
            self._replace(anatomy.branch(layer, "mlp"), self._by_token)
            for cut in anatomy.architecture.cuts:
                if cut.branch == "attention":
                    self._replace(block.get_submodule(cut.path), self._by_token)

    def detach(self) -> None:
        """Give the modules their own forward passes back; harmless if not attached."""
        for module, own in self._replaced:
            if own is None:
                del module.forward
            else:
                module.forward = own
        self._replaced = []

    def _replace(self, module: nn.Module, by: Callable[..., Any]) -> None:
        self._replaced.append((module, vars(module).get("forward")))
        module.forward = partial(by, module.forward)

    def _with_labels(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        labels = kwargs.get("labels")
        assert labels is not None, "a training step has labels"
        context = ~predicting(labels).flatten()
        n_context = int(context.sum())
        order = context.to(torch.uint8).argsort(stable=True)
        self._trained, self._context = order.split([len(order) - n_context, n_context])
        return forward(*args, **kwargs)

    def _by_token(self, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return forward(x)
        rows = x.flatten(0, -2)
        # First with gradients: autocast keeps its copy of a weight for the second.
        trained = forward(rows.index_select(0, self._trained))
        with torch.no_grad():
            context = forward(rows.index_select(0, self._context))
        output = trained.new_empty(len(rows), trained.shape[-1])
        output.index_copy_(0, self._context, context).index_copy_(0, self._trained, trained)
        return output.view(*x.shape[:-1], -1)

"""What DLCH (arXiv 2304.13357) minimises: cosines, then inner products, that say similarity.

Shapes: B items of a batch, N items of a buffer or of a code table, K bits. Everything is a mean
over its elements, so that a weight means the same at any batch size, code length and amount of
data.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import mse_loss, normalize, relu


@dataclass(frozen=True)
class Weights:
    """Weights of the losses: gamma, eta and mu of the first session's, alpha and beta of the other.

    Args:
        gamma: Of the label network's agreement with the texts.
        eta: Of a network's agreement with itself.
        mu: Of the distance between outputs and codes.
        alpha: Of the distance between outputs and codes in an increment.
        beta: Of the balance of the bits.
    """

    gamma: float = 10.0
    eta: float = 10.0
    mu: float = 1.0
    alpha: float = 0.01
    beta: float = 0.1


def similarity_loss(outputs_BK: Tensor, buffer_NK: Tensor, similarity_BN: Tensor) -> Tensor:
    """MS(U, V): mean of (relu(cos(u, v)) - S)^2.

    Args:
        outputs_BK: A batch's outputs.
        buffer_NK: The latest outputs of all items of the session, without a gradient.
        similarity_BN: Their label similarity, in [0, 1].
    """
    cosine_BN = normalize(outputs_BK) @ normalize(buffer_NK).T
    return mse_loss(relu(cosine_BN), similarity_BN)


def quantisation_loss(outputs_BK: Tensor, codes_BK: Tensor) -> Tensor:
    """Mean squared distance of outputs to their codes of -1 and 1."""
    return mse_loss(outputs_BK, codes_BK.to(outputs_BK.dtype))


def balance_loss(outputs_BK: Tensor) -> Tensor:
    """Mean over the bits of the squared mean output: |U' 1|^2 / (B^2 K), 0 if each bit is even."""
    return outputs_BK.mean(0).square().mean()


def first_session_loss(
    outputs: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    similarity_BN: Tensor,
    codes: Mapping[str, Tensor],
    weights: Weights,
) -> Tensor:
    """Sum of the label, the image and the text network's losses on the original data.

    Buffers carry no gradient, so each network learns from its own loss alone.

    Args:
        outputs: `image`, `text` and `label`, each (B, K).
        buffers: Likewise, each (N, K).
        similarity_BN: Label similarity of the batch and the buffers' items.
        codes: The batch's codes, `image` and `text`, each (B, K).
        weights: See `Weights`.
    """

    def match(one: str, other: str) -> Tensor:
        return similarity_loss(outputs[one], buffers[other], similarity_BN)

    to_codes = [quantisation_loss(outputs["label"], codes[m]) for m in ("image", "text")]
    label = weights.eta * match("label", "label") + match("label", "image")
    label = label + weights.gamma * match("label", "text") + weights.mu * sum(to_codes) / 2
    loss = label
    for modality in ("image", "text"):
        loss = loss + weights.eta * match(modality, modality) + match(modality, "label")
        loss = loss + weights.mu * quantisation_loss(outputs[modality], codes[modality])
    return loss


def increment_loss(
    outputs: Mapping[str, Tensor],
    known: Mapping[str, Tensor],
    similarity_BN: Tensor,
    codes: Mapping[str, Tensor],
    weights: Weights,
) -> Tensor:
    """Sum of the modalities' objectives of an increment, on a batch of the sample.

    mean (S - u b' / K)^2 + alpha mean (u - b)^2 + beta mean_K (mean_B u)^2, with u = tanh of the
    network: the terms of the paper, each over the number of its elements.

    Args:
        outputs: tanh of the networks' outputs, by modality, each (B, K).
        known: Codes of all items, old ones (fixed) and new ones, each (N, K).
        similarity_BN: Label similarity of the batch and all items.
        codes: The batch's codes, each (B, K).
        weights: See `Weights`.
    """
    loss = similarity_BN.new_zeros(())
    for modality, outputs_BK in outputs.items():
        products_BN = outputs_BK @ known[modality].to(outputs_BK.dtype).T
        term = mse_loss(products_BN / outputs_BK.shape[1], similarity_BN)
        term = term + weights.alpha * quantisation_loss(outputs_BK, codes[modality])
        loss = loss + (term + weights.beta * balance_loss(outputs_BK))
    return loss

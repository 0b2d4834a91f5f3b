"""Codes as unknowns: set by outputs at first, then bit by bit for the items of an increment."""

from collections.abc import Mapping

import torch
from torch import Tensor

from hashing.networks import binarise


def first_codes(buffers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Codes of the original items: sign(2 F + H) for the images, sign(2 G + H) for the texts.

    Args:
        buffers: Outputs of all items, `image` (F), `text` (G) and `label` (H), each (N, K).

    Returns:
        int8 codes of `image` and `text`, each (N, K).
    """
    return {m: binarise(2 * buffers[m] + buffers["label"]) for m in ("image", "text")}


def output_codes(outputs: Mapping[str, Tensor], shared: bool = True) -> dict[str, Tensor]:
    """Codes of new items by their networks alone: signs of the outputs, or of both networks' sum.

    Args:
        outputs: tanh of the outputs, `image` and `text`, each (N, K).
        shared: One code for both modalities of an item; else one for each.

    Returns:
        int8 codes of `image` and `text`, each (N, K).
    """
    total = outputs["image"] + outputs["text"]
    return {m: binarise(total if shared else outputs[m]) for m in ("image", "text")}


@torch.no_grad()
def update_new_codes(
    codes: Mapping[str, Tensor],
    outputs: Mapping[str, Tensor],
    similarity_MN: Tensor,
    both_2S: Tensor,
    all_items: int,
    alpha: float,
    shared: bool = True,
) -> dict[str, Tensor]:
    """Discrete coordinate descent on the codes of the new items; the objective never rises.

    The outputs are held. Bit c of all new items at once:
    b_c = sign(q_c - B'(U'^T u_c + V'^T v_c)), q = K S_n^T (U + V) + alpha N_all K (Ubar + Vbar);
    a dash leaves bit c out, Ubar has a new item's outputs in its row and 0 where it was not
    sampled. N_all K turns the means of `increment_loss` into one scale. With codes of their own,
    each modality has its own terms only. A bit whose argument is 0 stays as it is; one that has no
    sign yet becomes 1, which costs the same.

    Args:
        codes: int8 codes of the new items before, `image` and `text`, each (N, K), 0 where an item
            has none yet; with `shared` these must be equal.
        outputs: tanh of the outputs of the M sampled items, `image` (U) and `text` (V), each (M,
            K).
        similarity_MN: Label similarity of the sampled and the new items.
        both_2S: int64: of the S items that are sampled and new, none twice, the places among the
            sampled, and those among the new.
        all_items: N_all, how many items the objective's similarities are over, old ones included.
        alpha: Weight of the distance to the codes, as in `hashing.losses.Weights`.
        shared: One code for both modalities of an item; else one for each.

    Returns:
        The codes after, of -1 and 1, in new tensors.
    """
    count, bits = codes["image"].shape
    in_sample_S, in_new_S = both_2S
    pull = alpha * all_items * bits
    result: dict[str, Tensor] = {}
    for modalities in (("image", "text"),) if shared else (("image",), ("text",)):
        linear_NK = similarity_MN.new_zeros(count, bits)
        gram_KK = similarity_MN.new_zeros(bits, bits)
        for m in modalities:
            linear_NK += bits * similarity_MN.T @ outputs[m]
            linear_NK.index_add_(0, in_new_S, pull * outputs[m][in_sample_S])
            gram_KK += outputs[m].T @ outputs[m]
        gram_KK.fill_diagonal_(0)
        found_NK = codes[modalities[0]].to(linear_NK.dtype)
        for bit in range(bits):
            argument_N = linear_NK[:, bit] - found_NK @ gram_KK[:, bit]
            kept_N = torch.where(found_NK[:, bit] == 0, 1, found_NK[:, bit])
            found_NK[:, bit] = torch.where(argument_N == 0, kept_N, argument_N.sign())
        result |= dict.fromkeys(modalities, found_NK.to(torch.int8))
    return result

"""Writing sequences token by token: beam search and sampling, all sources of a batch at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor, nn

from device import send

# Takes the last tokens, (N,), and for each the row of the call before that it goes on from, (N,);
# returns log-probabilities of the next token, (N, V).
Advance: TypeAlias = Callable[[Tensor, Tensor], Tensor]


@contextmanager
def evaluating(*networks: nn.Module) -> Iterator[None]:
    """Take networks into evaluation mode; afterwards each is in the mode that it was in."""
    before = [network.training for network in networks]
    for network in networks:
        network.eval()
    try:
        yield
    finally:
        for network, was_training in zip(networks, before, strict=True):
            network.train(was_training)


def beam_search(
    advance: Advance,
    batch: int,
    beam: int,
    *,
    begin: int,
    end: int,
    max_tokens: int,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Find the most likely sequences, all sources at once.

    Hypotheses are ranked by log-probability / tokens, the end counted as a token.
    A finished one stays in the beam while its rank holds; with a beam that never drops anything the
    result is exact.

    Args:
        advance: The model; keeps its own state.
        batch: B.
        beam: K, at least 1.
        begin: The token before the first one.
        end: The token after the last one.
        max_tokens: Tokens at most; what has no end by then is taken as it is.
        device: Of the model.

    Returns:
        Tokens without the beginning, padded with `end`, (B, K, T), and scores, (B, K), best first.
    """
    tokens = torch.full((batch * beam, 1), begin, dtype=torch.long, device=device)
    first = torch.arange(batch, device=device)[:, None] * beam
    rows = torch.arange(batch * beam, device=device)
    totals = torch.full((batch, beam), -torch.inf, device=device)
    totals[:, 0] = 0.0  # all are the same at first
    lengths = torch.zeros_like(totals)
    done = torch.zeros_like(totals, dtype=torch.bool)
    for _ in range(max_tokens):
        log_probs = advance(tokens[:, -1], rows).float().view(batch, beam, -1)
        log_probs = log_probs.masked_fill(done[..., None], -torch.inf)
        log_probs[..., end] = log_probs[..., end].masked_fill(done, 0.0)
        grown = totals[..., None] + log_probs
        lengths = lengths + ~done
        ranked = grown / lengths[..., None]
        best = ranked.flatten(1).topk(beam).indices
        origin, token = best // ranked.shape[-1], best % ranked.shape[-1]
        totals = grown.flatten(1).gather(1, best)
        lengths, done = lengths.gather(1, origin), done.gather(1, origin) | (token == end)
        rows = (first + origin).flatten()
        tokens = torch.cat((tokens[rows], token.reshape(-1, 1)), dim=1)
        if bool(done.all()):
            break
    scores, order = (totals / lengths.clamp_min(1)).sort(-1, descending=True)
    found = tokens[:, 1:].view(batch, beam, -1)
    return found.gather(1, order[..., None].expand_as(found)), scores


def draw_samples(
    advance: Advance,
    rows: int,
    *,
    begin: int,
    end: int,
    max_tokens: int,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Draw sequences from a model, token by token.

    Args:
        advance: The model; keeps its own state.
        rows: N.
        begin: The token before the first one.
        end: The token after the last one.
        max_tokens: Tokens at most.
        generator: Source of the draws, on the CPU; None: torch's own.
        device: Of the model.

    Returns:
        Tokens without the beginning, padded with `end`, (N, T), on the CPU, and log-probabilities
        under the model itself, (N,).
    """
    here = torch.device(device)
    token, order = torch.full((rows,), begin, device=here), torch.arange(rows, device=here)
    totals = torch.zeros(rows, device=here)
    drawn: list[Tensor] = []
    ended = torch.zeros(rows, dtype=torch.bool)
    for _ in range(max_tokens):
        log_probs = advance(token, order).float()
        chances = log_probs.softmax(-1).cpu()  # the one thing here that a GPU is waited for
        new = torch.multinomial(chances, 1, generator=generator)[:, 0].masked_fill(ended, end)
        token, done = send(torch.stack((new, ended)), here)
        gained = log_probs.gather(1, token[:, None])[:, 0]
        totals = totals + gained.masked_fill(done.bool(), 0.0)
        drawn.append(new)
        ended = ended | (new == end)
        if ended.all():
            break
    return torch.stack(drawn, 1), totals

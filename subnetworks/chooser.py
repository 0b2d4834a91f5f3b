"""Choosing the most important heads and neurons of a step (SAT).

A `UnitChooser` adds up the scores of `subnetworks.importance` over each unit, and turns them into
the units of a step for `SlicedModel.gather`.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from time import perf_counter
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedModel

from device import send
from subnetworks.anatomy import Anatomy
from subnetworks.context import predicting
from subnetworks.families import BRANCHES, UNITS, Branch, Unit
from subnetworks.importance import SCORES
from subnetworks.ladder import Selection
from subnetworks.schedule import GroupedQueries
from subnetworks.slicing import Place, Units
from subnetworks.spec import TIERS, BranchChoice, Tier


def select(
    scores: Tensor,
    counts: Sequence[int],
    selection: Selection,
    generator: torch.Generator,
) -> list[Tensor]:
    """Choose units by their scores along the last axis: the best ones, the next best ones, ...

    Args:
        scores: Not negative, (..., units).
        counts: How many to choose of each.
        selection: `top_k` takes the highest; `sample` draws the best without replacement with
            probabilities in proportion to the scores (Gumbel top-k, arXiv 1903.06059); the next
            best are the highest that are left.
        generator: Source of the draw, on the CPU, so that it is the same on every rank.

    Returns:
        Ascending indices of each, (..., count).
    """
    ranking = scores
    if selection == "sample":
        tiny = torch.finfo(torch.float32).tiny
        uniform = torch.rand(scores.shape, generator=generator).clamp_min(tiny)
        gumbel = -(-uniform.log()).log()
        ranking = scores.float().clamp_min(tiny).log() + send(gumbel, scores.device)
    chosen: list[Tensor] = []
    for count in counts:
        if chosen:
            ranking = scores = scores.scatter(-1, chosen[-1], -torch.inf)
        chosen.append(ranking.topk(count, dim=-1, sorted=False).indices.sort(dim=-1).values)
    return chosen


def _rows(values: Tensor, mask: Tensor | None) -> Tensor:
    """Values of each token, (tokens, width), and zeros of padding."""
    rows = values.detach().flatten(0, -2)
    return rows if mask is None else rows * mask.flatten()[:, None].to(rows.dtype)


class UnitChooser:
    """Chooses the heads and neurons of each step by importance (SAT, arXiv 2406.01392).

    Scores are added up over a unit. A score of weights is of all of the unit's (q, k, v and o of a
    head or group; gate, up and down of a neuron), one of the input of those that read it (q, k, v;
    gate, up), and the others look at what the unit puts out.

    Args:
        anatomy: Of the model.
        importance: A name in `subnetworks.importance.SCORES`.
        selection: `top_k` or `sample`, see `select`.
        grouped_queries: `groups` chooses whole key/value groups with their query heads;
            `within_groups` as many query heads of every group.
        refresh_every: Steps from one computation of the scores to the next, at least 1.
        seed: Seed of the draws, below 2**32; the same on every rank.

    Raises:
        ValueError: The importance is not known.
    """

    def __init__(
        self,
        anatomy: Anatomy,
        importance: str,
        selection: Selection = "top_k",
        *,
        grouped_queries: GroupedQueries = "groups",
        refresh_every: int = 1,
        seed: int = 0,
    ) -> None:
        if importance not in SCORES:
            raise ValueError(f"importance={importance!r}: must be one of {', '.join(SCORES)}")
        self.anatomy, self.importance = anatomy, SCORES[importance]
        self.selection: Selection = "top_k" if self.importance.reads == "nothing" else selection
        per_group = anatomy.dimensions.queries_per_group
        self._whole_groups = grouped_queries == "groups" or per_group == 1
        self.refresh_every, self.seed = refresh_every, seed
        self.scores: dict[Place, Tensor] = {}
        """Scores in force: of a layer's groups, (groups,), or query heads, (groups, queries); of
        its neurons, (neurons,)."""
        self.seconds = 0.0
        """Time spent on scores, selection and probes; on a GPU, of the host only."""
        self._due = True
        self._mask: Tensor | None = None
        self._generator = torch.Generator()

    def begin_step(self, step: int, mask: Tensor | None = None) -> None:
        """Before a step's gathering: seed its draws, and let go of scores that are too old.

        Args:
            step: Its number.
            mask: 0 where its first micro-batch is padded, (batch, tokens); `None`: nowhere.
        """
        self._due, self._mask = step % self.refresh_every == 0, mask
        self._generator.manual_seed((self.seed << 32) + step)

    @property
    def needs_scores(self) -> bool:
        """Whether scores are computed in this step."""
        return self.importance.reads != "nothing" and (self._due or not self.scores)

    @property
    def needs_probe(self) -> bool:
        """Whether `probe` is due in this step."""
        return self.importance.probes and self.needs_scores

    def needs_input(self, layer: int, branch: Branch) -> bool:
        """Whether this branch's score is due and depends on what the branch reads."""
        return self.importance.reads_input and (self._due or (layer, branch) not in self.scores)

    @torch.no_grad()
    def choose(
        self, layer: int, branch: Branch, counts: BranchChoice, branch_input: Tensor | None = None
    ) -> dict[Tier, Units]:
        """Choose a branch's units: the most important ones are active, the next ones untrained.

        Args:
            layer: The layer.
            branch: `attention` or `mlp`.
            counts: How many of each tier; not all of them may be active.
            branch_input: What the branch reads, (batch, tokens, hidden), if its score is due and
                needs it.

        Returns:
            By tier, ascending indices of the kinds that are not whole.
        """
        started = perf_counter()
        key, draws = (layer, branch), self._generator
        if not self.importance.probes and (self._due or key not in self.scores):
            # Not in autocast: it would copy each whole weight into the lower precision first.
            with torch.autocast(self.anatomy.device.type, enabled=False):
                self.scores[key] = self._score(layer, branch, branch_input)
        d, units_of_index, scores = self.anatomy.dimensions, 1, self.scores[key]
        if branch == "attention":
            units_of_index = d.queries_per_group if self._whole_groups else d.n_kv_heads
        sizes = {tier: len(units) for tier in TIERS if (units := counts.units(tier))}
        if self.importance.reads == "nothing":  # all tiers by chance
            scores = send(torch.rand(scores.shape, generator=draws), scores.device)
        places = [size // units_of_index for size in sizes.values()]
        chosen = select(scores, places, self.selection, draws)
        found = {tier: self._to_units(i, branch) for tier, i in zip(sizes, chosen, strict=True)}
        self.seconds += perf_counter() - started
        return found

    def _to_units(self, indices: Tensor, branch: Branch) -> Units:
        """Neurons, groups, (groups,), or query heads of every group, (groups, queries)."""
        if branch == "mlp":
            return {"neurons": indices}
        d = self.anatomy.dimensions
        if self._whole_groups:
            queries = torch.arange(d.queries_per_group, device=indices.device)
            heads = (indices[:, None] * d.queries_per_group + queries).flatten()
            return {"heads": heads, "kv_heads": indices}
        starts = torch.arange(d.n_kv_heads, device=indices.device) * d.queries_per_group
        return {"heads": (starts[:, None] + indices).flatten()}

    def _score(self, layer: int, branch: Branch, branch_input: Tensor | None) -> Tensor:
        statistic = None
        if branch_input is not None:
            rows = _rows(branch_input, self._mask)
            if self.importance.reads == "input norm":
                dtype = torch.promote_types(rows.dtype, torch.float32)
                squares = torch.linalg.vector_norm(rows, dim=0, dtype=dtype).square()
                statistic = self._over_ranks(squares).sqrt()
            else:  # up to the number of ranks the mean, and the same on each
                statistic = self._over_ranks(rows.mean(0, dtype=torch.float32))
        pooled: dict[Unit, Tensor] = {}
        for weight in self.anatomy.weights(layer, branch):
            cut, value = weight.cut, weight.value.detach()
            if weight.axis is None or value.ndim < 2 or weight.of_adapter:
                continue
            if not self.importance.reads_input:
                rows = self.importance.function(value, weight.axis)
            elif cut.side == "in":
                continue
            else:
                assert statistic is not None, "this branch's input was asked for"
                rows = self.importance.function(value, weight.axis, statistic.to(value.dtype))
            width = self.anatomy.dimensions.total(cut.unit), -1
            units = rows.view(cut.fused, *width).sum((0, 2))
            pooled[cut.unit] = pooled[cut.unit] + units if cut.unit in pooled else units
        scores = self._of_branch(branch, pooled)
        return scores.sqrt() if self.importance.root else scores

    def _of_branch(self, branch: Branch, pooled: Mapping[Unit, Tensor]) -> Tensor:
        """Of scores by unit, those of what is chosen."""
        if branch == "mlp":
            return pooled["neurons"]
        by_group = pooled["heads"].view(self.anatomy.dimensions.n_kv_heads, -1)
        if not self._whole_groups:
            return by_group
        groups = by_group.sum(1)
        return groups + pooled["kv_heads"] if "kv_heads" in pooled else groups

    def probe(self, model: PreTrainedModel, batch: Mapping[str, Any], counts: bool = True) -> None:
        """Score every unit of the full model by what it puts out on a batch (`needs_probe`).

        Args:
            model: The model, without a sub-network attached. No gradient is left in it.
            batch: Arguments of its forward pass, with `labels` for a score of gradients.
            counts: Whether the batch is part of the probe. A rank that has no part in it runs one
                all the same: FSDP puts weights together on all ranks at once.
        """
        started = perf_counter()
        outputs: dict[Place, Tensor] = {}
        with_gradients = self.importance.reads == "gradients"

        def keep(key: Place, projection: Any, args: tuple[Tensor, ...]) -> None:
            if with_gradients and not args[0].requires_grad:
                args[0].requires_grad_()
            outputs[key] = args[0]

        was_training = model.training
        model.eval()  # no dropout, whose draws would move the training's random state
        with ExitStack() as stack:
            stack.callback(model.train, was_training)
            # What is compiled does not see hooks that come later.
            stack.enter_context(cast(Any, torch.compiler.set_stance("force_eager")))
            for layer, block in enumerate(self.anatomy.layers):
                for cut in self.anatomy.architecture.cuts:
                    if cut.side == "in":
                        projection = block.get_submodule(cut.path)
                        key = layer, cut.branch
                        hook = projection.register_forward_pre_hook(partial(keep, key))
                        stack.callback(hook.remove)
            with torch.set_grad_enabled(with_gradients):
                loss = model(**batch, use_cache=False).loss
        read: list[tuple[Tensor, ...]] = [(output,) for output in outputs.values()]
        share: Tensor | float = counts
        if with_gradients:
            gradients = torch.autograd.grad(loss, list(outputs.values()))
            read = [*zip(outputs.values(), gradients, strict=True)]
            # Of the mean over all ranks' labels: each rank's own is over its own count.
            count = counts * predicting(batch["labels"]).sum().float()
            share = count / self._over_ranks(count.clone()).clamp_min(1.0)
        with torch.no_grad():
            for (layer, branch), values in zip(outputs, read, strict=True):
                unit = UNITS[branch]
                width = (self.anatomy.dimensions.total(unit), -1)
                by_unit = (
                    _rows(x, batch.get("attention_mask")).unflatten(-1, width) for x in values
                )
                units = self.importance.function(*by_unit) * share
                scores = self._over_ranks(self._of_branch(branch, {unit: units.float()}))
                self.scores[layer, branch] = scores.sqrt() if self.importance.root else scores
        self.seconds += perf_counter() - started

    @staticmethod
    def _over_ranks(values: Tensor) -> Tensor:
        """Sum over the data-parallel ranks, which would not choose the same units otherwise."""
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(values)
        return values

    def state_dict(self) -> dict[str, Any]:
        """Scores that later steps still use, and the time spent."""
        used = self.scores.items() if self.refresh_every > 1 else ()
        kept = {f"{layer}.{branch}": scores for (layer, branch), scores in used}
        return {"seconds": self.seconds, **kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with saved scores."""
        self.seconds = state.get("seconds", 0.0)  # older files have none
        for layer in range(self.anatomy.dimensions.n_layers):
            for branch in BRANCHES:
                if (scores := state.get(f"{layer}.{branch}")) is not None:
                    self.scores[layer, branch] = scores.to(self.anatomy.device)

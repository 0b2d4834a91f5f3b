"""Scores equal a computation by hand, and the model runs on exactly the units they choose."""

import copy
from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from subnetworks.anatomy import Anatomy, dimensions_of
from subnetworks.chooser import UnitChooser, select
from subnetworks.families import Branch
from subnetworks.flops import FlopCount, planned_flops
from subnetworks.importance import SCORES
from subnetworks.schedule import GroupedQueries, Rates
from subnetworks.slicing import SlicedModel, activate
from subnetworks.spec import TIERS, planned_subnetwork
from tests.subnetworks.models import (
    CONFIGS,
    CONTEXT,
    FAMILIES,
    VOCAB,
    SmallModel,
    batch,
    build,
    subnetwork_of,
)
from tests.subnetworks.test_slicing import assert_same_gradients, cross_entropy

HALF = Rates(heads=0.5, neurons=0.5)


def step(
    name: str, importance: str, grouped: GroupedQueries = "groups", **options: Any
) -> tuple[Any, SlicedModel, UnitChooser, Any]:
    """A forward and backward pass on the chosen half of a model."""
    model, ids = build(name), batch()
    sliced = SlicedModel(model)
    chooser = UnitChooser(sliced.anatomy, importance, grouped_queries=grouped, **options)
    spec = planned_subnetwork(dimensions_of(model.config), HALF, grouped_queries=grouped)
    chooser.begin_step(0)
    if chooser.needs_probe:
        chooser.probe(model, {"input_ids": ids, "labels": ids})
        assert all(p.grad is None for p in model.parameters())
    with activate(sliced, spec, chooser):
        output = model(input_ids=ids, labels=ids, use_cache=False)
        output.loss.backward()
    return model, sliced, chooser, output


@pytest.mark.parametrize("importance", SCORES)
@pytest.mark.parametrize("grouped", ["groups", "within_groups"])
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_runs_on_the_small_model_of_the_chosen_units(
    name: str, grouped: GroupedQueries, importance: str
) -> None:
    """Logits, gradients and FLOPs are those of the chosen units built as a model of their own."""
    model, sliced, _, output = step(name, importance, grouped)
    ids, spec = batch(), subnetwork_of(sliced)
    assert spec.signature == sliced.spec.signature
    small = SmallModel(model, spec)
    expected = small(ids)
    cross_entropy(expected, ids).backward()
    torch.testing.assert_close(output.logits, expected, atol=1e-5, rtol=1e-5)
    assert_same_gradients(model, small.gradients(model))
    chooser = UnitChooser(sliced.anatomy, importance, grouped_queries=grouped)
    chooser.begin_step(1)
    if chooser.needs_probe:
        chooser.probe(model, {"input_ids": ids, "labels": ids})
    with activate(sliced, sliced.spec, chooser), FlopCount(model.config) as count:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    assert count.flops == planned_flops(model.config, spec, *ids.shape)


def masked_to(units: Sequence[int], total: int) -> Any:
    """A hook that lets only some units reach the projection that reads them."""
    mask = torch.zeros(total)
    mask[list(units)] = 1
    return lambda _, args: (args[0] * mask.repeat_interleave(args[0].shape[-1] // total),)


def untrained_cases() -> list[Any]:
    """Fast: by hand one importance for each share and grouping, of other families one case."""
    shares = [(0.0, 0.5), (0.0, 1.0), (0.5, 0.5), (1.0, 0.0)]
    importances = ("uniform", "wanda", "taylor")
    by_hand = product(sorted(CONFIGS), shares, ["groups", "within_groups"])
    chosen = (("groups", "wanda"), ("within_groups", "taylor"))
    cases = [
        (place % 3 == number, (*case, importance))
        for place, case in enumerate(by_hand)
        for number, importance in enumerate(importances)
    ]
    cases += [
        (place % 2 == number, (name, (0.5, 0.5), *one))
        for place, name in enumerate(sorted(FAMILIES.keys() - CONFIGS))
        for number, one in enumerate(chosen)
    ]
    return [pytest.param(*c, marks=[] if fast else pytest.mark.slow) for fast, c in cases]


@pytest.mark.parametrize(("name", "shares", "grouped", "importance"), untrained_cases())
def test_untrained_units_contribute_and_are_not_trained(
    name: str,
    shares: tuple[float, float],
    grouped: GroupedQueries,
    importance: str,
) -> None:
    """Oracle: to each branch of the chosen units, constant copies of it on the others are added."""
    model, ids = build(name), batch()
    oracle, dimensions = copy.deepcopy(model), dimensions_of(model.config)
    sliced = SlicedModel(model)
    chooser = UnitChooser(sliced.anatomy, importance, grouped_queries=grouped)
    rates = Rates(heads=0.25, neurons=0.25) if grouped == "groups" else HALF
    spec = planned_subnetwork(
        dimensions, rates, grouped_queries=grouped, frozen=shares[0], forward_only=shares[1]
    )
    chooser.begin_step(0)
    if chooser.needs_probe:
        chooser.probe(model, {"input_ids": ids, "labels": ids})
    with activate(sliced, spec, chooser), FlopCount(model.config) as count:
        output = model(input_ids=ids, labels=ids)  # with a cache, which must be written once only
        output.loss.backward()
    chosen, anatomy = subnetwork_of(sliced), Anatomy(oracle)
    assert chosen.signature == spec.signature
    untrained = TIERS[1:]
    for tier, share in zip(untrained, shares, strict=True):
        assert bool(chosen.count("neurons", tier)) == bool(share)
    assert planned_flops(model.config, spec, *ids.shape) == count.flops

    for layer in range(dimensions.n_layers):
        choice = chosen.choice(layer)
        for cut, projection in anatomy.cuts(layer):
            if cut.side == "out":
                continue
            branch, total = anatomy.branch(layer, cut.branch), dimensions.total(cut.unit)
            constants = []
            for tier in untrained:
                constant = copy.deepcopy(branch).requires_grad_(False)
                for part, norm in branch.named_children():  # of all heads: frozen ones train it too
                    if part.endswith("norm"):
                        setattr(constant, part, norm)
                read = constant.get_submodule(cut.path.rpartition(".")[2])
                if read.bias is not None:
                    read.bias.zero_()
                units = choice.branch(cut.branch).units(tier)
                read.register_forward_pre_hook(masked_to(units, total))
                constants.append((tier, constant))

            def add(_: Any, args: Any, kwargs: Any, out: Any, constants: Any = constants) -> Any:
                for tier, constant in constants:
                    with torch.set_grad_enabled(tier == "frozen"):
                        more = constant(*args, **kwargs)
                    out = (out[0] + more[0], *out[1:]) if isinstance(out, tuple) else out + more
                return out

            branch.register_forward_hook(add, with_kwargs=True)
            active = choice.branch(cut.branch).active
            projection.register_forward_pre_hook(
                masked_to(range(total) if active is None else active, total)
            )
    expected = oracle(input_ids=ids, labels=ids, use_cache=False)
    expected.loss.backward()
    torch.testing.assert_close(output.logits, expected.logits, atol=1e-5, rtol=1e-5)
    assert_same_gradients(model, {n: p.grad for n, p in oracle.named_parameters()})
    if sum(shares) == 1.0:
        full = build(name)(input_ids=ids, use_cache=False).logits
        torch.testing.assert_close(output.logits, full, atol=1e-5, rtol=1e-5)


# --- brute force: one unit, one row, one token at a time, on Llama with biases -------------------


def inputs_of_branches(model: Any, sliced: SlicedModel) -> dict[tuple[int, Branch], Tensor]:
    """What each branch reads in the chosen model: of masked weights, in plain code."""
    masked = copy.deepcopy(model)
    anatomy, spec = Anatomy(masked), subnetwork_of(sliced)
    seen: dict[tuple[int, Branch], Tensor] = {}
    branches: tuple[Branch, ...] = ("attention", "mlp")
    with torch.no_grad():
        for layer in range(4):
            choice = spec.choice(layer)
            block = masked.model.layers[layer]
            head_dim = masked.config.head_dim
            for head in set(range(8)) - set(choice.attention.active or range(8)):
                block.self_attn.o_proj.weight[:, head * head_dim : (head + 1) * head_dim] = 0
            for neuron in set(range(40)) - set(choice.mlp.active or range(40)):
                block.mlp.down_proj.weight[:, neuron] = 0
            for branch in branches:

                def keep(_: Any, args: Any, kwargs: Any, key: Any = (layer, branch)) -> None:
                    seen[key] = args[0] if args else kwargs["hidden_states"]

                anatomy.branch(layer, branch).register_forward_pre_hook(keep, with_kwargs=True)
    masked(input_ids=batch(), use_cache=False)
    return {key: value.detach().flatten(0, 1) for key, value in seen.items()}


def row_score(importance: str, row: Tensor, x: Tensor) -> float:
    if importance == "wanda":
        return sum(abs(w.item()) * x[:, k].norm().item() for k, w in enumerate(row))
    return abs(sum(w.item() * x[:, k].mean().item() for k, w in enumerate(row)))


@pytest.mark.parametrize("importance", ["wanda", "maxip", "magnitude"])
def test_scores_of_weights_equal_brute_force(importance: str) -> None:
    model, sliced, chooser, _ = step("llama", importance)
    x = inputs_of_branches(model, sliced)
    width = model.config.head_dim
    for layer in (0, 3):
        block = model.model.layers[layer]
        attention, mlp = block.self_attn, block.mlp
        for group in range(4):
            rows = [
                attention.q_proj.weight[r]
                for r in range(2 * group * width, 2 * (group + 1) * width)
            ]
            for projection in (attention.k_proj, attention.v_proj):
                rows += [projection.weight[r] for r in range(group * width, (group + 1) * width)]
            if importance == "magnitude":
                columns = slice(2 * group * width, 2 * (group + 1) * width)
                rows += list(attention.o_proj.weight[:, columns].T)
                expected = sum((row**2).sum().item() for row in rows) ** 0.5
            else:
                expected = sum(row_score(importance, row, x[layer, "attention"]) for row in rows)
            actual = chooser.scores[layer, "attention"][group].item()
            assert actual == pytest.approx(expected, rel=1e-3)
        for neuron in (0, 7, 39):
            rows = [mlp.gate_proj.weight[neuron], mlp.up_proj.weight[neuron]]
            if importance == "magnitude":
                rows.append(mlp.down_proj.weight[:, neuron])
                expected = sum((row**2).sum().item() for row in rows) ** 0.5
            else:
                expected = sum(row_score(importance, row, x[layer, "mlp"]) for row in rows)
            assert chooser.scores[layer, "mlp"][neuron].item() == pytest.approx(expected, rel=1e-3)


def test_blocks_that_were_compiled_before_are_probed() -> None:
    """What was compiled without hooks does not see those that come later."""
    model, ids = build("llama"), batch()
    expected, found = copy.deepcopy(model), model
    for block in Anatomy(found).layers:
        block.compile(backend="eager")
    with torch.no_grad():
        found.eval()(input_ids=ids, labels=ids, use_cache=False)
    scores = []
    for each in (expected, found):
        chooser = UnitChooser(Anatomy(each), "activation")
        chooser.begin_step(0)
        chooser.probe(each, {"input_ids": ids, "labels": ids})
        scores.append(chooser.scores)
    torch.testing.assert_close(scores[1], scores[0])
    assert scores[0]


def test_probed_scores_equal_brute_force() -> None:
    """Activation norms and |activation x gradient| of the full model, unit by unit."""
    model = build("llama")
    ids = batch()
    outputs: dict[tuple[int, str], Tensor] = {}
    for layer, block in enumerate(model.model.layers):
        for branch, projection in (
            ("attention", block.self_attn.o_proj),
            ("mlp", block.mlp.down_proj),
        ):

            def keep(_: Any, args: Any, key: Any = (layer, branch)) -> None:
                args[0].retain_grad()
                outputs[key] = args[0]

            projection.register_forward_pre_hook(keep)
    logits = model(input_ids=ids, use_cache=False).logits
    F.cross_entropy(logits[:, :-1].reshape(-1, VOCAB), ids[:, 1:].reshape(-1)).backward()
    kept = dict(outputs)
    for importance in ("activation", "taylor"):
        model, _, chooser, _ = step("llama", importance)
        for (layer, branch), value in kept.items():
            gradient = value.grad
            per_unit = value.shape[-1] // (4 if branch == "attention" else 40)
            for unit in (0, 3):
                part = slice(unit * per_unit, (unit + 1) * per_unit)
                if importance == "activation":
                    expected = value[..., part].pow(2).sum().sqrt().item()
                else:
                    width = 4 if branch == "attention" else 1  # a group has two heads of four
                    product = (value * gradient)[..., part].unflatten(-1, (-1, width)).sum(-1)
                    expected = product.abs().sum().item()
                actual = chooser.scores[layer, branch][unit].item()
                assert actual == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("importance", [n for n, s in SCORES.items() if s.reads_input or s.probes])
def test_padding_has_no_say(importance: str) -> None:
    """Whatever token it is made of, and however long it is."""
    found = []
    for length, filler in ((CONTEXT, 3), (CONTEXT, 7), (9, 0)):
        model = build("llama")
        ids = batch()[:, :length].index_fill(1, torch.arange(9, length), filler)
        mask = (torch.arange(length) < 9).long().expand_as(ids)
        inputs = {"input_ids": ids, "attention_mask": mask}
        inputs["labels"] = ids.masked_fill(mask == 0, -100)
        chooser = UnitChooser(Anatomy(model), importance)
        chooser.begin_step(0, mask)
        if chooser.needs_probe:
            chooser.probe(model, inputs)
        half = planned_subnetwork(dimensions_of(model.config), HALF)
        with activate(model, half, chooser) as sliced:
            model(**inputs, use_cache=False)
            scores = {place: each / each.sum() for place, each in chooser.scores.items()}
            found.append((subnetwork_of(sliced), scores))
    for units, scores in found[1:]:
        assert units == found[0][0]
        torch.testing.assert_close(scores, found[0][1])


def test_choice_holds_for_the_step_and_in_a_recomputation() -> None:
    """A second micro-batch and gradient checkpointing run on the units of the first."""
    model, ids = build("llama"), batch()
    sliced = SlicedModel(model)
    chooser = UnitChooser(sliced.anatomy, "maxip", "sample")
    spec = planned_subnetwork(dimensions_of(model.config), HALF)

    def gradients(checkpointed: bool) -> dict[str, Tensor]:
        model.zero_grad()
        model.activation_checkpointing_enable() if checkpointed else None
        chooser.begin_step(0)
        sliced.gather(spec, chooser)
        for seed in (1, 2):
            sliced.attach()
            model(input_ids=batch(seed=seed), labels=ids, use_cache=False).loss.backward()
            sliced.detach()
            chosen.append(subnetwork_of(sliced))
        sliced.write_gradients()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    chosen: list[Any] = []
    plain, recomputed = gradients(False), gradients(True)
    assert len(set(chosen)) == 1
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, msg=lambda m, n=name: n + m)


def test_selection() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.tensor([1.0, 4.0, 0.0, 3.0])
    assert select(scores, [2], "top_k", generator)[0].tolist() == [1, 3]
    best, next_best = select(scores, [1, 2], "top_k", generator)
    assert (best.tolist(), next_best.tolist()) == ([1], [0, 3])
    counts = torch.zeros(4)
    for _ in range(4000):
        counts[select(scores, [1], "sample", generator)[0]] += 1
    torch.testing.assert_close(counts / 4000, scores / 8, atol=0.03, rtol=0.0)


def test_scores_are_kept_between_refreshes() -> None:
    _, sliced, chooser, _ = step("llama", "maxip", refresh_every=5)
    before = {key: scores.clone() for key, scores in chooser.scores.items()}
    chooser.begin_step(4)
    assert not chooser.needs_input(0, "mlp")
    fresh = UnitChooser(sliced.anatomy, "maxip", refresh_every=5)
    fresh.load_state_dict(chooser.state_dict())
    for key, scores in before.items():
        assert torch.equal(fresh.scores[key], scores)
    chooser.begin_step(5)
    assert chooser.needs_input(0, "mlp")


def test_unknown_importance_is_refused() -> None:
    anatomy = Anatomy(build("llama"))
    with pytest.raises(ValueError, match=r"importance='wonder': must be one of uniform, magnitude"):
        UnitChooser(anatomy, "wonder")

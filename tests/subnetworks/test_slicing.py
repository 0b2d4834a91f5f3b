"""The sub-network that runs is the small model with the sliced weights: outputs, gradients."""

import copy
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from subnetworks.anatomy import Anatomy, dimensions_of
from subnetworks.families import ARCHITECTURES, fits
from subnetworks.flops import FlopCount, planned_flops
from subnetworks.schedule import Rates
from subnetworks.slicing import FreezeUnsampled, SlicedModel, activate
from subnetworks.spec import BranchChoice, LayerChoice, SubnetworkSpec, sample_subnetwork
from tests.subnetworks.models import (
    CONFIGS,
    FAMILIES,
    VOCAB,
    SmallModel,
    batch,
    build,
    masked,
)

BY_HAND = sorted(CONFIGS)
VARIANTS: dict[str, dict[str, Any]] = {
    "all three": {"rates": Rates(layers=0.5, heads=0.5, neurons=0.5)},
    "heads and neurons": {"rates": Rates(heads=0.5, neurons=0.3)},
    "within groups": {"rates": Rates(heads=0.5), "grouped_queries": "within_groups"},
    "within groups, unscaled": {
        "rates": Rates(heads=0.5),
        "grouped_queries": "within_groups",
        "rescale_units": False,
    },
    "neurons": {"rates": Rates(neurons=0.25), "rescale_units": False},
    "layers": {"rates": Rates(layers=0.5), "layer_rescale": "inverse", "exempt_layers": (0,)},
    "neurons and layers": {"rates": Rates(0.5, 0.5, 0.5), "rescale_units": False},
    "shared": {"rates": Rates(0.75, 0.25, 0.5), "shared_indices": True, "layer_rescale": "inverse"},
}


def draw(name: str, variant: str, seed: int = 3) -> SubnetworkSpec:
    generator = torch.Generator().manual_seed(seed)
    return sample_subnetwork(
        dimensions_of(FAMILIES[name]), generator=generator, **VARIANTS[variant]
    )


def cross_entropy(logits: Tensor, ids: Tensor) -> Tensor:
    return F.cross_entropy(logits[:, :-1].reshape(-1, VOCAB), ids[:, 1:].reshape(-1))


def assert_same_gradients(model: torch.nn.Module, expected: dict[str, Tensor | None]) -> None:
    for name, parameter in model.named_parameters():
        if expected[name] is None:
            assert parameter.grad is None, name
        else:
            torch.testing.assert_close(
                parameter.grad, expected[name], atol=1e-5, rtol=1e-5, msg=lambda m, n=name: n + m
            )


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", BY_HAND)
def test_equals_the_small_model_built_alone(name: str, variant: str) -> None:
    model, ids, spec = build(name), batch(), draw(name, variant)
    small = SmallModel(model, spec)
    with FlopCounterMode(display=False) as expected_flops:
        expected = small(ids)
        cross_entropy(expected, ids).backward()

    with activate(model, spec), FlopCount(model.config) as count:
        output = model(input_ids=ids, labels=ids, use_cache=False)
        output.loss.backward()

    torch.testing.assert_close(output.logits, expected, atol=1e-5, rtol=1e-5)
    assert_same_gradients(model, small.gradients(model))
    assert count.flops.total == expected_flops.get_total_flops()
    assert planned_flops(model.config, spec, *ids.shape) == count.flops


def test_blocks_whose_first_step_is_counted_are_compiled_in_the_next() -> None:
    """What is compiled and first called in a dispatch mode stays eager for good."""
    model, ids, frames = build("gpt2"), batch(), []

    def backend(graph: Any, inputs: Any) -> Any:
        frames.append(graph)
        return graph.forward

    for block in model.transformer.h:
        block.compile(backend=backend)
    with FlopCount(model.config) as count:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    full = SubnetworkSpec.full(dimensions_of(model.config))
    assert planned_flops(model.config, full, *ids.shape) == count.flops
    assert not frames
    with torch.no_grad():
        model(input_ids=ids, labels=ids, use_cache=False)
    assert frames


NORMED = [name for name, c in FAMILIES.items() if ARCHITECTURES[c.model_type].normed_output]


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        *product([n for n in FAMILIES if n not in NORMED], ["all three", "within groups"]),
        *product(NORMED, ["neurons and layers", "within groups, unscaled"]),
    ],
)
def test_equals_a_masked_full_model(name: str, variant: str) -> None:
    model, ids, spec = build(name), batch(), draw(name, variant)
    reference = masked(model, spec)
    expected = reference(input_ids=ids, labels=ids, use_cache=False)
    expected.loss.backward()
    with activate(model, spec), FlopCount(model.config) as count:
        output = model(input_ids=ids, labels=ids, use_cache=False)
        output.loss.backward()
    torch.testing.assert_close(output.logits, expected.logits, atol=1e-5, rtol=1e-5)
    assert planned_flops(model.config, spec, *ids.shape) == count.flops
    gradients: dict[str, Tensor | None] = {n: p.grad for n, p in reference.named_parameters()}
    for parameter in gradients:
        if any(f".{i}." in parameter for i, choice in enumerate(spec.layers) if choice is None):
            gradients[parameter] = None
    assert_same_gradients(model, gradients)


@pytest.mark.parametrize("name", BY_HAND)
def test_full_subnetwork_is_bit_equal_to_the_plain_model(name: str) -> None:
    model, ids = build(name), batch()
    plain = copy.deepcopy(model)
    expected = plain(input_ids=ids, labels=ids, use_cache=False)
    expected.loss.backward()
    with activate(model, SubnetworkSpec.full(dimensions_of(model.config))):
        output = model(input_ids=ids, labels=ids, use_cache=False)
        output.loss.backward()
    assert torch.equal(output.logits, expected.logits)
    for left, right in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(left.grad, right.grad)


@pytest.mark.parametrize("name", BY_HAND)
def test_model_is_itself_again_after_an_error(name: str) -> None:
    model, ids, spec = build(name), batch(), draw(name, "all three")
    identities = [id(p) for p in model.parameters()]
    before = model(input_ids=ids).logits
    layer_types = getattr(model.config, "layer_types", None)
    with pytest.raises(RuntimeError, match="the user's"), activate(model, spec):
        raise RuntimeError("the user's")
    assert [id(p) for p in model.parameters()] == identities
    assert torch.equal(model(input_ids=ids).logits, before)
    assert all(p.grad is None for p in model.parameters())
    assert getattr(model.config, "layer_types", None) == layer_types


def test_micro_batches_accumulate_like_one_batch() -> None:
    model, ids, spec = build("llama"), batch(4), draw("llama", "all three")
    accumulated = copy.deepcopy(model)
    with activate(model, spec):
        model(input_ids=ids, labels=ids).loss.backward()
    sliced = SlicedModel(accumulated)
    sliced.gather(spec)
    for part in ids.chunk(2):
        sliced.attach()
        (accumulated(input_ids=part, labels=part).loss / 2).backward()
        sliced.detach()
    sliced.write_gradients()
    assert_same_gradients(accumulated, {n: p.grad for n, p in model.named_parameters()})


@pytest.mark.parametrize("name", ["gpt2", "qwen3"])
def test_gradient_checkpointing_recomputes_the_same_subnetwork(name: str) -> None:
    model, ids, spec = build(name), batch(), draw(name, "all three")
    checkpointed = copy.deepcopy(model)
    checkpointed.activation_checkpointing_enable()
    for each in (model, checkpointed):
        with activate(each, spec):
            each(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    assert_same_gradients(checkpointed, {n: p.grad for n, p in model.named_parameters()})


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_bf16_autocast_equals_the_small_model_under_autocast(name: str) -> None:
    model, ids, spec = build(name), batch(), draw(name, "heads and neurons")
    small = SmallModel(model, spec)
    with torch.autocast("cpu", torch.bfloat16):
        cross_entropy(small(ids).float(), ids).backward()
        with activate(model, spec):
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    for parameter_name, expected in small.gradients(model).items():
        actual = model.get_parameter(parameter_name).grad
        # bf16 keeps 8 bits, and the two programs round in different places.
        assert (actual - expected).norm() < 0.05 * expected.norm(), parameter_name


def test_existing_gradients_are_added_to() -> None:
    model, ids, spec = build("gpt2"), batch(), draw("gpt2", "all three")
    with activate(model, spec):
        model(input_ids=ids, labels=ids).loss.backward()
    once = {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    with activate(model, spec):
        model(input_ids=ids, labels=ids).loss.backward()
    assert_same_gradients(model, {n: None if g is None else 2 * g for n, g in once.items()})


@pytest.mark.parametrize("freeze", [False, True])
def test_inactive_rows_under_adamw(freeze: bool) -> None:
    """By default decay and momentum move inactive rows of active layers; frozen, nothing does."""
    model, ids = build("llama"), batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    before = copy.deepcopy(dict(model.named_parameters()))
    moments = {n: optimizer.state[p]["exp_avg"].clone() for n, p in model.named_parameters()}
    spec = draw("llama", "all three")
    sliced = SlicedModel(model)
    frozen = FreezeUnsampled(sliced, optimizer)
    sliced.gather(spec)
    sliced.attach()
    model(input_ids=ids, labels=ids).loss.backward()
    sliced.detach()
    if freeze:
        frozen.save()
    sliced.write_gradients()
    optimizer.step()

    active, skipped = spec.active_layers[0], next(i for i in range(4) if spec.layers[i] is None)
    rows = list(spec.choice(active).mlp.active)
    others = [i for i in range(spec.dimensions.intermediate_size) if i not in rows]
    name = f"model.layers.{active}.mlp.gate_proj.weight"
    after = dict(model.named_parameters())
    assert not torch.equal(after[name][rows], before[name][rows])
    assert torch.equal(after[name][others], before[name][others]) == freeze
    moment = optimizer.state[after[name]]["exp_avg"]
    assert torch.equal(moment[others], moments[name][others]) == freeze
    untouched = f"model.layers.{skipped}.mlp.gate_proj.weight"
    assert torch.equal(after[untouched], before[untouched])
    assert torch.equal(optimizer.state[after[untouched]]["exp_avg"], moments[untouched])


def test_a_step_that_is_skipped_holds_no_row_of_the_next_one() -> None:
    """As a loss scaler skips it: what was put aside may be active by then."""
    model, ids = build("llama"), batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    sliced = SlicedModel(model)
    frozen = FreezeUnsampled(sliced, optimizer)
    first, second = draw("llama", "all three", 3), draw("llama", "all three", 4)
    with activate(sliced, first):
        frozen.save()
    before = copy.deepcopy(model.state_dict())
    sliced.gather(second)
    sliced.attach()
    model(input_ids=ids, labels=ids).loss.backward()
    sliced.detach()
    frozen.save()
    sliced.write_gradients()
    optimizer.step()
    for layer in second.active_layers:
        name = f"model.layers.{layer}.mlp.gate_proj.weight"
        moved = (model.state_dict()[name] != before[name]).any(1).nonzero().flatten()
        assert tuple(moved.tolist()) == second.choice(layer).mlp.active


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # dynamo's own look
def test_compiled_blocks_run_the_subnetwork_without_recompiling_for_a_new_draw() -> None:
    torch._dynamo.reset()
    model, ids = build("llama"), batch()
    compiled = copy.deepcopy(model)
    for layer in Anatomy(compiled).layers:
        layer.compile(backend="aot_eager")
    compiles = []
    for seed in (3, 4, 5):
        spec = draw("llama", "all three", seed)
        for each in (model, compiled):
            each.zero_grad()
            with activate(each, spec):
                each(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        assert_same_gradients(compiled, {n: p.grad for n, p in model.named_parameters()})
        compiles.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert compiles[0] == compiles[-1] > 0


def test_units_are_sent_once_for_equal_subnetworks_and_again_to_another_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, sent = build("llama"), []

    def send(values: torch.Tensor, device: torch.device) -> torch.Tensor:
        sent.append(device.type)
        return values.to(device)

    monkeypatch.setattr("subnetworks.slicing.send", send)
    sliced = SlicedModel(model)
    for seed in (3, 3, 4):
        sliced.gather(draw("llama", "all three", seed))
    sliced.gather(SubnetworkSpec.full(dimensions_of(model.config)))
    model.to("meta")
    for _ in range(2):
        sliced.gather(draw("llama", "all three", 4))
        assert {indices.device.type for indices in sliced.units.values()} == {"meta"}
    assert sent == ["cpu"] * 3 + ["meta"]


def test_every_family_has_an_oracle() -> None:
    assert {config.model_type for config in FAMILIES.values()} == set(ARCHITECTURES)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "mamba"}, "model_type='mamba' are not known; known are arcee, cohere"),
        ({"model_type": "gemma4_text"}, "model_type='gemma4_text' are not known"),
        ({"model_type": "phi3"}, "model_type='phi3' are not known"),
        ({"model_type": "mixtral"}, "model_type='mixtral' are not known"),
        ({"model_type": "gpt2", "add_cross_attention": True}, "cross-attention"),
        ({"model_type": "cohere", "use_qk_norm": True}, "use_qk_norm=true.*is by head"),
        ({"model_type": "llama", "is_heterogeneous": True}, "layers differ in their sizes"),
    ],
)
def test_what_is_not_right_is_refused_by_name(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fits({}, SimpleNamespace(**config))


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_which_families_undo_a_scale(name: str) -> None:
    """Doubling what the branches put out changes nothing behind a norm, else the logits."""
    model, ids = build(name).eval(), batch()
    for norm in model.modules():
        for epsilon in {"eps", "variance_epsilon"} & vars(norm).keys():
            setattr(norm, epsilon, 1e-12)  # beside small outputs it would count
    before = model(input_ids=ids).logits
    anatomy = Anatomy(model)
    for layer in range(anatomy.dimensions.n_layers):
        for cut, projection in anatomy.cuts(layer):
            for parameter in projection.parameters() if cut.side == "in" else ():
                parameter.mul_(2)
    changed = (model(input_ids=ids).logits - before).abs().max() > 1e-3
    assert bool(changed) != ARCHITECTURES[model.config.model_type].normed_output


@pytest.mark.parametrize("name", NORMED)
@pytest.mark.parametrize("setting", [{"rescale_units": True}, {"layer_rescale": "inverse"}])
def test_a_scale_that_a_norm_undoes_is_refused(name: str, setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"a {FAMILIES[name].model_type} norms what a branch"):
        fits(setting, FAMILIES[name])
    fits({"rescale_units": False, "layer_rescale": "none"}, FAMILIES[name])
    spec = draw(name, "all three" if "rescale_units" in setting else "layers")
    with pytest.raises(ValueError, match="undoes the sub-network's scales"):
        SlicedModel(build(name)).gather(spec)


def test_a_spec_of_another_model_is_refused() -> None:
    with (
        pytest.raises(ValueError, match="the model has"),
        activate(build("gpt2"), SubnetworkSpec.full(dimensions_of(CONFIGS["llama"]))),
    ):
        pass


@pytest.mark.parametrize(
    ("heads", "words"),
    [
        (BranchChoice((0, 1, 2)), "same number of query heads"),
        (BranchChoice((0, 1), frozen=(2,), forward=(4, 5, 6)), "forward heads needs the same"),
        (BranchChoice((2, 0)), "active heads must be ascending"),
        (BranchChoice((0, 8)), r"within 0\.\.7"),
        (BranchChoice((0, 1), forward=(1, 2)), "one tier only"),
        (BranchChoice(frozen=(0,)), "need active ones"),
        (BranchChoice(()), "need active ones"),
    ],
)
def test_a_choice_that_does_not_fit_the_model_is_refused(heads: BranchChoice, words: str) -> None:
    dimensions = dimensions_of(CONFIGS["llama"])
    with pytest.raises(ValueError, match=words):
        SubnetworkSpec(dimensions, (LayerChoice(heads),) * dimensions.n_layers)

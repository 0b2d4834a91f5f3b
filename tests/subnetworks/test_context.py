"""Tokens that predict nothing contribute to the loss, and no gradient comes from them."""

from itertools import product
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from subnetworks.anatomy import Anatomy, dimensions_of
from subnetworks.chooser import UnitChooser
from subnetworks.context import predicting
from subnetworks.flops import FlopCount, planned_flops
from subnetworks.schedule import Rates
from subnetworks.slicing import SlicedModel, activate
from subnetworks.spec import planned_subnetwork
from tests.subnetworks.models import CONFIGS, FAMILIES, batch, build
from tests.subnetworks.test_slicing import assert_same_gradients

HALF = Rates(heads=0.5, neurons=0.5)
VARIANTS: dict[str, dict[str, Any]] = {
    "all units": {"rates": Rates()},
    "half of the units": {"rates": HALF},
    "others frozen or forward only": {"rates": HALF, "frozen": 0.5, "forward_only": 0.5},
}


def answers(ids: Tensor) -> Tensor:
    """Labels of a prompt, an answer, a second prompt and answer, and padding, of other lengths."""
    labels = ids.clone()
    for row, (first, second, third, end) in enumerate(((5, 9, 13, 18), (2, 4, 11, 24))):
        labels[row, :first] = labels[row, second:third] = labels[row, end:] = -100
    return labels


def without_gradients_of(model: Any, context: Tensor) -> None:
    """Oracle: where a projection has run, its output's gradient is zeroed at these tokens."""

    def zero(_: Any, args: Any, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda g: g.masked_fill(context[..., None], 0.0))

    anatomy = Anatomy(model)
    for layer in anatomy.layers:
        for cut in anatomy.architecture.cuts:
            layer.get_submodule(cut.path).register_forward_hook(zero)


def step(model: Any, variant: str, context_forward_only: bool, checkpointing: bool = False) -> Any:
    ids = batch(2)
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    if checkpointing:
        base.activation_checkpointing_enable()
    sliced = SlicedModel(base)
    chooser = UnitChooser(sliced.anatomy, "wanda")
    spec = planned_subnetwork(
        dimensions_of(base.config), context_forward_only=context_forward_only, **VARIANTS[variant]
    )
    chooser.begin_step(0)
    with activate(sliced, spec, chooser), FlopCount(base.config) as count:
        output = model(input_ids=ids, labels=answers(ids), use_cache=False)
        output.loss.backward()
    return output, spec, count.flops


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        *product(sorted(CONFIGS), VARIANTS),
        *product(sorted(FAMILIES.keys() - CONFIGS), ["others frozen or forward only"]),
    ],
)
def test_values_are_the_models_and_gradients_of_the_context_are_left_out(
    name: str, variant: str
) -> None:
    ids = batch(2)
    trained = predicting(answers(ids))
    assert trained.tolist() == [
        [4 <= t < 8 or 12 <= t < 17 for t in range(24)],
        [1 <= t < 3 or 10 <= t < 23 for t in range(24)],
    ]
    model, oracle = build(name), build(name)
    without_gradients_of(oracle, ~trained)
    expected, _, whole = step(oracle, variant, False)
    output, spec, flops = step(model, variant, True)
    torch.testing.assert_close(output.logits, expected.logits, atol=1e-5, rtol=1e-5)
    assert_same_gradients(model, {n: p.grad for n, p in oracle.named_parameters()})
    assert flops == planned_flops(model.config, spec, *ids.shape, trained_tokens=int(trained.sum()))
    assert flops.blocks < 0.85 * whole.blocks
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_the_model_is_itself_again(name: str) -> None:
    model, dense = build(name), build(name)
    step(model, "others frozen or forward only", True)
    model.zero_grad()
    for each in (model, dense):
        step(each, "all units", False)
    assert_same_gradients(model, {n: p.grad for n, p in dense.named_parameters()})


def test_the_gradient_of_the_answers_keys_differs_from_dense_training() -> None:
    """Something is left out: what the answers would teach the prompts' keys and values."""
    dense, model = build("llama"), build("llama")
    step(dense, "all units", False)
    step(model, "all units", True)
    key = "model.layers.0.self_attn.v_proj.weight"
    left, right = dense.get_parameter(key).grad, model.get_parameter(key).grad
    assert left is not None
    assert right is not None
    assert (left - right).norm() > 0.1 * left.norm()


@pytest.mark.parametrize("variant", VARIANTS)
def test_recomputed_under_gradient_checkpointing(variant: str) -> None:
    plain, model = build("llama"), build("llama")
    step(plain, variant, True)
    step(model, variant, True, checkpointing=True)
    assert_same_gradients(model, {n: p.grad for n, p in plain.named_parameters()})


@pytest.mark.parametrize("name", ["llama", "gemma2", "phi", "qwen2", "starcoder2"])
def test_low_rank_adapters_are_trained_on_the_answers(name: str) -> None:
    def adapted() -> Any:
        torch.manual_seed(1)
        config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(build(name), config)
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(parameter)
        return model

    model, oracle = adapted(), adapted()
    without_gradients_of(oracle.get_base_model(), ~predicting(answers(batch(2))))
    expected, _, _ = step(oracle, "half of the units", False)
    output, _, _ = step(model, "half of the units", True)
    torch.testing.assert_close(output.loss, expected.loss, atol=1e-5, rtol=1e-5)
    assert_same_gradients(model, {n: p.grad for n, p in oracle.named_parameters()})
    assert any(p.grad is not None for p in model.parameters())


def test_in_bf16_the_weights_learn_from_both_runs() -> None:
    """Autocast's copy of a weight, made once, is one that passes gradients on."""
    model = build("llama")
    with torch.autocast("cpu", torch.bfloat16):
        step(model, "all units", True)
    assert all(parameter.grad is not None for parameter in model.parameters())

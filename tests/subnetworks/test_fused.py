"""Fused loss and norms equal Hugging Face's: values, gradients, ignored labels, every precision."""

import copy
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from lightning_modules.causal_lm import CausalLM
from subnetworks import fused as fused_loss
from subnetworks.anatomy import dimensions_of
from subnetworks.chooser import UnitChooser
from subnetworks.fused import PLAIN_NORMS, fuse, linear_cross_entropy, loss_from_hidden
from subnetworks.schedule import Rates
from subnetworks.slicing import SlicedModel, activate
from subnetworks.spec import planned_subnetwork
from tests.subnetworks.models import CONFIGS, FAMILIES, VOCAB, batch, build


def reference(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight).float(), labels)


@given(
    rows=st.integers(1, 40),
    vocabulary=st.sampled_from([2, 53, 20_000]),
    width=st.sampled_from([1, 8]),
    ignored=st.integers(0, 39),
    factor=st.sampled_from([1.0, -0.3, 1 / 3]),
    seed=st.integers(0, 99),
)
@example(rows=1, vocabulary=20_000, width=1, ignored=0, factor=1.0, seed=49)
@settings(max_examples=40, deadline=None)
def test_loss_and_gradients_equal_those_of_the_whole_logits(
    rows: int, vocabulary: int, width: int, ignored: int, factor: float, seed: int
) -> None:
    """20,000 words make blocks of 26 rows: more than one block, the last one smaller.

    Against float64: BLAS adds products of 20,000 words one after the other where there are few
    rows, which puts the gradient of `hidden` off by up to 9e-5, PyTorch's own as well (measured).
    """
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, width, generator=generator, requires_grad=True)
    weight = nn.Parameter(torch.randn(vocabulary, width, generator=generator))
    labels = torch.randint(vocabulary, (rows,), generator=generator)
    labels[: min(ignored, rows - 1)] = -100
    actual = linear_cross_entropy(hidden, weight, labels)
    exact = F.cross_entropy(hidden.double() @ weight.double().T, labels)
    results = [
        (loss, *torch.autograd.grad(factor * loss, (hidden, weight))) for loss in (actual, exact)
    ]
    rounding = torch.finfo(torch.float32).eps * vocabulary**0.5
    for bound, found, expected in zip((0.0, 8 * rounding, 0.0), *results, strict=True):
        torch.testing.assert_close(found.double(), expected.double(), atol=1e-5 + bound, rtol=1e-5)


def test_nothing_to_predict_is_a_loss_of_zero_with_gradients_of_zero() -> None:
    """PyTorch's mean over nothing is NaN."""
    hidden, weight = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    loss = linear_cross_entropy(hidden, weight, torch.full((3,), -100))
    assert loss == 0
    for gradient in torch.autograd.grad(loss, (hidden, weight)):
        assert not gradient.any()


def test_the_compiled_loss_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two blocks, the second one smaller, in which some rows predict nothing."""
    traced: list[str] = []

    def backend(graph: Any, inputs: Any) -> Any:
        traced.append(graph.code)
        return graph.forward

    compiled = torch.compile(fused_loss._to_gradient, backend=backend)
    monkeypatch.setattr(fused_loss, "_compiled", lambda: compiled)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(40, 8, generator=generator, requires_grad=True)
    weight = torch.randn(20_000, 8, generator=generator, requires_grad=True)
    labels = torch.randint(20_000, (40,), generator=generator)
    labels[20:30] = -100
    losses = [linear_cross_entropy(hidden, weight, labels, compiled) for compiled in (False, True)]
    plain, same = ((loss, *torch.autograd.grad(loss, (hidden, weight))) for loss in losses)
    assert traced
    assert "scatter" not in "".join(traced), "it would write fp32 logits to memory"
    torch.testing.assert_close(same, plain)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # of the compiler's own look
@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("importance", ["wanda", "maxip"])
def test_what_compiled_branches_read_is_chosen_from(
    importance: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of a falling omission, with units that run untrained: equal to those not compiled."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    ids = batch()
    found = []
    for compiled in (False, "branches"):
        torch.manual_seed(0)
        architecture = CONFIGS[name].to_diff_dict()
        module = CausalLM(architecture=architecture, compile=compiled)
        module.configure_model()
        sliced = SlicedModel(module.backbone)
        chooser = UnitChooser(sliced.anatomy, importance)
        for step, share in enumerate((0.5, 0.75)):
            rates = Rates(heads=share, neurons=share)
            spec = planned_subnetwork(dimensions_of(module.hf_config), rates, frozen=0.5)
            chooser.begin_step(step)
            with activate(sliced, spec, chooser):
                module({"input_ids": ids, "labels": ids}).backward()
        found.append([parameter.grad for parameter in module.parameters()])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"]
    torch.testing.assert_close(found[1], found[0])


def compiled_branches(monkeypatch: pytest.MonkeyPatch) -> CausalLM:
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch.manual_seed(0)
    module = CausalLM(architecture=CONFIGS["llama"].to_diff_dict(), compile="branches")
    module.configure_model()
    return module


@pytest.mark.parametrize("name", FAMILIES)
def test_both_branches_of_every_block_are_compiled(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Any] = []

    def compile_(function: Any, **_: Any) -> Any:
        compiled.append(function)
        return function

    monkeypatch.setattr(torch, "compile", compile_)
    architecture = FAMILIES[name].to_diff_dict()
    module = CausalLM(architecture, attn_implementation="eager", compile="branches")
    module.configure_model()
    assert len(compiled) == 2 * 4


def test_a_copy_of_compiled_branches_runs_on_its_own_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module, ids = compiled_branches(monkeypatch), batch()
    copied = copy.deepcopy(module)
    with torch.no_grad():
        before = module({"input_ids": ids})
        for layer in copied.backbone.model.layers:
            layer.mlp.down_proj.weight.mul_(9.0)
        assert copied({"input_ids": ids}) != before
        assert module({"input_ids": ids}) == before


def test_every_size_of_a_long_ladder_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """More sizes than torch's own limit."""
    module, ids = compiled_branches(monkeypatch), batch()
    sliced, graphs = SlicedModel(module.backbone), []
    for neurons in range(1, 12):
        rates = Rates(neurons=neurons / 40)
        spec = planned_subnetwork(dimensions_of(module.hf_config), rates)
        with torch.no_grad(), activate(sliced, spec):
            module({"input_ids": ids})
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert len({*graphs}) == len(graphs)


def fused(model: nn.Module) -> Any:
    model = copy.deepcopy(model)
    fuse(model)
    return model


def loss_and_gradients(model: Any, ids: Tensor, labels: Tensor, fuse_loss: bool) -> list[Tensor]:
    model.zero_grad()
    if fuse_loss:
        with loss_from_hidden(model):
            loss = model(input_ids=ids, labels=labels, use_cache=False).loss
    else:
        loss = model(input_ids=ids, labels=labels, use_cache=False).loss
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters())]


@pytest.mark.parametrize(
    ("name", "tied", "precision"),
    [
        *product(CONFIGS, (False, True), ("fp32", "bf16", "bf16 weights")),
        *((name, True, "fp32") for name in sorted(FAMILIES.keys() - CONFIGS)),
        *((name, False, "bf16") for name in sorted(FAMILIES.keys() - CONFIGS)),
    ],
)
def test_a_fused_model_is_hugging_faces(name: str, tied: bool, precision: str) -> None:
    model = build(name, tied=tied)
    if precision == "bf16 weights":  # trainer.precision=bf16-true
        model.bfloat16()
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied
    ids = batch()
    labels = ids.masked_fill(torch.rand(ids.shape) < 0.3, -100)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        expected = loss_and_gradients(model, ids, labels, False)
        actual = loss_and_gradients(fused(model), ids, labels, True)
    for left, right in zip(expected, actual, strict=True):
        if precision == "fp32":
            torch.testing.assert_close(right, left, atol=1e-6, rtol=1e-5)
        else:  # 8 bits, rounded in different places
            most = 0.1 if precision == "bf16 weights" else 0.05
            assert (right - left).norm() <= most * left.norm() + 1e-6


def test_a_fused_model_in_double_precision_is_hugging_faces() -> None:
    model = build("llama").double()
    ids = batch()
    expected = loss_and_gradients(model, ids, ids, False)
    for left, right in zip(expected, loss_and_gradients(fused(model), ids, ids, True), strict=True):
        torch.testing.assert_close(right, left, atol=1e-6, rtol=1e-5, check_dtype=False)


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_norms_are_found_and_keep_their_parameters(name: str) -> None:
    model = build(name)
    identities = [id(p) for p in model.parameters()]
    norms = [m for m in model.modules() if type(m).__name__ in PLAIN_NORMS]
    fuse(model)
    assert norms
    assert all("forward" in vars(norm) for norm in norms)
    assert [id(p) for p in model.parameters()] == identities


def test_the_head_is_a_head_again_after_the_loss_and_after_an_error() -> None:
    model, ids = build("llama"), batch()
    logits = model(input_ids=ids).logits
    with loss_from_hidden(model):
        model(input_ids=ids, labels=ids)
    with pytest.raises(RuntimeError, match="the user's"), loss_from_hidden(model):
        raise RuntimeError("the user's")
    assert torch.equal(model(input_ids=ids).logits, logits)
    assert model(input_ids=ids, labels=ids).loss.requires_grad


def test_a_head_that_is_not_plain_keeps_its_own_loss() -> None:
    """Gemma 2 caps its logits: the loss of plain ones would be another."""
    config = AutoConfig.for_model(
        "gemma2",
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        final_logit_softcapping=0.5,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    model, ids = AutoModelForCausalLM.from_config(config).eval(), batch()
    expected = model(input_ids=ids, labels=ids).loss
    with loss_from_hidden(model):
        output = model(input_ids=ids, labels=ids)
    assert torch.equal(output.loss, expected)
    assert output.logits.shape[-1] == VOCAB


@pytest.mark.parametrize("lora", [None, {"rank": 2}, {"rank": 2, "targets": ["lm_head", "q_proj"]}])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapters_and_recomputation_train_as_without(lora: Any, checkpointing: bool) -> None:
    if lora is not None:
        pytest.importorskip("peft")
    torch.manual_seed(0)
    module = CausalLM(
        architecture={"model_type": "llama", **CONFIGS["llama"].to_diff_dict()},
        lora=lora,
        gradient_checkpointing=checkpointing,
    )
    module.configure_model()
    ids = batch()
    plain = module.model(input_ids=ids, labels=ids, use_cache=False).loss
    trained = [p for p in module.parameters() if p.requires_grad]
    expected = torch.autograd.grad(plain, trained)
    actual = torch.autograd.grad(module({"input_ids": ids}), trained)
    for left, right in zip(expected, actual, strict=True):
        torch.testing.assert_close(right, left, atol=1e-6, rtol=1e-5)


def test_validation_computes_no_gradient() -> None:
    hidden, weight = torch.randn(3, 4, requires_grad=True), nn.Parameter(torch.randn(5, 4))
    with torch.no_grad():
        loss = linear_cross_entropy(hidden, weight, torch.tensor([0, 1, 2]))
    assert not loss.requires_grad

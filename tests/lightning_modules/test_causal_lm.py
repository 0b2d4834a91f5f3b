"""CausalLM is plain Hugging Face plus AdamW: equal losses, equal exports, and errors in words."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM

from lightning_modules.causal_lm import CausalLM
from lightning_modules.optimization import learning_rate_factor
from runner.validate import bind
from tests.settings import SETTINGS

GPT2 = SETTINGS["est gpt2"].architecture
LLAMA = SETTINGS["est llama"].architecture


def batch(size: int = 2, context: int = 16) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.randint(300, (size, context))}


def built(**arguments: Any) -> CausalLM:
    module = CausalLM(**arguments)
    module.configure_model()
    return module


def quiet(**arguments: Any) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **arguments,
    )


def test_loss_is_plain_hugging_face() -> None:
    module = built(architecture=LLAMA)
    ids = batch()["input_ids"]
    logits = module.model(input_ids=ids).logits[:, :-1]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(module({"input_ids": ids}), expected)


def test_pretrained_models_train_with_dropout_on(tmp_path: Path) -> None:
    """`from_pretrained` returns a model in eval mode; training must not inherit it."""
    source = built(architecture=GPT2)
    source.export(tmp_path)
    module = built(pretrained=str(tmp_path))
    assert all(part.training for part in module.modules())
    data = batch()
    assert module(data) != module(data)
    source.eval()
    module.eval()
    assert torch.equal(module(data), source(data))


def test_export_reloads_with_equal_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    module = built(architecture=LLAMA)
    module.export(tmp_path)
    home = built(pretrained=f"~/{tmp_path.name}")
    assert torch.equal(home.model.lm_head.weight, module.model.lm_head.weight)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = batch()["input_ids"]
    module.eval()
    assert torch.equal(again(input_ids=ids).logits, module.model(input_ids=ids).logits)


@pytest.mark.parametrize(
    ("renamed", "words"),
    [
        (
            {"model.norm.weight": None},
            r"1 of its weights are missing, model\.norm\.weight among them\.",
        ),
        (
            {"": "_orig_mod."},
            r"\d+ of its .*there is _orig_mod\.lm_head.weight, of which the model",
        ),
    ],
)
def test_weights_that_are_missing_are_not_drawn(
    tmp_path: Path, renamed: dict[str, str | None], words: str
) -> None:
    """As where a compiled or a wrapped model's state was saved under the names of its parts."""
    built(architecture=LLAMA).export(tmp_path)
    file, ((old, new),) = tmp_path / "model.safetensors", renamed.items()
    weights = {
        name.replace(old, new or "", 1): value
        for name, value in load_file(file).items()
        if new is not None or name != old
    }
    save_file(weights, file, {"format": "pt"})
    module = CausalLM(pretrained=str(tmp_path))
    with pytest.raises(ValueError, match=words):
        module.configure_model()


def test_decay_applies_to_matrices_and_every_parameter_is_optimized_once() -> None:
    module = built(architecture=GPT2, optimizer={"weight_decay": 0.3})
    module.trainer = quiet(max_steps=10)
    decayed, plain = module.configure_optimizers()["optimizer"].param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.3, 0.0)
    assert {p.ndim for p in decayed["params"]} == {2}
    assert {p.ndim for p in plain["params"]} == {1}
    together = [id(p) for p in decayed["params"] + plain["params"]]
    assert sorted(together) == sorted(id(p) for p in module.parameters())


@pytest.mark.parametrize("warmup", [10, 0.1])
def test_learning_rate_warms_up_then_follows_the_cosine(warmup: float) -> None:
    factors = [learning_rate_factor(s, 101, warmup, 0.1, "cosine") for s in range(102)]
    assert factors[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert factors[10] == 1.0
    assert factors[55] == pytest.approx(0.55)
    assert factors[100] == pytest.approx(0.1), "the last of 101 steps"
    assert factors[101] == pytest.approx(0.1)
    assert all(a >= b for a, b in pairwise(factors[10:]))


def test_wsd_stays_at_the_peak_until_the_last_fifth() -> None:
    factors = [learning_rate_factor(s, 100, 0.1, 0.2, "wsd") for s in range(100)]
    assert factors[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert set(factors[10:81]) == {1.0}
    assert factors[80:] == pytest.approx([1 - 0.8 * i / 19 for i in range(20)])


@pytest.mark.parametrize("decay", ["cosine", "linear", "wsd"])
@pytest.mark.parametrize("warmup", [0, 1, 4, 9, 0.5, 0.9])
def test_learning_rate_ends_at_its_final_share(warmup: float, decay: str) -> None:
    factors = [learning_rate_factor(s, 10, warmup, 0.2, decay) for s in range(10)]
    assert factors[-1] == pytest.approx(0.2)
    assert max(factors) == 1.0
    assert learning_rate_factor(0, 1, 0, 0.2, decay) == 1.0, "the only step"
    assert [learning_rate_factor(s, 2, 0, 0.2, decay) for s in range(2)] == [1.0, 0.2]


def test_a_warm_up_as_long_as_the_training_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    for warmup, said in ((5, True), (2000, True), (4, False), (0.5, False)):
        module = built(architecture=GPT2, schedule={"warmup": warmup})
        module.trainer = quiet(max_steps=5)
        module.configure_optimizers()
        assert (f"module.schedule.warmup={warmup} " in capsys.readouterr().out) == said
    assert learning_rate_factor(4, 5, 2000, 0.0, "linear") == 0.0025


def test_perplexity_is_weighted_by_tokens() -> None:
    """Ignored labels do not count, and batches of different sizes weigh by their tokens."""
    module = built(architecture=LLAMA)
    small, large = batch(1), batch(5)
    small["labels"] = small["input_ids"].clone()
    small["labels"][:, :9] = -100
    large["labels"] = large["input_ids"]
    result = quiet().validate(module, DataLoader([small, large], batch_size=None), verbose=False)[0]
    module.eval()
    n_small, n_large = 16 - 9, 5 * 15
    mean = (module(small) * n_small + module(large) * n_large) / (n_small + n_large)
    assert result["val/loss"] == pytest.approx(mean.item(), abs=1e-6)
    assert result["val/perplexity"] == pytest.approx(math.exp(mean.item()), rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "give architecture"),
        ({"architecture": GPT2, "pretrained": "/nowhere"}, "module.pretrained=/nowhere"),
        ({"architecture": {"model_type": "gtp2"}}, "module.architecture"),
        ({"pretrained": "/nowhere"}, "module.pretrained=/nowhere: there is no such folder"),
    ],
)
def test_what_cannot_work_is_refused_in_words(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        CausalLM(**arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"optimizer": {"lr": -1}}, "optimizer.lr=-1 must be float above 0"),
        ({"optimizer": {"rate": 1}}, "optimizer.rate: no such key"),
        ({"schedule": {"decay": "step"}}, "schedule.decay='step' must be one of"),
        ({"schedule": {"final": 2}}, "schedule.final=2 must be float in [0, 1]"),
    ],
)
def test_what_an_annotation_does_not_allow_is_refused(
    arguments: dict[str, Any], words: str
) -> None:
    """By the runner, from the source alone."""
    (said,) = bind("module", {"_target_": "lightning_modules.causal_lm.CausalLM", **arguments})
    assert said.startswith(f"module.{words}")


def test_a_checkpoint_loads_outside_of_a_trainer(tmp_path: Path) -> None:
    module = CausalLM(architecture=GPT2)
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        max_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    data: Any = DataLoader([batch()], batch_size=None)
    trainer.fit(module, data, data)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    again = CausalLM.load_from_checkpoint(tmp_path / "one.ckpt")
    for left, right in zip(again.parameters(), module.parameters(), strict=True):
        assert torch.equal(left, right)

"""Noise and signal of gradients are those that were put in."""

import pytest
import torch

from benchmarks.gradient_noise import gradients, measure
from subnetworks.anatomy import dimensions_of
from subnetworks.schedule import Rates
from subnetworks.slicing import SlicedModel
from subnetworks.spec import sample_subnetwork
from tests.subnetworks.models import batch, build


def test_noise_and_signal_are_unbiased() -> None:
    torch.manual_seed(0)
    mean = torch.full((400,), 0.1)  # |mean|^2 = 4
    steps = [(float(i % 2), mean + 0.5 * torch.randn(400)) for i in range(200)]
    noise = measure(steps)
    assert noise.noise == pytest.approx(400 * 0.25 / 4, rel=0.1)
    assert noise.loss == 0.5
    assert noise.loss_deviation == pytest.approx(0.5, rel=0.01)


def test_gradients_are_of_all_parameters_and_zero_where_nothing_runs() -> None:
    model = build("gpt2")
    rates, generator = Rates(layers=0.5, heads=0.5, neurons=0.5), torch.Generator()
    spec = sample_subnetwork(dimensions_of(model.config), rates, generator, units="nested")
    ((loss, gradient),) = gradients(SlicedModel(model), [batch()], [spec])
    assert loss > 0
    assert gradient.shape == (sum(p.numel() for p in model.parameters()),)
    skipped = set(range(model.config.n_layer)) - set(spec.active_layers)
    assert skipped
    place = 0
    for name, parameter in model.named_parameters():
        part = gradient[place : place + parameter.numel()]
        place += parameter.numel()
        if any(f"h.{layer}." in name for layer in skipped):
            assert not part.any(), name

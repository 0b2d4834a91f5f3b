"""The objective of an increment never rises over coordinate descent; codes are never 0."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hashing.codes import first_codes, output_codes, update_new_codes
from hashing.losses import Weights, increment_loss, similarity_loss
from hashing.networks import HashNetworks, binarise, image_network
from hashing.similarity import label_similarity

NONE = torch.zeros(2, 0, dtype=torch.long)


def objective(
    outputs: dict[str, torch.Tensor],
    codes: dict[str, torch.Tensor],
    similarity: torch.Tensor,
    rows: torch.Tensor,
    weights: Weights,
) -> float:
    """An increment's objective over the whole sample and both modalities: what must not rise."""
    own = {m: codes[m][rows] for m in codes}
    return float(increment_loss(outputs, codes, similarity, own, weights))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    alpha=st.sampled_from([0.0, 0.01, 1.0]),
    shared=st.booleans(),
    old=st.integers(0, 12),
    new=st.integers(1, 12),
)
def test_the_objective_never_rises(
    seed: int, alpha: float, shared: bool, old: int, new: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    count, bits = old + new, 8
    labels = torch.randint(0, 2, (count, 4), generator=g)
    labels[:, 0] |= labels.sum(1) == 0
    sample = torch.randperm(count, generator=g)[: max(1, count // 2)]
    outputs = {m: torch.randn(len(sample), bits, generator=g).tanh() for m in ("image", "text")}
    similarity = label_similarity(labels[sample], labels)
    codes = {m: binarise(torch.randn(count, bits, generator=g)) for m in ("image", "text")}
    if shared:
        codes["text"][old:] = codes["image"][old:]
    in_sample = (sample >= old).nonzero()[:, 0]
    both = torch.stack((in_sample, sample[in_sample] - old))
    weights = Weights(alpha=alpha, beta=0.3)
    before = objective(outputs, codes, similarity, sample, weights)
    for _ in range(3):
        found = update_new_codes(
            {m: codes[m][old:] for m in codes},
            outputs,
            similarity[:, old:],
            both,
            count,
            alpha,
            shared,
        )
        codes = {m: torch.cat([codes[m][:old], found[m]]) for m in codes}
        after = objective(outputs, codes, similarity, sample, weights)
        assert after <= before + 1e-5 * before
        before = after
    assert all((c.abs() == 1).all() for c in codes.values())
    if shared:
        assert torch.equal(codes["image"][old:], codes["text"][old:])


def test_one_bit_is_the_best_of_both() -> None:
    """A single bit of a single item, checked against both values it can take."""
    g = torch.Generator().manual_seed(0)
    for _ in range(50):
        outputs = {m: torch.randn(5, 1, generator=g).tanh() for m in ("image", "text")}
        similarity = torch.rand(5, 1, generator=g)
        sample = torch.zeros(5, dtype=torch.long)
        values: dict[int, float] = {}
        codes: dict[str, torch.Tensor] = {}
        for bit in (-1, 1):
            codes = {m: torch.full((1, 1), bit, dtype=torch.int8) for m in outputs}
            weights = Weights(alpha=0.0, beta=0.0)
            values[bit] = objective(outputs, codes, similarity, sample, weights)
        found = update_new_codes(codes, outputs, similarity, NONE, 1, 0.0)
        assert int(found["image"]) == min(values, key=lambda bit: values[bit])


@pytest.mark.parametrize("similar", [0.0, 0.5])
def test_codes_that_begin_as_nothing_end_as_signs(similar: float) -> None:
    """Also where arguments are exactly 0: no similarity, or outputs at the ends of tanh."""
    outputs = dict.fromkeys(("image", "text"), torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))
    nothing = dict.fromkeys(outputs, torch.zeros(3, 2, dtype=torch.int8))
    similarity = torch.full((2, 3), similar)
    found = update_new_codes(nothing, outputs, similarity, NONE, 5, 0.01)
    for codes in found.values():
        assert codes.tolist() == [[1, 1]] * 3, "an even start, then as far from both as can be"


def test_codes_of_outputs_are_signs_of_each_or_of_both() -> None:
    outputs = {"image": torch.tensor([[0.9, -0.1]]), "text": torch.tensor([[-0.5, -0.2]])}
    assert output_codes(outputs)["text"].tolist() == [[1, -1]]
    assert output_codes(outputs)["image"].tolist() == [[1, -1]]
    assert output_codes(outputs, shared=False)["text"].tolist() == [[-1, -1]]


def test_first_codes_weigh_the_modality_twice_as_much_as_the_labels() -> None:
    outputs = {"image": 0.6, "text": 0.4, "label": -0.9}
    codes = first_codes({name: torch.tensor([[value]]) for name, value in outputs.items()})
    assert [codes[name].item() for name in ("image", "text")] == [1, -1]


def test_signs_of_zero_are_positive() -> None:
    zeros = torch.zeros(2, 8)
    assert binarise(zeros).tolist() == [[1] * 8] * 2
    assert (first_codes(dict.fromkeys(("image", "text", "label"), zeros))["text"] == 1).all()


def test_similarity_loss_wants_no_more_than_a_right_angle() -> None:
    """Opposite outputs of items that share nothing cost nothing."""
    u = torch.tensor([[1.0, 0.0]])
    v = torch.tensor([[-3.0, 0.0], [2.0, 0.0]])
    assert float(similarity_loss(u, v, torch.tensor([[0.0, 1.0]]))) == 0
    assert float(similarity_loss(u, v, torch.tensor([[0.0, 0.0]]))) == 0.5


@pytest.mark.parametrize("shape", [(20,), (3, 32, 32)])
def test_networks_of_features_and_of_pictures(shape: tuple[int, ...]) -> None:
    networks = HashNetworks(shape, 12, 5, bits=16, width=64).eval()
    kind = torch.float32 if len(shape) == 1 else torch.uint8
    images = torch.randint(0, 255, (4, *shape)).to(kind)
    assert networks.image(images).shape == (4, 16)
    assert torch.equal(networks.image(images[:1]), networks.image(images)[:1]) or torch.allclose(
        networks.image(images[:1]), networks.image(images)[:1], atol=1e-5
    )
    assert networks.train().image(images[:1]).shape == (1, 16), "a batch of one"
    with pytest.raises(ValueError, match=r"images of shape \(1, 4, 4\)"):
        image_network((1, 4, 4), 16)


def test_untrained_outputs_of_pictures_point_everywhere() -> None:
    """Outputs that all point one way have no slope, and give all pictures one code."""
    torch.manual_seed(0)
    grounds = torch.randint(0, 255, (64, 3, 1, 1))
    pictures = (grounds + torch.randint(-40, 40, (64, 3, 16, 16))).clamp(0, 255).to(torch.uint8)
    outputs = torch.nn.functional.normalize(image_network((3, 16, 16), 32)(pictures))
    assert (outputs @ outputs.T).mean().abs() < 0.2

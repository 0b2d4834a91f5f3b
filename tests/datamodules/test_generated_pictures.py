"""Generated pictures and captions: the same each time, with labels that both sides tell."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from datamodules.cross_modal_items import CrossModalItems
from datamodules.generated import pictures
from datamodules.generated.pictures import (
    CLASSES,
    encode_query,
    render,
    split_words,
    vocabulary,
)

# No word of a caption begins so, unless label words are allowed.
STEMS = ("circ", "triang", "squar", "star", "cross", "ring", "heart", "strip", "dot", "check")


@pytest.fixture(scope="module")
def items() -> CrossModalItems:
    return render(800, seed=3)


def mean_average_precision(scores: np.ndarray, relevant: np.ndarray) -> float:
    ranked = np.take_along_axis(relevant, np.argsort(-scores, axis=1, kind="stable"), axis=1)
    precision = ranked.cumsum(1) / np.arange(1, ranked.shape[1] + 1)
    return float(((precision * ranked).sum(1) / ranked.sum(1)).mean())


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)
    return (a @ b.T) / norms


def ridge(features: np.ndarray, labels: np.ndarray, train: int) -> np.ndarray:
    scaled = (features - features[:train].mean(0)) / (features[:train].std(0) + 1e-3)
    x = np.concatenate([scaled, np.ones((len(scaled), 1))], axis=1)
    gram = x[:train].T @ x[:train] + 30 * np.eye(x.shape[1])
    return x @ np.linalg.solve(gram, x[:train].T @ labels[:train])


def test_what_an_item_looks_like(items: CrossModalItems) -> None:
    assert items.image.shape == (800, 3, 32, 32)
    assert items.image.dtype == np.uint8
    assert items.text.shape == (800, len(vocabulary()))
    assert items.text.dtype == np.float32
    assert items.classes == CLASSES
    assert len(items.names) == len(set(items.names)) == len(items.captions) == 800
    assert set(items.labels.sum(1)) == {1, 2, 3}
    assert items.labels.mean(0).min() > 0.08  # no class is rare
    assert len(set(items.captions)) > 790
    assert len(np.unique(items.image, axis=0)) == 800


def test_the_same_arguments_give_the_same_items_and_more_items_leave_the_first_ones() -> None:
    few, again, more = render(20, seed=5), render(20, seed=5), render(30, seed=5)
    for other in (again, more):
        assert np.array_equal(few.image, other.image[:20])
        assert np.array_equal(few.text, other.text[:20])
        assert np.array_equal(few.labels, other.labels[:20])
        assert few.captions == other.captions[:20]
    assert not np.array_equal(few.image, render(20, seed=6).image)
    assert render(3, size=48, seed=5).image.shape == (3, 3, 48, 48)


def test_items_are_drawn_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, cache = render(20, seed=5), str(tmp_path)
    first = render(20, seed=5, cache_dir=cache)
    monkeypatch.setattr(pictures._Scene, "__init__", None)  # nothing is drawn from here on
    kept = render(20, seed=5, cache_dir=cache)
    for items in (first, kept):
        for name in ("image", "text", "labels"):
            assert np.array_equal(getattr(items, name), getattr(drawn, name))
        assert items.captions == drawn.captions
    with pytest.raises(TypeError):
        render(20, seed=6, cache_dir=cache)
    assert [
        folder for folder in tmp_path.iterdir() if folder.is_dir() and "tmp" in folder.name
    ] == []


def test_no_word_of_a_caption_begins_as_a_label_does(items: CrossModalItems) -> None:
    assert all(name.startswith(STEMS) for name in CLASSES)
    assert [word for word in vocabulary() if word.startswith(STEMS)] == []
    for caption in items.captions:
        assert set(split_words(caption)) <= set(vocabulary())


def test_label_words_are_there_when_they_are_allowed(items: CrossModalItems) -> None:
    named = render(200, seed=3, label_words_in_captions=True)
    assert np.array_equal(named.image, items.image[:200])
    assert set().union(*map(split_words, named.captions)) <= set(vocabulary(True))
    stripes = named.labels[:, CLASSES.index("stripes")] == 1
    assert [("stripes" in caption.lower()) for caption in named.captions] == stripes.tolist()


def test_labels_are_recoverable_from_texts_but_not_for_free(items: CrossModalItems) -> None:
    labels, train = items.labels.astype(float), 600
    relevant = (labels[train:] @ labels[:train].T) > 0
    predicted = ridge(items.text.astype(float), labels, train)
    found = mean_average_precision(cosine(predicted[train:], labels[:train]), relevant)
    assert relevant.mean() + 0.4 < found < 0.99


def test_single_pixels_say_little_of_the_labels(items: CrossModalItems) -> None:
    labels, train = items.labels.astype(float), 600
    relevant = (labels[train:] @ labels[:train].T) > 0
    predicted = ridge(items.image[:, :, ::2, ::2].reshape(800, -1) / 255.0, labels, train)
    found = mean_average_precision(cosine(predicted[train:], labels[:train]), relevant)
    assert found < relevant.mean() + 0.2


@pytest.mark.slow
def test_labels_are_recoverable_from_pictures_by_convolutions() -> None:
    items, train = render(1200, seed=3), 900
    labels = items.labels.astype(float)
    relevant = (labels[train:] @ labels[:train].T) > 0
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.GroupNorm(4, 16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.GroupNorm(4, 32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(64, len(CLASSES)),
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    x = torch.from_numpy(items.image).float() / 127.5 - 1
    y = torch.from_numpy(items.labels).float()
    for _ in range(12):
        for batch in torch.randperm(train).split(50):
            loss = nn.functional.binary_cross_entropy_with_logits(network(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        predicted = network(x[train:]).sigmoid().numpy()
    found = mean_average_precision(cosine(predicted, labels[:train]), relevant)
    assert relevant.mean() + 0.2 < found < 0.99


def test_two_thousand_pictures_take_seconds() -> None:
    start = time.process_time()
    render(400)
    assert time.process_time() - start < 4


def test_a_query_becomes_features(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    modality, text = encode_query("A RED form, with three corners!", size=32)
    assert modality == "text"
    words = {w for w, there in zip(vocabulary(), text[0], strict=True) if there}
    assert words == {"a", "red", "form", "with", "three", "corners"}
    assert not caplog.text
    encode_query("a red triangle and an xyzzy", size=32)
    assert "not read, as no caption has it: triangle, xyzzy" in caplog.text
    with pytest.raises(ValueError, match=r"query='xyzzy': .*none of these words; they have a,"):
        encode_query("xyzzy", size=32)
    picture = tmp_path / "mine.PNG"
    Image.new("RGB", (100, 50), (200, 10, 10)).save(picture)
    modality, image = encode_query(str(picture), size=32)
    assert modality == "image"
    assert image.shape == (1, 3, 32, 32)
    assert image[0, :, 3, 3].tolist() == [200, 10, 10]
    with pytest.raises(ValueError, match=r"absent.png does not exist"):
        encode_query(str(tmp_path / "absent.png"), size=32)
    picture.rename(tmp_path / "mine")
    assert np.array_equal(encode_query(str(tmp_path / "mine"), size=32)[1], image)
    with pytest.raises(ValueError, match=r"a folder\. Give one picture of it"):
        encode_query(str(tmp_path), size=32)
    assert encode_query("red " * 2000, size=32)[0] == "text", "longer than a file's name"

"""A lifelong training reads what it may only, keeps old codes, and resumes at any step."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from PIL import Image

from callbacks.rng_state import RngState
from datamodules.cross_modal import CrossModalDataModule, Pairs
from hashing.gallery import Gallery
from hashing.networks import binarise
from hashing.pairs import MODALITIES
from hashing.plots import OTHER, RELEVANT
from hashing.store import CodeStore
from lightning_modules.lifelong_hashing import LifelongHashing
from tests.reading import NoReading

LENGTHS: Any = {"epochs": 4, "rounds": 3, "round_epochs": 2, "sample": 24, "old_share": 0.5}


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 items of 4 classes; image and text features are their class, with noise."""
    draw = np.random.default_rng(0)
    numbers = np.arange(150) % 4
    labels = np.eye(4, dtype=np.uint8)[numbers]
    image = (labels @ draw.normal(size=(4, 6)) + draw.normal(size=(150, 6)) / 3).astype(np.float32)
    text = (labels @ draw.normal(size=(4, 5)) + draw.normal(size=(150, 5)) / 3).astype(np.float32)
    path = tmp_path_factory.mktemp("features") / "four.npz"
    np.savez(path, image=image, text=text, labels=labels)
    return path


def data(path: Path, classes: list[int] | None = None) -> CrossModalDataModule:
    datamodule = CrossModalDataModule(
        path=str(path), classes_per_session=classes or [2, 1, 1], batch_size=16, seed=1
    )
    datamodule.setup("fit")
    return datamodule


def drawn_data() -> CrossModalDataModule:
    """240 small pictures with captions."""
    datamodule = CrossModalDataModule(
        source="generated",
        options={"count": 240, "size": 16},
        classes_per_session=[6, 2, 2],
        standardise=[],
        queries=0.2,
        validation=0.2,
        batch_size=64,
    )
    datamodule.setup("fit")
    return datamodule


def module(strategy: Any = "lifelong", **options: Any) -> LifelongHashing:
    given = {"bits": 16, "text_width": 32, "lengths": LENGTHS, "seed": 1, **options}
    return LifelongHashing(strategy=strategy, **given)


def fit(
    datamodule: CrossModalDataModule,
    strategy: Any = "lifelong",
    callbacks: tuple[pl.Callback, ...] = (),
    resume: Path | None = None,
    limit: int | None = None,
    precision: Any = "32-true",
    **options: Any,
) -> LifelongHashing:
    pl.seed_everything(1, verbose=False)
    made = module(strategy, **options)
    trainer = pl.Trainer(
        accelerator="cpu",
        precision=precision,
        max_steps=made.max_steps(datamodule, limit),
        max_epochs=-1,
        logger=False,
        callbacks=[RngState(seed=1), *callbacks],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    trainer.fit(made, datamodule=datamodule, ckpt_path=resume)
    return made


class Watch(pl.Callback):
    """Keeps the original items' codes after each step, and saves every step."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.codes: list[tuple[int, dict[str, torch.Tensor]]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        kept = {m: pl_module.codes(m).clone() for m in MODALITIES}
        self.codes.append((int(pl_module.session), kept))
        if self.folder is not None:
            trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


def test_a_step_reads_nothing_back(features: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = LifelongHashing.training_step

    def unread(self: LifelongHashing, *batch: Any) -> torch.Tensor:
        with NoReading():
            return step(self, *batch)

    monkeypatch.setattr(LifelongHashing, "training_step", unread)
    fit(data(features), limit=6)


@pytest.mark.parametrize("strategy", ["lifelong", "fine_tune", "retrain", "no_update"])
def test_only_the_items_that_a_session_may_read_are_read(
    features: Path, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts every access to an image or a text of the retrieval part, by session."""
    datamodule = data(features)
    read: dict[int, list[int]] = {0: [], 1: [], 2: []}
    original, begin = Pairs.__getitem__, LifelongHashing._begin
    now = 0

    def count(self: Pairs, indices: NDArray[np.int64]) -> Any:
        if self is datamodule.parts["retrieval"]:
            read[now].extend(indices.tolist())
        return original(self, indices)

    def follow(self: LifelongHashing, session: Any) -> None:
        nonlocal now
        # Lightning asks for a batch ahead of the session that it belongs to.
        now = session.number
        if session.steps:
            first = self.plan.batch(session.start).tolist()
            if session.number:
                for row in first:
                    read[now - 1].remove(row)
                read[now].extend(first)
        begin(self, session)

    monkeypatch.setattr(Pairs, "__getitem__", count)
    monkeypatch.setattr(LifelongHashing, "_begin", follow)
    made = fit(datamodule, strategy)
    groups = datamodule.groups["retrieval"]
    for session in made.plan.sessions:
        rows = set(read[session.number])
        if session.kind == "lifelong":
            steps = range(session.start, session.end, session.steps_per_round)
            allowed = {row for step in steps for row in made.plan.sample(session, step).tolist()}
            assert rows == allowed
            assert allowed < set(np.flatnonzero(groups <= session.number).tolist())
        elif strategy == "retrain":
            assert rows == set(np.flatnonzero(groups <= session.number).tolist())
        else:
            assert rows == set(np.flatnonzero(groups == session.number).tolist())


def test_what_may_not_be_read_does_not_matter(features: Path) -> None:
    """Items outside of the samples are replaced by NaN: networks and codes stay the same."""
    datamodule = data(features)
    expected = fit(datamodule)
    allowed = set(expected.plan.sessions[0].rows.tolist())
    for session in expected.plan.sessions[1:]:
        for step in range(session.start, session.end):
            allowed |= set(expected.plan.sample(session, step).tolist())
    poisoned = data(features)
    part = poisoned.parts["retrieval"]
    forbidden = [row for i, row in enumerate(part.rows) if i not in allowed]
    assert forbidden
    assert poisoned.items is not None
    poisoned.items.image[forbidden] = np.nan
    poisoned.items.text[forbidden] = np.nan
    actual = fit(poisoned).state_dict()
    for name, value in expected.state_dict().items():
        assert torch.equal(actual[name], value), name


@pytest.mark.parametrize("codes", ["shared", "per_modality"])
@pytest.mark.parametrize("strategy", ["lifelong", "fine_tune"])
def test_codes_of_earlier_sessions_stay_bit_identical(
    features: Path, strategy: str, codes: str
) -> None:
    datamodule = data(features)
    watch = Watch()
    made = fit(datamodule, strategy, (watch,), codes=codes)
    groups = torch.from_numpy(datamodule.groups["retrieval"])
    final = {m: made.codes(m) for m in MODALITIES}
    for number in (0, 1):
        states = [kept for session, kept in watch.codes if session == number]
        for kept in states[-1:]:
            for m in MODALITIES:
                mask = groups <= number
                assert torch.equal(kept[m][mask], final[m][mask])
    assert all((final[m].abs() == 1).all() for m in MODALITIES)
    if strategy == "lifelong":
        new = groups > 0
        assert torch.equal(final["image"][new], final["text"][new]) == (codes == "shared")


def test_outputs_are_kept_in_full_precision(features: Path) -> None:
    made = fit(data(features), "lifelong", precision="bf16-mixed")
    assert all((made.codes(m).abs() == 1).all() for m in MODALITIES)


@pytest.mark.parametrize(
    ("strategy", "places"), [("lifelong", 4), ("retrain", 1), ("fine_tune", 1)]
)
def test_a_training_resumes_bit_for_bit_at_any_step(
    features: Path, strategy: str, places: int, tmp_path: Path
) -> None:
    """From within each session, and from the step on which one ends."""
    datamodule = data(features)
    watch = Watch(tmp_path)
    expected = fit(datamodule, strategy, (watch,))
    ends = [session.end for session in expected.plan.sessions]
    for step in (ends[0] + 1, 3, ends[0], ends[1] + 5)[:places]:
        path = tmp_path / f"{step}.ckpt"
        torch.load(path, weights_only=True)
        actual = fit(data(features), strategy, resume=path)
        for name, value in expected.state_dict().items():
            assert torch.equal(actual.state_dict()[name], value), (step, name)
        for before, after in zip(expected.history, actual.history, strict=True):
            assert {k: v for k, v in before.items() if "seconds" not in k} == {
                k: v for k, v in after.items() if "seconds" not in k
            }


def test_an_increment_learns_its_class_and_saves_steps(features: Path) -> None:
    long: Any = {**LENGTHS, "epochs": 40, "rounds": 10}
    made = fit(data(features, [3, 1]), lengths=long)
    untrained = fit(data(features, [3, 1]), "no_update", lengths=long)
    for direction in ("i2t", "t2i"):
        gain = (
            made.history[1][f"map_new_{direction}"] - untrained.history[1][f"map_new_{direction}"]
        )
        assert gain > 0.1
    ledger = made.ledger()
    assert ledger is not None
    steps, seconds = ledger.savings
    assert steps.spent == made.plan.sessions[1].steps
    retrained = module("retrain", lengths=long)
    retrained.max_steps(data(features, [3, 1]), None)
    assert steps.baseline == retrained.plan.sessions[1].steps
    assert seconds.baseline is None, "nobody has measured it"


@pytest.mark.parametrize("codes", ["shared", "per_modality"])
def test_a_new_item_that_shares_no_label_with_a_sample_has_the_code_that_its_networks_say(
    tmp_path: Path, codes: str
) -> None:
    """Two items have a class that no sample holds: they must be found like any other item."""
    draw = np.random.default_rng(0)
    numbers = np.r_[np.arange(180) % 3, [3, 3]]
    labels = np.eye(4, dtype=np.uint8)[numbers]
    values = (labels @ draw.normal(size=(4, 6)) + draw.normal(size=(182, 6)) / 3).astype(np.float32)
    path = tmp_path / "rare.npz"
    np.savez(path, image=values, text=values[:, :5], labels=labels)
    datamodule = data(path, [2, 2])
    few: Any = {**LENGTHS, "rounds": 2, "sample": 4}
    made = fit(datamodule, codes=codes, lengths=few)
    session = made.plan.sessions[1]
    rare = np.flatnonzero(datamodule.parts["retrieval"].labels[:, 3])
    sampled = [made.plan.sample(session, step) for step in range(session.start, session.end)]
    assert len(rare), "in the retrieval part"
    assert not set(rare.tolist()) & set(np.concatenate(sampled).tolist()), "never sampled"
    with torch.no_grad():
        batch = datamodule.parts["retrieval"][rare]
        outputs = {m: getattr(made.networks, m)(batch[m]).tanh() for m in MODALITIES}
    both = outputs["image"] + outputs["text"]
    expected = {m: binarise(both if codes == "shared" else outputs[m]) for m in MODALITIES}
    for m in MODALITIES:
        assert torch.equal(made.codes(m)[torch.from_numpy(rare)], expected[m])
    gallery = Gallery(datamodule, {m: made.codes(m) for m in MODALITIES}, 1)
    found = gallery.nearest("image", expected["image"][:1], 200)
    assert {match.row for match in found} == set(datamodule.parts["retrieval"].rows.tolist())


def test_strategies_share_the_original_session(features: Path) -> None:
    histories = [fit(data(features), s).history[0] for s in ("lifelong", "no_update", "retrain")]
    maps = [{k: v for k, v in h.items() if k.startswith("map")} for h in histories]
    assert maps[0] == maps[1] == maps[2]


def test_the_time_of_a_session_is_that_of_its_steps(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints, validations and scores take 1,000 seconds each, and none of them counts."""
    now = [0.0]

    def slow(name: str, owner: Any) -> None:
        original = getattr(owner, name)

        def wait(*args: Any, **kwargs: Any) -> Any:
            now[0] += 1000
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, wait)

    def tick() -> float:
        now[0] += 0.001
        return now[0]

    monkeypatch.setattr("hashing.sessions.perf_counter", tick)
    slow("save_checkpoint", pl.strategies.SingleDeviceStrategy)
    slow("retrieval", LifelongHashing)
    for strategy in ("lifelong", "retrain", "no_update"):
        made = fit(data(features), strategy, (Watch(tmp_path),))
        assert now[0] > 1000
        for figures in made.history:
            assert figures["step_seconds"] <= figures["seconds"] < 10


def test_a_limit_cuts_every_session_short(features: Path) -> None:
    made = fit(data(features), limit=9)
    assert made.plan.steps <= 9
    assert len(made.history) == 3


@pytest.mark.parametrize("limit", [9, 100])
def test_the_baseline_of_what_was_saved_is_cut_short_as_the_training_is(
    features: Path, limit: int
) -> None:
    """100 steps cut retraining short, not the training itself, which the trainer is told."""
    made, retrained = fit(data(features), limit=limit), module("retrain")
    retrained.max_steps(data(features), limit)
    ledger = made.ledger()
    assert ledger is not None
    assert ledger.savings[0].baseline == sum(s.steps for s in retrained.plan.sessions[1:])
    assert retrained.plan.steps <= limit


def test_a_limit_too_short_for_retraining_leaves_the_baseline_out(features: Path) -> None:
    ledger = fit(data(features), "no_update", limit=2).ledger()
    assert ledger is not None
    assert ledger.savings[0].baseline is None


@pytest.mark.parametrize(
    ("key", "value"),
    [("limit_train_batches", 5), ("overfit_batches", 1), ("accumulate_grad_batches", 2)],
)
def test_a_trainer_that_would_change_the_batches_is_refused(
    features: Path, key: str, value: int
) -> None:
    made = module()
    trainer = pl.Trainer(accelerator="cpu", max_steps=9, logger=False, **{key: value})
    with pytest.raises(ValueError, match=rf"trainer\.\w+={value}: lifelong hashing needs"):
        trainer.fit(made, datamodule=data(features))


def test_what_was_reached_has_the_codes_that_differ_and_chance_beside_it(features: Path) -> None:
    datamodule = data(features)
    made = fit(datamodule)
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    metrics = trainer.test(made, datamodule=datamodule, verbose=False)[0]
    codes = {m: made.codes(m).numpy() for m in MODALITIES}
    for m in MODALITIES:
        assert metrics[f"distinct_codes/{m}"] == len({tuple(code) for code in codes[m].tolist()})
        assert 0 < metrics[f"bit_balance/{m}"] <= 0.5
    assert 0.2 < metrics["chance/i2t"] == metrics["chance/t2i"] < metrics["test/map_all_i2t"]


def test_what_was_reached_is_drawn_with_pictures(tmp_path: Path) -> None:
    """The grid's frames say what is relevant. tests/test_experiments.py has data without any."""
    pictures = drawn_data()
    assert pictures.items is not None
    pictures.items = replace(pictures.items, names=("one",) * 240)  # several texts of a picture
    assert module().figures(tmp_path / "none") == {}
    trained = fit(pictures, limit=9)
    drawn = trained.figures(tmp_path / "drawn").values()
    assert trained.tables()
    names = {"map_by_session.png", "precision_recall.png", "retrieved.png"}
    assert {path.name for path in drawn} == names
    assert set(drawn) == set((tmp_path / "drawn").iterdir())
    with Image.open(tmp_path / "drawn" / "retrieved.png") as image:
        shown = np.asarray(image.convert("RGB")).reshape(-1, 3)
    for colour in (RELEVANT, OTHER):
        assert (shown == tuple(bytes.fromhex(colour[1:]))).all(1).any(), colour


def test_an_item_is_encoded_by_itself_also_in_the_middle_of_training() -> None:
    """The moments that standardise a picture's features are not those of whoever is beside it."""
    datamodule = drawn_data()
    made = fit(datamodule, limit=9).train()
    before = {name: value.clone() for name, value in made.state_dict().items()}
    encoded = made.encoded("query")["image"]
    assert made.training
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())
    with torch.no_grad():
        alone = made.networks.image.eval()(datamodule.parts["query"][np.array([0])]["image"])
    torch.testing.assert_close(encoded[:1], alone)


def test_search_ranks_items_by_the_distance_of_their_codes(
    features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The task finds what brute force finds, shows it and draws it; bad queries are refused."""
    datamodule = data(features)
    trained = fit(datamodule)
    given: Any = {"query": "text:3", "top_k": 5, "ckpt_path": str(tmp_path)}
    found = trained.search(datamodule, **given)
    with torch.no_grad():
        asked = trained.networks.text(datamodule.parts["query"][np.array([3])]["text"])
    distances = (trained.codes("image") != binarise(asked)).sum(1).sort().values
    assert found == {"nearest": float(distances[0]), "farthest": float(distances[4])}
    assert "Nearest to 'text:3'" in capsys.readouterr().out
    assert (tmp_path / "search" / "text-3.png").stat().st_size > 5_000
    for query, words in (
        (None, "task=search needs words"),
        ("a red bird", "feature files come without an encoder"),
        ("text:9999", "there are"),
    ):
        with pytest.raises(ValueError, match=words):
            trained.search(datamodule, **{**given, "query": query})


def test_codes_kept_on_disk_are_found_and_grow_with_sessions_and_items(
    features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder finds what the checkpoint finds and keeps its codes; other trainings are refused."""
    datamodule = data(features)
    saved = Saves(tmp_path)
    trained = fit(datamodule, callbacks=(saved,))
    folder = str(tmp_path / "codes")
    early, checkpoint = module(), torch.load(tmp_path / "first.ckpt", weights_only=True)
    early.on_load_checkpoint(checkpoint)
    early.load_state_dict(checkpoint["state_dict"])
    original = int((datamodule.groups["retrieval"] == 0).sum())
    items = tmp_path / "items.txt"
    items.write_text("text:0\n\nimage:2\n", encoding="utf-8-sig")  # as some editors write it
    wrong = tmp_path / "wrong.txt"
    wrong.write_text("text:0\na red bird\n")
    for wrong_keys, words in (
        ({}, "store: task=encode needs"),
        ({"store": folder, "items": "nowhere"}, "items=nowhere: is no file"),
        ({"store": folder, "items": str(wrong)}, "line 2: query=a red bird: feature files"),
    ):
        with pytest.raises(ValueError, match=words):
            early.encode(datamodule, **wrong_keys)
    assert not Path(folder).exists()

    counts = early.encode(datamodule, store=folder, items=str(items))
    assert counts == dict.fromkeys(
        ("added/image", "stored/image", "added/text", "stored/text"), original + 1.0
    )
    kept = CodeStore.load(Path(folder) / "image").packed.copy()
    counts = trained.encode(datamodule, store=folder, items=str(items))
    arrived = len(datamodule.groups["retrieval"]) - original
    assert counts["added/image"] == counts["added/text"] == arrived
    store = CodeStore.load(Path(folder) / "image")
    assert np.array_equal(store.packed[: len(kept)], kept)
    assert store.names[original] == "image:2"
    assert trained.encode(datamodule, store=folder)["added/image"] == 0

    given: Any = {"query": "text:3", "top_k": 1000, "ckpt_path": str(tmp_path)}
    gallery = Gallery(datamodule, {m: trained.codes(m) for m in MODALITIES}, 2)
    code = trained._code("text", datamodule.encode_query("text:3")[1])
    of_checkpoint = gallery.nearest("image", code, 1000)
    of_folder = gallery.nearest("image", code, 1000, folder)
    assert {(m.row, m.distance) for m in of_folder if m.row >= 0} == {
        (m.row, m.distance) for m in of_checkpoint
    }
    assert [m.name for m in of_folder if m.row < 0] == ["image:2"]
    trained.search(datamodule, **given, store=folder)
    assert "image:2" in capsys.readouterr().out

    other = fit(datamodule, seed=2)
    for refused in (
        lambda: other.encode(datamodule, store=folder),
        lambda: other.search(datamodule, **given, store=folder),
    ):
        with pytest.raises(ValueError, match="holds codes of another training"):
            refused()


class Saves(pl.Callback):
    """Saves as soon as the first session has ended."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == pl_module.plan.sessions[0].end:
            trainer.save_checkpoint(self.folder / "first.ckpt")

"""Text becomes the same tokens in the same order each time, also after a run was cut off."""

import bz2
import gzip
import importlib
import itertools
import json
import lzma
import multiprocessing
import os
import pickle
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from datasets import Dataset  # type: ignore[import-untyped]
from omegaconf import OmegaConf
from tokenizers import processors
from torch.multiprocessing.spawn import ProcessRaisedException

from datamodules import language_modeling, text_sources, token_cache
from datamodules.batches import permute, train_batch
from datamodules.cache import read_record
from datamodules.cross_modal import CrossModalDataModule
from datamodules.files import find_files
from datamodules.instruction import InstructionDataModule
from datamodules.language_modeling import LanguageModelingDataModule
from datamodules.multi_turn_sql import MultiTurnSql

WORDS = [
    "the",
    "a",
    "of",
    "in",
    "model",
    "data",
    "loss",
    "gradient",
    "Straße",
    "naïve",
    "日本",
    "😀",
]
# What a careless reader or tokenizer would change: markup, line ends, spaces, unknown characters.
AWKWARD = (
    "<|endoftext|> a\r\nb\t\t c  \n\n\n \u00a0 \ufeff \x00 e\u0301 \U0001f469\u200d\U0001f52c \n"
)

FORK = multiprocessing.get_context("fork")  # the child has imported everything already
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


def make_text(characters: int, seed: int = 0) -> str:
    """Return random words in lines: every stretch of it is different."""
    draw = random.Random(seed)
    lines = (" ".join(draw.choices(WORDS, k=draw.randint(3, 12))) for _ in range(characters // 45))
    return "\n".join(lines) + "\n"


def make(folder: Path, text: str | None = None, **settings: Any) -> LanguageModelingDataModule:
    """Return a datamodule on small files under `folder`, one named text.txt unless told."""
    if text is not None:
        (folder / "text.txt").write_bytes(text.encode())
    defaults: dict[str, Any] = {
        "source": "text",
        "files": str(folder / "text.txt"),
        "cache_dir": str(folder / "cache"),
        "vocab_size": 300,
        "context_length": 8,
        "batch_size": 4,
        "val_fraction": 0.1,
    }
    return LanguageModelingDataModule(**defaults | settings)


def opened(folder: Path, text: str | None = None, **settings: Any) -> LanguageModelingDataModule:
    data = make(folder, text, **settings)
    data.prepare_data()
    data.setup("fit")
    return data


def token_file(data: LanguageModelingDataModule, part: str) -> np.ndarray[Any, Any]:
    assert data.folder is not None
    return np.fromfile(data.folder / f"{part}.bin", dtype=data.record["dtype"])


def rows(loader: Any) -> list[list[int]]:
    return [row for batch in loader for row in batch["input_ids"].tolist()]


# --- packing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("piece_bytes", [64, 1 << 16])
def test_packing_loses_and_adds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece_bytes: int
) -> None:
    """Also where a file is read in parts, which must not cut a character or a line end in two."""
    monkeypatch.setattr(text_sources, "PIECE_BYTES", piece_bytes)
    text = AWKWARD + make_text(4000) + "日" * 100 + AWKWARD
    data = opened(tmp_path, text)
    end = data.tokenizer.eos_token_id
    decoded = {}
    for part in ("train", "val"):
        tokens = token_file(data, part)
        assert (tokens == end).sum() == 1
        assert tokens[-1] == end
        decoded[part] = data.tokenizer.decode(tokens[:-1])
        # The blocks are the file, cut to length.
        blocks = data.blocks[part]
        assert len(blocks) == len(tokens) // 8
        in_order = blocks[np.arange(len(blocks))]["input_ids"]
        assert in_order.dtype == torch.int64
        assert in_order.flatten().tolist() == tokens[: len(blocks) * 8].tolist()
    assert decoded["train"] + decoded["val"] == text
    assert 0.05 < len(decoded["val"].encode()) / len(text.encode()) <= 0.1
    assert decoded["train"].endswith("\n")


@pytest.mark.parametrize("val_fraction", [0.1, 0.11, 0.12])
def test_a_file_of_one_line_is_cut_between_characters(tmp_path: Path, val_fraction: float) -> None:
    text = "".join(random.Random(0).choices("日本語学習", k=1001))
    data = opened(tmp_path, text, val_fraction=val_fraction)
    decoded = [data.tokenizer.decode(token_file(data, part)[:-1]) for part in ("train", "val")]
    assert "".join(decoded) == text
    assert len(decoded[1]) == int(1001 * val_fraction)


def test_documents_are_separated_and_split_by_content(tmp_path: Path) -> None:
    documents = [make_text(200, seed) for seed in range(200)] + ["", "twice", "twice", "twice"]
    lines = "\n".join(json.dumps({"body": text}) for text in documents) + "\n\n"
    (tmp_path / "a.jsonl").write_text(lines)
    settings = {"source": "jsonl", "files": f"{tmp_path}/*.jsonl", "text_column": "body"}
    data = opened(tmp_path, **settings)
    parts = {}
    for part in ("train", "val"):
        decoded = data.tokenizer.decode(token_file(data, part))
        *parts[part], rest = decoded.split(data.tokenizer.eos_token)
        assert rest == ""
    assert sorted(parts["train"] + parts["val"]) == sorted(filter(None, documents))
    assert not set(parts["train"]) & set(parts["val"])
    assert 8 <= len(parts["val"]) <= 35  # 20 expected
    # The order of the documents does not move one of them to the other side.
    (tmp_path / "a.jsonl").write_text("\n".join(reversed(lines.split("\n"))))
    again = opened(tmp_path, **settings)
    turned = again.tokenizer.decode(token_file(again, "val")).split(again.tokenizer.eos_token)
    assert sorted(turned[:-1]) == sorted(parts["val"])


def test_jsonl_parquet_and_hub_hold_the_same_tokens(tmp_path: Path) -> None:
    texts = [make_text(300, seed) for seed in range(60)]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in texts))
    (tmp_path / "repository").mkdir()
    Dataset.from_dict({"text": texts, "other": range(60)}).to_parquet(
        tmp_path / "repository" / "train-00000-of-00001.parquet"
    )
    node = {"path": str(tmp_path / "repository"), "split": "train"}
    arms: list[dict[str, Any]] = [
        {"source": "jsonl", "files": f"{tmp_path}/a.jsonl"},
        {"source": "parquet", "files": f"{tmp_path}/repository/*.parquet"},
        {"source": "hub", "files": None, "datasets": {"one": node, "removed": None}},
    ]
    first, *others = [opened(tmp_path, **arm) for arm in arms]
    for other in others:
        for part in ("train", "val"):
            assert (token_file(first, part) == token_file(other, part)).all()
    # The tokenizer of a source of unknown size is trained on its beginning: here, on all of it.
    assert {data.record["train"]["documents"] for data in (first, *others)} == {
        first.record["train"]["documents"]
    }


def test_a_mixture_follows_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.1)  # 5 s
    nodes = {}
    for name, column, weight in (("prose", "text", 7), ("code", "content", 3)):
        (tmp_path / name).mkdir()
        texts = [f"{name} {number} " + "x" * 50 for number in range(1000)]
        Dataset.from_dict({column: texts}).to_parquet(tmp_path / name / "train.parquet")
        nodes[name] = {"path": str(tmp_path / name), "text_column": column, "weight": weight}
    data = opened(tmp_path, source="hub", files=None, datasets=nodes, val_fraction=0.01)
    text = data.tokenizer.decode(token_file(data, "train"))
    prose, code = text.count("prose "), text.count("code ")
    assert prose > 900  # it ends with the first part that ends
    assert 0.65 < prose / (prose + code) < 0.75
    assert max(map(int, re.findall(r"prose (\d+)", text))) > 980


def test_separate_validation_files_are_the_validation_part(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(make_text(3000, 1))
    (tmp_path / "b.txt").write_text(make_text(1000, 2))
    data = opened(tmp_path, files=f"{tmp_path}/*.txt", val_files=[f"{tmp_path}/b.txt"])
    for part, name in (("train", "a.txt"), ("val", "b.txt")):
        decoded = data.tokenizer.decode(token_file(data, part)[:-1])
        assert decoded == (tmp_path / name).read_text()


def test_max_tokens_is_kept_to_the_token(tmp_path: Path) -> None:
    data = opened(tmp_path, make_text(5000), max_tokens=333)
    assert len(token_file(data, "train")) == data.record["train"]["tokens"] == 333
    whole = opened(tmp_path)
    assert (token_file(whole, "train")[:333] == token_file(data, "train")).all()


@pytest.mark.parametrize("source", ["text", "jsonl"])
@pytest.mark.parametrize("has_val_files", [False, True])
def test_a_limit_on_training_tokens_leaves_held_out_text_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, has_val_files: bool
) -> None:
    monkeypatch.setattr(token_cache, "BATCH_CHARS", 500)
    for name, seed in (("a", 1), ("b", 2)):
        texts = [make_text(200, seed * 100 + number) for number in range(40)]
        lines = [json.dumps({"text": text}) if source == "jsonl" else text for text in texts]
        (tmp_path / f"{name}.{source}").write_text("\n".join(lines))
    settings: dict[str, Any] = {"source": source, "files": f"{tmp_path}/*.{source}"}
    if has_val_files:
        settings["val_files"] = f"{tmp_path}/b.{source}"
    whole, limited = opened(tmp_path, **settings), opened(tmp_path, **settings, max_tokens=64)
    assert len(token_file(limited, "train")) == 64
    assert token_file(limited, "val").tolist() == token_file(whole, "val").tolist()
    # Before, a limit cut both parts: caches of that time are not read again.
    assert limited.folder != whole.folder


def test_a_stream_is_read_no_further_than_the_last_training_token(tmp_path: Path) -> None:
    pieces = (
        text_sources.Piece(make_text(300, number), True, held_out=number % 4 == 3)
        for number in itertools.count()
    )
    tokenizer = opened(tmp_path, make_text(3000)).tokenizer
    source = text_sources.TextSource({}, lambda: pieces, size=None, streamed=True)
    (tmp_path / "tokens").mkdir()
    record = token_cache.write_tokens(source, tokenizer, tmp_path / "tokens", 1000)
    assert record["train"]["tokens"] == 1000
    assert record["val"]["tokens"] > 0


def test_files_are_found_by_their_names_before_patterns(tmp_path: Path) -> None:
    text = make_text(3000)
    for name in ("notes [v2].txt", "notes 2.txt", "run[1]/a::b/c*.txt", "run[1]/a::b/c1.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name + text)
        data = opened(tmp_path, files=f"{tmp_path}/{name}")
        assert data.tokenizer.decode(token_file(data, "train")).startswith(name)
    for pattern, found in (("notes [2v].txt", ["notes 2.txt"]), ("run[1]/**/*1.txt", ["c1.txt"])):
        files = find_files(f"{tmp_path}/{pattern}", "files")
        assert [file.name for file in files] == found


def test_parquet_is_read_from_any_folder(tmp_path: Path) -> None:
    texts = [make_text(300, seed) for seed in range(60)]
    Dataset.from_dict({"text": texts}).to_parquet(tmp_path / "x.parquet")
    found = set()
    for name in ("plain", "run[1]", "a::b", "c*"):
        (tmp_path / name).mkdir()
        shutil.copy(tmp_path / "x.parquet", tmp_path / name)
        files = f"{tmp_path}/{name}/x.parquet"
        data = opened(tmp_path, source="parquet", files=files)
        found.add(token_file(data, "train").tobytes())
    assert len(found) == 1


def test_a_byte_order_mark_and_compression_are_no_part_of_the_text(tmp_path: Path) -> None:
    text = make_text(6000)
    lines = "\n".join(json.dumps({"text": line}) for line in text.splitlines())
    for source, content in (("text", text.encode()), ("jsonl", lines.encode())):
        tokens = []
        for name, written in (
            ("plain", content),
            ("mark", b"\xef\xbb\xbf" + content),
            ("x.gz", gzip.compress(b"\xef\xbb\xbf" + content, mtime=0)),
            ("x.bz2", bz2.compress(content)),
            ("x.xz", lzma.compress(content)),
        ):
            (tmp_path / name).write_bytes(written)
            data = opened(tmp_path, source=source, files=f"{tmp_path}/{name}")
            parts = [token_file(data, part)[:-1] for part in ("train", "val")]
            tokens.append([str(data.tokenizer.decode(part)) for part in parts])
        if source == "text":  # the mark's three bytes move the border by a line at most
            assert {"".join(parts) for parts in tokens} == {text}
        else:
            assert tokens == tokens[:1] * len(tokens)


def test_a_file_that_is_held_out_is_not_trained_on_by_another_path(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(make_text(3000, 1))
    (tmp_path / "b.txt").write_text(make_text(1000, 2))
    (tmp_path / "link.txt").symlink_to("b.txt")
    (tmp_path / "sub").mkdir()
    data = opened(tmp_path, files=f"{tmp_path}/*.txt", val_files=f"{tmp_path}/sub/../b.txt")
    whole = data.tokenizer.decode(token_file(data, "train")[:-1])
    assert whole == (tmp_path / "a.txt").read_text()


def test_docstrings_are_read_without_importing_a_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "package"
    (package / "tests").mkdir(parents=True)
    (package / "tests" / "skipped.py").write_text('"""Not read."""')
    (package / "a.py").write_text(
        '"""Module."""\nraise SystemExit("imported!")\n'
        'class A:\n    """Class."""\n'
        '    async def f(self):\n        r"""Method \\d.\n\n        More."""\n'
    )
    (package / "b.py").write_text('def f():\n    "Class."\ndef g():\n    "Half \\ud800 a pair."\n')
    (package / "c.py").write_text("this is not Python")
    (package / "topics.py").write_text(f'topics = {{"key": {"Long prose. " * 30!r}}}')
    monkeypatch.setattr(text_sources, "package_folders", lambda: [package])
    settings = {"source": "docstrings", "files": None, "val_fraction": 0.001, "context_length": 2}
    source = text_sources.open_source(make(tmp_path, **settings).settings)
    assert [piece.text for piece in source.pieces()] == [
        "Module.\n\nClass.\n\nMethod \\d.\n\nMore.\n",
        "Half  a pair.\n",  # "Class." stood before
        ("Long prose. " * 30).strip() + "\n",
    ]
    (package / "b.py").write_text('"""Another version."""')
    assert text_sources.open_source(make(tmp_path, **settings).settings).identity != source.identity


# --- the tokenizer -----------------------------------------------------------------------------


def test_the_trained_tokenizer_reads_training_text_only_and_is_deterministic(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.txt").write_text(make_text(3000))
    (tmp_path / "b.txt").write_text("zyxwv " * 2000)
    settings = {"files": f"{tmp_path}/a.txt", "val_files": f"{tmp_path}/b.txt"}
    data = opened(tmp_path, **settings)
    other = opened(tmp_path, **settings, cache_dir=str(tmp_path / "other"))
    assert len(data.tokenizer) == data.vocab_size == 300
    assert data.tokenizer.get_vocab() == other.tokenizer.get_vocab()
    assert not [token for token in data.tokenizer.get_vocab() if "zy" in token]


def test_the_tokenizer_reads_a_bounded_sample_from_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_sources, "PIECE_BYTES", 100)
    read: list[str] = []

    class Recorder:
        def __init__(self, *_: object) -> None: ...

        def train_from_iterator(self, sample: Iterator[str], _: object) -> None:
            read.extend(sample)

    monkeypatch.setattr(token_cache, "Tokenizer", Recorder)
    monkeypatch.setattr(token_cache, "PreTrainedTokenizerFast", lambda **_: None)
    text = "".join(f"{number:09}\n" for number in range(10_000))
    settings = make(tmp_path, text).settings
    token_cache.train_tokenizer(text_sources.open_source(settings), 300, 20_000)
    assert 15_000 < sum(map(len, read)) < 20_200
    starts = [int(piece[:9]) for piece in read]
    assert starts[0] < 100
    assert starts[-1] > 8_500
    assert max(np.diff(starts)) < 100
    read.clear()
    token_cache.train_tokenizer(text_sources.open_source(settings), 300, 10**9)
    assert "".join(read) == text[:90_000]


def test_a_pretrained_tokenizer_is_taken_from_its_folder(tmp_path: Path) -> None:
    trained = opened(tmp_path, make_text(3000), vocab_size=270)
    assert trained.folder is not None
    own = tmp_path / "tokenizer"
    trained.tokenizer.save_pretrained(own)
    data = opened(tmp_path, tokenizer={"pretrained": str(own)}, vocab_size=512)
    assert data.vocab_size == 512
    assert data.tokenizer.get_vocab() == trained.tokenizer.get_vocab()
    assert (token_file(data, "train") == token_file(trained, "train")).all()
    # Warm or cold, a model with too few embedding rows is refused.
    for cache in ("cache", "new"):
        small = make(
            tmp_path,
            tokenizer={"pretrained": str(own)},
            vocab_size=269,
            cache_dir=str(tmp_path / cache),
        )
        with pytest.raises(ValueError, match=r"datamodule\.vocab_size=269.*270"):
            small.setup("fit")
    assert not list((tmp_path / "new").glob("text-*[!k]"))


@pytest.mark.parametrize("piece_bytes", [64, 1 << 16])
def test_a_document_begins_as_the_tokenizer_lets_texts_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece_bytes: int
) -> None:
    """As Llama's does, and `task=generate`; once, also where a document is read in parts."""
    monkeypatch.setattr(text_sources, "PIECE_BYTES", piece_bytes)
    trained = opened(tmp_path, make_text(3000), vocab_size=270)
    tokenizer, own = trained.tokenizer, tmp_path / "tokenizer"
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    begin = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", begin)]
    )
    tokenizer.save_pretrained(own)
    data = opened(tmp_path, tokenizer={"pretrained": str(own)}, vocab_size=512)
    for part in ("train", "val"):
        assert token_file(data, part).tolist() == [begin, *token_file(trained, part)]


def test_large_vocabularies_take_four_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow = opened(tmp_path, make_text(2000))
    monkeypatch.setattr(token_cache, "count_token_ids", lambda _: 70_000)
    wide = opened(tmp_path, cache_dir=str(tmp_path / "wide"))
    assert (narrow.record["dtype"], wide.record["dtype"]) == ("uint16", "uint32")
    assert rows(narrow.val_dataloader()) == rows(wide.val_dataloader())


# --- the cache ---------------------------------------------------------------------------------


def test_the_key_follows_content_and_settings(tmp_path: Path) -> None:
    text = make_text(3000)
    first = opened(tmp_path, text)
    (tmp_path / "moved.txt").write_text(text)
    same = [
        {"files": f"{tmp_path}/moved.txt"},
        {"context_length": 16},
        {"batch_size": 2},
        {"seed": 5},
    ]
    other = [{"vocab_size": 290}, {"val_fraction": 0.2}, {"max_tokens": 100}]
    other += [{"tokenizer": {"sample_chars": 500}}]
    assert {opened(tmp_path, **settings).folder for settings in same} == {first.folder}
    assert len({opened(tmp_path, **settings).folder for settings in [{}, *other]}) == 5
    # The same size and the same times, but one other letter.
    file = tmp_path / "text.txt"
    times = file.stat()
    file.write_bytes(text.replace("model", "modem", 1).encode())
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    changed = opened(tmp_path)
    assert changed.folder != first.folder
    assert "modem" in changed.tokenizer.decode(token_file(changed, "train"))


def test_a_second_run_tokenises_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = opened(tmp_path, make_text(3000))
    monkeypatch.setattr(language_modeling, "write_tokens", None)
    second = opened(tmp_path)
    assert second.describe() == first.describe()
    assert rows(second.train_dataloader()) == rows(first.train_dataloader())


def _prepare_with_others(folder: Path, barrier: Any, built: Any) -> None:
    data = make(folder)
    build = data._build

    def counted(*arguments: Any) -> dict[str, Any]:
        built.put(os.getpid())
        time.sleep(0.3)  # the other one is sure to arrive
        return build(*arguments)

    setattr(data, "_build", counted)  # noqa: B010 - a method, which mypy would not have replaced
    barrier.wait()
    data.setup("fit")


def test_of_two_builders_at_once_one_builds_and_the_other_waits(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(make_text(20_000))
    barrier, built = FORK.Barrier(2), FORK.Queue()
    arguments = (tmp_path, barrier, built)
    processes = [FORK.Process(target=_prepare_with_others, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert built.get(timeout=5) in {process.pid for process in processes}
    assert built.empty()
    folders = [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    assert len(folders) == 1
    data = opened(tmp_path)
    assert data.folder == folders[0]
    whole = "".join(data.tokenizer.decode(token_file(data, p)[:-1]) for p in ("train", "val"))
    assert whole == (tmp_path / "text.txt").read_text()


def _prepare(folder: Path) -> None:
    make(folder).prepare_data()


def test_a_killed_build_is_never_taken_for_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_sources, "PIECE_BYTES", 1000)
    monkeypatch.setattr(token_cache, "BATCH_CHARS", 1000)
    (tmp_path / "text.txt").write_text(make_text(1_000_000))
    process = FORK.Process(target=_prepare, args=(tmp_path,))
    process.start()
    started: list[Path] = []
    while not started:
        assert process.is_alive()
        started = [f for f in tmp_path.glob("cache/*.tmp/train.bin") if f.stat().st_size > 1000]
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    half = started[0].stat().st_size
    assert half > 0
    data = opened(tmp_path)
    assert data.folder is not None
    assert (data.folder / "train.bin").stat().st_size > half
    assert not list(tmp_path.glob("cache/*.tmp"))
    whole = "".join(data.tokenizer.decode(token_file(data, p)[:-1]) for p in ("train", "val"))
    assert whole == (tmp_path / "text.txt").read_text()


def test_a_damaged_cache_is_made_anew(tmp_path: Path) -> None:
    data = opened(tmp_path, make_text(3000))
    assert data.folder is not None
    tokens = token_file(data, "train")
    for damage in (
        lambda folder: (folder / "train.bin").write_bytes(b"xx"),
        lambda folder: (folder / "tokenizer" / "tokenizer.json").unlink(),
        lambda folder: shutil.rmtree(folder / "tokenizer"),
        lambda folder: (folder / "finished.json").unlink(),
        lambda folder: (folder / "finished.json").write_text("{"),
    ):
        damage(data.folder)
        assert read_record(data.folder) is None
        assert (token_file(opened(tmp_path), "train") == tokens).all()


def _peak_memory(folder: Path, characters: int, peaks: Any) -> None:
    folder.mkdir()
    block = make_text(500_000)
    with (folder / "text.txt").open("w") as file:
        for number in range(characters // 500_000):
            file.write(f"{number}\n{block}")
    # sample_chars: the sample's own memory is bounded, but not reached by the smaller file.
    opened(folder, tokenizer={"sample_chars": 100_000})
    peaks.put(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    peaks = []
    for megabytes in (2, 8):
        queue = FORK.Queue()
        arguments = (tmp_path / str(megabytes), megabytes * 1_000_000, queue)
        process = FORK.Process(target=_peak_memory, args=arguments)
        process.start()
        peaks.append(queue.get(timeout=60))
        process.join()
    # Held as text or as a list of tokens, 6 MB more would take some 15 to 50 MB.
    assert peaks[1] - peaks[0] < 8


# --- order -------------------------------------------------------------------------------------


def test_each_epoch_is_another_permutation() -> None:
    orders: list[list[int]] = []
    for count in [*range(1, 70), 1000, 4097]:
        orders = [permute(np.arange(count), count, 1, epoch).tolist() for epoch in range(3)]
        for order in orders:
            assert sorted(order) == list(range(count))
    assert len({tuple(order) for order in orders}) == 3
    assert permute(np.arange(4097), 4097, 2, 0).tolist() not in orders
    # Every block is as likely in one place as in another: chi-squared over 2,000 epochs.
    counts = np.zeros((20, 20))
    for epoch in range(2000):
        counts[np.arange(20), permute(np.arange(20), 20, 0, epoch)] += 1
    assert ((counts - 100) ** 2 / 100).sum() / 380 < 1.25  # 3.4 standard deviations above 1


def test_the_order_of_a_huge_corpus_costs_nothing() -> None:
    count = 10**12
    started = time.perf_counter()
    batch = permute(np.arange(count - 1000, count), count, 0, 7)
    assert time.perf_counter() - started < 0.2
    assert len(set(batch.tolist())) == 1000
    assert (batch < count).all()
    assert batch.std() > count / 5  # from everywhere


def test_ranks_share_the_batches_of_one_large_process() -> None:
    for number in (0, 5, 16, 17, 40):
        shares = [train_batch(number, 103, 3, 9, rank, 2).tolist() for rank in range(2)]
        assert shares[0] + shares[1] == train_batch(number, 103, 6, 9).tolist()
    epoch = [block for number in range(17) for block in train_batch(number, 103, 6, 9)]
    assert len(set(epoch)) == 102  # one of 103 is left out, another one in each epoch


def test_the_order_depends_on_the_seed_and_on_nothing_else(tmp_path: Path) -> None:
    torch.manual_seed(1)
    first = rows(opened(tmp_path, make_text(3000)).train_dataloader())
    torch.manual_seed(2)
    state = torch.get_rng_state()
    for workers in (0, 2):
        data = opened(tmp_path, num_workers=workers)
        assert rows(data.train_dataloader()) == first
        assert rows(data.val_dataloader())
    assert torch.equal(torch.get_rng_state(), state)  # else dropout would depend on the loader
    assert rows(opened(tmp_path, seed=1).train_dataloader()) != first


def test_validation_is_the_same_blocks_each_time(tmp_path: Path) -> None:
    data = opened(tmp_path, make_text(5100), batch_size=3)
    tokens = token_file(data, "val")
    in_file = tokens[: len(tokens) // 8 * 8].reshape(-1, 8).tolist()
    assert len(in_file) % 3 > 0  # the last batch is a smaller one
    assert rows(data.val_dataloader()) == rows(data.val_dataloader()) == in_file
    assert len(data.val_dataloader()) == -(-len(in_file) // 3)
    assert rows(opened(tmp_path, batch_size=4, seed=3).val_dataloader()) == in_file
    limited = opened(tmp_path, batch_size=3, val_batches=2)
    assert rows(limited.val_dataloader()) == in_file[:6]
    assert rows(limited.test_dataloader()) == in_file


def test_it_can_be_sent_to_a_spawned_process(tmp_path: Path) -> None:
    data = opened(tmp_path, make_text(3000))
    expected = rows(data.val_dataloader())
    sent = pickle.dumps(data)
    assert len(sent) < 10_000  # the settings, not the tokens
    assert rows(pickle.loads(sent).val_dataloader()) == expected


# --- resuming under Lightning ------------------------------------------------------------------


class Killed(Exception):
    """The process is gone."""


class Recorder(pl.LightningModule):
    """Writes down each batch it is trained on; dies and leaves a checkpoint where it is told.

    Args:
        seen: Takes the batches.
        die: Where: "batch end", "step", "epoch end", "validation", or "never".
        at: After how many batches, of all epochs (for the last two: of the epoch that ends then).
        file: The checkpoint.
    """

    def __init__(self, seen: list[Any], die: str = "never", at: int = -1, file: str = "") -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen, self.die, self.at, self.file = seen, die, at, file
        self.trained = 0

    def stop(self, where: str) -> None:
        if self.die == where and self.trained == self.at:
            self.trainer.save_checkpoint(self.file)
            raise Killed

    def training_step(self, batch: dict[str, torch.Tensor], _: int) -> torch.Tensor:
        self.stop("step")
        self.trained += 1
        self.seen.append(batch["input_ids"].tolist())
        return self.weight * batch["input_ids"].float().mean()

    def on_train_batch_end(self, *_: Any) -> None:
        self.stop("batch end")

    def on_train_epoch_end(self) -> None:
        self.stop("epoch end")

    def validation_step(self, batch: dict[str, torch.Tensor], _: int) -> None: ...

    def on_validation_epoch_end(self) -> None:
        self.stop("validation")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(module: Recorder, data: LanguageModelingDataModule, **trainer: Any) -> pl.Trainer:
    settings = {
        "max_epochs": 3,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 1,
    }
    checkpoint = trainer.pop("ckpt_path", None)
    runner = pl.Trainer(**settings | trainer)
    runner.fit(module, datamodule=data, ckpt_path=checkpoint)
    return runner


BY_STEPS = {"max_epochs": -1, "check_val_every_n_epoch": None, "val_check_interval": 4}


@pytest.mark.parametrize(
    ("trainer", "said"),
    [
        ({"max_steps": 20}, ""),
        ({"max_steps": 28}, "reads its text 6 times. "),
        ({"max_steps": 28, "max_epochs": 3}, ""),
        ({"max_steps": 14, "accumulate_grad_batches": 2}, "trainer.max_steps=12 reads it 4 times"),
    ],
)
def test_a_text_that_is_read_very_often_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], trainer: dict[str, int], said: str
) -> None:
    data = make(tmp_path, make_text(3000), batch_size=10, max_tokens=450)  # 5 batches
    fit(Recorder([]), data, **BY_STEPS | trainer)
    printed = capsys.readouterr().out
    assert said in printed
    assert ("reads its text" in printed) == bool(said)


@pytest.mark.parametrize(
    ("workers", "die", "at", "trainer"),
    [
        (0, "batch end", 3, {}),
        pytest.param(2, "batch end", 3, {}, marks=pytest.mark.slow),
        (0, "batch end", 5, {}),
        (0, "batch end", 8, {}),
        (0, "step", 3, {}),
        (0, "step", 5, {}),
        (0, "epoch end", 5, {}),
        (0, "validation", 5, {}),
        (0, "validation", 8, BY_STEPS | {"max_steps": 15}),
        (0, "batch end", 8, BY_STEPS | {"max_steps": 15}),
        (2, "batch end", 8, BY_STEPS | {"max_steps": 15}),
        (0, "batch end", 10, BY_STEPS | {"max_steps": 15}),
        (0, "epoch end", 5, BY_STEPS | {"max_steps": 15}),
        (0, "batch end", 4, {"accumulate_grad_batches": 2}),
        pytest.param(2, "batch end", 7, {"accumulate_grad_batches": 2}, marks=pytest.mark.slow),
        (0, "batch end", 7, BY_STEPS | {"max_steps": 9, "accumulate_grad_batches": 2}),
        (0, "batch end", 7, {"limit_train_batches": 4}),
    ],
)
def test_interrupted_and_resumed_is_uninterrupted(
    tmp_path: Path, workers: int, die: str, at: int, trainer: dict[str, Any]
) -> None:
    """Every batch of three epochs, once each and in order, wherever the run was cut in two."""
    settings = {"num_workers": workers, "batch_size": 10, "max_tokens": 450}
    reference: list[Any] = []
    data = opened(tmp_path, make_text(3000), **settings)
    assert len(data.train_dataloader()) == 5
    whole = Recorder(reference)
    fit(whole, data, **trainer)
    assert len(reference) >= 12
    # A run's batches are the numbered sequence, whatever Lightning calls an epoch.
    blocks = data.blocks["train"]
    for number, batch in enumerate(reference):
        expected = blocks[train_batch(number, len(blocks), 10, 0)]["input_ids"].tolist()
        assert batch == expected

    seen: list[Any] = []
    file = str(tmp_path / "last.ckpt")
    with pytest.raises(Killed):
        fit(Recorder(seen, die, at, file), make(tmp_path, **settings), **trainer)
    assert len(seen) == at
    resumed = Recorder(seen)
    fit(resumed, make(tmp_path, **settings), **trainer, ckpt_path=file)
    assert seen == reference
    if die != "step":  # its gradients may have stood half-way in an accumulation
        assert resumed.weight.item() == whole.weight.item()


@pytest.mark.parametrize(("die", "at"), [("batch end", 3), ("epoch end", 5)])
def test_going_on_with_other_batches_is_refused(tmp_path: Path, die: str, at: int) -> None:
    settings = {"batch_size": 10, "max_tokens": 450}
    file = str(tmp_path / "last.ckpt")
    with pytest.raises(Killed):
        fit(Recorder([], die, at, file), make(tmp_path, make_text(3000), **settings))
    for setting, value in (("batch_size", 8), ("seed", 1), ("context_length", 4)):
        changed = settings | {setting: value}
        with pytest.raises(ValueError, match=rf"datamodule\.{setting}.*resume=never"):
            fit(Recorder([]), make(tmp_path, **changed), ckpt_path=file)
        # Validating the checkpoint on other batches is nobody's mistake.
        trainer = pl.Trainer(logger=False, enable_progress_bar=False, accelerator="cpu")
        trainer.validate(Recorder([]), datamodule=make(tmp_path, **changed), ckpt_path=file)


def test_overfitting_repeats_the_same_batches(tmp_path: Path) -> None:
    seen: list[Any] = []
    fit(Recorder(seen), make(tmp_path, make_text(5000)), overfit_batches=2)
    assert seen == seen[:2] * 3
    assert seen[0] != seen[1]


class RankRecorder(Recorder):
    """Writes each rank's batches to a file of its own."""

    def __init__(self, folder: Path, die: str = "never", at: int = -1, file: str = "") -> None:
        super().__init__([], die, at, file)
        self.folder = folder

    def training_step(self, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
        with (self.folder / f"{self.global_rank}.train").open("a") as file:
            file.write(json.dumps(batch["input_ids"].tolist()) + "\n")
        return super().training_step(batch, index)

    def validation_step(self, batch: dict[str, torch.Tensor], _: int) -> None:
        with (self.folder / f"{self.global_rank}.val").open("a") as file:
            file.write(json.dumps(batch["input_ids"].tolist()) + "\n")


def test_two_processes_train_on_the_batches_of_one(tmp_path: Path) -> None:
    """Real DDP: equal counts, disjoint shares, nothing resampled by Lightning, and a resumption."""
    settings = {"batch_size": 3, "max_tokens": 300}
    ddp = {"devices": 2, "strategy": "ddp_fork", "max_epochs": 2, "num_sanity_val_steps": 0}
    data = opened(tmp_path, make_text(3000), **settings)
    file = str(tmp_path / "last.ckpt")
    with pytest.raises(ProcessRaisedException, match="Killed"):
        fit(RankRecorder(tmp_path, "batch end", 4, file), make(tmp_path, **settings), **ddp)
    fit(RankRecorder(tmp_path), make(tmp_path, **settings), **ddp, ckpt_path=file)

    def seen(name: str) -> list[list[list[int]]]:
        return [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]

    alone = opened(tmp_path, **settings | {"batch_size": 6}).train_dataloader()
    expected = [batch["input_ids"].tolist() for _ in range(2) for batch in alone]
    shares = zip(seen("0.train"), seen("1.train"), strict=True)
    assert [zero + one for zero, one in shares] == expected
    validated = [row for name in ("0.val", "1.val") for batch in seen(name) for row in batch]
    held_out = rows(data.val_dataloader())
    assert sorted(validated) == sorted(held_out[: len(held_out) // 2 * 2] * 2)


# --- mistakes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"context_length": 1},
            r"datamodule\.context_length=1: must be .* equal to 2",
        ),
        ({"context_length": "8"}, r"datamodule\.context_length='8': must be a valid integer"),
        ({"batch_size": 0}, r"datamodule\.batch_size=0: must be greater than or equal to 1"),
        ({"batch_size": True}, r"datamodule\.batch_size=True"),
        ({"seed": -1}, r"datamodule\.seed=-1"),
        ({"num_workers": -1}, r"datamodule\.num_workers=-1"),
        ({"max_tokens": 0}, r"datamodule\.max_tokens=0"),
        ({"val_batches": 0}, r"datamodule\.val_batches=0"),
        ({"val_fraction": 0.0}, r"datamodule\.val_fraction=0\.0: .* between 0 and 1"),
        ({"val_fraction": 1.0}, r"datamodule\.val_fraction=1\.0"),
        ({"vocab_size": 256}, r"datamodule\.vocab_size=256: .* 257"),
        ({"tokenizer": {"pretrain": "x"}}, r"datamodule\.tokenizer\.pretrain: no such key"),
        ({"tokenizer": {"sample_chars": 0}}, r"datamodule\.tokenizer\.sample_chars=0"),
        ({"source": "txt"}, r"datamodule\.source='txt': must be 'docstrings', .*'text'"),
        ({"source": "docstrings"}, r"datamodule\.files is not read by source=docstrings"),
        ({"files": None}, r"datamodule\.files: source=text needs training files"),
        ({"files": "*.none"}, r"datamodule\.files: '\*\.none' matches no file \(looked in /"),
        ({"files": "."}, r"datamodule\.files: '\.' matches only folders"),
        ({"val_files": "nowhere"}, r"datamodule\.val_files: 'nowhere' matches no file"),
        ({"val_files": "text.txt", "files": "*.txt"}, r"training files that are not held out"),
        ({"source": "hub", "files": None}, r"datamodule\.datasets: .*at least one data set"),
        (
            {"old_domain": {"source": "code", "context_length": 8}},
            r"datamodule\.old_domain\.context_length: no such key",
        ),
        (
            {"old_domain": {"source": "text", "files": None}},
            r"datamodule\.old_domain\.files: source=text needs",
        ),
        ({"datasets": {"a": {"path": "x"}}}, r"datamodule\.datasets is read by source=hub only"),
        (
            {"source": "hub", "files": None, "datasets": {"a": {"path": "x", "splt": "y"}}},
            r"datamodule\.datasets\.a\.splt: no such key",
        ),
        (
            {"source": "hub", "files": None, "datasets": {"a": {"split": "train"}}},
            r"datamodule\.datasets\.a\.path: must be given",
        ),
        (
            {"source": "hub", "files": None, "datasets": {"a": {"path": "x", "weight": 0}}},
            r"datamodule\.datasets\.a\.weight=0",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], message: str
) -> None:
    (tmp_path / "text.txt").write_text("text")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        LanguageModelingDataModule(**{"source": "text", "files": "text.txt"} | settings)
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


def test_the_checks_before_the_start_import_nothing_heavy() -> None:
    """The runner calls them to refuse a mistake in well under five seconds."""
    text = (LanguageModelingDataModule, InstructionDataModule)
    names = [m.check.partition(":")[0] for m in (*text, CrossModalDataModule, MultiTurnSql)]
    code = (
        f"import sys, {', '.join(names)};"
        "assert not {'torch', 'pytorch_lightning', 'transformers', 'datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


BAD_FILES: list[tuple[str, bytes, str]] = [
    ("a.txt", b"", r"a\.txt is empty"),
    ("a.txt", b"fine\n" * 30_000 + b"\xe9t\xe9", r"a\.txt is not UTF-8 at byte 150000 \(0xe9"),
    ("a.jsonl", b'{"text": "a"}\n\n{"text": \n', r"a\.jsonl:3 is not JSON: .*column"),
    ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', r"a\.jsonl:2 is not UTF-8 at byte 24"),
    (
        "a.jsonl",
        b'{"body": "a", "x": 1}\n',
        r"a\.jsonl:1 has no 'text' \(it has: body, x\); set datamodule\.text_column",
    ),
    ("a.jsonl", b'{"text": 5}\n', r"a\.jsonl:1: 'text' is no text but 5; leave the row out"),
    ("a.jsonl", b'{"text": null}\n', r"a\.jsonl:1: 'text' is no text but None"),
    ("a.jsonl", b'"text"\n', r"a\.jsonl:1 has no 'text'"),
    ("a.jsonl", b'{"text": "\\ud800"}\n', r"a\.jsonl:1: 'text' holds half a surrogate pair"),
    ("a.parquet", b"not parquet", r"a\.parquet cannot be read as parquet"),
    (
        "a.jsonl",
        b'{"text": "a", "text": "b"}\n',
        r"a\.jsonl:1 .* the key 'text' stands there twice",
    ),
    ("a.jsonl", b'{"text": ' + b"[" * 99_999, r"a\.jsonl:1 cannot be read: .*recursion"),
    ("a.txt", b"\xef\xbb\xbf", r"a\.txt has no text"),
    ("a.txt", "text".encode("utf-16"), r"a\.txt is UTF-16; convert it: iconv -f UTF-16"),
    ("a.txt", "text".encode("utf-32"), r"a\.txt is UTF-32; convert it: iconv -f UTF-32"),
    ("a.jsonl", "text\n".encode("utf-16"), r"a\.jsonl:1 is UTF-16; convert it: iconv -f UTF-16"),
    ("a.txt", b"\x28\xb5\x2f\xfd\x04", r"a\.txt is compressed by zstd; unpack it"),
    ("a.txt", b"PK\x03\x04\x9c", r"a\.txt is a zip archive"),
    (
        "a.txt.gz",
        gzip.compress(b"text\n" * 9999, mtime=0)[:50],
        r"a\.txt\.gz is damaged or cut off",
    ),
    ("a.txt.gz", b"plain text", r"a\.txt\.gz is damaged or cut off: Not a gzipped file"),
    ("a.txt.gz", gzip.compress(b"", mtime=0), r"a\.txt\.gz has no text"),
    ("a.jsonl.xz", b"plain text", r"a\.jsonl\.xz is damaged or cut off"),
    (
        "a.txt",
        b"too short",
        r"the train part has \d+ tokens, too few for 4 blocks.*\(32 in all\).*batch_size",
    ),
    (
        "a.txt",
        b"long enough\n" * 50,
        r"the val part has \d+ tokens, too few.*val_fraction \(up\), or name datamodule.val_files$",
    ),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES)
def test_text_that_cannot_be_read_is_refused_and_leaves_nothing(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    source = "jsonl" if "jsonl" in name else name[2:].replace("txt", "text").removesuffix(".gz")
    settings = {"source": source, "files": str(file), "val_fraction": 0.01}
    with pytest.raises(ValueError, match=message):
        make(tmp_path, **settings).setup("fit")
    for left in tmp_path.glob("cache/*"):  # a lock file, or a whole cache of too little text
        assert left.suffix == ".lock" or read_record(left) is not None


@pytest.mark.parametrize("source", ["text", "jsonl"])
def test_a_fault_is_reported_under_the_key_that_names_its_file(source: str, tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(b"\xe9\n")
    line = json.dumps({"text": "good"}) if source == "jsonl" else "good"
    (tmp_path / "good").write_text(f"{line}\n" * 200)
    bad, good = str(tmp_path / "bad"), str(tmp_path / "good")
    files = {"source": source, "files": good}
    for settings, key in (
        ({"files": bad}, "files"),
        ({"val_files": bad}, "val_files"),
        ({"old_domain": {"source": source, "files": bad}}, r"old_domain\.files"),
        ({"old_domain": {**files, "val_files": bad}}, r"old_domain\.val_files"),
    ):
        data = make(tmp_path, **{**files, **settings})
        for read in (data.check_files, data.prepare_data):
            with pytest.raises(ValueError, match=rf"^datamodule\.{key}: .*bad(:1)? is not UTF-8"):
                read()
    short = {"source": "text", "files": bad}
    (tmp_path / "bad").write_text("short")
    with pytest.raises(ValueError, match=r"^datamodule\.old_domain: the train part has"):
        make(tmp_path, **files, old_domain=short).check_files()


def test_an_old_domain_has_the_tokens_of_the_text_that_is_trained_on(tmp_path: Path) -> None:
    """Its loss is of one model, whose tokenizer may have been trained here."""
    (tmp_path / "old.txt").write_text("0123456789 " * 300)
    old = {"source": "text", "files": str(tmp_path / "old.txt")}
    data = make(tmp_path, make_text(3000), old_domain=old)
    data.setup("fit")
    assert data.old_domain is not None
    assert data.old_domain.tokenizer.get_vocab() == data.tokenizer.get_vocab()
    assert data.describe()["old_domain"]["val_tokens"] > 0


def test_too_few_tokens_for_a_limit_name_the_limit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has 20 tokens, .* datamodule\.max_tokens=20 \(up\)"):
        opened(tmp_path, make_text(3000), max_tokens=20)


def test_advice_names_no_key_that_nothing_reads(tmp_path: Path) -> None:
    (tmp_path / "val.txt").write_text("v")
    with pytest.raises(
        ValueError, match=r"the val part .* change datamodule.context_length \(down\)$"
    ):
        make(tmp_path, make_text(3000), val_files=f"{tmp_path}/val.txt").setup("fit")


def test_own_files_are_looked_at_without_a_tokenizer(tmp_path: Path) -> None:
    """It stands in a model that is yet to be trained: what is wrong is said before."""
    missing = {"tokenizer": {"pretrained": str(tmp_path / "later")}}
    make(tmp_path, make_text(3000), **missing).check_files()
    (tmp_path / "bad.jsonl").write_text('{"text": null}\n')
    for data, words in (
        (make(tmp_path, source="jsonl", files=f"{tmp_path}/bad.jsonl", **missing), "bad.jsonl:1"),
        (make(tmp_path, "short", **missing), r"the train part has \d+ bytes.*too few for 4 blocks"),
    ):
        with pytest.raises(ValueError, match=words):
            data.check_files()
    old = {"source": "jsonl", "files": f"{tmp_path}/bad.jsonl"}
    with pytest.raises(ValueError, match=r"bad\.jsonl:1"):
        make(tmp_path, make_text(3000), old_domain=old, **missing).check_files()
    assert not (tmp_path / "cache").exists()


def test_parquet_without_the_column_is_refused(tmp_path: Path) -> None:
    Dataset.from_dict({"body": ["a"]}).to_parquet(tmp_path / "a.parquet")
    settings = {"source": "parquet", "files": str(tmp_path / "a.parquet")}
    with pytest.raises(ValueError, match=r"a\.parquet, row 0 has no 'text' .it has: body"):
        make(tmp_path, **settings).prepare_data()


@pytest.mark.parametrize("offline", [True, False])
def test_without_a_network_the_hub_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: bool
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody's port
    datasets = {"mine": {"path": "nobody/nothing"}}
    started = time.perf_counter()
    with pytest.raises(
        ValueError, match=r"datamodule\.datasets\.mine: cannot load 'nobody/nothing'"
    ):
        make(tmp_path, source="hub", files=None, datasets=datasets).prepare_data()
    with pytest.raises(
        ValueError, match=r"datamodule\.tokenizer\.pretrained=nobody/nothing: no such"
    ):
        make(tmp_path, make_text(500), tokenizer={"pretrained": "nobody/nothing"}).prepare_data()
    assert time.perf_counter() - started < 5  # the libraries alone would try for a minute
    assert {path.suffix for path in tmp_path.glob("cache/*")} == {".lock"}


# --- configuration -----------------------------------------------------------------------------


def test_every_config_key_is_an_argument(root: Path) -> None:
    files = sorted((root / "conf" / "datamodule").glob("*.yaml"))
    assert {file.stem for file in files} >= {"docstrings", "text", "jsonl", "instruction"}
    for file in files:
        node = base = OmegaConf.load(file)
        while "_target_" not in base:
            base = OmegaConf.load(file.with_name(f"{base.defaults[0]}.yaml"))
        place, _, name = base._target_.rpartition(".")
        target = getattr(importlib.import_module(place), name)
        arguments = target.__init__.__annotations__.keys() - {"return"}
        assert {str(key) for key in node} - {"defaults", "_target_"} <= arguments, file.name


# --- the real thing, slowly --------------------------------------------------------------------


@pytest.mark.slow
def test_the_default_text_is_large_and_ready_within_a_minute(tmp_path: Path) -> None:
    def core_seconds() -> float:  # a busy machine does not lengthen them
        usage = [
            resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        ]
        return sum(used.ru_utime + used.ru_stime for used in usage)

    started = core_seconds()
    data = LanguageModelingDataModule(cache_dir=str(tmp_path))
    data.setup("fit")
    spent = core_seconds() - started
    print(f"prepared in {spent:.1f} core-seconds")  # shown with -rP
    assert spent < 60
    found = data.describe()
    assert found["characters"] > 14_000_000
    assert 0.01 < found["val_tokens"] / found["train_tokens"] < 0.04
    started = time.perf_counter()
    LanguageModelingDataModule(cache_dir=str(tmp_path)).setup("fit")
    assert time.perf_counter() - started < 1


GIGABYTE = """
import resource, sys
from datamodules.language_modeling import LanguageModelingDataModule
data = LanguageModelingDataModule("text", sys.argv[1], cache_dir=sys.argv[2], num_workers=0)
data.setup("fit")
next(iter(data.train_dataloader()))
print(data.record["train"]["characters"] + data.record["val"]["characters"])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_gigabyte_of_text_needs_less_than_two_of_memory(tmp_path: Path, root: Path) -> None:
    block = make_text(1_000_000)
    with (tmp_path / "large.txt").open("w") as file:
        number = 0
        while file.tell() < 1_000_000_000:
            file.write(f"Part {number}.\n{block}")
            number += 1
    done = subprocess.run(
        [sys.executable, "-c", GIGABYTE, str(tmp_path / "large.txt"), str(tmp_path / "cache")],
        cwd=root,
        env=os.environ | {"TOKENIZERS_PARALLELISM": "true"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    characters, peak = map(int, done.stdout.split())
    print(f"peak memory {peak / 1e9:.2f} GB")  # shown with -rP
    assert characters == len((tmp_path / "large.txt").read_text())
    assert peak < 2_000_000_000

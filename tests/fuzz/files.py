"""Files that are damaged or foreign, byte by byte or value by value, and who reads them."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import random
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from tests.forked import REFUSED, Ended, forked

SECONDS = 20.0
SCALARS: tuple[Any, ...] = (None, True, False, 0, -1, 1.5, 10**400, "", "x", "\ud800", [], {}, [[]])
SCALARS += ([None], {"": None}, float("nan"), 2**63)


@dataclass(frozen=True)
class Loader:
    """A file and its reader.

    Args:
        file: Its name.
        write: Writes it, and what belongs to it, into a folder.
        read: Reads what it can of the folder; a ValueError is a refusal.
    """

    file: str
    write: Callable[[Path], object]
    read: Callable[[Path], object]


@dataclass(frozen=True)
class Edit:
    """One change of a content.

    Args:
        kind: What is done.
        place: Where, as a share of the content.
        length: How many bytes.
        other: What comes there.
    """

    kind: str
    place: float
    length: int
    other: bytes

    def apply(self, content: bytes) -> bytes:
        """Return the content with the change."""
        at = int(self.place * len(content))
        rest = content[at + self.length :]
        match self.kind:
            case "cut":
                return content[:at]
            case "delete":
                return content[:at] + rest
            case "zero":
                return content[:at] + bytes(min(self.length, len(content) - at)) + rest
            case "set":
                return content[:at] + self.other + content[at + len(self.other) :]
            case "insert":
                return content[:at] + self.other + content[at:]
            case "repeat":
                return content[: at + self.length] + content[at:]
            case _:
                return self._value(content, at)

    def _value(self, content: bytes, at: int) -> bytes:
        """Put another value into JSON, or into one of its lines."""
        texts, joint = [content.decode(errors="replace")], ""
        try:
            lines = [json.loads(text) for text in texts]
        except ValueError:
            texts, joint = texts[0].splitlines(), "\n"
            try:
                lines = [json.loads(text) for text in texts]
            except ValueError:
                return content
        number = min(int(self.place * len(lines)), len(lines) - 1)
        if not lines:
            return content
        draw = random.Random(at * 131 + self.length)
        node: Any = {"": lines[number]}
        places: list[tuple[Any, Any]] = []
        _walk(node, places)
        parent, key = draw.choice(places)
        parent[key] = draw.choice(SCALARS)
        lines[number] = node[""]
        return joint.join(json.dumps(line) for line in lines).encode()


def _walk(node: Any, places: list[tuple[Any, Any]]) -> None:
    keys = list(node) if isinstance(node, dict) else range(len(node))
    for key in keys:
        places.append((node, key))
        if isinstance(node[key], dict | list):
            _walk(node[key], places)


def damages() -> SearchStrategy[list[Edit]]:
    """One to three changes, or another content altogether."""
    kinds = ("cut", "delete", "zero", "set", "insert", "repeat", "value", "value", "value")
    others = st.sampled_from(
        (
            *(
                b"\xff",
                b"\x00",
                b"\n",
                b"[" * 100_000,
                b'{"a":' * 5000,
                b"\xef\xbb\xbf",
                b"\xff\xfe",
            ),
            *(
                b'"',
                b",",
                b"-",
                b"9" * 5000,
                b"\x80\x02]q\x00.",
                b"PK\x03\x04",
                b"1e999",
                b"\xed\xa0",
            ),
        )
    )
    edit = st.builds(
        Edit,
        st.sampled_from(kinds),
        st.floats(0, 1),
        st.sampled_from((1, 2, 4, 8, 64, 1000)),
        others | st.binary(min_size=1, max_size=4),
    )
    return st.lists(edit, min_size=1, max_size=3)


def damaged(content: bytes, edits: list[Edit]) -> bytes:
    """Return a content with changes, those of values first: they need it whole."""
    for edit in sorted(edits, key=lambda edit: edit.kind != "value"):
        content = edit.apply(content)
    return content


def read(loader: Loader, folder: Path, edits: list[Edit]) -> Ended:
    """Damage a loader's file and read it in a child: 0 read, 2 refused; else there is a fault.

    A refusal must name the file.
    """
    whole = (folder / loader.file).read_bytes()
    (folder / loader.file).write_bytes(damaged(whole, edits))

    def work() -> int:
        import warnings

        warnings.simplefilter("ignore")
        try:
            loader.read(folder)
        except ValueError as error:
            if Path(loader.file).name not in str(error) and str(folder) not in str(error):
                raise AssertionError(f"names no file: {error!r}") from error
            print(error)
            return REFUSED
        return 0

    try:
        return forked(work, SECONDS)
    finally:
        (folder / loader.file).write_bytes(whole)


def foreign(whole: bytes) -> dict[str, bytes]:
    """Return contents that stand in a file's place by mistake, or after an accident.

    Args:
        whole: What should stand there.
    """
    return {
        "nothing": b"",
        "blanks": b" \n\t\n",
        "half": whole[: len(whole) // 2],
        "all but the end": whole[:-1],
        "zeros": bytes(len(whole)),
        "zeros at its end": whole[: len(whole) // 2] + bytes(len(whole) // 2),
        "no UTF-8": b"\xff\xfe\x00" * 9,
        "twice": whole + whole,
        "deep lists": b"[" * 100_000,
        "deep objects": b'{"a":' * 100_000,
        "a long number": b"9" * 10_000,
        "null": b"null",
        "a number": b"7",
        "a text": b'"x"',
        "a list": b"[1, null, [], {}]",
        "an object": b'{"a": 1, "": [null]}',
        "empty objects": b"{}\n{}\n",
        "objects in a list": b'[{"": null}, {}]',
        "yaml": b"a: [1\nb: {\n",
        "a zip file": b"PK\x05\x06" + bytes(18),
        "a picture": b"\x89PNG\r\n\x1a\n" + bytes(20),
        "numpy": b"\x93NUMPY\x01\x00v\x00" + b"{" * 200,
        "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(200),
        "sqlite": b"SQLite format 3\x00" + bytes(200),
    }


# --- what is read --------------------------------------------------------------------------------

TEXTS = [{"text": f"Line {number} of the text, with an ü."} for number in range(30)]
CHATS = [
    {"messages": [{"role": "user", "content": f"{n} + 1?"}, {"role": "assistant", "content": "x"}]}
    for n in range(10)
]
SETTINGS: dict[str, Any] = {
    "files": None,
    "val_files": None,
    "test_files": None,
    "text_column": "text",
    "val_fraction": 0.2,
    "messages_column": "messages",
    "prompt_column": "prompt",
    "answer_column": "answer",
    "streaming": False,
}


def _lines(rows: list[Any]) -> bytes:
    return "\n".join(json.dumps(row) for row in rows).encode()


def _bytes(file: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_bytes(content)


def _text(file: str, source: str) -> Callable[[Path], object]:
    def read_all(folder: Path) -> object:
        from datamodules.text_sources import open_source

        found = open_source({**SETTINGS, "source": source, "files": str(folder / file)})
        return list(found.pieces())

    return read_all


def _parquet(folder: Path) -> None:
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    pq.write_table(pa.Table.from_pylist(TEXTS), folder / "text.parquet")


def _chats(folder: Path) -> object:
    from datamodules.conversations import open_conversations

    settings = {**SETTINGS, "source": "jsonl", "files": str(folder / "chats.jsonl")}

    def refuse(error: ValueError) -> None:
        raise error

    return list(open_conversations(settings).read(refuse))


def _arrays() -> dict[str, Any]:
    labels = np.eye(4, dtype=np.uint8)[np.arange(12) % 4]
    draw = np.random.default_rng(0)
    image, text = (labels @ draw.normal(size=(4, 6)) for _ in range(2))
    return {"image": image, "text": text, "labels": labels}


def _write_arrays(file: str) -> Callable[[Path], object]:
    def write(folder: Path) -> object:
        from tests.datamodules import test_feature_files as writers

        place = folder / Path(file).stem
        made = {
            "a.npz": writers.write_npz,
            "b.mat": writers.write_mat5,
            "c.mat": writers.write_mat73,
            "d.h5": writers.write_h5,
        }
        return made[file](place, _arrays())

    return write


def _read_arrays(file: str) -> Callable[[Path], object]:
    def read_all(folder: Path) -> object:
        from datamodules.feature_files import read_features

        return read_features([folder / file])

    return read_all


def _dialogues() -> list[dict[str, Any]]:
    from tests.text2sql.questions import DIALOGUES

    return [
        {
            "database_id": "concerts",
            "interaction": [
                {"utterance": u, "query": q, **({"rewrite": r} if r else {})} for u, q, r in turns
            ],
            "final": {"utterance": turns[-1][0], "query": turns[-1][1]},
        }
        for turns in DIALOGUES
    ]


def _write_dialogues(folder: Path) -> None:
    (folder / "dialogues.json").write_text(json.dumps(_dialogues()))


def _read_dialogues(folder: Path) -> object:
    from datamodules.dialogue_sources import read_dialogues

    return read_dialogues(folder / "dialogues.json")


def _write_gold(folder: Path) -> None:
    turns = [[turn["query"] for turn in d["interaction"]] for d in _dialogues()]
    gold = ["\n".join(f"{sql}\tconcerts" for sql in block) for block in turns]
    (folder / "gold.txt").write_text("\n\n".join(gold) + "\n")
    (folder / "gold.json").write_text(json.dumps(_dialogues()))
    (folder / "predictions.txt").write_text("\n\n".join("\n".join(block) for block in turns) + "\n")
    (folder / "predictions.json").write_text(json.dumps(turns))


def _predictions(file: str) -> Callable[[Path], object]:
    def read_all(folder: Path) -> object:
        from text2sql.prediction_files import read_gold, read_predictions

        return read_predictions(folder / file, read_gold(folder / "gold.txt"))

    return read_all


def _gold(file: str) -> Callable[[Path], object]:
    def read_all(folder: Path) -> object:
        from text2sql.prediction_files import read_gold

        return read_gold(folder / file)

    return read_all


def _write_database(folder: Path) -> None:
    from tests.text2sql.conftest import entry_of, make
    from text2sql.schema import Schema

    make(folder / "concerts.sqlite")
    entry = entry_of(Schema.from_sqlite(folder / "concerts.sqlite"))
    (folder / "tables.json").write_text(json.dumps([entry]))


def _read_tables(folder: Path) -> object:
    from text2sql.schema import read_tables

    return read_tables(folder / "tables.json")


def _read_database(folder: Path) -> object:
    from text2sql.execute import Database
    from text2sql.schema import Schema

    file = folder / "concerts.sqlite"
    schema = Schema.from_sqlite(file)
    return [Database(file).execute(f'SELECT * FROM "{table.name}"') for table in schema.tables]


def _write_run(folder: Path) -> None:
    import torch

    from reports.run_record import RunRecord, write_json

    write_json(folder / "run.json", asdict(RunRecord("abcdefgh", "train", "running", "tiny")))
    module = {"_target_": "lightning_modules.causal_lm.CausalLM", "optimizer": {"lr": 0.1}}
    config = {"name": "tiny", "paths": {"run_dir": str(folder)}, "module": module, "seed": 1}
    (folder / "config.yaml").write_text(json.dumps({**config, "callbacks": None, "trainer": {}}))
    (folder / "metrics.csv").write_text("step,train/loss\n1,2.5\n2,2.25\n")
    content = {"state_dict": {"w": torch.arange(9.0)}, "global_step": 3}
    (folder / "checkpoints").mkdir(exist_ok=True)
    torch.save(content, folder / "checkpoints" / "step-00000003.ckpt")


def _read_run(folder: Path) -> object:
    from reports import registry
    from runner.folder import newest_whole, read_record, stored_config
    from runner.record import MetricsFile

    record, config = read_record(folder), stored_config(folder)
    run = registry.read(folder)
    shown = run.config, run.logged, run.series("train/loss"), run.steps()
    return record, config, shown, MetricsFile(str(folder)).rows(), newest_whole(folder)


def _read_part(folder: Path) -> object:
    from lightning_modules.checkpoints import restored
    from lightning_modules.sql_parser import SqlParser

    return restored(SqlParser, "parser_from", str(folder / "checkpoints" / "step-00000003.ckpt"))


def _write_cache(folder: Path) -> None:
    from datamodules.cache import build_once

    build_once(folder / "made", lambda place: {"n": (place / "file.bin").write_bytes(b"abc")})


def _read_cache(folder: Path) -> object:
    from datamodules.cache import build_once

    return build_once(folder / "made", lambda place: {"n": (place / "file.bin").write_bytes(b"a")})


def _write_store(folder: Path) -> None:
    import torch

    from hashing.store import CodeStore

    codes = torch.sign(torch.randn(20, 16, generator=torch.Generator().manual_seed(0)))
    CodeStore(codes, [f"item {n}" for n in range(20)]).save(folder)


def _read_store(folder: Path) -> object:
    from hashing.store import CodeStore

    store = CodeStore.load(folder)
    return list(store.names or ()), store.packed.sum()


def _write_pictures(folder: Path) -> None:
    from PIL import Image

    rows = ["path\tlabels\ttext"]
    for number in range(3):
        picture = Image.fromarray(np.full((20, 30, 3), 40 * number, dtype=np.uint8))
        picture.save(folder / f"{number}.png")
        picture.save(folder / f"{number}.jpg")
        rows.append(f"{number}.png\tcat,dog\tA picture.")
    (folder / "pairs.tsv").write_text("\n".join(rows))
    (folder / "pairs.jsonl").write_text(
        "\n".join(json.dumps({"path": f"{n}.png", "labels": ["a"], "text": "b"}) for n in range(3))
    )


def _pictures(table: str) -> Callable[[Path], object]:
    def read_all(folder: Path) -> object:
        from datamodules.picture_folders import read_pairs

        return read_pairs(str(folder), table)

    return read_all


def _picture(file: str) -> Callable[[Path], object]:
    def read_all(folder: Path) -> object:
        from datamodules.pictures import read_picture

        return np.asarray(read_picture(folder / file))

    return read_all


def _minimal_pairs(folder: Path) -> object:
    from language.minimal_pairs import read_pairs

    return read_pairs(folder)


def _write_model(folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    from datamodules.text_sources import open_source
    from datamodules.token_cache import train_tokenizer

    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 8, "n_positions": 16, "vocab_size": 300}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", **sizes))
    model.save_pretrained(folder)
    (folder / "text.jsonl").write_bytes(_lines(TEXTS))
    source = open_source({**SETTINGS, "source": "jsonl", "files": str(folder / "text.jsonl")})
    tokenizer: PreTrainedTokenizerFast = train_tokenizer(source, 300, 10_000)
    tokenizer.save_pretrained(folder)


def _read_model(folder: Path) -> object:
    from lightning_modules.causal_lm import CausalLM
    from runner.fit import model_config

    target = "lightning_modules.causal_lm.CausalLM"
    model_config({"_target_": target, "pretrained": str(folder)})
    module = CausalLM(pretrained=str(folder))
    module.configure_model()
    return module


def _read_tokenizer(folder: Path) -> object:
    from datamodules.token_cache import load_tokenizer
    from datamodules.vocabulary import fits

    config = SimpleNamespace(vocab_size=300, max_position_embeddings=512, name_or_path="")
    fits({"tokenizer": {"pretrained": str(folder)}, "vocab_size": 300}, config)
    return load_tokenizer(str(folder))("Line 1.")


PLAIN = "\n".join(row["text"] for row in TEXTS).encode()
LOADERS: Mapping[str, Loader] = {
    "text": Loader("a.txt", _bytes("a.txt", PLAIN), _text("a.txt", "text")),
    "jsonl": Loader("a.jsonl", _bytes("a.jsonl", _lines(TEXTS)), _text("a.jsonl", "jsonl")),
    **{
        f"jsonl {kind}": Loader(
            f"a.jsonl.{kind}",
            _bytes(f"a.jsonl.{kind}", pack.compress(_lines(TEXTS))),
            _text(f"a.jsonl.{kind}", "jsonl"),
        )
        for kind, pack in (("gz", gzip), ("bz2", bz2), ("xz", lzma))
    },
    "parquet": Loader("text.parquet", _parquet, _text("text.parquet", "parquet")),
    "chats": Loader("chats.jsonl", _bytes("chats.jsonl", _lines(CHATS)), _chats),
    **{
        name: Loader(file, _write_arrays(file), _read_arrays(file))
        for name, file in (
            ("npz", "a.npz"),
            ("mat 5", "b.mat"),
            ("mat 7.3", "c.mat"),
            ("h5", "d.h5"),
        )
    },
    "dialogues": Loader("dialogues.json", _write_dialogues, _read_dialogues),
    "tables.json": Loader("tables.json", _write_database, _read_tables),
    "sqlite": Loader("concerts.sqlite", _write_database, _read_database),
    "gold text": Loader("gold.txt", _write_gold, _gold("gold.txt")),
    "gold json": Loader("gold.json", _write_gold, _gold("gold.json")),
    "predictions text": Loader("predictions.txt", _write_gold, _predictions("predictions.txt")),
    "predictions json": Loader("predictions.json", _write_gold, _predictions("predictions.json")),
    "run.json": Loader("run.json", _write_run, _read_run),
    "config.yaml": Loader("config.yaml", _write_run, _read_run),
    "metrics.csv": Loader("metrics.csv", _write_run, _read_run),
    "checkpoint": Loader("checkpoints/step-00000003.ckpt", _write_run, _read_run),
    "checkpoint of a part": Loader("checkpoints/step-00000003.ckpt", _write_run, _read_part),
    "cache": Loader("made/finished.json", _write_cache, _read_cache),
    **{
        f"store, {file}": Loader(file, _write_store, _read_store)
        for file in ("store.json", "codes.bin", "names.txt")
    },
    "pairs.tsv": Loader("pairs.tsv", _write_pictures, _pictures("pairs.tsv")),
    "pairs.jsonl": Loader("pairs.jsonl", _write_pictures, _pictures("pairs.jsonl")),
    "png": Loader("0.png", _write_pictures, _picture("0.png")),
    "jpg": Loader("0.jpg", _write_pictures, _picture("0.jpg")),
    "minimal pairs": Loader(
        "a.jsonl",
        _bytes("a.jsonl", _lines([{"sentence_good": "a b", "sentence_bad": "b a"}] * 4)),
        _minimal_pairs,
    ),
    "model config": Loader("config.json", _write_model, _read_model),
    "model weights": Loader("model.safetensors", _write_model, _read_model),
    "tokenizer": Loader("tokenizer.json", _write_model, _read_tokenizer),
}

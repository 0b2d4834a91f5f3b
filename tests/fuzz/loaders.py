"""The files that this program reads, each with who reads it."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import json
import lzma
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from runner.errors import ConfigError
from tests.fuzz.files import Loader

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


def _chats(folder: Path) -> list[Any]:
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


def _write_questions(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"db_id": "a", "question": f"Which {n}?", "query": "SELECT 1"} for n in range(9)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "dialogues.parquet")


def _read_dialogues(file: str) -> Callable[[Path], object]:
    def read_all(folder: Path) -> object:
        from datamodules.dialogue_sources import read_dialogues

        return read_dialogues(folder / file)

    return read_all


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


OF_RUN: dict[str, Any] = {"name": "tiny", "seed": 1, "datamodule": None, "callbacks": None}
OF_RUN |= {"trainer": {"max_steps": 5}, "stretch": False}


def _write_run(folder: Path) -> None:
    import torch

    from reports.run_record import RunRecord, write_json

    write_json(folder / "run.json", asdict(RunRecord("abcdefgh", "train", "running", "tiny")))
    module = {"_target_": "lightning_modules.causal_lm.CausalLM", "optimizer": {"lr": 0.1}}
    config = {"paths": {"run_dir": str(folder)}, "module": module, **OF_RUN}
    (folder / "config.yaml").write_text(json.dumps(config))
    (folder / "metrics.csv").write_text("step,train/loss\n1,2.5\n2,2.25\n")
    (folder / "minimal_pairs.json").write_text(json.dumps({"metrics": {"all": 0.5}, "step": 3}))
    content = {"state_dict": {"w": torch.arange(9.0)}, "global_step": 3}
    (folder / "checkpoints").mkdir(exist_ok=True)
    torch.save(content, folder / "checkpoints" / "step-00000003.ckpt")


def _read_run(folder: Path) -> object:
    from reports import registry
    from runner.folder import newest_whole, read_record, stored_config
    from runner.record import MetricsFile

    _go_on(folder)
    record, config = read_record(folder), stored_config(folder)
    run = registry.read(folder)
    shown = run.config, run.logged, run.series("train/loss"), run.steps()
    return record, config, shown, MetricsFile(str(folder)).rows(), newest_whole(folder)


def _go_on(folder: Path) -> None:
    """Look for a run to go on with, by name and among all, and for one to be tested."""
    from runner.resume import find
    from runner.stored import with_stored

    module = {"_target_": "lightning_modules.causal_lm.CausalLM", "optimizer": {"lr": 0.2}}
    settings = {**OF_RUN, "module": module, "paths": {"run_dir": "RUN_DIR"}, "task": "train"}
    find({**settings, "resume": "auto"}, folder.parent)
    with_stored({**settings, "module": None, "task": "test", "ckpt_path": str(folder)})
    with contextlib.suppress(ConfigError):  # another learning rate is another run
        find({**settings, "resume": str(folder)}, folder.parent)


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


def _read_items(folder: Path) -> object:
    from hashing.gallery import read_further

    class Numbers:
        """Takes items that are the number of a text."""

        def encode_query(self, query: str) -> tuple[str, Any]:
            return "text", np.array([int(query.removeprefix("text:"))])

    data: Any = Numbers()
    return list(read_further(folder / "items.txt", data))


def _study(folder: Path) -> Any:
    from runner.search import Space, _Study

    settings = {"callbacks": {"checkpoint": {"monitor": "val/loss"}}, "trainer": {"max_steps": 3}}
    job: Any = SimpleNamespace(settings=settings, recorded=settings)
    return _Study(folder, job, Space((), ()), {"seed": 1, "startup": 2, "prune_after": 0.5})


def _write_study(folder: Path) -> None:
    study = _study(folder)
    for value in (0.5, 0.25):
        study.study.tell(study.study.ask(study.distributions), value)


def _read_study(folder: Path) -> object:
    study = _study(folder)
    study.show()
    return study.unfinished(), study.id


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


def _write_chat_model(folder: Path) -> None:
    from datamodules.conversations import DEFAULT_TEMPLATE

    _write_model(folder)
    (folder / "chats.jsonl").write_bytes(_lines(CHATS))
    (folder / "template.jinja").write_text(DEFAULT_TEMPLATE)


def _read_template(folder: Path) -> object:
    from datamodules.conversations import chat_template
    from datamodules.token_cache import load_tokenizer
    from language.chat_rendering import ChatRenderer

    tokenizer = load_tokenizer(str(folder))
    tokenizer.chat_template = chat_template(str(folder / "template.jinja"))
    renderer = ChatRenderer(tokenizer)
    return [renderer.encode(renderer.render(chat)) for chat in _chats(folder)]


def _write_encoder(folder: Path) -> None:
    from transformers import AutoConfig, AutoModel

    _write_model(folder)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model("bert", **sizes, intermediate_size=8, vocab_size=300)
    AutoModel.from_config(config).save_pretrained(folder)


def _read_encoder(folder: Path) -> object:
    from datamodules.encoders import TransformersTexts
    from text2sql.encoder import load_encoder

    return load_encoder(str(folder)), TransformersTexts(str(folder)).encode(["Line 1."])


def _read_card(folder: Path) -> object:
    from runner.export import _base

    return _base(str(folder))


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
    "parquet of dialogues": Loader(
        "dialogues.parquet", _write_questions, _read_dialogues("dialogues.parquet")
    ),
    "dialogues": Loader("dialogues.json", _write_dialogues, _read_dialogues("dialogues.json")),
    "tables.json": Loader("tables.json", _write_database, _read_tables),
    "sqlite": Loader("concerts.sqlite", _write_database, _read_database),
    "study": Loader("study.db", _write_study, _read_study),
    "gold text": Loader("gold.txt", _write_gold, _gold("gold.txt")),
    "gold json": Loader("gold.json", _write_gold, _gold("gold.json")),
    "predictions text": Loader("predictions.txt", _write_gold, _predictions("predictions.txt")),
    "predictions json": Loader("predictions.json", _write_gold, _predictions("predictions.json")),
    "run.json": Loader("run.json", _write_run, _read_run),
    "config.yaml": Loader("config.yaml", _write_run, _read_run),
    "metrics.csv": Loader("metrics.csv", _write_run, _read_run),
    "measured": Loader("minimal_pairs.json", _write_run, _read_run),
    "checkpoint": Loader("checkpoints/step-00000003.ckpt", _write_run, _read_run),
    "checkpoint of a part": Loader("checkpoints/step-00000003.ckpt", _write_run, _read_part),
    "cache": Loader("made/finished.json", _write_cache, _read_cache),
    **{
        f"store, {file}": Loader(file, _write_store, _read_store)
        for file in ("store.json", "codes.bin", "names.txt")
    },
    "items": Loader("items.txt", _bytes("items.txt", b"text:3\n\ntext:17\n"), _read_items),
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
    "model generation": Loader("generation_config.json", _write_model, _read_model),
    "model card": Loader(
        "README.md", _bytes("README.md", b"---\nlicense: mit\ntags: [a]\n---\nText.\n"), _read_card
    ),
    **{
        f"encoder, {file}": Loader(file, _write_encoder, _read_encoder)
        for file in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    },
    "tokenizer": Loader("tokenizer.json", _write_model, _read_tokenizer),
    "tokenizer config": Loader("tokenizer_config.json", _write_model, _read_tokenizer),
    "chat template": Loader("template.jinja", _write_chat_model, _read_template),
}

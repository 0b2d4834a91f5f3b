"""What cannot run is refused in words: exit code 2, under 5 s, no run folder, no traceback.

The time is that of the whole process, Python's start included. It is taken as user + system time,
so that a machine that is busy with other things does not fail the test; nothing in it waits.
"""

import importlib.util
import os
import resource
import shlex
import time
from pathlib import Path

import pytest
import torch

from runner.errors import ConfigError
from runner.explain import quoted
from runner.validate import checked
from tests.runner.laboratory import command, finish, refusal, start

SECONDS = 5.0


def refused(outputs: Path, *arguments: str) -> str:
    """Return the words of a process's refusal, after checking the rest of the promise."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code, words = finish(start(outputs, *arguments))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert code == 2, words
    assert "Traceback" not in words
    assert not outputs.exists(), "something was left behind"
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < SECONDS
    return words


CASES = {
    "key": (
        ["trainer.max_stepz=3"],
        "trainer.max_stepz: no such key. Did you mean trainer.max_steps?",
    ),
    "key-elsewhere": (["max_steps=3"], "max_steps: no such key. Did you mean trainer.max_steps?"),
    "added-key": (["+module.widht=3"], "module.widht: no such key. Did you mean module.width?"),
    "argument-not-in-file": (
        ["trainer.overfit_batches=1"],
        "an argument of pytorch_lightning.Trainer; to set it, write +trainer.overfit_batches=...",
    ),
    "wandb-argument": (["+logger.wandb.grup=a", "logger=default"], "logger.wandb.group?"),
    "option": (
        ["trainer=dddp"],
        "Did you mean trainer=ddp? Options: cpu, ddp, ddp_spawn, default, fsdp, gpu",
    ),
    "experiment": (
        ["experiment=tini"],
        "experiment=tini: no such option. Did you mean experiment=tiny?",
    ),
    "type": (["trainer.max_steps=abc"], "trainer.max_steps='abc' must be int"),
    "steps": (
        ["trainer.max_steps=-1"],
        "trainer.max_steps=-1: at least 1; schedules are fractions",
    ),
    "task": (["task=tran"], "task=tran: no such task. Did you mean task=train?"),
    "own-task": (["task=cuont"], "task=cuont: no such task. Did you mean task=count?"),
    "key-of-no-task": (["task=greet", "quary=a"], "quary: no such key. Did you mean query?"),
    "key-of-another-task": (
        ["experiment=dlch", "task=search", "database=a"],
        "database: task=search does not read it, task=evaluate or task=chat does",
    ),
    "key-of-a-task": (["query=a"], "query: no such key. task=search reads it."),
    "type-of-a-task's-key": (["task=greet", "times=0"], "times=0 must be int of at least 1"),
    "shortcut": (["experiment=dlch", "bits=12"], "bits=12 must be int of at least 8"),
    "task-without-checkpoint": (["task=count"], "task=count needs ckpt_path=PATH"),
    "node": (["callbacks.tiny=5"], "callbacks.tiny=5: must be keys with a _target_, or null"),
    "type-of-module": (["module.lr=fast"], "module.lr='fast' must be float"),
    "target": (["module._target_=os.system"], "module._target_=os.system: must begin with one of"),
    "class": (
        ["module._target_=tests.runner.tiny.TinyModul"],
        "no such class. Did you mean tests.runner.tiny.TinyModule?",
    ),
    "interpolation": (["module.width=${nothing}"], "module.width: Interpolation key 'nothing'"),
    "method": (["callbacks.tiny.rate=7"], "callbacks.tiny.rate=7 must be in (0, 1]"),
    "task-of-a-module": (
        ["experiment=base_llama", "task=chat"],
        "task=chat: module=text_to_sql does it. Name a run of it, ckpt_path=PATH, or choose it",
    ),
    "no-datamodule": (
        ["module=gpt2", "name=a"],
        "n_positions: it follows the datamodule; choose one: datamodule=NAME",
    ),
    "no-sign": (["trainer.max_steps", "3"], "key=value. A setting has a value, without spaces"),
    "key-of-nothing": (["xyz=1"], "xyz: no such key. There are: callbacks, ckpt_path, datamodule"),
    "devices": (["trainer.devices=0"], "trainer.devices=0 must be one of -1 or int of at least 1"),
    "commas-of-a-task": (["task=greet", "query=a, b"], """As text, in a shell: "query='a, b'\""""),
    "checkpoint": (["task=test"], "task=test needs ckpt_path=PATH"),
    "resume": (["resume=nowhere"], "resume=nowhere: must be never, auto"),
    "resume-of-a-test": (
        ["task=test", "ckpt_path=/", "resume=auto"],
        "resume=auto: task=test does not read it. What it looks at: ckpt_path=PATH",
    ),
    "output-at-home": (["paths.output_dir='~/x'"], "write it out: paths.output_dir=/"),
    "home": (["resume=~/no-run"], f"resume={Path.home()}/no-run: must be never, auto"),
    "ddp": (
        ["trainer.strategy=ddp", "trainer.devices=2"],
        "trainer.strategy=ddp with callbacks.tiny: the method leaves parameters without a gradient",
    ),
    "auto-is-ddp": (["trainer.devices=2"], "trainer.strategy=auto with callbacks.tiny"),
    "fsdp": (["trainer.strategy=fsdp"], "trainer.strategy=fsdp with callbacks.tiny"),
    "fsdp-module": (["trainer=fsdp"], "this module does not split its parameters"),
    "fsdp-method": (["trainer=fsdp"], "fullysharded with callbacks.tiny"),
    "nothing": (["name=a"], "Nothing to train. Choose an experiment, or a module and a datamodule"),
    "null-group": (["experiment=null"], "experiment=null: a group takes one of its options"),
    "syntax": (["a=b=c"], "a=b=c: not of the form key=value"),
    "equals-in-a-path": (["ckpt_path=/x/epoch=3.ckpt"], """"ckpt_path='/x/epoch=3.ckpt'\""""),
    "brackets-in-a-path": (["ckpt_path=/x[1]/a"], """"ckpt_path='/x[1]/a'\""""),
    "commas": (["+name=two hoops, and a star"], """"+name='two hoops, and a star'\""""),
    "bare-experiment": (["est_gpt"], "Did you mean experiment=est_gpt2?"),
    "dashes": (["--experiment", "tiny"], "written without dashes: experiment=tiny"),
    "dashes-and-value": (["--trainer.max_steps=3"], "without dashes: trainer.max_steps=3"),
    "new-key-in-braces": (["modul={width: 3}"], "modul: no such key. Did you mean module?"),
    "seed": (["seed=4294967296"], "seed=4294967296 must be int in [0, 4294967296)"),
    "two-methods": (
        ["+callbacks.second={_target_: tests.runner.tiny.Method}"],
        "callbacks.tiny and callbacks.second: each decides what a step trains",
    ),
    "monitor": (
        ["experiment=est_gpt2", "callbacks.checkpoint.monitor=val/los"],
        "monitor=val/los: no such metric of this module, CausalLM. Did you mean val/loss?",
    ),
    "name-too-long": (
        ["experiment=sat_cpt", f"module.pretrained={'a' * 300}"],
        f"module.pretrained: File name too long: {'a' * 300}",
    ),
    "folder-too-long": ([f"paths.output_dir={'a' * 300}"], "paths.output_dir: File name too long"),
    "output-is-a-file": (
        ["paths.output_dir=/etc/hostname"],
        "paths.output_dir=/etc/hostname: /etc/hostname is a file, not a folder",
    ),
    "output-in-a-file": (["paths.cache_dir=/etc/hostname/a/b"], "/etc/hostname is a file"),
    "no-key-of-wandb": (
        ["logger=default", "logger.wandb.mode=online"],
        "logger.wandb.mode=online: there is no key of W&B here. Run `wandb login`",
    ),
    "path-key": (
        ["+paths.outputs=a"],
        "paths.outputs: no such key. Did you mean paths.output_dir?",
    ),
    "heads": (
        ["experiment=est_gpt2", "module.architecture.n_embd=30"],
        "module.architecture: a width of 30 cannot be shared by 4 heads",
    ),
    "groups": (
        ["experiment=est_tinyllama", "module.architecture.num_key_value_heads=3"],
        "module.architecture: 8 heads cannot be shared by 3 key/value heads",
    ),
    "rows": (["experiment=est_gpt2", "module.architecture.vocab_size=100"], "has 100 rows"),
    "tokenizer": (
        ["experiment=est_gpt2", "datamodule.tokenizer.pretrained=[1.5]"],
        "datamodule.tokenizer.pretrained=[1.5] must be str or null",
    ),
    "no-end-of-memory": (
        ["experiment=est_gpt2", "datamodule.vocab_size=99999999999"],
        "datamodule.vocab_size=99999999999 must be int in [1, 10000000]",
    ),
    "positions": (
        ["experiment=est_gpt2", "module.architecture.n_positions=8"],
        "context is 8 tokens",
    ),
    "part": (
        ["experiment=delta", "module.parser.architecture.hidden_size=30"],
        "module.parser.architecture: a width of 30",
    ),
    "rungs": (
        ["experiment=sat_cpt", "callbacks.sat.ladder.rungs=99999999999"],
        "callbacks.sat.ladder.rungs=99999999999 must be int in [1, 1000]",
    ),
    "sweep": (["-m", "seed=1,2", "trainer.max_stepz=1,2"], "Did you mean trainer.max_steps?"),
    # The first job could run: it must not start before the second one is refused.
    "later-value": (["-m", "trainer.gradient_clip_val=1,-1"], "gradient_clip_val=-1 must be"),
    "later-job": (["-m", "module.width=8,wide"], "module.width='wide' must be int"),
    "no-workers": (
        ["-m", "seed=1,2", "hydra/launcher=pool", "workers=0"],
        "hydra.launcher.workers=0 must be",
    ),
    "workers-alone": (["-m", "seed=1,2", "workers=2"], "hydra/launcher=pool does"),
    "no-experiment": (["-m", "hydra/sweeper=search", "name=a"], "choose what to search"),
    "sweep-ddp": (["-m", "seed=1,2", "trainer=ddp"], "torchrun --nproc-per-node=N run.py"),
}


# One of each kind, and what is no setting: these go through run.py as a whole.
WHOLE = {
    *("key", "type", "experiment", "interpolation", "null-group", "syntax", "heads"),
    *("commas", "commas-of-a-task"),
}


@pytest.mark.parametrize("case", CASES)
def test_refused(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In this process, for speed; `refused` says what holds of one of its own."""
    arguments, expected = CASES[case]
    if not any(
        argument.startswith("experiment=") or "name=a" in argument for argument in arguments
    ):
        arguments = [*arguments, "experiment=tiny"]
    monkeypatch.setenv("FRUGAL_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    if case in WHOLE or arguments[0].startswith("-"):
        assert command(*arguments) == 2
        said = capfd.readouterr()
        assert said.out == ""
        assert said.err.startswith("Refused, nothing was started.\n")
        assert expected in said.err
    else:
        assert expected in refusal(*arguments)
    assert not (tmp_path / "outputs").exists(), "something was left behind"


def test_a_launcher_without_a_sweep_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FRUGAL_OUTPUTS", str(tmp_path / "outputs"))
    for choice in ("hydra/launcher=pool", "hydra/sweeper=search"):
        assert command(choice, "experiment=tiny") == 2
        said = capfd.readouterr()
        assert f"{choice}: for several jobs, which -m asks for" in said.err
        assert said.out == ""


@pytest.mark.parametrize(
    ("choice", "package", "extra"),
    [
        ("hydra/launcher=ray", "ray", "ray"),
        ("hydra/launcher=submitit_local", "submitit", "slurm"),
        ("hydra/sweeper=search", "optuna", "search"),
    ],
)
def test_a_missing_extra_is_named_before_torch_is_imported(
    choice: str,
    package: str,
    extra: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FRUGAL_OUTPUTS", str(tmp_path / "outputs"))
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name, *rest: None if name == package else find(name, *rest),
    )
    assert command("-m", choice, "experiment=tiny", "seed=1,2") == 2
    said = capfd.readouterr()
    assert f"{choice}: needs the package {package}, of the extra {extra}: pip install" in said.err
    assert said.out == ""
    assert not (tmp_path / "outputs").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused_before_anything_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also by the second job of a sweep, before the first one starts."""
    monkeypatch.setenv("FRUGAL_OUTPUTS", str(tmp_path / "outputs"))
    for arguments in (["trainer=gpu"], ["-m", "trainer.accelerator=cpu,gpu"]):
        assert command(*arguments, "experiment=tiny") == 2
        said = capfd.readouterr().err
        assert "trainer.accelerator=gpu; take trainer=cpu" in said
        assert "Traceback" not in said
        assert not (tmp_path / "outputs").exists()


def test_what_a_library_refuses_is_refused_before_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What only building the parts shows: an activation's name, LoRA's targets, a float's type."""
    pytest.importorskip("peft")
    monkeypatch.setenv("FRUGAL_OUTPUTS", str(tmp_path / "outputs"))
    for setting, words in (
        ("module.architecture.activation_function=relux", "cannot be built: no such thing as"),
        ("module.lora={rank: 2, targets: [nothing]}", "module.lora.targets: a gpt2 has no nothing"),
        ("+module.architecture.layer_norm_epsilon=1", "expected float, got int"),
        ("trainer.strategy=quick", "trainer: "),
    ):
        small = ["debug=fast", "module.architecture.n_embd=8"]
        assert command("experiment=est_gpt2", *small, setting) == 2
        assert words in capfd.readouterr().err
        assert not (tmp_path / "outputs").exists()


def test_real_experiment_is_refused_in_time(tmp_path: Path) -> None:
    """With the real model and method, whose sizes the check needs, measured on the wall."""
    began = time.perf_counter()
    words = refused(
        tmp_path / "outputs",
        "experiment=est_gpt2",
        "callbacks=est_paper",
        "callbacks.est.rates.heads=0.01",
    )
    busy = os.getloadavg()[0] > (os.cpu_count() or 1)
    assert "callbacks.est.rates.heads" in words
    assert time.perf_counter() - began < (60 if busy else SECONDS)


@pytest.mark.parametrize(
    "value",
    [
        "a, b",
        "it's",
        'say "a"',
        "/x/e=3.ckpt",
        "[1]",
        "${x",
        "100 $HOME",
        "a\\",
        "\\'",
        "!",
        "a\nb",
    ],
)
def test_text_that_is_quoted_as_shown_comes_back_as_it_was(value: str) -> None:
    """Through a shell's reading and Hydra's."""
    word = quoted("logger.wandb.name", value)
    assert word is not None
    assert checked(["experiment=dlch", *shlex.split(word)])["logger"]["wandb"]["name"] == value


def test_a_value_in_braces_brings_keys_of_its_own(tmp_path: Path) -> None:
    """Where a dictionary is empty, and where it has other keys."""
    (tmp_path / "old.txt").write_text("words")
    found = checked(
        [
            "experiment=sat_cpt",
            "callbacks.sat.layer_factors={0: 0.5}",
            f"datamodule.old_domain={{source: text, files: {tmp_path / 'old.txt'}}}",
        ]
    )
    assert found["callbacks"]["sat"]["layer_factors"] == {0: 0.5}
    assert found["datamodule"]["old_domain"]["files"] == str(tmp_path / "old.txt")


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["experiment=est_gpt2"], "est_gpt2"),
        (["experiment=est_gpt2", "callbacks=est_paper"], "est_gpt2"),
        (["experiment=est_gpt2", "callbacks=sat"], "est_gpt2-sat"),
        (["experiment=est_gpt2", "callbacks.est=null"], "est_gpt2-dense"),
        (["experiment=est_gpt2", "callbacks=sat", "name=mine"], "mine"),
    ],
)
def test_a_run_is_named_for_the_method_that_it_has(overrides: list[str], name: str) -> None:
    """SAT in place of an experiment's EST must not be filed as that experiment."""
    assert checked(overrides)["name"] == name


def test_full_error_shows_the_traceback(tmp_path: Path) -> None:
    """HYDRA_FULL_ERROR=1 is for whoever wants to see where a refusal comes from."""
    process = start(tmp_path, "experiment=tiny", "trainer.max_steps=abc", HYDRA_FULL_ERROR="1")
    code, words = finish(process)
    assert code == 1
    assert "Traceback" in words
    assert "ConfigError: trainer.max_steps='abc' must be int" in words


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            ["delta_parser", "datamodule=text", "datamodule.files=a.txt"],
            r"module: .*SqlParser reads turns; .*LanguageModelingDataModule serves tokens",
        ),
        (["dlch", "callbacks=est"], r"callbacks\.est: .* reads tokens; .* serves pairs"),
        (["delta", "callbacks=sat"], r"callbacks\.samples: .* reads tokens; .* serves turns"),
        (["est_gpt2", "callbacks=module_samples"], "needs a module with lists_samples"),
        (
            ["est_gpt2", "callbacks=est_gradual", "module.architecture.n_layer=2"],
            r"stages\[0\]\.layers: active rate 0\.25 keeps 0\.5 of 2 layers.* at least 0\.5",
        ),
        (
            ["sat_cpt", "callbacks.sat.ladder=[{until: 1.0}]"],
            r"group of keys. A list .* '~callbacks\.sat\.ladder' '\+callbacks\.sat\.ladder=\[",
        ),
        (["est_gpt2", "trainer.precision=16-true"], r"module\.optimizer\.eps=1e-08 is 0 in fp16"),
        (["est_gpt2", "trainer.precision=16-mixed"], r"16-mixed with callbacks\.est: its loss"),
        (["dlch", "callbacks.checkpoint.monitor=val/loss"], "monitor=val/loss: no such metric"),
        (
            ["sat_sft", "callbacks.checkpoint.monitor=val/exact_match"],
            r"checkpoint\.mode=min: more of val/exact_match is better\. Set .*\.mode=max",
        ),
        (
            ["dlch", "callbacks.checkpoint.monitor=val/map_all_i2t"],
            r"checkpoint\.mode=min: more of val/map_all_i2t is better",
        ),
        (
            ["est_gpt2", "callbacks.checkpoint.mode=max"],
            r"checkpoint\.mode=max: less of val/loss is better",
        ),
        (
            ["est_gpt2", "++callbacks.rng_state={_target_: runner.sweep.CheckJobs}"],
            "must be a Callback of Lightning",
        ),
        (["delta", "module.parser=1.0"], r"module\.parser=1\.0 must be SqlParser or null"),
        (["delta", "module.rewriter=x"], r"module\.rewriter='x' must be UtteranceRewriter or null"),
        (
            ["delta_parser", "trainer.precision=64-true"],
            r"trainer\.precision=64-true: .*reads texts",
        ),
        (["dlch", "trainer.precision=bf16-true"], "reads items beside its batches"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(given: list[str], words: str) -> None:
    experiment, *others = given
    with pytest.raises(ConfigError, match=words):
        checked([f"experiment={experiment}", *others])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("limit_train_batches", "0"),
        ("max_epochs", "0"),
        ("max_time", "1"),
        ("max_time", "{lives: 9}"),
        ("val_check_interval", "{days: 1000000000}"),
    ],
)
def test_a_training_without_a_step_or_of_no_known_time_is_refused(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"trainer\.{key}"):
        checked(["experiment=est_gpt2", f"++trainer.{key}={value}"])

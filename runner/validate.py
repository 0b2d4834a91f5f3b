"""Refuses in words, and before anything heavy is imported, what cannot run.

`python -m runner.validate --list` shows every experiment with its one line, `--all` composes and
checks all of them.
"""

from __future__ import annotations

import argparse
import os
import pkgutil
import re
import sys
from contextlib import suppress
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from reports.configs import at
from reports.run_record import run_folder
from runner import fit, signatures, task_keys
from runner.errors import ConfigError, MissingPackage, MissingValue, nearest
from runner.explain import CONF as CONF
from runner.explain import composed, explain
from runner.explain import experiments as experiments
from runner.job import (
    OUR_PLUGINS,
    Job,
    methods,
    nodes,
    origin,
    part_checkpoints,
    plain,
    plans_steps,
    targets,
    this_job,
)
from runner.signatures import promise
from runner.stored import on_its_own, with_stored
from runner.task_keys import FREE_TASKS, GROUPS, TASKS, TOP_LEVEL, own_tasks
from subnetworks.families import sizes

# What a `_target_` may begin with: a config file names classes to build, not any code to run.
ALLOWED: tuple[str, ...] = (
    "callbacks",
    "datamodules",
    "lightning_modules",
    "pytorch_lightning",
    "runner",
    "torchmetrics",
)

# What the class that a node names must descend from, by the node's key or its group's.
KINDS = {
    "module": "LightningModule",
    "datamodule": "LightningDataModule",
    "trainer": "Trainer",
    "callbacks": "Callback",
    "logger": "Logger",
}

# Arguments of the Trainer that the runner gives it, and the setting that decides about each.
OF_THE_RUNNER = {
    "callbacks": "callbacks.NAME",
    "logger": "logger",
    "plugins": None,
    "default_root_dir": "paths.output_dir",
    "enable_checkpointing": "callbacks.checkpoint",
    "enable_progress_bar": "callbacks.progress",
    "enable_model_summary": None,
}


def check(cfg: DictConfig) -> Job:
    """Check a composed config without importing what it names.

    Args:
        cfg: The composed config, unchanged by this.

    Returns:
        What was asked for. A task that reads a run is completed from it, see `runner.stored`.

    Raises:
        ConfigError: All that is wrong with it.
    """
    try:
        return _checked(cfg)
    except OSError as error:  # where no file can have such a name, Python 3.11 does not say no
        name = max(Path(str(error.filename)).parts, key=len)
        keys = (
            f"{key}.{own}".lstrip(".")
            for key, node in nodes(plain(cfg))
            for own, value in node.items()
            if isinstance(value, str | list) and name in str(value)
        )
        raise ConfigError(f"{next(keys, 'a path')}: {error.strerror}: {name}") from error


def _checked(cfg: DictConfig) -> Job:
    _refuse(_groups(cfg))
    if cfg.paths.get("run_dir") is not None:
        raise ConfigError("paths.run_dir is the runner's to fill in: set paths.output_dir instead.")
    settings = {**dict.fromkeys(GROUPS), **plain(cfg)}
    top = signatures.fields_of(TOP_LEVEL)
    given = {name: value for name, value in settings.items() if name in top}
    paths = signatures.fields_of("runner.ranges.Paths")
    problems = signatures.bind("", given, signatures.Signature(top))
    problems += signatures.bind("paths", settings["paths"], signatures.Signature(paths))
    _refuse(problems + _nodes(settings, "datamodule", "trainer"))
    settings["name"] = _name(settings)
    settings = with_stored(settings)
    _refuse(_nodes(settings, "module"))
    problems += task_keys.problems(settings)
    for key, node in targets(settings):
        problems += bind(key, node)
        problems += _unread(key, node)
    _refuse(problems)
    problems += _methods(settings) + _readers(settings) + _monitors(settings) + _places(settings)
    problems += _key_of_wandb(settings["logger"] or {})
    problems += _task(settings) + _needs_of_trainer(settings)
    problems += _precision(settings) + _strategy(settings) + fit.architecture_problems(settings)
    _refuse(problems)
    reads = settings["task"] != "train" and settings["ckpt_path"] is not None
    own = on_its_own(settings, run_folder(Path(settings["ckpt_path"]))) if reads else settings
    job = Job(own, settings, origin(), _bases(own))
    _refuse(_misfits(job))
    return job


def asked(overrides: list[str]) -> Job:
    """Compose and check what `python run.py OVERRIDES` would, whatever Hydra is doing just now.

    Raises:
        ConfigError: All that is wrong with it, also what Hydra refuses.
    """
    try:
        return check_apart(composed(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error, overrides)) from error


def check_apart(cfg: DictConfig) -> Job:
    """Check a config that Hydra is not at just now; its own node in it is taken out."""
    config = HydraConfig.instance().cfg
    try:
        HydraConfig.instance().set_config(cfg)
        with open_dict(cfg):
            del cfg["hydra"]
        return check(cfg)
    finally:
        HydraConfig.instance().cfg = config


def checked(overrides: list[str]) -> dict[str, Any]:
    """Return the settings of `asked`."""
    return asked(overrides).settings


def bind(key: str, node: dict[str, Any]) -> list[str]:
    """Return what is wrong with one node: its `_target_`, or an argument for it."""
    target = node["_target_"]
    if not isinstance(target, str) or target.split(".")[0] not in ALLOWED:
        return [f"{key}._target_={target}: must begin with one of {', '.join(ALLOWED)}"]
    accepted, definition = signatures.signature(target), signatures.find(target)
    if accepted is None or definition is None:
        return [f"{key}._target_={target}: no such class. {_close_target(target)}".strip()]
    if wrong := _wrong_kind(key, definition):
        return [f"{key}._target_={target}: {wrong}"]
    if key == "trainer":
        accepted = replace(
            accepted,
            parameters={**accepted.parameters, **signatures.fields_of("runner.ranges.Trainer")},
        )
    renamed = signatures.attribute(target, "renamed") or {}
    arguments = {n: v for n, v in node.items() if n != "_target_" and n not in renamed}
    old = [f"{key}.{name}: is called {key}.{renamed[name]}" for name in node if name in renamed]
    old += [
        f"{key}.{name}: the runner sets it{f'; its setting is {instead}' if instead else ''}"
        for name, instead in (OF_THE_RUNNER.items() if key == "trainer" else ())
        if name in arguments
    ]
    return old + signatures.bind(key, arguments, accepted)


def _wrong_kind(key: str, definition: signatures.Definition) -> str | None:
    """Say why a config may not build what is defined somewhere, or not under this key."""
    home = definition.source.module
    if home.split(".")[0] not in ALLOWED:  # only imported where it was found
        return f"is {home}'s; must be defined in one of {', '.join(ALLOWED)}"
    group, _, member = key.partition(".")
    kind = KINDS.get(key) if group not in ("callbacks", "logger") or "." in member else KINDS[group]
    of_lightning = [
        each.kinds[0]
        for each in definition.ancestry()
        if each.kinds and each.source.module.split(".")[0] in signatures.LIGHTNING
    ]
    if not definition.kinds or (kind is not None and kind not in of_lightning):
        return f"must be a {kind or 'class'}{' of Lightning' if kind in definition.kinds else ''}"
    return None


def main() -> int:
    """List or check every experiment; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m runner.validate", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--list", action="store_true", help="show every experiment with its one line")
    what.add_argument("--all", action="store_true", help="compose and check every experiment")
    choice = parser.parse_args()
    lines = experiments()
    width = max(map(len, lines), default=0)
    if choice.list:
        print(*(f"{name:{width}}  {line}" for name, line in lines.items()), sep="\n")
        return 0
    failed = 0
    for name in lines:
        try:
            checked([f"experiment={name}"])
            words = "ok"
        except (MissingPackage, MissingValue) as error:
            words = f"ok once there is what it needs: {error}"
        except ConfigError as error:
            words = str(error)
            failed += 1
        print(f"{name:{width}}  {words}")
    return 2 if failed else 0


def _refuse(problems: list[str]) -> None:
    if problems:
        raise ConfigError("\n".join(problems))


def _groups(cfg: DictConfig) -> list[str]:
    """Check that what each group holds are keys."""
    needed = ("trainer", "paths")
    return [
        f"{group}={cfg.get(group)}: must be keys{'' if group in needed else ', or null'}"
        for group in GROUPS
        if not OmegaConf.is_dict(cfg.get(group)) and (group in needed or cfg.get(group) is not None)
    ]


def _nodes(settings: dict[str, Any], *keys: str) -> list[str]:
    """Check that what will be built are nodes with a `_target_`: at these keys, and of groups."""
    nodes = {key: settings[key] for key in keys}
    for group in ("callbacks", "logger"):
        members = settings[group] if isinstance(settings[group], dict) else {"": settings[group]}
        nodes |= {f"{group}.{name}".strip("."): node for name, node in members.items()}
    return [
        f"{key}={node}: must be keys with a _target_" + ("" if key == "trainer" else ", or null")
        for key, node in nodes.items()
        if not (isinstance(node, dict) and "_target_" in node)
        and not (node is None and key != "trainer")
    ]


def _name(settings: dict[str, Any]) -> str:
    chosen = (
        HydraConfig.get().runtime.choices.get("experiment") if HydraConfig.initialized() else None
    )
    name = str(settings["name"] or _kind(chosen, settings) or "custom").replace("/", "-")
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise ConfigError(f"name={name!r}: a folder's name, of letters, digits, '.', '_' and '-'")
    return name


def _kind(experiment: str | None, settings: dict[str, Any]) -> str | None:
    """Name a run by its experiment, and by its method where that is not the experiment's own."""
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    if experiment is None or not any(re.match(r"[~+]*callbacks\b", each) for each in overrides):
        return experiment
    sources = HydraConfig.get().runtime.config_sources
    places = [s.path for s in sources if s.provider.endswith("command-line")]
    found = [f"hydra.searchpath=[{','.join(f'file://{place}' for place in places)}]"]
    own = composed([f"experiment={experiment}", *found]).callbacks
    now = methods(settings)
    if set(now) == set(methods({"callbacks": OmegaConf.to_container(own, resolve=False)})):
        return experiment
    return f"{experiment}-{'-'.join(sorted(now)) or 'dense'}"


def _task(settings: dict[str, Any]) -> list[str]:
    task, checkpoint = settings["task"], settings["ckpt_path"]
    own = own_tasks(settings["module"])
    known = (*TASKS, *FREE_TASKS, *own)
    named = {key: node[name] for key, node, name in part_checkpoints(settings)}
    if settings["resume"] != "never":
        named = {}  # a run that is gone on with needs none, and another one looks for them later
    if task != "train":
        named = {"ckpt_path": checkpoint, **named}
    for key, place in named.items():
        if place is not None and not Path(place).expanduser().exists():
            return [f"{key}={place}: no such file or folder"]
    if task not in known:
        if of := [name for name, tasks in task_keys.modules() if task in tasks]:
            chosen = " or ".join(f"module={name.split('.')[1]}" for name in of)
            return [
                f"task={task}: {chosen} does it. Name a run of it, ckpt_path=PATH, or choose it"
            ]
        return [f"task={task}: no such task.{nearest(task, known, 'task=')}"]
    if task == "train" and checkpoint is not None:
        return [
            f"ckpt_path={checkpoint}: task=train does not read it. To go on with a run: resume=PATH"
        ]
    needed = task != "train" and task not in FREE_TASKS
    if checkpoint is None and own.get(task, needed):
        return [f"task={task} needs ckpt_path=PATH: a .ckpt file or a run folder"]
    resume = settings["resume"]
    if task != "train" and resume != "never":
        return [f"resume={resume}: task={task} does not read it. What it looks at: ckpt_path=PATH"]
    if resume not in ("never", "auto") and not Path(resume).expanduser().exists():
        return [f"resume={resume}: must be never, auto, or a run folder or .ckpt that exists"]
    steps = settings["trainer"].get("max_steps")
    planned = steps == -1 and plans_steps(settings)
    if task == "train" and not planned and not (isinstance(steps, int) and steps > 0):
        return [f"trainer.max_steps={steps}: at least 1; schedules are fractions of it"]
    if task == "train" and not (settings["module"] and settings["datamodule"]):
        listed = "".join(f"\n  experiment={name:24} {line}" for name, line in experiments().items())
        return [f"Nothing to train. Choose an experiment, or a module and a datamodule:{listed}"]
    return []


def _needs_of_trainer(settings: dict[str, Any]) -> list[str]:
    """Check the settings of the trainer for which the module takes one value only."""
    if settings["task"] != "train":
        return []
    problems = []
    for key, needed in (promise(settings["module"], "needs_of_trainer") or {}).items():
        given = settings["trainer"].get(key, needed)
        count = len(given) if isinstance(given, list) else given
        if isinstance(count, int | float) and count != needed:
            problems.append(
                f"trainer.{key}={given}: {settings['module']['_target_']} plans its own batches "
                f"and needs {needed}; shorten the training by trainer.max_steps"
            )
    return problems


def _precision(settings: dict[str, Any]) -> list[str]:
    """Refuse precisions in which the module or a method does not run."""
    module, given = settings["module"], str(settings["trainer"].get("precision"))
    problems = []
    if settings["task"] == "train" and given in ("16", "16-mixed"):
        problems += [
            f"trainer.precision={given} with callbacks.{name}: its loss scaling does not reach the "
            "gradients of a sub-network. Take bf16-mixed or 32-true"
            for name, node in methods(settings).items()
            if promise(node, "scaled_losses") is False
        ]
    if settings["task"] == "train" and given == "16-true":
        problems += [
            f"trainer.precision={given}: {key}.eps={node['eps']} is 0 in fp16, and AdamW divides "
            f"by it. Take bf16-true, or {key}.eps=1e-4"
            for key, node in nodes(module, "module")
            if 0 <= node.get("eps", 1) <= 2**-25
        ]
    converts = given == "64" or given.endswith("-true") or given.startswith("transformer-engine")
    kept = promise(module, "unconverted")
    if kept is not None and converts and given != "32-true":
        problems.append(
            f"trainer.precision={given}: {module['_target_']} reads {kept}, which Lightning does "
            "not convert to it. Take bf16-mixed or 32-true"
        )
    return problems


def _strategy(settings: dict[str, Any]) -> list[str]:
    trainer = settings["trainer"]
    strategy, devices = trainer.get("strategy", "auto"), trainer.get("devices", 1)
    name, finds_unused = str(strategy), "find_unused_parameters_true" in str(strategy)
    if isinstance(strategy, dict):
        if "_target_" not in strategy:
            return [
                f"trainer.strategy={strategy}: a strategy is a name, such as auto or ddp, or has a "
                "_target_"
            ]
        name = re.sub(r"Strategy$", "", strategy["_target_"].rsplit(".", 1)[-1]).lower()
        finds_unused = bool(strategy.get("find_unused_parameters"))
        name = f"{name}_{strategy.get('start_method', '')}".strip("_")
    count = len(devices) if isinstance(devices, list) else devices
    several = count not in (1, "1") or trainer.get("num_nodes", 1) != 1
    is_ddp = name.startswith("ddp") or (name == "auto" and several)
    splits = name == "fullysharded"
    problems = []
    if splits and (module := settings["module"]):
        if not promise(module, "splits_parameters"):
            problems.append(
                f"trainer=fsdp with module {module['_target_']}: this module does not split its "
                "parameters. Take trainer=ddp"
            )
        if module.get("lora"):
            problems.append(
                "trainer=fsdp with module.lora: adapters are too few to be worth splitting. Take "
                "trainer=ddp, or module.lora=null"
            )
    for method, node in methods(settings).items():
        key = f"callbacks.{method}"
        if not promise(node, "leaves_parameters_unused"):
            continue
        if splits and node.get("freeze_unsampled"):
            problems.append(
                f"trainer=fsdp with {key}.freeze_unsampled=true: rows cannot be put back where "
                "they are split over the devices. Take trainer=ddp, or false"
            )
        runs_split = promise(node, "runs_on_split_parameters")
        if is_ddp and not finds_unused:
            problems.append(
                f"trainer.strategy={name} with {key}: the method leaves parameters without a "
                "gradient, for which this strategy waits for ever. Take trainer=ddp (strategy "
                f"ddp_find_unused_parameters_true), or leave the method out: {key}=null"
            )
        if re.match("fsdp|deepspeed|model_?parallel", name) or (splits and not runs_split):
            mend = "trainer=fsdp (FSDP2), trainer=ddp" if runs_split else "trainer=ddp"
            problems.append(
                f"trainer.strategy={name} with {key}: the method takes rows out of whole weights, "
                f"which this strategy splits over the devices. Take {mend}, or {key}=null"
            )
    forks = any(word in name for word in ("spawn", "fork", "notebook"))
    starts = (is_ddp or splits) and several and not forks
    if starts and _shares_its_command() and "TORCHELASTIC_RUN_ID" not in os.environ:
        problems.append(
            f"trainer.strategy={name} in a multirun: each process it starts would start the whole "
            "sweep again. Give each job a command of its own, by hydra/launcher=pool workers=1 or "
            "torchrun --nproc-per-node=N run.py ..., or take trainer=ddp_spawn"
        )
    return problems


def _shares_its_command() -> bool:
    """Whether this is a job of a sweep that Hydra runs in the sweep's own process."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return False
    return not str(HydraConfig.get().launcher._target_).startswith(OUR_PLUGINS)


def _misfits(job: Job) -> list[str]:
    """Ask the data module and every callback whether their settings can run, and fit the model."""
    settings = job.settings
    named = (settings["module"] or {}).get("pretrained")
    base = job.bases.get(str(named))
    try:
        config = fit.model_config((base.settings if base else settings)["module"])
    except ValueError as error:
        return [f"module.{error}"]
    if config is not None and base is not None:
        config.name_or_path = named
    return fit.answers(settings, "check", sizes(config)) + fit.problems(settings, config)


def _bases(settings: dict[str, Any]) -> dict[str, Job]:
    """Check what the module's `pretrained` name, and return the jobs that make such models.

    Raises:
        ConfigError: An experiment, package or file is not there, or an experiment cannot run.
    """
    bases = {}
    for key, named in fit.made_models(settings["module"]):
        if not named.startswith(fit.EXPERIMENT):
            if settings["resume"] == "never":
                fit.gguf_file(key, named)
            continue
        name, *overrides = named.removeprefix(fit.EXPERIMENT).split()
        known = list(experiments())
        if name not in known:
            hint = nearest(name, known, fit.EXPERIMENT)
            raise ConfigError(f"{key}={named}: no such experiment.{hint}")
        shared = [f"paths.{each}={settings['paths'][each]}" for each in ("output_dir", "cache_dir")]
        base = asked([f"experiment={name}", *shared, *overrides])
        silent = {**base.settings, "logger": None}
        bases[named] = replace(base, settings=silent, recorded=silent)
    return bases


def refuse_misfits(settings: dict[str, Any], config: Any) -> None:
    """Ask again whether all fits the model, once its Hugging Face config is known.

    Raises:
        ConfigError: All that does not fit it.
    """
    _refuse(fit.problems(settings, config))


def _unread(key: str, node: dict[str, Any]) -> list[str]:
    """Check that something reads what stands in a node, and what the command line sets in it.

    A class says in `unread` which keys of its parts are never read, and in `read_where` which keys
    are read only under some values of others: these keep their defaults without a word, but
    setting one on the command line is refused. Arms of a sweep share their command line.
    """
    problems = [
        f"{key}.{path}: nothing reads it here{f'; {key}.{instead} does' if instead else ''}"
        for path, instead in (promise(node, "unread") or {}).items()
        if at(node, path) is not None
    ]
    if not HydraConfig.initialized() or this_job() is not None:
        return problems
    overrides = [each.lstrip("+").partition("=")[0] for each in HydraConfig.get().overrides.task]
    for path, (other, values) in (promise(node, "read_where") or {}).items():
        if isinstance(values, str):  # where the values stand
            values = pkgutil.resolve_name(values)
        value = at(node, other)
        if value in values if isinstance(values, tuple) else bool(value) == values:
            continue
        needed = " or ".join(values) if isinstance(values, tuple) else "set" if values else "null"
        problems += [
            f"{each}: nothing reads it while {key}.{other}={value}; that must be {needed}"
            for each in overrides
            if f"{each}.".startswith(f"{key}.{path}.")
        ]
    return problems


def _methods(settings: dict[str, Any]) -> list[str]:
    """Check that one method at most decides what a step trains."""
    several = [f"callbacks.{name}" for name in methods(settings)]
    if len(several) < 2:
        return []
    return [
        f"{' and '.join(several)}: each decides what a step trains, so there can be only one. "
        f"Leave out the other: {several[-1]}=null"
    ]


def _readers(settings: dict[str, Any]) -> list[str]:
    """Check that data, module and callbacks go together, as far as their classes say."""
    module, data = settings["module"], settings["datamodule"]
    callbacks = {f"callbacks.{name}": n for name, n in (settings["callbacks"] or {}).items() if n}
    served, problems = promise(data, "serves"), []
    for key, node in {"module": module, **callbacks}.items():
        read = promise(node, "reads")
        if None not in (served, read) and read != served:
            problems.append(
                f"{key}: {node['_target_']} reads {read}; datamodule {data['_target_']} serves "
                f"{served}. Take data that serve {read}, or another {key}"
            )
    for key, node in callbacks.items():
        needed = promise(node, "needs_of_module")
        if module and needed is not None and not promise(module, needed):
            problems.append(
                f"{key}: {node['_target_']} needs a module with {needed}, which "
                f"{module['_target_']} has not. Take {key}=null"
            )
    return problems


def _monitors(settings: dict[str, Any]) -> list[str]:
    """Check that a training watches what is logged, and takes the better of it for the best.

    Module and callbacks say in `validated` what they log, and whether less or more is better.
    """
    validated = promise(settings["module"], "validated")
    if settings["task"] != "train" or validated is None:
        return []
    callbacks = {name: node for name, node in (settings["callbacks"] or {}).items() if node}
    known = {
        metric: mode
        for each in (validated, *(promise(node, "validated") for node in callbacks.values()))
        for mode, metrics in (each or {}).items()
        for metric in metrics
    }
    problems = []
    for name, node in callbacks.items():
        if (monitor := node.get("monitor")) is None:
            continue
        modes = [mode for metric, mode in known.items() if fnmatch(str(monitor), metric)]
        given = node.get("mode", "min")
        if not modes:
            kind = settings["module"]["_target_"].rpartition(".")[2]
            problems.append(
                f"callbacks.{name}.monitor={monitor}: no such metric of this module, {kind}."
                f"{nearest(str(monitor), known)}"
            )
        elif given not in modes and "either" not in modes:
            better = "less" if modes == ["min"] else "more"
            problems.append(
                f"callbacks.{name}.mode={given}: {better} of {monitor} is better. Set "
                f"callbacks.{name}.mode={modes[0]}"
            )
    return problems


def _places(settings: dict[str, Any]) -> list[str]:
    """Check that folders can be made where runs and caches go."""
    paths, problems = settings["paths"], []
    for key, inside in (("output_dir", settings["name"]), ("cache_dir", "")):
        if paths[key].startswith("~"):
            whole = Path(paths[key]).expanduser()
            problems.append(f"paths.{key}={paths[key]}: write it out: paths.{key}={whole}")
            continue
        place = Path(paths[key], inside).absolute()
        there = next(folder for folder in (place, *place.parents) if folder.exists())
        if not there.is_dir():
            problems.append(f"paths.{key}={paths[key]}: {there} is a file, not a folder")
        elif not os.access(there, os.W_OK | os.X_OK):
            problems.append(f"paths.{key}={paths[key]}: {there} cannot be written to")
    return problems


def _key_of_wandb(loggers: dict[str, Any]) -> list[str]:
    """Check that there is a key where runs are sent to W&B while they run."""
    if any(name in os.environ for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")):
        return []
    files = [Path.home() / ".netrc", Path.home() / "_netrc"]
    if "NETRC" in os.environ:
        files = [Path(os.environ["NETRC"])]
    for file in files:
        with suppress(OSError):  # not there, or another user's
            if re.search(r"wandb|login\s+user\b", file.read_text(errors="replace")):
                return []
    return [
        f"logger.{name}.mode=online: there is no key of W&B here. Run `wandb login`, set "
        f"WANDB_API_KEY, or take logger.{name}.mode=offline"
        for name, node in loggers.items()
        if node
        and node["_target_"].endswith((".WandbRun", ".WandbLogger"))
        and node.get("mode") == "online"
    ]


def _close_target(target: str) -> str:
    module, _, name = target.rpartition(".")
    source = signatures.load(module)
    return nearest(name, source.names, f"{module}.").strip() if source else ""


if __name__ == "__main__":
    # As the module that everything else imports: this file under its other name has other classes.
    from runner import validate

    sys.exit(validate.main())

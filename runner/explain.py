"""What Hydra refuses, in words: which key or option was meant, and how a value must be quoted."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runner import signatures
from runner.errors import close, nearest
from runner.job import nodes
from runner.task_keys import readers, with_task_keys

ROOT = Path(__file__).resolve().parent.parent
CONF = ROOT / "conf"
HOME = Path.home().as_posix()


# Keys of a sweep's launcher and sweeper that are written short, with what reads them.
SHORT = {
    "workers": ("hydra.launcher.workers", "hydra/launcher=pool"),
    "trials": ("hydra.sweeper.trials", "hydra/sweeper=search"),
}


def composed(overrides: list[str]) -> DictConfig:
    """Compose what `python run.py OVERRIDES` would, whatever Hydra is doing just now."""
    running = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose("config", with_new_keys(overrides), return_hydra_config=True)
    finally:
        GlobalHydra.instance().hydra = running


def with_new_keys(arguments: list[str]) -> list[str]:
    """Let tasks, values in braces and a run's module bring keys, for which Hydra wants a `++`.

    So do `key={name: value}`, and `module.key=value` beside a `ckpt_path` that says which module it
    is. Keys of SHORT are written in full, and so is the home folder in `key=~/file`, which few
    shells do. What nothing reads is refused by `runner.validate`.
    """
    arguments = with_task_keys(arguments)
    arguments = [re.sub(r"^([+\w./@-]+=)~(?=/)", rf"\g<1>{HOME}", each) for each in arguments]
    for short, (full, _) in SHORT.items():
        arguments = [re.sub(rf"^{short}=", f"{full}=", each) for each in arguments]
    named = {each.partition("=")[0] for each in arguments}
    of_run = "ckpt_path" in named and not {"experiment", "module"} & named
    new = r"[\w.]+=\{|module\." if of_run else r"[\w.]+=\{"
    return [f"++{each}" if re.match(new, each) else each for each in arguments]


def experiments() -> dict[str, str]:
    """Return every experiment with the first comment line of its file."""
    found = {}
    for path in sorted((CONF / "experiment").rglob("*.yaml")):
        comments = (line[1:].strip() for line in path.read_text().splitlines() if line[:1] == "#")
        name = path.relative_to(CONF / "experiment").with_suffix("").as_posix()
        found[name] = next((line for line in comments if not line.startswith("@package")), "")
    return found


def explain(error: Exception, arguments: list[str]) -> str:
    """Return in words what Hydra refused of a command line, with the nearest key or option."""
    message = str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        options = list(error.options or _options(group))
        listed = f" Options: {', '.join(options)}." if options else f" There is no group {group!r}."
        return f"{group}={option}: no such option.{close(option, options, f'{group}=')}{listed}"
    if message.startswith("Config group override must be"):
        given = ", ".join(a for a in arguments if a.endswith("=null")) or "a group"
        return f"{given}: a group takes one of its options; ~GROUP leaves it out"
    if isinstance(error, OverrideParseException):
        override = str(error.override).removeprefix("++")  # put there by `with_new_keys`
        return f"{override}: not of the form key=value. {_meant(override) or message}"
    if match := re.match(r"Ambiguous value for argument '(.*?)'\n1\. ", message, re.DOTALL):
        ways = "A list is [a,b]; several runs, one a value, are run with -m."
        given = match[1].removeprefix("++")
        return f"{given}: several values. {ways} {_meant(given)}"
    if match := re.search(r"Could not append to config\. An item is already at '([^']+)'", message):
        return f"{match[1]}: is there already. To change it, leave out the +: {match[1]}=..."
    if match := re.search(r"Could not (?:override|append|delete)[^']*'([^']+)'", message):
        key = match[1].split("@")[0]
        for short, (full, reader) in SHORT.items():
            if key == full:
                return f"{short}: nothing reads it here; {reader} does, in a sweep: run.py -m"
        return f"{key}: no such key.{_nearest_key(key, _sought(error, arguments))}"
    cause = str(error.__cause__ or "")
    if match := re.match(r"Cannot merge DictConfig with ListConfig\s+full_key: (\S+)", cause):
        key = match[1]
        return f"{key} is a group of keys. A list takes its place by '~{key}' '+{key}=[...]'"
    return f"{message}\n{cause}" if cause else message


def quoted(key: str, value: str) -> str | None:
    """Return `key=value` as a shell needs it written, so that Hydra takes the value as it is.

    None where no quoting makes Hydra do so.
    """
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", value)  # a quote, and backslashes before one
    escaped = re.sub(r"(\\+)\Z", r"\1\1", escaped).replace("${", r"\${")
    word = f"{key}='{escaped}'"
    try:
        (read,) = OverridesParser.create().parse_overrides([word])
        taken = OmegaConf.create({"value": read.value()})["value"]
    except (HydraException, OmegaConfBaseException):
        return None
    if taken != value:
        return None
    return f'"{word}"' if not re.search(r'["$`!\n]|\\\\', word) else shlex.quote(word)


def _meant(override: str) -> str:
    """Say what an argument may have meant: an experiment's name, or a value that is text."""
    key, sign, value = override.partition("=")
    if not sign:
        meant = close(override, experiments(), "experiment=").strip()
        return meant or f"A setting has a value, without spaces around the =: {override}=VALUE"
    word = quoted(key, value) if re.fullmatch(r"[+~]*[\w./@-]+", key) else None
    return f"As text, in a shell: {word}" if word else ""


def _options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def _sought(error: Exception, arguments: list[str]) -> dict[str, Any]:
    """Return the config in which Hydra did not find a key; empty where there is none."""
    node = getattr(error.__cause__, "parent_node", None)
    if node is None:  # of ~key, which raises without a cause
        given, _ = get_args_parser().parse_known_args(arguments)
        try:
            node = composed([each for each in given.overrides if each[:1] != "~"])
        except (HydraException, OmegaConfBaseException):
            return {}
    found = OmegaConf.to_container(node._get_root(), resolve=False)
    assert isinstance(found, dict)
    return {str(name): value for name, value in found.items() if name != "hydra"}


def _nearest_key(key: str, base: dict[str, Any]) -> str:
    """Return a hint for a key that a config does not have."""
    name = key.rpartition(".")[2]
    groups = [path.name for path in CONF.iterdir() if path.is_dir()]
    parent: Any = base
    path = key.split(".")
    if len(path) == 1 and (tasks := readers(key)):  # no key of a task has dots
        return f" task={' or task='.join(tasks)} reads it."
    for depth, part in enumerate(path[:-1]):
        parent = parent.get(part) if isinstance(parent, dict) else None
        target = parent.get("_target_") if isinstance(parent, dict) else None
        if not isinstance(target, str):
            continue
        if new := (signatures.attribute(target, "renamed") or {}).get(path[depth + 1]):
            return f" It is called {'.'.join([*path[: depth + 1], new, *path[depth + 2 :]])}."
        for old, new in (signatures.attribute(target, "unread") or {}).items():
            rest = ".".join(path[depth + 1 :])
            if f"{rest}.".startswith(f"{old}."):
                here = ".".join([*path[: depth + 1], new + rest.removeprefix(old)])
                return f" Nothing reads it here{f'; {here} does' if new else ''}."
    if isinstance(parent, dict) and isinstance(parent.get("_target_"), str):
        accepted = signatures.signature(parent["_target_"])
        if accepted and name in accepted.parameters:
            return f" It is an argument of {parent['_target_']}; to set it, write +{key}=..."
    if isinstance(parent, dict):
        known = [str(k) for k in parent if k != "_target_"] + (groups if len(path) == 1 else [])
        prefix = key.removesuffix(name)
        if len(path) > 1 or close(name, known):
            return nearest(name, known, prefix)
    every = [f"{place}.{name}".strip(".") for place, node in nodes(base) for name in node]
    tails = [k for k in every if k.rpartition(".")[2] == name]
    return f" Did you mean {tails[0]}?" if tails else close(key, every) or nearest(name, base)

"""Configs of runs: what identifies them, and in what they differ."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

# Stands for the run folder, whose name is not known yet.
RUN_DIR = "<run folder>"

# Settings that say how a run is started and found, and change nothing in what it learns.
HOW = ("name", "resume", "stretch", "dry_run", "tags")

# Settings that change how fast something comes and in how much memory, not what comes: of the data,
# and of a model.
INDIFFERENT = (
    *("cache_dir", "num_workers", "pin_memory", "prefetch_factor", "persistent_workers"),
    *("attn_implementation", "compile", "gradient_checkpointing"),
)


def config_hash(config: Mapping[str, Any]) -> str:
    """Return a hash of all that decides a result: where files go and who logs is left out."""
    return _hash(_without_places(config))


def arm_hash(config: Mapping[str, Any]) -> str:
    """Return a hash of what is compared: runs of one arm differ by seeds, and by HOW."""
    return _hash(_without(result_settings(config), is_seed))


def result_settings(config: Mapping[str, Any]) -> Any:
    """Return the settings that decide a result, but for the run's seed."""
    settings = {key: value for key, value in config.items() if key not in HOW}
    return _without(_without_places(settings), lambda key: key == "seed")


def is_seed(key: object) -> bool:
    """Whether a key is a seed: the run's, or that of a part that has its own (`class_seed`)."""
    return re.search(r"(?:\A|[._])seed\Z", str(key)) is not None


def own_seeds(node: Mapping[str, Any]) -> Iterator[str]:
    """Yield the seeds of parts that have their own, as KEY=SEED."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from own_seeds(value)
        elif key != "seed" and is_seed(key):
            yield f"{key}={value}"


def _without_places(config: Mapping[str, Any]) -> Any:
    settings: Any = {key: value for key, value in config.items() if key not in ("paths", "logger")}
    paths = config.get("paths") or {}
    for key, instead in (("run_dir", RUN_DIR), ("cache_dir", "cache_dir")):
        if paths.get(key):  # datamodules and callbacks name them too
            settings = replaced(settings, str(paths[key]), instead)
    return settings


def _hash(settings: Any) -> str:
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def replaced(node: Any, old: str, new: str) -> Any:
    """Return plain containers with a part of every text in them replaced."""
    if isinstance(node, Mapping):
        return {key: replaced(value, old, new) for key, value in node.items()}
    if isinstance(node, list):
        return [replaced(value, old, new) for value in node]
    return node.replace(old, new) if isinstance(node, str) else node


def at(node: Any, path: str) -> Any:
    """Return what stands at a path of keys, None where it does not lead anywhere."""
    for name in path.split("."):
        node = node.get(name) if isinstance(node, Mapping) else None
    return node


def _without(node: Any, left_out: Callable[[object], bool]) -> Any:
    """Return plain containers without some keys."""
    if isinstance(node, Mapping):
        return {key: _without(node[key], left_out) for key in node if not left_out(key)}
    return [_without(value, left_out) for value in node] if isinstance(node, list) else node


def differences(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return the settings in which configs differ, with each one's value; a missing one is None.

    A node that not all of them have is a setting: its value is the name of its class. Those in
    which the nodes that are there differ follow it.
    """
    return dict(differing([result_settings(config) for config in configs]))


def shortened(keys: Iterable[str], taken: Iterable[str] = ()) -> dict[str, str]:
    """Return for each key its last part; the whole key where another one or `taken` has that."""
    last = {key: key.rpartition(".")[2] for key in keys}
    uses = Counter([*last.values(), *taken])
    return {key: part if uses[part] == 1 else key for key, part in last.items()}


def differing(values: Sequence[Any], key: str = "") -> Iterator[tuple[str, list[Any]]]:
    """Yield the keys below one at which plain containers differ, with each one's value in brief."""
    if all(value == values[0] for value in values):
        return
    nodes = {place: value for place, value in enumerate(values) if isinstance(value, Mapping)}
    if len(nodes) < len(values):
        yield key, [_brief(value) for value in values]
    for name in dict.fromkeys(name for node in nodes.values() for name in node):
        inner = f"{key}.{name}" if key else str(name)
        for full, row in differing([node.get(name) for node in nodes.values()], inner):
            found = dict(zip(nodes, row, strict=True))
            yield full, [found.get(place) for place in range(len(values))]


def _brief(value: Any) -> Any:
    if isinstance(value, Mapping) and "_target_" in value:
        return str(value["_target_"]).rpartition(".")[2]
    return json.dumps(value, default=str) if isinstance(value, Mapping | list) else value

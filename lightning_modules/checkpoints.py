"""Checkpoints of modules that are parts of another training."""

from collections.abc import Mapping
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch

Part = TypeVar("Part", bound=pl.LightningModule)


def read_checkpoint(file: str) -> dict[str, Any]:
    """Return a checkpoint's content; tensors stay on disk until they are read.

    Raises:
        ValueError: There is none, or it is damaged; nothing in it is executed.
    """
    try:
        content = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # the bytes of a foreign file can raise anything
        raise ValueError(f"no checkpoint can be read there: {error}") from error
    if not isinstance(content, dict):
        raise ValueError("no checkpoint can be read there")
    return content


def built(kind: type[Part], settings: Mapping[str, Any]) -> Part:
    """Build a part from the settings that a checkpoint keeps, which may be an older run's."""
    renamed = getattr(kind, "renamed", {})
    return kind(**{renamed.get(name, name): value for name, value in settings.items()})


def restored(kind: type[Part], key: str, file: str) -> Part:
    """Build a part as its checkpoint says, with its weights.

    Args:
        kind: Its class.
        key: The module's key that names the checkpoint, `PART_from`.
        file: The checkpoint, of the part's own training or of a pipeline's.

    Raises:
        ValueError: It is no checkpoint of such a part.
    """
    name = key.removesuffix("_from")
    try:
        checkpoint = read_checkpoint(file)
        if f"{name}_settings" in checkpoint:  # of a pipeline, in which it was trained
            state = checkpoint["state_dict"].items()
            own = {k.removeprefix(f"{name}."): v for k, v in state if k.startswith(f"{name}.")}
            checkpoint["hyper_parameters"] = checkpoint[f"{name}_settings"]
            checkpoint["state_dict"] = own
        part = built(kind, checkpoint["hyper_parameters"])
        part.on_load_checkpoint(checkpoint)
        part.load_state_dict(checkpoint["state_dict"])
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"module.{key}={file}: is no checkpoint of {kind.__name__}: {error}"
        ) from error
    return part

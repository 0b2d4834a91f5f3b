"""Checkpoints of modules that are parts of another training."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch

Part = TypeVar("Part", bound=pl.LightningModule)


def read_checkpoint(place: str) -> dict[str, Any]:
    """Return a checkpoint's content.

    Args:
        place: Its file, or the folder of its run: then the best one, else the last.

    Raises:
        ValueError: There is none.
    """
    path = Path(place).expanduser()
    files: Iterable[Path] = [path]
    if path.is_dir():
        folder = path / "checkpoints"
        files = [folder / "best.ckpt", *sorted(folder.glob("step-*.ckpt"), reverse=True)]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise ValueError(f"{place}: no such checkpoint, or run folder with one")
    content: dict[str, Any] = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    return content


def restored(kind: type[Part], key: str, place: str) -> Part:
    """Build a part as its checkpoint says, with its weights, which are not trained further.

    Args:
        kind: Its class.
        key: The module's key that names the checkpoint, `PART_from`.
        place: See `read_checkpoint`; of the part's own training, or of a pipeline's.

    Raises:
        ValueError: There is no such checkpoint.
    """
    name = key.removesuffix("_from")
    try:
        checkpoint = read_checkpoint(place)
        if f"{name}_settings" in checkpoint:  # of a pipeline, in which it was trained
            state = checkpoint["state_dict"].items()
            own = {k.removeprefix(f"{name}."): v for k, v in state if k.startswith(f"{name}.")}
            checkpoint["hyper_parameters"] = checkpoint[f"{name}_settings"]
            checkpoint["state_dict"] = own
        part = kind(**checkpoint["hyper_parameters"])
        part.on_load_checkpoint(checkpoint)
        part.load_state_dict(checkpoint["state_dict"])
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"module.{key}={place}: is no checkpoint of {kind.__name__}, or run folder with one: "
            f"{error}"
        ) from error
    part.requires_grad_(False)
    return part

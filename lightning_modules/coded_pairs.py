"""Pairs of a picture and a text with codes: the networks that say them, and what queries find."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from hashing.learner import ALL
from hashing.networks import HashNetworks, binarise, encode
from hashing.pairs import MODALITIES, PairData
from hashing.report import Retrieval

Batch = Mapping[str, Tensor]


class CodedPairs(pl.LightningModule):
    """Networks, and the codes of the retrieval part's items; validation and test search them.

    Codes and outputs are buffers of the state dict; their sizes stand in the checkpoint beside it.

    Args:
        bits: Length of a code.
        text_width: Hidden units of the text and of the label network.
        seed: Of the networks.
    """

    session: Tensor
    """Number of the session that was begun last; -1 before the first."""
    networks: HashNetworks
    """From `configure_model` on."""
    data: PairData
    """From `setup` on."""

    def __init__(self, bits: int, text_width: int, seed: int) -> None:
        super().__init__()
        self.bits, self.text_width, self.seed = bits, text_width, seed
        self._asked: dict[str, list[Tensor]] = {m: [] for m in MODALITIES}

    # --- networks and codes -------------------------------------------------------------------

    def shape_by(self, data: PairData) -> None:
        """Note the sizes that the data asks for."""
        self._shapes = (tuple(data.image_shape), int(data.text_features), len(data.classes))
        self._items = len(data.groups["retrieval"])

    def configure_model(self) -> None:
        """Make networks, codes and buffers, once, as the data needs them."""
        if hasattr(self, "networks"):
            return
        self.networks = self.fresh_networks(0)
        for m in MODALITIES:
            codes = torch.zeros(self._items, self.bits, dtype=torch.int8, device=self.device)
            self.register_buffer(f"{m}_codes", codes)
        for m in ALL:
            outputs = torch.zeros(self._items, self.bits, device=self.device)
            self.register_buffer(f"{m}_outputs", outputs)
        self.register_buffer("session", torch.tensor(-1))

    def fresh_networks(self, session: int) -> HashNetworks:
        """Return new networks, drawn by the seed and the number of a session."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(
                int(np.random.SeedSequence([self.seed, session]).generate_state(1)[0])
            )
            return HashNetworks(*self._shapes, self.bits, self.text_width)

    def codes(self, modality: str) -> Tensor:
        """int8 codes of the retrieval part's items, (n, bits); 0 where none has arrived yet."""
        return getattr(self, f"{modality}_codes")

    def outputs(self, modality: str) -> Tensor:
        """The latest outputs of the items of the current session, (n, bits)."""
        return getattr(self, f"{modality}_outputs")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save what is no tensor: the sizes, and which data the codes belong to."""
        checkpoint["lifelong_hashing"] = {
            "shapes": [list(self._shapes[0]), *self._shapes[1:], self._items],
            "data": self.data.fingerprint,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make networks and codes of the checkpoint's sizes before their values are loaded.

        Raises:
            ValueError: The data now is another.
        """
        if hasattr(self, "data"):
            self.check_data(self.data, checkpoint)
        image_shape, *sizes, self._items = checkpoint["lifelong_hashing"]["shapes"]
        self._shapes = (tuple(image_shape), *sizes)
        self.configure_model()

    def check_data(self, datamodule: Any, checkpoint: Mapping[str, Any]) -> None:
        """Refuse data that a checkpoint's codes do not belong to.

        Args:
            datamodule: Set up.
            checkpoint: Its content.

        Raises:
            ValueError: Items, their labels, or which part they are in differ from the training's,
                or the checkpoint is another module's.
        """
        if "lifelong_hashing" not in checkpoint:
            raise ValueError("ckpt_path: the checkpoint is not one of lifelong hashing")
        trained_on = checkpoint["lifelong_hashing"].get("data")  # older checkpoints do not say
        if trained_on not in (None, datamodule.fingerprint):
            raise ValueError(
                "datamodule: the checkpoint's codes belong to other items, labels or parts than "
                "these: give the data of its run, or train on these"
            )

    # --- what queries find --------------------------------------------------------------------

    def encoded(self, part: str) -> dict[str, Tensor]:
        """Return the outputs of a part's items, (n, bits), by modality."""
        batches = encode(self.networks, self.data.in_order(part), MODALITIES)
        outputs = [found for _, found in batches]
        return {m: torch.cat([found[m] for found in outputs]) for m in MODALITIES}

    def retrieval(self, part: str, outputs: Mapping[str, Tensor]) -> Retrieval:
        """The first items of a part, as their outputs ask, and the codes that they search."""
        groups = torch.from_numpy(self.data.groups[part][: len(outputs["image"])])
        return Retrieval(
            {m: binarise(outputs[m]) for m in MODALITIES},
            self.data.parts[part].labels[: len(groups)].to(self.device),
            groups,
            {m: self.codes(m) for m in MODALITIES},
            self.data.parts["retrieval"].labels.to(self.device),
            torch.from_numpy(self.data.groups["retrieval"]),
            int(self.session),
        )

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Encode a batch of queries."""
        for m, outputs in self.networks(batch, MODALITIES).items():
            self._asked[m].append(outputs)

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        """Log the mAP of the validation part."""
        self._answer("val", "validation")

    def on_test_epoch_end(self) -> None:
        """Log the mAP of the queries."""
        self._answer("test", "query")

    def _answer(self, split: str, part: str) -> None:
        outputs = {m: torch.cat(values) for m, values in self._asked.items()}
        self._asked = {m: [] for m in MODALITIES}
        if self.trainer.sanity_checking or int(self.session) < 0:
            return
        retrieval = self.retrieval(part, outputs)
        for name, value in retrieval.maps().items():
            self.log(f"{split}/{name}", value)
        for name, value in retrieval.health().items():
            self.log(name, value)

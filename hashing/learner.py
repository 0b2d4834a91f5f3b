"""How a session learns: the loss of a batch, and the codes of its items between the steps."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from device import send
from hashing.codes import first_codes, output_codes, update_new_codes
from hashing.losses import Weights, first_session_loss, increment_loss
from hashing.networks import HashNetworks, binarise, encode
from hashing.pairs import MODALITIES, PairData, Rows
from hashing.sessions import Session
from hashing.similarity import label_similarity

ALL = (*MODALITIES, "label")


@dataclass(frozen=True)
class Learner:
    """Networks, codes and latest outputs of the retrieval part's items, as one session trains them.

    Tensors are their owner's, on one device, and written in place, so that one learner serves a
    whole session. What the codes are computed from is `SessionPlan.read`.

    Args:
        session: Which one.
        networks: Whose outputs say codes.
        data: Whose retrieval part is learned from.
        codes: int8 (n, bits), by modality; 0 where an item has none yet.
        outputs: Of `image`, `text` and `label`, (n, bits).
        weights: Of the losses.
        shared: One code for both modalities of a new item.
    """

    session: Session
    networks: HashNetworks
    data: PairData
    codes: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    weights: Weights
    shared: bool

    @cached_property
    def labels(self) -> Tensor:
        """Labels of all items: they belong to the codes, and stay with them."""
        return self._sent(self.data.parts["retrieval"].labels)

    @cached_property
    def known(self) -> Tensor:
        """Which items this session may read."""
        return self._sent(torch.from_numpy(self.session.rows))

    @cached_property
    def known_labels(self) -> Tensor:
        """Their labels."""
        return self.labels[self.known]

    def begin(self, read: Rows) -> None:
        """Give first codes to the session's items."""
        if self.session.kind == "none":
            self.encode(read, MODALITIES)
            rows = self._sent(torch.from_numpy(read))
            for m in MODALITIES:
                self.codes[m][rows] = binarise(self.outputs[m][rows])
            return
        self.encode(read, ALL if self.session.kind == "first" else MODALITIES)
        self.update_codes(read)

    def encode(self, rows: Rows, sides: tuple[str, ...]) -> None:
        """Fill the outputs of some items, which this session may read, by one pass over them."""
        for batch, outputs in encode(self.networks, self.data.in_order("retrieval", rows), sides):
            self._keep(batch, outputs)

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the loss of a batch, by the kind of the session; its outputs are kept."""
        is_first = self.session.kind == "first"
        outputs = self._keep(batch, self.networks(batch, ALL if is_first else MODALITIES))
        known, similarity = self.known, label_similarity(batch["labels"], self.known_labels)
        own = {m: self.codes[m][batch["rows"]] for m in MODALITIES}
        if is_first:
            buffers = {m: self.outputs[m][known] for m in outputs}
            return first_session_loss(outputs, buffers, similarity, own, self.weights)
        codes = {m: self.codes[m][known] for m in MODALITIES}
        return increment_loss(outputs, codes, similarity, own, self.weights)

    def _keep(
        self, batch: Mapping[str, Tensor], outputs: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Outputs as this session reads them, in full precision, kept without a gradient."""
        full = {m: each.to(self.outputs[m].dtype) for m, each in outputs.items()}
        is_lifelong = self.session.kind == "lifelong"
        read = {m: torch.tanh(each) if is_lifelong else each for m, each in full.items()}
        for m, each in read.items():
            self.outputs[m][batch["rows"]] = each.detach()
        return read

    def update_codes(self, read: Rows) -> None:
        """Compute codes anew: of all items by their outputs, or of the new ones from a sample."""
        if self.session.kind == "lifelong":
            self._descend(read)
            return
        rows = self._sent(torch.from_numpy(read))
        for m, codes in first_codes({m: self.outputs[m][rows] for m in ALL}).items():
            self.codes[m][rows] = codes

    def _descend(self, sampled: Rows) -> None:
        """Coordinate descent on the new items' codes, from the sample's latest outputs.

        An item that shares no label with the sample has no similarity to learn from: its networks
        say its code, as they say that of a query.
        """
        arriving = self.session.new
        sample, new = (self._sent(torch.from_numpy(rows)) for rows in (sampled, arriving))
        _, *both = np.intersect1d(sampled, arriving, assume_unique=True, return_indices=True)
        found = update_new_codes(
            {m: self.codes[m][new] for m in MODALITIES},
            {m: self.outputs[m][sample] for m in MODALITIES},
            label_similarity(self.labels[sample], self.labels[new]),
            self._sent(torch.from_numpy(np.stack(both))),
            len(self.session.rows),
            self.weights.alpha,
            self.shared,
        )
        for m in MODALITIES:
            self.codes[m][new] = found[m]
        labels = self.data.parts["retrieval"].labels  # on the CPU, where nothing is waited for
        classes = (labels[sampled] > 0).any(0)
        related = (labels[arriving][:, classes] > 0).any(1)
        if len(apart := arriving[~related.numpy()]):
            self.encode(apart, MODALITIES)
            alone = self._sent(torch.from_numpy(apart))
            outputs = {m: self.outputs[m][alone] for m in MODALITIES}
            for m, codes in output_codes(outputs, self.shared).items():
                self.codes[m][alone] = codes

    def _sent(self, values: Tensor) -> Tensor:
        return send(values, self.codes["image"].device)

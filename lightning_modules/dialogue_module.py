"""What DELTA's modules share: batches of turns, and a validation that forgets the one before."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

from torch import nn
from torchmetrics import MeanMetric

from lightning_modules.counted_loss import CountedLoss
from text2sql.dialogue import DialogueData, Example, by_database
from text2sql.encoder import (
    Files,
    build_encoder,
    load_encoder,
    tokenizer_from,
    train_tokenizer,
)
from text2sql.metrics import InteractionMatch


class DialogueModule(CountedLoss, ABC):
    """A module whose batches are lists of `text2sql.dialogue.Example`."""

    reads: ClassVar[str] = "turns"
    """What the data must serve."""
    unconverted: ClassVar[str] = "texts"
    """What Lightning does not convert to a precision of the weights."""
    lists_samples: ClassVar[bool] = True
    """Keeps what it writes while it is validated or tested in `samples`."""

    word_pieces: str | None = None
    """A tokenizer that was trained on the training data, as text, for checkpoints to keep."""
    kept: Files | None = None
    """Config and tokenizer of a pretrained network whose weights will be a checkpoint's."""

    def __init__(self, *judged: str) -> None:
        """Make the metrics: of `judged` match is counted, such as `val/raw`."""
        super().__init__()
        # Every batch is counted, also one with nothing to count: all processes log together.
        self.losses: Any = nn.ModuleDict({split: MeanMetric() for split in ("val", "test")})
        self.matches: Any = nn.ModuleDict({name: InteractionMatch() for name in judged})

    @abstractmethod
    def await_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Become what a checkpoint's weights are of; nothing is built by then."""

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Build the networks that the checkpoint's weights are of."""
        self.await_checkpoint(checkpoint)
        self.configure_model()

    @property
    def datamodule(self) -> DialogueData:
        """The trainer's."""
        return cast(Any, self.trainer).datamodule

    def described(self) -> dict[str, Any]:
        """What the data says of itself; nothing where it does not."""
        said: dict[str, Any] = getattr(self.datamodule, "describe", dict)()
        return said

    def encoder(
        self,
        pretrained: str | None,
        architecture: Mapping[str, Any] | None,
        vocab_size: int,
        dropout: bool = True,
    ) -> tuple[Any, Any]:
        """Return an encoder and its tokenizer: pretrained, or from scratch with word pieces.

        These are the checkpoint's that is being loaded, else those of the training data.
        """
        if pretrained is not None:
            return load_encoder(pretrained, dropout, self.kept)
        if self.word_pieces is None:
            trained = train_tokenizer(self.texts(), vocab_size)
            self.word_pieces = trained.backend_tokenizer.to_str()
        tokenizer = tokenizer_from(self.word_pieces)
        return build_encoder(architecture or {}, tokenizer), tokenizer

    def texts(self) -> dict[str, list[str]]:
        """Return what word pieces are made of, by database."""
        return by_database(self.datamodule.examples("train"))

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        """Leave examples as they are: they hold no tensors."""
        return batch

    @abstractmethod
    def evaluate_batch(self, split: str, batch: Sequence[Example]) -> None:
        """Take a batch into the running validation (`val`) or `test`."""

    @abstractmethod
    def finish(self, split: str) -> None:
        """Log what a validation (`val`) or `test` has found."""

    @abstractmethod
    def forget(self) -> None:
        """Drop what the last validation or test has written and judged."""

    def log_loss(self, split: str) -> None:
        """Log the mean loss of a validation or test, if anything was counted."""
        loss = self.losses[split]
        if loss.update_called and (mean := loss.compute()).isfinite():
            self.log(f"{split}/loss", mean, sync_dist=True)
        loss.reset()

    def log_match(self, name: str) -> None:
        """Log question and interaction match, exact and by execution, of what was counted."""
        match = self.matches[name]
        shares = match.compute() if match.update_called else {}
        for kind, share in shares.items():
            self.log(f"{name}/{kind}", share, sync_dist=True)
        match.reset()

    def on_validation_epoch_start(self) -> None:
        """Forget the last one."""
        self.forget()

    on_test_epoch_start = on_validation_epoch_start

    def validation_step(self, batch: Sequence[Example], batch_idx: int) -> None:
        """Take a batch into the validation."""
        self.evaluate_batch("val", batch)

    def test_step(self, batch: Sequence[Example], batch_idx: int) -> None:
        """Take a batch into the test."""
        self.evaluate_batch("test", batch)

    def on_validation_epoch_end(self) -> None:
        """Log what it has found."""
        self.finish("val")

    def on_test_epoch_end(self) -> None:
        """Log what it has found."""
        self.finish("test")

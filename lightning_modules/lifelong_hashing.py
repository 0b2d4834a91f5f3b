"""Lifelong cross-modal hashing: the original data and all increments as one training."""

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any, ClassVar, Literal, TypedDict, cast

import numpy as np
import pytorch_lightning as pl
import torch
from annotated_types import Ge, Gt, Interval, MultipleOf
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from hashing.codes import first_codes, output_codes, update_new_codes
from hashing.losses import FirstWeights, IncrementWeights, first_session_loss, increment_loss
from hashing.metrics import (
    DistanceCounts,
    average_precision,
    bit_balance,
    chance_precision,
    count_distances,
    distinct_codes,
    precision_recall_by_radius,
)
from hashing.networks import HashNetworks, binarise
from hashing.plots import Cell, precision_recall_plot, retrieval_grid, sessions_plot
from hashing.search import Match, results_table
from hashing.search import search as nearest_items
from hashing.sessions import Lengths, Session, SessionPlan, Strategy
from hashing.similarity import label_similarity
from hashing.store import CodeStore
from ledger import Ledger, Quality, Saving

Weight = Annotated[float, Ge(0)]
MODALITIES = ("image", "text")
# The direction, whose network makes the query's code, whose codes are searched.
DIRECTIONS = (("i2t", "image", "text"), ("t2i", "text", "image"))
SUBSETS = ("all", "old", "new")
GRID_COLUMNS = 8  # items that the run's plot shows of what a query finds
MOST_DRAWN = 50  # of them, a tenth of a second each


class Optimizer(TypedDict, total=False):
    """Of both kinds of session; the learning rate falls linearly to 0 in each."""

    name: Literal["adam", "sgd"]
    lr: Annotated[float, Gt(0)]
    increment_lr: Annotated[float, Gt(0)]
    momentum: Annotated[float, Interval(ge=0, lt=1)]
    weight_decay: Weight


class Weights(TypedDict, total=False):
    """Weights of the losses, see `hashing.losses`."""

    gamma: Weight
    eta: Weight
    mu: Weight
    alpha: Weight
    beta: Weight


class SessionLengths(TypedDict, total=False):
    """Lengths of the sessions, see `hashing.sessions.Lengths`."""

    epochs: Annotated[int, Ge(1)]
    rounds: Annotated[int, Ge(1)]
    round_epochs: Annotated[int, Ge(1)]
    sample: Annotated[int, Ge(2)]
    old_share: Annotated[float, Interval(ge=0, lt=1)]


class LifelongHashing(pl.LightningModule):
    """Hash functions learn new classes from increments; codes that exist stay as they are.

    Paper: "Deep Lifelong Cross-modal Hashing", arXiv 2304.13357. What the paper says and what is
    our decision stands in docs/methods/dlch.md.

    The first session learns networks and codes of the original items. Each increment then goes by
    the strategy. `lifelong`: networks and the codes of the new items learn from samples of old and
    new items, the codes of old ones are fixed. `no_update`: nothing is trained, new items are
    encoded as they come. `fine_tune`: the first session's training goes on, on new items only.
    `retrain`: it starts anew, on all items, and makes all codes anew.

    All sessions are one `trainer.fit` of `max_steps(datamodule)` steps. The datamodule is a
    `CrossModalDataModule` or has its attributes. Codes, buffers and networks are in the state dict.

    Args:
        strategy: What an increment does.
        bits: Length of a code, a multiple of 8.
        text_width: Hidden units of the text and of the label network; 8,192 in the authors' code.
        codes: `shared`: one code for both modalities of a new item; `per_modality`: one for each,
            as in the authors' code.
        optimizer: `name`, `lr`, `increment_lr` (learning rate of `lifelong` increments), `momentum`
            (SGD) and `weight_decay`.
        weights: `gamma`, `eta`, `mu` of the first session, `alpha`, `beta` of an increment.
        lengths: `epochs`, `rounds`, `round_epochs`, `sample`, `old_share`.
        evaluate: Which items ask after each session: the `validation` part, or the `query` part for
            a final report.
        seed: Of the networks and the order, at least 0.

    Raises:
        ValueError: A value is not allowed; the message names its key.
    """

    session: Tensor
    """Number of the session that was begun last; -1 before the first."""

    tasks: ClassVar[dict[str, bool]] = {"search": True}

    shortcuts: ClassVar[tuple[str, ...]] = ("strategy", "bits")
    """Arguments that an experiment may set at the top level."""

    follows_length: ClassVar[bool] = True
    """Its course is a share of the whole training's steps."""

    bound_to_data: ClassVar[bool] = True
    """Tells the runner that codes belong to their items: a run brings its data and all settings."""

    read_where: ClassVar[dict[str, tuple[str, Any]]] = {
        "optimizer.momentum": ("optimizer.name", ("sgd",)),
        "optimizer.increment_lr": ("strategy", ("lifelong",)),
        "lengths.rounds": ("strategy", ("lifelong",)),
        "lengths.round_epochs": ("strategy", ("lifelong",)),
        "lengths.sample": ("strategy", ("lifelong",)),
        "lengths.old_share": ("strategy", ("lifelong",)),
        "weights.alpha": ("strategy", ("lifelong",)),
        "weights.beta": ("strategy", ("lifelong",)),
    }

    validated: ClassVar[tuple[str, ...]] = (
        "train/loss", "val/*", "session_*", "distinct_codes/*", "bit_balance/*", "chance/*"
    )  # fmt: skip
    """What a callback may monitor."""

    plans_steps: ClassVar[bool] = True
    """Tells the runner to ask `max_steps` how long the training is."""

    needs_of_trainer: ClassVar[dict[str, float]] = {
        "accumulate_grad_batches": 1,
        "devices": 1,
        "limit_train_batches": 1.0,
        "num_nodes": 1,
        "overfit_batches": 0.0,
    }
    """The only values of these settings that sessions can run on: batches are the plan's steps."""

    def __init__(
        self,
        strategy: Literal["lifelong", "no_update", "fine_tune", "retrain"] = "lifelong",
        bits: Annotated[int, Ge(8), MultipleOf(8)] = 32,
        text_width: Annotated[int, Ge(1)] = 1024,
        codes: Literal["shared", "per_modality"] = "shared",
        optimizer: Optimizer | None = None,
        weights: Weights | None = None,
        lengths: SessionLengths | None = None,
        evaluate: Literal["validation", "query"] = "validation",
        seed: Annotated[int, Interval(ge=0, lt=2**32)] = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.strategy: Strategy = strategy
        self.bits, self.text_width, self.shared_codes = bits, text_width, codes == "shared"
        self.optimizer_settings: dict[str, Any] = {
            "name": "adam",
            "lr": 3e-3,
            "increment_lr": 1e-3,
            "momentum": 0.9,
            "weight_decay": 0.0,
            **(optimizer or {}),
        }
        given: dict[str, Any] = {"alpha": 0.01, "beta": 0.1, **(weights or {})}
        self.first_weights = FirstWeights(
            **{k: v for k, v in given.items() if k in ("gamma", "eta", "mu")}
        )
        self.increment_weights = IncrementWeights(given["alpha"], given["beta"])
        self.lengths = Lengths(**(lengths or {}))
        self.evaluate, self.seed = evaluate, seed
        self.networks: HashNetworks | None = None
        self.data: Any = None
        self.plan: SessionPlan = cast(SessionPlan, None)
        self.history: list[dict[str, float]] = []
        """Metrics of each finished session, by name."""
        self._seconds = dict.fromkeys(("all", "steps", "data", "codes"), 0.0)
        self._step_began = self._data_before = 0.0
        self._clock: float | None = None
        self._asked: dict[str, list[Tensor]] = {}

    # --- what is trained, and for how long --------------------------------------------------

    def max_steps(self, datamodule: Any, limit: int | None = None) -> int:
        """Plan the sessions of a training on some data, and return their steps.

        Args:
            datamodule: Set up.
            limit: Steps at most; sessions are then cut short in proportion.

        Raises:
            ValueError: The data do not fit the sessions.
        """
        groups, size = datamodule.groups["retrieval"], datamodule.batch_size
        self.plan = SessionPlan(groups, self.strategy, self.lengths, size, self.seed, limit)
        self._limit = limit
        self._shapes = (
            tuple(datamodule.image_shape),
            int(datamodule.text_features),
            len(datamodule.classes),
        )
        self._items = len(datamodule.groups["retrieval"])
        return self.plan.steps

    def setup(self, stage: str) -> None:
        """Plan the sessions, and refuse a trainer that they cannot run on."""
        self.data = cast(Any, self.trainer).datamodule
        if stage != "fit":
            self.max_steps(self.data)
            return
        limit = self.trainer.max_steps if self.trainer.max_steps > 0 else None
        for key, needed in self.needs_of_trainer.items():
            value = getattr(self.trainer, "world_size" if key in ("devices", "num_nodes") else key)
            if value != needed:
                raise ValueError(
                    f"trainer.{key}={value}: lifelong hashing needs {needed}, since its sessions "
                    "say which batch is when; shorten them by trainer.max_steps or module.lengths"
                )
        # Whoever has asked `max_steps` gave the trainer its answer, which is no limit of its own.
        if self.plan is None or limit != self.plan.steps:
            self.max_steps(self.data, limit)
        if limit is not None and limit > self.plan.steps:
            cast(Any, self.trainer.fit_loop).epoch_loop.max_steps = self.plan.steps

    def configure_model(self) -> None:
        """Make networks, codes and buffers, once, as the data needs them."""
        if self.networks is None:
            self._make(*self._shapes, self._items)

    def _make(
        self, image_shape: tuple[int, ...], text_features: int, classes: int, items: int
    ) -> None:
        self._shapes, self._items = (image_shape, text_features, classes), items
        self.networks = self._fresh_networks(0)
        for m in MODALITIES:
            codes = torch.zeros(items, self.bits, dtype=torch.int8, device=self.device)
            self.register_buffer(f"{m}_codes", codes)
        for m in (*MODALITIES, "label"):
            self.register_buffer(f"{m}_outputs", torch.zeros(items, self.bits, device=self.device))
        self.register_buffer("session", torch.tensor(-1))

    def _fresh_networks(self, session: int) -> HashNetworks:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(
                int(np.random.SeedSequence([self.seed, session]).generate_state(1)[0])
            )
            return HashNetworks(*self._shapes, self.bits, self.text_width)

    def codes(self, modality: str) -> Tensor:
        """int8 codes of the retrieval part's items, (n, bits); 0 where none has arrived yet."""
        return cast(Tensor, getattr(self, f"{modality}_codes"))

    def outputs(self, modality: str) -> Tensor:
        """The latest outputs of the items of the current session, (n, bits)."""
        return cast(Tensor, getattr(self, f"{modality}_outputs"))

    def network(self, modality: str) -> torch.nn.Module:
        """The `image`, `text` or `label` network."""
        return cast(torch.nn.Module, getattr(self.networks, modality))

    def configure_optimizers(self) -> Any:
        """One optimizer for all networks, whose losses do not meet; the rate falls by session."""
        s = self.optimizer_settings
        parameters = list(cast(torch.nn.Module, self.networks).parameters())
        optimizer: torch.optim.Optimizer
        if s["name"] == "adam":
            optimizer = torch.optim.Adam(parameters, s["lr"], weight_decay=s["weight_decay"])
        else:
            decay, momentum = s["weight_decay"], s["momentum"]
            optimizer = torch.optim.SGD(parameters, s["lr"], momentum, weight_decay=decay)

        def factor(step: int) -> float:
            if step >= self.plan.steps:
                return 0.0
            session = self.plan.session_at(step)
            peak = s["increment_lr"] / s["lr"] if session.kind == "lifelong" else 1.0
            return peak * (1 - (step - session.start) / session.steps)

        schedule = {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": {**schedule, "name": "train/lr"}}

    # --- a session --------------------------------------------------------------------------

    def on_train_start(self) -> None:
        """Start the clock."""
        self._clock = perf_counter()

    def on_train_batch_start(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Begin a session at its first step."""
        session = self.plan.session_at(self.global_step)
        if self.global_step == session.start and int(self.session) < session.number:
            self._begin(session)
        self._step_began = perf_counter()

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Loss of one batch, by the kind of its session."""
        session = self.plan.sessions[int(self.session)]
        loss = (self._lifelong_loss if session.kind == "lifelong" else self._first_loss)(
            session, batch
        )
        if self.global_step % cast(Any, self.trainer).log_every_n_steps == 0:
            self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(batch["rows"]))
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Take the step; then update codes where that is due, before any checkpoint is written."""
        super().optimizer_step(*args, **kwargs)
        self._seconds["steps"] += perf_counter() - self._step_began
        step = self.global_step  # Lightning counts this step when we are back
        session = self.plan.session_at(step)
        if session.updates_codes(step):
            began = perf_counter()
            self._update_codes(session, step)
            self._seconds["codes"] += perf_counter() - began
        if step + 1 == session.end:
            self._finish(session)
            following = self.plan.sessions[session.number + 1 :]
            for idle in itertools.takewhile(lambda session: not session.steps, following):
                self._begin(idle)
                self._finish(idle)

    def _begin(self, session: Session) -> None:
        """Start a session: its networks, its optimizer state, and first codes of its items."""
        self.session.fill_(session.number)
        self._seconds = dict.fromkeys(self._seconds, 0.0)
        self._data_before = self.data.seconds
        self._clock = began = perf_counter()
        for optimizer in self.trainer.optimizers:
            optimizer.state.clear()
        if session.fresh:
            state = self._fresh_networks(session.number).state_dict()
            cast(torch.nn.Module, self.networks).load_state_dict(state)
        if session.kind == "lifelong":
            sample = self.plan.sample(session, session.start)
            self._encode_retrieval(sample)
            self._update_new_codes(session, sample)
        elif session.kind == "first":
            self._encode_retrieval(session.rows, label=True)
            self._update_codes(session, session.start)
        else:
            self._encode_retrieval(session.rows)
            rows = torch.from_numpy(session.rows)
            for m in MODALITIES:
                self.codes(m)[rows] = binarise(self.outputs(m)[rows])
        self._seconds["codes"] += perf_counter() - began

    def _first_loss(self, session: Session, batch: Mapping[str, Tensor]) -> Tensor:
        rows = batch["rows"]
        inputs = {**batch, "label": batch["labels"].float()}
        outputs = {m: self.network(m)(inputs[m]) for m in (*MODALITIES, "label")}
        for m in outputs:
            self.outputs(m)[rows] = outputs[m].detach()
        known = self._rows_of(session)
        return first_session_loss(
            outputs,
            {m: self.outputs(m)[known] for m in outputs},
            label_similarity(batch["labels"], self._labels()[known]),
            {m: self.codes(m)[rows] for m in MODALITIES},
            self.first_weights,
        )

    def _lifelong_loss(self, session: Session, batch: Mapping[str, Tensor]) -> Tensor:
        rows = batch["rows"]
        known = self._rows_of(session)
        similarity = label_similarity(batch["labels"], self._labels()[known])
        loss = torch.zeros((), device=self.device)
        for m in MODALITIES:
            output = torch.tanh(self.network(m)(batch[m]))
            self.outputs(m)[rows] = output.detach()
            codes = self.codes(m)
            weights = self.increment_weights
            loss = loss + increment_loss(output, codes[known], similarity, codes[rows], weights)
        return loss

    def _update_codes(self, session: Session, step: int) -> None:
        if session.kind == "lifelong":
            self._update_new_codes(session, self.plan.sample(session, step))
            return
        rows = self._rows_of(session)
        outputs = {m: self.outputs(m)[rows] for m in (*MODALITIES, "label")}
        for m, codes in first_codes(outputs).items():
            self.codes(m)[rows] = codes

    def _update_new_codes(self, session: Session, sample: NDArray[np.int64]) -> None:
        """Coordinate descent on the new items' codes, from the sample's latest outputs.

        An item that shares no label with the sample has no similarity to learn from: its networks
        say its code, as they say that of a query.
        """
        new = torch.from_numpy(session.new).to(self.device)
        rows = torch.from_numpy(sample).to(self.device)
        place = torch.full((self._items,), -1, device=self.device)
        place[new] = torch.arange(len(new), device=self.device)
        labels = self._labels()
        similarity = label_similarity(labels[rows], labels[new])
        found = update_new_codes(
            {m: self.codes(m)[new] for m in MODALITIES},
            {m: self.outputs(m)[rows] for m in MODALITIES},
            similarity,
            place[rows],
            len(session.rows),
            self.increment_weights.alpha,
            self.shared_codes,
        )
        for m in MODALITIES:
            self.codes(m)[new] = found[m]
        alone = new[(similarity == 0).all(0)]
        if len(alone):
            self._encode_retrieval(alone.cpu().numpy())
            outputs = {m: self.outputs(m)[alone] for m in MODALITIES}
            for m, codes in output_codes(outputs, self.shared_codes).items():
                self.codes(m)[alone] = codes

    @contextmanager
    def _encoding(self) -> Iterator[None]:
        """Each item by itself, and without a gradient."""
        training = self.training
        self.eval()
        with torch.no_grad():
            yield
        self.train(training)

    def _encode_retrieval(self, rows: NDArray[np.int64], label: bool = False) -> None:
        """Fill the outputs of some items, which this session may read, by one pass over them."""
        squash = torch.tanh if self.plan.sessions[int(self.session)].kind == "lifelong" else None
        with self._encoding():
            for batch in self._batches("retrieval", rows):
                inputs = {**batch, "label": batch["labels"].float()}
                for m in (*MODALITIES, "label") if label else MODALITIES:
                    output = self.network(m)(inputs[m])
                    self.outputs(m)[batch["rows"]] = output if squash is None else squash(output)

    def _batches(self, part: str, rows: NDArray[np.int64] | None = None) -> Any:
        for batch in self.data.in_order(part, rows):
            yield {key: value.to(self.device) for key, value in batch.items()}

    def _labels(self) -> Tensor:
        """Labels of the retrieval part's items: they belong to the codes, and stay with them."""
        return cast(Tensor, self.data.parts["retrieval"].labels.to(self.device))

    def _rows_of(self, session: Session) -> Tensor:
        return torch.from_numpy(session.rows).to(self.device)

    # --- what was reached -------------------------------------------------------------------

    def _finish(self, session: Session) -> None:
        """Score the session, on items that no session learns from, and stop its clock."""
        self._pause()
        seconds = self._seconds
        figures = {
            "steps": float(session.steps),
            "seconds": seconds["all"],
            "step_seconds": seconds["steps"],
            "data_seconds": seconds["data"],
            "code_seconds": seconds["codes"],
            **self.score(self.evaluate),
        }
        if self.history:
            for direction, *_ in DIRECTIONS:
                for name, figure in (("forgetting", "original"), ("drift", "original_alone")):
                    before = max(past[f"map_{figure}_{direction}"] for past in self.history)
                    figures[f"{name}_{direction}"] = before - figures[f"map_{figure}_{direction}"]
        self.history.append(figures)
        named = {f"session/{name}": value for name, value in figures.items()}
        named["session/number"] = float(session.number)
        for logger in self.trainer.loggers:
            logger.log_metrics(named, step=session.end)
        self._clock = perf_counter()

    def score(self, part: str) -> dict[str, float]:
        """Mean average precision of the queries of one part, against all codes so far.

        Args:
            part: `validation` or `query`.

        Returns:
            `map_{all|old|new|original|original_alone}_{i2t|t2i}`: all queries whose classes have
            arrived; those of earlier sessions; of the last; of the first; of the first, against the
            items of the first alone.
        """
        return self._maps(part, self._encoded(part))

    def _encoded(self, part: str) -> dict[str, Tensor]:
        outputs: dict[str, list[Tensor]] = {m: [] for m in MODALITIES}
        with self._encoding():
            for batch in self._batches(part):
                for m in MODALITIES:
                    outputs[m].append(self.network(m)(batch[m]))
        return {m: torch.cat(outputs[m]) for m in MODALITIES}

    def _maps(self, part: str, outputs: Mapping[str, Tensor]) -> dict[str, float]:
        now = self._counted(part, outputs, int(self.session))
        alone = self._counted(part, outputs, 0)
        figures: dict[str, float] = {}
        for direction, (counts, groups) in now.items():
            values = average_precision(counts)
            figures[f"map_original_alone_{direction}"] = float(
                average_precision(alone[direction][0]).mean()
            )
            for name, chosen in {**self._subsets(groups), "original": groups == 0}.items():
                if chosen.any():
                    figures[f"map_{name}_{direction}"] = float(values[chosen].mean())
        return figures

    def _health(self, part: str, outputs: Mapping[str, Tensor]) -> dict[str, float]:
        """What tells codes that say something from codes that do not, whatever mAP they reach."""
        figures: dict[str, float] = {}
        known = torch.from_numpy(self.plan.known(int(self.session))).to(self.device)
        for m in MODALITIES:
            figures[f"distinct_codes/{m}"] = float(distinct_codes(self.codes(m)[known]))
            figures[f"bit_balance/{m}"] = bit_balance(self.codes(m)[known])
        for direction, (counts, _) in self._counted(part, outputs, int(self.session)).items():
            figures[f"chance/{direction}"] = float(chance_precision(counts).mean())
        return figures

    def _counted(
        self, part: str, outputs: Mapping[str, Tensor], session: int
    ) -> dict[str, tuple[DistanceCounts, Tensor]]:
        """By direction: the queries' distances to all items by a session, and their sessions."""
        groups = torch.from_numpy(self.data.groups[part][: len(outputs["image"])])
        known = torch.from_numpy(self.plan.known(session)).to(self.device)
        asked = groups <= session
        labels = self.data.parts[part].labels[: len(groups)][asked].to(self.device)
        found = {}
        for direction, query, searched in DIRECTIONS:
            counts = count_distances(
                binarise(outputs[query][asked.to(self.device)]),
                labels,
                self.codes(searched)[known],
                self._labels()[known],
            )
            found[direction] = counts, groups[asked][counts.queries.cpu()]
        return found

    def _subsets(self, groups: Tensor) -> dict[str, Tensor]:
        session = int(self.session)
        return {"all": groups >= 0, "old": groups < session, "new": groups == session}

    def on_validation_start(self) -> None:
        """Leave the time of a validation out of the session's."""
        self._pause()

    def on_validation_end(self) -> None:
        """Start the clock again."""
        self._clock = perf_counter()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save what is no tensor: the shapes, and the metrics and times of the sessions."""
        self._pause()
        self._clock = perf_counter()
        checkpoint["lifelong_hashing"] = {
            "shapes": [list(self._shapes[0]), *self._shapes[1:], self._items],
            "data": self.data.fingerprint,
            "history": self.history,
            "seconds": dict(self._seconds),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make networks and codes of the checkpoint's sizes before their values are loaded.

        Raises:
            ValueError: The data now is another.
        """
        if self.data is not None:
            self.check_data(self.data, checkpoint)
        kept = checkpoint["lifelong_hashing"]
        image_shape, text_features, classes, items = kept["shapes"]
        if self.networks is None:
            self._make(tuple(image_shape), text_features, classes, items)
        self.history = [dict(figures) for figures in kept["history"]]
        self._seconds = dict(kept["seconds"])

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

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Encode a batch of queries."""
        self._ask(batch)

    def test_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Encode a batch of queries."""
        self._ask(batch)

    def on_validation_epoch_end(self) -> None:
        """Log the mAP of the validation part, and what each finished session reached."""
        self._answer("val", "validation")

    def on_test_epoch_end(self) -> None:
        """Log the mAP of the queries."""
        self._answer("test", "query")

    def _ask(self, batch: Mapping[str, Tensor]) -> None:
        for m in MODALITIES:
            self._asked.setdefault(m, []).append(self.network(m)(batch[m]))

    def _answer(self, split: str, part: str) -> None:
        outputs = {m: torch.cat(values) for m, values in self._asked.items()}
        self._asked = {}
        if self.trainer.sanity_checking or int(self.session) < 0:
            return
        for name, value in self._maps(part, outputs).items():
            self.log(f"{split}/{name}", value)
        for name, value in self._health(part, outputs).items():
            self.log(name, value)
        for number, figures in enumerate(self.history if split == "val" else ()):
            for name, value in figures.items():
                self.log(f"session_{number}/{name}", value)

    def _pause(self) -> None:
        if self._clock is not None:
            self._seconds["all"] += perf_counter() - self._clock
            self._seconds["data"] += self.data.seconds - self._data_before
            self._clock, self._data_before = None, self.data.seconds

    @torch.no_grad()
    def search(
        self,
        datamodule: Any,
        *,
        ckpt_path: str,
        query: str | None = None,
        top_k: Annotated[int, Interval(ge=1, le=1000)] = 10,
    ) -> dict[str, float]:
        """Rank the retrieval part's items by the Hamming distance of the other modality's codes.

        Prints the ranking, and draws its first `MOST_DRAWN` items beside the run's other files.

        Args:
            datamodule: That of the training.
            ckpt_path: The run or its checkpoint.
            query: What to look for: words, a picture's path, or image:17 or text:17 for an item of
                the query part.
            top_k: How many items are shown.

        Returns:
            The smallest and the largest distance.

        Raises:
            ValueError: There is no query, or it cannot be encoded.
        """
        if not query:
            raise ValueError(
                'query: task=search needs words or a picture, such as query="red bird"'
            )
        datamodule.prepare_data()
        datamodule.setup("test")
        modality, values = datamodule.encode_query(query)
        items = datamodule.items
        self.eval()
        searched = "text" if modality == "image" else "image"
        code = binarise(self.network(modality)(values.to(self.device)))
        matches, rows = self._nearest(datamodule, searched, code, top_k)
        labels = [", ".join(np.array(items.classes)[items.labels[row] > 0]) for row in rows]
        captions = None if items.captions is None else [items.captions[row] for row in rows]
        Console().print(results_table(query, matches, self.bits, captions, labels))

        cells = [
            Cell(_shown(datamodule, row), f"{match.distance}")
            for match, row in zip(matches[:MOST_DRAWN], rows, strict=False)
        ]
        asked = Cell(values[0].numpy() if values.ndim == 4 else query)
        run = Path(ckpt_path)
        run = run if run.is_dir() else run.parent.parent
        name = re.sub(r"[^a-z0-9]+", "-", query.lower()).strip("-")[:60]
        grid = retrieval_grid([asked], [cells], run / "search" / f"{name}.png")
        Console().print(f"grid: {grid}", highlight=False, soft_wrap=True)
        return {"nearest": float(matches[0].distance), "farthest": float(matches[-1].distance)}

    def _nearest(
        self, datamodule: Any, searched: str, code: Tensor, top: int
    ) -> tuple[list[Match], list[int]]:
        """The items that have arrived and are nearest to a code, and their rows in `items`."""
        known = np.flatnonzero(datamodule.groups["retrieval"] <= int(self.session))
        codes = self.codes(searched).cpu()[torch.from_numpy(known)]
        matches = nearest_items(CodeStore(codes), code.cpu(), top)
        arrived = datamodule.parts["retrieval"].rows[known]
        rows = [int(arrived[match.row]) for match in matches]
        names = datamodule.items.names  # not the store's: several texts may have one picture
        return [replace(m, name=names[row]) for m, row in zip(matches, rows, strict=True)], rows

    def figures(self, folder: Path) -> dict[str, Path]:
        """Draw what was reached: after each session, at each radius, and for some queries.

        Args:
            folder: Gets `map_by_session.png`, `precision_recall.png` of the last session and, where
                the data has pictures, `retrieved.png`: what a query of each session finds.

        Returns:
            The files by name; none before the first session has ended.
        """
        if not self.history:
            return {}
        maps = {
            direction: {
                name: [past.get(f"map_{name}_{direction}", math.nan) for past in self.history]
                for name in SUBSETS
            }
            for direction, *_ in DIRECTIONS
        }
        outputs = self._encoded(self.evaluate)
        counted = self._counted(self.evaluate, outputs, int(self.session))
        curves = {}
        for direction, (counts, groups) in counted.items():
            for name, chosen in self._subsets(groups).items():
                if chosen.any():
                    precision, recall = precision_recall_by_radius(counts.of(chosen))
                    curves[f"{direction}, {name}"] = (precision.tolist(), recall.tolist())
        drawn = {
            "mAP by session": sessions_plot(maps, folder / "map_by_session.png"),
            "PR curves": precision_recall_plot(curves, folder / "precision_recall.png"),
        }
        if self.data.picture(0) is not None:
            queries, found = self._grid(outputs)
            drawn["retrieved"] = retrieval_grid(queries, found, folder / "retrieved.png")
        return drawn

    def _grid(self, outputs: Mapping[str, Tensor]) -> tuple[list[Cell], list[list[Cell]]]:
        """The first query of each session in both directions, and what each finds."""
        labels = self.data.items.labels
        queries, found = [], []
        for _, query, searched in DIRECTIONS:
            for number in range(int(self.session) + 1):
                first = int(np.flatnonzero(self.data.groups[self.evaluate] == number)[0])
                asked = int(self.data.parts[self.evaluate].rows[first])
                queries.append(Cell(_shown(self.data, asked, words=query == "text")))
                code = binarise(outputs[query][first])
                matches, rows = self._nearest(self.data, searched, code, GRID_COLUMNS)
                cells = []
                for match, row in zip(matches, rows, strict=True):
                    shown = _shown(self.data, row, words=searched == "text")
                    related = bool((labels[row] & labels[asked]).any())
                    cells.append(Cell(shown, f"{match.distance}", related))
                found.append(cells)
        return queries, found

    def curves(self) -> tuple[str, ...]:
        """Logged metrics to draw below the loss."""
        return ("session/map_all_i2t", "session/map_all_t2i")

    def ledger(self) -> Ledger | None:
        """What the increments saved against retraining; None before the first, or for retraining.

        Steps of the baseline are those it would take under the same limit of all steps. Its time is
        known only to a benchmark that runs it.
        """
        increments = self.history[1:]
        if not increments or self.strategy == "retrain":
            return None
        baseline = None
        if self._limit is None or self._limit >= len(self.plan.sessions):
            groups, size = self.plan.groups, self.plan.batch_size
            plan = SessionPlan(groups, "retrain", self.lengths, size, self.seed, self._limit)
            baseline = float(sum(s.steps for s in plan.sessions[1 : len(self.history)]))
        steps = sum(figures["steps"] for figures in increments)
        seconds = sum(figures["seconds"] for figures in increments)
        last = increments[-1]
        return Ledger(
            method=f"DLCH, {self.strategy}",
            baseline="retraining on all items at each increment",
            savings=(
                Saving("mini-batch steps of the increments", "steps", steps, baseline),
                Saving("time of the increments", "s", seconds, None),
            ),
            quality=tuple(
                Quality(name, last[name], better="higher")
                for direction, *_ in DIRECTIONS
                for name in (f"map_{subset}_{direction}" for subset in SUBSETS)
                if name in last
            ),
            notes=(f"mAP on the {self.evaluate} part, after the last increment",),
        )


def _shown(datamodule: Any, row: int, words: bool = False) -> NDArray[np.uint8] | str:
    """An item's picture, or its caption or name where there is none or words are asked for."""
    items = datamodule.items
    picture = None if words else datamodule.picture(row)
    text: str = items.names[row] if items.captions is None else items.captions[row]
    return text if picture is None else picture

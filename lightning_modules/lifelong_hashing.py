"""Lifelong cross-modal hashing: the original data and all increments as one training."""

import itertools
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypedDict, cast

import torch
from annotated_types import Ge, Gt, Interval, MultipleOf
from rich.console import Console
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from device import wait
from hashing.gallery import Gallery, read_further
from hashing.learner import ALL, Learner
from hashing.losses import Weights
from hashing.networks import binarise
from hashing.pairs import MODALITIES, PairData
from hashing.plots import Cell, retrieval_grid
from hashing.report import draw, lost, saved
from hashing.sessions import Lengths, Session, SessionClock, SessionPlan, Strategy
from ledger import Ledger
from lightning_modules.coded_pairs import Batch, CodedPairs

Weight = Annotated[float, Ge(0)]
MOST_DRAWN = 50  # items that a search found, a tenth of a second each


class Optimizer(TypedDict, total=False):
    """Of both kinds of session; the learning rate falls linearly to 0 in each."""

    name: Literal["adam", "sgd"]
    lr: Annotated[float, Gt(0)]
    increment_lr: Annotated[float, Gt(0)]
    momentum: Annotated[float, Interval(ge=0, lt=1)]
    weight_decay: Weight


class LossWeights(TypedDict, total=False):
    """Weights of the losses, see `hashing.losses.Weights`."""

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


class LifelongHashing(CodedPairs):
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

    plan: SessionPlan
    """From `max_steps` on."""

    tasks: ClassVar[dict[str, bool]] = {"search": True, "encode": True}

    reads: ClassVar[str] = "pairs"
    """What the data must serve."""

    unconverted: ClassVar[str] = "items beside its batches"
    """What Lightning does not convert to a precision of the weights."""

    shortcuts: ClassVar[tuple[str, ...]] = ("strategy", "bits")
    """Arguments that an experiment may set at the top level."""

    follows_length: ClassVar[bool] = True
    """Its course is a share of the whole training's steps."""

    bound_to_data: ClassVar[bool] = True
    """Tells the runner that codes belong to their items: a run brings its data and all settings."""

    read_where: ClassVar[dict[str, tuple[str, Any]]] = {
        "optimizer.momentum": ("optimizer.name", ("sgd",)),
        "codes": ("strategy", ("lifelong",)),
        "optimizer.increment_lr": ("strategy", ("lifelong",)),
        "lengths.rounds": ("strategy", ("lifelong",)),
        "lengths.round_epochs": ("strategy", ("lifelong",)),
        "lengths.sample": ("strategy", ("lifelong",)),
        "lengths.old_share": ("strategy", ("lifelong",)),
        "weights.alpha": ("strategy", ("lifelong",)),
        "weights.beta": ("strategy", ("lifelong",)),
    }

    validated: ClassVar[dict[str, tuple[str, ...]]] = {
        "min": ("train/loss",),
        "max": ("val/map_*",),
        "either": ("session_*", "distinct_codes/*", "bit_balance/*", "chance/*"),
    }
    """What a callback may monitor, by its `mode`: whether less or more of it is better."""

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
        strategy: Strategy = "lifelong",
        bits: Annotated[int, Ge(8), MultipleOf(8)] = 32,
        text_width: Annotated[int, Ge(1)] = 1024,
        codes: Literal["shared", "per_modality"] = "shared",
        optimizer: Optimizer | None = None,
        weights: LossWeights | None = None,
        lengths: SessionLengths | None = None,
        evaluate: Literal["validation", "query"] = "validation",
        seed: Annotated[int, Interval(ge=0, lt=2**32)] = 0,
    ) -> None:
        super().__init__(bits, text_width, seed)
        self.save_hyperparameters()
        self.strategy = strategy
        self.shared_codes = codes == "shared"
        self.optimizer_settings: dict[str, Any] = {
            "name": "adam",
            "lr": 3e-3,
            "increment_lr": 1e-3,
            "momentum": 0.9,
            "weight_decay": 0.0,
            **(optimizer or {}),
        }
        self.weights = Weights(**(weights or {}))
        self.lengths = Lengths(**(lengths or {}))
        self.evaluate = evaluate
        self.history: list[dict[str, float]] = []
        """Metrics of each finished session, by name."""
        self._learning: Learner | None = None  # of the current session
        self._found: list[dict[str, Any]] = []  # what was drawn of queries with pictures
        self.clock = SessionClock(lambda: self.data.seconds, lambda: wait(self.device))

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
        self.shape_by(datamodule)
        return self.plan.steps

    def setup(self, stage: str) -> None:
        """Plan the sessions, and refuse a trainer that they cannot run on."""
        trainer: Any = self.trainer
        self.data = trainer.datamodule
        if stage != "fit":
            self.max_steps(self.data)
            return
        limit = trainer.max_steps if trainer.max_steps > 0 else None
        for key, needed in self.needs_of_trainer.items():
            value = getattr(trainer, "world_size" if key in ("devices", "num_nodes") else key)
            if value != needed:
                raise ValueError(
                    f"trainer.{key}={value}: lifelong hashing needs {needed}, since its sessions "
                    "say which batch is when; shorten them by trainer.max_steps or module.lengths"
                )
        # Whoever has asked `max_steps` gave the trainer its answer, which is no limit of its own.
        if not hasattr(self, "plan") or limit != self.plan.steps:
            self.max_steps(self.data, limit)
        if limit is not None and limit > self.plan.steps:
            trainer.fit_loop.epoch_loop.max_steps = self.plan.steps

    def configure_optimizers(self) -> Any:
        """One optimizer for all networks, whose losses do not meet; the rate falls by session."""
        s = self.optimizer_settings
        parameters = list(self.networks.parameters())
        optimizer: torch.optim.Optimizer
        if s["name"] == "adam":
            optimizer = torch.optim.Adam(parameters, s["lr"], weight_decay=s["weight_decay"])
        else:
            decay, momentum = s["weight_decay"], s["momentum"]
            optimizer = torch.optim.SGD(parameters, s["lr"], momentum, weight_decay=decay)

        peak = s["increment_lr"] / s["lr"]
        schedule = {
            "scheduler": LambdaLR(optimizer, lambda step: self.plan.rate(step, peak)),
            "interval": "step",
        }
        return {"optimizer": optimizer, "lr_scheduler": {**schedule, "name": "train/lr"}}

    # --- a session --------------------------------------------------------------------------

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Begin a session at its first step; the clock goes on after whatever stopped it."""
        session = self.plan.session_at(self.global_step)
        if self.global_step == session.start:
            self._begin(session)
        self.clock.start()
        self.clock.mark()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch, by the kind of its session."""
        loss = self._learner(self.plan.session_at(self.global_step)).loss(batch)
        if self.global_step % cast(Any, self.trainer).log_every_n_steps == 0:
            self.log("train/loss", loss.detach(), batch_size=len(batch["rows"]))
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Take the step; then update codes where that is due, before any checkpoint is written."""
        super().optimizer_step(*args, **kwargs)
        step = self.global_step  # Lightning counts this step when we are back
        session = self.plan.session_at(step)
        is_due = session.updates_codes(step)
        self.clock.count("steps", settled=is_due)
        if is_due:
            self.clock.mark()
            self._learner(session).update_codes(self.plan.read(session, step))
            self.clock.count("codes", settled=True)
        if step + 1 == session.end:
            self._finish(session)
            following = self.plan.sessions[session.number + 1 :]
            for idle in itertools.takewhile(lambda session: not session.steps, following):
                self._begin(idle)
                self._finish(idle)

    def _begin(self, session: Session) -> None:
        """Start a session: its networks, its optimizer state, and first codes of its items.

        Once: a step of several micro-batches asks for it as often.
        """
        if int(self.session) >= session.number:
            return
        self.session.fill_(session.number)
        self.clock.reset()
        self.clock.mark()
        for optimizer in self.trainer.optimizers:
            optimizer.state.clear()
        if session.fresh:
            self.networks.load_state_dict(self.fresh_networks(session.number).state_dict())
        self._learner(session).begin(self.plan.read(session, session.start))
        self.clock.count("codes", settled=True)

    def _learner(self, session: Session) -> Learner:
        if self._learning is not None and self._learning.session is session:
            return self._learning
        self._learning = Learner(
            session,
            self.networks,
            self.data,
            {m: self.codes(m) for m in MODALITIES},
            {m: self.outputs(m) for m in ALL},
            self.weights,
            self.shared_codes,
        )
        return self._learning

    # --- what was reached -------------------------------------------------------------------

    def _finish(self, session: Session) -> None:
        """Score the session, on items that no session learns from, and stop its clock."""
        self.clock.pause()
        reached = self.retrieval(self.evaluate, self.encoded(self.evaluate)).maps()
        figures = {
            "steps": float(session.steps),
            **self.clock.figures(),
            **reached,
            **lost(self.history, reached),
        }
        self.history.append(figures)
        named = {f"session/{name}": value for name, value in figures.items()}
        named["session/number"] = float(session.number)
        for logger in self.trainer.loggers:
            logger.log_metrics(named, step=session.end)

    def on_validation_start(self) -> None:
        """Leave the time of a validation out of the session's."""
        self.clock.pause()

    def on_validation_epoch_end(self) -> None:
        """Log what the validation part finds, and what each finished session reached."""
        super().on_validation_epoch_end()
        if not self.trainer.sanity_checking:
            for number, figures in enumerate(self.history):
                for name, value in figures.items():
                    self.log(f"session_{number}/{name}", value)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save metrics and times of the sessions beside the codes, and stop the clock."""
        self.clock.pause()
        super().on_save_checkpoint(checkpoint)
        times = {"history": self.history, "seconds": dict(self.clock.seconds)}
        checkpoint["lifelong_hashing"] |= times

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take them up again."""
        super().on_load_checkpoint(checkpoint)
        kept = checkpoint["lifelong_hashing"]
        self.history = [dict(figures) for figures in kept["history"]]
        self.clock.seconds = dict(kept["seconds"])

    # --- task=search and task=encode ----------------------------------------------------------

    @torch.no_grad()
    def search(
        self,
        datamodule: Any,
        *,
        ckpt_path: str,
        query: str | None = None,
        top_k: Annotated[int, Interval(ge=1, le=1000)] = 10,
        store: str | None = None,
    ) -> dict[str, float]:
        """Rank items by the Hamming distance of the other modality's codes from a query's.

        Prints the ranking, and draws its first `MOST_DRAWN` items beside the run's other files.

        Args:
            datamodule: That of the training.
            ckpt_path: The checkpoint, or the folder of its run.
            query: Words, a picture's path, or image:17 or text:17 for an item of the query part.
            top_k: How many items are shown.
            store: A folder that task=encode has written, to be searched instead of the retrieval
                part.

        Returns:
            The smallest and the largest distance.

        Raises:
            ValueError: There is no query, it cannot be encoded, or the folder's codes are none of
                this training.
        """
        if not query:
            raise ValueError(
                'query: task=search needs words or a picture, such as query="red bird"'
            )
        gallery = self._gallery(datamodule)
        modality, values = datamodule.encode_query(query)
        searched = "text" if modality == "image" else "image"
        matches = gallery.nearest(searched, self._code(modality, values), top_k, store)
        Console().print(gallery.table(query, matches, self.bits))
        run = Path(ckpt_path)
        run = run if run.is_dir() else run.parent.parent
        name = re.sub(r"[\W_]+", "-", query.lower()).strip("-")[:60] or "query"
        asked = Cell(values[0].numpy() if values.ndim == 4 else query)
        found = gallery.cells(matches[:MOST_DRAWN])
        grid = retrieval_grid([asked], [found], run / "search" / f"{name}.png")
        Console().print(f"grid: {grid}", highlight=False, soft_wrap=True)
        return {"nearest": float(matches[0].distance), "farthest": float(matches[-1].distance)}

    @torch.no_grad()
    def encode(
        self, datamodule: Any, *, store: str | None = None, items: str | None = None
    ) -> dict[str, float]:
        """Keep the codes of all items that have arrived in a folder, k/8 bytes each.

        Written again, after a later session or with further items, the folder gets what it does not
        hold yet; what it holds stays as it is.

        Args:
            datamodule: That of the training.
            store: The folder, to be searched by task=search store=FOLDER.
            items: A text file with further items, each a line as `query` takes it. Their codes are
                what the networks say.

        Returns:
            How many codes of pictures and of texts were added, and are stored.

        Raises:
            ValueError: No folder is named, a line cannot be encoded, or the folder's codes are none
                of this training; then nothing is written.
        """
        if not store:
            raise ValueError("store: task=encode needs store=FOLDER, where the codes go")
        gallery = self._gallery(datamodule)
        further: dict[str, dict[str, Tensor]] = {m: {} for m in MODALITIES}
        for line, modality, values in read_further(items, datamodule) if items else ():
            further[modality][line] = self._code(modality, values)
        counts = gallery.write(store, further)
        words = ", ".join(f"{name} {count:,}" for name, count in counts.items())
        Console().print(f"codes in {store}: {words}", highlight=False, markup=False, soft_wrap=True)
        return {name: float(count) for name, count in counts.items()}

    def _gallery(self, data: PairData) -> Gallery:
        if int(self.session) < 0:
            raise ValueError("ckpt_path: of before the first step; no item has a code")
        data.prepare_data()
        data.setup("test")
        return Gallery(data, {m: self.codes(m) for m in MODALITIES}, int(self.session))

    def _code(self, modality: str, values: Tensor) -> Tensor:
        network = getattr(self.networks, modality).eval()
        return binarise(network(values.to(self.device)))[0].cpu()

    # --- for the run's report -----------------------------------------------------------------

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
        outputs = self.encoded(self.evaluate)
        drawn = draw(self.history, self.retrieval(self.evaluate, outputs), folder)
        if self.data.picture(0) is not None:
            queries, found = self._gallery(self.data).first_queries(self.evaluate, outputs)
            drawn["retrieved"] = retrieval_grid(queries, found, folder / "retrieved.png")
            self._found = [
                {"query": query.shown()} | {f"found {n}": c.shown() for n, c in enumerate(row, 1)}
                for query, row in zip(queries, found, strict=True)
            ]
        return drawn

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """Return what `figures` has drawn of queries with pictures, a row for each."""
        return {"retrieved": self._found} if self._found else {}

    def curves(self) -> tuple[str, ...]:
        """Logged metrics to draw below the loss."""
        return ("session/map_all_i2t", "session/map_all_t2i")

    def ledger(self) -> Ledger | None:
        """What the increments saved against retraining; None before the first, or for retraining.

        Steps of the baseline are those it would take under the same limit of all steps.
        """
        increments = self.history[1:]
        if not increments or self.strategy == "retrain":
            return None
        baseline = None
        if self._limit is None or self._limit >= len(self.plan.sessions):
            groups, size = self.plan.groups, self.plan.batch_size
            plan = SessionPlan(groups, "retrain", self.lengths, size, self.seed, self._limit)
            baseline = float(sum(s.steps for s in plan.sessions[1 : len(self.history)]))
        return saved(self.strategy, increments, baseline, self.evaluate)

"""Which items each session of a lifelong training may read, for how many steps, and in which order.

Everything is a function of the settings, the seed and the number of a step, so that a training goes
on at any step without having kept a position.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Literal

import numpy as np

from hashing.pairs import Rows

Strategy = Literal["lifelong", "no_update", "fine_tune", "retrain"]


@dataclass(frozen=True)
class Lengths:
    """How long sessions are.

    Args:
        epochs: Of a session that learns as the first one does: the original data, `fine_tune` and
            `retrain`. At least 1.
        rounds: Of an increment under `lifelong`: each draws a sample and ends with an update of the
            new codes. At least 1.
        round_epochs: Epochs over a round's sample, at least 1.
        sample: Items in a sample (Omega), at least 2; of fewer items all are taken.
        old_share: Share of a sample that is drawn from the items of earlier sessions, in [0, 1);
            one item at least is new.
    """

    epochs: int = 100
    rounds: int = 20
    round_epochs: int = 3
    sample: int = 500
    old_share: float = 0.75


@dataclass(frozen=True)
class Session:
    """One session: the original data (number 0), or an increment.

    Args:
        number: Counted from 0.
        kind: `first` learns from scratch or goes on as the first session did; `lifelong` keeps old
            codes and learns from samples; `none` trains nothing.
        old: Items of earlier sessions that may be read.
        new: Items that arrive, and may be read.
        start: Steps of the training before this session.
        steps: Its own.
        steps_per_epoch: Steps of a pass over what is read.
        fresh: Whether new networks are made.
    """

    number: int
    kind: Literal["first", "lifelong", "none"]
    old: Rows
    new: Rows
    start: int
    steps: int
    steps_per_epoch: int = 1
    steps_per_round: int = 1
    fresh: bool = False

    @property
    def end(self) -> int:
        """The step at which the next session starts."""
        return self.start + self.steps

    @property
    def rows(self) -> Rows:
        """All that may be read, old items first."""
        return np.concatenate([self.old, self.new])

    def updates_codes(self, step: int) -> bool:
        """Whether the codes are computed anew after a step of the training."""
        done = step + 1 - self.start
        period = self.steps_per_round if self.kind == "lifelong" else self.steps_per_epoch
        return done % period == 0 or done == self.steps


class SessionClock:
    """Seconds of a session by what they went to: `all`, `steps`, waiting for `data`, `codes`.

    It stands still while others work: validation, checkpoints, what is scored.

    Args:
        waited: Returns how long training has waited for its batches until now.
        settle: Returns when the device has done all that it was given.
    """

    def __init__(self, waited: Callable[[], float], settle: Callable[[], None]) -> None:
        self.seconds = dict.fromkeys(("all", "steps", "data", "codes"), 0.0)
        self._waited, self._settle = waited, settle
        self._began: float | None = None
        self._marked = self._waited_before = 0.0

    def reset(self) -> None:
        """Start anew: a session begins."""
        self.seconds = dict.fromkeys(self.seconds, 0.0)
        self._began = None
        self.start()

    def start(self) -> None:
        """Go on, after `pause`."""
        if self._began is None:
            self._began, self._waited_before = perf_counter(), self._waited()

    def pause(self) -> None:
        """Stand still, until `start`."""
        if self._began is not None:
            self._settle()
            self.seconds["all"] += perf_counter() - self._began
            self.seconds["data"] += self._waited() - self._waited_before
            self._began = None

    def mark(self) -> None:
        """Note that something begins."""
        self._marked = perf_counter()

    def count(self, name: str, settled: bool = False) -> None:
        """Add the time since `mark` to what it went to; `settled`: until the device is done."""
        if settled:
            self._settle()
        self.seconds[name] += perf_counter() - self._marked

    def figures(self) -> dict[str, float]:
        """Return the seconds as a session's figures are named."""
        named = {"seconds": "all", "step_seconds": "steps"}
        named |= {"data_seconds": "data", "code_seconds": "codes"}
        return {figure: self.seconds[name] for figure, name in named.items()}


class SessionPlan:
    """The sessions of one training, and the items of each of its batches.

    Args:
        groups: For each item the session in which it arrives, (n,); each session has one at least.
        strategy: `lifelong`: an increment reads samples of old and new items. `fine_tune`: new
            items only. `retrain`: all items so far, with fresh networks. `no_update`: nothing is
            trained.
        lengths: See `Lengths`.
        batch_size: Items in a batch at most, at least 1.
        seed: Of the order and of the samples, at least 0.
        limit: Steps of the whole training at most: sessions are cut short in proportion, to one
            step at least. None: as the lengths say.

    Raises:
        ValueError: There are no items in a session, or the limit is too low for a step in each.
    """

    def __init__(
        self,
        groups: Rows,
        strategy: Strategy,
        lengths: Lengths,
        batch_size: int,
        seed: int,
        limit: int | None = None,
    ) -> None:
        self.groups, self.strategy, self.lengths = groups, strategy, lengths
        self.batch_size, self.seed = batch_size, seed
        sessions = list(self._sessions())
        if limit is not None and limit < (asked := sum(session.steps for session in sessions)):
            shares = [max(1, s.steps * limit // asked) if s.steps else 0 for s in sessions]
            while sum(shares) > limit:
                longest = shares.index(max(shares))
                if shares[longest] == 1:
                    raise ValueError(f"{limit} steps are too few for {len(shares)} sessions")
                shares[longest] -= 1
            sessions = [replace(s, steps=n) for s, n in zip(sessions, shares, strict=True)]
        self.sessions: list[Session] = []
        start = 0
        for session in sessions:
            self.sessions.append(replace(session, start=start))
            start += session.steps
        self.steps = start
        self._order = functools.lru_cache(maxsize=2)(self._order_of)

    def _sessions(self) -> Iterator[Session]:
        for number in range(int(self.groups.max()) + 1):
            new = np.flatnonzero(self.groups == number)
            old = np.flatnonzero(self.groups < number)
            if not len(new):
                raise ValueError(f"session {number} has no items to learn from")
            if number > 0 and self.strategy == "no_update":
                yield Session(number, "none", old[:0], new, 0, 0)
            elif number > 0 and self.strategy == "lifelong":
                sample = sum(self._sample_sizes(len(old), len(new)))
                per_epoch = -(-sample // self.batch_size)
                per_round = per_epoch * self.lengths.round_epochs
                steps = per_round * self.lengths.rounds
                yield Session(number, "lifelong", old, new, 0, steps, per_epoch, per_round)
            else:
                old = old if self.strategy == "retrain" else old[:0]
                per_epoch = -(-(len(old) + len(new)) // self.batch_size)
                steps, fresh = per_epoch * self.lengths.epochs, self.strategy == "retrain"
                yield Session(number, "first", old, new, 0, steps, per_epoch, fresh=fresh)

    def _sample_sizes(self, old: int, new: int) -> tuple[int, int]:
        asked = self.lengths.sample
        from_old = min(old, round(asked * self.lengths.old_share), asked - 1)
        from_new = min(new, asked - from_old)
        return min(old, asked - from_new), from_new

    def session_at(self, step: int) -> Session:
        """The session that a step of the training belongs to."""
        return next(session for session in self.sessions if step < session.end)

    def rate(self, step: int, peak: float) -> float:
        """Factor on the learning rate: falls linearly to 0 in each session.

        Args:
            step: Steps already taken.
            peak: At the start of a `lifelong` session; 1 at that of the others.
        """
        if step >= self.steps:
            return 0.0
        session = self.session_at(step)
        start = peak if session.kind == "lifelong" else 1.0
        return start * (1 - (step - session.start) / session.steps)

    def sample(self, session: Session, step: int) -> Rows:
        """What a round of a `lifelong` session reads: distinct items, old ones first."""
        turn = (step - session.start) // session.steps_per_round
        draw = np.random.default_rng([self.seed, session.number, turn, 0])
        from_old, from_new = self._sample_sizes(len(session.old), len(session.new))
        old = draw.choice(session.old, from_old, replace=False)
        return np.concatenate([old, draw.choice(session.new, from_new, replace=False)])

    def read(self, session: Session, step: int) -> Rows:
        """What is read at a step: a round's sample in a `lifelong` session, else all it may."""
        return self.sample(session, step) if session.kind == "lifelong" else session.rows

    def batch(self, step: int) -> Rows:
        """The items of a step's batch; within an epoch each item comes once.

        Args:
            step: In [0, steps).
        """
        session = self.session_at(step)
        epoch, part = divmod(step - session.start, session.steps_per_epoch)
        return self._order(session.number, epoch)[part]

    def _order_of(self, number: int, epoch: int) -> list[Rows]:
        session = self.sessions[number]
        step = session.start + epoch * session.steps_per_epoch
        draw = np.random.default_rng([self.seed, number, epoch, 1])
        # Parts of nearly equal size: no small batch at an epoch's end.
        return np.array_split(draw.permutation(self.read(session, step)), session.steps_per_epoch)

"""Timing side by side: arms take turns (A B A B) and medians count.

Also what every benchmark needs: the memory of a process, versions, and its JSON.
"""

import json
import multiprocessing
import platform
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import cycle, pairwise
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, TypeVar

import torch
import transformers
from torch.nn.utils import clip_grad_norm_

from callbacks.sat import SparsityAcceleratedTraining
from callbacks.subnetwork import SubnetworkTraining
from device import wait
from lightning_modules.causal_lm import CausalLM
from subnetworks.anatomy import dimensions_of
from subnetworks.chooser import UnitChooser
from subnetworks.flops import FlopCount, StepFlops
from subnetworks.slicing import SlicedModel, activate
from subnetworks.spec import SubnetworkSpec

Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")


def interleaved(
    arms: Mapping[Key, Callable[[], float]], rounds: int, until: float | None = None
) -> dict[Key, list[float]]:
    """Let arms take turns; return the seconds of each turn.

    Args:
        arms: What each does once; it returns its seconds.
        rounds: How often each has its turn.
        until: A value of `perf_counter` after which no round begins, but for the first.
    """
    seconds: dict[Key, list[float]] = {key: [] for key in arms}
    for number in range(rounds):
        if number and until is not None and perf_counter() > until:
            break
        for key, turn in arms.items():
            seconds[key].append(turn())
    return seconds


def timed(call: Callable[..., Result], *arguments: Any) -> tuple[Result, float]:
    """Return what a call returns and its seconds, a GPU's part of them as well."""
    start = perf_counter()
    result = call(*arguments)
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return result, perf_counter() - start


class Stepper:
    """Takes optimizer steps on a language model, each on a sub-network, everything included.

    Args:
        module: The model.
        device: Where it runs.
        shape: Micro-batches of a step, sequences of one, and tokens of a sequence.
        bf16: Run under bf16 autocast.
    """

    def __init__(
        self, module: CausalLM, device: str, shape: tuple[int, int, int], bf16: bool
    ) -> None:
        torch.manual_seed(0)
        self.device = torch.device(device)
        with self.device:
            module.configure_model()
        self.config = module.hf_config
        self.module = module.train().to(self.device)
        self.sliced = SlicedModel(module.backbone)
        self.parameters = list(module.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4, fused=True)
        self.ids = torch.randint(self.config.vocab_size, shape, device=self.device)
        self.bf16 = bf16
        # A training does not wait after each step either: its host runs ahead of a GPU.
        self.consecutive = 3 if self.device.type == "cuda" else 1
        self.steps: Counter[SubnetworkSpec] = Counter()
        """Steps taken by sub-network: renewals of scores are counted for each alone."""

    def seconds(self, step: Callable[[], None]) -> float:
        """Take some steps after each other; return the mean seconds of one."""
        wait(self.device)
        start = perf_counter()
        for _ in range(self.consecutive):
            step()
        wait(self.device)
        return (perf_counter() - start) / self.consecutive

    def step(self, spec: SubnetworkSpec | None = None, chooser: UnitChooser | None = None) -> None:
        """Take one optimizer step, on the whole model if `spec` is None."""
        spec = spec or SubnetworkSpec.full(dimensions_of(self.config))
        self.steps[spec] += 1
        if chooser is not None:
            chooser.begin_step(self.steps[spec])
            if not spec.is_full and chooser.needs_probe:
                with self.precision():
                    first = self.ids[0, :1]
                    chooser.probe(self.module.backbone, {"input_ids": first, "labels": first})
        with activate(self.sliced, spec, chooser):
            for ids in self.ids:
                with self.precision():
                    loss = self.module({"input_ids": ids, "labels": ids})
                (loss / len(self.ids)).backward()
        clip_grad_norm_(self.parameters, 1.0, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def flops(self, spec: SubnetworkSpec, chooser: UnitChooser | None = None) -> StepFlops:
        """Return the FLOPs of a step, counted while it runs."""
        with FlopCount(self.config) as count:
            self.step(spec, chooser)
        return count.flops.with_optimizer(sum(p.numel() for p in self.parameters))

    def peak_memory(self, turn: Callable[[], float]) -> int | None:
        """Return the bytes in tensors of a GPU at most during a turn; None on a CPU."""
        if self.device.type != "cuda":
            return None
        torch.cuda.reset_peak_memory_stats(self.device)
        turn()
        return torch.cuda.max_memory_allocated(self.device)

    def precision(self) -> Any:
        """Return the context of a forward pass."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext()


@dataclass(frozen=True)
class Part:
    """A share of a training, and the sub-networks of its steps, one at each call."""

    share: float
    draw: Callable[[], SubnetworkSpec]


@dataclass(frozen=True)
class Course:
    """A whole training of a method: its parts, and what chooses units, if something does."""

    parts: tuple[Part, ...]
    chooser: UnitChooser | None = None

    @classmethod
    def of(
        cls, method: SubnetworkTraining, config: Any, max_steps: int, sliced: SlicedModel | None
    ) -> "Course":
        """Return what a callback does with a model in so many steps; `sliced` is what it cuts."""

        def draws(first: int, last: int) -> Callable[[], SubnetworkSpec]:
            steps = cycle(range(first, last))
            return lambda: method.draw(config, next(steps), max_steps)

        ends = (0, *method.schedule.ends(max_steps))
        parts = tuple(
            Part((last - first) / max_steps, draws(first, last))
            for first, last in pairwise(ends)
            if last > first
        )
        if sliced is None or not isinstance(method, SparsityAcceleratedTraining):
            return cls(parts)
        return cls(parts, method.chooser_of(sliced.anatomy))


Turn = tuple[str, int]
"""A course's name and the number of its part."""
DENSE: Turn = ("", 0)


def compare(
    stepper: Stepper, courses: Mapping[str, Course], rounds: int, until: float | None = None
) -> dict[str, Any]:
    """Time courses against dense steps taken in turn with them.

    Args:
        stepper: Takes the steps.
        courses: By name.
        rounds: Steps of each part.
        until: See `interleaved`.

    Returns:
        `dense_seconds_per_step`, `tokens_per_step`, and for each course what it saves of time and
        counted FLOPs, `realised` = time saved / FLOPs saved, `choosing_share`, the peak memory of a
        GPU, and its parts.
    """
    dense = SubnetworkSpec.full(dimensions_of(stepper.config))
    step = partial(stepper.step, dense)
    arms: dict[Turn, Callable[[], float]] = {DENSE: partial(stepper.seconds, step)}
    flops = {DENSE: stepper.flops(dense)}
    choosing: dict[Turn, float] = defaultdict(float)

    def turn(key: Turn, part: Part, chooser: UnitChooser | None) -> float:
        before = 0.0 if chooser is None else chooser.seconds
        seconds = stepper.seconds(lambda: stepper.step(part.draw(), chooser))
        if chooser is not None:
            choosing[key] += (chooser.seconds - before) / stepper.consecutive
        return seconds

    for name, course in courses.items():
        for index, part in enumerate(course.parts):
            spec, key = part.draw(), (name, index)
            if spec.is_full:  # the dense step itself: one arm serves both
                continue
            stepper.step(spec, course.chooser)  # the first probe has nothing to go on from
            flops[key] = stepper.flops(spec, course.chooser)
            arms[key] = partial(turn, key, part, course.chooser)
    memory = {key: stepper.peak_memory(arm) for key, arm in arms.items()}
    choosing.clear()  # of the rounds alone
    seconds = interleaved(arms, rounds, until)
    medians = {key: median(values) for key, values in seconds.items()}
    result: dict[str, Any] = {
        "dense_seconds_per_step": medians[DENSE],
        "tokens_per_step": stepper.ids.numel(),
        "rounds": len(seconds[DENSE]),
        "dense_peak_bytes": memory[DENSE],
        "courses": {},
    }
    for name, course in courses.items():
        rows = []
        for index, part in enumerate(course.parts):
            key = (name, index) if (name, index) in medians else DENSE
            counted = flops[key]
            rows.append(
                {
                    "share": part.share,
                    "time_saved": 1 - medians[key] / medians[DENSE],
                    "flops_saved_blocks": 1 - counted.blocks / flops[DENSE].blocks,
                    "flops_saved_all": 1 - counted.total / flops[DENSE].total,
                    # The mean: of the scores that probe, one step in many bears the cost for all.
                    "choosing": choosing[key] / len(seconds[DENSE]) / medians[DENSE],
                }
            )
        keys = [(name, index) for index in range(len(course.parts)) if (name, index) in memory]
        peaks = [peak for key in (DENSE, *keys) if (peak := memory[key]) is not None]
        result["courses"][name] = _whole(rows) | {"peak_bytes": max(peaks, default=None)}
    return result


def _whole(rows: list[dict[str, float]]) -> dict[str, Any]:
    """Return what a course saves by what its parts do."""

    def mean(kind: str) -> float:
        return sum(row["share"] * row[kind] for row in rows)

    time, all_flops = mean("time_saved"), mean("flops_saved_all")
    return {
        "time_saved": time,
        "flops_saved_blocks": mean("flops_saved_blocks"),
        "flops_saved_all": all_flops,
        "choosing_share": mean("choosing") / (1 - time),
        "throughput_gain": 1 / (1 - time) - 1,
        "realised": time / all_flops if all_flops else None,
        "parts": rows,
    }


def resident_bytes(field: str) -> float:
    """Memory of this process: `VmRSS` now, `VmHWM` at most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith(field))


@contextmanager
def process_of_its_own() -> Iterator[Callable[..., Any]]:
    """Start a process, whose memory is its own; yields what calls a function there."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as process:
        yield lambda function, *arguments: process.submit(function, *arguments).result()


def versions(device: str = "cpu") -> dict[str, str]:
    """Return what the figures depend on."""
    cuda = torch.device(device).type == "cuda"
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": str(torch.get_num_threads()),
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
    }


def write(path: Path | None, result: Mapping[str, Any]) -> None:
    """Write a result as JSON, if there is a path."""
    if path is not None:
        path.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")

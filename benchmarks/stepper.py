"""Optimizer steps on sub-networks, as the callbacks take them, for the clock and the counters."""

import argparse
import platform
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from time import perf_counter

import torch
import transformers
from torch.nn.utils import clip_grad_norm_
from transformers import PretrainedConfig

from lightning_modules.causal_lm import CausalLM
from subnetworks.chooser import UnitChooser
from subnetworks.context import IGNORED
from subnetworks.flops import FlopCount, StepFlops
from subnetworks.slicing import SlicedModel, activate
from subnetworks.spec import SubnetworkSpec


class Stepper:
    """Takes optimizer steps on a model, each on a sub-network, everything included.

    Args:
        config: Config of the model, whose weights are random unless `module` is given.
        args: The command line: `batch_size`, `micro_batches` and `device`.
        bf16: Run under bf16 autocast.
        module: A model of this config, built; adapters around it alone are trained.
        context_length: Tokens of a sequence; the config's longest if not given.
        prompt_share: Share of them, the first ones, without a label, in [0, 1).
    """

    def __init__(
        self,
        config: PretrainedConfig,
        args: argparse.Namespace,
        bf16: bool,
        module: CausalLM | None = None,
        context_length: int | None = None,
        prompt_share: float = 0.0,
    ) -> None:
        torch.manual_seed(0)
        self.config = config
        self.device = torch.device(args.device)
        if module is None:
            module = CausalLM(architecture=config.to_diff_dict())
            module.configure_model()
        self.module = module.train().to(self.device)
        self.sliced = SlicedModel(module.backbone)
        self.trained = [p for p in module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-4, fused=True)
        length = context_length or config.max_position_embeddings
        shape = (args.micro_batches, args.batch_size, length)
        self.ids = torch.randint(config.vocab_size, shape, device=self.device)
        self.labels = self.ids.clone()
        self.labels[..., : round(length * prompt_share)] = IGNORED
        self.bf16 = bf16
        self.steps: Counter[SubnetworkSpec] = Counter()
        """Steps taken by sub-network: renewals are counted for each alone."""

    def step(self, spec: SubnetworkSpec, chooser: UnitChooser | None = None) -> float:
        """One optimizer step; returns its seconds."""
        self.steps[spec] += 1
        self._synchronize()
        start = perf_counter()
        precision = torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext()
        if chooser is not None:
            chooser.begin_step(self.steps[spec])
            if not spec.is_full and chooser.needs_probe:
                with precision:
                    chooser.probe(
                        self.module.backbone,
                        {"input_ids": self.ids[0, :1], "labels": self.labels[0, :1]},
                    )
        with activate(self.sliced, spec, chooser):
            for ids, labels in zip(self.ids, self.labels, strict=True):
                with precision:
                    loss = self.module({"input_ids": ids, "labels": labels})
                (loss / len(self.ids)).backward()
        clip_grad_norm_(self.trained, 1.0, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._synchronize()
        return perf_counter() - start

    def flops(self, spec: SubnetworkSpec, chooser: UnitChooser | None = None) -> StepFlops:
        """FLOPs of a step, counted while it runs."""
        with FlopCount(self.config) as count:
            self.step(spec, chooser)
        return count.flops.with_optimizer(sum(p.numel() for p in self.trained))

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def resident_bytes(field: str) -> float:
    """Memory of this process: `VmRSS` now, `VmHWM` at most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def versions() -> dict[str, str]:
    """What the figures depend on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": str(torch.get_num_threads()),
        "machine": platform.machine(),
    }

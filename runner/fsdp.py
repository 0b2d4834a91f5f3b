"""The strategy behind `trainer=fsdp`."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from pytorch_lightning.strategies import ModelParallelStrategy
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer


class FullyShardedStrategy(ModelParallelStrategy):
    """All processes split one model: PyTorch's FSDP2, on CUDA by nccl or on CPUs by gloo.

    The module splits itself in `configure_model`, and says that it does by `splits_parameters`.
    Checkpoints are those of any other strategy, put together by the first process: a run can be
    resumed under another one.
    """

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        """Make the device mesh: one dimension for data, of all processes."""
        # Of what GPT-2 puts out; nothing changes it in place.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    # Lightning's own files number an optimizer's parameters by their order in the model, those of
    # other strategies by that in the optimizer, and either is read as the other.

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Put an optimizer's state together, one tensor after the other, in the first process."""
        if isinstance(optimizer, LightningOptimizer):
            optimizer = optimizer.optimizer
        split = optimizer.state_dict()  # whose inner dictionaries are the optimizer's own
        whole: dict[int, dict[str, Any]] = {}
        for number, state in split["state"].items():
            whole[number] = {}
            for name, value in state.items():
                full = value.full_tensor() if isinstance(value, DTensor) else value
                if self.is_global_zero:
                    whole[number][name] = full.cpu() if torch.is_tensor(full) else full
        return {**split, "state": whole} if self.is_global_zero else {}

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a whole checkpoint; each process takes its part of weights and moments."""
        checkpoint: dict[str, Any] = torch.load(
            self.broadcast(checkpoint_path),
            mmap=True,
            map_location="cpu",
            weights_only=weights_only,
        )
        assert self.model is not None
        assert self.lightning_module is not None
        options = StateDictOptions(
            full_state_dict=True, strict=self.lightning_module.strict_loading
        )
        set_model_state_dict(self.model, checkpoint["state_dict"], options=options)
        for optimizer, state in zip(
            self.optimizers, checkpoint.get("optimizer_states", []), strict=False
        ):
            optimizer.load_state_dict(_split(optimizer, state))
        return checkpoint


def _split(optimizer: Optimizer, whole: Mapping[str, Any]) -> dict[str, Any]:
    """Split an optimizer's state as its parameters are."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = [n for group in whole["param_groups"] for n in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for number, parameter in zip(numbers, parameters, strict=True):
        if number not in whole["state"]:  # never trained so far
            continue
        state[number] = {
            name: distribute_tensor(
                value.to(parameter.device),
                cast(DTensor, parameter).device_mesh,
                cast(DTensor, parameter).placements,
            )
            if torch.is_tensor(value) and value.shape == parameter.shape
            else value
            for name, value in whole["state"][number].items()
        }
    return {**whole, "state": state}

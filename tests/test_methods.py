"""What every method owes: it trains, accumulates, resumes bit for bit, and is off when due."""

import copy
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.strategies.launchers import _MultiProcessingLauncher
from torch.multiprocessing.spawn import ProcessRaisedException

from callbacks.rng_state import RngState
from lightning_modules.causal_lm import CausalLM
from runner.explain import CONF
from runner.fsdp import FullyShardedStrategy
from subnetworks.schedule import Schedule
from tests.settings import MAX_STEPS, SETTINGS, Setting

# A setting for each path a step can take; the others run the same proofs in `make test-slow`.
FAST = {
    "est gpt2",
    "est llama nested, held",
    "sat llama maxip",
    "sat gpt2 frozen and forward only",
}
# Of those that take several processes, one that draws and one that reads the batch.
FAST_IN_PROCESSES = {"est llama nested, held", "sat llama maxip"}


def every_setting(fast: set[str]) -> pytest.MarkDecorator:
    """Run a proof for every setting; but for those in `fast` it is slow."""
    marked = [
        pytest.param(setting, id=name, marks=[] if name in fast else pytest.mark.slow)
        for name, setting in SETTINGS.items()
    ]
    return pytest.mark.parametrize("setting", marked)


# Here a resumed training saves to a folder of its own, so that both can be compared.
pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")

Fit = Callable[..., tuple[CausalLM, Any]]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """English of about 50 kB, from the standard library."""
    import pydoc_data.topics

    path = tmp_path_factory.mktemp("text") / "topics.txt"
    path.write_text("\n".join(pydoc_data.topics.topics.values())[:50_000])
    return path


class StopAt(Callback):
    """Fails inside a step, after the sub-network has been attached."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.folder = Path()

    def on_before_zero_grad(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            self.folder = Path(str(trainer.checkpoint_callback.dirpath))
            raise RuntimeError("pulled the plug")


class Prompts(Callback):
    """Gives each sequence a prompt without labels, of a length that its first token decides."""

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        ids = batch["input_ids"]
        ignored = torch.arange(ids.shape[1]) < ids[:, :1] % 12
        batch["labels"] = ids.masked_fill(ignored, -100)


class OnlyOne(Callback):
    """Of a step's micro-batches leaves labels to one; keeps their number and the gradients."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.labels = 0
        self.gradients: list[torch.Tensor | None] = []

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx != self.number >= 0:
            batch["labels"] = torch.full_like(batch["labels"], -100)
        self.labels += int((batch["labels"][:, 1:] != -100).sum())

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.gradients = [None if p.grad is None else p.grad.clone() for p in module.parameters()]


@pytest.fixture
def fit(text: Path, cache_dir: Path, tmp_path: Path) -> Fit:
    """Trains with a method; every training leaves its checkpoints in a folder of its own."""
    numbers = count()

    def run(
        setting: Setting,
        method: bool = True,
        extra: tuple[Callback, ...] = (),
        resume: Path | None = None,
        batch_size: int = 4,
        max_steps: int = MAX_STEPS,
        save_every: int = MAX_STEPS,
        **options: Any,
    ) -> tuple[CausalLM, Any]:
        pl.seed_everything(3, workers=True, verbose=False)
        module = setting.module()
        folder = tmp_path / f"run {next(numbers)}"
        saving = ModelCheckpoint(folder, "{step}", every_n_train_steps=save_every, save_top_k=-1)
        methods = [setting.method()] if method else []
        before = [each for each in extra if isinstance(each, OnlyOne)]
        after = [each for each in extra if each not in before]
        callbacks = [RngState(seed=3), Prompts(), *before, *methods, saving, *after]
        trainer = pl.Trainer(
            accelerator="cpu",
            max_steps=max_steps,
            val_check_interval=5,
            check_val_every_n_epoch=None,
            limit_val_batches=2,
            log_every_n_steps=1,
            callbacks=callbacks,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            **{"gradient_clip_val": 1.0, **options},
        )
        data = setting.datamodule(text, cache_dir, batch_size)
        trainer.fit(module, data, ckpt_path=None if resume is None else str(resume))
        return module, trainer

    return run


def assert_equal(left: Any, right: Any, where: str = "") -> None:
    """Bit-equality of nested containers of tensors; times of the clock are left out."""
    assert type(left) is type(right), where
    if isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            if key != "seconds":
                assert_equal(left[key], right[key], f"{where}.{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), where
        for index, pair in enumerate(zip(left, right, strict=True)):
            assert_equal(*pair, f"{where}[{index}]")
    elif isinstance(left, torch.Tensor):
        assert torch.equal(left, right), where
    else:
        assert left == right, where


@every_setting(FAST)
def test_trains(setting: Setting, fit: Fit) -> None:
    """The validation loss falls, and the ledger has an entry for every step."""
    module, trainer = fit(setting, max_steps=60)
    method = next(c for c in trainer.callbacks if hasattr(c, "ledger"))
    fresh = setting.module()
    before = trainer.validate(fresh, trainer.datamodule, verbose=False)[0]["val/loss"]
    after = trainer.validate(module, trainer.datamodule, verbose=False)[0]["val/loss"]
    assert after < before - 0.3
    ledger = method.ledger()
    assert "60 steps" in ledger.baseline
    assert {row.saved for row in ledger.savings if "blocks" in row.quantity} != {0.0}
    elsewhere: Any = (
        setting.method()
    )  # a run that goes on after its last step, or has spawned this one
    elsewhere.load_state_dict(method.state_dict())
    assert elsewhere.ledger() == ledger


@every_setting(FAST)
def test_trains_in_bf16_with_clipped_gradients(setting: Setting, fit: Fit) -> None:
    """What `trainer.precision=auto` takes on a GPU; the weights stay in 32 bits."""
    module, trainer = fit(setting, max_steps=4, precision="bf16-mixed")
    assert trainer.global_step == 4
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert all(p.isfinite().all() for p in module.parameters())


@every_setting(FAST)
def test_accumulation_equals_the_large_batch(setting: Setting, fit: Fit) -> None:
    """Two micro-batches share one sub-network, and their gradients are written once."""
    if setting.reads_batch:
        pytest.skip("the first half of a batch may choose other units than the whole")
    setting = setting.without_dropout()  # which draws by micro-batch
    large, _ = fit(setting, batch_size=8)
    small, _ = fit(setting, batch_size=4, accumulate_grad_batches=2)
    for (name, left), right in zip(large.named_parameters(), small.parameters(), strict=True):
        torch.testing.assert_close(left, right, atol=2e-5, rtol=1e-4, msg=lambda m, n=name: n + m)


@every_setting(FAST)
def test_every_label_of_a_step_counts_the_same(setting: Setting, fit: Fit) -> None:
    """The gradient is the mean of those of its micro-batches, by their numbers of labels.

    Labels left out change no other micro-batch's gradient, and one without any has none.
    """
    if "taylor" in str(getattr(setting.method(), "settings", "")):
        pytest.skip("its importance depends on the labels")
    setting = setting.without_dropout()  # which draws by micro-batch
    found = [OnlyOne(-1), *(OnlyOne(number) for number in range(3))]
    for one in found:
        fit(setting, extra=(one,), max_steps=1, accumulate_grad_batches=3, gradient_clip_val=None)
    together, *parts = found
    counts = [part.labels for part in parts]
    assert len({*counts, 0}) == 4
    assert together.labels == sum(counts)
    for whole, *each in zip(together.gradients, *(p.gradients for p in parts), strict=True):
        if whole is None:
            assert each == [None] * 3
            continue
        expected = sum(n * g for n, g in zip(counts, each, strict=True)) / sum(counts)
        torch.testing.assert_close(whole, expected, atol=1e-6, rtol=1e-4)


@every_setting(FAST)
@pytest.mark.parametrize(
    ("step", "accumulate"),
    [*(pytest.param(step, 1, marks=pytest.mark.slow) for step in (1, 5, 9)), (5, 2)],
)
def test_resumes_bit_for_bit_in_every_stage(
    setting: Setting, fit: Fit, step: int, accumulate: int
) -> None:
    """Weights, optimizer, schedule, RNG and the method's own state are those of one run."""
    options = {"accumulate_grad_batches": accumulate, "save_every": 1}
    _, trainer = fit(setting, **options)
    expected = torch.load(_checkpoint(trainer, MAX_STEPS), weights_only=True)
    stop = StopAt(step + 1)
    with pytest.raises(RuntimeError, match="pulled the plug"):
        fit(setting, extra=(stop,), **options)
    torch.rand(7)  # a new process would not have this one's random state either
    _, trainer = fit(setting, resume=_newest(stop.folder), **options)
    actual = torch.load(_checkpoint(trainer, MAX_STEPS), weights_only=True)
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "rng_states"):
        assert_equal(actual[key], expected[key], key)
    for name, state in expected["callbacks"].items():
        if not name.startswith(("ModelCheckpoint", "StopAt")):
            assert_equal(actual["callbacks"][name], state, name)


@every_setting(FAST)
def test_is_off_in_validation_and_in_checkpoints(setting: Setting, fit: Fit) -> None:
    """Validation in the middle of a sampled stage sees the full model, and so does a checkpoint."""
    seen: list[tuple[float, dict[str, torch.Tensor]]] = []

    class Watch(Callback):
        def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
            if not trainer.sanity_checking:
                loss = trainer.callback_metrics["val/loss"].item()
                seen.append((loss, copy.deepcopy(module.state_dict())))

    _, trainer = fit(setting, extra=(Watch(),), save_every=2)
    assert len(seen) == 2
    plain = setting.module()
    plain.configure_model()
    for loss, state in seen:
        plain.load_state_dict(state)
        fresh = pl.Trainer(
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_checkpointing=False,
            limit_val_batches=2,
        )
        again = fresh.validate(plain, trainer.datamodule, verbose=False)[0]["val/loss"]
        assert again == pytest.approx(loss, abs=1e-6)
    checkpoint = torch.load(_checkpoint(trainer, 2), weights_only=True)
    plain.load_state_dict(checkpoint["state_dict"], strict=True)


@every_setting(FAST)
def test_without_the_method_training_is_plain(setting: Setting, fit: Fit) -> None:
    """A stage that samples nothing is bit-equal to a training without the callback."""
    plain, _ = fit(setting, method=False)
    full = Setting(
        setting.architecture,
        lambda: _emptied(setting.method()),
        module_options=setting.module_options,
    )
    off, _ = fit(full)
    assert_equal(dict(off.state_dict()), dict(plain.state_dict()))


def replicated() -> DDPStrategy:
    """The strategy of conf/trainer/ddp.yaml, in processes that are forked from this one."""
    node = yaml.safe_load((CONF / "trainer" / "ddp.yaml").read_text())["strategy"]
    assert node.pop("_target_") == f"pytorch_lightning.strategies.{DDPStrategy.__name__}"
    return DDPStrategy(start_method="fork", **node)


@every_setting(FAST_IN_PROCESSES)
def test_two_processes_train_one_model(setting: Setting, fit: Fit) -> None:
    """Two DDP processes draw the same sub-networks and end with one process's weights."""
    setting = setting.without_dropout()  # which draws by process
    alone, _ = fit(setting, batch_size=8)
    _, trainer = fit(setting, batch_size=4, devices=2, strategy=replicated())
    together = torch.load(_checkpoint(trainer, MAX_STEPS), weights_only=True)["state_dict"]
    for name, expected in alone.state_dict().items():
        torch.testing.assert_close(together[name], expected, atol=2e-5, rtol=1e-4)


class ForkingLauncher(_MultiProcessingLauncher):
    """Leaves the trained weights where they are: in the checkpoints."""

    def _recover_results_in_main_process(self, worker_output: Any, trainer: pl.Trainer) -> None:
        trainer.state = worker_output.trainer_state


class Forked(FullyShardedStrategy):
    """The same, in two processes that are forked from this one."""

    def _configure_launcher(self) -> None:
        self._launcher = ForkingLauncher(self, start_method="fork")


@every_setting(FAST_IN_PROCESSES)
def test_two_processes_split_one_model(setting: Setting, fit: Fit) -> None:
    """Under FSDP they end with one process's weights, also when they go on from its checkpoint.

    And one process goes on from theirs.
    """
    setting = setting.without_dropout()  # which draws by process
    if getattr(setting.method(), "freeze_unsampled", False):
        refused = "ValueError: .*freeze_unsampled=true: rows cannot be put back"
        with pytest.raises(ProcessRaisedException, match=refused):
            fit(setting, devices=2, strategy=Forked())
        return
    step = 6  # in the second stage
    split: Any = {"batch_size": 4, "devices": 2, "save_every": step}
    alone, one = fit(setting, batch_size=8, save_every=step)
    _, two = fit(setting, strategy=Forked(), **split)
    _, resumed = fit(setting, strategy=Forked(), resume=_checkpoint(one, step), **split)
    _, back = fit(setting, batch_size=8, save_every=step, resume=_checkpoint(two, step))
    ended = [torch.load(_checkpoint(each, MAX_STEPS), weights_only=True) for each in (one, two)]
    assert_equal(
        [group["params"] for group in ended[0]["optimizer_states"][0]["param_groups"]],
        [group["params"] for group in ended[1]["optimizer_states"][0]["param_groups"]],
    )
    for trainer in (two, resumed, back):
        together = torch.load(_checkpoint(trainer, MAX_STEPS), weights_only=True)["state_dict"]
        assert together.keys() == alone.state_dict().keys()
        for name, expected in alone.state_dict().items():
            torch.testing.assert_close(together[name], expected, atol=2e-5, rtol=1e-4)


def _checkpoint(trainer: pl.Trainer, step: int) -> Path:
    return Path(str(trainer.checkpoint_callback.dirpath)) / f"step={step}.ckpt"


def _newest(folder: Path) -> Path:
    return max(folder.iterdir(), key=lambda path: int(path.stem.split("=")[1]))


def _emptied(method: Any) -> Callback:
    method.schedule = Schedule([{"until": 1.0}])
    method.settings["context_forward_only"] = False  # it leaves something out at every rate
    return method

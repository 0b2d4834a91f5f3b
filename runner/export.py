"""task=export: a checkpoint as a folder for `from_pretrained`, with a card; pushed if asked.

The card says what the model is, from what, by what, and what was measured on it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from huggingface_hub import (
    EvalResult,
    HfApi,
    ModelCard,
    ModelCardData,
    get_token,
    try_to_load_from_cache,
)
from huggingface_hub.errors import HfHubHTTPError

from atomic import replacing_folder
from reports.registry import SPLITS
from reports.run_record import RunRecord, run_folder
from runner.errors import ConfigError, first_line, refusing
from runner.folder import checkpoint_of, fill, read_record, stored_config
from runner.parts import build
from subnetworks.families import longest_context

CARD = Path(__file__).with_name("card.md")


def export(settings: dict[str, Any], *, hub: str | None = None) -> dict[str, float]:
    """Write a checkpoint as a folder for `from_pretrained`, and push it if asked.

    Args:
        settings: The checked config.
        hub: OWNER/NAME of a repository of the Hugging Face hub, to which the folder is pushed.

    Raises:
        ConfigError: The module exports nothing, or the hub does not take it.
    """
    if hub is not None:
        refuse_push(hub)
    folder = write(settings, hub)
    print(f"exported: {folder}")
    if hub is not None:
        print(f"pushed: {push(folder, hub)}")
    return {}


def write(settings: dict[str, Any], hub: str | None = None, into: Path | None = None) -> Path:
    """Write a checkpoint, its tokenizer and a card to a folder of its run, whole or not at all.

    Args:
        settings: The checked config.
        hub: The repository that the card names.
        into: A folder of the caller's instead, who sees to it that it is whole.

    Returns:
        The folder.

    Raises:
        ConfigError: The module exports nothing.
        OSError: The disk does not take it.
    """
    checkpoint = checkpoint_of("ckpt_path", settings["ckpt_path"])
    folder = run_folder(checkpoint)
    if folder is None:
        raise ConfigError(
            f"ckpt_path={checkpoint}: not in a run folder, so its tokenizer is unknown"
        )
    module = build("module", settings["module"])
    if not hasattr(module, "export"):
        raise ConfigError(
            f"task=export: {type(module).__name__} writes nothing that other programs read. Its "
            "checkpoint is the model: see the tasks in its card in docs/methods"
        )
    content = fill(module, checkpoint)
    files: list[Any] = []
    if (folder / "tokenizer").exists():
        from language.text_encoder import saved_tokenizer

        with refusing():
            files.append(saved_tokenizer(folder / "tokenizer"))
    target = folder / "export" / f"step-{content['global_step']:08d}"
    config, record = getattr(module, "hf_config", None), read_record(folder)
    text = card(record, stored_config(folder), checkpoint, content, config, hub)
    with nullcontext(into) if into else replacing_folder(target) as unfinished:
        module.export(unfinished, files)
        (unfinished / "README.md").write_text(text, encoding="utf-8")
    return into or target


# --- the card ---------------------------------------------------------------------------------


def measured(record: RunRecord, content: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics that were measured on the weights of a checkpoint with some content."""
    step = content["global_step"]
    metrics: Mapping[str, float | None] = {}
    for state in content["callbacks"].values():
        if isinstance(state, Mapping) and state.get("validated_step") == step:
            metrics = state["metrics"]
    # A run that ends between two validations is validated after its last checkpoint.
    last = Path(record.checkpoint or "").stem
    if not metrics and record.status == "finished" and last == f"step-{step:08d}":
        metrics = record.metrics
    return {
        name: value
        for name, value in metrics.items()
        if name.partition("/")[0] in SPLITS and value is not None
    }


def card(
    record: RunRecord,
    settings: Mapping[str, Any],
    checkpoint: Path,
    content: Mapping[str, Any],
    config: Any,
    hub: str | None = None,
) -> str:
    """Return the README of an exported model.

    Args:
        record: The run's run.json.
        settings: The run's config.
        checkpoint: What was exported.
        content: What the checkpoint holds.
        config: The model's Hugging Face config; None for a module without one.
        hub: OWNER/NAME of the repository that it is for; None: it stays a folder.
    """
    kind = str(getattr(config, "model_type", "language"))
    name = f"{record.name}-{record.id}"
    reached = measured(record, content)
    module, node = settings["module"] or {}, settings["datamodule"] or {}
    base, base_card = _base(module.get("pretrained"))
    data = _data(node, record.data)
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=str(node.get("source", "unknown")),
            dataset_name=f"{data}, {metric.partition('/')[0]}",
            metric_type=metric.partition("/")[2],
            metric_value=value,
        )
        for metric, value in reached.items()
    ]
    front = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=[kind, "frugal", *record.ledgers],
        base_model=base if _is_hub_id(base) else None,
        license=getattr(base_card, "license", None),
        datasets=[each["path"] for each in (node.get("datasets") or {}).values()] or None,
        model_name=name,
        eval_results=results or None,
    )
    rows = ((ledger, row) for ledger in record.ledgers.values() for row in ledger.savings)
    made = ModelCard.from_template(
        front,
        str(CARD),
        name=name,
        kind=kind,
        record=record,
        checkpoint=checkpoint,
        step=content["global_step"],
        base=base,
        licence=front.license,
        data=data,
        context=longest_context(config),
        reached=reached,
        savings=[(ledger, row) for ledger, row in rows if row.saved is not None],
        place=hub or "PATH_OF_THIS_FOLDER",
    )
    return str(made)


def _base(named: str | None) -> tuple[str | None, Any]:
    """The base model's name without this machine's paths, and the front matter of its own card.

    An export of ours lies in a folder that is named for its step; its card has the run's name.
    """
    if named is None:
        return None, None
    folder, own = Path(named).expanduser(), None
    file = try_to_load_from_cache(named, "README.md") if _is_hub_id(named) else folder / "README.md"
    if isinstance(file, str | Path) and Path(file).is_file():
        try:
            own = ModelCard.load(file, ignore_metadata_errors=True).data
        except Exception as error:  # noqa: BLE001  parsers of damaged files raise anything
            print(f"{file}: no model card, so the licence is unknown: {first_line(error)}")
    called = getattr(own, "model_name", None) or folder.name
    return (called if folder.exists() else named), own


def _is_hub_id(named: str | None) -> bool:
    """Whether a name is OWNER/MODEL, and no file, folder, experiment or package."""
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", named or "")) and not Path(named or "").exists()


def _data(node: Mapping[str, Any], described: Mapping[str, Any]) -> str:
    """The training data in words: where from and how much."""
    source = str(node.get("source") or str(node.get("_target_", "unknown")).rpartition(".")[2])
    sets = [str(each["path"]) for each in (node.get("datasets") or {}).values()]
    files = node.get("files") or []
    files = [files] if isinstance(files, str) else files
    words = [source, *sets, *(Path(file).name for file in files)]
    if tokens := described.get("train_tokens"):
        words.append(f"{tokens:,} tokens")
    return ", ".join(words)


# --- the hub ----------------------------------------------------------------------------------


def refuse_push(hub: str) -> None:
    """Refuse a repository that is not OWNER/NAME, or to which nobody is logged in here."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", hub):
        raise ConfigError(f"hub={hub}: must be OWNER/NAME, of letters, digits, '.', '_' and '-'")
    if get_token() is None:
        raise ConfigError(
            f"hub={hub}: nobody is logged in to the hub here. Run `hf auth login`, or set HF_TOKEN"
        )


def push(folder: Path, hub: str) -> str:
    """Upload a folder and return its address; a repository that is not there is made, private.

    Raises:
        ConfigError: The hub cannot be reached, or refuses it; the folder stays.
    """
    api = HfApi()
    try:
        address = api.create_repo(hub, private=True, exist_ok=True)
        api.upload_folder(repo_id=hub, folder_path=folder, commit_message=f"Export {folder.name}")
    except (HfHubHTTPError, OSError) as error:
        raise ConfigError(f"hub={hub}: {error}\nThe export itself is whole: {folder}") from error
    return str(address)

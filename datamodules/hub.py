"""The Hugging Face hub: data sets by name, and a quick question whether it can be reached."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Gt
from typing_extensions import TypedDict

from datamodules.files import digest_file, files_under

HUB_TIMEOUT = 10.0  # seconds; without an early probe datasets and transformers retry for 25 to 50


class _Named(TypedDict):
    path: str


class DataSet(_Named, total=False):
    """One of `datamodule.datasets`; all but `path` may be left out."""

    name: str | None
    data_dir: str | None
    split: str | None
    revision: str | None


class TextDataSet(DataSet, total=False):
    """A data set of texts, and its share of the mixture."""

    text_column: str | None
    weight: Annotated[float, Gt(0)] | None


class ChatDataSet(DataSet, total=False):
    """A data set of conversations."""

    test_split: str | None


def datasets_of(settings: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the data sets that are not null.

    Raises:
        ValueError: There is none and one is needed, or there are some that nothing reads.
    """
    source, datasets = settings["source"], settings.get("datasets") or {}
    if source != "hub" and datasets:
        raise ValueError(f"datamodule.datasets is read by source=hub only, not by {source}")
    nodes = {name: node for name, node in datasets.items() if node is not None}
    if source == "hub" and not nodes:
        raise ValueError(
            "datamodule.datasets: source=hub needs at least one data set, such as "
            "{mine: {path: OWNER/NAME, split: train, text_column: text}}"
        )
    return nodes


def identity_of(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the rows of one of `datamodule.datasets` depend on.

    The hub's own content is known by revision only; a folder on this machine is read.
    """
    return {**node, "files": [digest_file(file) for file in files_under(node["path"])]}


def load_rows(name: str, node: Mapping[str, Any], streaming: bool) -> Any:
    """Open one of `datamodule.datasets` as an iterable data set of the `datasets` library.

    Raises:
        ValueError: It cannot be reached or loaded; names its key.
    """
    from datasets import load_dataset  # type: ignore[import-untyped]

    key, path = f"datamodule.datasets.{name}", node["path"]
    try:
        if not Path(path).exists():
            probe_hub("dataset", path, node.get("revision"))
        rows = load_dataset(
            path,
            node.get("name"),
            data_dir=node.get("data_dir"),
            split=node.get("split") or "train",
            revision=node.get("revision"),
            streaming=streaming,
        )
    except Exception as error:
        raise ValueError(
            f"{key}: cannot load {path!r}: {error}. Without a network choose another source, "
            "such as datamodule=docstrings or datamodule=text; for a gated data set, log in with "
            "`hf auth login`"
        ) from error
    return rows if streaming else rows.to_iterable_dataset()


def probe_hub(kind: str, name: str, revision: str | None = None) -> None:
    """Ask the hub once, for a few seconds, whether it has a repository.

    Does nothing under HF_HUB_OFFLINE=1, where only what was downloaded before can be found.

    Args:
        kind: "dataset" or "model".
        name: The repository, such as "openai-community/gpt2".
        revision: A branch, tag or commit; None for the newest.

    Raises:
        Exception: As the hub's client raises it, when there is no network or no such repository.
    """
    from huggingface_hub import HfApi, constants

    if not constants.HF_HUB_OFFLINE:
        HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=HUB_TIMEOUT)

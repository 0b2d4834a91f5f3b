"""An export is pushed when asked for, whole and private; what cannot be pushed is said first."""

from pathlib import Path
from typing import Any

import pytest

from runner import hub
from runner.errors import ConfigError
from tests.runner import laboratory


def test_an_export_is_pushed_with_its_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    laboratory.run(tmp_path, "trainer.max_steps=2")
    (run,) = (tmp_path / "tiny").iterdir()
    pushed: dict[str, Any] = {}

    class Api:
        def create_repo(self, name: str, **options: Any) -> str:
            pushed["options"] = options
            return f"https://hub/{name}"

        def upload_folder(self, *, repo_id: str, folder_path: Path, **options: Any) -> None:
            pushed["files"] = {file.name for file in folder_path.iterdir()}
            pushed["card"] = (folder_path / "README.md").read_text()

    monkeypatch.setattr(hub, "HfApi", Api)
    monkeypatch.setattr(hub, "get_token", lambda: "x")
    laboratory.run(tmp_path, "task=export", f"ckpt_path={run}")
    assert pushed == {}
    laboratory.run(tmp_path, "task=export", f"ckpt_path={run}", "++hub=me/tiny")
    assert pushed["options"] == {"private": True, "exist_ok": True}
    assert {"README.md", "model.pt"} <= pushed["files"]
    assert 'from_pretrained("me/tiny")' in pushed["card"]


def test_what_cannot_be_pushed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "get_token", lambda: None)
    for name, words in (("tiny", "OWNER/NAME"), ("a/b/c", "hub=a/b/c"), ("me/tiny", "hf auth")):
        with pytest.raises(ConfigError, match=words):
            hub.refuse(name)

    class Api:
        def create_repo(self, name: str, **options: Any) -> str:
            raise ConnectionError("no network")

    monkeypatch.setattr(hub, "HfApi", Api)
    with pytest.raises(ConfigError, match=r"no network\nThe export itself is whole"):
        hub.push(Path("folder"), "me/tiny")

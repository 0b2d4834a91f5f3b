"""Data and models of the hub with the hub's own client and a stand-in for its server."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from datasets import Dataset  # type: ignore[import-untyped]

from tests.hub_server import Hub, serving
from tests.runner.laboratory import finish, start

TOKEN = "hf_abcdefghijklmnopqrst"
SMALL = (
    "datamodule=openwebtext",
    "datamodule.val_fraction=0.1",
    "datamodule.vocab_size=300",
    "datamodule.context_length=16",
    "datamodule.batch_size=4",
    "trainer=cpu",
    "trainer.max_steps=4",
    "trainer.val_check_interval=2",
    "trainer.limit_val_batches=1",
    "logger=csv",
)
NARROW = ("n_embd=32", "n_layer=2", "n_head=2")

pytestmark = pytest.mark.slow


@pytest.fixture
def hub() -> Iterator[Hub]:
    """The stand-in, with OpenWebText's form of data: parquet with a column `text`."""
    words = ("alpha", "beta", "gamma", "delta", "tree", "house")
    texts = [f"{i} " + " ".join(words[(i + j * j) % 6] for j in range(60)) for i in range(400)]
    file = io.BytesIO()
    Dataset.from_dict({"text": texts}).to_parquet(file)
    with serving() as it:
        it.repositories["datasets/Skylion007/openwebtext"] = {
            "README.md": b"---\nlicense: cc0-1.0\n---\n",
            "plain_text/train-00000.parquet": file.getvalue(),
        }
        yield it


@pytest.fixture
def run(hub: Hub, tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """`python run.py ARGUMENTS` in a process that knows the stand-in as the hub."""

    def started(*arguments: str) -> tuple[int, str]:
        environment = {
            "HF_ENDPOINT": hub.address,
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(tmp_path / "hf"),
            "HF_TOKEN": TOKEN,
            "FRUGAL_CACHE": str(tmp_path / "cache"),
        }
        return finish(start(tmp_path / "outputs", *arguments, **environment))

    return started


def test_data_are_read_a_model_is_pushed_and_another_run_goes_on_from_it(
    hub: Hub, run: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    narrow = [f"module.architecture.{each}" for each in NARROW]
    own = "datamodule.tokenizer.pretrained=null"
    code, said = run("experiment=est_gpt2", own, *narrow, *SMALL)
    assert code == 0, said
    (folder,) = (tmp_path / "outputs" / "est_gpt2").iterdir()
    code, said = run("task=export", f"ckpt_path={folder}", "hub=me/tiny")
    assert code == 0, said
    assert f"pushed: {hub.address}/me/tiny" in said
    (exported,) = (folder / "export").iterdir()
    files = {path.name: path.read_bytes() for path in exported.iterdir()}
    assert hub.repositories["models/me/tiny"] == files
    assert not any(TOKEN.encode() in content for content in files.values())
    hub_id = ("module.pretrained=me/tiny", "datamodule.tokenizer.pretrained=me/tiny")
    code, said = run("experiment=sat_cpt", *hub_id, "datamodule.old_domain=null", *SMALL)
    assert code == 0, said
    assert hub.unknown <= {"GET api/agent-harnesses"}


def test_what_the_hub_does_not_have_is_said_before_anything_is_built(
    hub: Hub, run: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    code, said = run("experiment=est_gpt2", "module.pretrained=me/none", *SMALL)
    assert code == 2, said
    assert "me/none" in said
    hub.repositories.clear()
    code, said = run("experiment=est_gpt2", "datamodule.tokenizer.pretrained=null", *SMALL)
    assert code == 2, said
    assert "datamodule.datasets.openwebtext: cannot load 'Skylion007/openwebtext'" in said
    assert "Traceback" not in said
    assert not (tmp_path / "outputs").exists()

"""The benchmark of SAT: the JSON has what it promises, arms differ in what they say and no more."""

import json
import pydoc_data.topics
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks import sat
from datamodules.language_modeling import LanguageModelingDataModule

SMALL = {
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "max_position_embeddings": 16,
    "vocab_size": 300,
}


def test_the_json_holds_what_the_benchmark_promises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sat.TIMED, "quick", SMALL)
    monkeypatch.setattr(sat, "peak_memory_ratio", lambda args: 1.0)
    path = tmp_path / "sat.json"
    sat.main(["--quick", "--no-quality", "--rounds", "2", "--json", str(path)])
    result = json.loads(path.read_text())
    assert {
        "throughput_gain",
        "sft_time_saved",
        "realised",
        "choosing_share",
        "peak_memory_ratio",
        "new_domain_loss",
        "old_domain_loss",
        "versions",
    } <= result.keys()
    for timed in result["timings"].values():
        saved = [row["flops_saved_blocks"] for row in timed["rates"]]
        assert saved == pytest.approx([0.0, 0.25, 0.5, 0.75], abs=1e-6)
        # 0.6 of the steps at half of the units, the rest on four rungs down to all of them.
        assert [share for share, _ in timed["sat_cpt"]["rungs"]] == pytest.approx([0.6] + [0.1] * 4)
        assert sum(share for share, _ in timed["sat_sft"]["rungs"]) == pytest.approx(1.0)


@pytest.mark.slow
def test_arms_are_trained_by_seed_and_shown(
    tmp_path: Path, cache_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "topics.txt"
    text.write_text("\n".join(pydoc_data.topics.topics.values())[:100_000])
    base = tmp_path / "base"
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SMALL)).save_pretrained(base)
    data = LanguageModelingDataModule(
        source="text", files=str(text), vocab_size=300, cache_dir=str(cache_dir)
    )
    data.prepare_data()
    data.tokenizer.save_pretrained(base)
    overrides = [
        f"module.pretrained={base}",
        "datamodule=text",
        f"datamodule.files={text}",
        "datamodule.context_length=16",
        "datamodule.batch_size=4",
        "datamodule.vocab_size=300",
        "datamodule.old_domain=null",
        f"paths.cache_dir={cache_dir}",
        "trainer.max_steps=8",
        "trainer.limit_val_batches=2",
    ]
    arms = ["dense", "dense, equal time", "SAT wanda, top k, falling", "SAT uniform, falling"]
    result = sat.main(
        [
            "--no-timing",
            "--time-left",
            "0.5",
            "--seeds",
            "1",
            "2",
            "--arms",
            *arms,
            "--overrides",
            *overrides,
        ]
    )
    losses = result["new_domain_loss"]
    assert list(losses) == arms
    json.dumps(result, allow_nan=False)  # what was not measured is null
    assert all(len(values) == 2 for values in losses.values())
    # Half of the steps of the same order from the same start: the dense arm is not the same.
    assert len({values[0] for values in losses.values()}) == 4
    assert "SAT uniform, falling" in capsys.readouterr().out


def test_an_arm_of_equal_time_needs_a_time() -> None:
    with pytest.raises(SystemExit):
        sat.parse(["--no-timing"])

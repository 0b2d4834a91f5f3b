"""task=evaluate scores files from run.py, and says in words what is wrong with them."""

import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

import runner
from runner.validate import CONF, ConfigError
from tests.text2sql.conftest import make


def run(**settings: str) -> dict[str, float]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        pairs = [f"{key}={value}" for key, value in settings.items()]
        return runner.run(compose("config", ["experiment=delta_sparc", "task=evaluate", *pairs]))


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    make(tmp_path / "databases" / "concerts" / "concerts.sqlite")
    (tmp_path / "gold.txt").write_text(
        "SELECT name FROM singer\tconcerts\nSELECT age FROM singer\tconcerts\n\n"
        "SELECT title FROM concert\tconcerts\n"
    )
    (tmp_path / "predictions.txt").write_text(
        "SELECT name FROM singer\nSELECT name FROM singer\n\nSELECT title FROM concert\n"
    )
    return {
        "gold": f"{tmp_path}/gold.txt",
        "predictions": f"{tmp_path}/predictions.txt",
        "database": f"{tmp_path}/databases",
        "json": f"{tmp_path}/scores.json",
    }


def test_scores_and_verdicts_are_written(
    files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = run(**files)
    assert metrics == {
        "exact": 2 / 3,
        "exact_interaction": 0.5,
        "execution": 2 / 3,
        "execution_interaction": 0.5,
    }
    written = json.loads(Path(files["json"]).read_text())
    assert {key: written[key] for key in metrics} == metrics
    assert [verdict["exact"] for verdict in written["verdicts"]] == [True, False, True]
    assert "by hardness" in capsys.readouterr().out


def test_a_missing_prediction_is_refused_unless_asked_for(files: dict[str, str]) -> None:
    path = Path(files["predictions"])
    path.write_text("SELECT name FROM singer\n\nSELECT title FROM concert\n")
    with pytest.raises(ConfigError, match="interaction 0, turn 1"):
        run(**files)
    assert run(**files, **{"module.missing": "wrong"})["exact"] == 2 / 3
    assert run(**files, **{"module.missing": "skip"})["exact"] == 1


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("gold", "null", "gold: task=evaluate needs"),
        ("predictions", "/nowhere.txt", "nowhere.txt: cannot be read"),
        ("database", "/nowhere", "/nowhere: no such folder"),
        ("database", "null", "module.tables"),
        ("json", "/nowhere/x.json", "json=/nowhere/x.json: there is no folder"),
    ],
)
def test_what_is_missing_is_named(key: str, value: str, words: str, files: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=words):
        run(**{**files, key: value})

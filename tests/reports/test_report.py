"""A report says the same in three languages, escapes what others wrote, and fetches nothing."""

import itertools
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from reports import figures
from reports.document import Code, Heading, Lines, Link, Table, latex, markdown, webpage
from reports.registry import find, read
from reports.report import (
    DOCUMENTS,
    claims,
    number,
    papers,
    report,
    reported,
    results,
    savings,
    write,
)
from reports.statistics import Difference, Spread, arms_of, baseline_of
from tests.reports.study import make_run, make_study

EVIL = r"""50% & _x_ $y$ #1 {a} \b ~^ <script>alert('1')</script> | `c` [l](u) *s* "q" -- ü"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the report of a study."""
    top = tmp_path_factory.mktemp("study")
    make_study(top)
    assert report({"paths": {"output_dir": str(top)}}, runs=f"{top}/*/*") == {"runs": 6, "arms": 2}
    return next((top / "reports").iterdir())


class Page(HTMLParser):
    """Collects tags, what they fetch, and ids."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.ids: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "srcset") or (tag == "link" and name == "href"):
                self.fetched.append(str(value))
            if name == "id":
                self.ids.append(str(value))


def test_the_three_documents_hold_the_same_numbers(folder: Path) -> None:
    texts = [(folder / name).read_text() for name in DOCUMENTS]
    plain = [
        t.replace(r"$\pm$", "\u00b1")
        .replace("$-$", "\u2212")
        .replace("\\", "")
        .replace("&nbsp;", " ")
        for t in texts
    ]
    # By hand: train/loss of est 4.1, 4.5, 4.6; minus dense 0.1, 0.3, 0.2.
    for text in plain:
        assert "4.40 \u00b1 0.26" in text
        assert "+0.200 [\u22120.048, +0.448]" in text
        assert "10 s (estimated)" in text
        assert "26.7 " in text


def test_the_page_fetches_nothing_and_its_figures_share_no_ids(folder: Path) -> None:
    page = Page((folder / "report.html").read_text())
    assert page.fetched == []
    assert "script" not in page.tags
    assert page.tags.count("svg") == 6
    assert len(page.ids) > 20
    assert len(page.ids) == len(set(page.ids))


def test_every_run_is_linked_with_its_command(folder: Path) -> None:
    text = (folder / "report.md").read_text()
    targets = re.findall(r"\]\((\.\./[^)]*)\)", text)
    assert len(targets) == 6
    assert all((folder / target / "run.json").exists() for target in targets)
    assert text.count("`python run.py name=") == 6


def test_figures_are_written_as_vectors_and_pixels(folder: Path) -> None:
    names = {path.name for path in (folder / "figures").iterdir()}
    assert {f"val-loss.{kind}" for kind in ("svg", "png", "pdf")} <= names
    root = ElementTree.parse(folder / "figures" / "val-loss.svg").getroot()
    words = {
        "".join(node.itertext()).strip() for node in root.iter("{http://www.w3.org/2000/svg}text")
    }
    assert {"dense", "est", *figures.AXES.values(), "validation loss (nats per token)"} <= words


def test_other_peoples_text_is_escaped_in_each_language(tmp_path: Path) -> None:
    blocks = [Heading(EVIL), Lines([EVIL]), Table([EVIL], [[EVIL], [Code(EVIL)]], EVIL)]
    blocks.append(Table(["a", "b"], [[Link(EVIL, "a b/<x>"), EVIL]]))
    page = webpage(EVIL, blocks, tmp_path)
    assert "<script" not in page
    assert "a%20b/%3Cx%3E" in page
    tex = latex(EVIL, blocks)
    body = tex[tex.index("\\section*") :]
    assert not re.search(r"(?<!\\)[#%_]", body.replace("\\href{run:a\\%20b/\\%3Cx\\%3E}", ""))
    assert "\\b " not in body
    assert r"\textbackslash{}b" in body
    text = markdown(EVIL, blocks)
    assert "\\<script\\>" in text
    table = [line for line in text.splitlines() if line.startswith("| ")]
    # As many cells in each row as headings, whatever the text.
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {2, 3}


def test_numbers_keep_their_units_on_a_narrow_page_and_commands_their_spaces(
    tmp_path: Path,
) -> None:
    command = "python run.py seed=1 n=2 x"
    table = Table(["a", "b"], [["4.0 \u00b1 0.1 %", "+0.2 [+0.1, +0.3]"], ["", Code(command)]])
    page = webpage("t", [table], tmp_path)
    assert "4.0 \u00b1&nbsp;0.1&nbsp;%" in page
    assert "+0.2 [+0.1, +0.3]" in page
    assert f"<code>{command}</code>" in page


def test_an_arm_without_a_metric_has_no_row_of_it(tmp_path: Path) -> None:
    make_run(tmp_path, "a", 1, record={"metrics": {"val/loss": 2.0}})
    metrics = {"val/loss": 3.0, "val/exact": 0.5}
    make_run(tmp_path, "b", 1, record={"metrics": metrics}, data={"batch_size": 4})
    rows = results(arms_of(find([tmp_path])[0])[0], None).rows
    assert [row[0] for row in rows] == ["val/loss", "a", "b", "val/exact", "b"]


def test_long_names_and_numbers_fit_into_figures_of_one_panel(tmp_path: Path) -> None:
    make_study(tmp_path)
    runs = arms_of(find([tmp_path])[0])[0][0].runs
    curve = figures.curve(runs, "val/loss")
    assert curve is not None
    steps = replace(curve, x={"steps": curve.x["steps"]})
    labels = [f"{name} (module.strategy=retraining, rate=0.25)" for name in "abcdefgh"]
    figure = figures.arms_figure(dict.fromkeys(labels, steps), "loss", marked=True)
    figure.draw_without_rendering()
    assert figure.axes[0].get_window_extent().height > 1.5 * figure.dpi
    (legend,) = figure.legends
    box, whole = legend.get_window_extent(), figure.bbox
    assert whole.x0 <= box.x0 < box.x1 <= whole.x1
    assert whole.y0 <= box.y0 < box.y1 < figure.axes[0].get_window_extent().y0

    gap = Difference(-0.01380000, None, 1)
    figure = figures.differences_figure({"loss": dict.fromkeys(labels, gap)}, labels, "dense")
    figure.draw_without_rendering()
    (panel,) = figure.axes
    assert len({text.get_text() for text in panel.get_yticklabels()}) == len(labels)
    assert panel.xaxis.label.get_window_extent().x1 <= figure.bbox.x1
    for texts in (panel.get_xticklabels(), panel.get_yticklabels()):
        boxes = [text.get_window_extent() for text in texts]
        assert not any(one.overlaps(other) for one, other in itertools.pairwise(boxes))


def test_control_characters_are_written_as_escapes(tmp_path: Path) -> None:
    lines = [Lines(["a\x1b[2J\u202eb\nc"])]
    for text in (markdown("t", lines), latex("t", lines), webpage("t", lines, tmp_path)):
        assert "\x1b" not in text
        assert "\u202e" not in text
    assert "c" in markdown("t", lines)


def test_a_name_with_markup_goes_through_figures_and_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reports.report._WIDTHS", (("", 2, ("svg",)), ("-narrow", 1, ("svg",))))
    folders = [make_run(tmp_path, "_a_$x^$ <b>&%", seed) for seed in (1, 2, 3)]
    (folders[2] / "metrics.csv").unlink()
    arms, _ = arms_of(find([tmp_path])[0])
    write(tmp_path / "out", arms, None, [])
    root = ElementTree.parse(tmp_path / "out" / "figures" / "val-loss.svg").getroot()
    assert any("_a_$x^$ <b>&%" in "".join(node.itertext()) for node in root.iter())
    # A run without curves has figures in the tables all the same.
    page = (tmp_path / "out" / "report.html").read_text().replace("&nbsp;", " ")
    assert "&lt;b&gt;&amp;% 2 of 3;" in page


def test_one_run_without_metrics_is_reported(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "a", 1, record={"metrics": {"val/loss": None, "train/loss": 2.0}})
    (folder / "metrics.csv").unlink()
    (folder / "config.yaml").unlink()
    arms, _ = arms_of(find([tmp_path])[0])
    write(tmp_path / "out", arms, baseline_of(arms), [])
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| a | 1 | 2.000 |" in text
    assert "not a finite number" in text
    assert not (tmp_path / "out" / "figures").exists()


def test_unequal_seeds_are_paired_where_they_meet(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        make_run(tmp_path, "dense", seed, loss=4.0)
    for seed in (3, 4):
        make_run(tmp_path, "est", seed, loss=4.5, method={"_target_": "a.B"})
    arms, _ = arms_of(find([tmp_path])[0])
    rows = [row for row in results(arms, baseline_of(arms)).rows if row[0] == "est"]
    assert [row[2:] for row in rows][-1] == ["4.500 \u00b1 0.000", "+0.500", "1"]


def test_what_was_measured_afterwards_is_shown_by_its_mean(tmp_path: Path) -> None:
    for seed, share in ((1, 0.5), (2, 0.7)):
        folder = make_run(tmp_path, "est", seed)
        metrics = {"adjuncts": share - 0.1, "islands": share + 0.1, "mean": share}
        measured = {"metrics": metrics, "keys": {"limit": seed}}
        (folder / "minimal_pairs.json").write_text(json.dumps(measured))
    arms, _ = arms_of(find([tmp_path])[0])
    assert arms[0].values("minimal_pairs/islands") == {"1": 0.6, "2": pytest.approx(0.8)}
    assert [m for m in reported(arms) if "minimal_pairs" in m] == ["minimal_pairs/mean"]
    write(tmp_path / "out", arms, None, [])
    told = re.search("Not all .*", (tmp_path / "out" / "report.tex").read_text())
    assert told is not None
    assert ": 1\\} (1 of 2), \\{" in told[0]


def test_what_is_forgotten_is_reported_after_what_is_learned(tmp_path: Path) -> None:
    make_run(tmp_path, "sat", 1, record={"metrics": {"old/loss": 2.0, "train/loss": 1.0}})
    arms, _ = arms_of(find([tmp_path])[0])
    assert reported(arms) == ["old/loss", "train/loss"]


def test_arms_with_other_data_are_told(tmp_path: Path) -> None:
    dense = make_run(tmp_path, "dense", 1)
    make_run(tmp_path, "est", 1, method={"_target_": "a.B"})
    make_run(tmp_path, "dense_code", 1, data={"batch_size": 4})
    arms, _ = arms_of(find([tmp_path])[0])
    write(tmp_path / "out", arms, baseline_of(arms, read(dense).id), [])
    text = (tmp_path / "out" / "report.md").read_text()
    told = re.findall(r".*differ in their data.*", text)
    assert told == [r"* dense\_code and dense differ in their data: batch\_size 4 and 2."]


def test_runs_of_other_code_and_machines_are_told(tmp_path: Path) -> None:
    for seed, threads in ((1, 2), (2, 2), (3, 8)):
        record = {"git": {"commit": "abc"}, "hardware": {"cpu": "x", "threads": threads}}
        make_run(tmp_path, "a", seed, record=record if seed > 1 else {**record, "git": {}})
    arms, _ = arms_of(find([tmp_path])[0])
    write(tmp_path / "out", arms, None, [])
    told = re.findall("Not all .*", (tmp_path / "out" / "report.md").read_text())
    assert told == [
        "Not all runs have the same commit: none (1 of 3), abc (2 of 3)",
        "Not all runs have the same threads: 2 (2 of 3), 8 (1 of 3)",
    ]


def test_a_report_of_nothing_says_what_is_there(tmp_path: Path) -> None:
    make_run(tmp_path, "a", 1, record={"status": "failed"})
    with pytest.raises(ValueError, match=r"no finished run there\n  .*: failed"):
        report({"paths": {"output_dir": str(tmp_path)}}, runs=str(tmp_path))


def test_figures_over_tokens_flops_and_seconds_lie_where_a_hand_computes_them(
    tmp_path: Path,
) -> None:
    make_study(tmp_path)
    arms, _ = arms_of(find([tmp_path])[0])
    dense, est = arms
    found = [figures.curve(arm.runs, "val/loss") for arm in (dense, est)]
    assert found[0] is not None
    assert found[1] is not None
    # 100 steps of 64 tokens at 640 a second; a dense one costs 8 GFLOPs, of which 6 are spent.
    assert found[0].x["tokens"][-1] == 6400
    assert found[0].x["seconds"][-1] == pytest.approx(10)
    assert [each.x["FLOPs"][-1] for each in found if each] == pytest.approx([8e11, 6e11])
    np.testing.assert_allclose(found[0].mean[-1], 4.7)
    np.testing.assert_allclose(found[0].std[-1], 0.2)


def test_smoothing_keeps_lines_and_takes_noise_away() -> None:
    line = [float(place) for place in range(100)]
    assert figures.smooth(line) == pytest.approx(line)
    noisy = figures.smooth([value + (-1) ** int(value) for value in line])
    assert np.abs(np.array(noisy) - line)[10:-10].max() < 0.3
    assert figures.smooth([1.0]) == [1.0]


def test_the_dense_run_of_the_same_work_and_seed_stands_beside(tmp_path: Path) -> None:
    make_study(tmp_path)
    runs = find([tmp_path])[0]
    est = next(run for run in runs if run.name == "est" and run.seed == 2)
    beside = figures.dense_beside(est, runs)
    assert beside is not None
    assert (beside.name, beside.seed) == ("dense", 2)
    assert figures.dense_beside(beside, runs) is None
    for run in runs:
        run.config["datamodule"]["source"] = run.name  # another text is no baseline
    assert figures.dense_beside(est, runs) is None
    drawn = figures.run_figure(est, ("est/active_fraction",), beside)
    assert drawn is not None
    assert len(drawn.axes) == 3


def test_papers_stand_beside_the_arms_that_run_their_method(tmp_path: Path) -> None:
    make_run(tmp_path, "est_gpt2", 1, method={"_target_": "a.B"})
    make_run(tmp_path, "dense", 1)
    arms, _ = arms_of(find([tmp_path])[0])
    table = claims(arms)
    assert table is not None
    assert [list(row[1:]) for row in table.rows] == [["26.7 %", "est_gpt2", "25.00 %"]]
    assert {claim["row"][0] for claim in papers()} == {"EST", "SAT"}
    assert claims([arm for arm in arms if arm.label == "dense"]) is None
    assert savings([arm for arm in arms if arm.label == "dense"]) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Spread(4.0207, 0.0338, 3), "4.021 \u00b1 0.034"),
        (Spread(4.0207, None, 1), "4.021"),
        (Spread(4227.3, 2324.8, 3), "4,227 \u00b1 2,325"),
        (Spread(-0.5, None, 1), "\u22120.5000"),
        (Spread(0.0, 0.0, 2), "0 \u00b1 0"),
        (Spread(4.1671e-6, 1.23e-8, 2), "4.167e\u221206 \u00b1 1.2e\u221208"),
        (Spread(4.1671e-6, 0.0, 2), "4.167e\u221206 \u00b1 0"),
        (None, ""),
    ],
)
def test_numbers_have_the_digits_that_their_spread_leaves(value: Spread | None, text: str) -> None:
    assert number(value) == text

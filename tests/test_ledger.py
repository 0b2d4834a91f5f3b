"""A ledger says exactly what was measured: no figure is made up, none is lost in a file."""

from pathlib import Path

import pytest
from rich.console import Console

from ledger import Ledger, Quality, Saving
from reports.run_record import RunRecord, read_record, write_record

BLOCKS = Saving("counted FLOPs, blocks", "FLOPs", 11e14, 15e14)
ALL = Saving("counted FLOPs, everything", "FLOPs", 16.1e14, 20e14)
TIME = Saving("time [blocks]", "s", 81.0, 108.0)
UNMEASURED = Saving("annotated examples", "turns", 4203, None)
LOSS = Quality("val/loss", 3.41, 3.28)
ACCURACY = Quality("val/accuracy", 0.75, better="higher")


@pytest.fixture
def ledger() -> Ledger:
    notes = ("Blocks: [attention] and MLP.", "One seed.")
    return Ledger("EST", "dense", (BLOCKS, ALL, TIME, UNMEASURED), (LOSS, ACCURACY), notes)


def shown(ledger: Ledger) -> str:
    console = Console(width=120, color_system=None)
    with console.capture() as capture:
        console.print(ledger.table())
    return capture.get()


def line(ledger: Ledger, name: str) -> list[str]:
    """Return the cells of the row called `name`, without their padding."""
    row = next(text for text in shown(ledger).splitlines() if name in text)
    return [cell.strip() for cell in row.strip("│").split("│")]


def test_saved_is_the_share_of_the_baseline_that_was_not_spent() -> None:
    assert BLOCKS.saved == pytest.approx(4 / 15)
    assert Saving("time", "s", 12, 10).saved == pytest.approx(-0.2)


@pytest.mark.parametrize(
    ("spent", "baseline"),
    [(-1.0, 1.0), (float("nan"), 1.0), (float("inf"), 1.0), (1.0, 0.0), (1.0, float("nan"))],
)
def test_an_impossible_figure_is_refused_by_name(spent: float, baseline: float) -> None:
    with pytest.raises(ValueError, match=r"time: spent=.* baseline="):
        Saving("time", "s", spent, baseline)


def test_gain_is_positive_when_the_method_is_better_in_either_direction() -> None:
    assert LOSS.gain == pytest.approx(-0.13)
    assert Quality("map", 0.7, 0.6, better="higher").gain == pytest.approx(0.1)


def test_two_rows_cannot_be_logged_under_one_name() -> None:
    with pytest.raises(ValueError, match="counted_flops_blocks"):
        Ledger("EST", "dense", (BLOCKS, Saving("Counted FLOPs (blocks)", "FLOPs", 1, 2)))


def test_the_table_shows_units_one_decimal_and_never_a_figure_nobody_measured(
    ledger: Ledger,
) -> None:
    assert line(ledger, "blocks") == ["counted FLOPs, blocks", "1.1 PFLOPs", "1.5 PFLOPs", "26.7 %"]
    assert line(ledger, "everything")[-1] == "19.5 %"
    unmeasured = ["4,203 turns", "not measured", "not measured"]
    assert line(ledger, "annotated")[1:] == unmeasured
    assert line(ledger, "val/loss") == ["val/loss", "3.41", "3.28", "0.13 worse"]
    assert line(ledger, "val/accuracy")[1:] == ["0.75", "not measured", "not measured"]


def test_brackets_in_names_and_notes_are_text_and_not_markup(ledger: Ledger) -> None:
    assert line(ledger, "time")[0] == "time [blocks]"
    assert "Blocks: [attention] and MLP." in shown(ledger)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0831, "0.0831 s"), (999.94, "999.9 s"), (12345, "12,345 s"), (3.1e9, "3.1 Gs"), (0, "0 s")],
)
def test_amounts_keep_four_digits_or_whole_thousands(value: float, text: str) -> None:
    assert line(Ledger("EST", "dense", (Saving("time", "s", value, 1),)), "time")[1] == text


def test_metrics_are_flat_numbers_without_what_was_not_measured(ledger: Ledger) -> None:
    assert ledger.metrics("est") == {
        "est/counted_flops_blocks_spent": 11e14,
        "est/counted_flops_blocks_baseline": 15e14,
        "est/counted_flops_blocks_saved": pytest.approx(4 / 15),
        "est/counted_flops_everything_spent": 16.1e14,
        "est/counted_flops_everything_baseline": 20e14,
        "est/counted_flops_everything_saved": pytest.approx(0.195),
        "est/time_blocks_spent": 81.0,
        "est/time_blocks_baseline": 108.0,
        "est/time_blocks_saved": 0.25,
        "est/annotated_examples_spent": 4203,
        "est/val_loss_baseline": 3.28,
        "est/val_loss_gain": pytest.approx(-0.13),
    }


def test_a_ledger_survives_the_record_of_its_run(ledger: Ledger, tmp_path: Path) -> None:
    write_record(tmp_path, RunRecord("abcdefgh", "train", "finished", ledgers={"est": ledger}))
    assert read_record(tmp_path).ledgers == {"est": ledger}

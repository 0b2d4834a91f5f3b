"""A disk that is full or may not be written ends a run in words; with room it goes on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.forked import Child
from tests.resilience import disks
from tests.resilience.kills import SECONDS, Laboratory, differences, orphans

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
SIZES = [0, 100, 2000, 10_000, 60_000, 200_000]


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Laboratory:
    return Laboratory(tmp_path_factory.mktemp("laboratory"))


@pytest.mark.parametrize("name", ["est_gpt2", "dlch", "delta_rewriter"])
def test_files_that_cannot_grow(name: str, laboratory: Laboratory) -> None:
    laboratory.events(name)
    assert disks.try_sizes(laboratory, name, SIZES).faults == []


def test_small_disks(laboratory: Laboratory) -> None:
    if not disks.may_mount(laboratory.folder):
        pytest.skip("this process may not mount a disk")
    laboratory.events("sat_cpt")
    sizes = [4096, 20_000, 100_000, 300_000, 700_000, 1_500_000]
    assert disks.try_disks(laboratory, "sat_cpt", sizes).faults == []


def test_folders_of_somebody_else(laboratory: Laboratory) -> None:
    """A cache, or a folder for runs, that may not be written is refused."""
    if os.geteuid() != 0:
        pytest.skip("only the superuser becomes somebody else")
    laboratory.events("est_tinyllama")
    shared = laboratory.folder / "est_tinyllama" / "whole"
    theirs = laboratory.folder / "theirs"
    theirs.mkdir()
    for folder in (laboratory.folder, *laboratory.folder.parents):
        if folder.stat().st_uid == 0 and len(folder.parts) > 2:
            folder.chmod(folder.stat().st_mode | 0o055)
    os.chown(theirs, 65534, 65534)

    def run(outputs: Path, cache: Path) -> tuple[int | None, str]:
        command = laboratory.command("est_tinyllama", "unused")
        own = [f"paths.output_dir={outputs}", f"paths.cache_dir={cache}"]

        def work() -> int:
            from tests.runner.laboratory import command as do

            os.chdir(theirs)
            os.setgid(65534)
            os.setuid(65534)
            text = laboratory.folder / "text.txt"
            return do(*command[:-2], *own, f"datamodule.files={text}")

        ended = Child(work).wait(SECONDS)
        assert ended.in_words, ended.said
        return ended.code, ended.said

    code, said = run(theirs / "outputs", shared / "cache")
    assert code == 2
    assert "paths.cache_dir" in said
    code, said = run(shared / "outputs", shared / "cache")
    assert code == 2
    assert "cannot be written to" in said
    code, said = run(theirs / "outputs", laboratory.folder / "no cache")
    assert code == 2
    assert "paths.cache_dir" in said


def test_two_runs_make_one_cache(laboratory: Laboratory) -> None:
    """Also where the one that makes it is killed."""
    laboratory.events("sat_sft")
    expected = laboratory.folder / "sat_sft" / "whole"
    for number, events in enumerate((None, 3, 7, 12)):
        place = laboratory.folder / "sat_sft" / f"both {number}"
        cache = f"paths.cache_dir=sat_sft/both {number}/cache"
        first, second = (
            laboratory.command("sat_sft", f"sat_sft/both {number}/{each}", cache)
            for each in ("first", "second")
        )
        children = [laboratory.start(first, events), laboratory.start(second)]
        ends = [child.wait(SECONDS) for child in children]
        assert ends[1].code == 0, ends[1].said
        assert differences(expected, place / "second") == []
        if events is None:
            assert ends[0].code == 0, ends[0].said
            assert differences(expected, place / "first") == []
        assert [file for file in orphans(place) if file.startswith("cache")] == []

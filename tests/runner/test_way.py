"""A run calls what docs/ADDING.md says, in that order."""

import re
import sys
from pathlib import Path
from types import FrameType

from tests.runner import laboratory


def test_a_run_goes_the_way_that_is_written_down(root: Path, tmp_path: Path) -> None:
    written = re.findall(r"^\d+\. `([\w.]+)`", (root / "docs/ADDING.md").read_text(), re.M)
    called, room = dict[str, None](), str(root / "runner")

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(room):
            called.setdefault(f"{frame.f_globals.get('__name__')}.{frame.f_code.co_qualname}")

    sys.setprofile(note)
    try:
        laboratory.run(tmp_path, "trainer.max_steps=2", "logger=csv")
    finally:
        sys.setprofile(None)
    assert len(written) > 5
    assert [name for name in called if name in written] == written

"""A run whose output nobody reads any more goes on to its end."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from reports import tables
from tests.runner.laboratory import ROOT

CODE = """
import os, signal, subprocess, sys
from runner import output
output.outlive(); output.outlive()
print('first', flush=True)
sys.stdin.readline()
for n in range(5000):
    print('\\u2211 line', n)
    print('to stderr', n, file=sys.stderr)
subprocess.run([sys.executable, '-c', 'print(1, flush=True)'], check=True)
os.kill(os.getpid(), signal.SIGHUP)
open(sys.argv[1], 'w').write('done')
"""


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_closed_pipe_and_a_hang_up_end_nothing(tmp_path: Path, encoding: str) -> None:
    """Its own lines, a child's, and what is flushed when the interpreter ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, str(tmp_path / "end")],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": encoding},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdin is not None
    assert process.stdout.readline() == b"first\n"
    process.stdout.close()
    process.stderr.close()
    process.stdin.close()
    assert process.wait(timeout=60) == 0
    assert (tmp_path / "end").read_text() == "done"


def test_started_without_any_output(tmp_path: Path) -> None:
    """`>&- 2>&-`: a file of the run's own must not take the number of standard output."""
    code = (
        "import os, sys\nfrom runner import output\noutput.outlive()\n"
        "file = open(sys.argv[1], 'w')\nprint('lost', flush=True)\n"
        "os.write(1, b'lost')\nfile.write('kept')"
    )
    command = f'exec "{sys.executable}" -c "$0" "$1" >&- 2>&-'
    done = subprocess.run(["sh", "-c", command, code, str(tmp_path / "file")], cwd=ROOT)
    assert done.returncode == 0
    assert (tmp_path / "file").read_text() == "kept"


def test_names_and_paths_are_printed_whole(tmp_path: Path) -> None:
    """Brackets in a name are no markup, and a long path is not broken."""
    place = tmp_path / "[red]runs" / ("long" * 20) / "[x].ckpt"
    place.parent.mkdir(parents=True)
    place.touch()
    console = Console(file=io.StringIO(), width=40)
    tables.reached(console, "[bold]name", {"val/[loss]": 1.0}, (), {"checkpoint": place})
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert f"{place}\n" in printed
    assert "[bold]name" in printed
    assert "val/[loss]" in printed

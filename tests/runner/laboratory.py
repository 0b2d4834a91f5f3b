"""run.py as the tests start it: classes of tests/ may be named in `_target_` as well."""

import runpy
import sys
from pathlib import Path

from runner import validate

ROOT = Path(__file__).resolve().parents[2]
validate.ALLOWED += ("tests",)
sys.argv[0] = str(ROOT / "run.py")
sys.argv[1:1] = ["--config-dir", str(Path(__file__).with_name("conf"))]

if __name__ == "__main__":
    runpy.run_path(str(ROOT / "run.py"), run_name="__main__")

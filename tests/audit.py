"""python -m tests.audit: known vulnerabilities of the pinned versions, by pip-audit.

pip-audit gets an environment of its own below .venv, so that nothing of it is among our pins.
Without a network nothing can be asked: that is said, and is no failure.
"""

from __future__ import annotations

import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOOL = "pip-audit==2.10.1"
SERVICE = "https://pypi.org/pypi/pip/json"  # whose answers list vulnerabilities
SECONDS = 10


def main(home: Path = ROOT / ".venv" / "audit", service: str = SERVICE) -> int:
    """Audit; return pip-audit's exit code, 0 where the service cannot be reached.

    Args:
        home: Where pip-audit is installed, once.
        service: Asked first, whether there is a network.
    """
    try:
        with urllib.request.urlopen(service, timeout=SECONDS):
            pass
    except (urllib.error.URLError, OSError) as error:
        print(f"audit: skipped, {service} cannot be reached: {error}")
        return 0
    python = home / "bin" / "python"
    if not (home / "bin" / "pip-audit").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        installed = subprocess.run([str(python), "-m", "pip", "install", "--quiet", TOOL])
        if installed.returncode:
            print(f"audit: not done, pip cannot install {TOOL}, see above")
            return installed.returncode
    pins = ["--requirement", str(ROOT / "constraints.txt"), "--no-deps", "--disable-pip"]
    command = [str(python), "-m", "pip_audit", *pins, "--progress-spinner", "off"]
    return subprocess.run(command).returncode


if __name__ == "__main__":
    sys.exit(main())

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_examples_of_the_page_run() -> None:
    page = (ROOT / "docs" / "model.md").read_text(encoding="utf-8")
    programs = re.findall(r"^```python\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    assert programs
    for program in programs:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-c", program], check=True, timeout=300, env=environment)

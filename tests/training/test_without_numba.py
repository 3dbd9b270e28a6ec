"""What compiled code of the data path wants is imported when it is needed, and training on made-up rows needs none."""

import subprocess
import sys
from pathlib import Path

from tests.gpu.runs import ROOT, SHORT

CODE = """
import sys
from pathlib import Path
for name in ("numba", "llvmlite", "uharfbuzz", "freetype", "zstandard", "PIL"):
    sys.modules[name] = None  # importing it is an error
from tests.gpu.runs import train
(line, *_) = train(Path(sys.argv[1]), sys.argv[2:])
print("step", line["step"])
"""


def test_a_run_on_made_up_rows_does_without_numba(tmp_path: Path) -> None:
    """As on a GPU machine to which not everything was carried."""
    words = [*SHORT, "--training.stop_after=1", "--guards.slow_ranks_every=0"]
    command = [sys.executable, "-c", CODE, str(tmp_path / "run"), *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.endswith("step 1\n")

"""The same text, fonts and settings are the same bytes on every machine, in every process and in any order."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rendering.digests import digests

# Of all sentences of conftest.py. A change here is a change of RENDERER_VERSION.
GOLDEN = {
    "default": "5f78abde55ee329f",
    "gray": "a40aa4503d5ee543",
    "binary": "efda3b03016836c9",
    "patches of 32": "38411e0560c4295e",
    "released": "adab60cd6e32990b",
    "pages": "946f1b86996c9ff1",
    "pairs": "667af22ce0e7e5bc",
    "released pairs": "61120ce3c17d8694",
    "patches in RGB": "acde0a8f51d40b7e",
    "patches in gray": "d20a0c4864cba10a",
}


@pytest.fixture(scope="module")
def texts(sentences: dict[str, str]) -> list[str]:
    return [*sentences.values(), "", "AVATAR ffi T\u0302ẤỆ\u20e2 \u0e17\u0e35\u0e48", "\u202eabc\u202c\0\n\u05d0\ud800"]


def test_golden_hashes(texts: list[str]) -> None:
    assert digests(texts) == GOLDEN


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONHASHSEED": "1", "LC_ALL": "C", "TZ": "Asia/Kathmandu", "PYTHONUTF8": "0"},
        # Other machine code, compiled anew, and Unicode tables built anew.
        {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "", "NUMBA_CACHE_DIR": "", "XDG_CACHE_HOME": ""},
    ],
    ids=["hash seed, locale, time zone", "generic processor, no caches"],
)
def test_other_processes_and_machine_code_and_order(
    texts: list[str], tmp_path: Path, environment: dict[str, str]
) -> None:
    folders = {key: str(tmp_path / key) for key, value in environment.items() if key.endswith(("_DIR", "_HOME"))}
    shuffled = random.Random(0).sample(texts, len(texts))
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("digests.py"))],
        input=json.dumps(shuffled),
        capture_output=True,
        text=True,
        encoding="ascii",
        env={**os.environ, **environment, **folders},
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == GOLDEN

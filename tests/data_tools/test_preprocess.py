"""preprocess.py: its contract, and its answer to bad input."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_pixel.data.manifest import Manifest
from megatron_pixel.data.verification import verify

ROOT = Path(__file__).resolve().parents[2]


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_kinds(tool, corpus, model, font, tmp_path):
    output = {}
    rendering = ["--rendering.fonts", font, "--rendering.seq_length", 32]
    for kind, words in (
        ("text", ["--tokenizer", model]),
        ("pixels", rendering),
        ("strings", rendering),
        ("pairs", ["--tokenizer", model, *rendering, "--pair.patches", 24, "--pair.tokens=40"]),
    ):
        prefix = tmp_path / kind
        result = tool(
            "preprocess", kind, "--input", corpus, "--output-prefix", prefix, "--heldout-fraction", 0.2, *words
        )
        assert result.status == 0, result.err
        assert verify(str(prefix)) == []
        output[kind] = result.out
    manifests = {kind: Manifest.read(str(tmp_path / kind)) for kind in output}
    assert len({manifest.splits["heldout"].documents for manifest in manifests.values()}) == 1
    assert manifests["pixels"].rendering["seq_length"] == 32
    assert manifests["pairs"].pair["patches"] == 24
    assert manifests["pairs"].pair["tokens"] == 40
    assert manifests["pairs"].tokenizer["vocab_size"] == 300
    for line in (
        "documents read  40 (",
        "skipped         0",
        "pages ",
        "patches ",
        "bytes a page ",
        "tokens ",
        "seconds ",
    ):
        assert line in output["pairs"]
    assert "tokens" not in output["pixels"] + output["strings"]
    assert "pages " in output["strings"]
    assert "bytes a page" not in output["strings"]
    strings, pixels = (manifests[kind].splits["train"] for kind in ("strings", "pixels"))
    assert (strings.sequences, strings.patches) == (pixels.sequences, pixels.patches)
    assert manifests["strings"].codecs == []
    assert "pages" not in output["text"]


def test_the_command_in_the_manifest_says_what_made_it(tool, corpus, model, tmp_path):
    prefix = tmp_path / "a b"
    words = ["--input", corpus, "--output-prefix", prefix, "--tokenizer", model]
    result = tool("preprocess", "text", *words, "--workers", 1, "--max-documents", 5, "--overwrite")
    assert result.status == 0
    manifest = Manifest.read(str(prefix))
    command = f"data_tools/preprocess.py text --input {corpus} --output-prefix '{prefix}' --tokenizer {model}"
    assert manifest.command == command + " --max-documents 5"
    assert manifest.source["documents"] == 5


BAD_INPUT = [
    ("broken.jsonl", b'{"text": "a"}\n{"text": \n', "broken.jsonl:2: broken JSON"),
    ("key.jsonl", b'{"body": "a"}\n', 'key.jsonl:1: no "text" in the record; it has: body (choose with --key)'),
    ("number.jsonl", b'{"text": 1}\n', 'number.jsonl:1: "text" is a number'),
    ("latin.jsonl", b'{"text": "\xe9"}\n', "latin.jsonl:1: invalid UTF-8"),
    ("half.jsonl", b'{"text": "\\ud800"}\n', "half.jsonl:1: lone surrogate"),
    ("empty.jsonl", b"", "empty.jsonl: holds no text: the file is empty"),
    ("binary.txt", b"\x00\x01\x02", "binary.txt:1: holds NUL bytes"),
    ("cut.jsonl.gz", b"\x1f\x8b\x08\x00\x00\x00\x00\x00", "cut.jsonl.gz: the gzip data end in the middle"),
    ("table.csv", b"a,b\n", "table.csv: unknown kind of input file; known endings are .jsonl"),
]


@pytest.mark.parametrize(("name", "data", "message"), BAD_INPUT)
def test_bad_input_is_named_and_leaves_nothing(tool, model, tmp_path, name, data, message):
    path = tmp_path / name
    path.write_bytes(data)
    result = tool("preprocess", "text", "--input", path, "--output-prefix", tmp_path / "p", "--tokenizer", model)
    assert result.status == 2
    assert result.err.startswith(f"error: {tmp_path}/{message}")
    assert left(tmp_path) == [name]


def test_bad_records_are_counted_where_that_was_asked_for(tool, model, tmp_path):
    path = tmp_path / "mixed.jsonl"
    path.write_bytes(b"".join(data for name, data, _ in BAD_INPUT if name.endswith("l")) + b'{"text": "good"}\n')
    words = ["--input", path, "--output-prefix", tmp_path / "p", "--tokenizer", model, "--on-bad-record", "skip"]
    result = tool("preprocess", "text", *words)
    assert result.status == 0
    table = dict(line.rsplit("  ", 1) for line in result.out.splitlines())
    counts = {name.strip(): value.strip() for name, value in table.items()}
    assert counts["documents read"] == "2 (0.0 MB of text)"
    assert {name: value for name, value in counts.items() if name.startswith("skipped")} == {
        "skipped: broken JSON": "1",
        "skipped: missing key": "1",
        "skipped: not a string": "1",
        "skipped: invalid UTF-8": "1",
        "skipped: lone surrogate": "1",
    }
    assert Manifest.read(str(tmp_path / "p")).source["skipped"]["broken JSON"] == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--input", "missing.jsonl"], "missing.jsonl: no such file"),
        (["--tokenizer", "missing.model"], "missing.model: no such tokenizer"),
        (["--pair.patchs", "3"], "--pair.patchs: unknown key"),
        (["--pair.patches", "many"], "--pair.patches: expected an integer"),
        (["--pair.tokens", "2"], "--pair.tokens 2 is too small"),
        (["--rendering.fonts", "missing.ttf"], "missing.ttf"),
        (["--rendering.patch_size", "1"], "rendering.patch_size: 1 is less than 8"),
        (["--heldout-fraction", "1.5"], "1.5: a number from 0 to 1 is expected"),
        (["--workers", "0"], "0: a number above zero is expected"),
        (["--output-prefix", "folder/"], "names a folder"),
    ],
)
def test_a_wrong_command_line(tool, corpus, model, font, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    words = ["--input", corpus, "--output-prefix", "p", "--tokenizer", model, "--rendering.fonts", font, *words]
    result = tool("preprocess", "pairs", *words)
    assert result.status == 2
    assert message in result.err
    assert left(tmp_path) == []


def test_an_output_that_exists(tool, corpus, model, tmp_path):
    words = ["text", "--input", corpus, "--output-prefix", tmp_path / "p", "--tokenizer", model]
    assert tool("preprocess", *words).status == 0
    result = tool("preprocess", *words)
    assert result.status == 2
    assert "p.manifest.json exists" in result.err
    assert "--overwrite" in result.err or "overwrite" in result.err
    assert tool("preprocess", *words, "--overwrite").status == 0


def start(*words: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "data_tools" / "preprocess.py"), *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="module")
def long_input(tmp_path_factory) -> Path:
    """Enough for other processes to be worth their start."""
    path = tmp_path_factory.mktemp("long") / "long.jsonl"
    record = json.dumps({"text": "word " * 1000}) + "\n"
    path.write_text(record * 2000)
    return path


@pytest.mark.parametrize("stop", ["SIGINT", "SIGTERM", "dead worker"])
def test_a_run_that_is_stopped_continues(long_input, model, tmp_path, stop):
    words = ["text", "--input", long_input, "--output-prefix", tmp_path / "p", "--tokenizer", model]
    words += ["--part-bytes", 100_000, "--workers", 2]
    process = start(*words)
    work = tmp_path / "p.work"
    deadline = time.monotonic() + 100
    while not list(work.glob("part-*.json")):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    workers = children(process.pid)
    if stop == "dead worker":
        os.kill(workers[-1], signal.SIGKILL)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 2
        assert err.startswith("error: a worker process died (killed, or out of memory?); try fewer --workers\n")
        assert re.search(r"of \d+ parts are kept in \S+p\.work; the same command continues", err)
    else:
        number = signal.Signals[stop]
        os.killpg(process.pid, number)  # as a terminal and a scheduler do: to every process
        _, err = process.communicate(timeout=60)
        assert process.returncode == 128 + number
        kept = f"what is done is kept in {work}, and the same command continues"
        assert err.splitlines()[-1] == f"stopped by {stop}: no dataset was written; {kept}"
        assert "Traceback" not in err  # the workers hear nothing of it
    assert workers
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    assert left(tmp_path) == ["p.work"]
    out, err = start(*words).communicate(timeout=100)
    assert "found done" in out, err
    assert verify(str(tmp_path / "p")) == []
    assert Manifest.read(str(tmp_path / "p")).source["documents"] == 2000
    assert not work.exists()


def children(pid: int) -> list[int]:
    """Spawned workers of a process (its resource tracker left out)."""
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in path.read_text().split():
            command = Path(f"/proc/{child}/cmdline")
            if command.exists() and "spawn_main" in command.read_text():
                found.append(int(child))
    return found


@pytest.mark.parametrize("name", ["preprocess.py", "tokenizer.py", "show.py", "verify.py"])
def test_help_comes_at_once(name):
    words = [sys.executable, "-X", "importtime", str(ROOT / "data_tools" / name), "--help"]
    result = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0
    assert "usage:" in result.stdout
    imported = {line.rsplit("|", 1)[-1].strip() for line in result.stderr.splitlines()}
    assert "argparse" in imported
    assert not imported & {"torch", "deepspeed", "megatron.core", "numba", "pyarrow", "sentencepiece", "scipy"}

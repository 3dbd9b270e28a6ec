"""Preprocessing that is stopped, killed, refused, spooled or shared: the bytes are those of an undisturbed run."""

import errno
import fcntl
import gzip
import hashlib
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from megatron_pixel.config.errors import UserError
from megatron_pixel.data import files, inputs, preprocess_assemble, preprocess_work
from megatron_pixel.data.documents import DocumentReader, PartReader, ReaderOptions
from megatron_pixel.data.manifest import Manifest
from megatron_pixel.data.preprocess_claims import Claims, Tally
from megatron_pixel.data.preprocess_convert import part_from_json
from megatron_pixel.data.preprocess_documents import Recipe
from megatron_pixel.data.preprocess_plan import make_plan
from megatron_pixel.data.preprocess_sample import PLACES, places
from megatron_pixel.data.preprocess_spool import spool
from megatron_pixel.data.preprocess_work import Lock, WorkFolder
from megatron_pixel.data.preprocessing import preprocess
from megatron_pixel.data.tokenizer import train_tokenizer

WORDS = "we hold these truths to be self-evident that all men women children are created equal".split()


def text(count: int, seed: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=count))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Recipe:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_tokenizer([text(40, seed) for seed in range(100)], path, vocab_size=320, max_sentences=10_000)
    return Recipe("text", 0.2, tokenizer=str(path))


@pytest.fixture
def corpus(tmp_path) -> list[str]:
    """Two inputs, of which one is compressed and long enough to be spooled."""
    lines = [json.dumps({"text": text(10 + number % 7, number)}) + "\n" for number in range(60)]
    (tmp_path / "a.jsonl").write_text("".join(lines[:30]))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress("".join(lines[30:]).encode(), mtime=0))
    return [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl.gz")]


PART = 700
"""Bytes of a part: some eight of them."""


def digest(prefix: Path) -> dict[str, str]:
    """Hashes of all files of a dataset, nothing else being there."""
    found = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in prefix.parent.glob(f"{prefix.name}.*")
    }
    assert f"{prefix.name}.manifest.json" in found
    return found


def run(corpus: list[str], recipe: Recipe, prefix: Path, **options) -> object:
    reader = DocumentReader(corpus, ReaderOptions(**options.pop("reading", {})))
    return preprocess(reader, recipe, str(prefix), **{"part_bytes": PART, **options})


def in_child(action: Callable[[], object]) -> int:
    """Do something in a fork; returns its exit status, negative for a signal."""
    child = os.fork()
    if child == 0:
        try:
            action()
            os._exit(0)
        except BaseException as error:
            os.write(2, f"{error!r}\n".encode())
            os._exit(3)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_before(event: int) -> list[int]:
    """Let this process kill itself before that call which changes a file system for good; returns the count so far."""
    count = [0]

    def counting(function: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments, **options):
            if count[0] == event:
                os.kill(os.getpid(), signal.SIGKILL)
            count[0] += 1
            return function(*arguments, **options)

        return call

    for name in ("replace", "unlink", "fsync", "rmdir", "mkdir"):
        setattr(os, name, counting(getattr(os, name)))
    return count


def test_a_kill_at_any_moment_does_not_show(corpus, recipe, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(preprocess_assemble, "_BYTES_BETWEEN_ENTRIES", 100)
    monkeypatch.setattr(preprocess_work, "_PATIENCE", 1.0)
    prefix = tmp_path / "out" / "p"
    prefix.parent.mkdir()
    run(corpus, recipe, prefix)
    expected = digest(prefix)

    def events() -> None:
        count = kill_before(-1)
        run(corpus, recipe, prefix, overwrite=True)
        (tmp_path / "events").write_text(str(count[0]))

    assert in_child(events) == 0
    total = int((tmp_path / "events").read_text())
    assert total > 100
    rng = random.Random(0)
    killed = Counter[str]()
    for moment in [*rng.sample(range(total - 40), 14), *rng.sample(range(total - 40, total), 10)]:
        for path in prefix.parent.iterdir():
            path.unlink()
        status = in_child(lambda moment=moment: (kill_before(moment), run(corpus, recipe, prefix)))
        assert status == -signal.SIGKILL
        work = WorkFolder(str(prefix))
        killed[
            "committing" if work.has("commit.json") else "assembling" if work.has("assembly.json") else "earlier"
        ] += 1
        again = rng.randrange(total)  # and the run that continues is killed, too, if it lives so long
        in_child(lambda again=again: (kill_before(again), run(corpus, recipe, prefix)))
        if not (prefix.parent / "p.manifest.json").exists() or (prefix.parent / "p.work").exists():
            run(corpus, recipe, prefix)
        assert digest(prefix) == expected
    assert len(killed) == 3, killed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reading": {"key": "body"}}, "a run that had --key text, not body"),
        ({"reading": {"max_documents": 5}}, "had --max-documents none, not 5"),
        ({"part_bytes": 300}, "had parts of bytes 700, not 300"),
        ({"recipe": {"heldout_fraction": 0.5}}, "had --heldout-fraction 0.2, not 0.5"),
        ({"swap": True}, r"had the input .*a\.jsonl, not .*b\.jsonl\.gz, in this place"),
        ({"more": b'{"text": "x"}\n'}, r"had an input .*a\.jsonl of 2,\d\d\d bytes, which has 2,\d\d\d now"),
        ({"more": b""}, r"had an input .*a\.jsonl written at .*, which was written again at"),
    ],
)
def test_work_of_other_settings_or_inputs_is_refused(corpus, recipe, tmp_path, change, message):
    prefix = tmp_path / "p"
    assert in_child(lambda: (kill_before(90), run(corpus, recipe, prefix))) == -signal.SIGKILL
    parts = len(list((tmp_path / "p.work").glob("part-*.json")))
    assert parts > 1
    if "more" in change:
        with Path(corpus[0]).open("ab") as file:
            file.write(change.pop("more"))
        os.utime(corpus[0], ns=(1, 1))
    if change.pop("swap", False):
        corpus = corpus[::-1]
    other = Recipe(**{**vars(recipe), **change.pop("recipe", {})})
    with pytest.raises(UserError, match=message) as caught:
        run(corpus, other, prefix, **change)
    assert "--restart to discard it" in str(caught.value)
    assert len(list((tmp_path / "p.work").glob("part-*.json"))) == parts
    change.get("reading", {}).pop("key", None)
    assert run(corpus, other, prefix, **change, restart=True).found == Tally()


def test_work_that_would_replace_a_dataset_asks_again(corpus, recipe, tmp_path):
    prefix = tmp_path / "p"
    run(corpus[:1], recipe, prefix)
    before = digest(prefix)
    assert in_child(lambda: (kill_before(90), run(corpus, recipe, prefix, overwrite=True))) == -signal.SIGKILL
    with pytest.raises(UserError, match=r"p\.manifest\.json exists"):
        run(corpus, recipe, prefix)
    assert len(list((tmp_path / "p.work").glob("part-*.json"))) > 1
    shutil.rmtree(tmp_path / "p.work")
    assert digest(prefix) == before


@pytest.mark.parametrize("again", ["the same", "restart", "other settings"])
def test_a_dataset_that_only_lacks_its_names(corpus, recipe, tmp_path, monkeypatch, again):
    def never(work: WorkFolder) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(preprocess_assemble, "commit", never)
    with pytest.raises(KeyboardInterrupt):
        run(corpus, recipe, tmp_path / "p")
    monkeypatch.undo()
    assert (tmp_path / "p.work" / "commit.json").exists()
    if again == "other settings":
        with pytest.raises(UserError, match="--restart to discard it"):
            run(corpus, recipe, tmp_path / "p", part_bytes=300)
    report = run(corpus, recipe, tmp_path / "p", restart=again != "the same")
    assert report.total.documents == 60
    assert (report.found.documents == 60) == (again == "the same")
    assert sorted(digest(tmp_path / "p"))[0] == "p.heldout.tokens.bin"


def test_a_second_run_at_a_prefix_is_refused(corpus, recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(preprocess_work, "_PATIENCE", 0.2)
    work = WorkFolder(str(tmp_path / "p"))
    work.make()
    lock = Lock(work, leading=True)
    shared = Lock(work, leading=False)
    for held in (lock, shared):
        with pytest.raises(UserError, match=rf"another run \(process {os.getpid()} on .*\) is making .*p; wait for it"):
            run(corpus, recipe, tmp_path / "p")
        held.release()
    run(corpus, recipe, tmp_path / "p")
    assert not (tmp_path / "p.work").exists()


def test_a_run_that_is_killed_lets_go_of_the_lock(tmp_path):
    work = WorkFolder(str(tmp_path / "p"))
    work.make()
    assert in_child(lambda: (Lock(work, leading=True), os.kill(os.getpid(), signal.SIGKILL))) == -signal.SIGKILL
    Lock(work, leading=True).release()


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    work = WorkFolder(str(tmp_path / "p"))
    work.make()
    Lock(work, leading=False).release()
    assert capsys.readouterr().err == ""
    Lock(work, leading=True).release()
    assert re.search(r"warning: no lock on .*No locks available.*no other run makes .*p$", capsys.readouterr().err)


@pytest.mark.parametrize("damage", ["flipped", "missing"])
def test_a_part_that_does_not_come_back_as_written_is_made_again(corpus, recipe, tmp_path, monkeypatch, damage):
    run(corpus, recipe, tmp_path / "sound")
    original = preprocess_assemble.add_up

    def damaged(work: WorkFolder, parts: int) -> object:
        path = Path(work.part_prefix(3) + ".train.tokens.bin")
        data = bytearray(path.read_bytes())
        data[5] ^= 1
        path.write_bytes(data)
        if damage == "missing":
            path.unlink()
        return original(work, parts)

    monkeypatch.setattr("megatron_pixel.data.preprocessing.add_up", damaged)
    with pytest.raises(
        UserError, match=r"part-000003\.train\.tokens\.bin is .*; the same command makes this part again"
    ):
        run(corpus, recipe, tmp_path / "p")
    monkeypatch.undo()
    report = run(corpus, recipe, tmp_path / "p")
    assert report.found.documents > 30
    sound = digest(tmp_path / "sound")
    assert {name.replace("p.", "sound.", 1): value for name, value in digest(tmp_path / "p").items()} == sound


def test_a_disk_that_fills_up_while_parts_are_joined(corpus, recipe, tmp_path):
    run(corpus, recipe, tmp_path / "sound")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    largest = (tmp_path / "sound.train.tokens.bin").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest - 1, before[1]))  # a write beyond fails as on a full disk
    try:
        message = r"cannot write .*out/p\.train\.tokens\.bin: .*parts are kept in .*p\.work\. Make room, and the same"
        with pytest.raises(UserError, match=message):
            run(corpus, recipe, tmp_path / "p")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    run(corpus, recipe, tmp_path / "p")
    sound = digest(tmp_path / "sound")
    assert {name.replace("p.", "sound.", 1): value for name, value in digest(tmp_path / "p").items()} == sound


def test_a_disk_that_is_full_at_any_write(corpus, recipe, tmp_path, monkeypatch):
    """Every write and every sync of a run fails once; each time the run that follows continues."""
    run(corpus, recipe, tmp_path / "sound")
    sound = digest(tmp_path / "sound")
    original = files.OutputFile.sync
    left = [0]

    def full(self: files.OutputFile) -> None:
        left[0] -= 1
        if left[0] == 0:
            files.cannot_write(self.path, self.bytes, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        original(self)

    monkeypatch.setattr(files.OutputFile, "sync", full)
    told: list[str] = []
    for moment in range(1, 200):
        left[0] = 1 + moment % 11
        try:
            run(corpus, recipe, tmp_path / "p")
            break
        except UserError as error:
            told.append(str(error))
    assert len(told) > 5
    for message in told:
        assert message.startswith(f"cannot write {tmp_path}")
        assert "No space left on device" in message
        assert "Make room" in message
    assert {name.replace("p.", "sound.", 1): value for name, value in digest(tmp_path / "p").items()} == sound


def test_a_small_disk(corpus, recipe, tmp_path):
    """A real full disk, where this process may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=56k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a file system is not permitted here")
    try:
        with pytest.raises(UserError, match=r"No space left on device after .* bytes; .*Make room"):
            run(corpus, recipe, disk / "p")
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        report = run(corpus, recipe, disk / "p")
        run(corpus, recipe, tmp_path / "sound")
        sound = {name: value for name, value in digest(tmp_path / "sound").items() if "manifest" not in name}
        found = {name.replace("p.", "sound.", 1): value for name, value in digest(disk / "p").items()}
        assert {name: value for name, value in found.items() if "manifest" not in name} == sound
        assert report.total.documents == 60
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


# Inputs that cannot be entered in the middle.


@pytest.mark.parametrize(("content", "mode"), [("jsonl", "line"), ("txt", "line"), ("txt", "paragraph")])
@pytest.mark.parametrize("chunk", [7, 1 << 18])
def test_spooled_parts_hold_what_is_read_directly(tmp_path, monkeypatch, content, mode, chunk):
    monkeypatch.setattr(inputs, "CHUNK_BYTES", chunk)
    rng = random.Random(f"{content} {mode}")
    lines = {
        "jsonl": [b'{"text": "a"}\n', b"\n", b"{broken\n", b'{"text": "' + b"x" * 40 + b'"}\n'],
        "txt": [b"one\n", b"\n", b" \t\r\n", b"two\r\n", b"\n\n", b"word " * 9 + b"\n"],
    }[content]
    options = ReaderOptions(on_bad_record="skip", txt_mode=mode)
    several = 0
    for number in range(40):
        data = rng.choice([b"", b"\xef\xbb\xbf"]) + b"".join(rng.choices(lines, k=rng.randrange(40))) + b"e"
        packed = gzip.compress(data, mtime=0)
        packed = packed[: rng.choice([len(packed), len(packed) - rng.randrange(9, 30)])]  # whole, or cut off
        path = tmp_path / f"{number}.{content}.gz"
        path.write_bytes(packed)
        reader = DocumentReader([str(path)], options)
        direct = PartReader(reader.files[0], options)
        found = [(document.text, direct.where(document)) for document in direct]
        plan = make_plan(reader, rng.randrange(20, 90))
        work = WorkFolder(str(tmp_path / str(number)))
        work.make()
        spool(plan, 0, options, work, lambda tally: None)
        parts = [part_from_json(part) for part in work.read("spool-000000.json")["parts"]]
        several += len(parts) > 2
        skipped = Counter[str]()
        spooled = []
        for part in parts:
            one = PartReader(part, options, skipped)
            spooled += [(document.text, one.where(document)) for document in one]
        assert spooled == found, data
        assert skipped == direct.skipped, data
        assert sum(part.size for part in parts) <= len(packed)
    assert several > 20


def feed(monkeypatch: pytest.MonkeyPatch, data: str) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data.encode())))


@pytest.mark.parametrize("limit", [None, 20])
def test_standard_input_is_compared_when_a_run_continues(recipe, tmp_path, monkeypatch, limit):
    lines = "".join(json.dumps({"text": text(12, number)}) + "\n" for number in range(30))
    reading = {"max_documents": limit}
    feed(monkeypatch, lines)
    run(["-"], recipe, tmp_path / "sound", reading=reading)
    assert Manifest.read(str(tmp_path / "sound")).source["documents"] == (limit or 30)
    feed(monkeypatch, lines)
    assert in_child(lambda: (kill_before(90), run(["-"], recipe, tmp_path / "p", reading=reading))) == -signal.SIGKILL
    assert list((tmp_path / "p.work").glob("part-*.json"))
    feed(monkeypatch, lines.replace("equal", "alike"))
    with pytest.raises(UserError, match="standard input holds another text than when the work in"):
        run(["-"], recipe, tmp_path / "p", reading=reading)
    feed(monkeypatch, lines)
    assert run(["-"], recipe, tmp_path / "p", reading=reading).found.documents > 0
    sound = digest(tmp_path / "sound")
    assert {name.replace("p.", "sound.", 1): value for name, value in digest(tmp_path / "p").items()} == sound


@pytest.mark.parametrize("limit", [1, 29, 30, 31, 59, 100])
def test_so_many_documents_and_no_more(corpus, recipe, tmp_path, limit):
    run(corpus, recipe, tmp_path / "p", reading={"max_documents": limit})
    manifest = Manifest.read(str(tmp_path / "p"))
    assert manifest.source["documents"] == min(limit, 60)
    expected = [document.text for document in DocumentReader(corpus, ReaderOptions(max_documents=limit))]
    assert manifest.splits["train"].documents + manifest.splits["heldout"].documents == len(expected)


def test_an_input_without_a_record(corpus, recipe, tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.write_bytes(b"\n" * 3000)
    inputs_ = [corpus[0], str(empty)]
    with pytest.raises(UserError, match=r"empty\.jsonl: holds no text: the file is empty"):
        run(inputs_, recipe, tmp_path / "p")
    report = run(inputs_, recipe, tmp_path / "p", reading={"on_bad_record": "skip"})
    assert report.skipped == {"empty file": 1}


# The share of the processes.


def test_every_task_is_taken_once(tmp_path):
    folder = str(tmp_path / "claims")
    claims = [Claims(folder) for _ in range(3)]
    tasks = [each.take("part", range(50)) for each in claims]
    rng = random.Random(0)
    taken: list[list[int]] = [[], [], []]
    while any(tasks):
        who = rng.choice([number for number in range(3) if tasks[number]])
        try:
            taken[who].append(next(tasks[who]))
        except StopIteration:
            tasks[who] = None  # type: ignore[call-overload]
    assert sorted(task for each in taken for task in each) == list(range(50))
    assert all(len(each) > 3 for each in taken)
    assert list(Claims(folder).take("part", range(50))) == []
    other = Claims(folder).take("other", range(50))
    assert next(other) == 0
    claims[0].stop()
    assert list(other) == []


def test_places_are_spread_over_the_input(tmp_path):
    paths = []
    for number, size in enumerate((10, 1000, 90_000)):
        path = tmp_path / f"{number}.txt"
        path.write_bytes(b"line\n" * size)
        paths.append(str(path))
    reader = DocumentReader(paths)
    found = places(reader.files, PLACES, reader.options)
    assert len(found) == PLACES
    assert {weight for _, weight in found} == {1}
    starts = [part.start + sum(file.size for file in reader.files[: part.source]) for part, _ in found]
    assert set(np.diff(starts).tolist()) == {7110, 7111}
    packed = tmp_path / "packed.txt.gz"
    packed.write_bytes(gzip.compress(Path(paths[2]).read_bytes(), mtime=0))
    reader = DocumentReader([str(packed)])
    assert places(reader.files, PLACES, reader.options) == [(reader.files[0], PLACES)]


ROOT = Path(__file__).resolve().parents[2]


def test_ranks_of_mpi_share_the_work(corpus, recipe, tmp_path):
    run(corpus, recipe, tmp_path / "sound")
    launcher = Path(sys.executable).parent / "mpirun"
    if not launcher.exists():
        pytest.skip("no mpirun in this environment")
    program = [str(launcher), "-n", "2", sys.executable, str(ROOT / "data_tools" / "preprocess.py"), "text"]
    words = ["--part-bytes", str(PART), "--tokenizer", str(recipe.tokenizer), "--heldout-fraction", "0.2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "fine"}\n{\n')

    def start(*paths: str) -> subprocess.CompletedProcess[str]:
        call = [*program, *words, "--output-prefix", str(tmp_path / "p"), "--input", *paths]
        return subprocess.run(call, capture_output=True, text=True, timeout=200, env=environment)

    failed = start(*corpus, str(broken))
    assert failed.returncode == 2
    assert failed.stderr.count("error: ") == 1
    assert "broken.jsonl:2: broken JSON" in failed.stderr
    done = start(*corpus, "--restart")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("documents read") == 1
    sound = {name: value for name, value in digest(tmp_path / "sound").items() if "manifest" not in name}
    found = {name.replace("p.", "sound.", 1): value for name, value in digest(tmp_path / "p").items()}
    assert {name: value for name, value in found.items() if "manifest" not in name} == sound

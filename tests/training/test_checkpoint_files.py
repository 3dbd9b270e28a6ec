import os
import shutil
from pathlib import Path

import pytest

from megatron_pixel.training import checkpoint_files as files


def write(root: Path, step: int) -> Path:
    """A whole checkpoint of two small files."""
    folder = files.writing_area(root) / files.folder_name(step)
    (folder / "inner").mkdir(parents=True)
    (folder / "weights.pt").write_bytes(bytes(range(200)) * 5)
    (folder / "inner" / "state.json").write_text("{}")
    files.write_manifest(folder, step, files.describe_files(folder, files.files_below(folder)))
    return files.publish(folder, root)


def problem(folder: Path) -> str | None:
    table, found = files.manifest_problem(folder)
    return found or files.content_problem(folder, table, table)


def test_names() -> None:
    assert files.folder_name(120) == "step-00000120"
    assert files.step_of(Path("x/step-00000120")) == 120
    assert files.step_of(Path(files.folder_name(123_456_789))) == 123_456_789
    for name in ("step-120", "step-00000120.tmp", "tmp-step-00000120", "step-0000012x", "latest"):
        assert files.step_of(Path(name)) is None


def test_a_published_checkpoint_is_whole_and_alone(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    folder = write(root, 3)
    assert folder == root / "step-00000003"
    assert problem(folder) is None
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]
    assert [path.name for path in root.iterdir()] == ["step-00000003"]


def test_publishing_replaces_one_of_the_same_step(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    (write(root, 3) / "old").touch()
    folder = write(root, 3)
    assert problem(folder) is None
    assert not (folder / "old").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]


def test_a_linked_folder_is_written_where_it_points(tmp_path: Path) -> None:
    (tmp_path / "scratch" / "store").mkdir(parents=True)
    (tmp_path / "run").mkdir()
    root = tmp_path / "run" / "checkpoints"
    root.symlink_to(tmp_path / "scratch" / "store")
    assert files.writing_area(root).parent == tmp_path / "scratch"
    write(root, 3)
    assert [path.name for path in (tmp_path / "scratch" / "store").iterdir()] == ["step-00000003"]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda f: os.truncate(f / "weights.pt", 999), "weights.pt has 999 bytes instead of 1,000"),
        (lambda f: flip(f / "weights.pt"), "weights.pt does not match its sha256"),
        (lambda f: (f / "weights.pt").unlink(), "weights.pt is missing"),
        (lambda f: shutil.rmtree(f / "inner"), "inner/state.json is missing"),
        (lambda f: (f / "manifest.json").unlink(), "it has no manifest.json: it was never finished"),
        (lambda f: (f / "manifest.json").write_text('{"files"'), "its manifest.json cannot be read"),
        (lambda f: (f / "manifest.json").write_text('{"format_version": 9, "files": {}}'), "its format version is 9"),
    ],
)
def test_damage_is_seen_and_named(tmp_path: Path, damage: object, reason: str) -> None:
    folder = write(tmp_path / "checkpoints", 3)
    damage(folder)  # type: ignore[operator]
    assert str(problem(folder)).startswith(reason)


def test_listing_ignores_everything_else(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    assert files.list_checkpoints(root) == []
    for step in (3, 12, 6):
        write(root, step)
    (root / "step-00000020.tmp").mkdir()
    (root / "latest").write_text("step-00000012")
    (root / "step-00000030").write_text("a file")
    assert [step for step, _ in files.list_checkpoints(root)] == [12, 6, 3]


def test_pruning_keeps_the_newest_and_the_milestones(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    for step in (2, 4, 6, 8):
        write(root, step)
    assert files.prune(root, 0, []) == []
    assert files.prune(root, 2, [2]) == [4]
    assert [step for step, _ in files.list_checkpoints(root)] == [8, 6, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]


def test_setting_aside(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    assert files.set_aside(root, 0) is None
    for step in (2, 4, 6):
        write(root, step)
    assert files.set_aside(root, 6) is None
    assert files.set_aside(root, 4) == tmp_path / "checkpoints.aside-1"
    assert files.set_aside(root, 0) == tmp_path / "checkpoints.aside-2"
    assert files.list_checkpoints(root) == []
    assert problem(tmp_path / "checkpoints.aside-2" / "step-00000004") is None

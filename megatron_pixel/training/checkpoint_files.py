"""Checkpoints as folders: which count, whether one is whole, and which may go. No tensors here.

``<run>/checkpoints/`` holds finished folders ``step-00000120`` and nothing else. A checkpoint is written in
``<run>/checkpoints.writing/`` and renamed once all of its files are on disk, so a run that dies while it saves leaves
the last finished one as the newest. ``manifest.json`` in each folder lists its files with their sizes and sha256.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

MANIFEST = "manifest.json"
STATE = "state.json"
"""What a checkpoint holds besides tensors: step, layout, settings, rows taken."""
FORMAT_VERSION = 2
"""Described in docs/checkpoints.md. A version that is not this one is refused by name."""
_NAME = re.compile(r"step-(\d{8,})")
_CHUNK = 1 << 22

FileTable = dict[str, dict[str, int | str]]
"""File name, relative to the checkpoint, to ``{"bytes": size, "sha256": hexadecimal digest}``."""


def folder_name(step: int) -> str:
    """``120`` -> ``step-00000120``."""
    return f"step-{step:08d}"


def step_of(folder: Path) -> int | None:
    """``step-00000120`` -> ``120``; None for any other name."""
    match = _NAME.fullmatch(folder.name)
    return int(match.group(1)) if match else None


def list_checkpoints(root: Path) -> list[tuple[int, Path]]:
    """The (step, folder) of every counted name below ``root``, newest first, whole or not."""
    if not root.is_dir():
        return []
    found = [(step, folder) for folder in root.iterdir() if (step := step_of(folder)) is not None and folder.is_dir()]
    return sorted(found, reverse=True)


def writing_area(root: Path) -> Path:
    """Where checkpoints are written and deleted: beside ``root``, on the same file system even where that is a link."""
    real = root.resolve()
    return real.with_name(real.name + ".writing")


def describe_file(path: Path) -> dict[str, int | str]:
    """Size and sha256 of a file, after it has been forced to disk."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        os.fsync(file.fileno())
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
        return {"bytes": file.tell(), "sha256": digest.hexdigest()}


def describe_files(folder: Path, names: Iterable[str]) -> FileTable:
    """:func:`describe_file` of several files of ``folder``."""
    return {name: describe_file(folder / name) for name in names}


def files_below(folder: Path) -> list[str]:
    """Names of all files of a checkpoint but its manifest, sorted, relative to ``folder``."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in names if name != MANIFEST)


def write_manifest(folder: Path, step: int, files: FileTable) -> None:
    """Write ``manifest.json`` and force it, and the folder's entries, to disk."""
    content = {"format_version": FORMAT_VERSION, "step": step, "files": dict(sorted(files.items()))}
    write_durably(folder / MANIFEST, json.dumps(content, indent=1) + "\n")


def write_durably(path: Path, text: str) -> None:
    """Write a small text file and force it and its folder to disk."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Force the entries of a folder to disk: a rename lasts only then."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def manifest_problem(folder: Path) -> tuple[FileTable, str | None]:
    """The file table of a checkpoint, and what is wrong with its manifest or the presence and sizes of its files."""
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        version, files = content["format_version"], content["files"]
    except FileNotFoundError:
        return {}, f"it has no {MANIFEST}: it was never finished"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return {}, f"its {MANIFEST} cannot be read ({error})"
    if version != FORMAT_VERSION:
        age = "a newer" if isinstance(version, int) and version > FORMAT_VERSION else "an older"
        return {}, f"its format version is {version}, of {age} program; this one reads {FORMAT_VERSION}"
    for name, entry in files.items():
        path = folder / name
        if not path.is_file():
            return files, f"{name} is missing"
        size = path.stat().st_size
        if size != entry["bytes"]:
            return files, f"{name} has {size:,} bytes instead of {entry['bytes']:,}"
    return files, None


def content_problem(folder: Path, files: FileTable, names: Iterable[str]) -> str | None:
    """What is wrong with the contents of ``names`` by their sha256 (None: nothing)."""
    for name in names:
        try:
            if describe_file(folder / name)["sha256"] != files[name]["sha256"]:
                return f"{name} does not match its sha256"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None


def clear(folder: Path) -> None:
    """Remove what an interrupted save has left."""
    if folder.exists():
        shutil.rmtree(folder)


def publish(folder: Path, root: Path) -> Path:
    """Rename a finished checkpoint from the writing area to its counted name; one of the same step is replaced.

    Whatever else stands in the writing area, of DeepSpeed's or of a save that was cut short, goes.
    """
    root.mkdir(parents=True, exist_ok=True)
    final = root / folder.name
    if final.exists():
        _move_out(final, root)
    folder.rename(final)
    sync_folder(root)
    shutil.rmtree(writing_area(root), ignore_errors=True)
    return final


def prune(root: Path, keep: int, milestones: Iterable[int]) -> list[int]:
    """Delete checkpoints but the ``keep`` newest (0: keep all) and the milestones; returns the steps that went."""
    if not keep:
        return []
    spared = set(milestones)
    doomed = [(step, folder) for step, folder in list_checkpoints(root)[keep:] if step not in spared]
    for _, folder in doomed:
        _move_out(folder, root)
    shutil.rmtree(writing_area(root), ignore_errors=True)
    return [step for step, _ in doomed]


def set_aside(root: Path, after: int) -> Path | None:
    """Move checkpoints past step ``after`` to a folder beside ``root``, which is returned; None if there are none.

    They are torn, or belong to a run that was cut back or begun anew: the next ``auto`` would take them for its own.
    """
    late = [folder for step, folder in list_checkpoints(root) if step > after]
    if not late:
        return None
    real = root.resolve()
    number = 1
    while (target := real.with_name(f"{real.name}.aside-{number}")).exists():
        number += 1
    target.mkdir()
    for folder in late:
        folder.rename(target / folder.name)
    sync_folder(real)
    return target


def _move_out(folder: Path, root: Path) -> None:
    # A deletion that is cut short must not leave a torn folder under a counted name: what is to go is renamed first.
    area = writing_area(root)
    area.mkdir(parents=True, exist_ok=True)
    doomed = area / f"deleting-{folder.name}"
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)

"""The beginning of a run: nothing, the work of an earlier one to go on with, or a dataset that lacks its name only."""

import os
import secrets
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import megatron_pixel
from megatron_pixel.config.errors import UserError
from megatron_pixel.data.codec import DEFAULT, codec_class
from megatron_pixel.data.documents import DocumentReader, empty_file, refuse
from megatron_pixel.data.inputs import STDIN
from megatron_pixel.data.manifest import manifest_path, refuse_existing
from megatron_pixel.data.preprocess_assemble import COMMIT, commit
from megatron_pixel.data.preprocess_claims import PREFIX
from megatron_pixel.data.preprocess_documents import Converter, Recipe
from megatron_pixel.data.preprocess_plan import Plan
from megatron_pixel.data.preprocess_work import LOCK, Lock, WorkFolder, difference, input_facts

_SETTINGS = "settings.json"


@dataclass(frozen=True)
class Begun:
    """What the processes of a run know of it."""

    plan: Plan
    folder: str
    """Of the run's claims."""
    finished: dict[str, Any] | None = None
    """An earlier run had made the dataset, only not named all files: what it knew of it."""


class Beginning:
    """Takes the prefix for this run, in the process that leads it. ``close`` gives it back."""

    def __init__(self, work: WorkFolder, overwrite: bool, restart: bool) -> None:
        self._work = work
        self._overwrite = overwrite
        self._restart = restart
        self._lock: Lock | None = None
        self.owned = False
        """Whether the work folder is this run's."""

    def begin(self, reader: DocumentReader, recipe: Recipe, converter: Converter, plan: Plan) -> Begun:
        """Compare with an earlier run, if there is one.

        Raises:
            UserError: the dataset is there, another run is at it, or the work is of other settings or inputs.
        """
        work = self._work
        if not os.path.isdir(work.path):
            self._refuse_existing()
        if not plan.limited:
            for file in plan.files:
                if file.size == 0 and file.path != STDIN and reader.options.on_bad_record == "fail":
                    refuse(empty_file(file.name), reader.options, {})
        facts = {"settings": _settings(reader, recipe, converter, plan), "inputs": input_facts(reader.paths)}
        work.make()
        self._lock = Lock(work, leading=True)
        finished = self._look_back(facts)
        if finished is None:
            work.write(_SETTINGS, facts)
        for name in os.listdir(work.path) if os.path.isdir(work.path) else []:
            if name.startswith(PREFIX):
                shutil.rmtree(work.file(name), ignore_errors=True)
        return Begun(plan, work.file(PREFIX + secrets.token_hex(4)), finished)

    def _look_back(self, facts: dict[str, Any]) -> dict[str, Any] | None:
        work = self._work
        if self._restart:
            work.clear()
        earlier = work.read(_SETTINGS)
        unlike = difference(earlier, facts) if earlier else None
        if work.has(COMMIT):
            known: dict[str, Any] = work.read(COMMIT)
            if not unlike:
                commit(work)
                return known
            if os.path.exists(manifest_path(work.prefix)):
                work.clear()  # that dataset is whole, and this run makes another one
                earlier = unlike = None
        if not work.has(COMMIT):  # what is at the prefix is not of this work
            try:
                self._refuse_existing()
            except UserError:
                if not earlier:
                    work.clear()  # a folder without settings is what a run left that had hardly begun
                raise
        if not earlier:
            work.clear()
        if unlike:
            raise UserError(
                f"{work.path} holds the unfinished work of a run that {unlike}; give the same command to continue it, "
                f"or --restart to discard it"
            )
        self.owned = True
        return None

    def _refuse_existing(self) -> None:
        if not self._overwrite or not os.path.basename(self._work.prefix):
            refuse_existing(self._work.prefix)

    def close(self) -> None:
        """Let other runs have the prefix."""
        if self._lock is not None:
            with suppress(OSError):  # of a run that was refused before it wrote anything
                if os.listdir(self._work.path) == [LOCK]:
                    self._work.remove()
            self._lock.release()


def _settings(reader: DocumentReader, recipe: Recipe, converter: Converter, plan: Plan) -> dict[str, Any]:
    """Everything that the output depends on but the inputs, by the names of the options."""
    options = reader.options
    result: dict[str, Any] = {
        "the command": recipe.kind,
        "--key": options.key,
        "--txt-mode": options.txt_mode,
        "--stdin-format": options.stdin_format,
        "--on-bad-record": options.on_bad_record,
        "--max-documents": options.max_documents,
        "--heldout-fraction": recipe.heldout_fraction,
        "parts of bytes": plan.part_bytes,
        "the program": megatron_pixel.__version__,
    }
    for prefix, section in (("rendering", recipe.rendering), ("pair", recipe.pair)):
        if section is not None:
            result |= {f"--{prefix}.{name}": value for name, value in asdict(section).items()}
    if converter.renderer is not None:
        result |= {f"the renderer's {name}": value for name, value in converter.renderer.fingerprint().items()}
    if converter.tokenizer is not None:
        result |= {f"the tokenizer's {name}": value for name, value in converter.tokenizer.fingerprint().items()}
    if recipe.has_codec:
        result["the page codec"] = [DEFAULT, codec_class(DEFAULT).version]
    return result

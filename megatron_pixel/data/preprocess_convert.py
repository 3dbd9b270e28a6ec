"""One process at work: it takes parts (or inputs that are to be cut), converts them and writes each whole."""

import os
import pickle
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace

from megatron_pixel.config.errors import UserError
from megatron_pixel.data.documents import Document, PartReader
from megatron_pixel.data.files import CannotWriteError, write_file
from megatron_pixel.data.preprocess_claims import Claims, Tally
from megatron_pixel.data.preprocess_documents import Converter, Recipe
from megatron_pixel.data.preprocess_plan import Plan
from megatron_pixel.data.preprocess_spool import spool
from megatron_pixel.data.preprocess_work import WorkFolder
from megatron_pixel.data.preprocess_writer import PartRecord, PartWriter
from megatron_pixel.data.records import Part, ReaderOptions
from megatron_pixel.data.split import is_heldout

PARTS = "parts.json"
CODEC = "codec.pickle"
PART = "part"
SPOOL = "spool"


@dataclass(frozen=True)
class Job:
    """What a process needs to know to do its share."""

    prefix: str
    folder: str
    """Of this run's claims."""
    kind: str
    """Of the tasks: SPOOL or PART."""
    tasks: tuple[int, ...]
    recipe: Recipe
    options: ReaderOptions
    plan: Plan


class Worker:
    """Does tasks of a job in this process."""

    def __init__(self, job: Job, converter: Converter | None = None, watch: Callable[[], None] | None = None) -> None:
        """``watch`` is called now and then, a few times a second at most."""
        self._job = job
        self._work = WorkFolder(job.prefix)
        self._claims = Claims(job.folder)
        self._converter = converter
        self._watch = watch
        self._done = Tally()

    def run(self) -> None:
        """Work until no task is left, or another process has failed."""
        job = self._job
        try:
            if job.kind == SPOOL:
                for number in self._claims.take(SPOOL, job.tasks):
                    spool(job.plan, number, job.options, self._work, self._note)
                return
            parts: list[Part] | None = None
            for number in self._claims.take(PART, job.tasks):
                parts = parts or read_parts(self._work)
                self._convert(number, parts[number])
        except BaseException as error:
            self._claims.stop()
            if isinstance(error, OSError):
                raise CannotWriteError.of(error, self._work.path) from error
            raise

    def _convert(self, number: int, part: Part) -> None:
        converter = self._converter = self._converter or self._job.recipe.make()
        if converter.codec is not None:
            converter.codec.take_used()  # of the sample, if this process drew it
        prefix = self._work.part_prefix(number)
        reader = PartReader(part, self._job.options)
        pages = 0
        with PartWriter(prefix, self._job.recipe.kind, converter.vocab_size) as writer:
            for document in reader:
                pages += self._add(writer, converter, reader, document)
                self._note(Tally(reader.bytes_done, reader.documents, pages, reader.text_bytes))
            record = writer.finish()
        record.tally = Tally(part.size, reader.documents, pages, reader.text_bytes)
        record.skipped = dict(sorted(reader.skipped.items()))
        record.records = {part.source: reader.records}
        if converter.codec is not None:
            record.used = converter.codec.take_used().tolist()
        self._work.write(f"{PART}-{number:06d}.json", record.as_json())
        if os.path.dirname(part.path) == self._work.path:
            with suppress(FileNotFoundError):
                os.unlink(part.path)  # what was spooled is needed no more
        self._done = self._done.plus(record.tally)
        self._note(Tally(), now=True)

    def _add(self, writer: PartWriter, converter: Converter, reader: PartReader, document: Document) -> int:
        heldout = is_heldout(document.text, self._job.recipe.heldout_fraction)
        try:
            return writer.add(heldout, converter.pieces(document.text))
        except (UserError, MemoryError):
            raise
        except Exception as error:
            error.add_note(f"while converting {reader.where(document)}")
            raise

    def _note(self, current: Tally, now: bool = False) -> None:
        if self._claims.note(self._done.plus(current), now) and self._watch:
            self._watch()


def write_parts(work: WorkFolder, parts: list[Part]) -> None:
    """Keep the list of parts for all processes."""
    work.write(PARTS, [asdict(part) for part in parts])


def read_parts(work: WorkFolder) -> list[Part]:
    """What :func:`write_parts` wrote."""
    return [part_from_json(content) for content in work.read(PARTS)]


def part_from_json(content: dict) -> Part:
    """A part that was written as JSON."""
    error = content["error"]
    return Part(**{**content, "error": tuple(error) if error else None})


def write_codec(work: WorkFolder, recipe: Recipe) -> None:
    """Keep the codec of this work, which all parts are encoded with."""
    write_file(work.file(CODEC), pickle.dumps(recipe.codec))


def with_kept_codec(work: WorkFolder, recipe: Recipe) -> Recipe:
    """The recipe with the codec that :func:`write_codec` kept."""
    with open(work.file(CODEC), "rb") as file:
        return replace(recipe, codec=pickle.load(file))


def read_record(work: WorkFolder, number: int) -> PartRecord:
    """The record of a finished part; raises UserError where it is damaged."""
    try:
        return PartRecord.from_json(work.read(f"{PART}-{number:06d}.json"))
    except (TypeError, KeyError) as error:
        raise UserError(
            f"{work.file(f'{PART}-{number:06d}.json')} is damaged ({error}); --restart begins anew"
        ) from None

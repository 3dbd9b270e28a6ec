"""From text files to a dataset, at any scale: plan, sample, convert, assemble.

The input is cut into parts (``preprocess_plan``), each converted by one process on its own and kept in the work folder
``P.work`` (``preprocess_convert``, ``preprocess_work``); at the end the parts are joined in the order of the input
(``preprocess_assemble``). The bytes written depend on the documents and the settings: not on the number of processes or
machines, the cuts, or how often the run was killed and started again.
"""

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.schema import PairConfig
from megatron_pixel.data.codec import DEFAULT, codec_class, train_codec
from megatron_pixel.data.documents import DocumentReader, empty_file, refuse
from megatron_pixel.data.files import CannotWriteError
from megatron_pixel.data.inputs import STDIN
from megatron_pixel.data.manifest import Manifest, SplitEntry
from megatron_pixel.data.preprocess_assemble import COMMIT, add_up, assemble
from megatron_pixel.data.preprocess_begin import Beginning, Begun
from megatron_pixel.data.preprocess_chunks import LEAST_PAIR_PATCHES, LEAST_PAIR_TOKENS
from megatron_pixel.data.preprocess_claims import Claims, Tally
from megatron_pixel.data.preprocess_convert import (
    CODEC,
    PART,
    PARTS,
    SPOOL,
    Job,
    Worker,
    part_from_json,
    read_parts,
    read_record,
    with_kept_codec,
    write_codec,
    write_parts,
)
from megatron_pixel.data.preprocess_documents import Converter, Recipe
from megatron_pixel.data.preprocess_plan import Plan, cut_file, make_plan, total_size
from megatron_pixel.data.preprocess_progress import Progress
from megatron_pixel.data.preprocess_ranks import Ranks
from megatron_pixel.data.preprocess_sample import sample_pages
from megatron_pixel.data.preprocess_spool import check_standard_input, spool, spool_documents
from megatron_pixel.data.preprocess_work import Lock, WorkFolder
from megatron_pixel.data.preprocess_workers import run_processes
from megatron_pixel.data.records import Part

_FEW_BYTES = 4 << 20
"""Other processes would take longer to start than they help."""


@dataclass(frozen=True)
class Report:
    """What a run did."""

    manifest: Manifest
    text_bytes: int
    """Bytes of all documents in UTF-8."""
    page_bytes: int
    """Bytes of all encoded pages."""
    seconds: float
    """Of this run; an earlier one may have done a part of the work."""
    found: Tally
    """What earlier runs had done."""

    @property
    def skipped(self) -> dict[str, int]:
        """Records left out: reason -> count."""
        return dict(self.manifest.source["skipped"])

    @property
    def total(self) -> SplitEntry:
        """Both splits together."""
        entries = self.manifest.splits.values()
        names = ("documents", "sequences", "tokens", "patches")
        return SplitEntry(**{name: sum(getattr(entry, name) for entry in entries) for name in names})


def preprocess(
    reader: DocumentReader,
    recipe: Recipe,
    prefix: str,
    workers: int = 1,
    overwrite: bool = False,
    command: str = "",
    quiet: bool = True,
    restart: bool = False,
    part_bytes: int | None = None,
    ranks: Ranks | None = None,
) -> Report:
    """Convert the documents of ``reader`` as ``recipe`` says (its codec is made here) and write the dataset ``prefix``.

    A run that was stopped or killed goes on where it was when the same is asked for again; ``restart`` begins anew.
    All ``ranks`` call this with the same arguments and get the same report.

    Raises:
        UserError: for everything that a user can put right. Whole parts are kept for the next run.
    """
    run = _Run(reader, recipe, prefix, workers, command, quiet, ranks or Ranks())
    beginning = Beginning(run.work, overwrite, restart)
    try:
        return run.run(beginning, part_bytes)
    except Exception as error:
        raise run.told(error, beginning) from error.__cause__
    except BaseException:
        run.tidy(beginning)
        raise
    finally:
        beginning.close()


class _Run:
    """One rank's way through a run."""

    def __init__(
        self,
        reader: DocumentReader,
        recipe: Recipe,
        prefix: str,
        workers: int,
        command: str,
        quiet: bool,
        ranks: Ranks,
    ) -> None:
        self.work = WorkFolder(prefix)
        self._reader = reader
        self._recipe = recipe
        self._workers = workers
        self._command = command
        self._quiet = quiet or ranks.rank > 0
        self._ranks = ranks
        self._started = time.monotonic()
        self._converter: Converter | None = None
        self._parts: list[Part] = []
        self._before = Tally()
        self._worthless = False

    def run(self, beginning: Beginning, part_bytes: int | None) -> Report:
        """Do it; see :func:`preprocess`."""

        def begin() -> Begun:
            if self._recipe.pair is not None:
                _check_caps(self._recipe.pair)
            # Built first: missing fonts and broken tokenizers are told before any work.
            self._converter = self._recipe.make()
            plan = make_plan(self._reader, part_bytes)
            return beginning.begin(self._reader, self._recipe, self._converter, plan)

        begun = self._ranks.lead(begin)
        if begun.finished is not None:
            manifest = Manifest.read(self.work.prefix)
            found = begun.finished
            return Report(manifest, found["text_bytes"], found["page_bytes"], self._seconds, Tally(*found["tally"]))
        with self._share_lock():
            self._spool(begun)
            job = self._ranks.lead(lambda: self._prepare(begun))
            self._do(job, total_size(self._parts), self._before)
            return self._ranks.lead(lambda: self._finish(begun.plan))

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._started

    def _share_lock(self) -> "_Shared":
        def look() -> None:
            if not os.path.isdir(self.work.path):
                raise UserError(
                    f"{self.work.path} is not seen by all machines: choose a prefix on a shared file system"
                )

        self._ranks.together(look, lambda: None)
        return _Shared(self.work if self._ranks.rank else None)

    def _spool(self, begun: Begun) -> None:
        """Cut the inputs that cannot be entered in the middle."""
        plan, reader, work = begun.plan, self._reader, self.work
        tasks = sorted(plan.spooled)

        def by_rank_0() -> list[int]:
            done = work.numbers(SPOOL)
            with Progress(reader.total_bytes, self._quiet, what="reading") as progress:
                # Standard input belongs to this process.
                for number in [0] if plan.limited else [file.source for file in plan.files if file.path == STDIN]:
                    if number not in done and plan.limited:
                        spool_documents(reader, plan, work, progress.update)
                    elif number not in done:
                        spool(plan, number, reader.options, work, progress.update)
                    elif STDIN in reader.paths:
                        check_standard_input(reader, work, work.read(f"{SPOOL}-{number:06d}.json")["sha256"])
            return [number for number in tasks if number not in done and plan.files[number].path != STDIN]

        if plan.limited or tasks:
            left = tuple(self._ranks.lead(by_rank_0))
            job = Job(work.prefix, begun.folder, SPOOL, left, self._recipe, reader.options, plan)
            self._do(job, sum(plan.files[number].size for number in left), Tally(), "decompressing")

    def _prepare(self, begun: Begun) -> Job:
        """List the parts, make the codec or take that of the earlier run."""
        work, recipe, options = self.work, self._recipe, self._reader.options
        assert self._converter is not None
        if not work.has(PARTS):
            write_parts(work, self._cut(begun.plan))
        self._parts = read_parts(work)
        if recipe.has_codec and work.has(CODEC):
            recipe = with_kept_codec(work, recipe)
        elif recipe.has_codec:
            count = codec_class(DEFAULT).sample_pages
            pages = sample_pages(self._cut(begun.plan, whole=True), self._converter, options, count)
            recipe = replace(recipe, codec=train_codec(pages, self._converter.renderer))
            write_codec(work, recipe)
        self._converter.codec = recipe.codec
        done = work.numbers(PART)
        for number in sorted(done):
            self._before = self._before.plus(read_record(work, number).tally)
        tasks = tuple(number for number in range(len(self._parts)) if number not in done)
        return Job(work.prefix, begun.folder, PART, tasks, recipe, options, begun.plan)

    def _cut(self, plan: Plan, whole: bool = False) -> list[Part]:
        """All parts; ``whole`` leaves the inputs that are not spooled in one piece."""
        parts: list[Part] = []
        for file in plan.files[:1] if plan.limited else plan.files:
            if plan.limited or file.source in plan.spooled:
                spooled = self.work.read(f"{SPOOL}-{file.source:06d}.json")
                parts += map(part_from_json, spooled["parts"])
            else:
                parts += [file] if whole else cut_file(file, plan.part_bytes, self._reader.options)
        return parts

    def _do(self, job: Job, size: int, before: Tally, what: str = "") -> None:
        """Do a job with all ranks and their processes; ``size`` bytes of input, ``before`` of these done already."""
        if not job.tasks:
            return
        workers = min(self._workers, len(job.tasks))
        if size - before.input_bytes <= _FEW_BYTES and self._ranks.size == 1:
            workers = 1
        with Progress(size, self._quiet, before, what) as progress:
            claims = Claims(job.folder)

            def watch() -> None:
                if not self._quiet:
                    progress.update(claims.total())

            action: Callable[[], None] = Worker(job, self._converter, watch).run
            if workers > 1:

                def action() -> None:
                    run_processes(job, workers, watch)

            self._ranks.together(action, watch)

    def _finish(self, plan: Plan) -> Report:
        reader, recipe, work, converter = self._reader, self._recipe, self.work, self._converter
        assert converter is not None
        total, used = add_up(work, len(self._parts))
        self._worthless = total.tally.documents == 0
        if plan.limited:
            total.skipped = dict(work.read(f"{SPOOL}-{0:06d}.json")["skipped"])
        else:
            for file in plan.files:
                if not total.records.get(file.source):
                    refuse(empty_file(file.name), reader.options, total.skipped)
        if self._worthless:
            skips = "".join(f", {count:,} x {reason}" for reason, count in sorted(total.skipped.items()))
            raise UserError(f"no documents in {', '.join(reader.paths)}{skips}; nothing was written")
        manifest = Manifest(
            kind=recipe.kind,
            splits=total.splits,
            rendering=converter.renderer.fingerprint() if converter.renderer else None,
            tokenizer=converter.tokenizer.fingerprint() if converter.tokenizer else None,
            pair=asdict(recipe.pair) if recipe.pair else None,
            heldout_fraction=recipe.heldout_fraction,
            source={
                "files": reader.paths,
                "bytes": total.tally.input_bytes,
                "documents": total.tally.documents,
                "skipped": dict(sorted(total.skipped.items())),
            },
            command=self._command,
        )
        report = Report(manifest, total.tally.text_bytes, total.page_bytes, self._seconds, self._before)
        codec = (converter.codec, used, converter.renderer) if converter.codec else None
        with Progress(None, self._quiet, what="joining parts") as progress:
            known = {"text_bytes": report.text_bytes, "page_bytes": report.page_bytes, "tally": list(total.tally)}
            assemble(work, manifest, len(self._parts), converter.vocab_size, codec, known, progress.update)
        return replace(report, seconds=self._seconds)

    def told(self, error: Exception, beginning: Beginning) -> Exception:
        """The error as the user is to read it: with what became of the work."""
        if not beginning.owned:
            return error
        kept = self.tidy(beginning)
        if isinstance(error, OSError):
            error = CannotWriteError.of(error, self.work.path)
        if isinstance(error, CannotWriteError):
            if kept:
                return CannotWriteError(error.problem, f"{kept}. Make room, and the same command continues.")
            return CannotWriteError(error.problem, "nothing was kept. Make room, and give the command again.")
        if isinstance(error, UserError) and kept:
            return UserError(f"{error}\n  ({kept}; the same command continues)")
        return error

    def tidy(self, beginning: Beginning) -> str:
        """Remove work that nobody wants to go on with; say what is kept."""
        work = self.work
        if not beginning.owned or not os.path.isdir(work.path):
            return ""
        parts = len(work.numbers(PART))
        if self._worthless or not (parts or work.numbers(SPOOL) or work.has(COMMIT)):
            work.clear()
            return ""
        if not self._parts:
            return f"what was decompressed is kept in {work.path}"
        return f"{parts} of {len(self._parts)} parts are kept in {work.path}"


class _Shared:
    """Holds the lock with the other processes of a run, in ranks that did not take it."""

    def __init__(self, work: WorkFolder | None) -> None:
        self._lock = Lock(work, leading=False) if work else None

    def __enter__(self) -> None:
        return None

    def __exit__(self, *details: object) -> None:
        if self._lock is not None:
            self._lock.release()


def _check_caps(pair: PairConfig) -> None:
    for name, value, least in (
        ("patches", pair.patches, LEAST_PAIR_PATCHES),
        ("tokens", pair.tokens, LEAST_PAIR_TOKENS),
    ):
        if value < least:
            raise UserError(f"--pair.{name} {value} is too small to hold a word; {least} is the least")

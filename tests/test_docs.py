"""Every command, link and setting on the pages is checked against the programs, the files and the config tree."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from launcher.submit import parse as parse_submission
from megatron_pixel.config import RenderingConfig, RunConfig, load_config, settings
from megatron_pixel.config.command_line import reference
from megatron_pixel.config.keys import sections
from megatron_pixel.planning.command import read_arguments

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *(path for name in ("README.md", "CONTRIBUTING.md", "launcher/README.md") if (path := ROOT / name).is_file()),
    *sorted(ROOT.glob("docs/*.md")),
]
TRAINING = "megatron_pixel/pretrain.py"
SUBMITTING = "launcher/submit.py"
SUPERVISOR = "launcher/supervise.py"
LAUNCHERS = {"torchrun", "deepspeed", "srun", "mpirun", "sbatch"}
SYSTEM_PROGRAMS = set("cd export git source pre-commit ruff mypy tensorboard scancel squeue sed".split())
"""Programs that are not ours, whose options are not checked; any other must be known to :func:`check`."""


class Command(NamedTuple):
    """One command of a page."""

    page: Path
    line: int
    words: list[str]

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}: {shlex.join(self.words)}"


def blocks(page: Path, language: str) -> Iterator[tuple[int, str, str]]:
    """Line number, text and the comment line before each fenced block of a language."""
    lines = page.read_text(encoding="utf-8").splitlines()
    start = None
    for number, line in enumerate(lines, start=1):
        if start is None and line.strip() == f"```{language}":
            start = number
        elif start is not None and line.strip() == "```":
            yield start + 1, "\n".join(lines[start : number - 1]), lines[start - 2] if start > 1 else ""
            start = None


def commands() -> Iterator[Command]:
    """Every command of every bash block; a pipe or ``&&`` separates two."""
    for page in PAGES:
        for first, text, _ in blocks(page, "bash"):
            number, command = first, ""
            for offset, line in enumerate(text.split("\n"), start=1):
                if line.endswith("\\"):
                    command += line[:-1]
                    continue
                for part in re.split(r"\s(?:\||&&)\s", command + line):
                    if words := shlex.split(part, comments=True):
                        yield Command(page, number, words)
                number, command = first + offset, ""


@cache
def options(program: str, *subcommand: str) -> frozenset[str]:
    """Long options that ``--help`` of a program (and its subcommand) shows."""
    environment = {**os.environ, "COLUMNS": "200"}
    call = [sys.executable, str(ROOT / program), *subcommand, "--help"]
    done = subprocess.run(call, check=False, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, f"{program} --help: {done.stderr}"
    return frozenset(re.findall(r"(?<![\w-])--[A-Za-z][\w.-]*", done.stdout))


def check_program(program: str, words: Sequence[str]) -> None:
    """A program of ours: it exists, knows its options, and a recipe goes together with the settings given."""
    assert (ROOT / program).is_file(), f"no program {program}"
    subcommand = words[:1] if words and re.fullmatch(r"[a-z-]+", words[0]) and not words[0].startswith("-") else []
    known = options(program, *subcommand)
    if program == SUPERVISOR:
        own = [i for i, word in enumerate(words) if word in known and word not in options(TRAINING)]
        words = [word for i, word in enumerate(words) if i not in own and i - 1 not in own]
        check_program(TRAINING, words)
        return
    if program == SUBMITTING:
        _, _, settings_of_run = parse_submission(words)
        load_config(ROOT / words[words.index("--config") + 1], settings_of_run)
        return
    for word in words:
        if word.startswith("--"):
            assert word.partition("=")[0] in known, f"{program} knows no {word}"
    if program == TRAINING and "--dry-run" in words:
        _, overrides = read_arguments(words)
        load_config(ROOT / words[words.index("--config") + 1], overrides)
    elif program == TRAINING and "--help" not in words:
        rest = [word for word in words if word != "--print-config"]
        at = rest.index("--config")
        recipe = rest[at + 1]
        overrides = rest[:at] + rest[at + 2 :]
        if recipe.startswith("megatron_pixel/"):
            load_config(ROOT / recipe, overrides)


def check(words: Sequence[str]) -> None:
    """Raise AssertionError for a command that cannot work."""
    words = [word for word in words if not re.fullmatch(r"[A-Z_]+=\S*", word)]
    program = words[0] if words else "export"
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
        for target in words[1:]:
            assert target in targets, f"the Makefile has no {target}"
    elif program == "sbatch":
        script = next(word for word in words if word.endswith(".sbatch"))
        assert (ROOT / script).is_file(), f"no script {script}"
        programs = {"preprocess.sbatch": "data_tools/preprocess.py", "finetune.sbatch": "megatron_pixel/finetune.py"}
        program = programs.get(Path(script).name, TRAINING)
        check_program(program, words[words.index(script) + 1 :])
    elif program in LAUNCHERS or program == "python":
        position = next((i for i, word in enumerate(words) if word.endswith(".py")), None)
        if position is None or words[1] == "-m":
            assert words[1] == "-m", "neither a program nor a module"
            folder = ROOT / words[2].replace(".", "/")
            ours = words[2].startswith("megatron_pixel")
            assert not ours or folder.with_suffix(".py").is_file() or (folder / "__main__.py").is_file()
        else:
            check_program(words[position], words[position + 1 :])
    elif program == "bash":
        assert (ROOT / words[1]).is_file(), f"no script {words[1]}"
    else:
        assert program in SYSTEM_PROGRAMS, f"{program}: not a program that the pages may use unchecked"


@pytest.mark.parametrize("command", commands(), ids=str)
def test_command_is_one_that_works(command: Command) -> None:
    check(command.words)
    for word in command.words:
        path = word.rpartition("=")[2]
        if re.match(r"(megatron_pixel|data_tools|launcher|ds_configs|benchmarks|docs|examples|tests)/", path):
            assert (ROOT / path).exists(), f"no {path}"


def test_the_check_of_commands_can_fail() -> None:
    recipe = "megatron_pixel/config/recipes/dualgpt-debug.yaml"
    check(["python", TRAINING, "--config", recipe, "--optimizer.lr", "3e-4"])
    for words in (
        ["python", TRAINING, "--config", recipe, "--optimizer.lrr", "3e-4"],
        ["torchrun", "--nproc-per-node", "2", TRAINING, "--config", recipe, "--nonsense"],
        ["python", "megatron_pixel/nonsense.py"],
        ["make", "nonsense"],
        ["nonsense"],
    ):
        with pytest.raises(AssertionError):
            check(words)
    with pytest.raises(Exception, match="expected a number"):
        check(["sbatch", "launcher/pretrain.sbatch", "--config", recipe, "--optimizer.lr", "much"])


def marked_blocks() -> list[tuple[Path, int, str]]:
    """Blocks behind ``<!-- test: run -->``: cheap enough to run for real."""
    return [
        (page, line, text)
        for page in PAGES
        for line, text, before in blocks(page, "bash")
        if before.strip() == "<!-- test: run -->"
    ]


@pytest.mark.parametrize(("page", "line", "text"), marked_blocks(), ids=lambda value: getattr(value, "name", None))
def test_marked_block_runs_and_prints_what_the_page_shows(page: Path, line: int, text: str) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euc", text],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env={**os.environ, "PATH": path},
    )
    assert done.returncode == 0, done.stderr
    rest = page.read_text(encoding="utf-8").split("\n", line)[-1]
    shown = re.search(r"<!-- output: begin -->\n(.*?)\n<!-- output: end -->", rest, flags=re.DOTALL)
    if shown:
        expected = re.sub(r"^```text\n|\n```$", "", shown[1].strip())
        assert expected == done.stdout.strip(), f"{page.name}: the output below line {line} is out of date"


def test_reference_of_settings_is_up_to_date() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    shown = re.search(r"<!-- reference: begin -->\n(.*?)\n<!-- reference: end -->", page, flags=re.DOTALL)
    assert shown
    assert shown[1] == reference(), "paste what `python -m megatron_pixel.config` prints into docs/configuration.md"


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """What ``page.md#...`` may point to."""
    titles = re.findall(r"^#+ +(.*)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page: Path) -> None:
    text = re.sub(r"`[^`\n]*`", "", prose(page))
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    for target in targets:
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.exists(), f"{page.name} links to {target}, which is not there"
        assert not anchor or anchor in anchors(linked), f"{page.name} links to {target}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_settings_and_files_in_the_prose_exist(page: Path) -> None:
    known = set(settings(RunConfig)) | set(settings(RenderingConfig, "rendering"))
    names = "|".join({*sections(RunConfig), "rendering"})
    for code in re.findall(r"`([^`\n]+)`", prose(page)):
        for setting in re.findall(rf"(?<![\w./-])(?:--)?((?:{names})\.[a-z_]\w*)(?![\w/(.])", code):
            assert setting in known or setting.endswith((".py", ".md", ".json", ".yaml")), (
                f"{page.name}: there is no setting {setting}"
            )
        if re.fullmatch(
            r"(megatron_pixel|data_tools|launcher|ds_configs|benchmarks|docs|examples|tests)/[\w./-]+", code
        ):
            assert (ROOT / code).exists(), f"{page.name}: there is no {code}"

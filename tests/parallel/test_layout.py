import re
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_pixel.config import RunConfig, UserError, apply_overrides
from megatron_pixel.parallel.layout import check_layout

ROOT = Path(__file__).resolve().parents[2]


def config(*words: str) -> RunConfig:
    """A valid DualGPT of 20 rows a step: 8 text, 8 pixel and 4 pair rows."""
    own = ["--data.synthetic", "--training.global_batch_rows=20", "--training.micro_batch_rows=1"]
    return apply_overrides(RunConfig, "", [*own, *words])


@pytest.mark.parametrize(
    ("words", "processes"),
    [
        ([], 1),
        ([], 4),
        (["--parallel.tensor=2", "--parallel.pipeline=3"], 24),
        (["--parallel.pipeline=24"], 24),
        (["--deepspeed_config=ds_configs/zero3.json", "--parallel.tensor=8"], 32),
    ],
)
def test_layouts_that_fit(words: list[str], processes: int) -> None:
    check_layout(config(*words), processes)


@pytest.mark.parametrize(
    ("words", "processes", "message"),
    [
        (
            ["--parallel.tensor=2", "--parallel.pipeline=2"],
            6,
            r"parallel.tensor 2 x parallel.pipeline 2 = 4 does not divide the 6 process\(es\) of this run; "
            r"nearest valid: 4 or 8 processes, or a product of 1, 2, 3, 6",
        ),
        (["--parallel.tensor=8"], 1, r"8 does not divide the 1 process\(es\) .* 8 processes, or a product of 1$"),
        (
            [],
            8,
            r"20 rows split 4:4:2 are 8 text, 8 pixel, 4 pair rows a step; each must be a multiple of "
            r"training.micro_batch_rows 1 x 8 data-parallel ranks; nearest valid training.global_batch_rows: 40$",
        ),
        (
            ["--training.micro_batch_rows=2"],
            4,
            r"training.micro_batch_rows 2 x 4 data-parallel ranks; nearest valid training.global_batch_rows: 40; "
            r"nearest valid training.micro_batch_rows: 1",
        ),
        (
            ["--deepspeed_config=ds_configs/zero2.json", "--parallel.pipeline=2"],
            2,
            r"zero2.json:3: zero_optimization.stage is 2, but parallel.pipeline is 2: a pipeline goes with stage 1 "
            r"only; set deepspeed_config to ds_configs/zero1.json, or parallel.pipeline to 1",
        ),
        (["--deepspeed_config=ds_configs/zero3.json", "--parallel.pipeline=4"], 4, r"stage is 3, but .* is 4"),
        (["--deepspeed_config=ds_configs/none.json"], 1, r"there is no file ds_configs/none.json; the project has"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_nearest_that_does(
    words: list[str], processes: int, message: str
) -> None:
    with pytest.raises(UserError) as caught:
        check_layout(config(*words), processes)
    assert re.search(message, str(caught.value)), str(caught.value)


def test_an_optimizer_on_the_host_and_a_pipeline(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text('{"zero_optimization": {"stage": 1,\n"offload_optimizer": {"device": "cpu"}}}')
    with pytest.raises(UserError, match=r"mine.json:2: offload_optimizer is set, but parallel.pipeline is 2"):
        check_layout(config(f"--deepspeed_config={file}", "--parallel.pipeline=2"), 2)
    check_layout(config(f"--deepspeed_config={file}"), 2)


def test_all_problems_at_once(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text('{"zero_optimization": {"stage": 3}}')
    with pytest.raises(UserError) as caught:
        check_layout(config(f"--deepspeed_config={file}", "--parallel.pipeline=2"), 3)
    assert "does not divide the 3 process(es)" in str(caught.value)
    assert "zero_optimization.stage is 3" in str(caught.value)


def test_refusals_need_no_torch() -> None:
    code = "import sys, megatron_pixel.parallel.layout; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120).returncode == 0

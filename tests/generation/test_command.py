"""``generate.py`` as it is called, in this process."""

import runpy
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def generate(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    def call(*words: str, checkpoint: Path = run) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["generate.py", "--checkpoint", str(checkpoint), *words])
        status = 0
        try:
            runpy.run_path(str(ROOT / "megatron_pixel" / "generate.py"), run_name="__main__")
        except SystemExit as end:
            status = int(end.code or 0)
        return status, *capsys.readouterr()

    return call


def test_text_is_streamed_after_its_prompt(generate) -> None:  # type: ignore[no-untyped-def]
    status, out, err = generate("--prompt", "the congress", "--modality", "text", "--max-tokens", "6")
    assert status == 0
    assert out.startswith("the congress")
    assert len(out) > len("the congress\n")
    assert "6 tokens in" in err
    assert generate("--prompt", "the congress", "--modality", "text", "--max-tokens", "6")[1] == out
    words = [
        "--prompt",
        "the congress",
        "--modality",
        "text",
        "--max-tokens",
        "6",
        "--temperature",
        "2",
        "--top-p",
        "0.9",
    ]
    drawn = [generate(*words, "--seed", str(seed))[1] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_several_prompts_and_all_directions(generate, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    _, out, _ = generate("--prompt", "we", "--prompt", "the congress", "--modality", "text", "--max-tokens", "3")
    assert "--- 'we'\n" in out
    assert "--- 'the congress'\n" in out
    status, _, err = generate("--prompt", "we", "--prompt-as", "pixel", "--modality", "text", "--max-tokens", "3")
    assert status == 0
    assert "note: pages are drawn with other fonts than in training: Nowhere.ttf" in err
    for given in ("pixel", "text"):
        path = tmp_path / f"{given}.png"
        words = [
            "--prompt",
            "we",
            "--prompt-as",
            given,
            "--modality",
            "pixel",
            "--max-patches",
            "3",
            "--output",
            str(path),
        ]
        status, _, err = generate(*words)
        assert status == 0
        assert "3 patches in" in err
        with Image.open(path) as image:
            assert image.height > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--modality", "pixel"], "give --output page.png"),
        (["--modality", "text", "--output", "x.png"], "--modality text writes none"),
        (["--modality", "pixel", "--output", "x.doc"], "--output x.doc: pictures end in .png"),
        (["--modality", "text", "--max-tokens", "0"], "--max-tokens 0: must be 1 or more"),
        (["--modality", "text", "--temperature", "-1"], "--temperature -1.0"),
        (["--modality", "text", "--tokenizer", "/nowhere"], "/nowhere: no such tokenizer"),
    ],
)
def test_what_cannot_be_is_one_line(words: list[str], message: str, generate) -> None:  # type: ignore[no-untyped-def]
    status, _, err = generate("--prompt", "we", *words)
    assert status == 2
    assert err.startswith("error: ")
    assert message in err
    assert "Traceback" not in err


def test_no_checkpoint_is_one_line(generate, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    status, _, err = generate("--prompt", "we", "--modality", "text", checkpoint=tmp_path)
    assert status == 2
    assert "is no checkpoint" in err
    status, _, err = generate("--prompt", "the congress " * 30, "--modality", "text")
    assert status == 2
    assert "the model reads 32" in err

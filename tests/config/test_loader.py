import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from megatron_pixel.config import (
    RenderingConfig,
    RunConfig,
    UserError,
    apply_overrides,
    diff,
    flatten,
    load_config,
    save_config,
    to_dict,
)

Write = Callable[..., Path]
SYNTHETIC = "data:\n  synthetic: true\n"


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def test_recipe_changes_only_what_it_names(recipe: Write) -> None:
    config = load_config(recipe(SYNTHETIC + "model:\n  layers: 2\n  hidden: 32\n"))
    changed = diff(RunConfig(), config)
    assert changed == {"data.synthetic": (False, True), "model.layers": (24, 2), "model.hidden": (1024, 32)}


@pytest.mark.parametrize(
    ("written", "expected"),
    [("5e-4", 5e-4), ("5.0E-4", 5e-4), (".5", 0.5), ("+1.", 1.0), ("1", 1.0), ("-0.0", 0.0)],
)
def test_numbers_that_yaml_1_1_takes_for_text(recipe: Write, written: str, expected: float) -> None:
    config = load_config(recipe(f"{SYNTHETIC}optimizer:\n  weight_decay: {written}\n"))
    assert config.optimizer.weight_decay == expected
    assert isinstance(config.optimizer.weight_decay, float)


def test_text_that_yaml_1_1_takes_for_numbers(recipe: Write) -> None:
    config = load_config(recipe("data:\n  synthetic: true\n  mixture: 4:4:2\n  text: [1:30, on, 2024-01-01]\n"))
    assert config.data.mixture == "4:4:2"
    assert config.data.text == ["1:30", "on", "2024-01-01"]


def test_whole_numbers_pass_for_integers_and_fractions_do_not(recipe: Write) -> None:
    assert load_config(recipe(SYNTHETIC), ["--training.steps", "1e4"]).training.steps == 10000
    message = refusal(recipe(SYNTHETIC + "training:\n  steps: 1.5\n"))
    assert message.endswith("mine.yaml:4: training.steps: expected an integer, got 1.5")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("steps: ten", "training.steps: expected an integer, got 'ten'"),
        ("steps: true", "training.steps: expected an integer, got true"),
        ("steps: null", "training.steps: expected an integer, got null"),
        ("steps: [1]", "training.steps: expected an integer, got [1]"),
        ("stop_after: soon", "training.stop_after: expected an integer or null, got 'soon'"),
        ("precision: fp8", "training.precision: expected one of fp32, bf16, got 'fp8'"),
        (
            "precision: fp16",
            "training.precision: fp16 is not supported: use bf16, which needs no loss scaling, or fp32",
        ),
        ("precision: 16", "training.precision: expected one of fp32, bf16, got 16"),
    ],
)
def test_wrong_type_names_file_line_key_value_and_what_is_expected(recipe: Write, line: str, reason: str) -> None:
    path = recipe(f"{SYNTHETIC}training:\n  # a comment\n  {line}\n")
    assert refusal(path) == f"{path}:5: {reason}"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("run:\n  dir: 2024\n", ":2: run.dir: expected text in quotes, got 2024"),
        ("data:\n  synthetic: yes\n", ":2: data.synthetic: expected true or false, got 'yes'"),
        ("data:\n  text: data/c4\n", ":2: data.text: expected a list of text, got 'data/c4'"),
        ("data:\n  text: [a, 7]\n", ":2: data.text: expected text in quotes, got 7"),
        ("checkpoint:\n  milestones: [1, x]\n", ":2: checkpoint.milestones: expected an integer, got 'x'"),
        ("optimizer:\n  lr: .inf\n", ":2: optimizer.lr: expected a finite number, got inf"),
        ("optimizer:\n  lr: .nan\n", ":2: optimizer.lr: expected a finite number, got nan"),
        ("optimizer: 3\n", ":1: optimizer: expected a section with keys (lr, min_lr, warmup_steps,"),
        ("run:\n  dir: {a: 1}\n", ":2: run.dir: expected text, got {'a': 1}"),
    ],
)
def test_other_wrong_types(recipe: Write, text: str, reason: str) -> None:
    path = recipe(text)
    assert refusal(path).startswith(f"{path}{reason}")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "optimizer:\n  lrr: 0.1\n",
            ":2: optimizer.lrr: unknown key (value 0.1); did you mean optimizer.lr (a number)?",
        ),
        ("lr: 0.1\n", ":1: lr: unknown key (value 0.1); did you mean optimizer.lr (a number)?"),
        ("optimiser:\n  lr: 0.1\n", ":1: optimiser: unknown key (value {'lr': 0.1}); did you mean optimizer"),
        (
            "training:\n  seq_length: 8\n",
            ":2: training.seq_length: unknown key (value 8); did you mean model.seq_length",
        ),
        (
            "rendering:\n  seq_length: 8\n",
            ":1: rendering: unknown key (value {'seq_length': 8}); did you mean data.rendering",
        ),
        (
            "data:\n  rendering:\n    font: 8\n",
            ":3: data.rendering.font: unknown key (value 8); did you mean data.rendering.fonts (a list of text)?",
        ),
        (
            "pair:\n  qqq: 8\n",
            ":2: pair.qqq: unknown key (value 8); known keys: pair.layout, pair.patches, pair.tokens",
        ),
        ("zzz: 8\n", ":1: zzz: unknown key (value 8); known names: run, model, data, pair,"),
        ("2: 8\n", ":1: 2: unknown key (value 8)"),
    ],
)
def test_unknown_key_names_the_nearest(recipe: Write, text: str, reason: str) -> None:
    path = recipe(text)
    assert refusal(path).startswith(f"{path}{reason}")


def test_repeated_key_is_refused_with_both_lines(recipe: Write) -> None:
    path = recipe(SYNTHETIC + "training:\n  steps: 5\n  seed: 1\n  steps: 6\n")
    assert refusal(path) == f"{path}:6: training.steps: given twice, first at {path}:4; keep one"
    path = recipe("data:\n  synthetic: true\ntraining:\n  steps: 5\ndata:\n  prefetch: 2\n")
    assert refusal(path) == f"{path}:5: data: given twice, first at {path}:1; keep one"


def test_all_problems_come_at_once(recipe: Write) -> None:
    message = refusal(recipe("training:\n  steps: ten\n  sed: 1\nmodel:\n  layers: x\n"))
    assert message.startswith("3 problems in the configuration:\n")
    assert [bool(re.search(name, message)) for name in ("steps", "seed", "layers")] == [True] * 3


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("training:\n  steps: [1\n", ":3: not valid YAML: while parsing a flow sequence"),
        ("training:\n\tsteps: 1\n", ":2: not valid YAML: while scanning for the next token"),
        ("- 1\n", ":1: expected sections with keys and values, got [1]"),
        ("run:\n  dir: !!python/name:os.system\n", ":2: not a plain value: could not determine a constructor"),
        ("run: {}\n---\nrun: {}\n", ":2: not valid YAML: expected a single document"),
    ],
)
def test_broken_yaml_names_the_line(recipe: Write, text: str, reason: str) -> None:
    path = recipe(text)
    assert refusal(path).startswith(f"{path}{reason}")


def test_files_that_are_no_recipe(tmp_path: Path, recipe: Write) -> None:
    recipe(SYNTHETIC, "dualgpt-tiny.yaml")
    expected = f"{tmp_path}/dualgpt-tinny.yaml: no such recipe; did you mean '{tmp_path}/dualgpt-tiny.yaml'?"
    assert refusal(tmp_path / "dualgpt-tinny.yaml") == expected
    assert "there is no folder" in refusal(tmp_path / "nowhere" / "x.yaml")
    assert refusal(tmp_path) == f"{tmp_path}: cannot be read: Is a directory"
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"run:\n  dir: \xff\n")
    assert refusal(binary) == f"{binary}: not a text file in UTF-8 (byte 12: invalid start byte)"


def test_empty_recipe_and_empty_section_are_the_defaults(recipe: Write) -> None:
    assert load_config(recipe(""), ["--data.synthetic"]).data.synthetic
    assert load_config(recipe("optimizer:\n  # lr: 1\n"), ["--data.synthetic"]).optimizer == RunConfig().optimizer


def test_base_is_read_relative_to_its_recipe_and_merged(tmp_path: Path, recipe: Write) -> None:
    recipe(SYNTHETIC + "training:\n  steps: 900\n  seed: 7\ncheckpoint:\n  milestones: [1, 2]\n", "bottom.yaml")
    recipe("base: bottom.yaml\ntraining:\n  seed: 8\n", "middle.yaml")
    (tmp_path / "inner").mkdir()
    path = recipe("base: ../middle.yaml\ncheckpoint:\n  milestones: [3]\n", "inner/top.yaml")
    config = load_config(path)
    assert (config.training.steps, config.training.seed, config.checkpoint.milestones) == (900, 8, [3])


def test_problems_in_a_base_name_the_base(recipe: Write) -> None:
    bottom = recipe("training:\n  stepps: 900\n", "bottom.yaml")
    assert refusal(recipe("base: bottom.yaml\n", "top.yaml")).startswith(f"{bottom}:2: training.stepps: unknown key")


def test_base_that_is_missing_or_leads_in_a_circle(recipe: Write) -> None:
    path = recipe("base: other.yaml\n", "one.yaml")
    assert "one.yaml:1: base: no file" in refusal(path)
    recipe("base: one.yaml\n", "other.yaml")
    assert "other.yaml:1: base: 'one.yaml' leads back to one.yaml" in refusal(path)
    assert "base: expected a file name, got 3" in refusal(recipe("base: 3\n", "three.yaml"))


@pytest.mark.parametrize(
    ("words", "key", "expected"),
    [
        (["--optimizer.lr", "3e-4"], "optimizer.lr", 3e-4),
        (["--optimizer.lr=1"], "optimizer.lr", 1.0),
        (["--data.text", "a", "b"], "data.text", ["a", "b"]),
        (["--data.text=1.0:a"], "data.text", ["1.0:a"]),
        (["--data.text=[a, 0.5:b, 7]"], "data.text", ["a", "0.5:b", "7"]),
        (["--data.text", "[]"], "data.text", []),
        (["--data.text", "2024"], "data.text", ["2024"]),
        (["--checkpoint.milestones", "10", "20"], "checkpoint.milestones", [10, 20]),
        (["--checkpoint.milestones=[10, 20]"], "checkpoint.milestones", [10, 20]),
        (["--training.stop_after", "3"], "training.stop_after", 3),
        (["--training.stop_after", "null"], "training.stop_after", None),
        (["--loss.end_patch", "false"], "loss.end_patch", False),
        (["--loss.end_patch=False"], "loss.end_patch", False),
        (["--data.synthetic"], "data.synthetic", True),
        (["--checkpoint.resume", "none"], "checkpoint.resume", "none"),
        (["--deepspeed_config", "F.json"], "deepspeed_config", "F.json"),
        (["--run.dir=a=b"], "run.dir", "a=b"),
        (["--run.dir", "007"], "run.dir", "007"),
        (["--training.seed", "1", "--training.seed", "2"], "training.seed", 2),
    ],
)
def test_overrides(recipe: Write, words: list[str], key: str, expected: object) -> None:
    value = flatten(load_config(recipe(SYNTHETIC), words))[key]
    assert (value, type(value)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--optimizer.lrr", "1"], "--optimizer.lrr: unknown key (value '1'); did you mean --optimizer.lr (a number)?"),
        (
            ["--micro-batch-rows=1"],
            "--micro-batch-rows: unknown key (value '1'); did you mean --training.micro_batch_ro",
        ),
        (["--training.steps", "ten"], "--training.steps: expected an integer, got 'ten'"),
        (["--training.steps"], "--training.steps: expected an integer, got no value"),
        (["--training.steps", "1", "2"], "--training.steps: expected an integer, got 2 values"),
        (["--training.precision", "fp16"], "--training.precision: fp16 is not supported: use bf16"),
        (["--data.text"], "--data.text: expected a list of text, got no value; [] is the empty list"),
        (["--data.text", "[a"], "--data.text: expected a list of text, got '[a'"),
        (["--model", "3"], "--model: a section takes no value; set one of its keys: --model.layers, "),
        (["training.steps=3"], "unexpected 'training.steps=3'; settings look like --optimizer.lr 3e-4"),
        (["--optimizer.lr", "nan"], "--optimizer.lr: expected a number, got 'nan'"),
        (["--optimizer.lr", "1e999"], "--optimizer.lr: expected a finite number, got inf"),
        (["--optimizer.lr="], "--optimizer.lr: expected a number, got ''"),
    ],
)
def test_wrong_overrides(recipe: Write, words: list[str], reason: str) -> None:
    assert refusal(recipe(SYNTHETIC), *words).startswith(f"command line: {reason}")


def test_problems_after_merging_name_the_place_that_set_the_value(recipe: Write) -> None:
    path = recipe(SYNTHETIC + "optimizer:\n  warmup_steps: 50\n")
    assert refusal(path, "--training.steps", "20") == (
        f"{path}:4: optimizer.warmup_steps: 50 exceeds training.steps 20"
    )


def test_overrides_of_any_dataclass() -> None:
    words = ["--rendering.mode", "gray", "--rendering.font_size=10", "--rendering.fonts", "a.ttf"]
    config = apply_overrides(RenderingConfig, "rendering", words)
    assert config == RenderingConfig(mode="gray", font_size=10.0, fonts=["a.ttf"])
    again = apply_overrides(config, "rendering", ["--rendering.dpi", "90"])
    assert again == RenderingConfig(mode="gray", font_size=10.0, fonts=["a.ttf"], dpi=90)
    assert config.dpi == 120
    with pytest.raises(UserError, match=r"--rendering\.dpu: unknown key .* did you mean --rendering\.dpi"):
        apply_overrides(config, "rendering", ["--rendering.dpu", "90"])


def test_save_and_load_round_trip(tmp_path: Path, recipe: Write) -> None:
    words = ["--run.dir", "5e-4", "--data.text", "1:30", "yes", "2:ä b", "--optimizer.lr", "3e-5", "--data.prefetch=7"]
    config = load_config(recipe(SYNTHETIC), words)
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    # Readers of YAML 1.1 must see the same: text stays text.
    assert yaml.safe_load((tmp_path / "saved.yaml").read_text())["run"] == {"dir": "5e-4"}
    assert yaml.safe_load((tmp_path / "saved.yaml").read_text()) == to_dict(config)


def test_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_config(RunConfig(), tmp_path / "saved.yaml")
    before = (tmp_path / "saved.yaml").read_bytes()

    def full_disk(descriptor: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_config(RunConfig(deepspeed_config="other.json"), tmp_path / "saved.yaml")
    assert [path.name for path in tmp_path.iterdir()] == ["saved.yaml"]
    assert (tmp_path / "saved.yaml").read_bytes() == before


def test_diff_and_flatten() -> None:
    new = RunConfig()
    new.data.text.append("x")
    new.training.steps = 3
    assert diff(RunConfig(), new) == {"data.text": ([], ["x"]), "training.steps": (10000, 3)}
    assert list(flatten(new))[:2] == ["run.dir", "model.layers"]
    assert diff(new, new) == {}

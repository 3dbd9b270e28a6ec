"""Every published layout is read as published, and every bad row is named."""

import json
from pathlib import Path

import numpy as np
import pytest

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.finetuning import ExamplesConfig
from megatron_pixel.finetuning.tasks import GLUE, open_task
from tests.finetuning.layouts import GLUE_TSV, write_glue, write_lines, write_parquet, write_rendered, write_xnli


@pytest.fixture(scope="module")
def glue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("glue")
    write_glue(root)
    return root


EXPECTED = {
    "cola": ([1, 0], "Our friends won't buy this.", None),
    "sst2": ([1, 0], "it 's \"charming ", None),
    "mrpc": ([1, 0], "Amrozi accused his brother .", '" Referring to him , Amrozi'),
    "stsb": ([5.0, 3.8], "A plane.", "An air plane."),
    "qqp": ([1, 0], "How is life?", "How do you live?"),
    "qnli": ([0, 1], "When did it begin?", "It began in 1990."),
    "rte": ([1, 0], "No.", "Yes."),
    "wnli": ([1, 0], "I stuck a pin.", "It had a hole."),
    "mnli": ([1, 0, 2], "Premise 0", "Hypothesis 0"),
}


@pytest.mark.parametrize("name", GLUE)
def test_glue_folders(glue: Path, name: str) -> None:
    task, data = open_task(name, ExamplesConfig(path=str(glue)))
    labels, first, second = EXPECTED[name]
    assert data.train.labels is not None
    assert data.train.labels.tolist() == labels
    assert data.train.first[0] == first
    assert (data.train.second[0] if data.train.second else None) == second
    assert [split.name for split in data.evaluation] == (
        ["validation-matched", "validation-mismatched"] if name == "mnli" else ["validation"]
    )
    assert task.is_score == (name == "stsb")
    assert bool(data.train.notes) == (name == "qqp"), "the broken line of QQP is counted"


def test_paper_metrics() -> None:
    assert {name: task.metric for name, task in GLUE.items()} == {
        **dict.fromkeys(("mnli", "qnli", "sst2", "rte", "wnli"), "accuracy"),
        **dict.fromkeys(("qqp", "mrpc"), "f1"),
        "cola": "mcc",
        "stsb": "spearman",
    }


def test_hugging_face_exports(tmp_path: Path) -> None:
    columns = {"premise": ["a", "b"], "hypothesis": ["c", "d"], "label": [0, 2], "idx": [7, 8]}
    write_parquet(tmp_path / "mnli" / "data" / "train-00000-of-00002.parquet", columns)
    write_parquet(tmp_path / "mnli" / "data" / "train-00001-of-00002.parquet", columns)
    for split in ("validation_matched", "validation_mismatched"):
        lines = [json.dumps({"premise": "p\u2028", "hypothesis": "h", "label": 1, "idx": 0})]
        write_lines(tmp_path / "mnli" / f"{split}.jsonl", *lines)
    _, data = open_task("mnli", ExamplesConfig(path=str(tmp_path)))
    assert data.train.labels is not None
    assert data.train.labels.tolist() == [0, 2, 0, 2]
    assert data.train.ids[:2] == ["7", "8"]
    assert data.evaluation[0].first == ["p\u2028"]


@pytest.mark.parametrize("setting", ["translate-train-all", "cross-lingual"])
def test_xnli_in_both_settings(tmp_path: Path, setting: str) -> None:
    write_xnli(tmp_path, ("en", "sw"))
    config = ExamplesConfig(path=str(tmp_path), setting=setting, languages=["en", "sw"])  # type: ignore[arg-type]
    _, data = open_task("xnli", config)
    cross = setting == "cross-lingual"
    assert len(data.train) == (2 if cross else 4)
    assert data.train.labels is not None
    assert data.train.labels[:2].tolist() == [2, 0], "contradictory is contradiction"
    assert [s.name for s in data.selection] == ["validation-en"] + ([] if cross else ["validation-sw"])
    assert [s.name for s in data.others] == ["test-en", "test-sw"]
    assert data.others[1].first == ["Satz sw 1", "Satz sw 0"]


def test_xnli_export_by_language(tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        columns = {"premise": ["a"], "hypothesis": ["b"], "label": [2]}
        write_parquet(tmp_path / "de" / f"{split}-00000-of-00001.parquet", columns)
    _, data = open_task("xnli", ExamplesConfig(path=str(tmp_path), languages=["de"]))
    assert [split.name for split in data.evaluation] == ["validation-de", "test-de"]
    with pytest.raises(UserError, match=r"no training file of fr"):
        open_task("xnli", ExamplesConfig(path=str(tmp_path), languages=["fr"]))
    with pytest.raises(UserError, match=r"XNLI has no xx"):
        open_task("xnli", ExamplesConfig(path=str(tmp_path), languages=["xx"]))


def test_hatemojibuild(tmp_path: Path) -> None:
    header = "entry_id,text,type,target,round.base,round.set,set,label_gold,matched_text,matched_id"
    for split, label in (("train", 1), ("validation", 0), ("test", 1)):
        write_lines(tmp_path / f"{split}.csv", header, f'1,"I ""love"" 🐀, you",none,none,1,a,{split},{label},x,2')
    task, data = open_task("hatemojibuild", ExamplesConfig(path=str(tmp_path)))
    assert data.train.first == ['I "love" 🐀, you']
    assert [split.name for split in data.selection + data.others] == ["validation", "test"]
    assert task.classes == ("non-hate", "hate")


def test_released_rendered_rows(tmp_path: Path) -> None:
    write_rendered(tmp_path / "train.json.gz", [3, 5], [1, 0])
    write_rendered(tmp_path / "validation.json.gz", [2], [1])
    _, data = open_task("sst2", ExamplesConfig(path=str(tmp_path)))
    assert data.train.images is not None
    assert data.train.image_patches == [3, 5]
    assert data.train.images[0].startswith(b"\x89PNG")


@pytest.mark.parametrize("ending", ["jsonl", "tsv", "csv", "parquet"])
def test_custom_files(tmp_path: Path, ending: str) -> None:
    rows = [{"q": 'a "b', "a": "x,y", "y": "no"}, {"q": "c", "a": "d", "y": "yes"}]
    for split in ("train", "validation"):
        path = tmp_path / f"{split}.{ending}"
        if ending == "jsonl":
            write_lines(path, *(json.dumps(row) for row in rows))
        elif ending == "parquet":
            write_parquet(path, {key: [row[key] for row in rows] for key in rows[0]})
        elif ending == "tsv":
            write_lines(path, "q\ta\ty", '"a ""b"\tx,y\tno', "c\td\tyes")
        else:
            write_lines(path, "q,a,y", '"a ""b","x,y",no', "c,d,yes")
    task, data = open_task("custom", ExamplesConfig(path=str(tmp_path), columns=["q", "a"], label="y"))
    assert (data.train.first, data.train.second) == (['a "b', "c"], ["x,y", "d"])
    assert data.classes == ["no", "yes"]
    assert task.metric == "accuracy"


def test_custom_scores(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        write_lines(tmp_path / f"{split}.csv", "text,label", "a,1.5", "b,-2")
    task, data = open_task("custom", ExamplesConfig(path=str(tmp_path), kind="score"))
    assert (task.metric, data.classes) == ("spearman", None)
    assert np.array_equal(data.train.labels if data.train.labels is not None else [], [1.5, -2.0])


BAD = {
    "missing column": ("text,label", "a,b", "c,d", {"columns": ["nope"]}, r"train\.csv: no column 'nope'.*text, label"),
    "missing label": ("text,y", "a,b", "c,d", {}, r"train\.csv:2: no column 'label'; there are text, y"),
    "empty text": ("text,label", "a,b", " ,d", {}, r"train\.csv:3: column 'text' is empty.*examples\.empty"),
    "ragged": ("text,label", "a,b", "c,d,e", {}, r"train\.csv:3: 3 columns, and the header has 2"),
    "one class": ("text,label", "a,b", "c,b", {}, r"the label 'b' alone"),
    "no number": ("text,label", "a,1", "c,x", {"kind": "score"}, r"train\.csv:3: .*'x' where a number is expected"),
    "metric": ("text,label", "a,b", "c,d", {"metric": "spearman"}, r"examples\.metric: 'spearman' does not go"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused(tmp_path: Path, case: str) -> None:
    *lines, settings, message = BAD[case]
    for split in ("train", "validation"):
        write_lines(tmp_path / f"{split}.csv", *lines)
    with pytest.raises(UserError, match=message):
        open_task("custom", ExamplesConfig(path=str(tmp_path), **settings))  # type: ignore[arg-type]


def test_unknown_labels_name_line_and_classes(tmp_path: Path) -> None:
    write_lines(tmp_path / "train.csv", "text,label", "a,x", "b,y")
    write_lines(tmp_path / "validation.csv", "text,label", "a,z")
    with pytest.raises(UserError, match=r"validation\.csv:2: unknown label 'z'.*x, y"):
        open_task("custom", ExamplesConfig(path=str(tmp_path)))
    write_lines(tmp_path / "SST-2" / "train.tsv", *GLUE_TSV["SST-2"][:2], "bleak\t7")
    with pytest.raises(UserError, match=r"train\.tsv:3: unknown label '7'.*negative, positive"):
        open_task("sst2", ExamplesConfig(path=str(tmp_path)))


def test_empty_texts_may_be_skipped_in_training_alone(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        write_lines(tmp_path / f"{split}.csv", "text,label", "a,b", ",d", "c,d")
    _, data = open_task("custom", ExamplesConfig(path=str(tmp_path), empty="skip"))
    assert (len(data.train), data.train.skipped, len(data.evaluation[0])) == (2, 1, 3)
    _, data = open_task("custom", ExamplesConfig(path=str(tmp_path), empty="keep"))
    assert len(data.train) == 3


def test_unknown_task_and_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no task 'sst'; known: mnli"):
        open_task("sst", ExamplesConfig())
    with pytest.raises(UserError, match=r"examples\.path is not given"):
        open_task("rte", ExamplesConfig())
    with pytest.raises(UserError, match=r"no file for the split train of RTE"):
        open_task("rte", ExamplesConfig(path=str(tmp_path)))

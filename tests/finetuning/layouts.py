"""Small files in exactly the published layouts."""

import base64
import gzip
import io
import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image

GLUE_TSV = {
    "CoLA": ("gj04\t1\t\tOur friends won't buy this.", 'gj04\t0\t*\tThe car honked down "the road.'),
    "SST-2": ("sentence\tlabel", "it 's \"charming \t1", "unflinchingly bleak \t0"),
    "MRPC": (
        "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String",
        '1\t702876\t702977\tAmrozi accused his brother .\t" Referring to him , Amrozi',
        "0\t2108705\t2108831\tYucaipa owned it .\tYucaipa bought it .",
    ),
    "STS-B": (
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
        "0\tmain-captions\tMSRvid\t2012test\t0001\tnone\tnone\tA plane.\tAn air plane.\t5.000",
        "1\tmain-captions\tMSRvid\t2012test\t0004\tnone\tnone\tA man.\tA flute.\t3.800",
    ),
    "QQP": (
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
        "133273\t213221\t213222\tHow is life?\tHow do you live?\t1",
        "a line that is broken",
        "402555\t536040\t536041\tWhy?\tHow?\t0",
    ),
    "QNLI": (
        "index\tquestion\tsentence\tlabel",
        "0\tWhen did it begin?\tIt began in 1990.\tentailment",
        "1\tWho?\tNobody knows.\tnot_entailment",
    ),
    "RTE": ("index\tsentence1\tsentence2\tlabel", "0\tNo.\tYes.\tnot_entailment", "1\tA B.\tA.\tentailment"),
    "WNLI": ("index\tsentence1\tsentence2\tlabel", "0\tI stuck a pin.\tIt had a hole.\t1", "1\tHe.\tShe.\t0"),
}
MNLI_TRAIN = (
    "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse\t"
    "sentence1\tsentence2\tlabel1\tgold_label"
)
MNLI_DEV = MNLI_TRAIN.replace("label1\t", "label1\tlabel2\tlabel3\tlabel4\tlabel5\t")
XNLI = "language\tgold_label\tsentence1\tsentence2\tpromptID\tpairID\tgenre"


def write_lines(path: Path, *lines: str) -> None:
    """A text file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def write_glue(root: Path) -> None:
    """GLUE's folders of TSV files."""
    for name, lines in GLUE_TSV.items():
        for split in ("train", "dev"):
            write_lines(root / name / f"{split}.tsv", *lines)
    rows = [f"{i}\t1\t1n\tfiction\t( b )\t( b )\t(p)\t(p)\tPremise {i}\tHypothesis {i}" for i in range(3)]
    labels = ("neutral", "entailment", "contradiction")
    train = [f"{row}\t{label}\t{label}" for row, label in zip(rows, labels, strict=True)]
    dev = [f"{row}" + f"\t{label}" * 6 for row, label in zip(rows, labels, strict=True)]
    write_lines(root / "MNLI" / "train.tsv", MNLI_TRAIN, *train)
    write_lines(root / "MNLI" / "dev_matched.tsv", MNLI_DEV, *dev)
    write_lines(root / "MNLI" / "dev_mismatched.tsv", MNLI_DEV, *dev)


def write_parquet(path: Path, columns: dict[str, list]) -> None:
    """A parquet file as Hugging Face exports it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


def write_xnli(root: Path, languages: tuple[str, ...]) -> None:
    """XNLI-1.0 and XNLI-MT-1.0."""
    rows = [
        f"{language}\t{label}\tSatz {language} {i}\tFolge {i}\t1\t{i}\tfacetoface"
        for language in languages
        for i, label in enumerate(("neutral", "contradiction"))
    ]
    write_lines(root / "XNLI-1.0" / "xnli.dev.tsv", XNLI, *rows)
    write_lines(root / "XNLI-1.0" / "xnli.test.tsv", XNLI, *rows[::-1])
    for language in languages:
        write_lines(
            root / "XNLI-MT-1.0" / "multinli" / f"multinli.train.{language}.tsv",
            "premise\thypo\tlabel",
            f'Es ist "so {language}\tNein\tcontradictory',
            "Ja\tJa\tentailment",
        )


def strip(text_patches: int, width: int = 40) -> np.ndarray:
    """A released strip, uint8 [16, width * 16, 3]: colored text, a black patch, white."""
    pixels = np.full((16, width * 16, 3), 255, np.uint8)
    for patch in range(text_patches):
        pixels[4:12, patch * 16 + 2 : patch * 16 + 10] = (200, patch, 30)
    pixels[:, text_patches * 16 : (text_patches + 1) * 16] = 0
    return pixels


def write_rendered(path: Path, patches: list[int], labels: list[int]) -> None:
    """Released rendered rows: JSON lines with a PNG in base64, packed as .gz."""
    lines = []
    for count, label in zip(patches, labels, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(strip(count)).save(buffer, "PNG")
        image = base64.b64encode(buffer.getvalue()).decode()
        lines.append(json.dumps({"sentence": "some text", "label": label, "image": image, "num_patches": count}))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode()))

"""The model card says what the run recorded."""

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from megatron_pixel.data.manifest import Manifest, SplitEntry
from megatron_pixel.data.tokenizer import Tokenizer
from megatron_pixel.interop.curves import loss_curves, read_metrics
from megatron_pixel.interop.exporting import ExportOptions, to_hf
from megatron_pixel.interop.open import open_any
from tests.interop.helpers import SMALL, full_tensors, state_of, write_canonical


def test_data_budget_curves_and_results(tmp_path: Path, tokenizer: Path) -> None:
    manifest = Manifest("text", {"train": SplitEntry(12, 34, 5678, 0), "heldout": SplitEntry()})
    manifest.write(str(tmp_path / "speeches"))
    state = state_of(SMALL, tokenizer)
    state["config"]["data"] |= {"text": [f"2:{tmp_path / 'speeches'}", "data/gone"], "mixture": "1:0:0"}
    state["config"]["run"]["dir"] = "runs/first"
    run = tmp_path / "run"
    write_canonical(run, SMALL, full_tensors(SMALL), tokenizer, config=state["config"])
    lines = [
        {"step": n, "loss_token_text": 5.0 / n, "tokens": 1000, "patches": 0, "seconds": 1.8} for n in (1, 2, 3, 4)
    ]
    lines.insert(2, {"step": 2, "eval_loss_token_text": 3.0})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 5, "lo')
    (run / "baselines.json").write_text(json.dumps({"step": 3, "eval_loss_token_text": 1.9, "unigram_entropy": 4.2}))
    to_hf(open_any(run), tmp_path / "out", ExportOptions())
    card = (tmp_path / "out" / "README.md").read_text()
    digest = json.loads((tmp_path / "speeches.manifest.json").read_text())["digest"][:12]
    for said in (
        "# TextGPT first",
        f"| speeches | text | 2 | 12 | 5,678 | 0 | `{digest}` |",
        "| gone | text | 1 | not at hand",
        f"sha256 `{Tokenizer(tokenizer).sha256}`",
        "- Nowhere.ttf (sha256 0123456789ab)",
        "| target tokens | 3,000 |",
        "| steps | 3 of 10,000 |",
        "| held-out text tokens, nats | 1.9000 (unigram entropy: 4.2000) |",
        "curves.svg",
    ):
        assert said in card, said
    assert card.startswith("---\nlibrary_name: transformers\n")
    picture = ElementTree.parse(tmp_path / "out" / "curves.svg").getroot()
    assert len(picture.findall("{*}polyline")) == 1
    assert len(picture.findall("{*}circle")) == 1


def test_a_checkpoint_of_which_little_is_known(exported: Path, run: Path) -> None:
    card = (exported / "README.md").read_text()
    assert "curves.svg" not in card
    assert re.search(r"\| parameters \| [\d,]+, stored in fp32 \|", card)
    assert not (exported / "curves.svg").exists()


def test_curves_need_two_steps_and_survive_many(tmp_path: Path) -> None:
    assert loss_curves([]) is None
    assert loss_curves([{"step": 1, "loss_token_text": 2.0}]) is None
    assert read_metrics(tmp_path / "nothing") == []
    many = loss_curves([{"step": n, "loss_patch_pixel": 0.7, "loss_token_text": 3.0} for n in range(1, 5_000)])
    assert many is not None
    assert len(many) < 30_000

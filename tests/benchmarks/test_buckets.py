"""What benchmarks/buckets.py compares, and the table of its figures."""

import json

from benchmarks import buckets
from benchmarks.step_tables import buckets as shown


def test_each_setting_changes_one_thing_of_the_file() -> None:
    for stage, file in buckets.FILES.items():
        given = json.loads((buckets.ROOT / file).read_text())["zero_optimization"]
        (name, first), *others = buckets.settings(stage, [1e6, given["reduce_bucket_size"]])
        assert (name, first) == (f"`{file}`", given)
        changed = [{key for key in other if other.get(key) != given.get(key)} for _, other in others]
        assert changed == [{"reduce_bucket_size"}, {"overlap_comm"}, {"contiguous_gradients"}]


def test_the_table() -> None:
    row = {"messages": 5, "sent_megabytes": 163.12, "added_megabytes": 2143.4, "step_seconds": 1.3, "ratio": 1.0}
    result = {
        "processes": 2,
        "device": "CPU",
        "precision": "fp32",
        "model": {"layers": 4, "hidden": 512, "vocab_size": 8000, "seq_length": 256},
        "rows": 1,
        "accumulation": 2,
        "rounds": 5,
        "parameters": 20_400_000,
        "zero1": {"`ds_configs/zero1.json`": {**row, "ratio_range": [1.0, 1.0]}},
    }
    text = shown(result)
    assert "2 processes, CPU, fp32: 20.4 million parameters" in text
    assert "| ZeRO 1: `ds_configs/zero1.json` | 1,300 | **1.00** (1.00 to 1.00) | 5 | 163 | 2,143 |" in text

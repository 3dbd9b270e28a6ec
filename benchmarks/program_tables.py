"""Tables of ``report.py`` about whole programs: training that is killed, fine-tuning, generating, converting."""

from collections.abc import Callable, Mapping

from benchmarks.report_tables import Result, number, table


def faults(result: Result) -> str:
    """How often training was killed in every layout, and whether a row or a loss was another in the end."""
    keys = ("ranks", "runs", "starting", "training", "saving", "steps_missing", "steps_repeated")
    head = ["", "processes", "runs", "killed while starting", "training", "saving", "steps lost", "repeated"]
    head += ["with other rows", "lines with other losses"]
    rows = (
        [form, *(number(counts[key]) for key in (*keys, "steps_with_other_rows", "lines_with_other_losses"))]
        for form, counts in result["forms"].items()
    )
    return (
        f"{number(result['kills'])} kills. After one, all other ranks had ended within "
        f"{number(result['longest_seconds_to_end'])} s.\n\n{table(head, rows)}"
    )


def generation(result: Result) -> str:
    """The cache against none, and against transformers."""
    count = result["positions"] - 16
    names = {
        "cached tokens": "tokens",
        "transformers": "tokens, `generate` of `transformers`",
        "uncached tokens": "tokens, no cache",
        "cached patches": "patches",
        "uncached patches": "patches, no cache",
    }
    seconds = result["processor_seconds"]
    rows = [[name, f"{seconds[key]:.2f}", f"{count / seconds[key]:,.0f}"] for key, name in names.items()]
    model = result["model"]
    return (
        f"{model['layers']} layers of {model['hidden']}, up to {result['positions']} positions, one core.\n\n"
        + table(["writing", "processor seconds", "a second"], rows)
        + f"\n\nThe cache writes {result['cached_over_uncached_tokens']:.1f} times as many tokens and "
        f"{result['cached_over_uncached_patches']:.1f} times as many patches; `transformers` takes "
        f"{result['ours_over_transformers']:.2f} times as long, and {result['same_tokens_as_transformers']:.0%} of its "
        "tokens are the same."
    )


def unnormalising(result: Result) -> str:
    """Rules for the lost brightness and contrast."""
    rows = [
        [name, f"{found['error']:.4f}", f"{found['ink']:.3f}", f"{found['contrast']:.3f}"]
        for name, found in result["rules"].items()
    ]
    rows.append(["true pages", "", f"{result['true']['ink']:.3f}", f"{result['true']['contrast']:.3f}"])
    return table(["brightness and contrast of", "squared error", "ink", "contrast"], rows)


def converting(result: Result) -> str:
    """Memory and time of both directions."""
    rows = [
        [
            f"`{name}`",
            f"{result[key]['seconds']:,.0f}",
            f"{result[key]['peak_mb']:,.0f}",
            f"{result[key]['peak_over_largest_tensor']:.2f}",
        ]
        for name, key in (("to-hf", "to_hf"), ("from-hf", "from_hf"))
    ]
    return (
        f"A checkpoint of {result['checkpoint_gb']:.1f} GB, {result['parameters'] / 1e6:,.0f} million parameters, "
        f"largest tensor {result['largest_tensor_mb']:,.0f} MB; {result['wrong_tensors']} tensors differ after both "
        "ways.\n\n" + table(["", "seconds", "peak MB", "times the largest tensor"], rows)
    )


def finetune(result: Result) -> str:
    """Ours beside Hugging Face's Trainer."""
    names = (("megatron_pixel", "ours"), ("Hugging Face's Trainer", "theirs"))
    rows = [
        [name, f"{result['examples_per_second'][key]:,.0f}", f"{result['parameters'][key]:,}"] for name, key in names
    ]
    return (
        table(["", "examples/s", "parameters"], [*rows, ["**ratio**", f"**{result['ratio']:.2f}**", ""]])
        + f"\n\nTexts become pages once, at {result['encoding_made_per_second']:,.0f} examples a second; from the "
        f"cache they come at {result['encoding_found_per_second'] / 1e6:,.1f} million a second."
    )


TABLES: Mapping[str, Callable[[Result], str]] = {
    "faults": faults,
    "finetune": finetune,
    "generation": generation,
    "unnormalising": unnormalising,
    "converting": converting,
}

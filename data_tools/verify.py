"""Check datasets: every hash, every page, every count. Exits with 1 where something is damaged.

python data_tools/verify.py P...
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_pixel.config.errors import UserError, exit_on_user_error


def main(words: Sequence[str]) -> int:
    """Check each dataset and print what was found; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prefixes", nargs="+", metavar="P", help="output prefixes of preprocess.py")
    parser.add_argument("--quick", action="store_true", help="sizes, counts and indexes only; no hashes, no pages")
    arguments = parser.parse_args(words)
    damaged = [prefix for prefix in arguments.prefixes if not check(prefix, full=not arguments.quick)]
    if damaged:
        print(f"\ndamaged: {', '.join(damaged)}; copy them again from where they are sound, or make them again")
    return 1 if damaged else 0


def check(prefix: str, full: bool) -> bool:
    """Print the table of one dataset and what is wrong with it; raises UserError where there is no dataset."""
    from megatron_pixel.data.manifest import Manifest, manifest_path
    from megatron_pixel.data.verification import verify

    if not os.path.exists(manifest_path(prefix)):
        raise UserError(
            f"no dataset at {prefix}: {manifest_path(prefix)} does not exist; give the output prefix of preprocess.py"
        )
    print(f"{prefix}", flush=True)
    try:
        problems = verify(prefix, full, progress=_progress)
        manifest = Manifest.read(prefix)
    except UserError as error:
        _progress("")
        print(f"  DAMAGED  {error}")
        return False
    _progress("")
    for split, counts in manifest.splits.items():
        parts = [(counts.documents, "documents"), (counts.sequences, "sequences")]
        parts += [part for part in ((counts.patches, "patches"), (counts.tokens, "tokens")) if part[0]]
        print(f"  {split:<8} {', '.join(f'{count:,} {name}' for count, name in parts)}")
    for name, entry in manifest.all_files().items():
        state = "DAMAGED" if any(problem.startswith(f"{prefix}.{name}:") for problem in problems) else "sound"
        print(f"  {name:<24} {entry.bytes:>16,} bytes  {state}")
    for problem in problems:
        print(f"  DAMAGED  {problem}")
    return not problems


def _progress(name: str) -> None:
    """The file being checked, on a line of a terminal that is written over."""
    if sys.stderr.isatty():
        print(f"\r\033[K  checking {name} ..." if name else "\r\033[K", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main(sys.argv[1:]))

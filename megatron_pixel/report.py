#!/usr/bin/env python
"""Write the report of a run: one HTML file that opens from disk, in any browser, with nothing else beside it.

    python megatron_pixel/report.py runs/demo
    python megatron_pixel/report.py runs/demo --output demo.html
    python megatron_pixel/report.py runs/demo --picture report.png --width 1280 --dark

It shows curves, held-out losses, sample pages over time, throughput, where the time went, restarts, checkpoints and
settings. It reads the run's folder only, so it can be made while the run goes on, and on another machine.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_pixel.config.errors import exit_on_user_error


def main(words: Sequence[str]) -> None:
    """Write the page, and a picture of it where one is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run")
    parser.add_argument("--output", type=Path, metavar="HTML", help="page to write (default: RUN/report.html)")
    parser.add_argument("--picture", type=Path, metavar="PNG", help="a picture of it too; needs Chromium or Chrome")
    parser.add_argument("--width", type=int, default=1280, help="of the picture in pixels (default: %(default)s)")
    parser.add_argument("--height", type=int, help="of the picture at the most (default: the whole page)")
    parser.add_argument("--dark", action="store_true", help="draw the picture as on a dark screen")
    arguments = parser.parse_args(words)
    from megatron_pixel.reporting.browser import Browser
    from megatron_pixel.reporting.report_file import write_text
    from megatron_pixel.reporting.report_page import report_page

    page = report_page(arguments.run)
    output = arguments.output or arguments.run / "report.html"
    write_text(output, page)
    print(f"wrote {output} ({len(page) / 1e6:.1f} MB)")
    if arguments.picture is not None:
        with Browser() as browser:
            browser.show(output, arguments.width, dark=arguments.dark)
            browser.picture(arguments.picture, arguments.height)
        print(f"wrote {arguments.picture}")


if __name__ == "__main__":
    with exit_on_user_error():
        main(sys.argv[1:])

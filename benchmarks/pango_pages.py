"""Draws documents with Pango and Cairo and hands back their pixels.

Run by ``fidelity.py`` with an interpreter that has the bindings; see ``pango_peer.py``, whose renderer it is. Reads
JSON from standard input (``documents``, ``patches``), writes the gray strips to standard output, row after row.
"""

import json
import sys

from pango_peer import Renderer


def main() -> None:
    """Draw all documents."""
    job = json.load(sys.stdin)
    renderer = Renderer(job["patches"])
    for text in job["documents"]:
        pixels = bytes(renderer.render(text))
        red, green, blue = (pixels[channel::4] for channel in range(3))
        if not red == green == blue:
            raise SystemExit("Pango drew colors: text is antialiased by subpixels here")
        sys.stdout.buffer.write(red)


if __name__ == "__main__":
    main()

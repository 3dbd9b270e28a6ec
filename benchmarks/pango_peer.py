"""Renders documents with Pango and Cairo through their Python bindings, as released pixel language models do.

Run by ``rendering.py`` with an interpreter that has the bindings (Debian: python3-gi, python3-gi-cairo,
gir1.2-pango-1.0). Requests and answers are lines of JSON on standard input and output.
"""

import json
import sys
import time

import cairo
import gi

gi.require_version("Pango", "1.0")
gi.require_version("PangoCairo", "1.0")
from gi.repository import Pango, PangoCairo

SIZE, DPI, BASELINE, START = 16, 120, 12, 2


class Renderer:
    """One strip, used again for every document."""

    def __init__(self, patches: int) -> None:
        self.surface = cairo.ImageSurface(cairo.FORMAT_RGB24, patches * SIZE, SIZE)
        self.context = cairo.Context(self.surface)
        fonts = PangoCairo.FontMap.get_default()
        fonts.set_resolution(DPI)
        layout_context = fonts.create_context()
        options = cairo.FontOptions()
        options.set_antialias(cairo.ANTIALIAS_GRAY)
        options.set_hint_style(cairo.HINT_STYLE_SLIGHT)
        PangoCairo.context_set_font_options(layout_context, options)
        self.layout = Pango.Layout.new(layout_context)
        self.layout.set_font_description(Pango.font_description_from_string("Noto Sans 8"))
        self.layout.set_single_paragraph_mode(True)

    def render(self, text: str) -> memoryview:
        """Draw a document; the pixels, four bytes each."""
        self.context.set_source_rgb(1, 1, 1)
        self.context.paint()
        self.context.set_source_rgb(0, 0, 0)
        self.layout.set_text(text, -1)
        self.context.move_to(START, BASELINE - self.layout.get_baseline() / Pango.SCALE)
        PangoCairo.show_layout(self.context, self.layout)
        self.surface.flush()
        return self.surface.get_data()


def main() -> None:
    """Answer requests, a line each: the first sets the strip's ``patches``, others are passes over ``documents``."""
    renderer = Renderer(json.loads(sys.stdin.readline())["patches"])
    version = f"Pango {Pango.version_string()}, Cairo {cairo.cairo_version_string()}"
    print(json.dumps({"version": version}), flush=True)
    for request in sys.stdin:
        documents = json.loads(request)["documents"]
        started = time.process_time()
        for text in documents:
            renderer.render(text)
        print(json.dumps({"seconds": time.process_time() - started}), flush=True)


if __name__ == "__main__":
    main()

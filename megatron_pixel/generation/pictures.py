"""Written pages as pictures: a still one, and one in which the page is written."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from megatron_pixel.config.errors import UserError
from megatron_pixel.data.files import write_file
from megatron_pixel.drawing import strip_to_rows

STILL, MOVING = (".png",), (".gif", ".webp", ".apng")
ACCENT = (214, 84, 30)
"""Line under what the model wrote."""
_GAP = 6
_FRAME_MS = 120
_LAST_MS = 3000


def check_output(path: Path) -> None:
    """Raise UserError for a file name whose ending is no picture's."""
    if path.suffix.lower() not in STILL + MOVING:
        raise UserError(f"--output {path}: pictures end in {', '.join(STILL)}, animated ones in {', '.join(MOVING)}")


def page_picture(patches: np.ndarray, prompt: int, patches_per_row: int = 32, scale: int = 2) -> Image.Image:
    """A page wrapped into rows, a line under the patches that the model wrote.

    Args:
        patches: uint8 [n, P, P, C], prompt and continuation.
        prompt: patches of the prompt.
        patches_per_row: patches in a row of the picture.
        scale: enlargement of the pixels.
    """
    size = patches.shape[1]
    rows = strip_to_rows(patches, patches_per_row, gap=_GAP)
    canvas = np.full((rows.shape[0] + _GAP, *rows.shape[1:]), 255, np.uint8)
    canvas[: rows.shape[0]] = rows
    for number in range(prompt, len(patches)):
        row, column = divmod(number, patches_per_row)
        below = row * (size + _GAP) + size + 1
        canvas[below : below + 2, column * size : (column + 1) * size] = ACCENT
    picture = Image.fromarray(canvas)
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures below each other."""
    width = max(picture.width for picture in pictures)
    whole = Image.new("RGB", (width, sum(picture.height + 16 for picture in pictures) - 16), (255, 255, 255))
    top = 0
    for picture in pictures:
        whole.paste(picture, (0, top))
        top += picture.height + 16
    return whole


def save_pages(pages: Sequence[tuple[np.ndarray, int]], path: Path, every: int = 1, scale: int = 2) -> None:
    """Write pages to ``path``: a PNG, or where its ending is that of an animated format, the writing of the page.

    Args:
        pages: of each, uint8 [n, P, P, C] and the patches of its prompt.
        path: the file, which appears whole or not at all.
        every: patches between two frames.
        scale: enlargement of the pixels.
    """
    check_output(path)
    kind = path.suffix.lower()
    if kind in STILL:
        picture = stacked([page_picture(patches, prompt, scale=scale) for patches, prompt in pages])
        write_file(str(path), _encoded([picture], "PNG"))
        return
    longest = max(len(patches) - prompt for patches, prompt in pages)
    counts = [*range(0, longest, max(every, 1)), longest]
    frames = [
        stacked([page_picture(_until(patches, prompt + count), prompt, scale=scale) for patches, prompt in pages])
        for count in counts
    ]
    write_file(str(path), _encoded(frames, {".gif": "GIF", ".webp": "WEBP", ".apng": "PNG"}[kind]))


def _until(patches: np.ndarray, count: int) -> np.ndarray:
    """The page, white from patch ``count`` on: every frame has the same size."""
    shown = patches.copy()
    shown[count:] = 255
    return shown


def _encoded(frames: Sequence[Image.Image], kind: str) -> bytes:
    buffer = io.BytesIO()
    if len(frames) == 1:
        frames[0].save(buffer, format=kind, optimize=True)
    else:
        lossless = {"lossless": True} if kind == "WEBP" else {}
        times = [_FRAME_MS] * (len(frames) - 1) + [_LAST_MS]
        frames[0].save(buffer, format=kind, save_all=True, append_images=frames[1:], duration=times, loop=0, **lossless)
    return buffer.getvalue()

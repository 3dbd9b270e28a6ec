"""What an OCR package reads from a page, where one is installed."""

import numpy as np
from PIL import Image

from megatron_pixel.config.errors import UserError
from megatron_pixel.drawing import strip_to_rows

PATCHES_PER_ROW = 48
"""Rows that the package's detector is used to."""
_SCALE = 3


def read_page(patches: np.ndarray) -> str:
    """The lines that ``rapidocr-onnxruntime`` finds on a page, joined by spaces; empty where it finds none.

    Args:
        patches: uint8 [n, P, P, C].

    Raises:
        UserError: the package is not installed.
    """
    try:
        from rapidocr_onnxruntime import RapidOCR
    except ImportError:
        raise UserError("--ocr needs a package that is not installed: pip install rapidocr-onnxruntime") from None
    if not len(patches):
        return ""
    picture = Image.fromarray(strip_to_rows(patches, PATCHES_PER_ROW, gap=patches.shape[1] // 2))
    picture = picture.resize((picture.width * _SCALE, picture.height * _SCALE), Image.Resampling.BICUBIC)
    found, _ = RapidOCR()(np.asarray(picture))
    return " ".join(text for _, text, _ in found or ())

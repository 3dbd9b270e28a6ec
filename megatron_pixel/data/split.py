"""The held-out split: decided by the text alone, so a document held out in one modality is held out in all."""

import hashlib

from megatron_pixel.config.errors import UserError

TRAIN = "train"
HELDOUT = "heldout"
SPLITS = (TRAIN, HELDOUT)
DEFAULT_FRACTION = 0.01


def is_heldout(text: str, fraction: float = DEFAULT_FRACTION) -> bool:
    """Whether the document belongs to the held-out split.

    The first 8 bytes of SHA-256 of the UTF-8 text, as a big-endian integer, lie below ``fraction * 2**64``. A larger
    fraction therefore holds out everything that a smaller one does. Raises UserError for a fraction outside [0, 1].
    """
    if not 0.0 <= fraction <= 1.0:
        raise UserError(f"the held-out fraction lies between 0 and 1, not {fraction}")
    # Lone surrogates have no UTF-8; whether such a document is kept is for the reader of documents to say.
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2.0**64


def split_of(text: str, fraction: float = DEFAULT_FRACTION) -> str:
    """Name of the split that the document belongs to: ``train`` or ``heldout``."""
    return HELDOUT if is_heldout(text, fraction) else TRAIN

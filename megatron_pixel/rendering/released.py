"""What the released renderer does beside drawing."""

import string

from megatron_pixel.rendering.unicode_tables import BIDI_CLASSES, load_tables

_IGNORED = str.maketrans("", "", string.whitespace + string.punctuation + string.digits)
_RIGHT_TO_LEFT = (BIDI_CLASSES.index("R"), BIDI_CLASSES.index("AL"))


def is_rtl(text: str) -> bool:
    """Majority vote of the first, the middle and the last letter on the direction of a text."""
    letters = text.translate(_IGNORED)
    if not letters:
        return False
    classes = load_tables().bidi_class
    votes = [classes[ord(letters[at])] in _RIGHT_TO_LEFT for at in (0, -1, len(letters) // 2)]
    return sum(votes) >= 2

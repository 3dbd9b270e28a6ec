"""Text kept to be rendered later: how the piece of text that a page shows becomes bytes on disk, and back."""

from megatron_pixel.config.errors import UserError


def to_bytes(piece: str) -> bytes:
    """UTF-8. A lone surrogate, which UTF-8 has no form for, takes the three bytes that its number would have."""
    return piece.encode("utf-8", "surrogatepass")


def to_text(data: bytes | memoryview) -> str:
    """Inverse of :func:`to_bytes`. Raises UserError for bytes that it never makes."""
    try:
        return str(data, "utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise UserError(f"byte {error.start} of the piece is no UTF-8 ({error.reason})") from error

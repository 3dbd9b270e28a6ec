"""Writing a page whole or not at all."""

import os
import tempfile
from pathlib import Path

from megatron_pixel.config.errors import UserError


def write_text(path: Path, text: str) -> None:
    """Write a text file under a temporary name, force it to disk and rename it.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(file.name, 0o644)
        os.replace(file.name, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None

"""Quiet and quick start-up: no page of warnings from the libraries before the first useful line, and no compilers.

Call :func:`silence_libraries` before torch, deepspeed or megatron are imported: they speak while they are imported.
Each thing silenced stands here with its reason; errors, and warnings that are not named, go through.
"""

import logging
import re
import warnings

from megatron_pixel.parallel.late_compiling import compile_late

LIBRARY_WARNINGS: tuple[tuple[str, type[Warning], str], ...] = (
    # Megatron-core falls back to PyTorch where the optional kernels are missing; this project is built on those paths.
    ("megatron", UserWarning, "Transformer Engine and Apex are not installed"),
    ("megatron", UserWarning, "Apex is not installed"),
    # Megatron-core warns about the default value of a setting that nobody set.
    ("megatron", UserWarning, "full scope is deprecated"),
    # Deprecations inside a library concern its authors.
    ("megatron", DeprecationWarning, ""),
    ("megatron", FutureWarning, ""),
    ("deepspeed", DeprecationWarning, ""),
    ("deepspeed", FutureWarning, ""),
    ("torch", DeprecationWarning, ""),
    ("torch", FutureWarning, ""),
)
"""Package that warns, category, beginning of the message."""

LIBRARY_RECORDS = {
    # CPU is a first-class device here, also to a PyTorch built for CUDA.
    "DeepSpeed": "Setting accelerator to CPU",
    "torch.utils.cpp_extension": "No CUDA runtime is found",
}
"""Beginning of the log record that is dropped, by logger."""


class _Drop(logging.Filter):
    """Drops the records that begin with one text; a library that sets level and handlers at import leaves it alone."""

    def __init__(self, beginning: str) -> None:
        super().__init__()
        self.beginning = beginning

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(self.beginning)


def silence_libraries() -> None:
    """Filter the warnings and records listed above, and compile late; a second call changes nothing."""
    compile_late()
    for package, category, beginning in LIBRARY_WARNINGS:
        warnings.filterwarnings("ignore", re.escape(beginning), category, module=rf"{package}(\.|$)")
    for name, beginning in LIBRARY_RECORDS.items():
        logger = logging.getLogger(name)
        if not any(isinstance(f, _Drop) and f.beginning == beginning for f in logger.filters):
            logger.addFilter(_Drop(beginning))

"""Settings that ``training.py --variants`` compares with our defaults, by name.

A variant is a list of settings as they stand on the command line of ``pretrain.py``. One whose setting this version
does not have, or whose package is not installed, is left out with a line that says why. Anything else that is written
as settings is a variant too: ``--variants parallel.activation_checkpointing=all,training.micro_batch_rows=4``.
"""

VARIANTS: dict[str, list[str]] = {
    "recompute": ["--parallel.activation_checkpointing=all"],
    "rows_x2": ["--training.micro_batch_rows={twice}"],
    "rows_x4": ["--training.micro_batch_rows={four_times}"],
    "packing": ["--data.packing=documents"],
    "compile": ["--training.compile=layers"],
}
"""``{twice}`` and ``{four_times}``: rows of a micro-batch in multiples of ``--rows``."""
RETURNED = "memory_returned"
"""A variant that is no setting: a process on a CPU that does not keep what it frees."""


def settings_of(name: str, rows: int) -> list[str]:
    """The settings of a variant.

    Args:
        name: one of ``VARIANTS``, or settings joined by commas, such as ``a.b=1,c.d=2``.
        rows: of a micro-batch, by default.
    """
    words = VARIANTS.get(name) or [f"--{setting.strip()}" for setting in name.split(",")]
    return [word.format(twice=2 * rows, four_times=4 * rows) for word in words]

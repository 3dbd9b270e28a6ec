"""Means over seeds and how sure they are."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

_T95 = (
    "12.706 4.303 3.182 2.776 2.571 2.447 2.365 2.306 2.262 2.228 2.201 2.179 2.160 2.145 2.131 2.120 2.110 2.101 "
    "2.093 2.086 2.080 2.074 2.069 2.064 2.060 2.056 2.052 2.048 2.045 2.042"
).split()
"""Two-sided 95% points of Student's t for 1 to 30 degrees of freedom."""


@dataclass(frozen=True)
class Estimate:
    """A mean over runs that differ by their seed."""

    mean: float
    deviation: float | None
    """Standard deviation of the runs (n - 1); None for one run."""
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate":
        """Of at least one value."""
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), deviation, len(values))

    @property
    def half_width(self) -> float | None:
        """Half of the 95% interval of the mean, by Student's t."""
        if self.deviation is None:
            return None
        return t95(self.count - 1) * self.deviation / math.sqrt(self.count)

    def scaled(self, factor: float) -> "Estimate":
        """The same in another unit."""
        return Estimate(self.mean * factor, None if self.deviation is None else self.deviation * factor, self.count)

    def __str__(self) -> str:
        """``71.3 ± 0.4 (3)``: mean, standard deviation, runs."""
        spread = "" if self.deviation is None else f" ± {self.deviation:.1f}"
        return f"{self.mean:.1f}{spread} ({self.count})"


def t95(freedom: float) -> float:
    """Two-sided 95% point of Student's t; between whole degrees of freedom the wider one."""
    whole = int(freedom)
    return float(_T95[max(whole, 1) - 1]) if whole <= len(_T95) else 1.96 + 2.4 / whole


@dataclass(frozen=True)
class Difference:
    """How much one mean is above another, with its 95% interval (Welch)."""

    value: float
    half_width: float | None

    @classmethod
    def of(cls, a: Estimate, b: Estimate) -> "Difference":
        """``a - b``; no interval where either is of one run, or where no run differs from another."""
        value = a.mean - b.mean
        if a.deviation is None or b.deviation is None:
            return cls(value, None)
        parts = [estimate.deviation**2 / estimate.count for estimate in (a, b) if estimate.deviation is not None]
        variance = sum(parts)
        if not variance:
            return cls(value, None)
        freedom = variance**2 / sum(
            part**2 / (estimate.count - 1) for part, estimate in zip(parts, (a, b), strict=True)
        )
        return cls(value, t95(freedom) * math.sqrt(variance))

    @property
    def is_shown(self) -> bool | None:
        """Whether the interval leaves out zero; None without an interval."""
        return None if self.half_width is None else abs(self.value) > self.half_width

    def __str__(self) -> str:
        """``+4.1 [+2.0, +6.2]``."""
        if self.half_width is None:
            return f"{self.value:+.1f}"
        return f"{self.value:+.1f} [{self.value - self.half_width:+.1f}, {self.value + self.half_width:+.1f}]"

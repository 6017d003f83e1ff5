"""What is done about a bound that a plan exceeds: it is an error of ours, and must be seen.

A warning, not an exception: the plan is as good as it was, and a fog goes on with it. Tests
make errors of warnings.
"""

from __future__ import annotations

import warnings
from typing import Final

# Rates are sums in different orders.
_ROUNDING: Final = 1e-6


class BoundExceededWarning(RuntimeWarning):
    """A plan serves more than a bound that no plan should exceed."""


def is_exceeded(rate: float, most: float) -> bool:
    """Return whether a plan's requests per second are over a bound; warns if so."""
    if rate <= most * (1 + _ROUNDING):
        return False
    warnings.warn(
        f"a plan of {rate:.9g} requests per second exceeds the bound of {most:.9g}",
        BoundExceededWarning,
        stacklevel=2,
    )
    return True

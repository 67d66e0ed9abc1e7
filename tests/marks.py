"""Which cases of a parametrised test run in every run, and which only with all tests."""

from collections.abc import Iterable
from typing import Any

import pytest


def first_quick(cases: Iterable[Any]) -> list[Any]:
    """Mark all cases but the first as slow: they take the same way with other values."""
    first, *others = (case if isinstance(case, tuple) else (case,) for case in cases)
    return [pytest.param(*first), *(pytest.param(*c, marks=pytest.mark.slow) for c in others)]

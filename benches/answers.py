"""Compares answers to the TPC-H queries."""

from __future__ import annotations

import math

# The columns by which each query orders its rows.
ORDERED = {
    1: [0, 1], 2: [0, 2, 1, 3], 3: [1, 2], 4: [0], 5: [1], 7: [0, 1, 2], 8: [0], 9: [0, 1], 10: [2], 11: [1], 12: [0],
    13: [1, 0], 15: [0], 16: [3, 0, 1, 2], 18: [4, 3], 20: [0], 21: [1, 0], 22: [0],
}  # fmt: skip


def same_answer(number: int, left: list, right: list) -> str | None:
    """None when two answers of a query are equal by TPC-H's rules, otherwise what differs. Counts, sums and keys are
    compared exactly, averages and shares after rounding; rows that tie in the order are compared as sets."""
    if len(left) != len(right):
        return f"{len(left)} rows and {len(right)} rows"

    def close(a, b) -> bool:
        if a is None or b is None:
            return a is None and b is None
        if isinstance(a, float) or isinstance(b, float):
            return math.isclose(float(a), float(b), rel_tol=1e-9, abs_tol=0.005)
        return a == b

    for place in ORDERED.get(number, []):
        for index, (a, b) in enumerate(zip(left, right)):
            if not close(a[place], b[place]):
                return f"row {index + 1}, column {place + 1}: {a[place]!r} and {b[place]!r}"
    # Exact columns first, so that rounding cannot reorder rows.
    floats = {i for row in [*left, *right] for i, value in enumerate(row) if isinstance(value, float)}
    key = lambda row: tuple(str(normal(value)) for i, value in enumerate(row) if i not in floats)  # noqa: E731
    for a, b in zip(sorted(left, key=key), sorted(right, key=key)):
        for place, (x, y) in enumerate(zip(a, b)):
            if not close(x, y):
                return f"column {place + 1}: {x!r} and {y!r} in {a!r}"
    return None


def normal(value):
    """Numbers of different types that are equal print equally."""
    if hasattr(value, "normalize"):
        return f"{value.normalize():f}"
    return value



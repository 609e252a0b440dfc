"""What times of events mean: their unit, and what a model reads of them."""

from __future__ import annotations

import numpy as np

_LATEST_SECONDS = 1e11  # of the year 5138


def ticks_per_second(times: np.ndarray) -> int:
    """Unit of times since 1970, told from the largest: 1, 1,000, a million or a billion a second.

    Files hold seconds or milliseconds, and readers turn dates into micro- or nanoseconds. The unit
    is the coarsest one in which no time lies behind the year 5138; so times in milliseconds must
    reach beyond March 1973. Positions in a sequence count as seconds.

    Args:
      times: `[events]`.
    """
    largest = np.abs(times).max(initial=0)
    return next((unit for unit in (1, 10**3, 10**6) if largest < _LATEST_SECONDS * unit), 10**9)


def clocks(seconds: np.ndarray, real: np.ndarray) -> dict[str, np.ndarray]:
    """What a model reads of times.

    Args:
      seconds: `[rows, width]` seconds since 1970, UTC.
      real: `[rows, width]` bool, false for padding.

    Returns:
      `hour`, `[rows, width]` int32, the hour of the week, 0 to 167, from Thursday 0:00 UTC on; and
      `days`, `[rows, width]` float32, days since the first event of the row, which float32 holds
      to a few minutes over years.
    """
    hour = (np.floor_divide(seconds, 3600) % 168).astype(np.int32)
    days = ((seconds - seconds[:, :1]) / 86400.0).astype(np.float32)
    return {"hour": np.where(real, hour, 0), "days": np.where(real, days, np.float32(0))}

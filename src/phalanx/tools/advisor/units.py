# SPDX-License-Identifier: Apache-2.0
"""Bandwidths and durations as people write them."""

from __future__ import annotations

import math
import re

_FORM = re.compile(r"\s*(\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+)\s*([A-Za-z/]+)\s*")
_PREFIXES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
# bits per second as tc and switches write them, bytes per second as file copies do
_RATES = {f"{p}{unit}": factor / 8 for p, factor in _PREFIXES.items() for unit in ("bit", "bit/s", "bps", "b/s")}
_RATES |= {f"{p}B/s": factor for p, factor in _PREFIXES.items()}
_DURATIONS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}


def bandwidth(text: str) -> float:
    """Bytes per second.

    Args:
        text: "100Mbit", "1Gbit/s", "2.5Gbps", "12.5MB/s"; decimal prefixes k, M, G, T; b is a bit and B a byte.
    Raises:
        ValueError: not a number above zero with one of these units.

    >>> bandwidth("100Mbit") == bandwidth("12.5MB/s") == 12.5e6
    True
    """
    return _read(text, _RATES, "a bandwidth is a number above zero with a unit, such as 100Mbit, 1Gbit or 12.5MB/s", 0)


def duration(text: str) -> float:
    """Seconds.

    Args:
        text: "50ms", "100us", "1.5s".
    Raises:
        ValueError: not a number with one of these units.

    >>> duration("250ms")
    0.25
    """
    return _read(text, _DURATIONS, "a time is a number with a unit, such as 0.1ms, 100us or 1.5s", None)


def bits(rate: float) -> str:
    """Bytes per second as bits: 12.5e6 as '100 Mbit/s'."""
    value = 8 * rate
    for prefix in ("", "k", "M", "G"):
        if value < 999.5:
            return f"{value:.3g} {prefix}bit/s"
        value /= 1000
    return f"{value:.3g} Tbit/s"


def _read(text: str, units: dict[str, float], sentence: str, above: float | None) -> float:
    match = _FORM.fullmatch(text)
    if match is None:
        raise ValueError(f"{sentence}; got {text!r}")
    number, unit = float(match[1]), match[2]
    # in Mb/s and MB/s only the capital tells a bit from a byte; in mbit the meaning is clear
    anyhow = {name.lower(): factor for name, factor in units.items() if "bit" in name or units is _DURATIONS}
    factor = units.get(unit, anyhow.get(unit.lower()))
    if factor is None or not math.isfinite(number) or (above is not None and number <= above):
        raise ValueError(f"{sentence}; got {text!r}")
    return number * factor

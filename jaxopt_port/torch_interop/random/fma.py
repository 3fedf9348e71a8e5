"""Fused multiply-adds, rounded once, in NumPy: compiled with AVX2, torch has them where its source has a * b + c."""

import numpy as np

Float = np.ndarray | np.floating


def fma32(a: np.ndarray, b: Float, c: Float) -> np.ndarray:
    """a * b + c in float32, rounded once: float64 holds the product, and a sum rounded to odd may be rounded again.

    A sum rounded to nearest may be too, but for one that lies halfway between two float32 numbers, and for the
    smallest, whose halves lie elsewhere; so only those few are rounded to odd.
    """
    product, addend = a.astype(np.float64) * np.float64(b), np.float64(c)
    s = np.atleast_1d(product + addend)
    twice = (s.view(np.int64) & 0x1FFFFFFF == 0x10000000) | (np.abs(s) < np.finfo(np.float32).tiny)
    if twice.any():
        s[twice] = _sum_to_odd(*(np.broadcast_to(x, s.shape)[twice] for x in (product, addend)))
    return s.astype(np.float32)


def fma64(a: np.ndarray, b: float, c: float) -> np.ndarray:
    """a * b + c in float64, rounded once (Boldo and Melquiond, Emulation of FMA and correctly rounded sums, 2008)."""
    high, low = _product(a, b)
    upper, lower = _sum(np.float64(c), low)
    result, rest = _sum(high, upper)
    return result + _sum_to_odd(lower, rest)


def _sum(a: Float, b: Float) -> tuple[Float, Float]:
    """a + b rounded, and what the rounding lost (Knuth)."""
    s = a + b
    other = s - a
    return s, (a - (s - other)) + (b - other)


def _product(a: Float, b: float) -> tuple[Float, Float]:
    """a * b rounded, and what the rounding lost (Dekker)."""
    a_high, b_high = _high_half(a), _high_half(np.float64(b))
    a_low, b_low = a - a_high, b - b_high
    p = a * b
    return p, a_low * b_low - (((p - a_high * b_high) - a_low * b_high) - a_high * b_low)


def _high_half(a: Float) -> Float:
    scaled = a * 134217729.0  # 2^27 + 1
    return scaled - (scaled - a)


def _sum_to_odd(a: Float, b: Float) -> np.ndarray:
    """a + b, where it is not exact rounded to the neighbour whose last bit is 1."""
    s, lost = map(np.atleast_1d, _sum(a, b))
    bits = s.view(np.int64)
    away = np.where((lost > 0) == (s > 0), 1, -1)
    return (bits + np.where((lost != 0) & (bits & 1 == 0), away, 0)).view(np.float64)

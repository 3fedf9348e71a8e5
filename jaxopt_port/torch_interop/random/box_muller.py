"""Normal numbers out of uniform ones, 16 at a time, as torch's CPU kernels compute them.

Of each 16 uniform numbers the first 8 give radii and the last 8 angles: r cos(t) then r sin(t), 8 of each.
"""

import math
from collections.abc import Callable

import numpy as np

from jaxopt_port.torch_interop.random.fma import fma32, fma64

F32 = np.float32
BLOCK = 1 << 15  # numbers at a time, so that what lies between stays in the cache


def normal64(uniform: np.ndarray, mean: float, std: float) -> np.ndarray:
    """In float64: the C library's log, cos and sin, which Python has too."""
    u = uniform.reshape(-1, 2, 8)
    radius = np.sqrt(-2.0 * _each(math.log, 1.0 - u[:, 0]))
    angle = 2.0 * math.pi * u[:, 1]
    unit = np.stack([radius * _each(math.cos, angle), radius * _each(math.sin, angle)], axis=1)
    return fma64(unit.reshape(-1), std, mean)


def _each(function: Callable[[float], float], x: np.ndarray) -> np.ndarray:
    return np.array([function(value) for value in x.ravel().tolist()]).reshape(x.shape)


def normal32(uniform: np.ndarray, mean: float, std: float) -> np.ndarray:
    """In float32: the polynomials of torch's AVX2 kernel (aten/src/ATen/native/cpu/avx_mathfun.h)."""
    blocks = np.split(uniform, range(BLOCK, len(uniform), BLOCK))
    return np.concatenate([_normal32(block, mean, std) for block in blocks])


def _normal32(uniform: np.ndarray, mean: float, std: float) -> np.ndarray:
    u = uniform.reshape(-1, 2, 8)
    radius = np.sqrt(F32(-2) * _log(F32(1) - u[:, 0]))
    sine, cosine = _sin_cos(F32(2.0 * math.pi) * u[:, 1])
    unit = np.stack([radius * cosine, radius * sine], axis=1)
    return fma32(unit.reshape(-1), F32(std), F32(mean))


def _polynomial(x: np.ndarray, *coefficients: float) -> np.ndarray:
    y = np.full_like(x, F32(coefficients[0]))
    for coefficient in coefficients[1:]:
        y = fma32(y, x, F32(coefficient)).reshape(x.shape)
    return y


_LOG = (
    *(7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1),
    *(-1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1),
)


def _log(x: np.ndarray) -> np.ndarray:
    """log(x) for x in (0, 1]: x = m 2^e with m in [sqrt(1/2), sqrt(2)), then a polynomial in m - 1."""
    bits = np.ascontiguousarray(x).view(np.int32)
    mantissa = ((bits & 0x007FFFFF) | 0x3F000000).view(F32)  # in [1/2, 1)
    exponent = ((bits >> 23) - 126).astype(F32)
    small = mantissa < F32(0.707106781186547524)
    exponent = exponent - small.astype(F32)
    x = (mantissa - F32(1)) + np.where(small, mantissa, F32(0))
    square = x * x
    y = _polynomial(x, *_LOG) * x
    y = fma32(y, square, exponent * F32(-2.12194440e-4))
    y = fma32(-square, F32(0.5), y)
    return fma32(exponent, F32(0.693359375), x + y)


def _sin_cos(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """sin(x) and cos(x) for x >= 0: an eighth of a turn each way around the nearest quarter, then two polynomials."""
    eighth = ((x * F32(1.27323954473516)).astype(np.int32) + 1) & ~1  # even: 4 / pi x, to the nearest quarter turn
    turns = eighth.astype(F32)
    for part in (-0.78515625, -2.4187564849853515625e-4, -3.77489497744594108e-8):  # -pi / 4 in three parts
        x = fma32(turns, F32(part), x)
    square = x * x
    cosine = _polynomial(square, 2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2) * square
    cosine = fma32(cosine, square, -(square * F32(0.5))) + F32(1)
    sine = _polynomial(square, -1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1) * square
    sine = fma32(sine, x, x)
    swapped = (eighth & 2) != 0
    sine, cosine = np.where(swapped, cosine, sine), np.where(swapped, sine, cosine)
    return np.where(eighth & 4, -sine, sine), np.where((eighth - 2) & 4, cosine, -cosine)

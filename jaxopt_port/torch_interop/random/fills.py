"""torch.nn.init's functions: arrays filled from a generator."""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from jaxopt_port.torch_interop.random.rng import Generator

FanMode = Literal["fan_in", "fan_out"]


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """`torch.nn.init.calculate_gain`: what a nonlinearity's weights are multiplied by.

    Args:
      nonlinearity: linear, conv1d to conv3d, conv_transpose1d to conv_transpose3d, sigmoid, tanh, relu, leaky_relu or
        selu.
      param: leaky_relu's negative slope, by default 0.01.

    Raises:
      ValueError: another nonlinearity, or a slope that is not a number.

    Returns:
      The factor.

    Example:
      >>> calculate_gain("tanh")
      1.6666666666666667
    """
    if nonlinearity in ("linear", "sigmoid") or nonlinearity in _CONVOLUTIONS:
        return 1.0
    if nonlinearity == "leaky_relu":
        slope = 0.01 if param is None else param
        if isinstance(slope, bool) or not isinstance(slope, int | float):
            raise ValueError(f"negative_slope {slope} not a valid number")
        return math.sqrt(2.0 / (1 + slope**2))
    gains = {"tanh": 5.0 / 3, "relu": math.sqrt(2.0), "selu": 3.0 / 4}
    if nonlinearity not in gains:
        raise ValueError(f"Unsupported nonlinearity {nonlinearity}")
    return gains[nonlinearity]


_CONVOLUTIONS = [f"conv{kind}{dimensions}d" for kind in ("", "_transpose") for dimensions in (1, 2, 3)]


def uniform(
    generator: Generator, shape: Sequence[int], a: float = 0.0, b: float = 1.0, dtype: type = np.float32
) -> np.ndarray:
    """`torch.nn.init.uniform_`: U(a, b).

    Args:
      generator: what to draw from; it moves on. So it does in all functions of this module.
      shape: of the array.
      a: the lower bound.
      b: the upper bound.
      dtype: float32 or float64. So it is in all functions of this module.

    Returns:
      An array of the shape and dtype.

    Example:
      >>> uniform(Generator(0), 2)  # torch.manual_seed(0); torch.nn.init.uniform_(torch.empty(2))
      array([0.4962566, 0.7682218], dtype=float32)
    """
    return generator.uniform(shape, a, b, dtype)


def normal(
    generator: Generator, shape: Sequence[int], mean: float = 0.0, std: float = 1.0, dtype: type = np.float32
) -> np.ndarray:
    """`torch.nn.init.normal_`: N(mean, std^2).

    Args:
      generator: what to draw from.
      shape: of the array.
      mean: the mean.
      std: the standard deviation.
      dtype: float32 or float64.

    Returns:
      An array of the shape and dtype.

    Example:
      >>> normal(Generator(0), 2, std=0.02).shape
      (2,)
    """
    return generator.normal(shape, mean, std, dtype)


def trunc_normal(
    generator: Generator,
    shape: Sequence[int],
    mean: float = 0.0,
    std: float = 1.0,
    a: float = -2.0,
    b: float = 2.0,
    dtype: type = np.float32,
) -> np.ndarray:
    """`torch.nn.init.trunc_normal_` of torch 2.13: N(mean, std^2), what is outside [a, b] drawn again.

    Args:
      generator: what to draw from.
      shape: of the array.
      mean: the normal distribution's mean.
      std: its standard deviation.
      a: the lower bound; not in units of std.
      b: the upper bound.
      dtype: float32 or float64.

    Returns:
      An array of the shape and dtype.

    Raises:
      NotImplementedError: [a, b] holds less than 30 % of the distribution. torch draws in another way then, which
        hangs on the last bit of its logarithm.

    Example:
      >>> trunc_normal(Generator(0), (2, 2), std=0.02).shape
      (2, 2)
    """
    inside = _normal_cdf((b - mean) / std) - _normal_cdf((a - mean) / std)
    if not inside > 0.3:
        raise NotImplementedError(
            f"trunc_normal_ with {inside:.0%} of N({mean}, {std}^2) in [{a}, {b}]: 30 % is needed; give wider bounds"
        )
    low, high = np.array([a, b], dtype)
    x = generator.normal(shape, mean, std, dtype)
    while (outside := (x < low) | (x > high)).any():
        x = np.where(outside, generator.normal(shape, mean, std, dtype), x)
    return x


def _normal_cdf(x: float) -> float:
    return (1.0 + math.erf(x / math.sqrt(2.0))) / 2.0


def xavier_uniform(
    generator: Generator, shape: Sequence[int], gain: float = 1.0, dtype: type = np.float32
) -> np.ndarray:
    """`torch.nn.init.xavier_uniform_`: U(-r, r) with r = gain sqrt(6 / (fan_in + fan_out)).

    Args:
      generator: what to draw from.
      shape: of the array, in torch's layout: [out, in, ...].
      gain: what the bound is multiplied by, as of `calculate_gain`.
      dtype: float32 or float64.

    Returns:
      An array of the shape and dtype.

    Raises:
      ValueError: a shape of fewer than 2 dimensions.

    Source: Glorot and Bengio, Understanding the difficulty of training deep feedforward neural networks, 2010.
    """
    bound = math.sqrt(3.0) * (gain * math.sqrt(2.0 / float(sum(fans(shape)))))
    return generator.uniform(shape, -bound, bound, dtype)


def xavier_normal(
    generator: Generator, shape: Sequence[int], gain: float = 1.0, dtype: type = np.float32
) -> np.ndarray:
    """`torch.nn.init.xavier_normal_`: N(0, s^2) with s = gain sqrt(2 / (fan_in + fan_out)).

    Args:
      generator: what to draw from.
      shape: of the array, in torch's layout: [out, in, ...].
      gain: what the standard deviation is multiplied by, as of `calculate_gain`.
      dtype: float32 or float64.

    Returns:
      An array of the shape and dtype.

    Raises:
      ValueError: a shape of fewer than 2 dimensions.

    Source: Glorot and Bengio, 2010.
    """
    return generator.normal(shape, 0.0, gain * math.sqrt(2.0 / float(sum(fans(shape)))), dtype)


def kaiming_uniform(
    generator: Generator,
    shape: Sequence[int],
    a: float = 0.0,
    mode: FanMode = "fan_in",
    nonlinearity: str = "leaky_relu",
    dtype: type = np.float32,
) -> np.ndarray:
    """`torch.nn.init.kaiming_uniform_`: U(-r, r) with r = gain sqrt(3 / fan).

    Args:
      generator: what to draw from.
      shape: of the array, in torch's layout: [out, in, ...].
      a: leaky_relu's negative slope.
      mode: fan_in or fan_out.
      nonlinearity: as in `calculate_gain`.
      dtype: float32 or float64.

    Returns:
      An array of the shape and dtype.

    Raises:
      ValueError: a shape of fewer than 2 dimensions, or another mode or nonlinearity.

    Example:
      >>> kaiming_uniform(Generator(0), (4, 3), nonlinearity="relu").shape
      (4, 3)

    Source: He et al., Delving deep into rectifiers, 2015.
    """
    if 0 in shape:
        return np.empty(shape, dtype)
    bound = math.sqrt(3.0) * _kaiming_std(shape, a, mode, nonlinearity)
    return generator.uniform(shape, -bound, bound, dtype)


def kaiming_normal(
    generator: Generator,
    shape: Sequence[int],
    a: float = 0.0,
    mode: FanMode = "fan_in",
    nonlinearity: str = "leaky_relu",
    dtype: type = np.float32,
) -> np.ndarray:
    """`torch.nn.init.kaiming_normal_`: N(0, s^2) with s = gain / sqrt(fan). Arguments as in `kaiming_uniform`.

    Source: He et al., 2015.
    """
    if 0 in shape:
        return np.empty(shape, dtype)
    return generator.normal(shape, 0.0, _kaiming_std(shape, a, mode, nonlinearity), dtype)


def _kaiming_std(shape: Sequence[int], a: float, mode: str, nonlinearity: str) -> float:
    modes = ["fan_in", "fan_out"]
    if mode not in modes:
        raise ValueError(f"Mode {mode} not supported, please use one of {modes}")
    return calculate_gain(nonlinearity, a) / math.sqrt(fans(shape)[modes.index(mode)])


def fans(shape: Sequence[int]) -> tuple[int, int]:
    """How many values meet in an output, and how many outputs a value goes to."""
    if len(shape) < 2:
        raise ValueError("Fan in and fan out can not be computed for tensor with fewer than 2 dimensions")
    field = math.prod(shape[2:])
    return shape[1] * field, shape[0] * field

"""torch's initial weights, bit for bit, without torch.

The layers draw from a generator what torch's modules draw when they are made, in torch's order and layouts:

    generator = Generator(0)                        # torch.manual_seed(0)
    hidden = linear(generator, 784, 128)            # nn.Linear(784, 128)
    output = linear(generator, 128, 10)             # nn.Linear(128, 10)

Exact with torch on a CPU with AVX2 and, with `Generator(seed, avx2=False)`, without; see `rng.Generator` for what is
not reproduced. Neither are `orthogonal_`, whose QR decomposition differs between linear algebra libraries, and
`trunc_normal_` between bounds that hold less than 30 % of the normal distribution.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from jaxopt_port.torch_interop.random.rng import Generator

Weights = dict[str, np.ndarray]
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
    bound = math.sqrt(3.0) * (gain * math.sqrt(2.0 / float(sum(_fans(shape)))))
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
    return generator.normal(shape, 0.0, gain * math.sqrt(2.0 / float(sum(_fans(shape)))), dtype)


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
    return calculate_gain(nonlinearity, a) / math.sqrt(_fans(shape)[modes.index(mode)])


def _fans(shape: Sequence[int]) -> tuple[int, int]:
    """How many values meet in an output, and how many outputs a value goes to."""
    if len(shape) < 2:
        raise ValueError("Fan in and fan out can not be computed for tensor with fewer than 2 dimensions")
    field = math.prod(shape[2:])
    return shape[1] * field, shape[0] * field


def linear(
    generator: Generator, in_features: int, out_features: int, bias: bool = True, dtype: type = np.float32
) -> Weights:
    """`torch.nn.Linear(in_features, out_features)`: weight [out, in] and bias [out], uniform within 1 / sqrt(in).

    Args:
      generator: what to draw from.
      in_features: inputs.
      out_features: outputs.
      bias: whether there is one.
      dtype: float32 or float64.

    Returns:
      torch's parameters under torch's names.

    Example:
      >>> linear(Generator(0), 2, 1)  # torch.manual_seed(0); torch.nn.Linear(2, 1)
      {'weight': array([[-0.00529398,  0.3793229 ]], dtype=float32), 'bias': array([-0.58198076], dtype=float32)}
    """
    return _weight_and_bias(generator, (out_features, in_features), out_features, bias, dtype)


def conv(
    generator: Generator,
    in_channels: int,
    out_channels: int,
    kernel_size: Sequence[int],
    groups: int = 1,
    bias: bool = True,
    dtype: type = np.float32,
) -> Weights:
    """`torch.nn.Conv1d`, `Conv2d` or `Conv3d`: weight [out, in / groups, *kernel_size] and bias [out].

    Args:
      generator: what to draw from.
      in_channels: a multiple of groups.
      out_channels: a multiple of groups.
      kernel_size: a number for each dimension: (5, 5) for Conv2d(..., 5).
      groups: of channels that are convolved apart.
      bias: whether there is one.
      dtype: float32 or float64.

    Returns:
      torch's parameters under torch's names.

    Raises:
      ValueError: channels that are not multiples of groups.

    Example:
      >>> conv(Generator(0), 3, 32, (5, 5))["weight"].shape  # torch.manual_seed(0); torch.nn.Conv2d(3, 32, 5)
      (32, 3, 5, 5)
    """
    _check_groups(in_channels, out_channels, groups)
    shape = (out_channels, in_channels // groups, *kernel_size)
    return _weight_and_bias(generator, shape, out_channels, bias, dtype)


def conv_transpose(
    generator: Generator,
    in_channels: int,
    out_channels: int,
    kernel_size: Sequence[int],
    groups: int = 1,
    bias: bool = True,
    dtype: type = np.float32,
) -> Weights:
    """`torch.nn.ConvTranspose1d`, `2d` or `3d`: weight [in, out / groups, *kernel_size] and bias [out].

    Arguments and errors as in `conv`. torch takes the second dimension for fan_in here too.
    """
    _check_groups(in_channels, out_channels, groups)
    shape = (in_channels, out_channels // groups, *kernel_size)
    return _weight_and_bias(generator, shape, out_channels, bias, dtype)


def _check_groups(in_channels: int, out_channels: int, groups: int) -> None:
    if groups < 1:
        raise ValueError("groups must be a positive integer")
    for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
        if channels % groups:
            raise ValueError(f"{name} must be divisible by groups, got {channels} and {groups}")


def _weight_and_bias(generator: Generator, shape: Sequence[int], out: int, bias: bool, dtype: type) -> Weights:
    """Both uniform within 1 / sqrt(fan_in), which torch computes in two ways."""
    weights = {"weight": kaiming_uniform(generator, shape, a=math.sqrt(5), dtype=dtype)}
    fan_in, _ = _fans(shape)
    if bias:
        bound = 1 / math.sqrt(fan_in) if fan_in > 0 else 0.0
        weights["bias"] = generator.uniform(out, -bound, bound, dtype)
    return weights


def batch_norm(num_features: int, dtype: type = np.float32) -> Weights:
    """`torch.nn.BatchNorm1d`, `2d` or `3d`: weight 1, bias 0, and the statistics' buffers. Nothing is drawn.

    Args:
      num_features: channels.
      dtype: of the parameters and statistics.

    Returns:
      torch's parameters and buffers under torch's names.

    Example:
      >>> list(batch_norm(8))
      ['weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked']
    """
    one, zero = np.ones(num_features, dtype), np.zeros(num_features, dtype)
    buffers = {"running_mean": zero.copy(), "running_var": one.copy(), "num_batches_tracked": np.array(0, np.int64)}
    return {"weight": one, "bias": zero, **buffers}


def layer_norm(normalized_shape: Sequence[int], bias: bool = True, dtype: type = np.float32) -> Weights:
    """`torch.nn.LayerNorm`: weight 1 and bias 0. Nothing is drawn.

    Args:
      normalized_shape: of the parameters.
      bias: whether there is one.
      dtype: of the parameters.

    Returns:
      torch's parameters under torch's names.

    Example:
      >>> layer_norm((2,))
      {'weight': array([1., 1.], dtype=float32), 'bias': array([0., 0.], dtype=float32)}
    """
    weights = {"weight": np.ones(normalized_shape, dtype)}
    return weights | {"bias": np.zeros(normalized_shape, dtype)} if bias else weights


def embedding(
    generator: Generator,
    num_embeddings: int,
    embedding_dim: int,
    padding_idx: int | None = None,
    dtype: type = np.float32,
) -> Weights:
    """`torch.nn.Embedding`: weight [num_embeddings, embedding_dim], N(0, 1), with zeros in the padding's row.

    Args:
      generator: what to draw from.
      num_embeddings: rows.
      embedding_dim: numbers of a row.
      padding_idx: the padding's row, from the end where it is negative; None for none.
      dtype: float32 or float64.

    Returns:
      `{"weight": array}`.

    Raises:
      ValueError: no such row.

    Example:
      >>> embedding(Generator(0), 3, 2, padding_idx=0)["weight"][0]
      array([0., 0.], dtype=float32)
    """
    if padding_idx is not None and not -num_embeddings <= padding_idx < num_embeddings:
        raise ValueError("Padding_idx must be within num_embeddings")
    weight = generator.normal((num_embeddings, embedding_dim), dtype=dtype)
    if padding_idx is not None:
        weight[padding_idx] = 0
    return {"weight": weight}


def multihead_attention(
    generator: Generator,
    embed_dim: int,
    num_heads: int,
    bias: bool = True,
    add_bias_kv: bool = False,
    kdim: int | None = None,
    vdim: int | None = None,
    dtype: type = np.float32,
) -> Weights:
    """`torch.nn.MultiheadAttention`: Xavier's uniform projections in, Linear's out, biases 0.

    Args:
      generator: what to draw from.
      embed_dim: the model's width, a multiple of num_heads.
      num_heads: how many heads share it.
      bias: whether the projections have one.
      add_bias_kv: whether keys and values get a row each, bias_k and bias_v.
      kdim: the keys' width, by default embed_dim.
      vdim: the values' width, by default embed_dim.
      dtype: float32 or float64.

    Returns:
      torch's parameters under torch's names: in_proj_weight [3 embed_dim, embed_dim], or q_, k_ and v_proj_weight
      where kdim or vdim is another; in_proj_bias, bias_k, bias_v, out_proj.weight and out_proj.bias.

    Raises:
      ValueError: embed_dim is not a multiple of num_heads.

    Example:
      >>> list(multihead_attention(Generator(0), 8, 2))
      ['in_proj_weight', 'in_proj_bias', 'out_proj.weight', 'out_proj.bias']
    """
    if num_heads < 1 or embed_dim % num_heads:
        raise ValueError(f"embed_dim must be divisible by num_heads, got {embed_dim} and {num_heads}")
    out = linear(generator, embed_dim, embed_dim, bias, dtype)  # is drawn first
    widths = {"q": embed_dim, "k": kdim or embed_dim, "v": vdim or embed_dim}
    if set(widths.values()) == {embed_dim}:
        weights = {"in_proj_weight": xavier_uniform(generator, (3 * embed_dim, embed_dim), dtype=dtype)}
    else:
        weights = {
            f"{name}_proj_weight": xavier_uniform(generator, (embed_dim, width), dtype=dtype)
            for name, width in widths.items()
        }
    if bias:
        weights["in_proj_bias"] = np.zeros(3 * embed_dim, dtype)
        out["bias"] = np.zeros_like(out["bias"])
    if add_bias_kv:
        weights |= {name: xavier_normal(generator, (1, 1, embed_dim), dtype=dtype) for name in ("bias_k", "bias_v")}
    return weights | {f"out_proj.{name}": x for name, x in out.items()}

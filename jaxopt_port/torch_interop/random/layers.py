"""What torch's modules draw when they are made: their parameters, under torch's names."""

import math
from collections.abc import Sequence

import numpy as np

from jaxopt_port.torch_interop.random.fills import fans, kaiming_uniform, xavier_normal, xavier_uniform
from jaxopt_port.torch_interop.random.rng import Generator

Weights = dict[str, np.ndarray]


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
    fan_in, _ = fans(shape)
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

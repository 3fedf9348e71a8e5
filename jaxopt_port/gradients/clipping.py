"""Clipping gradients by their norm or by value, with torch's arithmetic."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_port.dtypes import is_inexact, promoted, times, widened, with_room
from jaxopt_port.optimizer import described
from jaxopt_port.rule import is_sparse
from jaxopt_port.scalars import NUMBER, Scalar, float64, is_known

Tree = Any


def get_total_norm(grads: Tree, norm_type: float = 2.0, error_if_nonfinite: bool = False) -> jax.Array:
    r"""The norm of all gradients as one vector: torch.nn.utils.get_total_norm.

    .. math:: \| (\|g_1\|_p, \dots, \|g_n\|_p) \|_p

    As in torch it is the norm of the gradients' norms. For :math:`p = 0` that is the number of gradients that are not
    all zero. Gradients of frozen parameters count; `drop_frozen` makes them None.

    Args:
      grads: a tree of gradients; None counts for nothing.
      norm_type: :math:`p`, any number, or `inf` as a number or a text.
      error_if_nonfinite: raise where the norm is infinite or NaN. Not under jit, where it has no value yet.

    Returns:
      The norm, 0-d, real, of the gradients' dtypes promoted; float32 where there are none.

    Raises:
      RuntimeError: a norm that is not finite, in torch's words; an empty gradient, for a norm that has no value there.
      TypeError: `error_if_nonfinite` under jit.
      NotImplementedError: a sparse gradient, as in torch.

    Example:
      >>> get_total_norm({"w": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])})
      Array(5., dtype=float32)

    Source: torch/nn/utils/clip_grad.py.
    """
    norm_type = float(norm_type)
    with float64():
        gradients = _gradients(grads)
        norms = [_norm(g, norm_type) for g in gradients]
        if not norms:
            return jnp.zeros((), jnp.float32)
        dtype = promoted(norm.dtype for norm in norms)
        total = _norm(jnp.stack([norm.astype(dtype) for norm in norms]), norm_type)
        total = _with_subnormal_powers(total, gradients, norm_type)
        if error_if_nonfinite:
            _check_finite(total, norm_type)
        return total


def clip_grad_norm(
    grads: Tree, max_norm: Scalar, norm_type: float = 2.0, error_if_nonfinite: bool = False
) -> tuple[Tree, jax.Array]:
    r"""Scales gradients down to a total norm: torch.nn.utils.clip_grad_norm_.

    .. math:: g \min\left(\frac{c}{\|g\|_p + 10^{-6}}, 1\right)

    The gradients are multiplied where the factor is 1, too. A norm that is not finite makes zeros and NaNs of them.

    Frozen parameters have no gradient in torch and count for nothing; `jax.grad` gives them one, which counts: make it
    None first, with `drop_frozen(optimizer, grads, params)`.

    Args:
      grads: a tree of gradients; None stays None.
      max_norm: :math:`c`, the largest norm.
      norm_type: :math:`p`, any number, or `inf` as a number or a text.
      error_if_nonfinite: raise where the norm is infinite or NaN. Not under jit, where it has no value yet.

    Returns:
      `(grads, total_norm)`; the norm is that before clipping.

    Raises:
      RuntimeError: a norm that is not finite, in torch's words; an empty gradient, for a norm that has no value there.
      TypeError: `error_if_nonfinite` under jit; a `max_norm` that is not a number.
      NotImplementedError: a sparse gradient, as in torch.

    Example:
      >>> grads, total_norm = clip_grad_norm({"w": jnp.array([3.0, 4.0])}, max_norm=1.0)
      >>> [round(float(x), 4) for x in grads["w"]], total_norm
      ([0.6, 0.8], Array(5., dtype=float32))

    Source: torch/nn/utils/clip_grad.py; Pascanu et al., On the difficulty of training recurrent neural networks, 2013.
    """
    _check_number("max_norm", max_norm)
    total = get_total_norm(grads, norm_type, error_if_nonfinite)
    return clip_grads_with_norm(grads, max_norm, total), total


def clip_grads_with_norm(grads: Tree, max_norm: Scalar, total_norm: Scalar) -> Tree:
    """Scales gradients down by a norm that is known: torch.nn.utils.clip_grads_with_norm_.

    Args:
      grads: a tree of gradients; None stays None.
      max_norm: the largest norm.
      total_norm: their norm, as of `get_total_norm`, or that of all the gradients of which these are a part.

    Returns:
      The gradients, scaled as `clip_grad_norm` does.

    Raises:
      TypeError: a norm that is not a number.

    Example:
      >>> clip_grads_with_norm({"w": jnp.array([4.0])}, max_norm=1.0, total_norm=jnp.array(2.0))["w"].round(4)
      Array([2.], dtype=float32)

    Source: torch/nn/utils/clip_grad.py.
    """
    _check_number("max_norm", max_norm)
    _check_number("total_norm", total_norm)
    with float64():
        total_norm = jnp.asarray(total_norm, getattr(total_norm, "dtype", jnp.float32))
        # In torch a number over a tensor is the tensor's reciprocal times the number.
        coefficient = times(1 / with_room(_plus(total_norm, 1e-6), total_norm), max_norm)
        coefficient = jnp.minimum(coefficient, 1 / with_room(jnp.ones_like(total_norm), total_norm))
        return _map(lambda g: times(with_room(g, total_norm), coefficient), grads)


def clip_grad_value(grads: Tree, clip_value: Scalar) -> Tree:
    r"""Clips every element of the gradients to a range: torch.nn.utils.clip_grad_value_.

    .. math:: \min(\max(g, -c), c)

    Args:
      grads: a tree of gradients; None stays None.
      clip_value: :math:`c`, the largest absolute value.

    Returns:
      The tree of clipped gradients. NaN stays NaN.

    Raises:
      TypeError: a `clip_value` that is not a number.
      NotImplementedError: a sparse or complex gradient, as in torch.

    Example:
      >>> clip_grad_value({"w": jnp.array([3.0, -4.0, 0.5])}, clip_value=1.0)
      {'w': Array([ 1. , -1. ,  0.5], dtype=float32)}

    Source: torch/nn/utils/clip_grad.py.
    """
    _check_number("clip_value", clip_value)
    if any(jnp.iscomplexobj(g) for g in _gradients(grads)):
        raise NotImplementedError("clamp is not supported for complex types: use clip_grad_norm")
    with float64():
        limit = jnp.asarray(clip_value, jnp.float64)  # of an unsigned integer there is no negative one
        return _map(lambda g: jnp.minimum(jnp.maximum(g, (-limit).astype(g.dtype)), limit.astype(g.dtype)), grads)


def _gradients(grads: Tree) -> list[jax.Array]:
    """The gradients, but not the float0 that stands for that of an integer."""
    leaves = jax.tree.leaves(grads, is_leaf=is_sparse)
    if any(map(is_sparse, leaves)):
        raise NotImplementedError("sparse gradients cannot be clipped, in torch neither: use g.todense()")
    return [jnp.asarray(g) for g in leaves if is_inexact(g)]


def _map(function: Any, grads: Tree) -> Tree:
    return jax.tree.map(lambda g: function(jnp.asarray(g)) if is_inexact(g) else g, grads)


def _check_number(name: str, value: Any) -> None:
    if not isinstance(value, NUMBER) or np.ndim(value):
        raise TypeError(f"{name} must be a number, not {described(value)}: the gradients come first")


def _plus(x: jax.Array, number: float) -> jax.Array:
    wide = widened(x.dtype)
    return (x.astype(wide) + jnp.asarray(number, wide)).astype(x.dtype)


def _norm(x: jax.Array, p: float) -> jax.Array:
    """torch.linalg.vector_norm(x, p): 16-bit numbers are added up in float32."""
    if x.size == 0 and (p < 0 or p == math.inf):
        raise RuntimeError(
            f"linalg.vector_norm cannot compute the {p:g} norm on an empty tensor because the operation does not have "
            "an identity: leave the empty gradient out"
        )
    dtype = jnp.finfo(x.dtype).dtype
    size = jnp.abs(x).astype(widened(dtype))
    if x.size == 1 and p != 0:  # neither powers, which overflow, nor roots
        total = size.reshape(())
    elif p == math.inf:
        total = jnp.max(size)
    elif p == -math.inf:
        total = jnp.min(size)
    elif p == 0:
        total = jnp.sum(size != 0)
    elif p == 1:
        total = jnp.sum(size)
    else:
        total = _root(jnp.sum(_power(size, p)), p)
    return total.astype(dtype)


def _power(x: jax.Array, p: float) -> jax.Array:
    return x * x if p == 2 else x**p


def _root(x: jax.Array, p: float) -> jax.Array:
    return jnp.sqrt(x) if p == 2 else x ** (1 / p)


def _with_subnormal_powers(total: jax.Array, gradients: list[jax.Array], p: float) -> jax.Array:
    """The total norm, where it is so small that the powers under its root are subnormal.

    XLA takes those for zeros on a CPU; torch does not. They are whole numbers of the smallest subnormal, and as such,
    from larger numbers, they are added up again.
    """
    if not 1 <= abs(p) < math.inf or p == 1 or sum(g.size for g in gradients) == 1:
        return total  # no power of a normal number is subnormal, or there is none
    wide = widened(total.dtype)
    info = jnp.finfo(wide)
    larger = 2.0 ** round(-0.8 * info.minexp / p)
    unit = float(info.smallest_subnormal) * larger**p

    def powers(g: jax.Array) -> jax.Array:
        return jnp.sum(jnp.round(_power(jnp.abs(g).astype(wide) * larger, p) / unit))

    def small(total: jax.Array) -> jax.Array:
        if any(axis is not None for g in gradients for axis in jax.typeof(g).sharding.spec):
            units = sum(map(powers, gradients), jnp.zeros((), wide))
        else:  # one array of all, which compiles sooner
            units = powers(jnp.concatenate([jnp.abs(g).astype(wide).ravel() for g in gradients]))
        return (_root(units * unit, p) / larger).astype(total.dtype)

    is_small = _power(total.astype(wide) * larger, p) < info.tiny / info.eps * larger**p
    if is_known(total):
        return small(total) if is_small else total
    mended = partial(jax.lax.cond, is_small, small, lambda total: total)
    return jax.lax.platform_dependent(total, cpu=mended, default=lambda total: total)


def _check_finite(total: jax.Array, norm_type: float) -> None:
    if not is_known(total):
        raise TypeError(
            "error_if_nonfinite=True cannot raise under jit, where the norm has no value yet: leave it out, and look "
            "at the total norm that is returned"
        )
    if not jnp.isfinite(total):
        raise RuntimeError(
            f"The total norm of order {norm_type} for gradients from `parameters` is non-finite, so it cannot be "
            "clipped. To disable this error and scale the gradients by the non-finite norm anyway, set "
            "`error_if_nonfinite=False`"
        )

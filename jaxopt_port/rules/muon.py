r"""Muon: momentum, made orthogonal by Newton-Schulz iterations."""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxopt_port.factory import factory
from jaxopt_port.optimizer import Optimizer
from jaxopt_port.param_groups import ParamGroup
from jaxopt_port.rule import Rule, Scalars, ScalarState
from jaxopt_port.rules.tensor_ops import lerp, norm, rounded
from jaxopt_port.scalars import Scalar, check_one_element, check_should_be, float64
from jaxopt_port.sharding import replicated, sharded_as

Axes = int | Sequence[int]


class MuonState(NamedTuple):
    momentum_buffer: jax.Array


def scalars(step: jax.Array, hyper: SimpleNamespace, state: ScalarState) -> tuple[Scalars, ScalarState]:
    a, b, c = hyper.ns_coefficients
    return {
        "lr": hyper.lr,
        "decay": 1 - hyper.lr * hyper.weight_decay,
        "momentum": hyper.momentum,
        "weight": 1 - hyper.momentum,
        "a": a,
        "b": b,
        "c": c,
        "eps": hyper.eps,
    }, state


def update(p: jax.Array, g: jax.Array, slot: MuonState, c: SimpleNamespace) -> tuple[jax.Array, MuonState]:
    matrices = Matrices(p.shape, c.weight_dimension_numbers)
    with float64():
        neg_lr = (-(c.lr * _lr_ratio(c.adjust_lr_fn, matrices.rows, matrices.columns))).astype(p.dtype)
        momentum, weight, decay = (x.astype(p.dtype) for x in (c.momentum, c.weight, c.decay))
    buffer = lerp(slot.momentum_buffer, g, weight)
    direction = lerp(g, buffer, momentum) if c.nesterov else buffer
    numbers = [x.astype(jnp.float32) for x in (c.a, c.b, c.c, c.eps)]
    whole = replicated(direction)  # a product of divided matrices needs them all
    direction = sharded_as(direction, matrices.map(lambda x: orthogonal(x, c.ns_steps, *numbers), whole))
    return rounded(p * decay) + neg_lr * direction.astype(p.dtype), MuonState(buffer)


class Matrices:
    """How an array is torch's matrices [out, in], one for each index along the axes that are neither."""

    def __init__(self, shape: tuple[int, ...], dimension_numbers: tuple[Axes, Axes] | None):
        reduction, output = (1, 0) if dimension_numbers is None else dimension_numbers
        inside, out = (
            tuple(axis % len(shape) for axis in ((axes,) if isinstance(axes, int) else axes))
            for axes in (reduction, output)
        )
        batch = tuple(axis for axis in range(len(shape)) if axis not in (*inside, *out))
        self.order = (*batch, *out, *inside)
        self.rows, self.columns = (math.prod(shape[axis] for axis in axes) for axes in (out, inside))
        self.batch = [shape[axis] for axis in batch]
        self.whole = [shape[axis] for axis in self.order]

    def map(self, function: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
        """Apply a function of a matrix [out, in] to each of them."""
        matrices = x.transpose(self.order).reshape(
            *([math.prod(self.batch)] if self.batch else []), self.rows, self.columns
        )
        new = (jax.vmap(function) if self.batch else function)(matrices)
        return new.reshape(self.whole).transpose([self.order.index(axis) for axis in range(len(self.order))])


def orthogonal(x: jax.Array, steps: int, a: jax.Array, b: jax.Array, c: jax.Array, eps: jax.Array) -> jax.Array:
    """Newton-Schulz: the singular values of `x` brought near 1. In bfloat16, with torch's roundings."""
    tall = x.shape[0] > x.shape[1]
    y = _bfloat16(x.T if tall else x)
    size = _bfloat16(norm(y))
    y = _bfloat16(y / jnp.maximum(size, _bfloat16(eps)))
    for _ in range(steps):
        gram = _bfloat16(_product(y, y.T))
        polynomial = _bfloat16(b * gram + c * _product(gram, gram))
        y = _bfloat16(a * y + _product(polynomial, y))
    return y.T if tall else y


def _bfloat16(x: jax.Array) -> jax.Array:
    """Round to bfloat16's values. The float32 form is kept: XLA may drop a cast there and back, but never this."""
    return jax.lax.reduce_precision(x.astype(jnp.float32), exponent_bits=8, mantissa_bits=7)


def _product(x: jax.Array, y: jax.Array) -> jax.Array:
    """A bfloat16 product, accumulated in float32."""
    return jnp.matmul(x.astype(jnp.bfloat16), y.astype(jnp.bfloat16), preferred_element_type=jnp.float32)


def _lr_ratio(adjust_lr_fn: str | None, rows: int, columns: int) -> float:
    if adjust_lr_fn == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    if adjust_lr_fn == "spectral_unclamped":
        return math.sqrt(rows / columns)
    return math.sqrt(max(1, rows / columns))


def check(options: Mapping[str, Any]) -> None:
    check_one_element(options["lr"])
    check_should_be("Learning rate", options["lr"], at_least=0)
    check_should_be("momentum", options["momentum"], at_least=0)
    check_should_be("weight decay", options["weight_decay"], at_least=0)
    if options["adjust_lr_fn"] not in (None, "original", "match_rms_adamw", "spectral_unclamped"):
        raise ValueError(f"Adjust learning rate function {options['adjust_lr_fn']} is not supported")
    if operator.index(options["ns_steps"]) >= 100:
        raise ValueError("Number of steps must be less than 100 for computational efficiency")
    dimension_numbers = options["weight_dimension_numbers"]
    if dimension_numbers is not None and (not isinstance(dimension_numbers, tuple) or len(dimension_numbers) != 2):
        raise ValueError(
            "weight_dimension_numbers must be optax.contrib.MuonDimensionNumbers or (reduction_axis, output_axis), "
            f"not {dimension_numbers!r}"
        )
    if not isinstance(options["ns_coefficients"], Sequence) or len(options["ns_coefficients"]) != 3:
        raise ValueError("Coefficients must be a tuple of exactly 3 values")


def check_param(p: jax.Array, options: SimpleNamespace) -> None:
    if options.weight_dimension_numbers is None and p.ndim != 2:
        raise ValueError(
            f"Muon only supports 2D parameters whereas we found a parameter with size: {list(p.shape)}. "
            "Give it to adamw with optax.partition (jaxopt_port.muon's docstring shows how), or say which axes of a "
            "kernel are a matrix: weight_dimension_numbers=(reduction_axis, output_axis)."
        )
    if options.weight_dimension_numbers is not None:
        axes = [
            axis for each in options.weight_dimension_numbers for axis in ((each,) if isinstance(each, int) else each)
        ]
        outside = [axis for axis in axes if not -p.ndim <= axis < p.ndim]
        if outside or len({axis % p.ndim for axis in axes}) != len(axes):
            raise ValueError(
                f"weight_dimension_numbers {options.weight_dimension_numbers} does not fit a parameter with size "
                f"{list(p.shape)}: its reduction and output axes must be different axes of it"
            )
    if jnp.iscomplexobj(p):
        raise RuntimeError("Muon does not support complex parameters")


MUON = Rule(
    "muon",
    MuonState,
    scalars,
    update,
    check=check,
    live=("lr", "weight_decay", "momentum", "ns_coefficients", "eps"),
    check_param=check_param,
    float64_update=True,
    torch="Muon",
)


@factory(MUON)
def muon(
    lr: Scalar = 1e-3,
    weight_decay: Scalar = 0.1,
    momentum: Scalar = 0.95,
    nesterov: bool = True,
    ns_coefficients: tuple[Scalar, Scalar, Scalar] = (3.4445, -4.7750, 2.0315),
    eps: Scalar = 1e-7,
    ns_steps: int = 5,
    adjust_lr_fn: str | None = None,
    *,
    weight_dimension_numbers: tuple[Axes, Axes] | None = None,
    param_groups: Sequence[ParamGroup] = (),
) -> Optimizer:
    r"""Muon: torch.optim.Muon, for the matrices of a network's hidden layers.

    .. math::
      B_t &= \mu B_{t-1} + (1 - \mu) g_t \\
      Y_0 &= \tilde B_t / \max(\|\tilde B_t\|, \epsilon), \quad
      \tilde B_t = (1 - \mu) g_t + \mu B_t \text{ if nesterov else } B_t \\
      Y_k &= a Y_{k-1} + (b A + c A^2) Y_{k-1}, \quad A = Y_{k-1} Y_{k-1}^\top, \quad k = 1 \dots K \\
      \theta_t &= (1 - \gamma \lambda) \theta_{t-1} - \gamma \rho \, Y_K

    with :math:`\rho = \sqrt{\max(1, \text{rows} / \text{columns})}`, or
    :math:`0.2 \sqrt{\max(\text{rows}, \text{columns})}` with `adjust_lr_fn="match_rms_adamw"`, or
    :math:`\sqrt{\text{rows} / \text{columns}}` with "spectral_unclamped" (torch 2.14). The decay uses the
    learning rate without :math:`\rho`. The moment is an average, :math:`(1 - \mu) g_t`, unlike the sum in the formula
    of torch's documentation. The iterations :math:`Y` are done in bfloat16, whatever the parameter's dtype. There is no
    `maximize`.

    rows and columns are those of torch's matrix, [out, in]. An array that is not such a matrix needs
    `weight_dimension_numbers`, optax's `MuonDimensionNumbers`: the axes that are summed over (in) and those of the
    output (out), each a number or several; the other axes count matrices. A Flax kernel [in, out] has `(0, 1)`, a stack
    of layers [layers, in, out] `(1, 2)`, an attention kernel [embed, heads, dim] `(0, (1, 2))`, a convolution
    [height, width, in, out] `((0, 1, 2), 3)`. Without it a Flax kernel is taken for [out, in]: :math:`\rho` is
    :math:`\sqrt{\max(1, \text{in} / \text{out})}`, and a square one iterates on the other side than torch's, where the
    bfloat16 products round otherwise.

    Args:
      lr: :math:`\gamma`, learning rate; live.
      weight_decay: :math:`\lambda`, decoupled; live.
      momentum: :math:`\mu`; live.
      nesterov: look ahead along the moment; static.
      ns_coefficients: :math:`a, b, c` of the iteration's polynomial; live.
      eps: :math:`\epsilon`, least norm divided by; live.
      ns_steps: :math:`K`, fewer than 100; static.
      adjust_lr_fn: "original" (None is the same), "match_rms_adamw" or "spectral_unclamped", how the step depends on
        the shape; static.
      weight_dimension_numbers: which axes are torch's columns and rows, `(reduction_axis, output_axis)`; by default
        the array is torch's matrix [out, in]; static, may differ by group.
      param_groups: parameters with options of their own.

    Returns:
      An `Optimizer`.

    Raises:
      ValueError: an option out of range, in torch's words; a parameter that is not a matrix (`init`).
      RuntimeError: a complex parameter (`init`).

    Example:
      Muon for the matrices, AdamW for the rest (and, as its authors advise, for embeddings and the last layer):

      >>> import jax, jax.numpy as jnp, optax, jaxopt_port as optim
      >>> params = {"dense": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}}
      >>> optimizer = optax.partition(
      ...     {"muon": optim.muon(lr=0.02), "adamw": optim.adamw(lr=3e-4)},
      ...     jax.tree.map(lambda p: "muon" if p.ndim == 2 else "adamw", params),
      ... )
      >>> state = optimizer.init(params)
      >>> grads = jax.grad(lambda p: ((p["dense"]["kernel"].sum(0) + p["dense"]["bias"]) ** 2).sum())(params)
      >>> updates, state = optimizer.update(grads, state, params)
      >>> params = optax.apply_updates(params, updates)

      Or as two optimizers, as in torch, each with the other's parameters frozen and, if need be, its own scheduler:

      >>> muon = optim.muon(lr=0.02, param_groups=[optim.ParamGroup(lambda path, p: p.ndim != 2, frozen=True)])
      >>> adamw = optim.adamw(lr=3e-4, param_groups=[optim.ParamGroup(lambda path, p: p.ndim == 2, frozen=True)])
      >>> muon_state, adamw_state = muon.init(params), adamw.init(params)
      >>> params, muon_state = muon.step(grads, muon_state, params)
      >>> params, adamw_state = adamw.step(grads, adamw_state, params)

    Source: torch/optim/_muon.py; Jordan et al., Muon: An optimizer for hidden layers in neural networks, 2024; Liu et
    al., Muon is Scalable for LLM Training, 2025 ("match_rms_adamw").
    """
    ...

"""exact: the same optimizer, stepping in torch CUDA's float32 arithmetic."""

from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp

from jaxopt_port.lift import Lifted
from jaxopt_port.optimizer import Optimizer, OptState, algorithm_of
from jaxopt_port.param_groups import ParamGroup
from jaxopt_port.rule import is_sparse

Tree = Any


def exact(optimizer: Optimizer) -> Optimizer:
    r"""The same optimizer with torch CUDA's arithmetic: the same roundings, in the same order, on any device.

    For a run on a GPU that has to be torch's run on a GPU, bit for bit, or to be followed with `compare`. XLA's own
    float32 `/` and `sqrt` are an ulp off there in a sixth to a quarter of all numbers, and it fuses no multiply-add,
    where torch's kernels divide and take roots as IEEE says and fuse. Here both go through float64, where they are
    right: :math:`\mathrm{f32}(\mathrm{f64}(a) / \mathrm{f64}(b))` is the correctly rounded quotient. A multiply-add is
    rounded to odd in between, which makes it correctly rounded too.

    The order is that of torch 2.13's CUDA kernels (single-tensor, `foreach=False`):

    ===================================  ==========================================================
    `x + alpha * y`                      fma(alpha, y, x)
    `x + alpha * y * z`, addcmul         fma(alpha, y * z, x); fma(y, z, x) where alpha is 1
    `x + alpha * y / z`, addcdiv         fma(alpha, y / z, x)
    `x / number`                         x * (1 / number)
    ===================================  ==========================================================

    **What is proven**: on a CPU, 0 of 10^6 elements of each rule's parameters and state differ in three steps from
    torch's own optimizers with each of their operations done in this arithmetic (`tests/test_exact_steps.py`). In the
    machine code that XLA makes of a step for an H100 every operation on arrays is rounded as IEEE says, to the nearest
    (`python -m benchmarks.gpu arithmetic`). On a GPU it was not run. torch's bits for SGD, ASGD and Rprop need only the
    first line of the table, which was measured (torch's CUDA bits for them are its CPU's); the other lines are from
    torch's sources and were not compared with a GPU's numbers.

    It costs float64 arithmetic for each division, root and multiply-add, at half rate on a data-centre GPU and at 1/32
    or 1/64 on a consumer's (not measured), and compilation: RMSprop takes seconds. On a CPU it serves to look at what a
    GPU will give. The step as it is is faster, and is what a run needs that is not compared with torch's bits.

    State, groups, `set_hyper`, schedulers, `every_k`, files: all as without. `flat(exact(optimizer))` works.

    Args:
      optimizer: as its factory or `add_param_group` returns it. Its rule must work element by element.

    Returns:
      An `Optimizer`. It takes float32 parameters and dense gradients.

    Raises:
      TypeError: another library's optimizer; a parameter that is not float32 (`init`, `step`).
      ValueError: adafactor, muon, sparse_adam, lbfgs, nonlinear_cg, something around an optimizer, or a rule of the
        user's that does not say `elementwise=True`; one that computes with more than `+ - * /` and `sqrt` (`step`).

    Example:
      >>> import jax.numpy as jnp, jaxopt_port as optim
      >>> optimizer = optim.exact(optim.sgd(lr=0.5, momentum=0.9))
      >>> params = jnp.array([1.0, 2.0])
      >>> params, state = optimizer.step(params, optimizer.init(params), params)
      >>> params
      Array([0.5, 1. ], dtype=float32)

    Source: torch 2.13, torch/_inductor/lowering.py (`addcmul`, `addcdiv`, `_add_with_alpha_fma`, which state what the
    CUDA kernels do) and aten/src/ATen/native/cuda/BinaryDivTrueKernel.cu; Figueroa, When is double rounding innocuous?,
    1995.
    """
    from jaxopt_port.cuda_arithmetic import CudaUpdate  # here, since it imports jax.extend, which takes long

    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"exact takes an optimizer as its factory returns it, not a {type(optimizer).__name__}: what is around one "
            "goes around the exact one, as in optax.chain(clip, exact(adam()))"
        )
    lifted = algorithm_of(optimizer)
    if type(lifted) is not Lifted:
        raise ValueError(
            f"exact takes no {lifted!r}: only an optimizer as its factory returns it. What is around it goes around "
            "the exact one, as in flat(exact(optimizer))"
        )
    rule = lifted.rule
    if not rule.elementwise:
        raise ValueError(
            f"exact rounds element by element, and {rule.name} does not say that it works so (Rule(elementwise=True)): "
            "use the optimizer as it is"
        )

    def check_param(p: Any, options: SimpleNamespace) -> None:
        rule.check_param(p, options)
        if not is_sparse(p) and p.dtype != jnp.float32:
            raise TypeError(f"exact steps float32 parameters, and one is {p.dtype}: use the optimizer as it is")

    def check_grad(g: Any, options: SimpleNamespace) -> None:
        rule.check_grad(g, options)
        if is_sparse(g):
            raise TypeError("exact steps take no sparse gradients: use g.todense(), or the optimizer as it is")

    new = rule._replace(update=CudaUpdate(rule.name, rule.update), check_param=check_param, check_grad=check_grad)
    algorithm = lifted.made_as(Exact, new)
    return Optimizer(algorithm.init, algorithm.update)


class Exact(Lifted):
    """A rule whose `update` is a `CudaUpdate`, with its groups."""

    def __repr__(self) -> str:
        return f"exact({super().__repr__()})"

    def add_param_group(self, state: OptState, params: Tree, group: ParamGroup) -> tuple["Exact", OptState]:
        new, state = super().add_param_group(state, params, group)
        return new.made_as(Exact), state

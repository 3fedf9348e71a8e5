r"""Averaged stochastic gradient descent."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_port.factory import factory
from jaxopt_port.optimizer import Optimizer
from jaxopt_port.param_groups import ParamGroup
from jaxopt_port.rule import Rule, Scalars, ScalarState
from jaxopt_port.rules.tensor_ops import add_weight_decay, rounded
from jaxopt_port.scalars import Scalar, check_at_least_0, check_lr, python_max


class ASGDState(NamedTuple):
    ax: jax.Array


def scalars(step: jax.Array, hyper: SimpleNamespace, state: ScalarState) -> tuple[Scalars, ScalarState]:
    # torch keeps eta and mu as float32 tensors, whatever the parameter's dtype; this step uses those of the last one
    eta = jnp.where(step == 1, hyper.lr.astype(jnp.float32), state["eta"]).astype(jnp.float64)
    c = {
        "neg_eta": -eta,
        "decay": 1 - hyper.lambd * eta,
        "mu": state["mu"].astype(jnp.float64),
        "weight_decay": hyper.weight_decay,
    }
    new_eta = hyper.lr / (1 + hyper.lambd * hyper.lr * step) ** hyper.alpha
    new_mu = 1 / python_max(1.0, step - hyper.t0)
    return c, {"eta": new_eta, "mu": new_mu}


def update(p: jax.Array, g: jax.Array, slot: ASGDState, c: SimpleNamespace) -> tuple[jax.Array, ASGDState]:
    g = add_weight_decay(g, p, c.weight_decay)
    p = rounded(p * c.decay) + c.neg_eta * g
    return p, ASGDState(jnp.where(c.mu == 1, p, slot.ax + rounded((p - slot.ax) * c.mu)))


def check(options: Mapping[str, Any]) -> None:
    check_lr(options["lr"])
    check_at_least_0("lambd value", options["lambd"])  # so since torch 2.15
    check_at_least_0("alpha value", options["alpha"])
    check_at_least_0("weight_decay value", options["weight_decay"])


ASGD = Rule(
    "asgd",
    ASGDState,
    scalars,
    update,
    check=check,
    live=("lr", "lambd", "alpha", "t0", "weight_decay"),
    scalar_state={"eta": np.float32(0), "mu": np.float32(1)},
    elementwise=True,
    torch="ASGD",
)


@factory(ASGD)
def asgd(
    lr: Scalar = 1e-2,
    lambd: Scalar = 1e-4,
    alpha: Scalar = 0.75,
    t0: Scalar = 1e6,
    weight_decay: Scalar = 0.0,
    *,
    maximize: bool = False,
    param_groups: Sequence[ParamGroup] = (),
) -> Optimizer:
    r"""Averaged stochastic gradient descent: torch.optim.ASGD.

    .. math::
      g_t &= \nabla f(\theta_{t-1}) + \lambda \theta_{t-1} \\
      \theta_t &= (1 - \ell \eta_{t-1}) \theta_{t-1} - \eta_{t-1} g_t \\
      a_t &= a_{t-1} + \mu_{t-1} (\theta_t - a_{t-1}) \\
      \eta_t &= \gamma / (1 + \ell \gamma t)^\alpha, \quad \eta_0 = \gamma \\
      \mu_t &= 1 / \max(1, t - t_0), \quad \mu_0 = 1

    The average :math:`a_t` (`ax` in the state) is kept, never used. :math:`\eta` is that of the step before, so a
    change of `lr` takes effect one step late; the first is the `lr` of the parameter's first step, which a warm-up may
    have changed. :math:`\eta` and :math:`\mu`, scalars a parameter, are rounded to float32 as in torch, for float64
    parameters too.

    Args:
      lr: :math:`\gamma`, learning rate; live.
      lambd: :math:`\ell`, decay of the parameter and of the learning rate; live.
      alpha: :math:`\alpha`, power of the learning rate's decay; live.
      t0: :math:`t_0`, the step at which averaging starts; live.
      weight_decay: :math:`\lambda`, L2 penalty; live.
      maximize: ascend; static.
      param_groups: parameters with options of their own.

    Returns:
      An `Optimizer`.

    Raises:
      ValueError: an option out of range, in torch's words.

    Example:
      >>> import jax.numpy as jnp, jaxopt_port as optim
      >>> optimizer = optim.asgd(lr=0.1)
      >>> params = jnp.array([1.0])
      >>> params, state = optimizer.step(jnp.array([2.0]), optimizer.init(params), params)
      >>> params, state.slots.ax
      (Array([0.79999], dtype=float32), Array([0.79999], dtype=float32))

    Source: torch/optim/asgd.py; Polyak and Juditsky, Acceleration of Stochastic Approximation by Averaging, 1992.
    """
    ...

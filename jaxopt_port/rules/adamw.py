r"""AdamW: Adam with decoupled weight decay."""

from collections.abc import Sequence

from jaxopt_port.factory import factory
from jaxopt_port.optimizer import Optimizer
from jaxopt_port.param_groups import ParamGroup
from jaxopt_port.rules.adam import ADAM
from jaxopt_port.scalars import Scalar

ADAMW = ADAM._replace(name="adamw", torch="AdamW")


@factory(ADAMW, decoupled_weight_decay=True)
def adamw(
    lr: Scalar = 1e-3,
    betas: tuple[Scalar, Scalar] = (0.9, 0.999),
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 1e-2,
    amsgrad: bool = False,
    *,
    maximize: bool = False,
    param_groups: Sequence[ParamGroup] = (),
) -> Optimizer:
    r"""AdamW: torch.optim.AdamW, which is Adam with `decoupled_weight_decay`.

    .. math::
      \theta_t = (1 - \gamma \lambda) \theta_{t-1} - \frac{\gamma}{1 - \beta_1^t}
                 \frac{m_t}{\sqrt{v_t} / \sqrt{1 - \beta_2^t} + \epsilon}

    with Adam's moments :math:`m` and :math:`v` of the gradient alone.

    Args:
      lr: :math:`\gamma`, learning rate; live.
      betas: :math:`\beta_1, \beta_2`, decay of the two moments, in [0, 1); live.
      eps: :math:`\epsilon`, added to the denominator; live.
      weight_decay: :math:`\lambda`; live.
      amsgrad: keep the largest second moment; static, decides whether `max_exp_avg_sq` exists.
      maximize: ascend; static.
      param_groups: parameters with options of their own.

    Returns:
      An `Optimizer`.

    Raises:
      ValueError: an option out of range, in torch's words.

    Example:
      No decay for biases and scales:

      >>> import jax.numpy as jnp, jaxopt_port as optim
      >>> optimizer = optim.adamw(
      ...     lr=3e-4, weight_decay=0.1, param_groups=[optim.ParamGroup(r".*(bias|scale)", weight_decay=0.0)])
      >>> state = optimizer.init({"dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}})
      >>> [group["weight_decay"] for group in optim.get_hyper(state)]
      [0.1, 0.0]

    Source: torch/optim/adamw.py; Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019.
    """
    ...

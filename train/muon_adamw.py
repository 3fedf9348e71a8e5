"""Muon for the matrices of a network and AdamW for the rest, as torch's users pair them."""

from typing import Any, NamedTuple

import jax

from jaxopt_port import Optimizer, OptState, ParamGroup, adamw, muon
from jaxopt_port.optimizer import Algorithm


class MuonAdamWState(NamedTuple):
    """The state of `muon_adamw`: one for each."""

    muon: OptState
    adamw: OptState


def muon_adamw(
    lr: float = 1e-3,
    weight_decay: float = 0.1,
    momentum: float = 0.95,
    nesterov: bool = True,
    ns_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315),
    eps: float = 1e-7,
    ns_steps: int = 5,
    adjust_lr_fn: str | None = None,
    adamw_lr: float = 1e-3,
    adamw_betas: tuple[float, float] = (0.9, 0.999),
    adamw_eps: float = 1e-8,
    adamw_weight_decay: float = 0.01,
) -> Optimizer:
    """Two optimizers, `muon` for what has two dimensions and `adamw` for the rest: each with torch's own defaults.

    Args:
      lr: Muon's, as are the options up to `adjust_lr_fn`.
      weight_decay: Muon's.
      momentum: Muon's.
      nesterov: Muon's.
      ns_coefficients: Muon's.
      eps: Muon's.
      ns_steps: Muon's.
      adjust_lr_fn: Muon's.
      adamw_lr: AdamW's learning rate.
      adamw_betas: AdamW's betas.
      adamw_eps: AdamW's eps.
      adamw_weight_decay: AdamW's weight decay.

    Returns:
      An `Optimizer`, whose state is a `MuonAdamWState`.
    """
    frozen = [ParamGroup(lambda path, leaf: leaf.ndim != 2, frozen=True)]
    first = muon(
        lr, weight_decay, momentum, nesterov, ns_coefficients, eps, ns_steps, adjust_lr_fn, param_groups=frozen
    )
    frozen = [ParamGroup(lambda path, leaf: leaf.ndim == 2, frozen=True)]
    second = adamw(adamw_lr, betas=adamw_betas, eps=adamw_eps, weight_decay=adamw_weight_decay, param_groups=frozen)
    both = _Both(first, second)
    return Optimizer(both.init, both.update)


class _Both(Algorithm):
    def __init__(self, first: Optimizer, second: Optimizer):
        self.first, self.second = first, second

    def init(self, params: Any) -> Any:
        return MuonAdamWState(self.first.init(params), self.second.init(params))

    def step(self, grads: Any, state: Any, params: Any) -> Any:
        params, first = self.first.step(grads, state.muon, params)
        params, second = self.second.step(grads, state.adamw, params)
        return params, MuonAdamWState(first, second)

    def update(self, updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        new, state = self.step(updates, state, params)
        return jax.tree.map(lambda n, o: n - o, new, params), state

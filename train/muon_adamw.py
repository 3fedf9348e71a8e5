"""Muon for the matrices of a network and AdamW for the rest, as torch's users pair them."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax

from jaxopt_port import Optimizer, OptState, ParamGroup, adamw, muon
from jaxopt_port.optimizer import Algorithm

ADAMW = "adamw_"  # what AdamW's options begin with
IN_OUT = (0, 1)  # the axes of a Flax kernel, where torch's weight has [out, in]
FIXED = ("weight_dimension_numbers", "param_groups")

F = TypeVar("F", bound=Callable[..., Optimizer])


class MuonAdamWState(NamedTuple):
    """The state of `muon_adamw`: one for each."""

    muon: OptState
    adamw: OptState


def _with_options_of_both(function: F) -> F:
    """Decorator: its signature has Muon's options, and AdamW's with `adamw_` before their names."""
    of_muon, of_adamw = (
        [one for one in inspect.signature(factory).parameters.values() if one.name not in FIXED]
        for factory in (muon, adamw)
    )
    both = [*of_muon, *(one.replace(name=ADAMW + one.name) for one in of_adamw)]
    keywords = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in both]
    setattr(function, "__signature__", inspect.Signature(keywords))  # noqa: B010
    return function


@_with_options_of_both
def muon_adamw(**options: Any) -> Optimizer:
    """Two optimizers, `muon` for what has two dimensions and `adamw` for the rest: each with torch's own defaults.

    Args:
      **options: Muon's, such as lr; and AdamW's with `adamw_` before their names, such as adamw_lr.

    Returns:
      An `Optimizer`, whose state is a `MuonAdamWState`.
    """
    of_adamw = {name.removeprefix(ADAMW): value for name, value in options.items() if name.startswith(ADAMW)}
    of_muon = {name: value for name, value in options.items() if not name.startswith(ADAMW)}
    matrices = ParamGroup(lambda path, leaf: leaf.ndim == 2, frozen=True)
    rest = ParamGroup(lambda path, leaf: leaf.ndim != 2, frozen=True)
    first = muon(**of_muon, weight_dimension_numbers=IN_OUT, param_groups=[rest])
    both = _Both(first, adamw(**of_adamw, param_groups=[matrices]))
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

"""torch.optim for JAX: pure init/update functions over pytrees that give PyTorch's numbers.

Example:
  >>> import jax, jax.numpy as jnp, jaxopt_port as optim
  >>> params = {"w": jnp.array([3.0, -2.0])}
  >>> optimizer = optim.adam(lr=0.1)                                     # optim.Adam(model.parameters(), lr=0.1)
  >>> state = optimizer.init(params)
  >>> loss, grads = jax.value_and_grad(lambda p: (p["w"] ** 2).sum())(params)      # loss.backward()
  >>> params, state = optimizer.step(grads, state, params)               # optimizer.step()
  >>> params["w"]
  Array([ 2.9, -1.9], dtype=float32)
"""

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jaxopt_port.closure.lbfgs import lbfgs as lbfgs
from jaxopt_port.closure.minimize import Minimized as Minimized
from jaxopt_port.closure.minimize import minimize as minimize
from jaxopt_port.closure.nonlinear_cg import nonlinear_cg as nonlinear_cg
from jaxopt_port.closure.stop import Stop as Stop
from jaxopt_port.exact import exact as exact
from jaxopt_port.factory import factory as factory
from jaxopt_port.flat import flat as flat
from jaxopt_port.flat import flatten_state as flatten_state
from jaxopt_port.flat import unflatten_state as unflatten_state
from jaxopt_port.gradients import EveryKState as EveryKState
from jaxopt_port.gradients import GradScaler as GradScaler
from jaxopt_port.gradients import GradScalerState as GradScalerState
from jaxopt_port.gradients import accumulate_grad as accumulate_grad
from jaxopt_port.gradients import clip_grad_norm as clip_grad_norm
from jaxopt_port.gradients import clip_grad_value as clip_grad_value
from jaxopt_port.gradients import clip_grads_with_norm as clip_grads_with_norm
from jaxopt_port.gradients import every_k as every_k
from jaxopt_port.gradients import get_total_norm as get_total_norm
from jaxopt_port.gradients import zero_grad as zero_grad
from jaxopt_port.hyper import find_state as find_state
from jaxopt_port.hyper import get_hyper as get_hyper
from jaxopt_port.hyper import replace_state as replace_state
from jaxopt_port.hyper import set_hyper as set_hyper
from jaxopt_port.lift import lift as lift
from jaxopt_port.number import Number as Number
from jaxopt_port.optimizer import Optimizer as Optimizer
from jaxopt_port.optimizer import OptState as OptState
from jaxopt_port.optimizer import add_param_group as add_param_group
from jaxopt_port.optimizer import drop_frozen as drop_frozen
from jaxopt_port.param_groups import ParamGroup as ParamGroup
from jaxopt_port.rule import Rule as Rule
from jaxopt_port.rules.adadelta import adadelta as adadelta
from jaxopt_port.rules.adafactor import adafactor as adafactor
from jaxopt_port.rules.adagrad import adagrad as adagrad
from jaxopt_port.rules.adam import adam as adam
from jaxopt_port.rules.adamax import adamax as adamax
from jaxopt_port.rules.adamw import adamw as adamw
from jaxopt_port.rules.asgd import asgd as asgd
from jaxopt_port.rules.muon import muon as muon
from jaxopt_port.rules.nadam import nadam as nadam
from jaxopt_port.rules.radam import radam as radam
from jaxopt_port.rules.rmsprop import rmsprop as rmsprop
from jaxopt_port.rules.rprop import rprop as rprop
from jaxopt_port.rules.sgd import sgd as sgd
from jaxopt_port.rules.sparse_adam import sparse_adam as sparse_adam

if TYPE_CHECKING:
    from jaxopt_port import compare as compare
    from jaxopt_port import lr_scheduler as lr_scheduler
    from jaxopt_port import swa_utils as swa_utils
    from jaxopt_port import torch_interop as torch_interop

__version__ = "0.1.0"

optimizers: dict[str, Callable[..., Optimizer]] = {
    factory.__name__: factory
    for factory in (
        adadelta,
        adafactor,
        adagrad,
        adam,
        adamax,
        adamw,
        asgd,
        lbfgs,
        muon,
        nadam,
        nonlinear_cg,
        radam,
        rmsprop,
        rprop,
        sgd,
        sparse_adam,
    )
}

MODULES = ("compare", "lr_scheduler", "swa_utils", "torch_interop")  # imported when they are asked for

__all__ = [
    "EveryKState",
    "GradScaler",
    "GradScalerState",
    "Minimized",
    "Number",
    "OptState",
    "Optimizer",
    "ParamGroup",
    "Rule",
    "Stop",
    "accumulate_grad",
    "adadelta",
    "adafactor",
    "adagrad",
    "adam",
    "adamax",
    "adamw",
    "add_param_group",
    "asgd",
    "clip_grad_norm",
    "clip_grad_value",
    "clip_grads_with_norm",
    "compare",
    "drop_frozen",
    "every_k",
    "exact",
    "factory",
    "find_state",
    "flat",
    "flatten_state",
    "get_hyper",
    "get_total_norm",
    "lbfgs",
    "lift",
    "lr_scheduler",
    "minimize",
    "muon",
    "nadam",
    "nonlinear_cg",
    "optimizers",
    "radam",
    "replace_state",
    "rmsprop",
    "rprop",
    "set_hyper",
    "sgd",
    "sparse_adam",
    "swa_utils",
    "torch_interop",
    "unflatten_state",
    "zero_grad",
]


def __getattr__(name: str) -> Any:
    if name in MODULES:
        return importlib.import_module(f"jaxopt_port.{name}")
    if "sched" in name.lower() or name == "utils":
        raise AttributeError(f"module 'jaxopt_port' has no attribute {name!r}: see jaxopt_port.lr_scheduler, swa_utils")
    ours = {rule.lower().replace("_", ""): rule for rule in optimizers}.get(name.lower())
    if ours is not None:
        raise AttributeError(
            f"module 'jaxopt_port' has no attribute {name!r}: torch's {name} is jaxopt_port.{ours}, a function without "
            "the parameters, which go to init(params)"
        )
    if name.endswith("_") and name[:-1] in __all__:
        raise AttributeError(f"module 'jaxopt_port' has no attribute {name!r}: it is {name[:-1]}, which returns them")
    hint = f": the optimizers are {', '.join(optimizers)}" if name[:1].isupper() else ""
    raise AttributeError(f"module 'jaxopt_port' has no attribute {name!r}{hint}")


def __dir__() -> list[str]:
    return __all__

"""torch.optim.lr_scheduler as pure functions.

Example:
  >>> import jaxopt_port as optim
  >>> optimizer = optim.sgd(lr=0.1, momentum=0.9)
  >>> scheduler = optim.lr_scheduler.one_cycle_lr(max_lr=0.5, total_steps=100)
  >>> sched, state = scheduler.init(optimizer.init({}))     # OneCycleLR(optimizer, max_lr=0.5, total_steps=100)
  >>> sched, state = scheduler.step(sched, state)           # scheduler.step()
  >>> [round(lr, 5) for lr in scheduler.get_last_lr(sched)]
  [0.02141]
"""

from collections.abc import Callable
from typing import Any

from jaxopt_port.lr_scheduler.composite import chained_scheduler as chained_scheduler
from jaxopt_port.lr_scheduler.composite import sequential_lr as sequential_lr
from jaxopt_port.lr_scheduler.cosine import cosine_annealing_lr as cosine_annealing_lr
from jaxopt_port.lr_scheduler.cosine import cosine_annealing_warm_restarts as cosine_annealing_warm_restarts
from jaxopt_port.lr_scheduler.cosine import swalr as swalr
from jaxopt_port.lr_scheduler.cyclic import cyclic_lr as cyclic_lr
from jaxopt_port.lr_scheduler.cyclic import one_cycle_lr as one_cycle_lr
from jaxopt_port.lr_scheduler.function import lambda_lr as lambda_lr
from jaxopt_port.lr_scheduler.function import multiplicative_lr as multiplicative_lr
from jaxopt_port.lr_scheduler.function import tabulate as tabulate
from jaxopt_port.lr_scheduler.optax_schedule import as_schedule as as_schedule
from jaxopt_port.lr_scheduler.optax_schedule import rates as rates
from jaxopt_port.lr_scheduler.plateau import reduce_lr_on_plateau as reduce_lr_on_plateau
from jaxopt_port.lr_scheduler.scheduler import Scheduler as Scheduler
from jaxopt_port.lr_scheduler.step import exponential_lr as exponential_lr
from jaxopt_port.lr_scheduler.step import multi_step_lr as multi_step_lr
from jaxopt_port.lr_scheduler.step import step_lr as step_lr
from jaxopt_port.lr_scheduler.warm_up import constant_lr as constant_lr
from jaxopt_port.lr_scheduler.warm_up import linear_lr as linear_lr
from jaxopt_port.lr_scheduler.warm_up import polynomial_lr as polynomial_lr

schedulers: dict[str, Callable[..., Scheduler]] = {
    factory.__name__: factory
    for factory in (
        chained_scheduler,
        constant_lr,
        cosine_annealing_lr,
        cosine_annealing_warm_restarts,
        cyclic_lr,
        exponential_lr,
        lambda_lr,
        linear_lr,
        multi_step_lr,
        multiplicative_lr,
        one_cycle_lr,
        polynomial_lr,
        reduce_lr_on_plateau,
        sequential_lr,
        step_lr,
        swalr,
    )
}


def __getattr__(name: str) -> Any:
    ours = {each.replace("_", ""): each for each in schedulers}.get(name.lower())
    hint = "" if ours is None else f": torch's {name} is {ours}, without the optimizer, whose state goes to init(state)"
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")

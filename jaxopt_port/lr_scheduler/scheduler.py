"""Scheduler, and what all of them share: torch's counters, the base rates, the groups, the initial step.

Inside, a scheduler is written as torch's is, over two things it may change: `s`, torch's attributes by torch's names,
and `groups`, torch's `optimizer.param_groups`. Both are copies with numbers in them (`number.py`) that `Scheduler`
makes of the states before a call and turns into new states after it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxopt_port.hyper import find_state, in_place_of, replace_state
from jaxopt_port.lr_scheduler.number import Double, Number, numbers
from jaxopt_port.number import is_number, to_float64
from jaxopt_port.optimizer import OptState
from jaxopt_port.scalars import Scalar, float64, is_known

T = TypeVar("T")
P = ParamSpec("P")
Sched = dict[str, Any]
Groups = list[dict[str, Any]]

SCHEDULED = ("lr", "momentum", "betas")
GROUP_ORDER = " (group 0 is the default group, then come the ParamGroups in order)"


@dataclass(frozen=True, eq=False, repr=False)
class Scheduler:
    """A learning rate scheduler, as pure functions.

    Called from Python it computes with Python's numbers, as torch does, and so with torch's bits; that reads the state,
    and so waits for the step that computes it. Under jit (`jax.jit(scheduler.step)`, or inside a training step or a
    scan) it reads nothing and waits for nothing, and on CPU has the same bits, but for rates below 2.3e-308, which XLA
    takes for 0.

    The state `sched` is a dict of arrays by torch's names (`last_epoch`, `base_lrs`, `_last_lr`, ...). In
    `sched["param_groups"]` is what torch's scheduler adds to the optimizer's groups, `initial_lr` for example.

    Args:
      name: torch's class.
      options: torch's attributes that do not change, by torch's names.
      construct: `groups -> s`, torch's constructor.
      initial_step: `(s, groups)`, torch's `_initial_step`.
      advance: `(s, groups, epoch, metric)`, torch's `step`.
      enter: `(s, groups)`, what SequentialLR does to a scheduler whose turn it is: torch's `_update_lr(0)`.
      undo: `(s)`, how SequentialLR takes back the initial step.
      by_epoch: the rates that `step_to` gives depend on the epoch alone.
    """

    name: str
    options: Mapping[str, Any]
    construct: Callable[[Groups], Sched]
    initial_step: Callable[[Sched, Groups], None]
    advance: Callable[[Sched, Groups, Number | None, Number | None], None]
    enter: Callable[[Sched, Groups], None]
    undo: Callable[[Sched], None]
    by_epoch: bool = False

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{name}={value!r}' for name, value in self.options.items())})"

    def init(self, state: T, after: Sched | None = None) -> tuple[Sched, T]:
        """torch's constructor, which sets the rates of epoch 0.

        Args:
          state: an OptState, or a pytree with one inside (a chain's state, a TrainState).
          after: the state of a scheduler made before on the same optimizer. torch's share `initial_lr`, and what else
            they add to the groups. Without it the rates in `state` are the initial ones.

        Returns:
          `(sched, state)`.

        Raises:
          TypeError: the optimizer in place of its state; a state that lost its float64.
          ValueError: an option that does not fit the optimizer's groups, in torch's words.
          KeyError: `last_epoch` is given, and the groups have no `initial_lr` to resume from.
        """
        optimizer = find_state(state)
        live = _scheduled(optimizer)
        _check(optimizer=live)
        added = [{} for _ in live] if after is None else after["param_groups"]
        with float64():
            before = numbers((live, added))
            groups = _join(*before)
            s = self.construct(groups)
            now, s["param_groups"] = _split(groups)
            return _arrays(s), replace_state(state, _with(optimizer, _arrays(now, before[0], live)))

    def step(self, sched: Sched, state: T, metric: Scalar | None = None) -> tuple[Sched, T]:
        """torch's `scheduler.step()`, in the chainable form: from the last rate to the next.

        Args:
          sched: what `init` or the last step returned.
          state: an OptState, or a pytree with one inside.
          metric: what `reduce_lr_on_plateau` looks at.

        Returns:
          `(sched, state)`.

        Raises:
          TypeError: a metric that is missing, or not wanted; a state that lost its float64.
          ValueError: stacked states, as `vmap` makes them: call this inside `vmap` too.
        """
        return self._step(sched, state, None, metric)

    def step_to(self, sched: Sched, state: T, epoch: Scalar, metric: Scalar | None = None) -> tuple[Sched, T]:
        """torch's `scheduler.step(epoch)`: the closed form where there is one. It differs in the last bits.

        Args:
          sched: what `init` or the last step returned.
          state: an OptState, or a pytree with one inside.
          epoch: the epoch to be at, an integer; for `cosine_annealing_warm_restarts` it may lie between two.
          metric: what `reduce_lr_on_plateau` looks at.

        Returns:
          `(sched, state)`.

        Raises:
          TypeError: `sequential_lr` and `chained_scheduler`, which take no epoch; all that `step` raises.

        Example:
          >>> import jaxopt_port as optim
          >>> scheduler = optim.lr_scheduler.exponential_lr(gamma=0.5)
          >>> sched, state = scheduler.init(optim.sgd(lr=1.0).init({}))
          >>> sched, state = scheduler.step(sched, state)
          >>> optim.get_hyper(state)[0]["lr"]
          0.5
          >>> sched, state = scheduler.step_to(sched, state, 3)
          >>> scheduler.get_last_lr(sched)
          [0.125]
        """
        return self._step(sched, state, epoch, metric)

    def get_last_lr(self, sched: Sched) -> list[Any]:
        """torch's `scheduler.get_last_lr()`.

        Args:
          sched: what `init` or the last step returned.

        Returns:
          The learning rate of each group, as Python floats (of the states that `vmap` makes, lists of them); in a
          trace as float64 arrays.
        """
        return [np.asarray(x).tolist() if is_known(x) else x for x in sched["_last_lr"]]

    def _step(self, sched: Sched, state: T, epoch: Any, metric: Any) -> tuple[Sched, T]:
        optimizer = find_state(state)
        live = _scheduled(optimizer)
        _check(optimizer=live, scheduler=sched)
        with float64():
            *before, epoch, metric = numbers((live, sched, epoch, metric))
            now, s = jax.tree.map(lambda x: x, before)
            groups = _join(now, s.pop("param_groups"))
            self.advance(s, groups, epoch, metric)
            now, s["param_groups"] = _split(groups)
            live, sched = _arrays((now, s), before, (live, sched))
            return sched, replace_state(state, _with(optimizer, live))


def factory(make: Callable[P, Scheduler]) -> Callable[P, Scheduler]:
    """A factory that says where the optimizer goes, torch's first argument, whatever it would have been bound to."""

    @wraps(make)
    def checked(*args: P.args, **options: P.kwargs) -> Scheduler:
        if any(isinstance(x, optax.GradientTransformation) for x in (*args, *options.values())):
            raise TypeError(
                f"{make.__name__} got an optimizer: the scheduler gets its state, scheduler.init(state), and here the "
                "other arguments only"
            )
        return make(*args, **options)

    return checked


def scheduler(
    name: str,
    get_lr: Callable[[Sched, Groups], list[Number]],
    closed_form: Callable[[Sched, Groups], list[Number]] | None = None,
    *,
    options: Mapping[str, Any],
    last_epoch: int,
    setup: Callable[[Groups], Sched] = lambda groups: {},
    first: Callable[[Sched, Groups], list[Number]] | None = None,
    walk: Callable[[Sched, Number | None], None] | None = None,
    by_epoch: bool = False,
) -> Scheduler:
    """torch's LRScheduler: what a scheduler needs beside its formulas.

    Args:
      name: torch's class.
      get_lr: `(s, groups) -> rates`, the chainable form.
      closed_form: `(s, groups) -> rates`, torch's `_get_closed_form_lr`.
      options: torch's attributes that do not change.
      last_epoch: torch's argument.
      setup: `groups -> s`, what the constructor does before it reads the base rates.
      first: what the constructor's initial step takes in place of `get_lr`: torch's `_is_initial`.
      walk: `(s, epoch)`, how the counters move where it is not as in torch's LRScheduler.
      by_epoch: `get_lr` depends on the epoch alone. A closed form always does.
    """

    def construct(groups: Groups) -> Sched:
        s = setup(groups)
        for i, group in enumerate(groups):
            if last_epoch == -1:
                group.setdefault("initial_lr", group["lr"])
            elif "initial_lr" not in group:
                raise KeyError(
                    f"param 'initial_lr' is not specified in param_groups[{i}] when resuming scheduler with "
                    "last_epoch >= 0: give the scheduler state that has it, init(state, after=sched)"
                )
        s = {"base_lrs": [group["initial_lr"] for group in groups], "last_epoch": last_epoch, **s}
        initial_step(s, groups)
        return s

    def initial_step(s: Sched, groups: Groups) -> None:
        s["_step_count"] = 0
        move(s, groups, None, first or get_lr)

    def advance(s: Sched, groups: Groups, epoch: Number | None, metric: Number | None) -> None:
        if metric is not None:
            raise TypeError(f"{name} takes no metric; to go to an epoch call step_to(sched, state, epoch)")
        move(s, groups, epoch, get_lr if epoch is None else closed_form or get_lr)

    def move(s: Sched, groups: Groups, epoch: Number | None, form: Callable[[Sched, Groups], list[Number]]) -> None:
        if walk is None:
            s["_step_count"] += 1
            s["last_epoch"] = s["last_epoch"] + 1 if epoch is None else epoch
        else:
            walk(s, epoch)
        try:
            set_lrs(s, groups, form(s, groups))
        except ValueError as error:
            if len(s["base_lrs"]) == len(groups):
                raise
            raise ValueError(
                f"{name} was made for {len(s['base_lrs'])} parameter groups, the optimizer has {len(groups)}: after "
                "add_param_group make the scheduler anew"
            ) from error

    def enter(s: Sched, groups: Groups) -> None:
        s["last_epoch"] = 0
        set_lrs(s, groups, (closed_form or get_lr)(s, groups))

    def set_lrs(s: Sched, groups: Groups, new: list[Number]) -> None:
        for group, lr in zip(groups, new, strict=True):
            group["lr"] = lr
        s["_last_lr"] = lrs(groups)

    def undo(s: Sched) -> None:
        s["last_epoch"] -= 1

    by_epoch = by_epoch or closed_form is not None
    return Scheduler(name, options, construct, initial_step, advance, enter, undo, by_epoch)


def lrs(groups: Groups) -> list[Number]:
    """The learning rate of each group."""
    return [group["lr"] for group in groups]


def unchanged(s: Sched, groups: Groups) -> list[Number]:
    """The rates that the groups have, as a `first`."""
    return lrs(groups)


def per_group(name: str, groups: Groups, value: Any) -> list[float]:
    """torch's _format_param: a number for each group, or the list of them that was given."""
    if not isinstance(value, list | tuple):
        return [float(value)] * len(groups)
    if len(value) != len(groups):
        raise ValueError(
            f"{name} must have the same length as optimizer.param_groups. "
            f"{name} has {len(value)} values, param_groups has {len(groups)}.{GROUP_ORDER}"
        )
    return list(map(float, value))


def _scheduled(optimizer: OptState) -> list[dict[str, Any]]:
    """What schedulers read and set, without the boxes that nnx.Optimizer puts around every array of its state."""
    return [
        {
            name: to_float64(value) if is_number(value) else list(map(to_float64, value))
            for name, value in group.items()
            if name in SCHEDULED
        }
        for group in optimizer.param_groups
    ]


def _with(optimizer: OptState, live: Groups) -> OptState:
    """The optimizer's state with these rates and momenta."""
    new = [
        {
            **group,
            **{name: jax.tree.map(in_place_of, group[name], _like(values[name]), is_leaf=is_number) for name in values},
        }
        for group, values in zip(optimizer.param_groups, live, strict=True)
    ]
    return optimizer._replace(param_groups=tuple(new))


def _like(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _join(live: Groups, added: Groups) -> Groups:
    """The groups as torch has them; one that add_param_group has made since has nothing added yet."""
    more = [{}] * (len(live) - len(added))
    return [{**one, **other} for one, other in zip(live, [*added, *more], strict=True)]


def _split(groups: Groups) -> tuple[Groups, Groups]:
    """What belongs into the optimizer's state, and what torch's schedulers add to the groups."""
    live = [{name: value for name, value in group.items() if name in SCHEDULED} for group in groups]
    return live, [{name: value for name, value in group.items() if name not in SCHEDULED} for group in groups]


def _arrays(new: Any, before: Any = None, old: Any = None) -> Any:
    """The tree `new` of numbers as arrays: those of `old` where a number is still that of `before`."""
    leaves, treedef = jax.tree.flatten(new)
    if treedef != jax.tree.structure(old):  # add_param_group has made another group
        before = old = None
    arrays: list[Any] = [None] * len(leaves) if old is None else jax.tree.leaves(old)
    unchanged = [None] * len(leaves) if old is None else jax.tree.leaves(before)
    moved = [i for i, (x, was) in enumerate(zip(leaves, unchanged, strict=True)) if x is not was]
    made = jax.tree.map(jnp.asarray, [_array(leaves[i], arrays[i]) for i in moved])
    for i, x in zip(moved, made, strict=True):
        arrays[i] = x
    return treedef.unflatten(arrays)


def _array(x: Number, like: Any) -> Any:
    dtype = np.dtype((np.int32 if isinstance(x, int) else np.float64) if like is None else like.dtype)
    if isinstance(x, Double):
        return x.value.astype(dtype)
    if dtype.kind == "i" and x != int(x):
        raise TypeError(f"the epoch has to be an integer, not {x}")
    return dtype.type(x)


def _check(**states: Any) -> None:
    for owner, state in states.items():
        for path, x in jax.tree_util.tree_flatten_with_path(state)[0]:
            lost = jnp.issubdtype(x.dtype, jnp.floating) and x.dtype != jnp.float64
            if not lost and x.size == 1:
                continue
            what = f"{jax.tree_util.keystr(path)} of the {owner}'s state is {x.dtype}{list(x.shape)}"
            if lost:
                raise TypeError(
                    f"{what}, not float64. Bring a state back from a file or from device_get as "
                    "jaxopt_port.restore's docstring has it."
                )
            raise ValueError(f"{what}, not one number. For states that vmap made, call the scheduler inside jax.vmap")

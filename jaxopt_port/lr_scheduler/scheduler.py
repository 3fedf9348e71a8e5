"""Scheduler, and LRScheduler: what torch's schedulers share beside their formulas.

Inside, a scheduler is written as torch's is, over two things it may change: `s`, torch's attributes by torch's names,
and `groups`, torch's `optimizer.param_groups`. Both are copies with numbers in them (`double.py`) that `Scheduler`
makes of the states before a call and turns into new states after it (`states.py`).
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import wraps
from typing import Any, ClassVar, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxopt_port.hyper import find_state, replace_state
from jaxopt_port.lr_scheduler.double import Float, is_one_number, python_numbers
from jaxopt_port.lr_scheduler.states import (
    FROZEN,
    Groups,
    Sched,
    check,
    encoded,
    join,
    scheduled,
    split,
    with_scheduled,
)
from jaxopt_port.number import Number, is_number, to_float64, to_numpy
from jaxopt_port.optimizer import described
from jaxopt_port.scalars import Scalar, float64, is_known

T = TypeVar("T")
P = ParamSpec("P")


class Scheduler:
    """A learning rate scheduler, as pure functions.

    Called from Python it computes with Python's numbers, as torch does, and so with torch's bits; that reads the state,
    and so waits for the step that computes it. Under jit (`jax.jit(scheduler.step)`, or inside a training step or a
    scan) it reads nothing and waits for nothing. On a CPU it has the same bits there too. On a GPU it may differ in the
    last: XLA's float64 `cos` and `pow` are an ulp from the C library's in 15 % and 26 % of arguments.

    The state `sched` is a dict by torch's names (`last_epoch`, `base_lrs`, `_last_lr`, ...), with an int32 for an
    integer and a `Number` for all else. `sched["param_groups"]` is what torch's scheduler adds to the optimizer's
    groups, `initial_lr` for example, and `sched["scheduler"]` says whose state it is.

    A list in place of a number or function has one for each of the optimizer's groups; those that are frozen may be
    left out, all of them. Group 0 counts also where it is empty.

    Each scheduler is a frozen dataclass of torch's arguments, with torch's methods: over `s`, the state with numbers in
    it, and `groups`, the optimizer's.

    Example:
      >>> import jaxopt_port as optim
      >>> scheduler = optim.lr_scheduler.step_lr(step_size=1)
      >>> sched, state = scheduler.init(optim.sgd(lr=1.0).init({}))
      >>> for epoch in range(2):
      ...     sched, state = scheduler.step(sched, state)
      >>> scheduler.get_last_lr(sched), optim.get_hyper(state)[0]["lr"]
      ([0.010000000000000002], 0.010000000000000002)
    """

    by_epoch: ClassVar[bool] = False
    """Whether the rates that `step_to` gives depend on the epoch alone."""
    between_epochs: ClassVar[bool] = False
    """Whether `step_to` takes an epoch between two."""

    def __repr__(self) -> str:
        arguments = {each.name: getattr(self, each.name) for each in fields(self)}  # pyright: ignore[reportArgumentType]
        if arguments.get("last_epoch") == -1:
            del arguments["last_epoch"]
        return f"{self.name}({', '.join(f'{name}={value!r}' for name, value in arguments.items())})"

    @property
    def name(self) -> str:
        """torch's class."""
        return type(self).__name__

    @property
    def options(self) -> Mapping[str, Any]:
        """torch's attributes that do not change, by torch's names."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name != "last_epoch"}  # pyright: ignore[reportArgumentType]

    def init(self, state: T, after: Sched | None = None) -> tuple[Sched, T]:
        """torch's constructor, which sets the rates of epoch 0.

        Args:
          state: an OptState, or a pytree with one inside (a chain's state, a TrainState).
          after: the state of a scheduler made before on the same optimizer. torch's share `initial_lr`, and what else
            they add to the groups. Without it the rates in `state` are the initial ones. Of torch's, OneCycleLR and
            SWALR read what they share at every step: where this scheduler changes it, and the one before is to go on
            as torch's does, give it `{**after, "param_groups": sched["param_groups"]}`.

        Returns:
          `(sched, state)`.

        Raises:
          TypeError: the optimizer in place of its state; `after` is no scheduler's state.
          ValueError: an option that does not fit the optimizer's groups, in torch's words.
          KeyError: `last_epoch` is given, and the groups have no `initial_lr` to resume from.
        """
        optimizer = find_state(state)
        live = scheduled(optimizer)
        if after is not None and not (isinstance(after, Mapping) and "param_groups" in after):
            raise TypeError(
                f"after must be the state of another scheduler, which its init returned, not {described(after)}"
            )
        added = [{} for _ in live] if after is None else after["param_groups"]
        check(optimizer=live, scheduler=added)
        with float64():
            before = python_numbers((live, added))
            groups = join(optimizer, *before)
            s = self.construct(groups)
            now, s["param_groups"] = split(groups)
            sched = {**encoded(s), "scheduler": {self._whose(): {}}}
            return sched, replace_state(state, with_scheduled(optimizer, encoded(now, before[0], live)))

    def step(self, sched: Sched, state: T, metric: Scalar | None = None) -> tuple[Sched, T]:
        """torch's `scheduler.step()`, in the chainable form: from the last rate to the next.

        Args:
          sched: what `init` or the last step returned.
          state: an OptState, or a pytree with one inside.
          metric: what `reduce_lr_on_plateau` looks at.

        Returns:
          `(sched, state)`.

        Raises:
          TypeError: a metric that is missing, or not wanted; a state that is not this scheduler's.
          ValueError: stacked states, as `vmap` makes them: call this inside `vmap` too.
        """
        return self._step(sched, state, None, metric)

    def step_to(self, sched: Sched, state: T, epoch: Scalar | Number, metric: Scalar | None = None) -> tuple[Sched, T]:
        """torch's `scheduler.step(epoch)`: the closed form where there is one. It differs in the last bits.

        Args:
          sched: what `init` or the last step returned.
          state: an OptState, or a pytree with one inside.
          epoch: the epoch to be at, an integer; for `cosine_annealing_warm_restarts` it may lie between two. Such a one
            goes into jit as a `Number` or a float64: JAX would make a float32 of a Python number.
          metric: what `reduce_lr_on_plateau` looks at.

        Returns:
          `(sched, state)`.

        Raises:
          TypeError: `sequential_lr` and `chained_scheduler`, which take no epoch; an epoch between two where it has to
            be an integer, or as a traced float32; all that `step` raises.

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
        self._check_epoch(epoch)
        return self._step(sched, state, epoch, metric)

    def get_last_lr(self, sched: Sched) -> list[Any]:
        """torch's `scheduler.get_last_lr()`.

        Args:
          sched: what `init` or the last step returned.

        Returns:
          The learning rate of each group, as Python floats (of the states that `vmap` makes, lists of them); in a
          trace as float64 arrays.

        Raises:
          TypeError: a state that is not this scheduler's.
        """
        self.check_state(sched)
        return [to_numpy(x).tolist() if is_known(x.parts) else to_float64(x) for x in sched["_last_lr"]]

    def construct(self, groups: Groups) -> Sched:
        """torch's constructor: returns `s`."""
        raise NotImplementedError

    def initial_step(self, s: Sched, groups: Groups) -> None:
        """torch's `_initial_step`."""
        raise NotImplementedError

    def advance(self, s: Sched, groups: Groups, epoch: Float | None, metric: Float | None) -> None:
        """torch's `step`."""
        raise NotImplementedError

    def enter(self, s: Sched, groups: Groups) -> None:
        """What SequentialLR does to a scheduler whose turn it is: torch's `_update_lr(0)`."""
        raise NotImplementedError

    def undo(self, s: Sched) -> None:
        """How SequentialLR takes back the initial step."""
        raise NotImplementedError

    def _step(self, sched: Sched, state: T, epoch: Any, metric: Any) -> tuple[Sched, T]:
        if metric is not None and not is_one_number(metric):
            raise TypeError(f"the metric has to be one number, such as a loss, not {described(metric)}")
        self.check_state(sched)
        optimizer = find_state(state)
        live = scheduled(optimizer)
        own = {key: value for key, value in sched.items() if key != "scheduler"}
        check(optimizer=live, scheduler=own)
        with float64():
            *before, epoch, metric = python_numbers((live, own, epoch, metric))
            now, s = jax.tree.map(lambda x: x, before)
            groups = join(optimizer, now, s.pop("param_groups"))
            self.advance(s, groups, epoch, metric)
            now, s["param_groups"] = split(groups)
            live, own = encoded((now, s), before, (live, own))
            return {**own, "scheduler": sched["scheduler"]}, replace_state(state, with_scheduled(optimizer, live))

    def _whose(self) -> str:
        """What the state says of the scheduler that it belongs to."""
        parts = self.options.get("_schedulers")
        return self.name if parts is None else f"{self.name}({', '.join(part._whose() for part in parts)})"

    def check_state(self, sched: Any) -> None:
        """That a state is this scheduler's."""
        if not isinstance(sched, Mapping) or len(sched.get("scheduler") or ()) != 1:
            what = f"a dict of {list(sched)}" if isinstance(sched, Mapping) else described(sched)
            raise TypeError(f"the first argument has to be the scheduler's state, which init returned, not {what}")
        (whose,) = sched["scheduler"]
        if whose != self._whose():
            raise TypeError(
                f"the state is of a {whose}, this scheduler is a {self._whose()}: pass the state that this one's init, "
                "or its last step, returned"
            )

    def _check_epoch(self, epoch: Any) -> None:
        """That it is an integer, or what comes between two in double precision."""
        if not is_one_number(epoch):
            raise TypeError(f"the epoch has to be a number, not {epoch!r}")
        known = is_known(epoch.parts if is_number(epoch) else epoch)
        dtype = epoch.dtype if hasattr(epoch, "dtype") else np.dtype(np.float64)
        if isinstance(epoch, int) or jnp.issubdtype(dtype, jnp.integer):
            return
        if not self.between_epochs and (not known or float(epoch) != int(float(epoch))):
            raise TypeError(
                f"the epoch has to be an integer, not {epoch}: only cosine_annealing_warm_restarts takes one between "
                "two"
            )
        if not known and dtype != np.float64:
            raise TypeError(
                f"under jit the epoch is a {dtype}, which has lost the last bits of an epoch between two: hand it to "
                "jit as jaxopt_port.number.to_number(epoch), or call step_to outside jit"
            )


class LRScheduler(Scheduler):
    """torch's LRScheduler: what a scheduler needs beside its formulas."""

    last_epoch: int
    by_epoch = True

    def get_lr(self, s: Sched, groups: Groups) -> list[Float]:
        """The rates in chainable form, from those before."""
        raise NotImplementedError

    def closed_form_lr(self, s: Sched, groups: Groups) -> list[Float]:
        """torch's `_get_closed_form_lr`: the rates of an epoch, from the initial ones."""
        return self.get_lr(s, groups)

    def first_lr(self, s: Sched, groups: Groups) -> list[Float]:
        """The rates of the constructor's initial step: torch's `_is_initial`."""
        return self.get_lr(s, groups)

    def attributes(self, groups: Groups) -> Sched:
        """What torch's constructor sets before it reads the base rates."""
        return {}

    def move(self, s: Sched, epoch: Float | None) -> None:
        """How a step moves the counters."""
        s["_step_count"] += 1
        s["last_epoch"] = s["last_epoch"] + 1 if epoch is None else epoch

    def construct(self, groups: Groups) -> Sched:
        s = self.attributes(groups)
        for i, group in enumerate(groups):
            if self.last_epoch == -1:
                group.setdefault("initial_lr", group["lr"])
            elif "initial_lr" not in group:
                raise KeyError(
                    f"param 'initial_lr' is not specified in param_groups[{i}] when resuming scheduler with "
                    "last_epoch >= 0: give the scheduler state that has it, init(state, after=sched)"
                )
        s = {"base_lrs": [group["initial_lr"] for group in groups], "last_epoch": self.last_epoch, **s}
        self.initial_step(s, groups)
        return s

    def initial_step(self, s: Sched, groups: Groups) -> None:
        s["_step_count"] = 0
        self.move(s, None)
        self._set_lrs(s, groups, self.first_lr)

    def advance(self, s: Sched, groups: Groups, epoch: Float | None, metric: Float | None) -> None:
        if metric is not None:
            raise TypeError(f"{self.name} takes no metric; to go to an epoch call step_to(sched, state, epoch)")
        self.move(s, epoch)
        self._set_lrs(s, groups, self.get_lr if epoch is None else self.closed_form_lr)

    def enter(self, s: Sched, groups: Groups) -> None:
        s["last_epoch"] = 0
        self._set_lrs(s, groups, self.closed_form_lr)

    def undo(self, s: Sched) -> None:
        s["last_epoch"] -= 1

    def _set_lrs(self, s: Sched, groups: Groups, formula: Callable[[Sched, Groups], list[Float]]) -> None:
        try:
            for group, lr in zip(groups, formula(s, groups), strict=True):
                group["lr"] = lr
        except (KeyError, ValueError) as error:
            if len(s["base_lrs"]) == len(groups):
                raise
            raise ValueError(
                f"{self.name} was made for {len(s['base_lrs'])} parameter groups, the optimizer has {len(groups)}: "
                "after add_param_group make the scheduler anew"
            ) from error
        s["_last_lr"] = lrs(groups)


def factory(make: Callable[P, Scheduler]) -> Callable[P, Scheduler]:
    """A factory that says where the optimizer goes, torch's first argument, whatever it would have been bound to."""
    signature = inspect.signature(make)

    @wraps(make)
    def checked(*args: P.args, **options: P.kwargs) -> Scheduler:
        if any(isinstance(x, optax.GradientTransformation) for x in (*args, *options.values())):
            raise TypeError(
                f"{make.__name__} got an optimizer: the scheduler gets its state, scheduler.init(state), and here the "
                "other arguments only"
            )
        try:
            signature.bind(*args, **options)
        except TypeError as error:
            raise TypeError(f"{make.__name__}() {error}. Its arguments are {', '.join(signature.parameters)}") from None
        try:
            return make(*args, **options)
        except (TypeError, ValueError) as error:  # torch's words, which may not say what was given
            given = ", ".join([*map(repr, args), *(f"{name}={value!r}" for name, value in options.items())])
            error.add_note(f"The call: {make.__name__}({given}).")
            raise

    return checked


def lrs(groups: Groups) -> list[Float]:
    """The learning rate of each group."""
    return [group["lr"] for group in groups]


def per_group(name: str, groups: Groups, value: Any) -> list[float]:
    """torch's _format_param: a number for each group, or the list of them that was given."""
    wrong = f"{name} must have the same length as optimizer.param_groups. {name} has {{}} values, param_groups has {{}}"
    return list(map(float, spread(groups, value, f"{wrong}.")))


def spread(groups: Groups, value: Any, wrong: str) -> list[Any]:
    """A value for each group: one for all, or a list of one for each, or of one for each that steps.

    Raises:
      ValueError: a list of another length, in the words of `wrong`, which says how many there are and should be.
    """
    if not isinstance(value, list | tuple):
        return [value] * len(groups)
    if len(value) == len(groups):
        return list(value)
    frozen = [i for i, group in enumerate(groups) if group[FROZEN]]
    if len(value) == len(groups) - len(frozen):
        given = iter(value)
        return [value[0] if group[FROZEN] else next(given) for group in groups]  # any, where nothing steps
    order = "group 0 is the default group, which counts also where it is empty, then come the ParamGroups in order"
    if frozen:
        order += f"; frozen, to be counted or left out together: {', '.join(map(str, frozen))}"
    raise ValueError(f"{wrong.format(len(value), len(groups))} ({order})")

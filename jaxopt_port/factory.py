"""factory: makes of a rule the function that a user calls, with torch's signature."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import optax

from jaxopt_port.lift import lift
from jaxopt_port.optimizer import Optimizer, called, described
from jaxopt_port.rule import Rule
from jaxopt_port.scalars import check_form

F = TypeVar("F", bound=Callable[..., Optimizer])

RENAMED = {
    "learning_rate": "torch's name is lr",
    "b1": "torch's names are betas=(b1, b2)",
    "b2": "torch's names are betas=(b1, b2)",
    "beta1": "torch's names are betas=(beta1, beta2)",
    "beta2": "torch's names are betas=(beta1, beta2)",
    "params": "the parameters go to init, optimizer.init(params), and groups to param_groups=[ParamGroup(...)]",
    "mask": "leave parameters out by ParamGroup(which, weight_decay=0.0) or ParamGroup(which, frozen=True)",
    "mu_dtype": "give init the parameters in that dtype, and the state has it",
} | dict.fromkeys(
    ("foreach", "fused", "capturable", "differentiable"),
    "it says how torch computes a step and has no meaning here: leave it out",
)


def factory(rule: Rule, **fixed: Any) -> Callable[[F], F]:
    """Decorator: a function with torch's signature and a docstring becomes the factory of a rule's optimizers.

    Args:
      rule: the rule, whose options are the parameters of the function, all but `param_groups`.
      **fixed: options that are not parameters.

    Returns:
      The decorator.

    Raises:
      TypeError: something else than a `Rule`; a function without `param_groups`.

    Example:
      >>> import jax.numpy as jnp
      >>> from typing import NamedTuple
      >>> class Nothing(NamedTuple):
      ...     pass
      >>> def update(p, g, slot, c):
      ...     return p - c.lr * g, slot
      >>> rule = Rule("descent", Nothing, lambda step, hyper, state: ({"lr": hyper.lr}, state), update)
      >>> @factory(rule)
      ... def descent(lr: float = 0.1, *, param_groups=()) -> Optimizer: ...
      >>> optimizer = descent(lr=0.5)
      >>> params, state = optimizer.step(jnp.ones(1), optimizer.init(jnp.ones(1)), jnp.ones(1))
      >>> params, optimizer
      (Array([0.5], dtype=float32), descent(lr=0.5))
    """

    if not isinstance(rule, Rule):
        raise TypeError(f"factory takes a Rule, as in @factory(Rule(name, ...)) before a def, not {described(rule)}")

    def decorate(function: F) -> F:
        signature = inspect.signature(function)
        if "param_groups" not in signature.parameters:
            raise TypeError(
                f"{function.__name__}{signature} needs param_groups among its parameters, as in "
                "def name(lr=1e-3, *, param_groups=())"
            )

        @functools.wraps(function)
        def make(*args: Any, **kwargs: Any) -> Optimizer:
            bound = _bind(rule.name, signature, args, kwargs)
            options = {**bound.arguments, **fixed}
            for name in set(rule.live) & signature.parameters.keys():
                check_form(name, options[name], signature.parameters[name].default)
            return lift(rule, options, options.pop("param_groups"))

        return make  # pyright: ignore[reportReturnType]

    return decorate


def told(function: F) -> F:
    """Decorator: a factory without a rule says of wrong arguments what those with one say."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def make(*args: Any, **kwargs: Any) -> Optimizer:
        bound = _bind(function.__name__, signature, args, kwargs)
        try:
            return function(*bound.args, **bound.kwargs)
        except (TypeError, ValueError, RuntimeError) as error:  # torch's words, which may not say what was given
            error.add_note(f"The options: {called(function.__name__, bound.arguments)}.")
            raise

    return make  # pyright: ignore[reportReturnType]


def _bind(name: str, signature: inspect.Signature, args: Any, kwargs: Any) -> inspect.BoundArguments:
    for given in kwargs:
        if given not in signature.parameters and given in RENAMED:
            raise TypeError(f"{name}() got an unexpected keyword argument {given!r}: {RENAMED[given]}")
    first = next(iter(signature.parameters))
    if args and first in kwargs:
        raise TypeError(
            f"{name}() got {first} twice, as its first argument a {type(args[0]).__name__} and "
            f"{first}={kwargs[first]!r}: the parameters do not belong here, but to {name}({first}=...).init(params), "
            "and groups to param_groups=[ParamGroup(...)]"
        )
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"{name}() {error}. Its arguments are {', '.join(signature.parameters)}") from None
    bound.apply_defaults()
    if isinstance(bound.arguments.get("lr"), optax.GradientTransformation):
        raise TypeError(
            f"{name}() takes a learning rate first, {name}(lr=...), not an optimizer: optax.chain and optax.partition "
            "join optimizers"
        )
    return bound

"""What is wrong is refused: options as torch refuses them, trees and states with one clear error."""

import inspect
import math
import re
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_port as optim
from tests.helpers import MATRICES, RULES, SPARSE, make, make_grads, make_params

NAN = math.nan
BAD = {  # values outside the range of some optimizer; torch says of which
    "lr": [-1.0, NAN, np.ones(2)],
    "betas": [(1.0, 0.9), (-0.1, 0.9), (0.9, 1.0), (0.9, -0.5), (NAN, 0.9)],
    "eps": [-1.0, NAN, (-1.0, 1e-3), (None, -1.0)],
    "weight_decay": [-1.0, NAN],
    "momentum": [-1.0, NAN, 1.0],
    "dampening": [-1.0],
    "nesterov": [True],
    "alpha": [-1.0, NAN],
    "rho": [-0.5, 1.5, NAN],
    "lr_decay": [-1.0],
    "initial_accumulator_value": [-1.0],
    "momentum_decay": [-1.0],
    "etas": [(0.0, 1.2), (0.5, 1.0), (1.2, 0.5)],
    "step_sizes": [(1.0, 0.1)],
    "lambd": [-1.0],
    "t0": [-1.0],
    "beta2_decay": [0.5],
    "d": [0.5],
    "ns_steps": [100, 1000, 2.5],
    "ns_coefficients": [(1.0, 2.0)],
    "adjust_lr_fn": ["other"],
}
CASES = [
    pytest.param(name, option, value, id=f"{name}-{option}={value}")
    for name in RULES
    for option in inspect.signature(optim.optimizers[name]).parameters
    for value in BAD.get(option, [])
    if isinstance(value, tuple)
    == isinstance(inspect.signature(optim.optimizers[name]).parameters[option].default, tuple)
]
PARAMS = make_params("adam")
GRADS = make_grads("adam", 0)
ADAM: Any = partial(partial, optim.adam)


def outcome(factory):
    try:
        factory()
    except Exception as error:
        return type(error), str(error)
    return None


def torch_outcome(name, option, value):
    """What torch's optimizer says, at the latest in its first step: Muon's checks some options there."""
    import torch

    from tests.oracle import torch_class

    tensor = torch.nn.Parameter(torch.ones(2, 2))
    tensor.grad = torch.ones(2, 2).to_sparse(1) if name == SPARSE else torch.ones(2, 2)
    value = torch.from_numpy(value) if isinstance(value, np.ndarray) else value
    return outcome(lambda: torch_class(name)([tensor], **{option: value}).step())  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize(("name", "option", "value"), CASES)
def test_bad_options_are_refused_as_torch_refuses_them(name, option, value):
    pytest.importorskip("torch")
    expected = torch_outcome(name, option, value)
    if name == "sgd" and value is NAN:
        assert expected is None  # torch's SGD takes NaN, where the others do not; ours does not either
        expected = (ValueError, "Invalid " + {"lr": "learning rate: nan"}.get(option, f"{option} value: nan"))
    if name == "asgd" and option in ("lambd", "alpha"):
        expected = (ValueError, f"Invalid {option} value: {value}")  # since torch 2.15; not yet in the tests' torch
    assert outcome(lambda: optim.optimizers[name](**{option: value})) == expected


def test_torch_refuses_most_of_these():
    pytest.importorskip("torch")
    refused = [torch_outcome(*case.values) is not None for case in CASES]
    assert sum(refused) > 0.7 * len(CASES)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (ADAM(PARAMS), TypeError, r"lr must be a number, not a dict: .*optimizer\.init\(params\)"),
        (ADAM(lr=optax.constant_schedule(1.0)), TypeError, r"not a function: .*set_hyper\(state, lr="),
        (ADAM(betas=(0.9,)), ValueError, r"Invalid betas: \(0\.9,\), two numbers are needed"),
        (ADAM(betas=(0.9, 0.99, 0.999)), ValueError, "two numbers are needed"),
        (lambda: optim.adam(weight_decay="0.1"), TypeError, "weight_decay must be a number, .* not '0.1'"),  # pyright: ignore
        (lambda: optim.rprop(etas=0.5), ValueError, "Invalid etas: 0.5, two numbers are needed"),  # pyright: ignore
        (lambda: optim.rprop(step_sizes=0.5), ValueError, "Invalid step_sizes: 0.5, two"),  # pyright: ignore
        (lambda: optim.adafactor(eps=1e-3), ValueError, "Invalid eps: 0.001, two numbers"),  # pyright: ignore
        (lambda: optim.muon(ns_coefficients=3.0), ValueError, "exactly 3 values"),  # pyright: ignore
        (ADAM(foreach=True), TypeError, "unexpected keyword argument 'foreach'"),
    ],
)
def test_what_a_torch_user_may_write(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("name", optim.optimizers)
def test_options_that_are_not_one_number(name):
    """ASGD stepped by a vector of t0, L-BFGS with a tolerance of None never came to an end by it."""
    make = optim.optimizers[name]
    for option, parameter in inspect.signature(make).parameters.items():
        if option == "lr" or not isinstance(parameter.default, float):
            continue
        for wrong in ((0.5, 0.5), [0.5], np.array([0.5, 0.4]), jnp.array([0.5, 0.4]), None, "0.5", 0.5j, {}):
            with pytest.raises(TypeError, match=f"{option.replace('_', '.')}.* must be a number, .*not "):
                make(**{option: wrong})
            if name in RULES and option != "initial_accumulator_value":  # which torch takes from the first group
                options: Any = {option: wrong}
                with pytest.raises((TypeError, ValueError), match=option.replace("_", ".")):
                    make(param_groups=[optim.ParamGroup("w", **options)])


@pytest.mark.parametrize("name", RULES)
def test_a_gradient_tree_of_another_shape(name):
    optimizer = make(name)
    params, grads = make_params(name), make_grads(name, 0)
    state = optimizer.init(params)
    for wrong in ({"bias": grads["bias"]}, {**grads, "more": grads["bias"]}, list(grads.values()), None):
        for call in (optimizer.step, optimizer.update, jax.jit(optimizer.step)):
            with pytest.raises(ValueError, match="the tree of the gradients is not that of the parameters: "):
                call(wrong, state, params)


@pytest.mark.parametrize("name", [n for n in RULES if n != SPARSE])
def test_a_gradient_of_another_shape_or_dtype(name):
    optimizer = make(name)
    params, grads = make_params(name), make_grads(name, 0)
    state = optimizer.init(params)
    for call in (optimizer.step, optimizer.update, jax.jit(optimizer.step)):
        with pytest.raises(
            ValueError, match=r"the gradient of 'kernel' is float32\[1, 3\], its parameter float32\[4, 3\]"
        ):
            call({**grads, "kernel": jnp.ones((1, 3))}, state, params)
        with pytest.raises(TypeError, match=r"the gradient of 'kernel' is bfloat16\[4, 3\], its parameter float32"):
            call({**grads, "kernel": jnp.ones((4, 3), jnp.bfloat16)}, state, params)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("value", [jnp.ones((2, 2), int), np.ones((2, 2), bool), 3])
def test_an_integer_parameter(name, value):
    with pytest.raises(TypeError, match=r"parameter 'layer/count' is (int32|bool): only floating .* frozen=True"):
        make(name).init({"layer": {"count": value, "w": jnp.ones((2, 2))}})


def test_update_needs_params():
    optimizer = optim.adam()
    with pytest.raises(ValueError, match=r"update needs the parameters: call update\(grads, state, params\)"):
        optimizer.update(GRADS, optimizer.init(PARAMS))


def test_a_replaced_update_function():
    optimizer = optim.adam()._replace(update=optax.sgd(0.1).update)
    for call in (optimizer.step, lambda grads, *args: optimizer.step_closure(lambda p: p["bias"].sum(), *args)):
        with pytest.raises(TypeError, match="the update function of this Optimizer was replaced"):
            call(GRADS, optim.adam().init(PARAMS), PARAMS)


def test_a_state_that_is_not_the_optimizers():
    optimizer = optim.adam()
    state = optimizer.init(PARAMS)
    grouped = optim.adam(param_groups=[optim.ParamGroup("bias", lr=0.1)])
    cases: list[tuple[Any, type[Exception], str]] = [
        (optax.chain(optimizer).init(PARAMS), TypeError, "expected the OptState that init returned, got a tuple"),
        (PARAMS, TypeError, "expected the OptState that init returned, got a dict"),
        (
            optim.sgd().init(PARAMS),
            ValueError,
            "another optimizer's: it has a SGDState in slots, and adam needs a AdamState",
        ),
        (grouped.init(PARAMS), ValueError, "another optimizer's: its parameter groups"),
        (
            optimizer.init({"w": jnp.ones(1)}),
            ValueError,
            "in the optimizer state is not that of the parameters",
        ),
        (
            optimizer.init({**PARAMS, "bias": jnp.ones(1)}),
            ValueError,
            r"parameter 'bias' is AdamState\(exp_avg\[1\], exp_avg_sq\[1\]\), and should be AdamState\(exp_avg\[3\]",
        ),
        (optim.adam(amsgrad=True).init(PARAMS), ValueError, r"'bias' is .*max_exp_avg_sq.* other options \(amsgrad"),
        (optim.radam().init(PARAMS), ValueError, "it has a RAdamState in slots, and adam needs a AdamState"),
    ]
    for wrong, error, message in cases:
        with pytest.raises(error, match=message):
            optimizer.step(GRADS, wrong, PARAMS)
    with pytest.raises(ValueError, match="another optimizer's"):
        grouped.step(GRADS, state, PARAMS)  # it would have stepped nothing of the second group


def test_a_parameter_that_an_optimizer_cannot_take_is_named():
    with pytest.raises(ValueError, match="Muon only supports 2D parameters") as error:
        optim.optimizers[MATRICES]().init({"layer": jnp.ones(3)})
    assert error.value.__notes__ == ["The parameter is 'layer'."]


def test_a_dense_gradient_for_sparse_adam():
    optimizer = optim.optimizers[SPARSE]()
    with pytest.raises(RuntimeError, match="SparseAdam does not support dense gradients, please consider Adam instead"):
        optimizer.step(PARAMS, optimizer.init(PARAMS), PARAMS)


@pytest.mark.parametrize(
    ("call", "note"),
    [
        (lambda: optim.sgd(nesterov=True), r"^The options: sgd\(lr=0\.001, momentum=0\.0, .* nesterov=True, "),
        (
            lambda: optim.sgd(param_groups=[optim.ParamGroup("w", lr=-1.0)]),
            r"^The options of ParamGroup\('w', lr=-1\.0\): sgd\(lr=-1\.0, ",
        ),
        (lambda: optim.lbfgs(line_search_fn="wolfe"), r"^The options: lbfgs\(.* line_search_fn='wolfe', "),
        (lambda: optim.lr_scheduler.linear_lr(2.0, total_iters=3), r"^The call: linear_lr\(2\.0, total_iters=3\)\.$"),
        (
            lambda: optim.sparse_adam().step(
                {"w": jnp.ones(2)}, optim.sparse_adam().init({"w": jnp.ones(2)}), {"w": jnp.ones(2)}
            ),
            r"^The gradient is that of 'w'\.$",
        ),
    ],
)
def test_a_note_has_what_torchs_words_leave_out(call, note):
    with pytest.raises((ValueError, RuntimeError)) as error:
        call()
    (found,) = error.value.__notes__
    assert re.match(note, found)


class OneArray(NamedTuple):
    x: jax.Array


def no_scalars(step, hyper, state):
    return {}, state


def as_it_is(p, g, slot, c):
    return p, slot


def rule(scalars=no_scalars, update=as_it_is, **fields: Any) -> optim.Rule:
    return optim.Rule("mine", **{"slots": OneArray, "scalars": scalars, "update": update, **fields})


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (rule(live=("lr", "beta")), "the rule mine has live options that its optimizer does not: beta. .* has lr"),
        (rule(slots=tuple), "the slots of the rule mine must be a NamedTuple's class, not <class 'tuple'>"),
        (rule(lambda step, hyper, state: {}), r"scalars has to return \(c, state\), two dicts, not a dict"),
        (
            rule(lambda step, hyper, state: ({}, {"eta": step})),
            r"the scalar state that it got, \[\], not \['eta'\]: .*Rule\(scalar_state=",
        ),
        (
            rule(update=lambda p, g, slot, c: p),
            r"update has to return \(p, slot\), slot a OneArray, and .*Tracer",
        ),
        (rule(update=lambda p, g, slot, c: (p, p)), r"slot a OneArray, and it returned \['\w+', '\w+'\]"),
        (
            rule(update=lambda p, g, slot, c: (p, OneArray(slot.x[None]))),
            r"update returned an array \[1, 2\] for one of its slot that is \[2\]: ",
        ),
    ],
)
def test_a_rule_of_a_users(rule, message):
    def step():
        optimizer = optim.lift(rule, {"lr": 0.1})
        optimizer.step(jnp.ones(2), optimizer.init(jnp.ones(2)), jnp.ones(2))

    with pytest.raises((TypeError, ValueError), match=message):
        step()


def test_a_factory_without_groups():
    def mine(lr=0.1) -> optim.Optimizer: ...

    with pytest.raises(TypeError, match=r"mine\(lr=0\.1\).* needs param_groups among its parameters"):
        optim.factory(rule())(mine)

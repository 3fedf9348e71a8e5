"""What a closure captures: never the numbers of another one, and compiled anew only where it has to be."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_port as optim
from jaxopt_port.closure.lbfgs import LBFGS
from jaxopt_port.closure.program import Program, trace
from tests.helpers import assert_same_bits

Closure = Callable[..., Any]
W = jnp.array([1.0, 2.0, 3.0])
BATCHES = [jnp.full(3, 5.0), jnp.full(3, 7.0)]
NUMPY = [np.asarray(batch) for batch in BATCHES]
LONG = [np.zeros(5000, np.float32), np.eye(1, 5000, 2500, dtype=np.float32)[0]]  # too long to be printed


def loss(w: Any, batch: Any) -> Any:
    return ((w - batch) ** 2).sum()


def plain(batch: Any) -> Closure:
    return lambda w: loss(w, batch)


def jitted(batch: Any) -> Closure:
    return jax.jit(lambda w: loss(w, batch))


def jit_inside(batch: Any) -> Closure:
    inner = jax.jit(lambda w: loss(w, batch))
    return lambda w: 2 * inner(w)


def jit_twice(batch: Any) -> Closure:
    """The same jitted function again, on what it is given: an array of the closure's, so that all fits one program."""
    inner = jax.jit(loss)
    return lambda w: inner(w, batch) + inner(2 * w, batch)


def jit_inside_scan(batch: Any) -> Closure:
    return lambda w: jax.lax.scan(lambda sum_, _: (sum_ + jitted(batch)(w), None), 0.0, None, 2)[0]


def long_jit(batch: Any) -> Closure:
    return jax.jit(lambda w: loss(w.sum(), batch))


def filled_in_place(batch: Any, buffer: np.ndarray = np.zeros(3, np.float32)) -> Closure:  # noqa: B008  one for all
    buffer[:] = batch
    return jitted(buffer)


def checkpoint(batch: Any) -> Closure:
    return jax.checkpoint(lambda w: loss(w, batch))


def cond(batch: Any) -> Closure:
    return lambda w: jax.lax.cond(w[0] < 5, lambda: loss(w, batch), lambda: w.sum())


def library_rules(batch: Any) -> Closure:
    """Functions with derivative rules, of the parameters and of the batch."""
    return lambda w: (jax.nn.relu(w - batch / 3) + jax.nn.relu(batch) * jax.nn.gelu(w)).sum() + jnp.linalg.norm(w)


def vjp_rule(batch: Any) -> Closure:
    rule = jax.custom_vjp(lambda w: loss(w, batch))
    rule.defvjp(lambda w: (loss(w, batch), w), lambda w, g: (2 * (w - batch) * g,))
    return rule


def backward_alone(scale: Any) -> Closure:
    rule = jax.custom_vjp(lambda w: loss(w, 0))
    rule.defvjp(lambda w: (loss(w, 0), w), lambda w, g: (scale * w * g,))
    return lambda w: rule(w)


def tangent_alone(scale: Any) -> Closure:
    rule = jax.custom_jvp(lambda w: loss(w, 0))
    rule.defjvp(lambda w, t: (loss(w[0], 0), (scale * w[0] * t[0]).sum()))
    return lambda w: rule(w)


def on_the_host(batch: Any, w: Any) -> np.ndarray:
    return np.asarray(loss(np.asarray(w), batch), np.float32)


def callback(batch: Any) -> Closure:
    call = partial(on_the_host, np.asarray(batch))
    return lambda w: w.sum() + jax.pure_callback(call, jax.ShapeDtypeStruct((), "float32"), jax.lax.stop_gradient(w))


def callback_of_both(batch: Any) -> Closure:
    constant = jax.lax.stop_gradient
    return lambda w: w.sum() + jax.pure_callback(on_the_host, jax.ShapeDtypeStruct((), "float32"), batch, constant(w))


def divided(number: Any) -> Closure:
    return lambda w: w.sum() / number


@pytest.mark.parametrize(
    ("make", "captured", "compiled"),
    [
        (plain, BATCHES, 1),
        (plain, NUMPY, 1),
        (checkpoint, BATCHES, 1),
        (cond, BATCHES, 1),
        (library_rules, BATCHES, 1),
        (vjp_rule, BATCHES, 1),
        (backward_alone, BATCHES, 1),
        (tangent_alone, BATCHES, 1),
        (callback_of_both, BATCHES, 1),
        (plain, [jnp.float32(5), jnp.float32(7)], 1),
        (plain, [5.0, 7.0], 2),
        (plain, [np.float32(5), np.float32(7)], 2),
        (divided, [0.0, -0.0], 2),
        (backward_alone, [5.0, 7.0], 2),
        (tangent_alone, [5.0, 7.0], 2),
        (jit_twice, BATCHES, 1),
        (jit_twice, [5.0, 7.0], 2),
        (jitted, BATCHES, 2),
        (jitted, NUMPY, 2),
        (jit_inside, BATCHES, 2),
        (jit_inside_scan, BATCHES, 1),
        (long_jit, LONG, 2),
        (filled_in_place, NUMPY, 2),
        (vjp_rule, [5.0, 7.0], 2),
        (callback, BATCHES, 2),
    ],
)
def test_the_numbers_are_those_of_what_is_captured(make: Callable[[Any], Closure], captured: list[Any], compiled: int):
    traces = []

    def gradient(program: Program, operands: list[Any]) -> Any:
        traces.append(program)
        return program.gradient(operands, [W])

    run = jax.jit(gradient, static_argnums=0)
    for x in captured:
        closure = make(x)
        value, grad = jax.value_and_grad(closure)(W)
        for _ in range(2):
            found, (found_grad,) = run(*trace(closure, W))
            np.testing.assert_allclose(found, value, 1e-6)
            np.testing.assert_allclose(found_grad, grad, 1e-6)
    assert len(traces) == compiled


def test_what_is_no_array_in_the_arguments_is_part_of_the_program():
    def closure(w: Any, batch: Any, options: Any) -> Any:
        return loss(w, batch) if options["mode"] == "train" else loss(w, 0) * options["scale"]

    for mode in ("train", "eval"):
        args = (BATCHES[0], {"mode": mode, "scale": 3.0, "unused": None})
        program, operands = trace(closure, W, args)
        np.testing.assert_allclose(program.gradient(operands, [W])[0], closure(W, *args))
        assert len(operands) == 2


@pytest.mark.parametrize("factory", [optim.lbfgs, partial(optim.nonlinear_cg, line_search=None)])
def test_steps_and_runs_take_the_batch_of_the_closure(factory: Callable[..., optim.Optimizer]):
    optimizer = factory(lr=0.25, max_iter=1)
    for batch in BATCHES:
        closure = jitted(batch)
        first, _, state = optimizer.step_closure(closure, optimizer.init(W), W)
        assert float(first) == float(loss(W, batch))
        np.testing.assert_array_equal(state.slots.prev_flat_grad, jax.grad(closure)(W))
        np.testing.assert_allclose(optim.minimize(optimizer, closure, W).params, batch, 1e-4)


def test_a_first_order_run_takes_the_batch_of_its_function():
    optimizer = optim.sgd(lr=0.25)
    for batch in BATCHES:
        np.testing.assert_allclose(optim.minimize(optimizer, jitted(batch), W).params, batch, 1e-4)


def test_runs_of_optimizers_made_anew_share_what_is_compiled(monkeypatch: pytest.MonkeyPatch):
    compiled, run = [], LBFGS.run

    def counted(self: LBFGS, *args: Any) -> Any:
        compiled.append(self)
        return run(self, *args)

    monkeypatch.setattr(LBFGS, "run", counted)
    start = jnp.linspace(1, 2, 7)
    for lr in (0.25, 0.5):
        end = optim.minimize(optim.lbfgs(lr=lr), lambda x: (x * x).sum() / 2, start, 1)
        np.testing.assert_allclose(end.params, start - lr * start / start.sum(), 1e-6)  # its very first step
    assert len(compiled) == 1


@pytest.mark.parametrize("factory", [optim.lbfgs, optim.nonlinear_cg])
def test_float64_parameters_with_x64_off(factory: Callable[..., optim.Optimizer]):
    def fun(x: Any) -> Any:
        return (x**4).sum()

    with jax.enable_x64(True):
        start = jnp.linspace(1, 2, 5)
        value, grad = jax.value_and_grad(fun)(start)

    optimizer = factory(lr=0.1, max_iter=2)

    def run() -> Any:
        step = optimizer.step_closure(fun, optimizer.init(start), start)
        return step, optim.minimize(optimizer, fun, start, 10)

    with jax.enable_x64(True):
        expected = run()
    with jax.enable_x64(False):
        found = run()
        updates, _ = optimizer.update(grad, optimizer.init(start), start, value=value, value_fn=fun)
    assert_same_bits(found, expected)
    np.testing.assert_allclose(updates, found[0][1] - start, 1e-12)


@jax.custom_jvp
def straight_through(x: Any) -> Any:
    return jnp.round(x)


straight_through.defjvps(lambda t, out, x: t)


@pytest.mark.parametrize("function", [jax.nn.relu, straight_through])
def test_a_derivative_from_outside_has_the_closures_own_rules(function: Closure):
    """Of the loss that is returned, by the batch: as of the closure itself."""
    optimizer = optim.lbfgs(max_iter=1)

    def fun(w: Any, batch: Any) -> Any:
        return (function(w) * function(batch)).sum()

    def returned(w: Any, batch: Any) -> Any:
        return optimizer.step_closure(fun, optimizer.init(W), w, batch)[0]

    at, along = (W, jnp.zeros(3)), (jnp.zeros(3), jnp.ones(3))
    assert_same_bits(jax.jvp(returned, at, along), jax.jvp(fun, at, along))

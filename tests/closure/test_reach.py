"""A closure is traced again where anything has changed that it can reach, and only there."""

import itertools
import random
import time
from collections.abc import Callable
from functools import lru_cache, partial, wraps
from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxopt_port.closure.program import Traces

W = jnp.array([1.0, 2.0, 3.0])
Closure = Callable[[Any], Any]
BATCH: Any = None  # read by the closures below


def loss(w: Any, batch: Any) -> Any:
    return ((w - batch) ** 2).sum()


def of_the_module(w: Any) -> Any:
    return loss(w, BATCH)


def in_a_variable(first: Any) -> tuple[Closure, Callable[[Any], None]]:
    batch = first

    def change(to: Any) -> None:
        nonlocal batch
        batch = to

    return lambda w: loss(w, batch), change


def in_a_global(first: Any) -> tuple[Closure, Callable[[Any], None]]:
    def change(to: Any) -> None:
        globals()["BATCH"] = to

    change(first)
    return of_the_module, change


def through_a_function(first: Any) -> tuple[Closure, Callable[[Any], None]]:
    _, change = in_a_global(first)
    return lambda w: 2 * of_the_module(w), change


def in_a_list(first: Any) -> tuple[Closure, Callable[[Any], None]]:
    batches = [first]
    return lambda w: loss(w, batches[-1]), batches.append


def in_a_dict(first: Any) -> tuple[Closure, Callable[[Any], None]]:
    batches = {"now": (first, None)}
    return lambda w: loss(w, batches["now"][0]), lambda to: batches.update(now=(to, None))


def in_an_attribute(first: Any) -> tuple[Closure, Callable[[Any], None]]:
    trainer = SimpleNamespace(inner=Trainer(first))
    return lambda w: loss(w, trainer.inner.batch), lambda to: setattr(trainer.inner, "batch", to)


class Trainer:
    shared: Any = None

    def __init__(self, batch: Any):
        self.batch = batch

    def closure(self, w: Any) -> Any:
        return loss(w, self.batch)

    def of_the_class(self, w: Any) -> Any:
        return loss(w, self.shared)

    @property
    def global_batch(self) -> Any:
        return BATCH


def in_a_method(first: Any) -> tuple[Closure, Callable[[Any], None]]:
    trainer = Trainer(first)
    method = trainer.closure
    return lambda w: method(w), lambda to: setattr(trainer, "batch", to)


def in_a_class(first: Any) -> tuple[Closure, Callable[[Any], None]]:
    trainer = Trainer(None)
    Trainer.shared = first
    return lambda w: trainer.of_the_class(w), lambda to: setattr(Trainer, "shared", to)


def through_a_property(first: Any) -> tuple[Closure, Callable[[Any], None]]:
    _, change = in_a_global(first)
    trainer = Trainer(None)
    return lambda w: loss(w, trainer.global_batch), change


def in_a_default(first: Any) -> tuple[Closure, Callable[[Any], None]]:
    def closure(w: Any, batch: Any = first) -> Any:
        return loss(w, batch)

    return closure, lambda to: setattr(closure, "__defaults__", (to,))


def in_a_partial(first: Any) -> tuple[Closure, Callable[[Any], None]]:
    batches = [first]
    call = partial(lambda batches, w: loss(w, batches[-1]), batches)
    return lambda w: call(w), batches.append


def behind_a_wrapper(first: Any) -> tuple[Closure, Callable[[Any], None]]:
    batches = [first]

    @wraps(loss)
    def closure(w: Any) -> Any:
        return loss(w, batches[-1])

    return lru_cache(maxsize=0)(closure), batches.append


def in_a_rule(first: Any) -> tuple[Closure, Callable[[Any], None]]:
    batches = [first]
    rule = jax.custom_jvp(lambda w: loss(w, batches[-1]))
    rule.defjvp(lambda w, t: (loss(w[0], batches[-1]), 2 * ((w[0] - batches[-1]) * t[0]).sum()))
    return lambda w: rule(w), batches.append


def in_a_flax_module(first: Any) -> tuple[Closure, Callable[[Any], None]]:
    class Model(nn.Module):
        @nn.compact
        def __call__(self, w: Any) -> Any:
            return loss(w, BATCH)

    model = Model()
    _, change = in_a_global(first)
    return lambda w: jnp.asarray(model.apply({}, w)), change


def in_an_nnx_module(first: Any) -> tuple[Closure, Callable[[Any], None]]:
    class Model(nnx.Module):
        def __init__(self, batch: Any):
            self.batch = nnx.Variable(jnp.asarray(batch))

    model = Model(first)
    return lambda w: loss(w, model.batch[...]), lambda to: setattr(model, "batch", nnx.Variable(jnp.asarray(to)))


def of_an_iterator(first: Any) -> tuple[Closure, Callable[[Any], None]]:
    batches = [first]
    advanced = itertools.accumulate(itertools.repeat(0))
    return lambda w: loss(w, batches[-1]) + advanced.__next__(), batches.append


MAKERS = [
    in_a_variable, in_a_global, through_a_function, in_a_list, in_a_dict, in_an_attribute, in_a_method, in_a_class,
    through_a_property, in_a_default, in_a_partial, behind_a_wrapper, in_a_rule, in_a_flax_module, in_an_nnx_module,
    of_an_iterator,
]  # fmt: skip


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(
    "kind", [jnp.asarray, np.asarray, lambda batch: float(batch[0])], ids=["jax", "numpy", "float"]
)
def test_the_numbers_are_those_of_what_can_be_reached(make: Any, kind: Any):
    closure, change = make(kind(np.full(3, 5.0, np.float32)))
    traces = Traces()
    for number in (5.0, 7.0, 7.0, 5.0):
        change(kind(np.full(3, number, np.float32)))
        expected, expected_grad = jax.value_and_grad(loss)(W, number)
        for _ in range(2):
            program, operands = traces(closure, W, (), False)
            found, (grad,) = program.gradient(operands, [W])
            scale = 2 if make is through_a_function else 1
            np.testing.assert_allclose(found, scale * expected, 1e-6)
            np.testing.assert_allclose(grad, scale * expected_grad, 1e-6)


def test_an_array_that_is_filled_in_place():
    batch, traces = np.zeros(3, np.float32), Traces()
    closure = lambda w: loss(w, batch)  # noqa: E731
    for number in (5.0, 7.0):
        batch[:] = number
        program, operands = traces(closure, W, (), False)
        np.testing.assert_allclose(program.gradient(operands, [W])[0], loss(W, number), 1e-6)


@pytest.mark.parametrize(
    "value",
    [
        lambda: random.random(),
        lambda: np.random.default_rng().random(),
        lambda: np.random.normal(),  # noqa: NPY002
        lambda: time.perf_counter(),
        partial(next, itertools.count()),
    ],
)
def test_what_gives_another_number_at_every_call_does_so_still(value: Any):
    traces = Traces()
    closure = lambda w: w.sum() + value()  # noqa: E731
    found = []
    for _ in range(2):
        program, operands = traces(closure, W, (), False)
        found.append(float(program.gradient(operands, [W * 0])[0]))
    assert found[0] != found[1]


class Dense(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.Dense(3, use_bias=False)(nn.LayerNorm(use_bias=False, use_scale=False)(x))


@pytest.mark.parametrize("make", [m for m in MAKERS if m not in (of_an_iterator, in_an_nnx_module, behind_a_wrapper)])
def test_where_nothing_has_changed_nothing_is_traced(make: Any, monkeypatch: pytest.MonkeyPatch):
    closure, _ = make(jnp.full(3, 5.0))
    assert_traced(closure, W, (), monkeypatch)


def test_a_model_with_its_batch_as_an_argument_is_traced_once(monkeypatch: pytest.MonkeyPatch):
    model = Dense()
    params = model.init(jax.random.key(0), jnp.ones((2, 3)))

    def closure(params: Any, batch: Any) -> Any:
        return jnp.square(jnp.asarray(model.apply(params, batch)) - 1.0).mean()

    assert_traced(closure, params, (jnp.ones((2, 3)),), monkeypatch)


def assert_traced(closure: Any, params: Any, args: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    calls, make_jaxpr, traces = [], jax.make_jaxpr, Traces()
    monkeypatch.setattr(jax, "make_jaxpr", lambda *a, **k: calls.append(1) or make_jaxpr(*a, **k))
    first, _ = traces(closure, params, args, False)
    for scale in (2, 3):
        other, others = jax.tree.map(partial(jnp.multiply, scale), (params, args))
        again, operands = traces(closure, other, others, False)
        assert again is first
        np.testing.assert_allclose(
            again.gradient(operands, jax.tree.leaves(other))[0], closure(other, *others), 1e-5, 1e-6
        )
    assert len(calls) == 1
    for other in (jax.tree.map(lambda x: x.astype(jnp.float16), params), params):  # other types, then those again
        traces(closure, other, args, False)
    assert len(calls) == 3
    with jax.default_matmul_precision("highest"):
        traces(closure, params, args, False)
    assert len(calls) == 4


def test_a_closure_that_is_gone_is_forgotten():
    traces = Traces()
    closure, _ = in_a_variable(W)
    traces(closure, W, (), False)
    assert len(traces.made) == 1
    del closure, _
    assert not traces.made

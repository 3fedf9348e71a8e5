"""A closure is traced again where anything has changed that it can reach, and only there."""

import gc
import itertools
import random
import time
import weakref
from collections.abc import Callable
from functools import lru_cache, partial, wraps
from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxopt_port as optim
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
        lambda: time.perf_counter() % 1,  # in float32 the clock itself stands still for milliseconds
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
    calls, traces = count_traces(monkeypatch), Traces()
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


def count_traces(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls, make_jaxpr = [], jax.make_jaxpr
    monkeypatch.setattr(jax, "make_jaxpr", lambda *a, **k: calls.append(1) or make_jaxpr(*a, **k))
    return calls


def made_anew(batch: Any) -> Closure:
    return lambda w: loss(w, batch)


def with_a_default(batch: Any) -> Closure:
    return lambda w, batch=batch: loss(w, batch)


def nested(batch: Any) -> Closure:
    def closure(w: Any) -> Any:
        def inner(w: Any) -> Any:
            return loss(w, batch)

        return inner(w)

    return closure


def bound(batch: Any) -> Closure:
    return partial(lambda batch, w, scale: loss(w, batch) * scale, batch, scale=1)


def bound_by_name(batch: Any) -> Closure:
    return partial(lambda w, data: loss(w, data["batch"][0]), data={"batch": [batch]})


def of_a_function(batch: Any) -> Closure:
    return jax.checkpoint(lambda w: loss(w, batch))


def with_a_helper(batch: Any) -> Closure:
    def helper(w: Any) -> Any:
        return loss(w, 0)

    return lambda w: helper(w - batch)


@pytest.mark.parametrize("make", [made_anew, with_a_default, nested, bound, bound_by_name, with_a_helper])
def test_another_array_of_the_same_kind_is_not_traced(make: Any, monkeypatch: pytest.MonkeyPatch):
    calls, traces = count_traces(monkeypatch), Traces()
    for number in (5.0, 7.0, 9.0):
        program, operands = traces(make(jnp.full(3, number)), W, (), False)
        np.testing.assert_allclose(program.gradient(operands, [W])[0], loss(W, number), 1e-6)
    assert len(calls) == 1
    program, operands = traces(make(jnp.full(1, 5.0)), W, (), False)  # of another shape
    np.testing.assert_allclose(program.gradient(operands, [W])[0], loss(W, 5.0), 1e-6)
    assert len(calls) == 2


def looked_at(batch: Any) -> Closure:
    small = batch[0] < 6
    return lambda w: loss(w, batch) if small else loss(w, 2 * batch)


def as_a_number(batch: Any) -> Closure:
    first = jnp.asarray(float(batch[0]))
    return lambda w: loss(w, float(first))


def as_numpy(batch: Any) -> Closure:
    return lambda w: loss(w, np.asarray(batch))


def as_a_list(batch: Any) -> Closure:
    return lambda w: loss(w, jnp.asarray(batch.tolist()))


def as_an_index(batch: Any) -> Closure:
    first = jnp.asarray(int(batch[0]))
    return lambda w: loss(w, batch) + w[: int(first) - 4].sum()


def through_a_sibling(batch: Any) -> Closure:
    def value() -> Any:
        return batch

    return lambda w: loss(w, batch) + 0 * w.sum() + value().sum()


def assigned(first: Any) -> Closure:
    batch = first

    def double() -> None:
        nonlocal batch
        batch = 2 * first

    def closure(w: Any) -> Any:
        double()
        return loss(w, batch)

    return closure


@pytest.mark.parametrize(
    "make", [looked_at, as_a_number, as_numpy, as_a_list, as_an_index, through_a_sibling, assigned]
)
def test_an_array_that_is_more_than_computed_with(make: Any):
    traces = Traces()
    for number in (5.0, 7.0, 5.0):
        for _ in range(2):
            batch = jnp.full(3, number)
            program, operands = traces(make(batch), W, (), False)
            np.testing.assert_allclose(program.gradient(operands, [W])[0], make(batch)(W), 1e-6)


def test_functions_of_the_same_code_around_which_all_else_differs():
    traces = Traces()

    def make(function: Any, number: float) -> Closure:
        batch = jnp.full(3, 5.0)
        return lambda w: function(w * number - batch).sum()

    for function in (jnp.sin, jnp.cos, jnp.sin):
        for number in (1.0, 2.0):
            closure = make(function, number)
            program, operands = traces(closure, W, (), False)
            np.testing.assert_allclose(program.gradient(operands, [W])[0], closure(W), 1e-6)


def test_runs_of_the_same_function_trace_it_once(monkeypatch: pytest.MonkeyPatch):
    calls, optimizer = count_traces(monkeypatch), optim.lbfgs(line_search_fn="strong_wolfe")
    for number in (5.0, 7.0):
        result = optim.minimize(optimizer, made_anew(jnp.full(3, number)), W)
        np.testing.assert_allclose(result.params, number, 1e-5)
    assert len(calls) == 1


def test_an_array_that_a_closure_captured_is_not_kept():
    traces, batch = Traces(), jnp.full(3, 5.0)
    traces(made_anew(batch), W, (), False)
    gone = weakref.ref(batch)
    del batch
    gc.collect()
    assert gone() is None


def test_a_closure_that_is_no_function_is_forgotten():
    traces = Traces()
    closure = of_a_function(W)
    traces(jax.jit(closure), W, (), False)
    del closure
    gc.collect()
    assert not traces.made

"""Closures that a memory of traces could take for what they were: each gives the numbers of a plain call."""

import collections
import dataclasses
import types
from collections.abc import Callable, Iterator
from functools import partial, partialmethod
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_port.closure.program import Traces

W = jnp.array([1.0, 2.0, 3.0])
Closure = Callable[[Any], Any]
BATCH: Any = None  # read by a closure below


def loss(w: Any, batch: Any) -> Any:
    return ((w - batch) ** 2).sum()


def of_the_module(w: Any) -> Any:
    return loss(w, BATCH)


def one_list_among_others() -> Iterator[Closure]:
    batches = {"now": [5.0], "train": [5.0], "valid": [7.0]}
    batches["now"] = batches["train"]
    closure = lambda w: loss(w, batches["now"][0])  # noqa: E731
    yield closure
    batches["now"] = batches["valid"]
    yield closure


def one_function_among_others() -> Iterator[Closure]:
    def make(number: float) -> Closure:
        return lambda w: loss(w, number)

    one, other = make(5.0), make(7.0)
    functions = [one, one, other]
    closure = lambda w: functions[0](w)  # noqa: E731
    yield closure
    functions[0] = other
    yield closure


def method_of_a_named_tuple() -> Iterator[Closure]:
    class Model(NamedTuple):
        scale: float

        def loss(self, w: Any) -> Any:
            return loss(w, BATCH * self.scale)

    model = Model(2.0)
    closure = lambda w: model.loss(w)  # noqa: E731
    for number in (5.0, 7.0):
        globals()["BATCH"] = number
        yield closure


def attribute_of_a_dict() -> Iterator[Closure]:
    class Options(dict[str, float]):
        scale = 1.0

    options = Options(batch=5.0)
    closure = lambda w: loss(w, options["batch"] * options.scale)  # noqa: E731
    yield closure
    options.scale = 2.0
    yield closure
    Options.scale, options.__dict__ = 3.0, {}
    yield closure


def default_of_a_dict() -> Iterator[Closure]:
    numbers = [5.0]
    options = collections.defaultdict(lambda: numbers[0])
    closure = lambda w: loss(w, (options.default_factory or float)())  # noqa: E731
    yield closure
    numbers[0] = 7.0
    yield closure


def attribute_of_a_number() -> Iterator[Closure]:
    class Scale(float):
        batch = 0.0

    scale = Scale(2.0)
    for scale.batch in (5.0, 7.0):
        yield lambda w: loss(w, scale * scale.batch)


def number_of_another_type() -> Iterator[Closure]:
    for scale in (2.0, np.float64(2.0), np.array(2.0)):
        yield (
            lambda w, scale=scale: (
                loss((w.astype(jnp.bfloat16) * scale).astype(jnp.float32) / 3, 0)
                * ((w.astype(jnp.bfloat16) * scale).dtype.itemsize)
            )
        )


def masked_array() -> Iterator[Closure]:
    batch = np.ma.array([5.0, 7.0], mask=[False, True])
    closure = lambda w: loss(w, float(batch.mean()))  # noqa: E731
    yield closure
    batch.mask = [True, False]
    yield closure


def ufunc_of_a_function() -> Iterator[Closure]:
    function = np.frompyfunc(lambda x: x * BATCH, 1, 1)
    closure = lambda w: loss(w, float(function(1.0)))  # noqa: E731
    for number in (5.0, 7.0):
        globals()["BATCH"] = number
        yield closure


def partial_of_a_dict() -> Iterator[Closure]:
    for names in ("ba", "ab"):
        numbers = {name: jnp.float32(number) for name, number in zip(names, (5, 7), strict=True)}
        yield partial(lambda d, w: loss(w, [*d.values()][-1]), numbers)
        yield partial(lambda w, **d: loss(w, [*d.values()][-1]), **numbers)
    yield partial(lambda d, w: loss(w, d[0] + d["a"]), {0: jnp.float32(5), "a": 7})


def special_method_that_is_no_function() -> Iterator[Closure]:
    batches = [5.0]

    class Model:
        def loss(self, w: Any, batches: list[float]) -> Any:
            return loss(w, batches[0])

        __call__ = partialmethod(loss, batches=batches)

    model = Model()
    closure = lambda w: model(w)  # noqa: E731
    yield closure
    batches[0] = 7.0
    yield closure


def attribute_of_a_metaclass() -> Iterator[Closure]:
    class Meta(type):
        batch = 5.0

    class Model(metaclass=Meta):
        pass

    closure = lambda w: loss(w, Model.batch)  # noqa: E731
    yield closure
    Meta.batch = 7.0
    yield closure


def class_made_by_a_function() -> Iterator[Closure]:
    model = types.new_class("Model")
    closure = lambda w: loss(w, model.batch)  # noqa: E731
    for number in (5.0, 7.0):
        model.batch = number
        yield closure


MODULE: Any = types.ModuleType("a_module_of_the_users")
MODULE.__file__ = "a_module_of_the_users.py"


def of_a_module(module: Any, w: Any) -> Any:
    return loss(w, module.batch)


def module_that_is_handed_on() -> Iterator[Closure]:
    for closure in (lambda w: of_a_module(MODULE, w), lambda w: loss(w, MODULE.__dict__["batch"])):
        for number in (5.0, 7.0):
            MODULE.batch = number
            yield closure


def module_with_getattr() -> Iterator[Closure]:
    numbers = [5.0]
    MODULE.__getattr__ = lambda name: numbers[0]
    closure = lambda w: loss(w, MODULE.anything)  # noqa: E731
    yield closure
    numbers[0] = 7.0
    yield closure


def random_numbers_of_another_kind() -> Iterator[Closure]:
    key = jax.random.key(0)
    closure = lambda w: loss(w, jax.random.normal(key, (3,)))  # noqa: E731
    for is_partitionable in (True, False):
        with jax.threefry_partitionable(is_partitionable):
            yield closure


def jitted_function_with_jit_off() -> Iterator[Closure]:
    jitted = jax.jit(of_the_module)
    closure = lambda w: jitted(w)  # noqa: E731
    with jax.disable_jit():
        for number in (5.0, 7.0):
            globals()["BATCH"] = number
            yield closure


def same_array_or_another() -> Iterator[Closure]:
    batch = other = jnp.full(3, 5.0)
    closure = lambda w: loss(w, batch) * (1 if batch is other else 2)  # noqa: E731
    yield closure
    other = jnp.full(3, 5.0)
    yield closure


def value_or(x: Any, default: float) -> float:
    try:
        return float(x)
    except TypeError:
        return default


def value_that_is_asked_for() -> Iterator[Closure]:
    for batch in (jnp.float32(5.0), jnp.float32(7.0)):
        yield lambda w, batch=batch: loss(w, value_or(batch, 0.0))


def traced_or_not() -> Iterator[Closure]:
    for batch in (jnp.float32(5.0), jnp.float32(7.0)):
        yield lambda w, batch=batch: loss(w, 0 if isinstance(batch, jax.core.Tracer) else batch)


def array_as_a_shape() -> Iterator[Closure]:
    for length in (jnp.int32(3), jnp.int32(1)):
        yield lambda w, length=length: loss(w, jnp.ones(length))


def array_in_a_message() -> Iterator[Closure]:
    for batch in (jnp.float32(5.0), jnp.float32(7.0)):
        yield lambda w, batch=batch: loss(w, batch) + len(f"{batch:.3f}")


def callable_without_a_hash() -> Iterator[Closure]:
    @dataclasses.dataclass
    class Loss:
        batch: Any

        def __call__(self, w: Any) -> Any:
            return loss(w, self.batch)

    yield from (Loss(jnp.full(3, 5.0)), Loss(jnp.full(3, 7.0)))


class Slotted:
    __slots__ = ("batch",)

    def __call__(self, w: Any) -> Any:
        return loss(w, self.batch)


def callable_without_a_reference() -> Iterator[Closure]:
    closure = Slotted()
    for closure.batch in (5.0, 7.0):
        yield closure


def attribute_that_answers_to_all() -> Iterator[Closure]:
    class Table:
        numbers: Any = None

        def __getattr__(self, name: str) -> float:
            return self.numbers[name]

    table = Table()
    closure = lambda w: loss(w, table.batch)  # noqa: E731
    for number in (5.0, 7.0):
        table.numbers = {"batch": number}
        yield closure


@pytest.mark.parametrize(
    "closures",
    [
        one_list_among_others, one_function_among_others, method_of_a_named_tuple, attribute_of_a_dict,
        default_of_a_dict, attribute_of_a_number, number_of_another_type, masked_array, ufunc_of_a_function,
        partial_of_a_dict, special_method_that_is_no_function, attribute_of_a_metaclass, class_made_by_a_function,
        module_that_is_handed_on, module_with_getattr, random_numbers_of_another_kind, jitted_function_with_jit_off,
        same_array_or_another, value_that_is_asked_for, traced_or_not, array_as_a_shape, array_in_a_message,
        callable_without_a_hash, callable_without_a_reference, attribute_that_answers_to_all,
    ],
)  # fmt: skip
def test_the_numbers_are_those_that_the_closure_gives(closures: Callable[[], Iterator[Closure]]):
    traces = Traces()
    for closure in closures():
        expected = closure(W)
        for _ in range(2):
            program, operands = traces(closure, W, (), False)
            np.testing.assert_allclose(program.gradient(operands, [W])[0], expected, 1e-6)


def test_a_file_that_is_read(tmp_path: Any):
    traces, path = Traces(), tmp_path / "batch.npy"
    name = str(path)
    closure = lambda w: loss(w, np.load(name))  # noqa: E731
    for number in (5.0, 7.0):
        np.save(path, np.full(3, number, np.float32))
        program, operands = traces(closure, W, (), False)
        np.testing.assert_allclose(program.gradient(operands, [W])[0], loss(W, number), 1e-6)

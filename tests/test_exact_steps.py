"""`exact` steps in torch CUDA's arithmetic: its orders and roundings, against torch's own optimizers on a CPU.

The oracle, torch's single-tensor code with its operations done so by NumPy, is in `cuda_oracle.py`.
"""

import ctypes
import ctypes.util
import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.sparse import BCOO

import jaxopt_port as optim
from jaxopt_port import cuda_arithmetic
from jaxopt_port.rule import Rule
from jaxopt_port.rules.adam import AdamState
from jaxopt_port.scalars import float64
from jaxopt_port.torch_interop import optimizer_state_dict
from tests.helpers import CountTraces, assert_same_bits, assert_same_types

pytest.importorskip("torch")
from tests.cuda_oracle import f32, fma, in_torch

SIZE = 10**6
CASES: list[tuple[str, dict[str, Any]]] = [
    ("adadelta", {"weight_decay": 0.1}),
    ("adagrad", {"lr_decay": 0.1, "initial_accumulator_value": 0.5}),
    ("adam", {"amsgrad": True, "weight_decay": 0.1}),
    ("adam", {"betas": (0.3, 0.0)}),  # lerp's other form; an addcmul with value 1
    ("adamax", {"weight_decay": 0.1}),
    ("adamw", {"maximize": True}),
    ("asgd", {"t0": 1.0, "weight_decay": 0.1}),
    ("nadam", {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("radam", {"betas": (0.9, 0.6)}),  # rectified from the first steps on
    ("radam", {"weight_decay": 0.1}),
    ("rmsprop", {"centered": True, "momentum": 0.9, "weight_decay": 0.1}),
    ("rmsprop", {}),
    ("rprop", {}),
    ("sgd", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    ("sgd", {"momentum": 0.9, "dampening": 0.3}),
    ("sgd", {"weight_decay": 0.1}),
]
ELEMENTWISE = sorted({name for name, _ in CASES})


def label(x: Any) -> str:
    return x if isinstance(x, str) else "-".join(x) or "default"


def differing(x: Any, y: Any) -> int:
    return int((np.asarray(x).view(np.int32) != np.asarray(y).view(np.int32)).sum())


def arrays(size: int = SIZE, steps: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(size).astype(f32) for _ in range(steps + 1)]


@pytest.mark.parametrize(
    ("name", "options"), CASES, ids=lambda x: x if isinstance(x, str) else "-".join(x) or "default"
)
def test_no_bit_differs_from_torchs_optimizer_in_cuda_arithmetic(name, options):
    given = arrays()
    optimizer = optim.exact(optim.optimizers[name](**options))
    params = jnp.asarray(given[0])
    state, step = optimizer.init(params), jax.jit(optimizer.step)
    for g in given[1:]:
        params, state = step(g, state, params)
    expected, theirs = in_torch(name, options, given, 3)
    counts = {field: differing(x, theirs[field].numpy()) for field, x in state.slots._asdict().items() if x is not None}
    assert {"param": differing(params, expected), **counts} == dict.fromkeys(["param", *counts], 0)
    assert np.isfinite(expected).all()


def test_the_oracle_tells_the_arithmetics_apart():
    """The ordinary step, which on this CPU does neither the orders nor the roundings of torch's CUDA kernels."""
    given = arrays(10**5)
    optimizer = optim.rmsprop()
    params = jnp.asarray(given[0])
    state = optimizer.init(params)
    for g in given[1:]:
        params, state = jax.jit(optimizer.step)(g, state, params)
    expected, theirs = in_torch("rmsprop", {}, given, 3)
    assert differing(params, expected) > 100
    assert differing(state.slots.square_avg, theirs["square_avg"].numpy()) > 100


def twice_rounded(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Multiply-adds that come out wrong when they are rounded to float64 first: a tie, but for what float64 drops."""
    rng = np.random.default_rng(1)
    a = np.full(size, 2.0**-12 * (1 + 2.0**-23), f32)
    b = np.full(size, 2.0**-12 * (1 - 2.0**-23), f32)
    c = (1 + (2 * rng.integers(0, 2**21, size) + 1) * 2.0**-23).astype(f32)
    sign = rng.choice(np.array([-1, 1], f32), size)
    return a * sign, b, c * sign


def kinds(size: int) -> dict[str, tuple[np.ndarray, ...]]:
    rng = np.random.default_rng(2)

    def normal() -> np.ndarray:
        return rng.standard_normal(size)

    made = {
        "normal": (normal(), normal(), normal()),
        "a step": (normal(), np.full(size, -1e-3), normal()),
        "an average": (normal(), np.full(size, 0.1), 1e-3 * normal()),
        "exponents": tuple(normal() * 2.0 ** rng.integers(-30, 30, size) for _ in range(3)),
    }
    return {**{k: tuple(x.astype(f32) for x in v) for k, v in made.items()}, "twice rounded": twice_rounded(size)}


@pytest.mark.parametrize("kind", kinds(1))
def test_a_multiply_add_is_rounded_once(kind):
    a, b, c = kinds(25 * 10**5)[kind]
    assert differing(jax.jit(cuda_arithmetic._fma)(a, b, c), fma(a, b, c)) == 0


def test_rounding_to_float64_first_goes_wrong():
    a, b, c = twice_rounded(1000)
    through = (np.float64(a) * np.float64(b) + np.float64(c)).astype(f32)
    assert differing(through, fma(a, b, c)) == 1000


def test_the_oracles_multiply_add_is_the_c_librarys():
    fmaf = ctypes.CDLL(ctypes.util.find_library("m")).fmaf
    fmaf.restype, fmaf.argtypes = ctypes.c_float, [ctypes.c_float] * 3
    for a, b, c in kinds(3000).values():
        assert (
            differing(fma(a, b, c), np.array([fmaf(*map(float, each)) for each in zip(a, b, c, strict=True)], f32)) == 0
        )


def test_a_multiply_add_of_what_is_not_finite():
    values = np.array([0.0, -0.0, 1.0, -2.5, np.inf, -np.inf, np.nan, 3e38], f32)
    a, b, c = (x.ravel() for x in np.meshgrid(values, values, values))
    with np.errstate(all="ignore"):
        expected = (np.float64(a) * np.float64(b) + np.float64(c)).astype(f32)
    np.testing.assert_array_equal(jax.jit(cuda_arithmetic._fma)(a, b, c), expected)


def test_a_square_is_rounded_before_it_is_taken_away():
    a, b, _ = kinds(10**6)["normal"]
    difference = jax.jit(lambda x, y: y - cuda_arithmetic._mul(x, x))(a, b)
    assert differing(difference, b - a * a) == 0


@pytest.mark.parametrize("operation", ["div", "sqrt", "mul"])
def test_quotients_roots_and_products(operation):
    a, b, _ = kinds(10**6)["exponents"]
    given = (np.abs(a),) if operation == "sqrt" else (a, b)
    expected = {"div": np.divide, "sqrt": np.sqrt, "mul": np.multiply}[operation](*given)
    assert differing(jax.jit(getattr(cuda_arithmetic, f"_{operation}"))(*given), expected) == 0


# What a GPU is given

LEAF = "tensor<7xf32>"


def cuda_program(optimizer: optim.Optimizer) -> list[str]:
    """The functions of the lowered step."""
    p = jnp.ones(7)
    step = jax.jit(optimizer.step).trace(p, optimizer.init(p), p)
    return re.split(r"\n  func\.func ", step.lower(lowering_platforms=("cuda",)).as_text())


def left_to_xla(functions: list[str]) -> set[str]:
    """Of a leaf's float32 arithmetic: divisions, roots, and products that go into a sum as they are."""
    found = set()
    for function in functions:
        lines = re.findall(r"(%\S+) = stablehlo\.(\w+) ([^:\n]*) : (?:\(.*\) -> )?(\S+)", function)
        products = {name for name, operation, _, kind in lines if operation == "multiply" and kind == LEAF}
        for _, operation, operands, kind in lines:
            if kind == LEAF and operation in ("divide", "sqrt", "rsqrt", "power"):
                found.add(operation)
            if operation in ("add", "subtract") and products & set(re.split(r",\s*", operands)):
                found.add("multiply-add")
    return found


@pytest.mark.parametrize(
    ("name", "options"), CASES, ids=lambda x: x if isinstance(x, str) else "-".join(x) or "default"
)
def test_the_program_for_cuda_leaves_nothing_to_xla(name, options):
    assert left_to_xla(cuda_program(optim.exact(optim.optimizers[name](**options)))) == set()


def test_the_ordinary_program_leaves_everything_to_xla():
    assert left_to_xla(cuda_program(optim.rmsprop())) == {"divide", "sqrt", "multiply-add"}


# It is the same optimizer otherwise

PARAMS = {"bias": jnp.arange(3.0), "kernel": jnp.linspace(-1.0, 1.0, 12).reshape(4, 3), "scale": jnp.float32(2.0)}


def grads(seed: int) -> dict[str, Any]:
    return jax.tree.map(lambda x: x * (seed + 0.3) + 0.1, PARAMS)


def run(optimizer: optim.Optimizer, given: list[Any], step: Any = None) -> tuple[Any, Any]:
    params, state = PARAMS, optimizer.init(PARAMS)
    for g in given:
        params, state = (step or jax.jit(optimizer.step))(g, state, params)
    return params, state


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_state_is_the_optimizers_own(name):
    plain = optim.optimizers[name]()
    exact = optim.exact(plain)
    assert_same_bits(exact.init(PARAMS), plain.init(PARAMS))
    new, expected = (run(optimizer, [grads(0)]) for optimizer in (exact, plain))
    assert_same_types(new, expected)
    assert jax.tree.structure(new) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(new), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, 1e-5, 1e-6)


def test_leaves_are_alike_whatever_their_shape():
    """A number is a number for a parameter without axes, too: x / number is x * (1 / number) there as well."""
    optimizer = optim.exact(optim.adam(weight_decay=0.1))
    vector, _ = jax.jit(optimizer.step)(jnp.full(1, 0.3), optimizer.init(jnp.full(1, 1.7)), jnp.full(1, 1.7))
    scalar, _ = jax.jit(optimizer.step)(jnp.float32(0.3), optimizer.init(jnp.float32(1.7)), jnp.float32(1.7))
    assert differing(vector[0], scalar) == 0


def test_groups_rates_and_what_does_not_step():
    groups = [optim.ParamGroup("bias", lr=0.5, maximize=True), optim.ParamGroup("scale", frozen=True)]
    optimizer = optim.exact(optim.sgd(lr=0.25, param_groups=groups))
    params, state = run(optimizer, [{**grads(0), "kernel": None}])
    assert_same_bits(params["kernel"], PARAMS["kernel"])
    assert_same_bits(params["scale"], PARAMS["scale"])
    np.testing.assert_array_equal(params["bias"], fma(0.5, grads(0)["bias"], PARAMS["bias"]))
    params, _ = optimizer.step(grads(1), optim.set_hyper(state, lr=0.125, group=0), PARAMS)
    np.testing.assert_array_equal(params["kernel"], fma(-0.125, grads(1)["kernel"], PARAMS["kernel"]))


def test_one_trace_for_all_rates():
    optimizer = optim.exact(optim.adamw())
    step, state = CountTraces(optimizer.step), optimizer.init(PARAMS)
    for rate in (0.1, 0.2):
        _, state = step(grads(0), optim.set_hyper(state, lr=rate), PARAMS)
    assert step.traces == 1


@pytest.mark.parametrize("name", ["adam", "rmsprop", "sgd"])
def test_flat_every_k_donation_and_a_loop(name):
    exact = optim.exact(optim.optimizers[name]())
    given = [grads(0), grads(1)]
    expected = run(exact, given)
    flat = optim.flat(exact)
    params, state = run(flat, given)
    assert_same_bits((params, optim.unflatten_state(flat, state, PARAMS)), expected)
    assert_same_bits(run(exact, given, exact.step), expected)  # not jitted
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *given)
    start = jax.tree.map(jnp.copy, (PARAMS, exact.init(PARAMS)))

    @partial(jax.jit, donate_argnums=0)
    def loop(carry: Any, gradients: Any) -> Any:
        return jax.lax.scan(lambda c, g: (exact.step(g, c[1], c[0]), None), carry, gradients)[0]

    assert_same_bits(loop(start, stacked), expected)
    every = optim.every_k(exact, 1)
    assert_same_bits(run(every, given)[0], expected[0])


@pytest.mark.parametrize("name", ELEMENTWISE)
@pytest.mark.parametrize("mapped", [False, True], ids=["jit", "shard_map"])
def test_on_a_mesh(mapped, name):
    """Where JAX says by operations of its own how arrays are divided, and over which axes they vary."""
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    exact, given = optim.exact(optim.optimizers[name]()), [grads(0), grads(1)]
    expected = run(exact, given)
    axes = {"bias": ("data",), "kernel": (None, "data"), "scale": ()}
    with jax.set_mesh(mesh):
        places = {k: jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*v)) for k, v in axes.items()}
        params, state, step = jax.device_put(PARAMS, places), exact.init(PARAMS), exact.step
        if mapped:
            specs = jax.tree.map(lambda place: place.spec, places)
            scalars = jax.tree.map(lambda _: jax.sharding.PartitionSpec(), state)
            slots = state.slots._replace(**{k: specs for k, v in state.slots._asdict().items() if v is not None})
            of_state = scalars._replace(slots=slots)
            state = jax.device_put(state, jax.tree.map(lambda spec: jax.sharding.NamedSharding(mesh, spec), of_state))
            step = jax.shard_map(step, in_specs=(specs, of_state, specs), out_specs=(specs, of_state))
        for each in given:
            params, state = jax.jit(step)(jax.device_put(each, places), state, params)
    assert_same_bits((params, state), expected)


def test_the_ordinary_step_stays_as_it_is():
    plain = optim.rmsprop()
    before = run(plain, [grads(0), grads(1)])
    exact = run(optim.exact(plain), [grads(0), grads(1)])
    assert_same_bits(run(plain, [grads(0), grads(1)]), before)
    assert not np.array_equal(exact[1].slots.square_avg["kernel"], before[1].slots.square_avg["kernel"])


def test_derivatives():
    """The last rounding of a multiply-add is through its bits, which have none."""

    def loss(rate: jax.Array, optimizer: optim.Optimizer) -> jax.Array:
        state = optim.set_hyper(optimizer.init(PARAMS), lr=rate)
        params, _ = optimizer.step(grads(0), state, PARAMS)
        return jnp.stack([jnp.sum(x**2) for x in jax.tree.leaves(params)]).sum()

    plain = optim.adam(lr=0.1, eps=0.1)
    exact, expected = (jax.grad(loss)(0.1, optimizer) for optimizer in (optim.exact(plain), plain))
    assert abs(expected) > 1
    np.testing.assert_allclose(exact, expected, 1e-5)


def test_add_param_group_and_torch():
    optimizer = optim.exact(optim.adam(param_groups=[optim.ParamGroup("bias", frozen=True)]))
    params, state = run(optimizer, [grads(0)])
    new, state = optim.add_param_group(optimizer, state, params, optim.ParamGroup("bias", lr=0.5))
    assert repr(new).startswith("exact(adam(")
    first = optim.exact(optim.adam(lr=0.5))
    expected, _ = first.step(PARAMS["bias"], first.init(PARAMS["bias"]), PARAMS["bias"])
    params, state = new.step({**grads(1), "bias": PARAMS["bias"]}, state, {**params, "bias": PARAMS["bias"]})
    assert_same_bits(params["bias"], expected)
    assert len(optimizer_state_dict(new, state, params)["param_groups"]) == 2


# What it does not take


@pytest.mark.parametrize("name", sorted(set(optim.optimizers) - set(ELEMENTWISE)))
def test_what_is_not_elementwise_is_refused_by_name(name):
    with pytest.raises(ValueError, match=name):
        optim.exact(optim.optimizers[name]())


@pytest.mark.parametrize(
    "around",
    [optim.flat, optim.exact, lambda o: optim.every_k(o, 2), lambda o: o.update],
    ids=["flat", "exact", "every_k", "update"],
)
def test_what_is_around_an_optimizer_goes_around_the_exact_one(around):
    with pytest.raises((TypeError, ValueError), match="as its factory returns it"):
        optim.exact(around(optim.adam()))


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16", "complex64"])
def test_other_dtypes_are_refused_by_name(dtype):
    with float64():
        params = jnp.ones(3, dtype)
        state = optim.adam().init(params)
        optimizer = optim.exact(optim.adam())
        for call in (lambda: optimizer.init(params), lambda: optimizer.step(params, state, params)):
            with pytest.raises(TypeError, match=f"one is {dtype}"):
                call()


def test_sparse_gradients_are_refused():
    rows = BCOO((jnp.full((1, 3), 0.5), jnp.array([[2]])), shape=(4, 3))
    optimizer = optim.exact(optim.sgd())
    params = PARAMS["kernel"]
    with pytest.raises(TypeError, match="todense"):
        optimizer.step(rows, optimizer.init(params), params)


def test_other_arithmetic_is_refused_by_name():
    def update(p, g, s, c):
        return p - c.lr * jnp.tanh(g), s

    rule = Rule("bounded", AdamState, lambda step, h, s: ({"lr": h.lr}, s), update, elementwise=True)
    optimizer = optim.exact(optim.lift(rule, {"lr": 0.1}))
    with pytest.raises(ValueError, match="bounded computes 'tanh'"):
        optimizer.step(jnp.ones(2), optimizer.init(jnp.ones(2)), jnp.ones(2))

"""L-BFGS in an ordinary process: beside torch's on the same functions, and what it refuses. Bits: test_exact.py."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_port as optim
from jaxopt_port.closure import lbfgs_memory
from tests.helpers import CountTraces, assert_close, assert_same_bits

torch: Any = pytest.importorskip("torch")

STARTS = {
    "float32": np.linspace(-1, 1, 10).astype(np.float32),
    "complex64": (np.linspace(-1, 1, 10) + 1j * np.linspace(2, 0, 10)).astype(np.complex64),
}
SEARCHES = pytest.mark.parametrize("line_search_fn", [None, "strong_wolfe"])


def bowl(x: Any) -> Any:
    """A convex function, in operations that jax and torch arrays share."""
    off = abs(x - 0.25) ** 2
    return (off + 0.1 * off * off).sum()


def torch_steps(fun: Callable[[Any], Any], start: np.ndarray, steps: int = 1, **options: Any) -> tuple[Any, Any, Any]:
    """The last step's loss, the parameters and the optimizer's state."""
    x = torch.nn.Parameter(torch.from_numpy(start.copy()))
    optimizer = torch.optim.LBFGS([x], **options)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = fun(x)
        loss.backward()
        return loss.detach()

    loss = torch.nan
    for _ in range(steps):
        loss = optimizer.step(closure)
    return float(loss), x.detach().numpy(), optimizer.state[x]


def our_steps(fun: Callable[[Any], Any], start: np.ndarray, steps: int = 1, **options: Any) -> tuple[Any, Any, Any]:
    optimizer, x, loss = optim.lbfgs(**options), jnp.asarray(start), jnp.nan
    state = optimizer.init(x)
    for _ in range(steps):
        loss, x, state = optimizer.step_closure(fun, state, x)
    return float(loss), np.asarray(x), state


def counts(state: Any) -> tuple[int, int]:
    """Evaluations and iterations, of a state of torch's or of ours."""
    found = state.steps[0] if isinstance(state, optim.OptState) else state
    return int(found["func_evals"]), int(found["n_iter"])


@pytest.mark.parametrize("size", [3 * lbfgs_memory.BLOCK, lbfgs_memory.LONG + 3])
@pytest.mark.parametrize("bad", [None, jnp.inf, jnp.nan])
def test_the_direction_of_a_long_vector_is_the_same_in_blocks(size: int, bad: float | None):
    keys = jax.random.split(jax.random.key(0), 3)
    ys, steps, grad = (
        jax.random.normal(key, shape) for key, shape in zip(keys, [(4, size)] * 2 + [(size,)], strict=True)
    )
    state = optim.lbfgs(history_size=4).init(grad).slots._replace(
        old_dirs=ys, old_stps=steps, ro=jnp.full(4, 1 / size), H_diag=jnp.float32(0.5), oldest=jnp.int32(3),
        stored=jnp.int32(4),
    )  # fmt: skip
    if bad is not None:
        state = state._replace(old_dirs=ys.at[1, size // 3].set(bad))
    whole, blocks = (jax.jit(partial(lbfgs_memory._two_loops, blocked=b))(state, grad) for b in (False, True))
    np.testing.assert_array_equal(jnp.isnan(blocks), jnp.isnan(whole))
    assert bool(jnp.isnan(whole).any()) == (bad is not None)
    if bad is None:
        np.testing.assert_allclose(blocks, whole, 1e-5, 1e-5)


@SEARCHES
@pytest.mark.parametrize("dtype", STARTS)
def test_torchs_numbers(dtype: str, line_search_fn: str | None):
    options = {"line_search_fn": line_search_fn, "max_iter": 4, "lr": 0.5, "history_size": 3}
    loss, x, state = our_steps(bowl, STARTS[dtype], 2, **options)
    expected_loss, expected, expected_state = torch_steps(bowl, STARTS[dtype], 2, **options)
    assert counts(state) == counts(expected_state)
    np.testing.assert_allclose(loss, expected_loss, 1e-5)
    np.testing.assert_allclose(x, expected, 1e-4, 1e-5)
    assert int(state.slots.stored) == len(expected_state["old_dirs"])
    for name in ("d", "t", "prev_flat_grad", "prev_loss", "H_diag"):
        found = np.asarray(getattr(state.slots, name))
        found = found.view(np.float32) if np.iscomplexobj(found) else found  # torch's vector, of a tree like ours
        np.testing.assert_allclose(found, np.asarray(expected_state[name]), 1e-2, 1e-5)


def test_the_memory_is_history_size_pairs_and_no_more():
    optimizer, params = optim.lbfgs(history_size=7), {"w": jnp.ones((10, 10)), "b": jnp.ones(100)}
    vectors = sum(x.nbytes for x in jax.tree.leaves(optimizer.init(params))) / (200 * 4)
    assert 2 * 7 + 2 <= vectors < 2 * 7 + 3  # differences of gradients and parameters, direction, gradient


def wrong_way(x: jax.Array) -> jax.Array:
    """A loss whose gradient points down instead of up."""
    return jax.lax.stop_gradient(2 * jnp.sum(x * x)) - jnp.sum(x * x)


@SEARCHES
def test_a_direction_that_ascends(line_search_fn: str | None):
    start, options = np.array([3.0, -2.0], np.float32), {"line_search_fn": line_search_fn, "lr": 0.1, "max_iter": 4}
    _, x, state = our_steps(wrong_way, start, **options)
    _, expected, expected_state = torch_steps(lambda x: 2 * (x * x).sum().detach() - (x * x).sum(), start, **options)
    assert counts(state) == counts(expected_state)
    np.testing.assert_allclose(x, expected, 1e-5)
    # The search tries lengths until all evaluations of the step are spent.
    assert int(state.slots.stop) == (optim.Stop.MAX_EVAL if line_search_fn else optim.Stop.MAX_ITER)


def test_an_inverse_hessian_that_ascends():
    """A state that is not of this function can make an ascent direction: torch ends the step where it is."""
    start = np.array([3.0, -2.0], np.float32)
    _, params, torch_state = torch_steps(bowl, start, max_iter=2)
    optimizer = optim.lbfgs(max_iter=2)
    _, x, state = our_steps(bowl, start, max_iter=2)
    state = state._replace(slots=state.slots._replace(H_diag=jnp.float32(-100)))
    # No pair is added where nothing has moved: the gradient is the last one, and the step 0.
    state = state._replace(slots=state.slots._replace(t=jnp.float32(0), stored=jnp.int32(0)))
    _, after, state = optimizer.step_closure(bowl, state, jnp.asarray(x))
    p = torch.nn.Parameter(torch.from_numpy(params.copy()))
    theirs = torch.optim.LBFGS([p], max_iter=2)
    theirs.state[p].update(torch_state, H_diag=torch.tensor(-100.0), t=0, old_dirs=[], old_stps=[], ro=[])

    def closure() -> Any:
        theirs.zero_grad()
        loss = bowl(p)
        loss.backward()
        return loss

    theirs.step(closure)
    assert counts(state) == counts(theirs.state[p])
    np.testing.assert_array_equal(after, x)
    np.testing.assert_array_equal(p.detach().numpy(), params)
    assert int(state.slots.stop) == optim.Stop.DIRECTION


def test_a_zero_gradient_at_the_start():
    start = np.full(2, 0.25, np.float32)
    loss, x, state = our_steps(bowl, start)
    np.testing.assert_array_equal(x, start)
    assert (loss, counts(state), int(state.slots.stop)) == (0.0, (1, 0), optim.Stop.GRADIENT)


def test_optax_extra_arguments_take_the_same_step():
    optimizer, start = optim.lbfgs(max_iter=3), {"x": jnp.asarray(STARTS["float32"])}

    def closure(params: Any, scale: Any) -> Any:
        return bowl(params["x"]) * scale

    @jax.jit
    def update(params: Any, state: Any) -> tuple[Any, Any]:
        value, grad = jax.value_and_grad(closure)(params, scale=2.0)
        extra = {"value": value, "grad": grad, "value_fn": closure, "scale": 2.0, "unknown": 1.0}
        updates, state = optax.chain(optimizer).update(grad, (state,), params, **extra)
        return optax.apply_updates(params, updates), state[0]

    a, b = start, start
    state_a = state_b = optimizer.init(start)
    for _ in range(2):
        _, a, state_a = optimizer.step_closure(closure, state_a, a, 2.0)
        b, state_b = update(b, state_b)
    assert_close(a, b)
    assert counts(state_a) == counts(state_b)


def test_a_batch_and_aux_without_a_second_trace():
    optimizer, params = optim.lbfgs(max_iter=2), jnp.ones(3)

    def closure(x: jax.Array, batch: jax.Array) -> Any:
        off = x - batch
        return jnp.sum(off * off), off

    step = CountTraces(lambda state, x, batch: optimizer.step_closure(closure, state, x, batch, has_aux=True))
    state = optimizer.init(params)
    for at in range(3):
        batch = jnp.arange(3.0) + at
        (loss, aux), new, state = step(state, params, batch)
        np.testing.assert_array_equal(aux, params - batch)
        assert float(loss) == float(jnp.sum(aux * aux))
        params = new
    assert step.traces == 1


def test_the_learning_rate_is_live():
    start = STARTS["float32"]
    optimizer, x = optim.lbfgs(max_iter=1), jnp.asarray(start)
    step = CountTraces(lambda state, x: optimizer.step_closure(bowl, state, x))
    state = optimizer.init(x)
    for lr in (1.0, 0.125):
        _, after, _ = step(optim.set_hyper(state, lr=lr), x)
        np.testing.assert_allclose(after, torch_steps(bowl, start, lr=lr, max_iter=1)[1], 1e-5, 1e-6)
    assert step.traces == 1


@SEARCHES
def test_maximize(line_search_fn: str | None):
    """torch 2.14's: gradients and losses negated inside, and the loss that is returned is the closure's own."""
    options = {"line_search_fn": line_search_fn, "max_iter": 4, "lr": 0.5}
    start = STARTS["float32"]
    loss, x, state = our_steps(lambda x: 3 - bowl(x), start, 2, maximize=True, **options)
    expected_loss, expected, expected_state = torch_steps(lambda x: bowl(x) - 3, start, 2, **options)
    assert counts(state) == counts(expected_state)
    np.testing.assert_allclose(loss, -expected_loss, 1e-5)
    np.testing.assert_allclose(x, expected, 1e-4, 1e-5)
    np.testing.assert_allclose(state.slots.prev_flat_grad, expected_state["prev_flat_grad"], 1e-2, 1e-5)
    np.testing.assert_allclose(state.slots.prev_loss, expected_state["prev_loss"], 1e-5)
    end = optim.minimize(optim.lbfgs(maximize=True, **options), lambda x: 3 - bowl(x), jnp.asarray(start))
    np.testing.assert_allclose(end.params, 0.25, atol=1e-3)
    np.testing.assert_allclose(end.loss, 3.0, 1e-5)


def test_a_step_without_parameters_evaluates_the_closure_once():
    optimizer = optim.lbfgs(line_search_fn="strong_wolfe")
    for params in ({}, []):
        loss, after, state = optimizer.step_closure(lambda params: jnp.float32(3.5), optimizer.init(params), params)
        assert (float(loss), after, counts(state)) == (3.5, params, (1, 0))


def test_a_state_goes_on_where_it_was():
    """A step of four iterations, and one that goes on from a copy on the host."""
    optimizer, x = optim.lbfgs(max_iter=2), jnp.asarray(STARTS["float32"])
    _, x, state = optimizer.step_closure(bowl, optimizer.init(x), x)
    again = jax.device_get(state)
    assert_same_bits(optimizer.step_closure(bowl, again, x), optimizer.step_closure(bowl, state, x))


def test_bfloat16_parameters_keep_their_type():
    _, x, state = our_steps(bowl, np.asarray(jnp.linspace(-1, 1, 10, dtype=jnp.bfloat16)), max_iter=5)
    assert x.dtype == jnp.bfloat16
    assert state.slots.d.dtype == jnp.float32
    assert np.abs(x.astype(np.float32) - 0.25).max() < 0.02


@pytest.mark.parametrize(
    "options", [{"lr": -1.0}, {"lr": np.ones(2)}, {"line_search_fn": "armijo"}], ids=lambda options: str(options)
)
def test_refused_in_torchs_words(options: dict[str, Any]):
    def outcome(call: Callable[[], Any]) -> tuple[type, str] | None:
        try:
            call()
        except Exception as error:
            return type(error), str(error)
        return None

    given = {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    expected = outcome(lambda: torch_steps(bowl, STARTS["float32"], **given))
    assert expected is not None
    assert outcome(lambda: optim.lbfgs(**options)) == expected


@pytest.mark.parametrize("factory", [optim.lbfgs, optim.nonlinear_cg])
def test_refused(factory: Callable[..., optim.Optimizer]):
    optimizer, params = factory(), {"x": jnp.ones(2)}
    state = optimizer.init(params)
    for call in (optimizer.step, optimizer.update):
        with pytest.raises(TypeError, match="step_closure"):
            call(params, state, params)
    with pytest.raises(ValueError, match="parameter groups"):
        factory(param_groups=[optim.ParamGroup("x", lr=0.1)])
    with pytest.raises(ValueError, match="another optimizer's"):
        optimizer.step_closure(lambda p: p["x"].sum(), optim.adam().init(params), params)
    with pytest.raises(TypeError, match="'x' is int32: only floating point"):
        optimizer.init({"x": jnp.ones(2, int)})
    with pytest.raises(TypeError, match="scalar"):
        optimizer.step_closure(lambda p: p["x"], state, params)


@pytest.mark.parametrize("factory", [optim.lbfgs, optim.nonlinear_cg])
@pytest.mark.parametrize("value", [2.5, -1, "3"])
@pytest.mark.parametrize("name", ["max_iter", "max_eval"])
def test_counts_are_integers(factory: Callable[..., optim.Optimizer], name: str, value: Any):
    with pytest.raises(ValueError, match=f"{name} should be an integer >= 0 but is: {value!r}"):
        factory(**{name: value})


@pytest.mark.parametrize("value", [2.5, 0])
def test_the_history_is_a_count(value: Any):
    with pytest.raises(ValueError, match=f"history_size should be an integer >= 1 but is: {value!r}"):
        optim.lbfgs(history_size=value)


@pytest.mark.parametrize("factory", [optim.lbfgs, optim.nonlinear_cg, optim.sgd])
def test_a_closure_reads_its_batch_from_a_variable_around_it(factory: Callable[..., optim.Optimizer]):
    optimizer, params = factory(), {"x": jnp.zeros(2)}
    state = optimizer.init(params)
    batch = jnp.zeros(2)

    def closure(params: Any) -> Any:
        return (jax.nn.relu(params["x"] - batch) ** 2 + (params["x"] - batch) ** 2).sum()

    for number in range(3):
        batch = jnp.full(2, 1.0 + number)
        expected = closure(params)
        loss, params, state = optimizer.step_closure(closure, state, params)
        np.testing.assert_allclose(loss, expected, 1e-6)

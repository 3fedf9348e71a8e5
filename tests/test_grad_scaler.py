"""GradScaler against torch's, step by step."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

import jaxopt_port as optim
from tests.helpers import CountTraces, assert_same_bits, make_params

torch = pytest.importorskip("torch")
from tests.oracle import to_numpy, to_torch  # noqa: E402

OPTIONS = {"init_scale": 8.0, "growth_factor": 2.5, "backoff_factor": 0.3, "growth_interval": 2}
GOOD, BAD = [0.5, -1.5, 1e-3], [1.0, np.inf, np.nan]
PATTERN = [GOOD, GOOD, BAD, GOOD, BAD, BAD, GOOD, GOOD, GOOD, GOOD]


def torch_run(grads, options, enabled=True):
    """The scale, the tracker and the parameter after each step with a gradient of the scaled loss."""
    scaler = torch.amp.GradScaler("cpu", enabled=enabled, **options)
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([p], lr=0.1, foreach=False)
    found = []
    for g in grads:
        scale = scaler.scale(torch.ones(()))
        p.grad = torch.tensor(g) * scale
        scaler.step(optimizer)
        scaler.update()
        state = scaler.state_dict()
        found.append(
            (state.get("scale"), state.get("_growth_tracker"), to_numpy(p), float(optimizer.state[p].get("step", 0)))
        )
    return found


@pytest.mark.parametrize("enabled", [True, False])
def test_a_run_is_torchs(enabled):
    scaler, optimizer = optim.GradScaler(enabled=enabled, **OPTIONS), optim.adam(lr=0.1)
    params = {"w": jnp.ones(3)}

    @CountTraces
    def step(params, state, scaling, g):
        grads = {"w": g * scaler.scale(scaling, jnp.ones(()))}
        params, state, found_inf = scaler.step(optimizer, scaling, grads, state, params, None)
        return params, state, scaler.update(scaling, found_inf)

    carry = params, optimizer.init(params), scaler.init()
    for g, (scale, tracker, p, count) in zip(PATTERN, torch_run(PATTERN, OPTIONS, enabled), strict=True):
        before, carry = carry, step(*carry, jnp.array(g))
        params, state, scaling = carry
        assert (scaling.scale.dtype, scaling.growth_tracker.dtype) == (jnp.float32, jnp.int32)
        if enabled:
            assert (float(scaling.scale), int(scaling.growth_tracker)) == (scale, tracker)
        else:
            assert_same_bits(scaling, before[2])
        if enabled and g is BAD:
            assert_same_bits(carry[:2], before[:2])
        np.testing.assert_allclose(params["w"], p, 1e-6)
        assert state.steps[0]["step"] == count
    assert step.traces == 1


@pytest.mark.parametrize("enabled", [True, False])
def test_get_scale(enabled):
    scaler, theirs = (
        optim.GradScaler(enabled=enabled, **OPTIONS),
        torch.amp.GradScaler("cpu", enabled=enabled, **OPTIONS),
    )
    state, p = scaler.init(), torch.nn.Parameter(torch.ones(1))
    assert scaler.get_scale(state) == theirs.get_scale()
    sgd = torch.optim.SGD([p])
    for value in (1.0, np.inf, 1.0, 1.0):
        theirs.scale((p * value).sum()).backward()
        theirs.step(sgd)
        theirs.update()
        sgd.zero_grad()
        state = scaler.update(state, jnp.array(np.isinf(value)))
        assert scaler.get_scale(state) == theirs.get_scale()
        assert isinstance(scaler.get_scale(state), float)
    assert jax.jit(scaler.get_scale)(state) == theirs.get_scale()


def test_in_scan():
    scaler, optimizer = optim.GradScaler(**OPTIONS), optim.adam(lr=0.1)
    params = {"w": jnp.ones(3)}

    def body(carry, g):
        params, state, scaling = carry
        grads = {"w": g * scaling.scale}
        params, state, found_inf = scaler.step(optimizer, scaling, grads, state, params, None)
        return (params, state, scaler.update(scaling, found_inf)), scaling.scale

    start = params, optimizer.init(params), scaler.init()
    end, _ = jax.jit(lambda c: jax.lax.scan(body, c, jnp.array(PATTERN)))(start)
    scale, tracker, p, _ = torch_run(PATTERN, OPTIONS)[-1]
    assert (float(end[2].scale), int(end[2].growth_tracker)) == (scale, tracker)
    np.testing.assert_allclose(end[0]["w"], p, 1e-6)
    assert optim.get_hyper(end[1])[0]["lr"] == 0.1


@pytest.mark.parametrize("scale", [65536.0, 3.0, 1e-3, 1.0, 2.0**127])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_unscale_and_scale_have_torchs_bits(dtype, scale):
    """The reciprocal of the largest scale is subnormal: with it all gradients became 0, and none of them infinite."""
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    values = np.random.default_rng(0).standard_normal(400).astype(kind)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    for outputs in (torch.tensor(0.7).to(to_torch(values).dtype), to_torch(values)):
        with jax.enable_x64(dtype == "float64"):
            ours = optim.GradScaler(init_scale=scale)
            actual, expected = ours.scale(ours.init(), to_numpy(outputs)), to_numpy(scaler.scale(outputs))
            assert actual.dtype == expected.dtype
            assert_same_bits(actual, expected)
    values = (values.astype(np.float64) * min(scale, 2.0**120)).astype(kind)
    p = torch.nn.Parameter(to_torch(values))
    p.grad = to_torch(values)
    scaler.unscale_(torch.optim.SGD([p]))
    with jax.enable_x64(dtype == "float64"):
        ours = optim.GradScaler(init_scale=scale)
        actual, found_inf = ours.unscale(ours.init(), {"w": values, "none": None})
        assert_same_bits(actual["w"], to_numpy(p.grad))
        assert not found_inf


def test_scale_of_a_tree_and_of_half():
    scaler = optim.GradScaler(init_scale=4.0)
    state = scaler.init()
    theirs = torch.amp.GradScaler("cpu", init_scale=4.0)
    half = torch.tensor([1.0, 3e4], dtype=torch.float16)
    expected = theirs.scale([half, half[0]])
    actual = scaler.scale(state, [to_numpy(half), to_numpy(half[0])])
    assert_same_bits(actual, [to_numpy(x) for x in expected])


def test_growth_stops_at_infinity():
    scaler = optim.GradScaler(init_scale=2.0**126, growth_interval=1)
    state, theirs = scaler.init(), torch.amp.GradScaler("cpu", init_scale=2.0**126, growth_interval=1)
    p = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([p])
    for _ in range(3):
        theirs.scale(torch.ones(()))
        p.grad = torch.zeros(1)
        theirs.step(optimizer)
        theirs.update()
        state = scaler.update(state, jnp.zeros((), bool))
        assert float(state.scale) == theirs.get_scale() <= 2.0**127
        assert int(state.growth_tracker) == 0


def test_clipping_between_unscale_and_step():
    """The torch recipe: unscale_, clip_grad_norm_, step."""
    scaler, optimizer = optim.GradScaler(init_scale=16.0), optim.sgd(lr=1.0)
    params, grads = {"w": jnp.zeros(2)}, {"w": jnp.array([48.0, 64.0])}
    state, scaling = optimizer.init(params), scaler.init()
    unscaled, found_inf = scaler.unscale(scaling, grads)
    clipped, norm = optim.clip_grad_norm(unscaled, 1.0)
    new, _, again = scaler.step(optimizer, scaling, clipped, state, params, found_inf)
    p = torch.nn.Parameter(torch.zeros(2))
    theirs, sgd = torch.amp.GradScaler("cpu", init_scale=16.0), torch.optim.SGD([p], lr=1.0)
    theirs.scale(torch.ones(()))
    p.grad = to_torch(np.asarray(grads["w"]))
    theirs.unscale_(sgd)
    assert float(norm) == torch.nn.utils.clip_grad_norm_([p], 1.0).item() == 5.0
    theirs.step(sgd)
    np.testing.assert_array_equal(new["w"], to_numpy(p))
    assert again is found_inf
    _, state, found_inf = scaler.step(optimizer, scaling, {"w": jnp.array([jnp.nan, 0.0])}, state, params, None)
    assert found_inf


def test_a_none_gradient_and_a_skipped_step():
    """The first None makes the step counter a vector, in a step that is left out as well."""
    params, optimizer, scaler = make_params("adam"), optim.adam(), optim.GradScaler()
    state, scaling = optimizer.init(params), scaler.init()
    grads = {"bias": None, "kernel": jnp.full((4, 3), jnp.inf)}
    new, skipped, _ = jax.jit(scaler.step, static_argnums=0)(optimizer, scaling, grads, state, params, None)
    assert_same_bits(new, params)
    assert_same_bits(skipped.slots, state.slots)
    assert skipped.steps[0]["step"].tolist() == [0, 0]
    _, stepped, _ = scaler.step(optimizer, scaling, {**grads, "kernel": jnp.ones((4, 3))}, skipped, new, None)
    assert stepped.steps[0]["step"].tolist() == [0, 1]


def test_errors_are_torchs():
    out_of_range: list[dict[str, Any]] = [{"growth_factor": 1.0}, {"backoff_factor": 1.0}]
    for options in out_of_range:
        with pytest.raises(AssertionError) as expected:
            torch.amp.GradScaler("cpu", **options)
        with pytest.raises(ValueError, match=str(expected.value).rstrip(".")):
            optim.GradScaler(**options)
    scaler = optim.GradScaler()
    with pytest.raises(ValueError, match="Attempting to unscale FP16 gradients"):
        scaler.unscale(scaler.init(), {"w": jnp.ones(2, jnp.float16)})
    for device in ("cuda", torch.device("cpu")):
        with pytest.raises(TypeError, match=r"init_scale must be a number, not .*GradScaler takes no device"):
            optim.GradScaler(device)  # type: ignore[arg-type]


def test_step_cannot_unscale_twice():
    """Without `found_inf` step could not tell unscaled gradients from those of the scaled loss."""
    scaler, optimizer, params = optim.GradScaler(), optim.sgd(lr=1.0), {"w": jnp.zeros(2)}
    state, scaling, scaled = optimizer.init(params), scaler.init(), {"w": jnp.full(2, 65536.0)}
    grads, found_inf = scaler.unscale(scaling, scaled)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'found_inf'"):
        scaler.step(optimizer, scaling, grads, state, params)  # type: ignore[call-arg]
    expected = scaler.step(optimizer, scaling, scaled, state, params, None)
    assert_same_bits(scaler.step(optimizer, scaling, grads, state, params, found_inf), expected)
    assert expected[0]["w"].tolist() == [-1.0, -1.0]
    with pytest.raises(TypeError, match=r"needs an optimizer of jaxopt_port, not a GradientTransformation.*unscale"):
        scaler.step(optax.chain(optimizer), scaling, grads, state, params, found_inf)  # type: ignore[arg-type]


def test_strict_promotion():
    scaler, optimizer = optim.GradScaler(), optim.sgd()
    params = {"w": jnp.ones(2), "half": jnp.ones(2, jnp.bfloat16)}
    state, scaling = optimizer.init(params), scaler.init()
    expected = scaler.step(optimizer, scaling, scaler.scale(scaling, params), state, params, None)
    with jax.numpy_dtype_promotion("strict"):
        actual = scaler.step(optimizer, scaling, scaler.scale(scaling, params), state, params, None)
        assert_same_bits(scaler.update(scaling, actual[2]), scaler.update(scaling, expected[2]))
    assert_same_bits(actual, expected)

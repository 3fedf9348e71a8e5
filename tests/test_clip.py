"""get_total_norm, clip_grad_norm and clip_grad_value against torch."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jaxopt_port as optim
from tests.helpers import assert_same_bits, make_grads

torch = pytest.importorskip("torch")
from tests.oracle import to_numpy, to_torch  # noqa: E402

NORM_TYPES = [2.0, 1, 0, float("inf"), "inf", -float("inf"), 3, 0.5, -1.0]
MIXES = {
    "float32": ["float32"] * 3,
    "float64": ["float64", "float32"],
    "bfloat16": ["bfloat16"],
    "half": ["float16", "bfloat16", "float32"],
    "complex": ["complex64", "float32"],
    "complex double": ["complex128", "float32", "bfloat16"],
}
SHAPES = [(4, 6), (37,), ()]


def make(mix):
    rng = np.random.default_rng(0)
    draw = [rng.standard_normal(shape) + 1j * rng.standard_normal(shape) for shape in SHAPES]
    kinds = [np.dtype(getattr(ml_dtypes, kind, kind)) for kind in MIXES[mix]]
    return [
        np.asarray(x if kind.kind == "c" else np.real(x)).astype(kind) for x, kind in zip(draw, kinds, strict=False)
    ]


def theirs(clip: Any, grads: Any, *args: Any, **kwargs: Any) -> tuple[Any, list[Any]]:
    """What a function of torch.nn.utils returns and makes of the gradients; None for None."""
    params = [torch.nn.Parameter(torch.zeros(()) if g is None else torch.zeros_like(to_torch(g))) for g in grads]
    for p, g in zip(params, grads, strict=True):
        p.grad = None if g is None else to_torch(g)
    value = clip(params, *args, **kwargs)
    return value, [None if p.grad is None else to_numpy(p.grad) for p in params]


def assert_near(actual, expected, eps):
    actual, expected = (np.asarray(x) for x in (actual, expected))
    assert actual.dtype == expected.dtype
    wide = np.complex128 if actual.dtype.kind == "c" else np.float64
    np.testing.assert_allclose(actual.astype(wide), expected.astype(wide), rtol=eps * jnp.finfo(actual.dtype).eps)


@pytest.mark.parametrize("norm_type", NORM_TYPES)
@pytest.mark.parametrize("mix", MIXES)
def test_norm_and_clipping(mix, norm_type):
    grads = make(mix)
    # A GPU's float32 roots and quotients are an ulp off, and the norm of a float32 gradient counts in a double one.
    float32_in_double = jax.default_backend() != "cpu" and mix in ("float64", "complex double")
    eps = 6 * (np.finfo(np.float32).eps / np.finfo(np.float64).eps if float32_in_double else 1)
    with jax.enable_x64("double" in mix or mix == "float64"):
        for max_norm in (0.7, 1e6):
            total, clipped = theirs(torch.nn.utils.clip_grad_norm_, grads, max_norm, norm_type)
            actual, norm = optim.clip_grad_norm(list(map(jnp.asarray, grads)), max_norm, norm_type)
            assert_near(norm, to_numpy(total), eps)
            for one, other in zip(actual, clipped, strict=True):
                assert_near(one, other, eps if one.dtype.itemsize >= 8 else 6)
            assert_same_bits(optim.get_total_norm(list(map(jnp.asarray, grads)), norm_type), norm)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("norm_type", [2.0, 1.0, float("inf"), 3.0])
def test_large_norms_are_nearer_to_the_true_one_than_torchs(norm_type, dtype):
    """torch adds up in few registers: 80 eps off for a million numbers. Two of its threads are no other torch here,
    for it takes 2-norms on one."""
    rng = np.random.default_rng(0)
    grads = [rng.standard_normal(shape).astype(dtype) for shape in ((700, 900), (300,), (64, 3, 5, 5))]
    true = np.linalg.norm(np.concatenate([g.ravel() for g in grads]).astype(np.longdouble), norm_type)
    torchs = torch.nn.utils.get_total_norm(list(map(to_torch, grads)), norm_type).item()
    with jax.enable_x64(dtype == "float64"):
        ours = jax.jit(lambda grads: optim.get_total_norm(grads, norm_type))(grads)
    assert ours.dtype == dtype
    assert abs(float(ours) - true) <= max(abs(torchs - true), 4 * np.finfo(dtype).eps * true)


@pytest.mark.parametrize("values", [[3.0, np.nan], [np.inf, 1.0], [-np.inf, 1.0], [0.0, -0.0], [1e30, 1e30]])
def test_norms_that_are_not_finite_and_zeros(values):
    grads = [np.array(values, np.float32), None, np.ones(1, np.float32)]
    for norm_type in (2.0, float("inf"), 1.0):
        total, clipped = theirs(torch.nn.utils.clip_grad_norm_, grads, 1.0, norm_type)
        actual, norm = optim.clip_grad_norm(grads, 1.0, norm_type)
        np.testing.assert_array_equal(norm, to_numpy(total))
        assert actual[1] is None
        for one, other in zip(actual[::2], clipped[::2], strict=True):
            np.testing.assert_allclose(one, other, 1e-6)
            number = ~np.isnan(other)  # the sign of a NaN is the processor's: inf * 0 has one on x86, none on a GPU
            np.testing.assert_array_equal(np.signbit(one)[number], np.signbit(other)[number])


@pytest.mark.parametrize("norm_type", [*NORM_TYPES, 20.0, 1e-3])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "complex64"])
def test_one_element_is_its_absolute_value(dtype, norm_type):
    """By powers and roots 5e29 would be infinite and 3e-32 zero."""
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    with jax.enable_x64(dtype == "float64"):
        for value in (5e29, -3e-32, 0.0, -0.0, -2.0, np.inf, np.nan):
            for grads in ([np.full(shape, value).astype(kind)] for shape in ((), (1,), (1, 1))):
                expected = torch.nn.utils.get_total_norm(list(map(to_torch, grads)), norm_type)
                actual = optim.get_total_norm(list(map(jnp.asarray, grads)), norm_type)
                assert_same_bits(actual, to_numpy(expected))


@pytest.mark.parametrize("norm_type", [2.0, 3.0, 2.5, 20.0, -2.0])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "complex64"])
def test_powers_that_are_subnormal(dtype, norm_type):
    """From where most powers vanish in torch to where they are ordinary numbers."""
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    unit = float(jnp.finfo(jnp.float64 if dtype == "float64" else jnp.float32).smallest_subnormal)
    draw = np.random.default_rng(0).uniform(0.5, 2.0, 60)
    with jax.enable_x64(dtype == "float64"):
        norm = jax.jit(lambda g: optim.get_total_norm([g], norm_type))
        for units in 10.0 ** np.arange(13):
            g = (draw * units ** (1 / norm_type) * unit ** (1 / norm_type)).astype(kind)
            expected = to_numpy(torch.nn.utils.get_total_norm([to_torch(g)], norm_type))
            assert 0 < float(expected) < np.inf
            # A power is rounded twice here, so that two of all units may be apart. The 8 eps are torch's own: of its
            # root, whose exponent is 1 / p in float32.
            apart = 2 / (len(draw) * units) / jnp.finfo(expected.dtype).eps
            assert_near(norm(jnp.asarray(g)), expected, eps=8 + apart)


@pytest.mark.parametrize("norm_type", [1.0, float("inf")])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "complex64"])
def test_norms_whose_reciprocal_is_subnormal(dtype, norm_type):
    """Their gradients became zeros, or NaN where the maximum is infinite."""
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    grads = [(0.4 * float(jnp.finfo(kind).max) * np.array(part)).astype(kind) for part in ([0.9, -1e-3, 0.0], [0.3])]
    for max_norm in (1.0, 1e30, float("inf")):
        total, expected = theirs(torch.nn.utils.clip_grad_norm_, grads, max_norm, norm_type)
        assert np.isfinite(float(total))
        with jax.enable_x64(dtype == "float64"):
            for clip in (optim.clip_grad_norm, jax.jit(optim.clip_grad_norm, static_argnums=2)):
                actual, _ = clip(list(map(jnp.asarray, grads)), max_norm, norm_type)
                for one, other in zip(actual, expected, strict=True):
                    assert_near(one, other, eps=16)  # a subnormal reciprocal of torch's has lost some bits


def test_nothing_to_clip():
    assert optim.clip_grad_norm({"a": None}, 1.0) == ({"a": None}, 0.0)
    assert optim.get_total_norm(()).dtype == jnp.float32
    assert float(optim.get_total_norm([jnp.zeros(0)])) == 0
    for norm_type in (float("inf"), -1.0):
        with pytest.raises(
            RuntimeError, match="norm on an empty tensor because the operation does not have an identity"
        ):
            torch.nn.utils.get_total_norm([torch.zeros(0)], norm_type)
        with pytest.raises(
            RuntimeError, match="norm on an empty tensor because the operation does not have an identity"
        ):
            optim.get_total_norm([jnp.zeros(0)], norm_type)


def test_error_if_nonfinite_is_torchs():
    grads = [np.array([np.inf], np.float32)]
    with pytest.raises(RuntimeError) as expected:
        theirs(torch.nn.utils.clip_grad_norm_, grads, 1.0, error_if_nonfinite=True)
    for clip in (lambda: optim.clip_grad_norm(grads, 1.0, 2, True), lambda: optim.get_total_norm(grads, 2, True)):
        with pytest.raises(RuntimeError) as actual:
            clip()
        assert str(actual.value) == str(expected.value)
    assert optim.get_total_norm([np.ones(1, np.float32)], error_if_nonfinite=True) == 1
    with pytest.raises(TypeError, match=r"cannot raise under jit.*look at the total norm"):
        jax.jit(lambda grads: optim.clip_grad_norm(grads, 1.0, error_if_nonfinite=True))(grads)


@pytest.mark.parametrize("mix", ["float32", "float64", "bfloat16", "half"])
@pytest.mark.parametrize("clip_value", [0.5, 0.1, 0, -0.5, float("inf")])
def test_clip_value(mix, clip_value):
    special = np.array([np.nan, np.inf, -np.inf, -0.0, 0.1], np.float32)
    grads = [*make(mix), special, None]
    _, expected = theirs(torch.nn.utils.clip_grad_value_, grads, clip_value)
    with jax.enable_x64(mix == "float64"):
        for clip in (optim.clip_grad_value, jax.jit(optim.clip_grad_value)):
            actual = clip([None if g is None else jnp.asarray(g) for g in grads], clip_value)
            assert actual[-1] is None
            for one, other in zip(actual[:-1], expected[:-1], strict=True):
                assert one.dtype == other.dtype
                np.testing.assert_array_equal(np.asarray(one, np.float64), other.astype(np.float64))


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.int32, np.bool_, np.float16])
def test_limits_of_any_dtype(kind):
    """The negative of an unsigned 1 is 255."""
    grads = [np.array([3.0, -4.0, 0.5], np.float32)]
    _, expected = theirs(torch.nn.utils.clip_grad_value_, grads, 1.0)
    assert_same_bits(optim.clip_grad_value(list(map(jnp.asarray, grads)), kind(1)), expected)


def test_what_torch_does_not_clip_either():
    sparse = make_grads("sparse_adam", 0)
    for clip in (optim.clip_grad_norm, optim.clip_grad_value):
        with pytest.raises(NotImplementedError, match=r"sparse gradients cannot be clipped.*todense"):
            clip(sparse, 1.0)
    with pytest.raises(NotImplementedError, match="clamp is not supported for complex types"):
        optim.clip_grad_value([jnp.ones(1, jnp.complex64)], 1.0)


@pytest.mark.parametrize("mix", ["half", "complex"])
def test_strict_promotion(mix):
    grads = make(mix)
    expected = optim.clip_grad_norm(grads, 0.7)
    with jax.numpy_dtype_promotion("strict"):
        assert_same_bits(optim.clip_grad_norm(grads, 0.7), expected)
        assert mix == "complex" or optim.clip_grad_value(grads, 0.1)


def test_norms_as_numbers_and_what_is_none():
    grads = [np.array([3.0, 4.0], np.float32)]
    _, expected = theirs(torch.nn.utils.clip_grads_with_norm_, grads, 1.0, torch.tensor(5.0))
    for norm in (5.0, 5, np.float32(5), jnp.float32(5)):
        assert_same_bits(optim.clip_grads_with_norm(list(map(jnp.asarray, grads)), 1.0, norm), expected)
    for wrong in (None, "1", (1.0, 2.0), np.ones(2)):
        for name, clip in {
            "max_norm": lambda wrong: optim.clip_grad_norm(grads, wrong),
            "total_norm": lambda wrong: optim.clip_grads_with_norm(grads, 1.0, wrong),
            "clip_value": lambda wrong: optim.clip_grad_value(grads, wrong),
        }.items():
            with pytest.raises(TypeError, match=f"{name} must be a number, not "):
                clip(wrong)


def test_frozen_parameters_have_no_gradient_in_torch():
    frozen, trained = (np.full(4, x, np.float32) for x in (np.inf, 3.0))
    total, _ = theirs(torch.nn.utils.clip_grad_norm_, [None, trained], 1.0)
    optimizer = optim.sgd(param_groups=[optim.ParamGroup("frozen", frozen=True)])
    grads = {"frozen": frozen, "trained": trained}
    grads = optim.drop_frozen(optimizer, grads, grads)
    assert_same_bits(optim.clip_grad_norm(grads, 1.0)[1], to_numpy(total))
    scaler = optim.GradScaler()
    assert not scaler.unscale(scaler.init(), grads)[1]


def test_in_jit_with_a_traced_maximum_and_integers_beside():
    grads = {"w": jnp.array([3.0, 4.0]), "n": np.zeros(2, jax.dtypes.float0), "none": None}
    clipped, norm = jax.jit(lambda w, c: optim.clip_grad_norm({**grads, "w": w}, c)[0]["w"])(grads["w"], 0.5), 5.0
    eager, total = optim.clip_grad_norm(grads, 0.5)
    assert_same_bits(clipped, eager["w"])
    assert total == norm
    assert eager["n"].dtype == jax.dtypes.float0
    assert clipped.dtype == jnp.float32


@pytest.mark.parametrize("function", [optim.get_total_norm, jax.jit(optim.get_total_norm)])
def test_a_small_norm_through_transformations(function):
    """The second sum is in a branch of its own."""
    grads = {"a": jnp.full((2, 3), 1e-20), "b": jnp.array([2e-20, 0.0])}
    expected = np.float32(np.sqrt(10) * 1e-20)
    many = jax.tree.map(lambda g: jnp.stack([g, 1e25 * g]), grads)
    np.testing.assert_allclose(function(grads), expected, 1e-5)
    np.testing.assert_allclose(jax.vmap(function)(many), [expected, 1e25 * expected], 1e-5)
    slope = jax.grad(lambda scale: function(jax.tree.map(lambda g: scale * g, grads)))
    np.testing.assert_allclose(slope(1e25), expected, 1e-5)

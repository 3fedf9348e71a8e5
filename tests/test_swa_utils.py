"""Averaged models against torch's AveragedModel, and BatchNorm's statistics against torch's update_bn."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

import jaxopt_port as optim
from jaxopt_port import swa_utils
from tests.helpers import CountTraces, assert_close, assert_same_bits, assert_same_types, eps_apart

torch = pytest.importorskip("torch")
from tests.oracle import to_numpy, to_torch  # noqa: E402

pytestmark = pytest.mark.usefixtures("full_precision")
AVERAGES = {
    "default": {},
    "swa": {"avg_fn": "get_swa_avg_fn"},
    "swa_multi": {"multi_avg_fn": "get_swa_multi_avg_fn"},
    "ema": {"avg_fn": "get_ema_avg_fn", "decay": 0.9},
    "ema_multi": {"multi_avg_fn": "get_ema_multi_avg_fn", "decay": 0.9},
    "ema_multi, far end": {"multi_avg_fn": "get_ema_multi_avg_fn", "decay": 0.3},
}
UPDATES = 6


def functions(module, average):
    """The arguments of averaged_model, or of AveragedModel."""
    options = dict(AVERAGES[average])
    decay = (options.pop("decay"),) if "decay" in options else ()
    return {key: getattr(module, name)(*decay) for key, name in options.items()}


def values(dtype, seed):
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    draw = 20 * np.random.default_rng(seed).standard_normal(40)
    return (draw + 1j * draw[::-1]).astype(kind) if kind.kind == "c" else draw.astype(kind)


class Model(torch.nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.weight = torch.nn.Parameter(to_torch(values(dtype, 0)))
        self.register_buffer("buffer", to_torch(values(dtype, 100)))
        self.register_buffer("count", torch.from_numpy(values("int32", 200)))

    def move(self, dtype, seed):
        with torch.no_grad():
            self.weight.copy_(to_torch(values(dtype, seed)))
            self.buffer.copy_(to_torch(values(dtype, 100 + seed)))
            self.count.copy_(torch.from_numpy(values("int32", 200 + seed)))


def ours(dtype, seed):
    params = {"weight": jnp.asarray(values(dtype, seed))}
    return params, {"buffer": jnp.asarray(values(dtype, 100 + seed)), "count": jnp.asarray(values("int32", 200 + seed))}


def differences(average, dtype, use_buffers):
    """(actual, expected) of every average after every update, torch's beside ours in jit."""
    model = Model(dtype)
    theirs = torch.optim.swa_utils.AveragedModel(
        model, use_buffers=use_buffers, **functions(torch.optim.swa_utils, average)
    )
    averaging = swa_utils.averaged_model(use_buffers=use_buffers, **functions(swa_utils, average))
    state = averaging.init(*ours(dtype, 0))
    update = CountTraces(averaging.update)
    for seed in range(1, UPDATES + 1):
        model.move(dtype, seed)
        theirs.update_parameters(model)
        state = update(state, *ours(dtype, seed))
        assert int(state.n_averaged) == theirs.n_averaged.item() == seed
        found = {**state.params, **state.buffers}
        for name, expected in theirs.module.state_dict().items():
            yield found[name], to_numpy(expected)
    assert update.traces == 1


@pytest.mark.parametrize(
    ("dtype", "use_buffers"),
    [("float32", False), ("float64", False), ("bfloat16", False), ("complex64", False), ("float32", True)],
)
@pytest.mark.parametrize("average", [average for average in AVERAGES if average != "swa_multi"])
def test_an_average_is_torchs(average, dtype, use_buffers):
    """Within a rounding an update; tests/exact has the bits."""
    with jax.enable_x64(dtype == "float64"):
        for actual, expected in differences(average, dtype, use_buffers):
            assert actual.dtype == expected.dtype
            if actual.dtype.kind == "i":
                np.testing.assert_array_equal(actual, expected)
            else:
                assert eps_apart(actual, expected) <= 2


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "complex64"])
def test_swa_multi_is_torchs_but_for_integers(dtype):
    test_an_average_is_torchs("swa_multi", dtype, use_buffers=False)
    with pytest.raises(RuntimeError, match="Integer division with addcdiv is no longer supported"):
        list(differences("swa_multi", dtype, use_buffers=True))  # torch's; and then ours
    averaging = swa_utils.averaged_model(multi_avg_fn=swa_utils.get_swa_multi_avg_fn(), use_buffers=True)
    state = averaging.init(*ours("float32", 0))
    with pytest.raises(RuntimeError, match=r"Integer division with addcdiv.*get_swa_avg_fn"):
        averaging.update(state, *ours("float32", 1))


def test_functions_of_ones_own():
    def slowest(averaged, current, n_averaged):
        return jnp.minimum(averaged, current) if isinstance(averaged, jax.Array) else averaged

    averaging = swa_utils.averaged_model(avg_fn=slowest)
    state = averaging.init({"w": jnp.array([5.0, 5.0])})
    for w in ([3.0, 9.0], [4.0, 4.0]):
        state = averaging.update(state, {"w": jnp.array(w)})
    np.testing.assert_array_equal(state.params["w"], [3.0, 4.0])
    both = {"avg_fn": slowest, "multi_avg_fn": swa_utils.get_swa_multi_avg_fn()}
    with pytest.raises(AssertionError) as expected:
        torch.optim.swa_utils.AveragedModel(torch.nn.Linear(1, 1), **both)
    with pytest.raises(ValueError, match=str(expected.value)):
        swa_utils.averaged_model(**both)
    with pytest.raises(TypeError, match="positional"):
        swa_utils.averaged_model("cpu")  # type: ignore[call-arg]
    for name in ("get_ema_avg_fn", "get_ema_multi_avg_fn"):
        for decay in (-0.1, 1.1):
            with pytest.raises(ValueError, match="Invalid decay value") as expected:
                getattr(torch.optim.swa_utils, name)(decay)
            with pytest.raises(ValueError, match="Invalid decay value") as actual:
                getattr(swa_utils, name)(decay)
            assert str(actual.value) == str(expected.value)


@pytest.mark.parametrize("average", [average for average in AVERAGES if average != "swa_multi"])
def test_strict_promotion(average):
    with jax.numpy_dtype_promotion("strict"):
        list(differences(average, "bfloat16", use_buffers=True))


def test_states_survive_donation_scan_and_another_tree():
    averaging = swa_utils.averaged_model()
    params, buffers = ours("float32", 0)
    state = averaging.init(params, buffers)
    moved = jax.jit(lambda p: jax.tree.map(jnp.negative, p), donate_argnums=0)((params, buffers))
    assert_same_bits((state.params, state.buffers), ours("float32", 0))
    state = averaging.update(state, *moved)
    jax.jit(lambda p: jax.tree.map(jnp.negative, p), donate_argnums=0)(moved)
    kept = jax.tree.map(np.asarray, state)
    assert_same_bits(kept.params, jax.tree.map(jnp.negative, ours("float32", 0)[0]))
    scanned, _ = jax.lax.scan(lambda s, w: (averaging.update(s, {"weight": w}), None), state, jnp.ones((2, 40)))
    assert_same_types(scanned, state)
    np.testing.assert_allclose(scanned.params["weight"], (kept.params["weight"] + 2) / 3, 1e-5, 1e-6)
    with pytest.raises(ValueError, match="key"):
        averaging.update(state, {"wait": jnp.ones(40)})


def test_torchs_recipe():
    """The example of torch's documentation, on a quadratic: a schedule, then SWALR and the mean."""
    start = np.linspace(-1, 1, 6, dtype=np.float32)
    x = torch.nn.ParameterList([torch.nn.Parameter(torch.tensor(start))])
    torch_sgd = torch.optim.SGD(x.parameters(), lr=0.3)
    schedulers = (
        torch.optim.lr_scheduler.CosineAnnealingLR(torch_sgd, T_max=9),
        torch.optim.swa_utils.SWALR(torch_sgd, swa_lr=0.05, anneal_epochs=3),
    )
    mean = torch.optim.swa_utils.AveragedModel(x)
    optimizer, averaging = optim.sgd(lr=0.3), swa_utils.averaged_model()
    cosine, swa = optim.lr_scheduler.cosine_annealing_lr(T_max=9), swa_utils.swalr(swa_lr=0.05, anneal_epochs=3)
    params = {"x": jnp.asarray(start)}
    averaged = averaging.init(params)
    sched, state = cosine.init(optimizer.init(params))
    swa_sched, state = swa.init(state, after=sched)
    for epoch in range(9):
        torch_sgd.zero_grad()
        (x[0] ** 4).sum().backward()
        torch_sgd.step()
        _, params, state = optimizer.step_closure(lambda p: (p["x"] ** 4).sum(), state, params)
        if epoch > 4:
            mean.update_parameters(x)
            averaged = averaging.update(averaged, params)
            swa_sched, state = swa.step(swa_sched, state)
        else:
            sched, state = cosine.step(sched, state)
        schedulers[epoch > 4].step()
        assert optim.get_hyper(state)[0]["lr"] == torch_sgd.param_groups[0]["lr"]
    np.testing.assert_allclose(averaged.params["x"], mean.module[0].detach().numpy(), 1e-5)
    assert swa_utils.swalr is optim.lr_scheduler.swalr


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Dense(4)(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="first")(x) * 3 + 1
        return nn.BatchNorm(name="second")(jnp.tanh(x), not train)


class NNX(nnx.Module):
    def __init__(self):
        self.dense = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
        self.first = nnx.BatchNorm(4, momentum=0.9, rngs=nnx.Rngs(0))
        self.second = nnx.BatchNorm(4, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.second(jnp.tanh(self.first(self.dense(x)) * 3 + 1))


class Torch(torch.nn.Module):
    def __init__(self, kernel):
        super().__init__()
        self.dense, self.first, self.second = torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.BatchNorm1d(4)
        self.dense.weight.data, self.dense.bias.data = torch.tensor(np.array(kernel).T), torch.zeros(4)

    def forward(self, x):
        return self.second(torch.tanh(self.first(self.dense(x)) * 3 + 1))


SIZE = 8
BATCHES = np.random.default_rng(0).normal(2, 3, (5, SIZE, 3)).astype(np.float32)


def assert_torchs_statistics(stats, kernel, batches: Any = BATCHES, flax_var=1.0):
    model = Torch(kernel)
    torch.optim.swa_utils.update_bn([(torch.from_numpy(np.array(x)), 0) for x in batches], model)
    for name in ("first", "second"):
        theirs = getattr(model, name)
        np.testing.assert_allclose(stats[name]["mean"], theirs.running_mean, 1e-4, 1e-5)
        np.testing.assert_allclose(stats[name]["var"], theirs.running_var * flax_var, 1e-4)


@pytest.mark.parametrize(
    ("loader", "options"), [(BATCHES, {"train": True}), (BATCHES, {}), ([(x, 0) for x in BATCHES], {"train": False})]
)
def test_update_bn_of_linen(loader, options):
    model = Linen()
    variables = model.init(jax.random.key(0), BATCHES[0], train=True)
    spoiled = jax.tree.map(lambda x: x * jnp.nan, variables["batch_stats"])  # they are reset
    stats = swa_utils.update_bn(loader, model, {**variables, "batch_stats": spoiled}, **options)
    assert_same_types(stats, variables["batch_stats"])
    assert_torchs_statistics(stats, variables["params"]["Dense_0"]["kernel"])
    _, ordinary = model.apply(variables, BATCHES[0], train=True, mutable=["batch_stats"])
    mean = BATCHES[0] @ variables["params"]["Dense_0"]["kernel"]
    assert_close(ordinary["batch_stats"]["first"]["mean"], 0.1 * mean.mean(0), 1e-4)  # its own momentum again


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_update_bn_with_flaxs_variance_and_with_a_smaller_last_batch(kind):
    def statistics(batches, **options):
        if kind == "nnx":
            new = swa_utils.update_bn(batches, NNX(), **options)
            return {
                n: {"mean": getattr(new, n).mean[...], "var": getattr(new, n).var[...]} for n in ("first", "second")
            }
        return swa_utils.update_bn(batches, Linen(), variables, train=True, **options)

    variables = Linen().init(jax.random.key(0), BATCHES[0], train=True)
    kernel = NNX().dense.kernel[...] if kind == "nnx" else variables["params"]["Dense_0"]["kernel"]
    assert_torchs_statistics(statistics(BATCHES, unbiased=False), kernel, flax_var=(SIZE - 1) / SIZE)
    batches = [*BATCHES[:3], BATCHES[3][:3]]
    assert_torchs_statistics(statistics(batches), kernel, batches)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        statistics([BATCHES[0][:1]])


def test_update_bn_of_pictures_and_of_a_mask():
    x = np.random.default_rng(0).normal(2, 3, (2, 4, 5, 3)).astype(np.float32)
    module = torch.nn.BatchNorm2d(3)
    torch.optim.swa_utils.update_bn([torch.from_numpy(x.transpose(0, 3, 1, 2))], module)
    linen, layer = nn.BatchNorm(), nnx.BatchNorm(3, rngs=nnx.Rngs(0))
    variables = linen.init(jax.random.key(0), x, use_running_average=False)
    for var in (swa_utils.update_bn([x], linen, variables)["var"], swa_utils.update_bn([x], layer).var[...]):
        np.testing.assert_allclose(var, module.running_var, 1e-5)
    padded = np.concatenate([x, np.full_like(x, 1e3)])
    mask = np.array([True, True, False, False])[:, None, None, None]
    for var in (
        swa_utils.update_bn([padded], linen, variables, mask=mask)["var"],
        swa_utils.update_bn([padded], layer, mask=mask).var[...],
    ):
        np.testing.assert_allclose(var, module.running_var, 1e-5)


def test_update_bn_over_devices_counts_the_numbers_of_all():
    """What torch's SyncBatchNorm does; its running variance is that of one BatchNorm over the whole batch."""
    x = BATCHES[0].reshape(2, SIZE // 2, 3)

    class Synchronized(nn.Module):
        @nn.compact
        def __call__(self, x):
            norm = nn.vmap(
                nn.BatchNorm,
                variable_axes={"params": None, "batch_stats": None},
                split_rngs={"params": False},
                axis_name="d",
            )
            return norm(axis_name="d", use_running_average=False)(x)

    module = torch.nn.BatchNorm1d(3)
    torch.optim.swa_utils.update_bn([torch.from_numpy(BATCHES[0])], module)
    variables = Synchronized().init(jax.random.key(0), x)
    (stats,) = swa_utils.update_bn([x], Synchronized(), variables).values()
    np.testing.assert_allclose(stats["var"], module.running_var, 1e-5)


def test_update_bn_of_a_subclass_with_a_signature_of_its_own():
    class Own(nn.BatchNorm):
        @nn.compact
        def __call__(self, x, train=False):  # pyright: ignore[reportIncompatibleMethodOverride]
            return super().__call__(x, use_running_average=not train)

    model, plain = Own(), nn.BatchNorm()
    variables = plain.init(jax.random.key(0), BATCHES[0], use_running_average=False)
    assert_same_bits(swa_utils.update_bn(BATCHES, model, variables), swa_utils.update_bn(BATCHES, plain, variables))


def test_update_bn_of_nnx():
    model = NNX()
    model.eval()
    model.first.mean[...] = jnp.full(4, jnp.nan)
    new = swa_utils.update_bn(BATCHES, model)
    layers = {"first": new.first, "second": new.second}
    stats = {name: {"mean": layer.mean[...], "var": layer.var[...]} for name, layer in layers.items()}
    assert_torchs_statistics(stats, model.dense.kernel[...])
    assert (new.first.momentum, new.second.momentum) == (0.9, 0.99)
    assert new.first.use_running_average is model.first.use_running_average is True
    assert jnp.isnan(model.first.mean[...]).all()


def test_update_bn_without_batches_or_batch_norm():
    model = Linen()
    variables = model.init(jax.random.key(0), BATCHES[0], train=True)
    _, moved = model.apply(variables, BATCHES[0], train=True, mutable=["batch_stats"])
    assert_same_bits(swa_utils.update_bn([], model, {**variables, **moved}, train=True), variables["batch_stats"])
    assert swa_utils.update_bn(BATCHES, nn.Dense(2), nn.Dense(2).init(jax.random.key(0), BATCHES[0])) == {}


def test_other_batch_stats_are_left_alone():
    class Spectral(nn.Module):
        @nn.compact
        def __call__(self, x, train: bool):
            x = nn.SpectralNorm(nn.Dense(4))(x, update_stats=False)
            return nn.BatchNorm(use_running_average=not train)(x)

    model = Spectral()
    variables = model.init(jax.random.key(0), BATCHES[0], train=True)
    stats = swa_utils.update_bn(BATCHES, model, variables, train=True)
    assert_same_bits(stats["SpectralNorm_0"], variables["batch_stats"]["SpectralNorm_0"])
    assert float(jnp.abs(stats["BatchNorm_0"]["mean"]).max()) > 0

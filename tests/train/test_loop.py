"""The loop: its order, its two ways to advance, and where it stops."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_port import Optimizer
from train import data, loop
from train.config import Config, make_optimizer
from train.loop import Epoch, epoch_order, evaluate_all, fit
from train.model import Network, cross_entropy, init_params

SHORT = Config(lr=0.01, batch_size=16, epochs=2, option=("momentum=0.9",), shuffle=True)
EXAMPLES = 40  # a partial batch is left


@pytest.fixture(autouse=True)
def _compile_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "make_step", make_step)


make_step = cache(loop.make_step)


@cache
def optimizer(lr: float, option: tuple[str, ...]) -> Optimizer:
    return make_optimizer(Config(lr=lr, option=option))


def epochs(config: Config, **kwargs: Any) -> Iterator[Epoch]:
    assert config.lr is not None
    some = data.load("digits", "test").first(config.limit or EXAMPLES)
    return fit(config, optimizer(config.lr, config.option), init_params(jax.random.key(config.seed)), some, **kwargs)


def test_scan_takes_the_same_steps_and_stops_where_told() -> None:
    config = replace(SHORT, steps=5)
    seen: list[int] = []
    run = list(epochs(config, scan=False, on_steps=seen.append))
    assert [epoch.step for epoch in run] == [3, 5]
    assert seen == [1] * 5
    seen.clear()
    for one, scanned in zip(run, epochs(config, scan=True, on_steps=seen.append), strict=True):
        np.testing.assert_allclose(one.losses, scanned.losses, rtol=1e-5)
        np.testing.assert_array_equal(one.correct, scanned.correct)
        np.testing.assert_array_equal(one.examples, scanned.examples)
        assert (one.step, one.lr) == (scanned.step, scanned.lr)
    assert seen == [2, 1, 2]


def test_the_last_partial_batch_is_kept() -> None:
    first, second = epochs(SHORT)
    assert (first.step, second.step) == (3, 6)
    np.testing.assert_array_equal(first.examples, [16, 16, 8])


def test_the_same_seed_is_the_same_run_and_another_is_not() -> None:
    first, again, other = (
        np.concatenate([epoch.losses for epoch in epochs(replace(SHORT, seed=seed))]) for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_order() -> None:
    np.testing.assert_array_equal(epoch_order(Config(), 1, 5), range(5))
    orders = [epoch_order(SHORT, number, 100) for number in (1, 2)]
    assert (orders[0] != orders[1]).any()
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), range(100))


@pytest.mark.parametrize("scan", [False, True])
def test_stops_at_the_first_loss_that_is_not_finite(scan: bool) -> None:
    run = list(epochs(replace(SHORT, lr=100.0, epochs=50, limit=32), scan=scan))
    assert len(run) < 50
    assert all(epoch.finite for epoch in run[:-1])
    assert not run[-1].finite
    assert np.isfinite(run[-1].losses[:-1]).all()
    assert run[-1].step == sum(len(epoch.losses) for epoch in run)


def test_evaluates_every_example_once() -> None:
    examples = data.load("digits", "train").first(700)  # more than a batch, and not a multiple of one
    params = init_params(jax.random.key(0))
    logits: Any = Network().apply({"params": params}, examples.images)
    expected = (
        float(cross_entropy(logits, jnp.asarray(examples.labels))),
        float(np.mean(logits.argmax(1) == examples.labels)),
    )
    assert evaluate_all(params, examples) == pytest.approx(expected, rel=1e-5)


def test_it_is_torchs_run() -> None:
    pytest.importorskip("torch")
    from tests.train.torch_side import running_losses

    examples = data.load("digits", "test").first(EXAMPLES)
    for config in (Config(lr=0.01, epochs=2), SHORT):
        theirs = list(running_losses(config, init_params(jax.random.key(config.seed)), examples))
        np.testing.assert_allclose([epoch.running_loss for epoch in epochs(config)], theirs, rtol=1e-5)

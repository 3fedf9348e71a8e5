"""add_param_group against torch's: layers that are unfrozen in a run."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxopt_port as optim
from tests.helpers import assert_same_bits

SHAPES = {"backbone": (4, 3), "head": (3,)}
OPTIONS: dict[str, dict[str, Any]] = {
    "adagrad": {"lr": 0.1, "initial_accumulator_value": 0.5},
    "adam": {"lr": 0.1, "amsgrad": True},
    "asgd": {"lr": 0.1, "t0": 1.0},
    "nadam": {"lr": 0.1},
    "rprop": {"lr": 0.1},
    "sgd": {"lr": 0.1, "momentum": 0.9, "dampening": 0.5},
}


def draw(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}


@pytest.mark.parametrize("name", OPTIONS)
def test_unfrozen_in_a_run_as_in_torch(name: str) -> None:
    torch = pytest.importorskip("torch")
    from tests.oracle import since, torch_class

    if name == "adagrad":
        since(2, 13)
    start, options = draw(0), OPTIONS[name]
    theirs = {key: torch.nn.Parameter(torch.from_numpy(p.copy())) for key, p in start.items()}
    reference = torch_class(name)([theirs["head"]], **options)
    optimizer = optim.optimizers[name](**options, param_groups=[optim.ParamGroup("backbone", frozen=True)])
    ours: Any = jax.tree.map(jnp.asarray, start)
    state = optimizer.init(ours)
    for step in range(6):
        if step == 3:
            reference.add_param_group({"params": [theirs["backbone"]], "lr": 0.01})
            optimizer, state = optim.add_param_group(optimizer, state, ours, optim.ParamGroup("backbone", lr=0.01))
        grads = draw(10 + step)
        for key, p in theirs.items():
            p.grad = torch.from_numpy(grads[key].copy())
        reference.step()
        before = ours
        ours, state = jax.jit(optimizer.step)(jax.tree.map(jnp.asarray, grads), state, ours)
        if step < 3:
            assert_same_bits(ours["backbone"], before["backbone"])
        for key, p in theirs.items():
            np.testing.assert_allclose(ours[key], p.detach().numpy(), 2e-6, 1e-7, err_msg=f"{key}, step {step}")
    assert [group["lr"] for group in optim.get_hyper(state)] == [0.1, 0.1, 0.01]


def test_what_a_new_group_may_not_hold() -> None:
    params = jax.tree.map(jnp.asarray, draw(0))
    optimizer = optim.adam(param_groups=[optim.ParamGroup("backbone", frozen=True)])
    state = optimizer.init(params)
    with pytest.raises(ValueError, match="some parameters appear in more than one parameter group: head"):
        optim.add_param_group(optimizer, state, params, optim.ParamGroup(".*", lr=0.1))
    with pytest.raises(ValueError, match="matches no parameter"):
        optim.add_param_group(optimizer, state, params, optim.ParamGroup("backbon", lr=0.1))
    with pytest.raises(ValueError, match="unknown options: momentum"):
        optim.add_param_group(optimizer, state, params, optim.ParamGroup("backbone", momentum=0.1))
    with pytest.raises(ValueError, match="Invalid learning rate: -1"):
        optim.add_param_group(optimizer, state, params, optim.ParamGroup("backbone", lr=-1.0))


SCHEDULERS: dict[str, dict[str, Any]] = {
    "StepLR": {"step_size": 2, "gamma": 0.5},
    "ExponentialLR": {"gamma": 0.9},
    "ReduceLROnPlateau": {"patience": 0, "factor": 0.5},
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_running_scheduler_takes_the_new_group_along(name: str) -> None:
    torch = pytest.importorskip("torch")
    theirs = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    reference = torch.optim.SGD([theirs[0]], lr=0.1)
    their_scheduler = getattr(torch.optim.lr_scheduler, name)(reference, **SCHEDULERS[name])
    factory = {"StepLR": "step_lr", "ExponentialLR": "exponential_lr"}.get(name, "reduce_lr_on_plateau")
    scheduler = getattr(optim.lr_scheduler, factory)(**SCHEDULERS[name])
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    optimizer = optim.sgd(lr=0.1, param_groups=[optim.ParamGroup("b", frozen=True)])
    sched, state = scheduler.init(optimizer.init(params))
    metric = [1.0] if name == "ReduceLROnPlateau" else []
    for epoch in range(5):
        if epoch == 2:
            reference.add_param_group({"params": [theirs[1]], "lr": 0.3})
            optimizer, state = optim.add_param_group(optimizer, state, params, optim.ParamGroup("b", lr=0.3))
        reference.step()
        their_scheduler.step(*metric)
        sched, state = scheduler.step(sched, state, *metric)
        ours = [group["lr"] for group in optim.get_hyper(state)]
        assert [ours[0], *ours[2:]] == [group["lr"] for group in reference.param_groups]  # ours[1] is frozen


def test_a_scheduler_that_cannot_take_a_new_group_says_so() -> None:
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    optimizer = optim.sgd(lr=0.1, param_groups=[optim.ParamGroup("b", frozen=True)])
    scheduler = optim.lr_scheduler.lambda_lr(lambda epoch: 0.5**epoch)
    sched, state = scheduler.init(optimizer.init(params))
    optimizer, state = optim.add_param_group(optimizer, state, params, optim.ParamGroup("b", lr=0.3))
    with pytest.raises(ValueError, match="LambdaLR was made for 2 parameter groups, the optimizer has 3"):
        scheduler.step(sched, state)


def test_on_an_nnx_optimizer():
    """The recipe of docs/nnx-and-equinox.md: a new nnx.Optimizer, whose variables get the old state's arrays."""
    model: Any = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    tx = optim.adam(lr=0.1, param_groups=[optim.ParamGroup("bias", frozen=True)])
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    x = jnp.arange(6.0).reshape(2, 3)

    def update(optimizer):
        optimizer.update(model, nnx.grad(lambda model: (model(x) ** 2).mean())(model))

    update(optimizer)
    bias = model.bias[...]
    params, state = nnx.as_pure(nnx.state(model, nnx.Param)), nnx.as_pure(optimizer.opt_state)
    tx, state = optim.add_param_group(tx, state, params, optim.ParamGroup("bias", lr=0.01))
    unfrozen = nnx.Optimizer(model, tx, wrt=nnx.Param)
    variables = jax.tree.leaves(unfrozen.opt_state, is_leaf=lambda x: isinstance(x, nnx.Variable))
    for variable, value in zip(variables, jax.tree.leaves(state), strict=True):
        variable.set_value(value)
    kernel = model.kernel[...]
    grads = nnx.as_pure(nnx.grad(lambda model: (model(x) ** 2).mean())(model))
    expected, _ = tx.step(grads, state, {"bias": bias, "kernel": kernel} if isinstance(params, dict) else params)
    update(unfrozen)
    np.testing.assert_allclose(model.kernel[...], expected["kernel"], 1e-6)
    np.testing.assert_allclose(model.bias[...], expected["bias"], 1e-6)
    assert (model.bias[...] != bias).all()

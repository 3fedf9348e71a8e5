"""What a user writes, with every public name, against an installed wheel: it runs, and pyright has nothing to say.

`.ci/run` runs it and checks its types with no more installed than the wheel brings. So it needs neither torch nor flax,
and sees what is said where an extra is missing.
"""

import importlib.util
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental.sparse import BCOO

import jaxopt_port as optim
from jaxopt_port import compare, lr_scheduler, swa_utils, torch_interop
from jaxopt_port.torch_interop import init, layout

Params = dict[str, jax.Array]


def start() -> Params:
    return {"weight": jnp.array([[3.0, -2.0], [1.0, 0.5]]), "bias": jnp.ones(2)}


def loss_fn(params: Params) -> jax.Array:
    return ((params["weight"] + params["bias"]) ** 2).sum()


def message_of(kind: type[Exception], function: Callable[[], Any]) -> str:
    try:
        function()
    except kind as error:
        return str(error)
    raise AssertionError(f"no {kind.__name__}")


def a_step_of(optimizer: optim.Optimizer) -> tuple[Params, optim.OptState]:
    params = start()
    return jax.jit(optimizer.step)(jax.grad(loss_fn)(params), optimizer.init(params), params)


def optimizers() -> None:
    """A step of each comes down; of optax's transformations too."""
    made: list[optim.Optimizer] = [
        optim.adadelta(lr=0.1),
        optim.adafactor(),
        optim.adagrad(),
        optim.adam(betas=(0.9, 0.99), amsgrad=True),
        optim.adamax(),
        optim.adamw(lr=3e-4, weight_decay=0.1),
        optim.asgd(),
        optim.nadam(),
        optim.radam(),
        optim.rmsprop(momentum=0.9),
        optim.rprop(),
        optim.sgd(lr=0.1, momentum=0.9, nesterov=True),
        optim.exact(optim.sgd(lr=0.1)),
        optim.flat(optim.adam()),
    ]
    for optimizer in made:
        params, state = a_step_of(optimizer)
        assert loss_fn(params) < loss_fn(start()), optimizer
        assert isinstance(state, optim.OptState)
    assert sorted(optim.optimizers)[:2] == ["adadelta", "adafactor"]

    matrix = {"weight": jnp.eye(2)}
    muon = optim.muon(lr=0.1, ns_steps=1)
    matrix, _ = muon.step(matrix, muon.init(matrix), matrix)
    rows = {"weight": BCOO((jnp.ones((1, 2)), jnp.array([[1]])), shape=(2, 2))}
    sparse = optim.sparse_adam()
    sparse.step(rows, sparse.init(matrix), matrix)
    chained = optax.chain(optax.clip_by_global_norm(1.0), optim.adamw())
    updates, _ = chained.update(start(), chained.init(start()), start())
    optax.apply_updates(start(), updates)


def state_and_groups() -> None:
    """Hyper-parameters are read and set, groups frozen and added."""
    params, group = start(), optim.ParamGroup("bias", weight_decay=0.0, frozen=True)
    optimizer = optim.adamw(lr=0.1, param_groups=[group])
    state: optim.OptState = optimizer.init(params)
    state = optim.set_hyper(state, lr=0.5)
    hyper: list[dict[str, Any]] = optim.get_hyper(state)
    assert [float(each["lr"]) for each in hyper] == [0.5, 0.5]
    lr: optim.Number = state.param_groups[0]["lr"]
    assert float(lr) == 0.5
    grads: Params = optim.drop_frozen(optimizer, start(), params)
    stepped, state = optimizer.step(grads, state, params)
    np.testing.assert_array_equal(stepped["bias"], params["bias"])

    chained = optax.chain(optim.sgd(lr=0.1))
    inside: optim.OptState = optim.find_state(chained.init(params))
    optim.replace_state(chained.init(params), optim.set_hyper(inside, lr=0.2))

    frozen = optim.sgd(lr=0.1, momentum=0.9, param_groups=[optim.ParamGroup("bias", frozen=True)])
    frozen, state = optim.add_param_group(frozen, frozen.init(params), params, optim.ParamGroup("bias", lr=0.01))
    as_vector = optim.flatten_state(optim.flat(frozen), state, params)
    optim.unflatten_state(optim.flat(frozen), as_vector, params)


def gradients() -> None:
    """Accumulated, clipped, scaled."""
    params, optimizer = start(), optim.sgd(lr=0.1)
    grads: Params = optim.accumulate_grad(None, jax.grad(loss_fn)(params))
    norm: jax.Array = optim.get_total_norm(grads)
    clipped, total = optim.clip_grad_norm(grads, 1.0)
    assert float(total) == float(norm)
    optim.clip_grad_value(optim.clip_grads_with_norm(clipped, 1.0, total), 0.1)
    assert optim.zero_grad(grads) == {"weight": None, "bias": None}

    scaler = optim.GradScaler(init_scale=8.0)
    scaling: optim.GradScalerState = scaler.init()
    grads = jax.grad(lambda p: scaler.scale(scaling, loss_fn(p)))(params)
    grads, found_inf = scaler.unscale(scaling, grads)
    state = optimizer.init(params)
    params, state, found_inf = scaler.step(optimizer, scaling, grads, state, params, found_inf)
    scaling = scaler.update(scaling, found_inf)

    twice = optim.every_k(optim.sgd(lr=0.1), 2)
    params, gathering = twice.step(grads, twice.init(params), params)
    assert isinstance(gathering, optim.EveryKState)


def closures() -> None:
    """L-BFGS and conjugate gradients, a step and a whole run."""
    lbfgs = optim.lbfgs(line_search_fn="strong_wolfe")
    loss, params, _ = lbfgs.step_closure(loss_fn, lbfgs.init(start()), start())
    assert loss_fn(params) < float(loss)
    result: optim.Minimized = optim.minimize(optim.nonlinear_cg(), loss_fn, start())
    assert optim.Stop(int(result.stop)) is optim.Stop.GRADIENT


def schedulers() -> None:
    """Each is initialized with the state, and steps; as a schedule of optax too."""
    made: list[lr_scheduler.Scheduler] = [
        lr_scheduler.constant_lr(),
        lr_scheduler.cosine_annealing_lr(T_max=10),
        lr_scheduler.cosine_annealing_warm_restarts(T_0=5),
        lr_scheduler.cyclic_lr(base_lr=0.1, max_lr=0.5),
        lr_scheduler.exponential_lr(gamma=0.9),
        lr_scheduler.lambda_lr(lr_scheduler.tabulate(lambda epoch: 0.9**epoch, 10)),
        lr_scheduler.linear_lr(),
        lr_scheduler.multi_step_lr([2, 4]),
        lr_scheduler.multiplicative_lr(lambda epoch: 0.9),
        lr_scheduler.one_cycle_lr(max_lr=0.5, total_steps=10),
        lr_scheduler.polynomial_lr(),
        lr_scheduler.swalr(swa_lr=0.05),
        lr_scheduler.sequential_lr([lr_scheduler.linear_lr(), lr_scheduler.step_lr(3)], milestones=[2]),
        lr_scheduler.chained_scheduler([lr_scheduler.linear_lr(), lr_scheduler.step_lr(3)]),
    ]
    for scheduler in made:
        sched, state = scheduler.init(optim.sgd(lr=0.1, momentum=0.9).init(start()))
        sched, state = scheduler.step(sched, state)
        rates: list[float] = scheduler.get_last_lr(sched)
        assert len(rates) == 1
    plateau = lr_scheduler.reduce_lr_on_plateau(patience=0)
    sched, state = plateau.init(optim.sgd(lr=0.1).init(start()))
    sched, state = plateau.step(sched, state, 1.0)
    assert len(lr_scheduler.rates(lr_scheduler.step_lr(2), 0.1, 5)) == 5
    optax.sgd(lr_scheduler.as_schedule(lr_scheduler.step_lr(2), 0.1))
    assert len(lr_scheduler.schedulers) == 16


def averages() -> None:
    params = start()
    functions: Sequence[Callable[..., Any]] = (swa_utils.get_ema_avg_fn(0.9), swa_utils.get_swa_avg_fn())
    many: Sequence[Callable[..., Any]] = (swa_utils.get_ema_multi_avg_fn(), swa_utils.get_swa_multi_avg_fn())
    for made in (*(swa_utils.averaged_model(avg_fn=f) for f in functions), swa_utils.averaged_model()):
        averaged: swa_utils.AveragedState = made.update(made.init(params), params)
        assert isinstance(made, swa_utils.AveragedModel)
        assert int(averaged.n_averaged) == 1
    for f in many:
        swa_utils.averaged_model(multi_avg_fn=f)
    if importlib.util.find_spec("flax") is None:
        assert "pip install flax" in message_of(ImportError, lambda: swa_utils.update_bn([], SimpleNamespace()))


def moving(folder: Path) -> None:
    """Torch's files, weights, states and random numbers, there and back."""
    params, optimizer = start(), optim.adamw()
    mapping: layout.Mapping = layout.infer({"weight": (2, 2), "bias": (2,)}, params)
    weights = layout.to_torch(mapping, params)
    params = layout.to_flax(mapping, weights, params)
    moved = torch_interop.optimizer_state_dict(optimizer, optimizer.init(params), params, mapping)
    torch_interop.save({"model": weights, "optimizer": moved}, folder / "run.pt")
    loaded: Any = torch_interop.load(folder / "run.pt")
    optimizer, _ = torch_interop.load_optimizer(optim.adamw, loaded["optimizer"], params, mapping)
    torch_interop.save_safetensors(weights, folder / "run.safetensors")
    assert torch_interop.load_safetensors(folder / "run.safetensors").keys() == weights.keys()

    scheduler, groups = lr_scheduler.step_lr(2), {"param_groups": [{"lr": 0.001, "initial_lr": 0.001}]}
    sched, state = scheduler.init(optimizer.init(params))
    theirs = torch_interop.scheduler_state_dict(scheduler, sched, optimizer, params)
    torch_interop.load_scheduler(scheduler, theirs, state, groups)
    scaler, scaling = torch_interop.load_grad_scaler(
        torch_interop.grad_scaler_state_dict(optim.GradScaler(), optim.GradScaler().init())
    )
    scaler.get_scale(scaling)
    averaged = swa_utils.averaged_model().init(params)
    torch_interop.load_averaged_model(torch_interop.averaged_model_state_dict(averaged, mapping), params, mapping)
    generator = torch_interop.Generator(0)
    init.xavier_uniform(generator, (2, 2))
    assert sorted(torch_interop.data_loader_order(generator, 5)) == [0, 1, 2, 3, 4]
    error = message_of(torch_interop.PtFileError, lambda: torch_interop.load(folder / "run.safetensors"))
    assert "load_safetensors" in error
    assert torch_interop.Unknown("library", "Class").name == "Class"


def comparing(folder: Path) -> None:
    """A file that is no trace; the rest needs one that torch wrote."""
    (folder / "a.trace").write_bytes(b"")
    assert "a.trace" in message_of(compare.TraceError, lambda: compare.read(folder / "a.trace"))


def not_run(path: Path, folder: Path) -> list[str]:
    """For its types: it takes what torch has written."""
    trace: compare.Trace = compare.read(path)
    optimizer = compare.Scheduled(optim.adamw(), lr_scheduler.step_lr(2))
    found: compare.Followed = compare.follow(path, loss_fn, start(), optimizer)
    assert found.ok, (found.verdict, len(trace.steps))
    compare.assert_follows(path, loss_fn, start(), optim.adamw())
    trainer: torch_interop.TrainerCheckpoint = torch_interop.load_trainer(folder)
    return list(trainer.model)


class Momentum(NamedTuple):
    buffer: jax.Array


def scalars(
    step: jax.Array, h: SimpleNamespace, s: dict[str, jax.Array]
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    return {"neg_lr": -h.lr}, s


def update(p: jax.Array, g: jax.Array, s: Momentum, c: SimpleNamespace) -> tuple[jax.Array, Momentum]:
    buffer = s.buffer + g
    return p + c.neg_lr * buffer, Momentum(buffer)


MINE = optim.Rule("mine", Momentum, scalars, update)


@optim.factory(MINE)
def mine(lr: float = 0.1, *, param_groups: Sequence[optim.ParamGroup] = ()) -> optim.Optimizer:
    """A user's optimizer."""
    raise NotImplementedError  # factory gives it a body


def an_optimizer_of_ones_own() -> None:
    params, _ = a_step_of(mine(lr=0.1))
    lifted, _ = a_step_of(optim.lift(MINE, {"lr": 0.1}))
    np.testing.assert_array_equal(params["weight"], lifted["weight"])


if __name__ == "__main__":
    for use in (optimizers, state_and_groups, gradients, closures, schedulers, averages, an_optimizer_of_ones_own):
        use()
    with tempfile.TemporaryDirectory() as name:
        moving(Path(name))
        comparing(Path(name))
    print(f"jaxopt_port {optim.__version__}, jax {jax.__version__}: every public name in use")

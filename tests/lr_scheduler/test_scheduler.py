"""What holds for every scheduler, beside its numbers: states, jit, errors, the optimizer and optax around it."""

import pickle
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_port as optim
from jaxopt_port import lr_scheduler
from tests.lr_scheduler.cases import (
    MAIN,
    MORE,
    NAMES,
    Case,
    Ours,
    assert_rates,
    float64s,
    metrics,
    optimizer_state,
    ours,
    theirs,
)

torch = pytest.importorskip("torch")
from tests.oracle import since  # noqa: E402

STATE = optimizer_state("sgd")
EACH = [pytest.param(case, id=case.label) for case in MAIN]


def bits(tree: Any) -> list[bytes]:
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


def dtypes(tree: Any) -> tuple[Any, list[str]]:
    return jax.tree.structure(tree), [str(x.dtype) for x in jax.tree.leaves(tree)]


def test_there_is_one_for_each_of_torchs() -> None:
    names = {name for name in torch.optim.lr_scheduler.__all__ if name != "LRScheduler"} | {"SWALR"}
    assert names == set(NAMES)
    assert set(lr_scheduler.schedulers) == set(NAMES.values())
    assert {case.spec[0] for case in MAIN} == set(NAMES)


@pytest.mark.parametrize("case", EACH)
def test_one_program_for_all_steps(case: Case) -> None:
    """States keep their structure and dtypes, from Python as under jit, so that a jitted step is compiled once."""
    run = Ours(case, table=50)
    step = jax.jit(run.step)
    start = carry = run.init()
    for metric in metrics(5):
        carry = step(carry, jnp.asarray(metric))
    assert step._cache_size() == 1  # type: ignore[attr-defined]
    assert dtypes(start) == dtypes(carry) == dtypes(run.step(start, np.float32(1)))


@pytest.mark.parametrize("case", [pytest.param(case, id=case.label) for case in MAIN + MORE])
def test_resumed_by_a_scheduler_made_anew(case: Case) -> None:
    """As in another process, after every step: nothing is kept in the scheduler itself."""
    through = resumed = Ours(case).init()
    run = Ours(case)
    for metric in metrics(12):
        through = run.step(through, metric)
        resumed = Ours(case).step(pickle.loads(pickle.dumps(resumed)), metric)
    assert bits(resumed) == bits(through)
    assert dtypes(resumed) == dtypes(through)


@pytest.mark.parametrize("label", ["sequential", "one_cycle", "plateau"])
def test_init_in_jit_and_donation(label: str) -> None:
    run = Ours(next(case for case in MAIN if case.label == label))
    start, made_in_jit = run.init(), jax.jit(run.init)()
    assert dtypes(start) == dtypes(made_in_jit)
    for _ in range(2):
        made_in_jit = jax.jit(run.step, donate_argnums=0)(made_in_jit, jnp.ones(()))
    expected = run.step(run.step(start, 1.0), 1.0)
    assert_rates(float64s(run.values(made_in_jit)), float64s(run.values(expected)))
    if jax.default_backend() == "cpu":
        assert bits(made_in_jit) == bits(expected)
    jax.jit(run.step, donate_argnums=0)(expected, jnp.ones(()))


def test_scheduler_and_optimizer_in_one_scan() -> None:
    """Against torch's loop: the optimizer uses the rates as they change."""
    case = next(case for case in MORE if case.label == "plateau beside")
    steps, start = 30, np.linspace(-1, 1, 6, dtype=np.float32)
    x = torch.nn.Parameter(torch.tensor(start))
    torch_optimizer = torch.optim.SGD([x], lr=0.1, momentum=0.5)
    torch_scheduler = theirs(case.spec, torch_optimizer)
    for _ in range(steps):
        torch_optimizer.zero_grad()
        (x**2).sum().backward()
        torch_optimizer.step()
        torch_scheduler.step()

    optimizer, scheduler = optim.sgd(lr=0.1, momentum=0.5), ours(case.spec)
    params = {"x": jnp.asarray(start)}
    sched, state = scheduler.init(optimizer.init(params))

    def body(carry: Any, _: None) -> Any:
        params, sched, state = carry
        _, params, state = optimizer.step_closure(lambda p: (p["x"] ** 2).sum(), state, params)
        sched, state = scheduler.step(sched, state)
        return (params, sched, state), scheduler.get_last_lr(sched)

    (params, sched, _), rates = jax.jit(lambda carry: jax.lax.scan(body, carry, length=steps))((params, sched, state))
    assert_rates(scheduler.get_last_lr(sched), torch_scheduler.get_last_lr())
    assert rates[0].dtype == jnp.float64
    np.testing.assert_allclose(params["x"], x.detach().numpy(), rtol=1e-6)


@pytest.mark.parametrize("name", NAMES.values())
def test_an_optimizer_as_torchs_first_argument(name: str) -> None:
    factory, optimizer = lr_scheduler.schedulers[name], optim.sgd(lr=0.1)
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((optimizer,), {}),
        ((optimizer, 0.1, 0.5), {"gamma": 0.1}),
        ((), {"optimizer": optax.chain(optimizer)}),
    ]
    for args, options in calls:
        with pytest.raises(TypeError, match=rf"{name} got an optimizer: the scheduler gets its state, scheduler\.init"):
            factory(*args, **options)
    with pytest.raises(TypeError, match="this is the optimizer: pass its state"):
        lr_scheduler.step_lr(step_size=1).init(optimizer)


def test_stacked_states() -> None:
    scheduler = lr_scheduler.exponential_lr(gamma=0.5)
    sched, state = scheduler.init(STATE)
    stacked = jax.tree.map(lambda x: jnp.stack([x] * 3), (sched, state))
    with pytest.raises(ValueError, match=r"of shape \[3\], not one number.*call the scheduler inside jax\.vmap"):
        scheduler.step(*stacked)
    found, _ = jax.vmap(scheduler.step)(*stacked)
    assert scheduler.get_last_lr(found) == [[lr] * 3 for lr in scheduler.get_last_lr(scheduler.step(sched, state)[0])]


def test_the_state_may_be_inside_another() -> None:
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optim.adamw(lr=0.5))
    scheduler = lr_scheduler.step_lr(step_size=1)
    sched, state = scheduler.init(optimizer.init({"w": jnp.ones(2)}))
    sched, state = scheduler.step(sched, state)
    assert optim.get_hyper(state)[0]["lr"] == scheduler.get_last_lr(sched)[0] == 0.05


def test_init_after_another_scheduler_and_resuming_by_last_epoch() -> None:
    """torch's schedulers share group["initial_lr"]; `after` hands it on."""
    groups = [{"params": [torch.nn.Parameter(torch.ones(1))], "lr": lr} for lr in (0.05, 0.5)]
    torch_optimizer = torch.optim.SGD(groups, momentum=0.9)
    first = torch.optim.lr_scheduler.LinearLR(torch_optimizer)
    second = torch.optim.lr_scheduler.CosineAnnealingLR(torch_optimizer, T_max=9)
    resumed = torch.optim.lr_scheduler.CosineAnnealingLR(torch_optimizer, T_max=9, last_epoch=4)
    sched, state = lr_scheduler.linear_lr().init(STATE)
    other, state = lr_scheduler.cosine_annealing_lr(T_max=9).init(state, after=sched)
    again, state = lr_scheduler.cosine_annealing_lr(T_max=9, last_epoch=4).init(state, after=other)
    assert [float(x) for x in other["base_lrs"]] == second.base_lrs == first.base_lrs
    assert int(again["last_epoch"]) == resumed.last_epoch
    assert lr_scheduler.cosine_annealing_lr(T_max=9).get_last_lr(again) == resumed.get_last_lr()
    with pytest.raises(KeyError, match="param 'initial_lr' is not specified in param_groups\\[0\\]"):
        lr_scheduler.cosine_annealing_lr(T_max=9, last_epoch=4).init(STATE)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("LambdaLR", {"lr_lambda": [lambda epoch: 1.0]}),
        ("MultiplicativeLR", {"lr_lambda": [lambda epoch: 1.0] * 3}),
        ("MultiplicativeLR", {"lr_lambda": 0.5}),
        ("ConstantLR", {"factor": 1.5}),
        ("ConstantLR", {"factor": -0.5}),
        ("LinearLR", {"start_factor": 0.0}),
        ("LinearLR", {"end_factor": 1.5}),
        ("SequentialLR", {"schedulers": [], "milestones": []}),
        ("SequentialLR", {"schedulers": [("ConstantLR", {})], "milestones": [1]}),
        ("SequentialLR", {"schedulers": [("ReduceLROnPlateau", {})], "milestones": []}),
        ("ChainedScheduler", {"schedulers": [("ConstantLR", {}), ("ReduceLROnPlateau", {})]}),
        ("ReduceLROnPlateau", {"factor": 1.0}),
        ("ReduceLROnPlateau", {"mode": "least"}),
        ("ReduceLROnPlateau", {"threshold_mode": "log"}),
        ("ReduceLROnPlateau", {"min_lr": [0.1]}),
        ("CyclicLR", {"base_lr": 0.1, "max_lr": 0.2, "mode": "square"}),
        ("CyclicLR", {"base_lr": [0.1], "max_lr": 0.2}),
        ("CyclicLR", {"base_lr": 0.1, "max_lr": [0.2, 0.3, 0.4]}),
        ("CyclicLR", {"base_lr": 0.1, "max_lr": 0.2, "base_momentum": [0.2]}),
        ("OneCycleLR", {"max_lr": 0.1}),
        ("OneCycleLR", {"max_lr": 0.1, "total_steps": 0}),
        ("OneCycleLR", {"max_lr": 0.1, "epochs": -1, "steps_per_epoch": 3}),
        ("OneCycleLR", {"max_lr": 0.1, "epochs": 2, "steps_per_epoch": 0.5}),
        ("OneCycleLR", {"max_lr": 0.1, "total_steps": 9, "pct_start": 1.5}),
        ("OneCycleLR", {"max_lr": 0.1, "total_steps": 9, "anneal_strategy": "log"}),
        ("OneCycleLR", {"max_lr": [0.1], "total_steps": 9}),
        ("CosineAnnealingWarmRestarts", {"T_0": 0}),
        ("CosineAnnealingWarmRestarts", {"T_0": 3, "T_mult": 0.5}),
        ("CosineAnnealingWarmRestarts", {"T_0": 3, "eta_min": "0"}),
        ("SWALR", {"swa_lr": 0.1, "anneal_strategy": "log"}),
        ("SWALR", {"swa_lr": 0.1, "anneal_epochs": -1}),
        ("SWALR", {"swa_lr": [0.1]}),
    ],
)
def test_errors_of_options_are_torchs(name: str, options: dict[str, Any]) -> None:
    if name == "SWALR":
        since(2, 13)
    groups = [{"params": [torch.nn.Parameter(torch.ones(1))]} for _ in range(2)]
    with pytest.raises((ValueError, TypeError)) as expected:
        theirs((name, options), torch.optim.SGD(groups, lr=0.1, momentum=0.9))
    with pytest.raises(type(expected.value)) as actual:
        ours((name, options)).init(STATE)
    order = " (group 0 is the default group, which counts also where it is empty, then come the ParamGroups in order)"
    assert str(actual.value).removesuffix(order) == str(expected.value)
    of_groups = re.search(r"param_groups has|lr_lambdas, but|min_lrs, got", str(expected.value))
    assert str(actual.value).endswith(order) == (of_groups is not None)


def test_errors_of_steps() -> None:
    def after_init(scheduler: lr_scheduler.Scheduler, state: Any = STATE) -> tuple[Any, Any]:
        return scheduler.init(state)

    one_cycle = lr_scheduler.one_cycle_lr(max_lr=0.1, total_steps=2)
    sched, state = after_init(one_cycle)
    with pytest.raises(ValueError, match="Tried to step 3 times"):
        one_cycle.step_to(sched, state, 3)
    assert np.isnan(float(jax.jit(one_cycle.step_to)(sched, state, 3)[0]["_last_lr"][0]))

    restarts = lr_scheduler.cosine_annealing_warm_restarts(T_0=3)
    with pytest.raises(ValueError, match="Expected non-negative epoch, but got -1"):
        restarts.step_to(*after_init(restarts), -1)
    plateau = lr_scheduler.reduce_lr_on_plateau()
    with pytest.raises(TypeError, match="needs the metric"):
        plateau.step(*after_init(plateau))
    for step_size in ("30", 0, None):
        with pytest.raises(ValueError, match=f"Expected positive integer step_size, but got {step_size!r}"):
            lr_scheduler.step_lr(step_size)  # type: ignore[arg-type]
    step = lr_scheduler.step_lr(step_size=3)
    with pytest.raises(TypeError, match="takes no metric"):
        step.step(*after_init(step), 1.0)
    with pytest.raises(TypeError, match=r"has to be an integer, not 1\.5"):
        step.step_to(*after_init(step), 1.5)
    chained = lr_scheduler.chained_scheduler([step])
    with pytest.raises(TypeError, match="ChainedScheduler takes no epoch"):
        chained.step_to(*after_init(chained), 1)
    with pytest.raises(NotImplementedError, match="put it first"):
        lr_scheduler.sequential_lr([step, chained], milestones=[1])
    with pytest.raises(ValueError, match="increasing order"):
        lr_scheduler.sequential_lr([step, step, step], milestones=[2, 1])
    with pytest.raises(TypeError, match="SequentialLR at index 0 should be a Scheduler, not a int"):
        lr_scheduler.sequential_lr([1], milestones=[])  # type: ignore[list-item]


@pytest.mark.parametrize("factory", [lr_scheduler.one_cycle_lr, lr_scheduler.cyclic_lr])
def test_cycling_needs_a_live_momentum(factory: Callable[..., lr_scheduler.Scheduler]) -> None:
    options = {"max_lr": 0.1} | ({"total_steps": 9} if factory is lr_scheduler.one_cycle_lr else {"base_lr": 0.01})
    state = optim.sgd(lr=0.1).init({})
    with pytest.raises(ValueError, match=r"optimizer must support momentum or beta1 with.*sgd\(lr, momentum=0\.9\)"):
        factory(**options).init(state)
    factory(**options, cycle_momentum=False).init(state)


@pytest.mark.parametrize(
    "scheduler",
    [
        lr_scheduler.cosine_annealing_lr(T_max=20),
        lr_scheduler.one_cycle_lr(max_lr=0.1, total_steps=40),
        lr_scheduler.sequential_lr([lr_scheduler.linear_lr(), lr_scheduler.step_lr(step_size=2)], milestones=[4]),
        lr_scheduler.swalr(swa_lr=0.2),
    ],
    ids=lambda scheduler: scheduler.name,
)
def test_as_schedule(scheduler: lr_scheduler.Scheduler) -> None:
    """The rates as float32: of step from a table, of step_to without one."""
    expected = np.array(lr_scheduler.rates(scheduler, lr=0.05, steps=30), np.float32)
    tabulated = lr_scheduler.as_schedule(scheduler, lr=0.05, steps=30)
    found = jnp.asarray(jax.jit(jax.vmap(tabulated))(jnp.arange(30)))
    assert found.dtype == jnp.float32
    assert bits(found) == bits(expected)
    assert tabulated(99) == expected[-1]
    if scheduler.by_epoch:
        schedule = lr_scheduler.as_schedule(scheduler, lr=0.05)
        np.testing.assert_allclose(jax.jit(jax.vmap(schedule))(jnp.arange(30)), expected, rtol=1e-6)
        assert schedule(7) == jax.jit(schedule)(7)
    else:
        with pytest.raises(ValueError, match="give as_schedule the steps"):
            lr_scheduler.as_schedule(scheduler, lr=0.05)


def test_a_plateau_is_no_schedule() -> None:
    with pytest.raises(ValueError, match="depends on a metric"):
        lr_scheduler.as_schedule(lr_scheduler.reduce_lr_on_plateau(), lr=0.05)


def test_a_scheduler_shows_its_name_and_options() -> None:
    step = lr_scheduler.step_lr(step_size=3)
    assert repr(step) == "StepLR(step_size=3, gamma=0.1)"
    assert repr(lr_scheduler.exponential_lr(0.9, last_epoch=4)) == "ExponentialLR(gamma=0.9, last_epoch=4)"
    assert repr(lr_scheduler.chained_scheduler([step])) == f"ChainedScheduler(schedulers=[{step}])"

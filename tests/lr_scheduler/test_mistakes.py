"""What a scheduler could take for something else: it is used as it is meant, or refused with the remedy."""

import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_port as optim
from jaxopt_port import lr_scheduler
from jaxopt_port.number import to_number
from tests.lr_scheduler.cases import MAIN, MORE, Case, Ours, Spec, assert_rates, optimizer_state, ours, theirs

torch = pytest.importorskip("torch")

STATE = optimizer_state("sgd")
PARAMS = {"a": jnp.ones(2), "b": jnp.ones(3)}


# States


@pytest.mark.parametrize("case", [pytest.param(case, id=case.label) for case in MAIN])
def test_the_state_of_another_scheduler(case: Case) -> None:
    """By name, from Python and under jit, whichever of the sixteen it is of."""
    mine = Ours(case).scheduler
    sched, state = mine.init(STATE)
    metric = [1.0] if case.spec[0] == "ReduceLROnPlateau" else []
    mine.step(sched, state, *metric)
    for other in MAIN:
        if other is case:
            continue
        own = Ours(other).scheduler.init(STATE)[0]
        for step in (mine.step, jax.jit(mine.step)):
            with pytest.raises(
                TypeError, match=rf"the state is of a {other.spec[0]}.*, this scheduler is a {mine.name}"
            ):
                step(own, state, *metric)


def test_schedulers_inside_another_are_told_apart() -> None:
    step, exponential = lr_scheduler.step_lr(step_size=2), lr_scheduler.exponential_lr(gamma=0.5)
    sched, state = lr_scheduler.chained_scheduler([step, exponential]).init(STATE)
    message = (
        r"of a ChainedScheduler\(StepLR, ExponentialLR\), this scheduler is a ChainedScheduler\(ExponentialLR, StepLR"
    )
    with pytest.raises(TypeError, match=message):
        lr_scheduler.chained_scheduler([exponential, step]).step(sched, state)


@pytest.mark.parametrize("nothing", [{}, None, {"last_epoch": 1}, STATE, 0.1])
def test_what_is_no_state(nothing: Any) -> None:
    scheduler = lr_scheduler.exponential_lr(gamma=0.5)
    with pytest.raises(TypeError, match=r"first argument has to be the scheduler's state, which init returned, not "):
        scheduler.step(nothing, STATE)
    if nothing is not None:
        with pytest.raises(TypeError, match="after must be the state of another scheduler"):
            scheduler.init(STATE, after=nothing)


def test_a_state_that_was_cast_or_restored_without_a_target() -> None:
    scheduler = lr_scheduler.exponential_lr(gamma=0.5)
    sched, state = scheduler.init(STATE)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), sched)
    plain = {**sched, "_last_lr": [{"parts": x.parts} for x in sched["_last_lr"]]}
    for wrong, what in ((half, "a Number of bfloat16"), (plain, r"float32\[4\], not a Number")):
        for step in (scheduler.step, jax.jit(scheduler.step)):
            with pytest.raises(
                TypeError, match=rf"_last_lr.* of the scheduler's state is {what}.*as the target, uncast"
            ):
                step(wrong, state)


# Functions


@pytest.mark.parametrize(
    "function",
    [
        lambda epoch: math.cos(epoch),
        lambda epoch: 1.0 if epoch < 2 else 0.5,
        lambda epoch: [1.0, 0.5, 0.25][epoch],
        lambda epoch: {0: 1.0}.get(epoch, 0.5),
        lambda epoch: float(epoch),
        lambda epoch: 1.0 / int(epoch + 1),
        lambda epoch: epoch.bit_length(),
    ],
)
@pytest.mark.parametrize("name", ["lr_lambda", "scale_fn"])
def test_functions_that_cannot_be_traced(function: Callable[[Any], Any], name: str) -> None:
    def made(function: Callable[[Any], Any]) -> lr_scheduler.Scheduler:
        if name == "lr_lambda":
            return lr_scheduler.lambda_lr(function)
        return lr_scheduler.cyclic_lr(0.1, 0.2, scale_fn=function, scale_mode="iterations", cycle_momentum=False)

    scheduler = made(function)
    sched, state = scheduler.init(STATE)
    scheduler.step(sched, state)
    with pytest.raises(TypeError, match=rf"under jit the epoch has no value, and {name} asks.*lr_scheduler.tabulate"):
        jax.jit(scheduler.step)(sched, state)
    tabulated = made(lr_scheduler.tabulate(function, steps=2))
    found, expected = jax.jit(tabulated.step)(sched, state), scheduler.step(sched, state)
    assert tabulated.get_last_lr(found[0]) == scheduler.get_last_lr(expected[0])


def test_functions_in_a_trace() -> None:
    tabulated = lr_scheduler.lambda_lr(lr_scheduler.tabulate(lambda epoch: 1.0 if epoch < 2 else 0.5, steps=2))
    sched, state = tabulated.init(STATE)
    step = jax.jit(tabulated.step)
    found = []
    for _ in range(3):
        sched, state = step(sched, state)
        found.append(tabulated.get_last_lr(sched)[0])
    assert found[:2] == [0.05, 0.025]
    assert np.isnan(found[2])
    with_jnp = lr_scheduler.lambda_lr(lambda epoch: jnp.where(epoch < 2, 1.0, jnp.cos(jnp.asarray(epoch))))
    sched, _ = jax.jit(with_jnp.step_to)(*with_jnp.init(STATE), 3)
    np.testing.assert_allclose(with_jnp.get_last_lr(sched), [0.05 * np.cos(3.0), 0.5 * np.cos(3.0)], rtol=1e-15)


@pytest.mark.parametrize(
    ("result", "what"),
    [
        (np.array([0.5, 0.1]), r"an array of shape \[2\]"),
        (jnp.ones((2, 3)), r"an array of shape \[2, 3\]"),
        ([0.5, 0.1], r"an array of shape \[2\]"),
        (None, "None"),
        ("0.5", "'0.5'"),
        (0.5j, r"0\.5j"),
    ],
)
def test_functions_that_return_something_else_than_a_number(result: Any, what: str) -> None:
    """A vector was applied to the parameters element by element."""
    message = f"must return one number, not {what}"
    for make in (lr_scheduler.lambda_lr, lr_scheduler.multiplicative_lr):
        scheduler = make(lambda epoch: result if epoch > 0 else 1.0)
        sched, state = scheduler.init(STATE)
        with pytest.raises(ValueError, match=f"lr_lambda {message}"):
            scheduler.step(sched, state)
    constant = lr_scheduler.multiplicative_lr(lambda epoch: result)
    with pytest.raises(ValueError, match=f"lr_lambda {message}"):
        jax.jit(constant.step)(*constant.init(STATE))
    cyclic = lr_scheduler.cyclic_lr(0.1, 0.2, scale_fn=lambda cycle: result)
    with pytest.raises(ValueError, match=f"scale_fn {message}"):
        cyclic.init(STATE)


@pytest.mark.parametrize("result", [0.5, 1, True, np.float64(0.3), np.array([0.3]), np.float32(0.3)])
def test_what_counts_as_a_number(result: Any) -> None:
    """torch's product of the rate and what the function returns."""
    scheduler = lr_scheduler.lambda_lr(lambda epoch: result)
    sched, _ = scheduler.init(STATE)
    assert scheduler.get_last_lr(sched) == [float(np.squeeze(lr * result)) for lr in (0.05, 0.5)]


# Epochs


def test_an_epoch_between_two() -> None:
    """Under jit a Python number is a float32, and so not torch's; as a Number or a float64 it is."""
    restarts = lr_scheduler.cosine_annealing_warm_restarts(T_0=3, T_mult=2)
    torch_optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.05)
    torch_restarts = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(torch_optimizer, 3, 2)
    sched, state = restarts.init(STATE)
    step_to = jax.jit(restarts.step_to)
    for epoch in (0.1, 2.7, 4 + 1 / 3, 13.9):
        torch_restarts.step(epoch)
        found = restarts.step_to(sched, state, epoch)[0]
        assert restarts.get_last_lr(found)[0] == torch_restarts.get_last_lr()[0]
        with jax.enable_x64(True):
            wide = step_to(sched, state, epoch)[0]
        for traced in (step_to(sched, state, to_number(epoch))[0], wide):
            assert_rates(restarts.get_last_lr(traced)[:1], torch_restarts.get_last_lr())
        for lost in (epoch, np.float32(epoch)):
            with pytest.raises(TypeError, match=r"under jit the epoch is a float32, .*to_number\(epoch\)"):
                step_to(sched, state, lost)
    torch_restarts.step(5)
    assert_rates(restarts.get_last_lr(step_to(sched, state, 5)[0])[:1], torch_restarts.get_last_lr())


@pytest.mark.parametrize("case", [pytest.param(case, id=case.label) for case in MAIN])
def test_an_epoch_between_two_where_it_has_to_be_an_integer(case: Case) -> None:
    scheduler = Ours(case).scheduler
    sched, state = scheduler.init(STATE)
    metric = [1.0] if case.spec[0] == "ReduceLROnPlateau" else []
    if case.label == "restarts":
        return
    for step_to in (scheduler.step_to, jax.jit(scheduler.step_to)):
        with pytest.raises(TypeError, match="the epoch has to be an integer, not "):
            step_to(sched, state, 1.5, *metric)


@pytest.mark.parametrize("wrong", ["3", jnp.ones(2), [1.0], {}, 1j])
def test_epochs_and_metrics_that_are_not_one_number(wrong: Any) -> None:
    scheduler, plateau = lr_scheduler.exponential_lr(gamma=0.5), lr_scheduler.reduce_lr_on_plateau()
    with pytest.raises(TypeError, match="the epoch has to be a number, not "):
        scheduler.step_to(*scheduler.init(STATE), wrong)
    with pytest.raises(TypeError, match="the metric has to be one number, such as a loss, not "):
        plateau.step(*plateau.init(STATE), wrong)


# Groups


ADDED: list[tuple[Spec, bool]] = [
    (("LambdaLR", {"lr_lambda": lambda epoch: 0.5}), False),
    (("MultiplicativeLR", {"lr_lambda": lambda epoch: 0.5}), False),
    (("MultiplicativeLR", {"lr_lambda": [lambda epoch: 0.5] * 2}), False),
    (("StepLR", {"step_size": 1}), True),
    (("MultiStepLR", {"milestones": [2]}), True),
    (("ConstantLR", {"total_iters": 2}), True),
    (("LinearLR", {}), True),
    (("ExponentialLR", {"gamma": 0.5}), True),
    (("SequentialLR", {"schedulers": [("StepLR", {"step_size": 1}), ("ConstantLR", {})], "milestones": [9]}), True),
    (("SequentialLR", {"schedulers": [("ConstantLR", {}), ("StepLR", {"step_size": 1})], "milestones": [2]}), False),
    (("CosineAnnealingLR", {"T_max": 9}), True),
    (("CosineAnnealingLR", {"T_max": 1}), False),  # at the bottom it looks at the initial rates
    (("ChainedScheduler", {"schedulers": [("StepLR", {"step_size": 1}), ("LinearLR", {})]}), True),
    (("ChainedScheduler", {"schedulers": [("StepLR", {"step_size": 1}), ("SWALR", {"swa_lr": 0.1})]}), False),
    (("PolynomialLR", {}), True),
    (("ReduceLROnPlateau", {"patience": 0}), True),
    (("ReduceLROnPlateau", {"patience": 0, "min_lr": [0.1, 0.2]}), False),
    (("CyclicLR", {"base_lr": 0.1, "max_lr": 0.2}), False),
    (("OneCycleLR", {"max_lr": 0.1, "total_steps": 9}), False),
    (("CosineAnnealingWarmRestarts", {"T_0": 3}), False),
    (("SWALR", {"swa_lr": 0.1}), False),
]


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize(("spec", "goes_on"), ADDED, ids=[spec[0] for spec, _ in ADDED])
def test_after_add_param_group(spec: Spec, goes_on: bool) -> None:
    """It goes on where torch's does, with torch's rates, and raises where torch's raises."""
    optimizer = optim.sgd(lr=0.05, momentum=0.9, param_groups=[optim.ParamGroup("b", frozen=True)])
    state = optimizer.init(PARAMS)
    torch_optimizer = torch.optim.SGD(
        [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": lr} for lr in (0.05, 0.05)], momentum=0.9
    )
    torch_scheduler, scheduler = theirs(spec, torch_optimizer), ours(spec)
    sched, state = scheduler.init(state)
    metric = [1.0] if spec[0] == "ReduceLROnPlateau" else []

    def steps(step: Callable[..., Any]) -> None:
        stepped = sched, state
        for _ in range(3):
            stepped = step(*stepped, *metric)

    torch_optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(3))], "lr": 0.5})
    optimizer, state = optim.add_param_group(optimizer, state, PARAMS, optim.ParamGroup("b", lr=0.5))
    if not goes_on:
        with pytest.raises((ValueError, KeyError, RuntimeError)):
            [torch_scheduler.step(*metric) for _ in range(3)]
        for step in (scheduler.step, jax.jit(scheduler.step)):
            message = r"2 parameter groups, the optimizer has 3|`optimizer` \(3\) differs from when"
            with pytest.raises((ValueError, RuntimeError), match=message):
                steps(step)
        return
    for _ in range(3):
        torch_scheduler.step(*metric)
        sched, state = scheduler.step(sched, state, *metric)
        assert [group["lr"] for group in optim.get_hyper(state)] == [g["lr"] for g in torch_optimizer.param_groups]


def test_rates_outside_float32_are_refused() -> None:
    """A rate of 1e-50 is no number of a state: it does not become another in silence."""
    scheduler = lr_scheduler.exponential_lr(gamma=1e-20)
    sched, state = scheduler.init(STATE)
    for _ in range(2):
        sched, state = scheduler.step(sched, state)
    assert scheduler.get_last_lr(sched)[0] == 0.05 * 1e-20 * 1e-20
    with pytest.raises(ValueError, match=re.escape("outside the numbers that a hyper-parameter can be")):
        scheduler.step(sched, state)


def test_every_case_is_here() -> None:
    assert {spec[0] for spec, _ in ADDED} == {case.spec[0] for case in MAIN + MORE}

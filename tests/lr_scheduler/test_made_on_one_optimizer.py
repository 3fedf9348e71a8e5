"""Schedulers that are made one after the other on one optimizer, all pairs and chains of them, against torch's.

torch's share the optimizer's groups: the rate, `initial_lr`, and what OneCycleLR, CyclicLR and SWALR add.
"""

import itertools
import random
import warnings
from collections.abc import Sequence
from typing import Any

import pytest

from tests.lr_scheduler.cases import GROUPS, NAMES, Ours, Spec, float64s, optimizer_state, ours, theirs

torch = pytest.importorskip("torch")

STEPS = 5
# One of each class, and another with other options, which shows whose options a scheduler goes on with.
ONE: list[Spec] = [
    ("LambdaLR", {"lr_lambda": lambda epoch: 0.9**epoch}),
    ("MultiplicativeLR", {"lr_lambda": lambda epoch: 1 - 0.1 / (epoch + 1)}),
    ("StepLR", {"step_size": 2, "gamma": 0.7}),
    ("MultiStepLR", {"milestones": [1, 3, 3], "gamma": 0.6}),
    ("ConstantLR", {"factor": 0.3, "total_iters": 3}),
    ("LinearLR", {"start_factor": 0.2, "total_iters": 4}),
    ("ExponentialLR", {"gamma": 0.93}),
    ("SequentialLR", {"schedulers": [("ConstantLR", {}), ("ExponentialLR", {"gamma": 0.8})], "milestones": [2]}),
    ("CosineAnnealingLR", {"T_max": 3, "eta_min": 0.003}),
    ("ChainedScheduler", {"schedulers": [("LinearLR", {}), ("StepLR", {"step_size": 2})]}),
    ("PolynomialLR", {"total_iters": 4, "power": 0.9}),
    ("ReduceLROnPlateau", {"factor": 0.6, "patience": 0}),
    ("CyclicLR", {"base_lr": 0.01, "max_lr": [0.07, 0.9], "step_size_up": 2}),
    ("OneCycleLR", {"max_lr": [0.1, 1.3], "total_steps": 9}),
    ("CosineAnnealingWarmRestarts", {"T_0": 2, "T_mult": 2, "eta_min": 0.001}),
    ("SWALR", {"swa_lr": [0.01, 0.7], "anneal_epochs": 3}),
]
OTHER: list[Spec] = [
    ("LambdaLR", {"lr_lambda": lambda epoch: 1 / (1 + epoch)}),
    ("MultiplicativeLR", {"lr_lambda": lambda epoch: 0.9}),
    ("StepLR", {"step_size": 1, "gamma": 1.1}),
    ("MultiStepLR", {"milestones": [2], "gamma": 0.2}),
    ("ConstantLR", {"factor": 0.7, "total_iters": 2}),
    ("LinearLR", {"start_factor": 0.9, "end_factor": 0.1, "total_iters": 3}),
    ("ExponentialLR", {"gamma": 1.05}),
    ("SequentialLR", {"schedulers": [("LinearLR", {}), ("CosineAnnealingLR", {"T_max": 5})], "milestones": [3]}),
    ("CosineAnnealingLR", {"T_max": 20}),
    ("ChainedScheduler", {"schedulers": [("ConstantLR", {}), ("SWALR", {"swa_lr": 0.3, "anneal_epochs": 2})]}),
    ("PolynomialLR", {"total_iters": 3, "power": 2.0}),
    ("ReduceLROnPlateau", {"factor": 0.3, "patience": 1, "min_lr": 0.02}),
    (
        "CyclicLR",
        {
            "base_lr": [0.1, 0.2],
            "max_lr": 0.3,
            "step_size_up": 1,
            "step_size_down": 3,
            "mode": "triangular2",
            "base_momentum": 0.6,
        },
    ),
    ("OneCycleLR", {"max_lr": 0.4, "total_steps": 7, "three_phase": True, "max_momentum": 0.9}),
    ("CosineAnnealingWarmRestarts", {"T_0": 3}),
    ("SWALR", {"swa_lr": 0.2, "anneal_epochs": 4, "anneal_strategy": "linear"}),
]
PARTS = [i for i, (name, _) in enumerate(ONE) if name not in ("ReduceLROnPlateau", "SequentialLR", "ChainedScheduler")]


def torch_run(specs: Sequence[Spec], turns: Sequence[Sequence[int]]) -> list[list[float]]:
    """Rates and momenta after all are made, and after each turn, in which the schedulers step in that order."""
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))], **group} for group in GROUPS]
    optimizer = torch.optim.SGD(groups, momentum=0.95)
    values = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of lr_scheduler.step() before optimizer.step()
        schedulers = [theirs(spec, optimizer) for spec in specs]
        for turn in ([], *turns):
            for i in turn:
                schedulers[i].step(*([1.0] if specs[i][0] == "ReduceLROnPlateau" else []))
            values.append([x for group in optimizer.param_groups for x in (group["lr"], group["momentum"])])
    return values


def our_run(specs: Sequence[Spec], turns: Sequence[Sequence[int]]) -> list[list[float]]:
    schedulers, state = [ours(spec) for spec in specs], optimizer_state("sgd", momentum=0.95)
    scheds: list[Any] = []
    for scheduler in schedulers:
        sched, state = scheduler.init(state, after=scheds[-1] if scheds else None)
        scheds = [*({**each, "param_groups": sched["param_groups"]} for each in scheds), sched]
    values = []
    for turn in ([], *turns):
        for i in turn:
            metric = 1.0 if specs[i][0] == "ReduceLROnPlateau" else None
            scheds[i], state = schedulers[i].step(scheds[i], state, metric)
        values.append(float64s(Ours.values((state,))).tolist())
    return values


def assert_same(specs: Sequence[Spec], turns: Sequence[Sequence[int]]) -> None:
    assert our_run(specs, turns) == torch_run(specs, turns), [name for name, _ in specs]


def test_they_are_all_there() -> None:
    assert [name for name, _ in ONE] == [name for name, _ in OTHER]
    assert {name for name, _ in ONE} == set(NAMES)


@pytest.mark.parametrize("turns", [[[0]] * STEPS, [[1]] * STEPS, [[0, 1]] * STEPS], ids=["first", "second", "both"])
@pytest.mark.parametrize("first", ONE, ids=[name for name, _ in ONE])
def test_pairs(first: Spec, turns: list[list[int]]) -> None:
    for second in OTHER:
        assert_same([first, second], turns)


@pytest.mark.parametrize("first", [ONE[i] for i in PARTS], ids=[ONE[i][0] for i in PARTS])
def test_chained_and_sequential_pairs(first: Spec) -> None:
    for second in (OTHER[i] for i in PARTS):
        assert_same([("ChainedScheduler", {"schedulers": [first, second]})], [[0]] * STEPS)
        assert_same([("SequentialLR", {"schedulers": [first, second], "milestones": [2]})], [[0]] * STEPS)


def test_chains_of_three() -> None:
    """Made on one optimizer and stepped in turn; chained; one after the other: a hundred of each, drawn by chance."""
    draw = random.Random(0)
    every, parts = [*ONE, *OTHER], [each[i] for each in (ONE, OTHER) for i in PARTS]
    orders = list(itertools.permutations(range(3)))
    for _ in range(100):
        assert_same(draw.sample(every, 3), [draw.choice(orders) for _ in range(STEPS)])
        chain = draw.sample(parts, 3)
        assert_same([("ChainedScheduler", {"schedulers": chain})], [[0]] * STEPS)
        assert_same([("SequentialLR", {"schedulers": chain, "milestones": [1, 3]})], [[0]] * STEPS)


def test_the_first_goes_on_from_a_cyclic_lr() -> None:
    """As it is, without what the second shares: it does not look at it."""
    first, second = ("CosineAnnealingLR", {"T_max": 20, "eta_min": 0.1}), OTHER[12]
    assert second[0] == "CyclicLR"
    cosine, cyclic = ours(first), ours(second)
    sched, state = cosine.init(optimizer_state("sgd", momentum=0.95))
    _, state = cyclic.init(state, after=sched)
    found = [float64s(Ours.values((state,))).tolist()]
    for _ in range(STEPS):
        sched, state = cosine.step(sched, state)
        found.append(float64s(Ours.values((state,))).tolist())
    assert found == torch_run([first, second], [[0]] * STEPS)

"""Schedulers that take a list, on an optimizer with a frozen group: it may be left out of it."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

import jaxopt_port as optim
from jaxopt_port import lr_scheduler
from jaxopt_port.torch_interop import scheduler_state_dict
from tests.lr_scheduler.cases import Case, Ours, Spec, Torch, assert_rates, ours

torch = pytest.importorskip("torch")

PARAMS = {"a": jnp.ones(2), "b": jnp.ones(3), "c": jnp.ones(4)}
HALVES, TENTHS = (lambda epoch: 0.5**epoch), (lambda epoch: 0.1 * epoch)
LISTS: list[Spec] = [
    ("LambdaLR", {"lr_lambda": [HALVES, TENTHS]}),
    ("MultiplicativeLR", {"lr_lambda": [HALVES, TENTHS]}),
    ("ReduceLROnPlateau", {"factor": 0.5, "patience": 0, "min_lr": [0.01, 0.3]}),
    (
        "CyclicLR",
        {"base_lr": [0.1, 0.2], "max_lr": [0.3, 0.5], "base_momentum": [0.6, 0.7], "max_momentum": [0.8, 0.95]},
    ),
    (
        "OneCycleLR",
        {"max_lr": [0.3, 0.5], "total_steps": 9, "base_momentum": [0.6, 0.7], "max_momentum": [0.8, 0.95]},
    ),
    ("SWALR", {"swa_lr": [0.2, 0.01]}),
    ("ChainedScheduler", {"schedulers": [("LambdaLR", {"lr_lambda": [HALVES, TENTHS]}), ("StepLR", {"step_size": 2})]}),
    (
        "SequentialLR",
        {
            "schedulers": [("LambdaLR", {"lr_lambda": (HALVES, TENTHS)}), ("SWALR", {"swa_lr": [0.2, 0.01]})],
            "milestones": [3],
        },
    ),
]
EACH = [pytest.param(spec, id=spec[0]) for spec in LISTS]


def optimizer() -> optim.Optimizer:
    """torch's two groups as groups 0 and 2."""
    groups = [optim.ParamGroup("c", frozen=True), optim.ParamGroup("b", lr=0.5)]
    return optim.sgd(lr=0.05, momentum=0.9, param_groups=groups)


def of_groups_that_step(values: list[Any]) -> list[float]:
    """Of rates and momenta by turns, those of groups 0 and 2."""
    return [float(x) for group in (0, 2) for x in values[2 * group : 2 * group + 2]]


@pytest.mark.parametrize("spec", EACH)
def test_one_entry_for_each_group_that_steps(spec: Spec) -> None:
    """Rates and momenta are torch's, from Python and under jit, and so is the state that torch gets back."""
    case = Case("lists", spec)
    theirs, mine = Torch(case), Ours(case, table=9)
    sched, state = mine.scheduler.init(optimizer().init(PARAMS))
    carry, step = (sched, {}, state), jax.jit(mine.step)
    for metric in [3.0, 4.0, 5.0, 6.0, 7.0, 8.0]:
        theirs.step(metric)
        under_jit, carry = step(carry, metric), mine.step(carry, metric)
        assert of_groups_that_step(mine.values(carry)) == theirs.values()
        assert_rates(of_groups_that_step(mine.values(under_jit)), theirs.values())
    saved = scheduler_state_dict(mine.scheduler, carry[0], optimizer(), PARAMS)
    fresh = Torch(case)
    fresh.scheduler.load_state_dict(saved)
    assert fresh.scheduler.get_last_lr() == theirs.scheduler.get_last_lr()


@pytest.mark.parametrize("spec", EACH[:6])
def test_one_entry_for_every_group_or_an_error_that_says_which_do_not_step(spec: Spec) -> None:
    name, options = spec

    def scheduler(places: list[int]) -> lr_scheduler.Scheduler:
        return ours((name, {k: [v[i] for i in places] if isinstance(v, list) else v for k, v in options.items()}))

    state = optimizer().init(PARAMS)
    of_two, of_three = (scheduler(places).init(state)[1] for places in ([0, 1], [0, 0, 1]))
    assert optim.get_hyper(of_two) == optim.get_hyper(of_three)
    for wrong in (1, 4, 5):
        with pytest.raises(ValueError, match="frozen, to be counted or left out together: 1"):
            scheduler([0] * wrong).init(state)
    alone = optim.sgd(lr=0.05, momentum=0.9).init(PARAMS)
    order = r"\(group 0 is the default group, which counts also where it is empty, then come the ParamGroups in order\)"
    with pytest.raises(ValueError, match=order):
        scheduler([0, 1]).init(alone)
    of_groups_only = optim.sgd(lr=0.05, momentum=0.9, param_groups=[optim.ParamGroup(x) for x in ("a|c", "b")])
    with pytest.raises(ValueError, match=order):
        scheduler([0, 1]).init(of_groups_only.init(PARAMS))


def test_groups_of_no_parameters_at_all_count() -> None:
    """A state made to look at rates."""
    state = optim.sgd(lr=1.0, param_groups=[optim.ParamGroup("a", lr=2.0)]).init({})
    sched, _ = lr_scheduler.lambda_lr([lambda epoch: 0.5, lambda epoch: 0.25]).init(state)
    assert lr_scheduler.lambda_lr(HALVES).get_last_lr(sched) == [0.5, 0.5]


@pytest.mark.parametrize("flat", [False, True])
def test_a_state_made_with_a_group_frozen_does_not_unfreeze_it(flat: bool) -> None:
    """Plain SGD has no other arrays from which it would be seen."""
    optimizers = [optim.sgd(lr=0.1, param_groups=[optim.ParamGroup("c", frozen=frozen)]) for frozen in (True, False)]
    was, now = map(optim.flat, optimizers) if flat else optimizers
    state = was.init(PARAMS)
    with pytest.raises(ValueError, match=r"no step count for group 1, which was frozen .* unfreeze by add_param_group"):
        now.step(PARAMS, state, PARAMS)
    now, state = optim.add_param_group(was, state, PARAMS, optim.ParamGroup("c", lr=1.0))
    params, _ = now.step(PARAMS, state, PARAMS)
    assert params["c"].tolist() == [0.0] * 4

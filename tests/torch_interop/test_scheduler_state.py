"""Schedulers carried between torch and here in the middle of a run go on with every bit of the rates."""

import copy
import json
import math
from typing import Any

import jax.numpy as jnp
import pytest

import jaxopt_port as optim
from jaxopt_port.lr_scheduler import (
    cosine_annealing_lr,
    exponential_lr,
    lambda_lr,
    multi_step_lr,
    reduce_lr_on_plateau,
    step_lr,
)
from jaxopt_port.torch_interop import load_optimizer, load_scheduler, optimizer_state_dict, scheduler_state_dict
from tests.lr_scheduler.cases import MAIN, MORE, Case, Ours, Torch, metrics

torch = pytest.importorskip("torch")
from tests.torch_interop.convert import arrays, tensors  # noqa: E402

HALF, STEPS = 53, 110
PARAMS = {"a": jnp.ones(2), "b": jnp.ones(3)}
CASES = [pytest.param(case, id=case.label) for case in MAIN + MORE if case.plateau is None]


def advance_torch(run: Torch, first: int, last: int) -> list[list[float]]:
    values = []
    for metric in metrics(STEPS)[first:last]:
        run.step(float(metric))
        values.append(run.values())
    return values


def advance_ours(run: Ours, carry: Any, first: int, last: int) -> tuple[Any, list[list[float]]]:
    values = []
    for metric in metrics(STEPS)[first:last]:
        carry = run.step(carry, metric)
        values.append([float(x) for x in run.values(carry)])
    return carry, values


def factory(case: Case) -> Any:
    return optim.adam if case.optimizer == "adam" else optim.sgd


@pytest.mark.parametrize("case", CASES)
def test_from_torch(case: Case) -> None:
    theirs, ours = Torch(case), Ours(case)
    advance_torch(theirs, 0, HALF)
    optimizer, scheduler = arrays(theirs.optimizer.state_dict()), theirs.scheduler.state_dict()
    for group, name in zip(optimizer["param_groups"], PARAMS, strict=True):
        group["param_names"] = [name]  # nothing has stepped, so that no shapes tell
    _, state = load_optimizer(factory(case), optimizer, PARAMS)
    sched = load_scheduler(ours.scheduler, scheduler, state, optimizer)
    _, actual = advance_ours(ours, (sched, {}, state), HALF, STEPS)
    assert actual == advance_torch(theirs, HALF, STEPS)


@pytest.mark.parametrize("case", CASES)
def test_to_torch(case: Case) -> None:
    theirs, ours = Torch(case), Ours(case)
    carry, _ = advance_ours(ours, ours.init(), 0, HALF)
    advance_torch(theirs, 0, HALF)
    adam = theirs.optimizer.param_groups[0]
    options = {"momentum": adam["momentum"]} if "momentum" in adam else {}
    optimizer = factory(case)(**options, param_groups=[optim.ParamGroup("b")])
    exported = optimizer_state_dict(optimizer, carry[-1], PARAMS, sched=carry[0])
    for group, expected in zip(exported["param_groups"], theirs.optimizer.param_groups, strict=True):
        assert {k: v for k, v in group.items() if k not in ("params", "param_names")} == {
            k: v for k, v in expected.items() if k != "params"
        }
    scheduler = scheduler_state_dict(ours.scheduler, carry[0], optimizer, PARAMS)
    assert scheduler == theirs.scheduler.state_dict()

    resumed = Torch(case)
    resumed.optimizer.load_state_dict(tensors(exported))
    resumed.scheduler.load_state_dict(copy.deepcopy(scheduler))
    assert advance_torch(resumed, HALF, STEPS) == advance_torch(theirs, HALF, STEPS)


class Power:
    """A callable object, of which torch writes the attributes."""

    def __init__(self, base: float):
        self.base = base

    def __call__(self, epoch: int) -> float:
        return self.base**epoch


def test_callable_objects_are_written_as_torch_does() -> None:
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.5)
    theirs = torch.optim.lr_scheduler.LambdaLR(sgd, Power(0.5)).state_dict()
    optimizer, scheduler = optim.sgd(lr=0.5), lambda_lr([Power(0.5)])
    sched, _ = scheduler.init(optimizer.init({"a": jnp.ones(2)}))
    assert scheduler_state_dict(scheduler, sched, optimizer, {"a": jnp.ones(2)}) == theirs


def test_parameters_that_torch_has_not_do_not_get_in_the_way() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    sgd = torch.optim.SGD([("a", weight)], lr=0.5)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(sgd, 0.9)
    sgd.step()
    scheduler.step()
    theirs = arrays(sgd.state_dict())
    optimizer, state = load_optimizer(optim.sgd, theirs, PARAMS)
    ours = exponential_lr(0.9)
    sched = load_scheduler(ours, scheduler.state_dict(), state, theirs)
    sched, state = ours.step(sched, state)
    scheduler.step()
    assert ours.get_last_lr(sched)[0] == scheduler.get_last_lr()[0]
    assert scheduler_state_dict(ours, sched, optimizer, PARAMS) == scheduler.state_dict()
    assert len(optimizer_state_dict(optimizer, state, PARAMS)["param_groups"]) == 1


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (lambda sgd: torch.optim.lr_scheduler.MultiStepLR(sgd, [2, 4, 4]), multi_step_lr([2, 4, 4])),
        (lambda sgd: torch.optim.lr_scheduler.ReduceLROnPlateau(sgd, patience=1), reduce_lr_on_plateau(patience=1)),
    ],
)
def test_through_json_and_from_a_torch_that_kept_no_rates(theirs: Any, ours: Any) -> None:
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.5)
    scheduler = theirs(sgd)
    written, optimizer = json.loads(json.dumps([scheduler.state_dict(), sgd.state_dict()]))
    del written["_last_lr"]
    _, state = load_optimizer(optim.sgd, optimizer, {"a": jnp.ones(2)})
    sched = load_scheduler(ours, written, state, optimizer)
    assert ours.get_last_lr(sched) == scheduler.get_last_lr()
    metric = [1.0] if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau) else []
    for _ in range(6):
        sgd.step()
        scheduler.step(*metric)
        sched, state = ours.step(sched, state, *metric)
        assert ours.get_last_lr(sched) == scheduler.get_last_lr()
    assert scheduler.get_last_lr() != [0.5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gamma": 0.5}, r"StepLR with gamma=0.5, this one has 0.1"),
        ({"T_max": 3}, r"not of a StepLR: it has T_max"),
        ({"base_lrs": [0.1, 0.2]}, r"base_lrs of the state dict has 2 values, the optimizer 1 parameter groups"),
    ],
)
def test_another_scheduler_is_refused(change: dict[str, Any], message: str) -> None:
    state = optim.sgd(lr=0.1).init({})
    state_dict = {"step_size": 3, "gamma": 0.1, "base_lrs": [0.1], "last_epoch": 0, "_step_count": 1, "_last_lr": [0.1]}
    groups = {"param_groups": [{"lr": 0.1, "initial_lr": 0.1}]}
    with pytest.raises(ValueError, match=message):
        load_scheduler(step_lr(3), {**state_dict, **change}, state, groups)
    with pytest.raises(ValueError, match="it has step_size, gamma"):
        load_scheduler(cosine_annealing_lr(3), state_dict, state, groups)
    for nothing in (None, [1]):
        with pytest.raises(ValueError, match=r"of a StepLR is .*: pass scheduler.state_dict\(\), such as checkpoint"):
            load_scheduler(step_lr(3), nothing, state, groups)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"a dict of \['optimizer'\], without param_groups: pass optimizer.state_dict"):
        load_scheduler(step_lr(3), state_dict, state, {"optimizer": groups})
    loaded = load_scheduler(step_lr(3), {**state_dict, "verbose": False}, state, groups)
    assert [float(x) for x in loaded["base_lrs"]] == [0.1]


@pytest.mark.parametrize("case", CASES[: len(MAIN)])
def test_the_state_dict_of_another_class(case: Case) -> None:
    """Both ways and by name, whichever of the sixteen it is of; two of torch's look the same."""
    mine = Ours(case)
    carry = mine.init()
    optimizer = optim.adam if case.optimizer == "adam" else optim.sgd
    groups = {"param_groups": [{"lr": 0.05, "initial_lr": 0.05}, {"lr": 0.5, "initial_lr": 0.5}]}
    alike = {"LambdaLR", "MultiplicativeLR"}
    for other in MAIN:
        if other.spec[0] == case.spec[0]:
            continue
        theirs = Torch(other).scheduler.state_dict()
        if {case.spec[0], other.spec[0]} != alike:
            named = f"not of a {case.spec[0]}, but of a .*{other.spec[0]}.*: it has "
            with pytest.raises(ValueError, match=named):
                load_scheduler(mine.scheduler, theirs, carry[-1], groups)
        with pytest.raises(TypeError, match=f"the state is of a {other.spec[0]}.*, this scheduler is a {case.spec[0]}"):
            scheduler_state_dict(mine.scheduler, Ours(other).init()[0], optimizer(), PARAMS)


@pytest.mark.parametrize("case", CASES[: len(MAIN)])
def test_values_that_are_no_numbers(case: Case) -> None:
    """None became NaN, and the epoch 1.5, which torch's step(1.5) leaves, became 1."""
    theirs, mine = Torch(case), Ours(case)
    state, state_dict, optimizer = mine.init()[-1], theirs.scheduler.state_dict(), theirs.optimizer.state_dict()
    counts = {"last_epoch", "_step_count", "num_bad_epochs", "cooldown_counter"} & state_dict.keys()
    lists = {"base_lrs", "_last_lr", "min_lrs", "max_lrs"} & state_dict.keys()
    for key in counts:
        for wrong in (1.5, math.inf, math.nan):
            with pytest.raises(ValueError, match=f"{key} of the state dict is .*, not an integer: step torch's"):
                load_scheduler(mine.scheduler, {**state_dict, key: wrong}, state, optimizer)
        with pytest.raises(ValueError, match=f"{key} of the state dict is .*: it is kept as int32"):
            load_scheduler(mine.scheduler, {**state_dict, key: 2**31}, state, optimizer)
        for wrong in (None, "1", 1j, [1, 2]):
            with pytest.raises(ValueError, match=rf"{key} of the state dict is .*, not a number: pass scheduler\."):
                load_scheduler(mine.scheduler, {**state_dict, key: wrong}, state, optimizer)
    for key in lists:
        for wrong in ([None, None], ["a", "b"], [1.0, 1j]):
            with pytest.raises(ValueError, match=rf"{key} of the state dict is .*, not a number: pass scheduler\."):
                load_scheduler(mine.scheduler, {**state_dict, key: wrong}, state, optimizer)
        with pytest.raises(ValueError, match=rf"{key} of the state dict is 0.1, the optimizer 2 parameter groups"):
            load_scheduler(mine.scheduler, {**state_dict, key: 0.1}, state, optimizer)


def test_functions_with_other_attributes() -> None:
    """torch gives its function the attributes that it saved: here the scheduler has to be made with them."""
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.5, momentum=0.9)
    kinds = torch.optim.lr_scheduler
    cyclic = {"base_lr": 0.1, "max_lr": 0.5, "scale_mode": "iterations"}
    for theirs, make in [
        (kinds.LambdaLR(sgd, Power(0.5)), lambda_lr),
        (kinds.MultiplicativeLR(sgd, Power(0.5)), optim.lr_scheduler.multiplicative_lr),
        (
            kinds.CyclicLR(sgd, **cyclic, scale_fn=Power(0.5)),
            lambda function: optim.lr_scheduler.cyclic_lr(**cyclic, scale_fn=function),
        ),
    ]:
        state_dict, optimizer = theirs.state_dict(), sgd.state_dict()
        state = optim.sgd(lr=0.5, momentum=0.9).init({"a": jnp.ones(2)})
        for function in (Power(0.5), lambda epoch: 0.5**epoch):
            load_scheduler(make(function), state_dict, state, optimizer)
        with pytest.raises(
            ValueError, match=r"of a function with the attributes \{'base': 0.5\}, this one has \{'base': 0"
        ):
            load_scheduler(make(Power(0.25)), state_dict, state, optimizer)


def test_schedulers_of_another_number() -> None:
    two = optim.lr_scheduler.chained_scheduler([step_lr(3), exponential_lr(0.5)])
    one = torch.optim.lr_scheduler.ChainedScheduler(
        [torch.optim.lr_scheduler.StepLR(torch.optim.SGD([torch.nn.Parameter(torch.ones(2))]), 3)]
    )
    with pytest.raises(ValueError, match="of a ChainedScheduler of 1 schedulers, not of 2"):
        load_scheduler(two, one.state_dict(), optim.sgd().init({}), {"param_groups": [{"lr": 0.1, "initial_lr": 0.1}]})


def test_a_table_is_written_as_its_function() -> None:
    optimizer, power = optim.sgd(lr=0.5), Power(0.5)
    written = []
    for function in (power, optim.lr_scheduler.tabulate(power, steps=3)):
        scheduler = lambda_lr(function)
        sched, _ = scheduler.init(optimizer.init({"a": jnp.ones(2)}))
        written.append(scheduler_state_dict(scheduler, sched, optimizer, {"a": jnp.ones(2)}))
    assert written[0] == written[1]
    assert written[0]["lr_lambdas"] == [{"base": 0.5}]

"""Scheduler states go through all that a JAX program does with a state, x64 off, and go on with torch's bits."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import equinox
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxopt_port import lr_scheduler, swa_utils
from jaxopt_port.gradients import GradScaler
from jaxopt_port.number import is_number
from tests.helpers import assert_same_bits, assert_same_types
from tests.lr_scheduler.cases import MAIN, MORE, Case, Ours, assert_rates, float64s, metrics, torch_values

pytest.importorskip("torch")

BEFORE, AFTER = 4, 3
EACH = [pytest.param(case, id=case.label) for case in MAIN + MORE]


def run(case: Case, carry: Any, first: int, last: int) -> Any:
    step = Ours(case).step
    for metric in metrics(last)[first:]:
        carry = step(carry, metric)
    return carry


def saved(case: Case) -> Any:
    return run(case, Ours(case).init(), 0, BEFORE)


def assert_goes_on(case: Case, carry: Any) -> None:
    values = float64s(Ours.values(run(case, carry, BEFORE, BEFORE + AFTER)))
    assert values.tolist() == torch_values(case, BEFORE + AFTER)[0][-1].tolist()


def equinox_round_trip(tree: Any, tmp_path: Any) -> Any:
    equinox.tree_serialise_leaves(tmp_path / "saved.eqx", tree)
    return equinox.tree_deserialise_leaves(tmp_path / "saved.eqx", jax.tree.map(jnp.zeros_like, tree))


def under_x64(tree: Any) -> Any:
    with jax.enable_x64(True):
        return jax.tree.map(jnp.asarray, pickle.loads(pickle.dumps(jax.device_get(tree))))


ROUND_TRIPS: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda tree: pickle.loads(pickle.dumps(tree)),
    "numpy": lambda tree: jax.tree.map(np.asarray, tree),
    "asarray of numpy": lambda tree: jax.tree.map(jnp.asarray, jax.device_get(tree)),
    "flax": lambda tree: flax.serialization.from_bytes(tree, flax.serialization.to_bytes(tree)),
    "flax, asarray": lambda tree: jax.tree.map(jnp.asarray, ROUND_TRIPS["flax"](tree)),
    "x64 on": under_x64,
    "half of the sum": lambda tree: jax.tree.map(lambda x: ((x + x) / 2).astype(x.dtype), tree),
    "where": lambda tree: jax.tree.map(lambda x: jnp.where(jnp.array(True), x, jnp.zeros_like(x)), tree),
}


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_round_trips(name: str) -> None:
    for case in MAIN + MORE:
        carry = saved(case)
        back = ROUND_TRIPS[name](carry)
        assert_same_bits(back, carry)
        assert jax.tree.structure(back) == jax.tree.structure(carry)
        assert_goes_on(case, back)


def test_files(tmp_path: Any) -> None:
    """Orbax, into an abstract target that `eval_shape` gives, and equinox: all states in one file."""
    states = {case.label.replace(",", ""): saved(case) for case in MAIN + MORE}
    abstract = {case.label.replace(",", ""): jax.eval_shape(Ours(case).init) for case in MAIN + MORE}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "saved", states)
        checkpointer.wait_until_finished()
        back = checkpointer.restore(tmp_path / "saved", abstract)
    for each in (back, equinox_round_trip(states, tmp_path)):
        assert jax.tree.structure(each) == jax.tree.structure(states)
        assert_same_bits(each, states)
        for case in MAIN + MORE:
            assert_goes_on(case, each[case.label.replace(",", "")])


@pytest.mark.parametrize("case", EACH[: len(MAIN)])
def test_abstract_states_and_x64_switched_in_jit(case: Case) -> None:
    """Lowered from abstract states alone; a state stepped under x64 in one step and without it in the next."""
    start, run_of = Ours(case).init(), Ours(case, table=50)
    abstract = jax.eval_shape(run_of.init)
    assert_same_types(abstract, start)
    assert {x.dtype for x in jax.tree.leaves(start[:2])} <= {np.dtype(np.float32), np.dtype(np.int32)}
    compiled = jax.jit(run_of.step).lower(abstract, jax.ShapeDtypeStruct((), jnp.float32)).compile()
    carry = start
    for i, metric in enumerate(metrics(6)):
        with jax.enable_x64(i % 2 == 1):
            carry = jax.jit(run_of.step)(carry, jnp.asarray(metric)) if i % 2 else compiled(carry, jnp.asarray(metric))
        assert_same_types(carry, start)
    assert_rates(float64s(Ours.values(carry)), torch_values(case, 6)[0][-1])


@pytest.mark.parametrize("case", EACH)
def test_a_scheduler_is_pickled_and_copied(case: Case) -> None:
    """What it computes is in its class: only a Python function of the user's can stand in the way, as in torch."""
    scheduler = Ours(case).scheduler
    if (
        case.spec[0] in ("LambdaLR", "MultiplicativeLR")
        or "scale_fn" in case.spec[1]
        or case.label == "sequential of many"
    ):
        copies = [copy.copy(scheduler)]
        with pytest.raises((AttributeError, pickle.PicklingError), match=r"lambda|local"):
            pickle.dumps(scheduler)
    else:
        copies = [copy.copy(scheduler), copy.deepcopy(scheduler), pickle.loads(pickle.dumps(scheduler))]
    sched, _, state = saved(case)
    needs_metric = case.spec[0] == "ReduceLROnPlateau"
    for each in copies:
        assert repr(each) == repr(scheduler)
        one, other = (x.step(sched, state, *([0.5] if needs_metric else [])) for x in (each, scheduler))
        assert_same_bits(one, other)


def halved(epoch: int) -> float:
    return 0.5**epoch if epoch < 3 else 0.1


def test_a_table_and_an_average_are_pickled() -> None:
    scheduler = lr_scheduler.lambda_lr(lr_scheduler.tabulate(halved, steps=5))
    back = pickle.loads(pickle.dumps(scheduler))
    assert lr_scheduler.rates(back, lr=0.3, steps=5) == lr_scheduler.rates(scheduler, lr=0.3, steps=5)
    params = {"w": jnp.arange(3.0)}
    for averaging in (
        swa_utils.averaged_model(),
        swa_utils.averaged_model(avg_fn=swa_utils.get_ema_avg_fn(0.9)),
        swa_utils.averaged_model(multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.9)),
        swa_utils.averaged_model(multi_avg_fn=swa_utils.get_swa_multi_avg_fn(), use_buffers=True),
    ):
        state = averaging.update(averaging.init(params), params)
        expected = averaging.update(state, {"w": jnp.ones(3)})
        for each in (pickle.loads(pickle.dumps(averaging)), copy.deepcopy(averaging), copy.copy(averaging)):
            assert_same_bits(each.update(state, {"w": jnp.ones(3)}), expected)


@pytest.mark.parametrize("name", [*ROUND_TRIPS, "equinox", "orbax"])
def test_scaler_and_average(name: str, tmp_path: Any) -> None:
    """The states beside the schedulers'."""
    scaler, averaging = GradScaler(growth_interval=2), swa_utils.averaged_model()
    params = {"w": jnp.arange(3.0) / 7, "none": None}
    init = lambda: (scaler.init(), averaging.init(params))  # noqa: E731
    scaling, averaged = init()
    states = scaler.update(scaling, jnp.array(True)), averaging.update(averaged, params)
    assert_same_types(jax.eval_shape(init), states)
    if name == "equinox":
        back = equinox_round_trip(states, tmp_path)
    elif name == "orbax":
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / "saved", states)
            checkpointer.wait_until_finished()
            back = checkpointer.restore(tmp_path / "saved", jax.eval_shape(init))
    else:
        back = ROUND_TRIPS[name](states)
    assert_same_bits(back, states)
    moved = {"w": jnp.ones(3), "none": None}
    assert_same_bits(scaler.update(back[0], jnp.array(False)), scaler.update(states[0], jnp.array(False)))
    assert_same_bits(averaging.update(back[1], moved), averaging.update(states[1], moved))


def test_floats_are_numbers_and_integers_int32() -> None:
    for case in MAIN + MORE:
        for path, x in jax.tree_util.tree_flatten_with_path(saved(case)[0], is_leaf=is_number)[0]:
            counters = ("last_epoch", "_step_count", "num_bad_epochs", "cooldown_counter")
            integer = getattr(path[-1], "key", None) in counters
            assert (x.dtype == jnp.int32) if integer else is_number(x), path

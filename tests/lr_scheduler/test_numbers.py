"""Rates, momentum and beta1 equal torch's bit for bit, and so does what torch keeps in its state_dict."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import jax
import pytest

from jaxopt_port.lr_scheduler.double import python_numbers
from tests.lr_scheduler.cases import (
    CLOSED,
    MAIN,
    MORE,
    MORE_STEPS,
    STEPS,
    Case,
    Ours,
    Torch,
    assert_rates,
    differing,
    epochs,
    python_values,
    scan_values,
    torch_values,
)

pytest.importorskip("torch")

CHAINABLE = [pytest.param(case, id=case.label) for case in MAIN + MORE]
CLOSED_FORM = [pytest.param(case, id=case.label) for case in CLOSED]


def steps_of(case: Case) -> int:
    return STEPS if case in MAIN else MORE_STEPS


@pytest.fixture(scope="module", autouse=True)
def exact_process() -> Iterator[subprocess.Popen[str]]:
    """Runs beside the other tests of this file."""
    flags = "--xla_cpu_max_isa=AVX --xla_disable_hlo_passes=algsimp --xla_cpu_ftz=false"
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "tests.lr_scheduler.exact_process"]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("case", CHAINABLE)
def test_chainable_from_python(case: Case) -> None:
    """The same formulas as in the scan below, which goes on for longer."""
    expected, theirs = torch_values(case, MORE_STEPS)
    actual, carry = python_values(case, MORE_STEPS)
    assert differing(actual, expected) == 0
    assert_state(case, carry, theirs)


@pytest.mark.parametrize("case", CHAINABLE)
def test_chainable_in_jit_and_scan(case: Case) -> None:
    expected, theirs = torch_values(case, steps_of(case))
    actual, carry = scan_values(case, steps_of(case))
    assert_rates(actual, expected)
    assert_state(case, carry, theirs, traced=True)


@pytest.mark.parametrize("case", CLOSED_FORM)
def test_closed_form_from_python(case: Case) -> None:
    where = epochs(case, MORE_STEPS, chainable_too=True)
    expected, theirs = torch_values(case, len(where), where)
    actual, carry = python_values(case, len(where), where)
    assert differing(actual, expected) == 0
    assert_state(case, carry, theirs)


@pytest.mark.parametrize("case", CLOSED_FORM[: sum(case in CLOSED for case in MAIN)])
def test_closed_form_in_jit_and_scan(case: Case) -> None:
    where = epochs(case, STEPS)
    expected, theirs = torch_values(case, STEPS, where)
    actual, carry = scan_values(case, STEPS, where)
    assert_rates(actual, expected)
    assert_state(case, carry, theirs, traced=True)


def test_in_the_exact_process(exact_process: subprocess.Popen[str]) -> None:
    """Where neither side may fuse or rewrite arithmetic."""
    out, errors = exact_process.communicate()
    assert exact_process.returncode == 0, errors
    differences = json.loads(out)
    assert len(differences) == len(MAIN) + sum(case in CLOSED for case in MAIN)
    assert not any(differences.values()), differences


def assert_state(case: Case, carry: Any, theirs: Torch, traced: bool = False) -> None:
    """What torch's state_dict and groups hold is in the scheduler's options and state, by the same names."""
    run, (sched, _, _) = Ours(case), carry
    if traced and jax.default_backend() != "cpu":  # see assert_rates
        return assert_rates(run.scheduler.get_last_lr(sched), theirs.scheduler.get_last_lr())
    assert_dict(theirs.scheduler.state_dict(), run.scheduler, sched)
    live = {"params", "lr", "momentum", "betas", *theirs.optimizer.defaults}
    for group, added in zip(theirs.optimizer.param_groups, sched["param_groups"], strict=True):
        assert {k: v for k, v in group.items() if k not in live} == {k: float(v) for k, v in added.items()}
    assert run.scheduler.get_last_lr(sched) == theirs.scheduler.get_last_lr()


def assert_dict(expected: dict[str, Any], scheduler: Any, sched: dict[str, Any]) -> None:
    flags = {"_is_initial", "_get_lr_called_within_step", "use_beta1"}  # False between steps; betas in the state
    functions = {"lr_lambdas", "_scale_fn_custom"}
    assert set(expected) - flags == (set(scheduler.options) | set(sched)) - {"param_groups", "scheduler"}
    for name in set(expected) - flags - functions:
        if name == "_schedulers":
            for each in zip(expected[name], scheduler.options[name], sched[name], strict=True):
                assert_dict(*each)
        elif name in sched:
            assert expected[name] == python_numbers(sched[name]), name
        else:
            assert expected[name] == scheduler.options[name], name

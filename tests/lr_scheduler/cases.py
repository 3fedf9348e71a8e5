"""Schedulers as data, made here and in torch, and run side by side on two parameter groups."""

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_port as optim
from jaxopt_port import lr_scheduler
from jaxopt_port.number import is_number, to_numpy

Spec = tuple[str, Mapping[str, Any]]  # torch's class and its arguments; for `schedulers` a list of Specs

NAMES = {
    "LambdaLR": "lambda_lr",
    "MultiplicativeLR": "multiplicative_lr",
    "StepLR": "step_lr",
    "MultiStepLR": "multi_step_lr",
    "ConstantLR": "constant_lr",
    "LinearLR": "linear_lr",
    "ExponentialLR": "exponential_lr",
    "SequentialLR": "sequential_lr",
    "CosineAnnealingLR": "cosine_annealing_lr",
    "ChainedScheduler": "chained_scheduler",
    "PolynomialLR": "polynomial_lr",
    "ReduceLROnPlateau": "reduce_lr_on_plateau",
    "CyclicLR": "cyclic_lr",
    "OneCycleLR": "one_cycle_lr",
    "CosineAnnealingWarmRestarts": "cosine_annealing_warm_restarts",
    "SWALR": "swalr",
}
GROUPS = ({"lr": 0.05}, {"lr": 0.5})


class Case(NamedTuple):
    """One scheduler on one optimizer.

    Args:
      label: what the case shows.
      spec: the scheduler.
      optimizer: "sgd", with momentum, or "adam".
      plateau: a ReduceLROnPlateau beside it, stepped after it.
    """

    label: str
    spec: Spec
    optimizer: str = "sgd"
    plateau: Spec | None = None


def cosine_by_hand(epoch: int) -> float:
    return 1.0 if epoch < 10 else 0.5 * (1 + math.cos(epoch / 300))


def _exponential(gamma: float) -> Spec:
    return "ExponentialLR", {"gamma": gamma}


def _sequential(milestones: list[int], *specs: Spec) -> Spec:
    return "SequentialLR", {"schedulers": specs, "milestones": milestones}


def _chained(*specs: Spec) -> Spec:
    return "ChainedScheduler", {"schedulers": specs}


WARM_UP: Spec = ("LinearLR", {"start_factor": 0.01, "total_iters": 100})
COSINE: Spec = ("CosineAnnealingLR", {"T_max": 300, "eta_min": 1e-4})
PLATEAU: Spec = ("ReduceLROnPlateau", {"factor": 0.93, "patience": 3, "cooldown": 2, "min_lr": [1e-4, 2e-3]})

# One for each class, whose options exercise it over 2,000 steps.
MAIN = [
    Case("lambda", ("LambdaLR", {"lr_lambda": lambda epoch: 0.999**epoch})),
    Case("multiplicative", ("MultiplicativeLR", {"lr_lambda": lambda epoch: 1 - 1 / (epoch + 300)})),
    Case("step", ("StepLR", {"step_size": 7, "gamma": 0.93})),
    Case("multi_step", ("MultiStepLR", {"milestones": [20, 5, 20, 50, 1999], "gamma": 0.3})),
    Case("constant", ("ConstantLR", {"factor": 0.3, "total_iters": 13})),
    Case("linear", ("LinearLR", {"start_factor": 0.1, "end_factor": 0.9, "total_iters": 1700})),
    Case("exponential", ("ExponentialLR", {"gamma": 0.997})),
    Case("sequential", _sequential([100, 900], WARM_UP, COSINE, _exponential(0.99))),
    Case("cosine", COSINE),
    Case("chained", _chained(("ConstantLR", {"factor": 0.1, "total_iters": 50}), _exponential(0.997))),
    Case("polynomial", ("PolynomialLR", {"total_iters": 1900, "power": 0.9})),
    Case("plateau", PLATEAU),
    Case("cyclic", ("CyclicLR", {"base_lr": [0.01, 0.1], "max_lr": [0.07, 0.9], "step_size_up": 60})),
    Case("one_cycle", ("OneCycleLR", {"max_lr": [0.1, 1.3], "total_steps": 2001})),
    Case("restarts", ("CosineAnnealingWarmRestarts", {"T_0": 7, "T_mult": 2, "eta_min": 1e-4})),
    Case("swalr", ("SWALR", {"swa_lr": [0.01, 0.7], "anneal_epochs": 1500})),
]
# Their other options, and combinations.
MORE = [
    Case("lambda of a branch", ("LambdaLR", {"lr_lambda": [cosine_by_hand, lambda epoch: 0.5]})),
    Case("linear down", ("LinearLR", {"start_factor": 1.0, "end_factor": 0.0, "total_iters": 150})),
    Case("polynomial, squared", ("PolynomialLR", {"total_iters": 150, "power": 2.0})),
    Case("cosine, short", ("CosineAnnealingLR", {"T_max": 7})),
    Case("restarts, equal", ("CosineAnnealingWarmRestarts", {"T_0": 9})),
    Case("swalr, linear", ("SWALR", {"swa_lr": 0.2, "anneal_epochs": 100, "anneal_strategy": "linear"})),
    Case("swalr, at once", ("SWALR", {"swa_lr": 0.2, "anneal_epochs": 0})),
    Case(
        "cyclic, triangular2, beta1",
        ("CyclicLR", {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 11, "step_size_down": 17, "mode": "triangular2"}),
        "adam",
    ),
    Case(
        "cyclic, exp_range",
        (
            "CyclicLR",
            {
                "base_lr": 0.01,
                "max_lr": 0.1,
                "step_size_up": 13,
                "mode": "exp_range",
                "gamma": 0.99,
                "base_momentum": 0.7,
            },
        ),
    ),
    Case(
        "cyclic, scale_fn",
        (
            "CyclicLR",
            {
                "base_lr": 0.01,
                "max_lr": 0.1,
                "step_size_up": 9,
                "scale_fn": lambda step: 1 / (5 ** (step * 0.001)),
                "scale_mode": "iterations",
                "cycle_momentum": False,
            },
        ),
    ),
    Case(
        "one_cycle, three phases, beta1",
        ("OneCycleLR", {"max_lr": 0.1, "epochs": 61, "steps_per_epoch": 5, "three_phase": True}),
        "adam",
    ),
    Case(
        "one_cycle, linear",
        (
            "OneCycleLR",
            {
                "max_lr": 0.1,
                "total_steps": 301,
                "anneal_strategy": "linear",
                "pct_start": 0.25,
                "max_momentum": [0.9, 0.99],
            },
        ),
    ),
    Case(
        "plateau, max, abs",
        ("ReduceLROnPlateau", {"mode": "max", "threshold_mode": "abs", "threshold": 0.01, "factor": 0.8}),
    ),
    Case(
        "plateau, min, abs", ("ReduceLROnPlateau", {"threshold_mode": "abs", "patience": 0, "factor": 0.9, "eps": 1e-3})
    ),
    Case("plateau, max, rel", ("ReduceLROnPlateau", {"mode": "max", "patience": 2, "factor": 0.95, "min_lr": 0.02})),
    Case("sequential over chained", _sequential([40], _chained(WARM_UP, _exponential(0.99)), COSINE)),
    Case(
        "sequential in sequential", _sequential([60], _sequential([20], WARM_UP, COSINE), ("StepLR", {"step_size": 30}))
    ),
    Case("chained over sequential", _chained(_sequential([30], WARM_UP, COSINE), _exponential(0.995), COSINE)),
    Case(
        "sequential of many",
        _sequential(
            [0, 20, 40, 60, 60, 100],
            ("ConstantLR", {}),
            ("CosineAnnealingWarmRestarts", {"T_0": 6, "T_mult": 2}),
            ("MultiStepLR", {"milestones": [3, 11], "gamma": 0.5}),
            ("PolynomialLR", {"total_iters": 15, "power": 0.7}),
            ("MultiplicativeLR", {"lr_lambda": lambda epoch: 0.9}),
            ("LambdaLR", {"lr_lambda": lambda epoch: 0.95**epoch}),
            ("SWALR", {"swa_lr": 0.3}),
        ),
    ),
    Case(
        "two one_cycles share their keys",
        _sequential(
            [50],
            ("OneCycleLR", {"max_lr": 0.1, "total_steps": 60}),
            ("OneCycleLR", {"max_lr": 0.4, "total_steps": 300}),
        ),
    ),
    Case("plateau beside", _sequential([20], WARM_UP, COSINE), plateau=PLATEAU),
    Case("plateau beside one_cycle, beta1", ("OneCycleLR", {"max_lr": 0.1, "total_steps": 301}), "adam", PLATEAU),
]
CLOSED = [case for case in MAIN + MORE if case.spec[0] not in ("SequentialLR", "ChainedScheduler")]
MORE_STEPS = 300
STEPS = 2000


def metrics(steps: int) -> np.ndarray:
    """A loss that falls, stalls and falls again, with noise and NaNs."""
    rng = np.random.default_rng(0)
    t = np.arange(steps)
    values = np.exp(-t / 200) + 0.3 * (t % 90 < 40) + 0.01 * rng.standard_normal(steps)
    values[17::41] = math.nan
    return values.astype(np.float32)


def epochs(case: Case, steps: int, chainable_too: bool = False) -> list[Any]:
    """Epochs to go to: in order, then anywhere; with warm restarts also between two. None stands for a plain step."""
    rng = np.random.default_rng(1)
    anywhere = rng.integers(0, steps, steps - steps // 2)
    found: list[Any] = [*range(steps // 2), *map(int, anywhere)]
    if case.spec[0] == "CosineAnnealingWarmRestarts":
        found[::3] = [epoch + 0.25 * (i % 4) for i, epoch in enumerate(found[::3])]
    if chainable_too:
        found[5::7] = [None] * len(found[5::7])
    return found


def ours(spec: Spec, table: int | None = None) -> lr_scheduler.Scheduler:
    """The scheduler here; Python functions of a branch as tables of so many steps."""
    name, options = spec[0], dict(spec[1])
    if "schedulers" in options:
        options["schedulers"] = [ours(each, table) for each in options["schedulers"]]
    if table is not None and isinstance(options.get("lr_lambda"), list):
        options["lr_lambda"] = [lr_scheduler.tabulate(f, table) for f in options["lr_lambda"]]
    return getattr(lr_scheduler, NAMES[name])(**options)


def theirs(spec: Spec, optimizer: Any) -> Any:
    """The scheduler in torch."""
    import torch

    name, options = spec[0], dict(spec[1])
    if "schedulers" in options:
        options["schedulers"] = [theirs(each, optimizer) for each in options["schedulers"]]
        if name == "ChainedScheduler":
            return torch.optim.lr_scheduler.ChainedScheduler(options["schedulers"])
    home = torch.optim.swa_utils if name == "SWALR" else torch.optim.lr_scheduler
    return getattr(home, name)(optimizer, **options)


def optimizer_state(name: str, momentum: float = 0.9) -> optim.OptState:
    others = [optim.ParamGroup("b", lr=GROUPS[1]["lr"])]
    if name == "sgd":
        optimizer = optim.sgd(lr=GROUPS[0]["lr"], momentum=momentum, param_groups=others)
    else:
        optimizer = optim.adam(lr=GROUPS[0]["lr"], param_groups=others)
    return optimizer.init({"a": jnp.ones(2), "b": jnp.ones(3)})


class Torch:
    """The case in torch, one step at a time."""

    def __init__(self, case: Case):
        import torch

        from tests.oracle import since

        if case.label == "sequential of many":
            since(2, 13)
        groups = [{"params": [torch.nn.Parameter(torch.ones(2))], **group} for group in GROUPS]
        optimizer = torch.optim.SGD(groups, momentum=0.9) if case.optimizer == "sgd" else torch.optim.Adam(groups)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of lr_scheduler.step() before optimizer.step()
            self.scheduler = theirs(case.spec, optimizer)
            self.plateau = None if case.plateau is None else theirs(case.plateau, optimizer)
        self.needs_metric = case.spec[0] == "ReduceLROnPlateau"
        self.optimizer = optimizer

    def values(self) -> list[float]:
        groups = self.optimizer.param_groups
        return [x for g in groups for x in (g["lr"], g["betas"][0] if "betas" in g else g["momentum"])]

    def step(self, metric: float, epoch: float | None = None) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            first = (metric,) if self.needs_metric else ()
            self.scheduler.step(*first, *(() if epoch is None else (epoch,)))
            if self.plateau is not None:
                self.plateau.step(metric)


def torch_values(case: Case, steps: int, epochs: list[Any] | None = None) -> tuple[np.ndarray, Torch]:
    """The rate and the momentum (beta1) of each group at the start and after every step, and torch's objects."""
    run = Torch(case)
    values = [run.values()]
    for i, metric in enumerate(metrics(steps)):
        run.step(float(metric), None if epochs is None else epochs[i])
        values.append(run.values())
    return np.array(values, np.float64), run


class Ours:
    """The case here: `init() -> carry` and `step(carry, metric, epoch) -> carry`, pure; the carry ends in the state."""

    def __init__(self, case: Case, table: int | None = None):
        self.case, self.scheduler = case, ours(case.spec, table)
        self.plateau = None if case.plateau is None else ours(case.plateau)
        self.needs_metric = case.spec[0] == "ReduceLROnPlateau"

    def init(self) -> tuple[Any, Any, Any]:
        sched, state = self.scheduler.init(optimizer_state(self.case.optimizer))
        if self.plateau is None:
            return sched, {}, state
        beside, state = self.plateau.init(state)
        return sched, beside, state

    def step(self, carry: Any, metric: Any, epoch: Any = None) -> Any:
        sched, beside, state = carry
        first = metric if self.needs_metric else None
        if epoch is None:
            sched, state = self.scheduler.step(sched, state, first)
        else:
            sched, state = self.scheduler.step_to(sched, state, epoch, first)
        if self.plateau is not None:
            beside, state = self.plateau.step(beside, state, metric)
        return sched, beside, state

    @staticmethod
    def values(carry: Any) -> list[Any]:
        """The rate and the momentum (beta1) of each group, as they are in the state: see `float64s`."""
        groups = carry[-1].param_groups
        return [x for g in groups for x in (g["lr"], g["betas"][0] if "betas" in g else g["momentum"])]


def float64s(values: list[Any]) -> np.ndarray:
    """Numbers of a state, each of a step or of all of a scan: a row a step."""
    return np.stack([to_numpy(x) if is_number(x) else np.asarray(x) for x in values], -1)


def python_values(case: Case, steps: int, epochs: list[Any] | None = None) -> tuple[np.ndarray, Any]:
    """The same as `torch_values`, called from Python."""
    run = Ours(case)
    carry = run.init()
    values = [float64s(run.values(carry))]
    for i, metric in enumerate(metrics(steps)):
        carry = run.step(carry, metric, None if epochs is None else epochs[i])
        values.append(float64s(run.values(carry)))
    return np.array(values), carry


def scan_values(case: Case, steps: int, epochs: list[Any] | None = None) -> tuple[np.ndarray, Any]:
    """The same inside jit and lax.scan, with x64 off."""
    run = Ours(case, table=steps)
    start = run.init()
    by_epoch = epochs is not None
    with jax.enable_x64(True):
        xs = jnp.asarray(metrics(steps)), jnp.asarray(np.array(epochs if by_epoch else np.zeros(steps)))

    def body(carry: Any, x: Any) -> Any:
        carry = run.step(carry, x[0], x[1] if by_epoch else None)
        return carry, run.values(carry)

    scan: Callable[..., Any] = jax.jit(lambda carry, xs: jax.lax.scan(body, carry, xs))
    end, values = scan(start, xs)
    return np.concatenate([float64s(run.values(start))[None], float64s(values)]), end


def assert_rates(actual: Any, expected: Any) -> None:
    """Rates of a trace are torch's bits on a CPU; on a GPU `cos` and `pow` of float64 are an ulp off."""
    if jax.default_backend() == "cpu":
        assert differing(np.asarray(actual), np.asarray(expected)) == 0
    else:
        np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-15)


def differing(actual: np.ndarray, expected: np.ndarray) -> int:
    """How many of the float64 values differ."""
    assert actual.dtype == expected.dtype == np.float64
    assert actual.shape == expected.shape
    return int((actual.view(np.uint64) != expected.view(np.uint64)).sum())

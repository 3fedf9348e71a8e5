"""Draws whole runs at random and compares every bit with torch's: `python -m tests.exact.draws --draws 500`.

A draw is an optimizer with hyper-parameters from their whole legal range, parameters of any shape, empty and scalar
too, one or two parameter groups, and a pattern of None gradients. hypothesis makes a draw that differs as simple as it
can, and the line it prints runs it again. Nothing is compiled as a whole here, operations run one by one: that spares a
compilation a draw, and what `jit` makes of them is what compare.py looks at.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tests.exact.compare import CLOSURES, LIMITS, in_settings


class Draw(NamedTuple):
    """One run.

    Args:
      optimizer: our name for it.
      dtype: of the parameters.
      shapes: one for each parameter.
      kwargs: torch's keyword arguments.
      second: the options of a second group, which gets every other parameter.
      moves: for each step, for each parameter, whether it has a gradient.
      seed: of the parameters' and gradients' values.
    """

    optimizer: str
    dtype: str
    shapes: Sequence[tuple[int, ...]]
    kwargs: Mapping[str, Any]
    second: Mapping[str, Any] | None
    moves: Sequence[Sequence[bool]]
    seed: int


def numbers(low: float, high: float, **excluded: Any) -> Any:
    """Numbers that a hyper-parameter can be: of the magnitudes that a float32 has."""
    from hypothesis import strategies as st

    least = 1e-40 if excluded.get("exclude_min") else 0.0
    return st.floats(low, high, **excluded).map(lambda x: least if abs(x) < 1e-40 else x)


def strategies(name: str) -> dict[str, Any]:
    """For each option of an optimizer its legal values."""
    from hypothesis import strategies as st

    def upto(high: float, *likely: float, low: float = 0.0, exclude_min: bool = False) -> Any:
        return st.sampled_from(likely or (0.0,)) | numbers(low, high, exclude_min=exclude_min)

    flag, fraction = st.booleans(), st.sampled_from((0.0, 0.9, 0.999)) | numbers(0, 1, exclude_max=True)
    lr, betas, eps, decay = upto(1e3, 0.0, 1e-3, 1.0), st.tuples(fraction, fraction), upto(1, 1e-8), upto(10, 0.0, 0.1)
    adam = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": decay, "maximize": flag}
    also: dict[str, dict[str, Any]] = {
        "adadelta": {"lr": lr, "rho": numbers(0, 1), "eps": eps, "weight_decay": decay, "maximize": flag},
        "adafactor": {
            "lr": upto(1e3, 1e-2),
            "beta2_decay": numbers(-2, 0),
            "eps": st.tuples(st.none() | upto(1, 1e-30), upto(1, 1e-3)),
            "d": numbers(1, 10),
            "weight_decay": decay,
            "maximize": flag,
        },
        "adagrad": {
            "lr": lr,
            "lr_decay": upto(1),
            "weight_decay": decay,
            "initial_accumulator_value": upto(10),
            "eps": eps,
            "maximize": flag,
        },
        "adam": {**adam, "amsgrad": flag, "decoupled_weight_decay": flag},
        "adamax": adam,
        "adamw": {**adam, "amsgrad": flag},
        "asgd": {
            "lr": lr,
            "lambd": upto(1, 1e-4),
            "alpha": upto(2, 0.75),
            "t0": upto(10, 1e6),
            "weight_decay": decay,
            "maximize": flag,
        },
        "muon": {
            "lr": lr,
            "weight_decay": decay,
            "momentum": fraction,
            "nesterov": flag,
            "eps": upto(1, 1e-7),
            "ns_steps": st.integers(0, 6),
            "adjust_lr_fn": st.sampled_from((None, "original", "match_rms_adamw")),
        },
        "nadam": {**adam, "momentum_decay": upto(1, 4e-3), "decoupled_weight_decay": flag},
        "radam": {**adam, "decoupled_weight_decay": flag},
        "rmsprop": {
            "lr": lr,
            "alpha": upto(1, 0.99),
            "eps": eps,
            "weight_decay": decay,
            "momentum": upto(2, 0.0, 0.9),
            "centered": flag,
            "maximize": flag,
        },
        "rprop": {
            "lr": lr,
            "etas": st.tuples(numbers(0, 1, exclude_min=True, exclude_max=True), numbers(1.0000001, 10)),
            "step_sizes": st.tuples(upto(1, 1e-6), upto(100, 50.0)),
            "maximize": flag,
        },
        "sgd": {
            "lr": lr,
            "momentum": upto(2, 0.0, 0.9),
            "dampening": upto(1, 0.0, low=-1),
            "weight_decay": decay,
            "nesterov": flag,
            "maximize": flag,
        },
        "sparse_adam": {
            "lr": upto(1e3, 1e-3, exclude_min=True),
            "betas": betas,
            "eps": upto(1, 1e-8, exclude_min=True),
            "maximize": flag,
        },
    }
    return also[name]


def legal(name: str, kwargs: Mapping[str, Any]) -> bool:
    """What is legal of each option alone and not together."""
    return not (
        name == "sgd"
        and kwargs.get("nesterov")
        and (not kwargs.get("momentum") or kwargs.get("dampening", 0))  # torch: zero dampening, some momentum
    )


def draws(name: str) -> Any:
    """hypothesis's strategy for the draws of one optimizer."""
    from hypothesis import strategies as st

    shapes = [(), (0,), (1,), (5,), (2, 3), (4, 1, 2), (0, 3), (17,), (2, 2, 3, 3)]
    if name == "muon":
        shapes = [(1, 1), (2, 3), (4, 2), (3, 3), (1, 5)]
    if name == "sparse_adam":
        shapes = [shape for shape in shapes if shape]
    if name == "adafactor":
        shapes = [shape for shape in shapes if 0 not in shape]  # torch raises a ZeroDivisionError

    @st.composite
    def draw(pick: Any) -> Draw:
        options = st.fixed_dictionaries({}, optional=strategies(name))
        kwargs = pick(options)
        second = pick(st.none() | options)
        chosen = pick(st.lists(st.sampled_from(shapes), min_size=1 if second is None else 2, max_size=3))
        moves = pick(st.lists(st.tuples(*[st.booleans()] * len(chosen)), min_size=1, max_size=4))
        dtype = pick(st.sampled_from(("float32", "float64")))
        return Draw(name, dtype, tuple(chosen), kwargs, second, tuple(moves), pick(st.integers(0, 2**16)))

    return draw().filter(lambda d: legal(name, d.kwargs) and legal(name, {**d.kwargs, **(d.second or {})}))


def difference(draw: Draw) -> str:
    """The first difference between our run and torch's; empty where every bit is equal.

    Adafactor and Muon, which sum in another order, may differ by what LIMITS says of 100 steps, or 1 eps.
    """
    import jax
    import numpy as np

    from tests import oracle
    from tests.exact.cases import Case
    from tests.exact.harness import Ours, differing_bits
    from tests.helpers import eps_apart

    rng = np.random.default_rng(draw.seed)

    def array(shape: tuple[int, ...]) -> np.ndarray:
        values = np.asarray(rng.standard_normal(shape) * 10.0 ** rng.integers(-4, 3, shape))
        return np.where(rng.random(shape) < 0.2, 0.0, values).astype(draw.dtype)

    exact = (draw.optimizer, draw.dtype) not in LIMITS
    allowed = 0.0 if exact else max(LIMITS[draw.optimizer, draw.dtype][100], 1.0)
    sparse = draw.optimizer == "sparse_adam"
    params = [array(shape) for shape in draw.shapes]
    everyone = list(range(len(params)))
    groups = [everyone] if draw.second is None else [everyone[::2], everyone[1::2]]
    kwargs = [draw.kwargs] if draw.second is None else [draw.kwargs, draw.second]
    case = Case(draw.optimizer, "draw", draw.kwargs, draw.dtype, len(draw.moves), draw.second)
    theirs = oracle.Torch(draw.optimizer, params, groups, kwargs, sparse, flush_denormal=True)
    with jax.enable_x64(draw.dtype == "float64"), jax.disable_jit():
        ours = Ours(case, params, groups, sparse)
        for step, moves in enumerate(draw.moves):
            grads = [array(shape) if moved else None for shape, moved in zip(draw.shapes, moves, strict=True)]
            ours.step(grads)
            theirs.step(grads)
            ours.read()
            for index in everyone:
                for key, expected in theirs.values(index).items():
                    actual = ours.value(index, key)
                    if expected.dtype == np.int64 and actual is not None:  # a Python number in torch's state
                        expected = expected.astype(actual.dtype)
                    if differing_bits(actual, expected)[0] and not eps_apart(actual, expected) <= allowed:
                        return f"step {step}, p{index}{key and '.' + key}: ours {actual!r}, torch's {expected!r}"
    return ""


def check(name: str, count: int) -> str:
    """The simplest of so many draws that differs, with what runs it again; empty where there is none."""
    from hypothesis import HealthCheck, Phase, given, settings

    failing = []

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=(HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large),
    )
    @given(draws(name))
    def no_bit_differs(draw: Draw) -> None:
        found = difference(draw)
        if found:
            failing.append(f"{found}\n  python -m tests.exact.draws --draw '{draw!r}'")
        assert not found

    try:
        no_bit_differs()
    except AssertionError:
        if not failing:
            raise
        return failing[-1]
    return ""


def main(argv: Sequence[str]) -> int:
    in_settings("tests.exact.draws", argv)
    import jaxopt_port
    from tests import oracle

    names = [name for name in jaxopt_port.optimizers if name not in CLOSURES]
    parser = argparse.ArgumentParser(prog="python -m tests.exact.draws", description=__doc__)
    parser.add_argument("--optimizer", nargs="+", default=names, choices=names)
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--draw", help="run this one, as it was printed")
    args = parser.parse_args(argv)
    oracle.one_thread()
    oracle.ieee_sqrt()
    if args.draw:
        found = [difference(eval(args.draw, {"Draw": Draw, "inf": float("inf"), "nan": float("nan")}))]
        print(found[0] or "no bit differs")
        return int(any(found))
    different = 0
    for name in args.optimizer:
        found = check(name, args.draws)
        different += bool(found)
        print(f"{name:12} {args.draws} draws: {found or 'no bit differs'}", flush=True)
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

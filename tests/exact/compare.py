"""Compares every optimizer with torch's bit for bit, on CPU: `python -m tests.exact.compare`.

Neither side may fuse or rewrite arithmetic, which has to be said before jax and torch are imported, so this starts
itself anew with the environment in `SETTINGS`.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence

SETTINGS = {
    "XLA_FLAGS": " ".join(
        (
            "--xla_cpu_max_isa=AVX",  # no fused multiply-add
            "--xla_disable_hlo_passes=algsimp",  # no x / scalar -> x * (1 / scalar)
            "--xla_allow_excess_precision=false",  # for bfloat16
            "--xla_backend_optimization_level=0",  # only to compile in half the time
        )
    ),
    "ATEN_CPU_CAPABILITY": "default",  # no fused multiply-add
    "OMP_NUM_THREADS": "1",
    "JAX_PLATFORMS": "cpu",
    "JAX_ENABLE_X64": "0",
}
EXACT = ("float32", "float64")
# Where bits cannot all be equal: Adafactor's norms are sums in another order, and so are Muon's bfloat16 products. The
# limits, by steps: torch's distance from itself, its CPU kernels with FMA and without (10,000 elements, defaults), in
# eps of the largest parameter.
LIMITS: dict[tuple[str, str], dict[int, float]] = {
    ("adafactor", "float32"): {100: 0.98, 1000: 2.40},
    ("adafactor", "float64"): {100: 0.98, 1000: 2.89},
    ("muon", "float32"): {100: 36.1, 1000: 124.0},
    ("muon", "float64"): {100: 1.9e10, 1000: 5.0e10},
}
CLOSURES = ("lbfgs", "nonlinear_cg")  # evaluate the function themselves, and have tests of their own


def in_settings(module: str, argv: Sequence[str], settings: Mapping[str, str] = SETTINGS) -> None:
    """Start `python -m module` anew where the environment is another, for jax and torch read it when imported."""
    if any(os.environ.get(name) != value for name, value in settings.items()):
        os.execve(sys.executable, [sys.executable, "-m", module, *argv], {**os.environ, **settings})


def main(argv: Sequence[str]) -> int:
    args = _parse(argv)
    if not args.ordinary:
        in_settings("tests.exact.compare", argv)
    return _compare(args)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.exact.compare", description=__doc__)
    parser.add_argument("--optimizer", nargs="+", help="all that take gradients where left out")
    parser.add_argument("--dtype", nargs="+", default=EXACT, help="float32, float64, complex64, bfloat16")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--long", type=int, default=1000, help="steps of the one long run")
    parser.add_argument("--only", help="only the configuration of this name")
    parser.add_argument(
        "--torchs-sqrt", action="store_true", help="torch's square root as it is, which can be 1 ulp off"
    )
    parser.add_argument("--ordinary", action="store_true", help="without the settings: both sides may fuse and rewrite")
    parser.add_argument("--json", help="write a line for every configuration to this file")
    return parser.parse_args(argv)


def _compare(args: argparse.Namespace) -> int:
    import jaxopt_port
    from tests import oracle
    from tests.exact.cases import cases
    from tests.exact.harness import run

    oracle.one_thread()
    if not args.torchs_sqrt:
        oracle.ieee_sqrt()
    results = []
    for name in args.optimizer or (each for each in jaxopt_port.optimizers if each not in CLOSURES):
        info, mine, start = oracle.optimizer_info(name), [], time.perf_counter()
        for dtype in args.dtype:
            if dtype == "complex64" and not info.supports_complex:
                continue
            for case in cases(name, dtype, args.steps, args.long):
                if args.only in (None, case.label):
                    mine.append(run(case))
        bits, seconds = sum(result.bits for result in mine), time.perf_counter() - start
        print(f"{name:12}{len(mine):4} configurations, {bits} differing bits, {seconds:.1f} s", flush=True)
        for result in mine:
            if result.first:
                print(f"  {result.bits} bits, at the end {result.distance:.3g} eps: {result.first}", flush=True)
        results += mine
    if args.json:
        with open(args.json, "w") as file:
            file.writelines(json.dumps(_line(result)) + "\n" for result in results)
    bits = sum(result.bits for result in results)
    print(f"{len(results)} configurations, {bits} differing bits")
    return int(any(result.bits for result in results if result.case.dtype in EXACT))


def _line(result) -> dict[str, object]:  # a harness.Result, which is known only once the environment is set
    case = result.case
    return {
        "optimizer": case.optimizer,
        "label": case.label,
        "kwargs": {k: v if isinstance(v, bool | int | float) else str(v) for k, v in case.kwargs.items()},
        "dtype": case.dtype,
        "steps": case.steps,
        "bits": result.bits,
        "values": result.values,
        "distance": result.distance,
        "first": result.first,
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

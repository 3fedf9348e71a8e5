"""Faithful ports, which are to give no alarm: `python -m benchmarks.faithful_ports`."""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from jaxopt_port import compare
from tests.compare import ports


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faithful_ports", description=__doc__)
    parser.add_argument("--runs", nargs="+", default=list(ports.MODELS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=ports.STEPS)
    parser.add_argument("--no-redo", action="store_true", help="without torch's own reruns")
    arguments = parser.parse_args()
    from tests.compare import torch_side

    alarms = count = 0
    with tempfile.TemporaryDirectory() as folder:
        for seed in arguments.seeds:
            for run in arguments.runs:
                path = Path(folder) / f"{run}.trace"
                torch_side.record_run(run, path, seed, arguments.steps, redo=not arguments.no_redo)
                for flavour in ("linen", "nnx"):
                    start = time.perf_counter()
                    made = ports.port(run, compare.read(path), flavour)
                    followed = compare.follow(path, made.loss_fn, made.params, made.optimizer, made.mapping)
                    alarms, count = alarms + (not followed.ok), count + 1
                    last = followed.points[-1]
                    drift, nudged = max(last.drift.values()), max(last.nudged.values())
                    print(
                        f"{'ok   ' if followed.ok else 'ALARM'} {run}, {flavour}, seed {seed}: {followed.verdict} "
                        f"Last step: {drift:.1e} of its way from torch, {nudged:.1e} from itself "
                        f"[{time.perf_counter() - start:.0f} s]",
                        flush=True,
                    )
    print(f"{alarms} alarms in {count} runs of {arguments.steps} steps")
    return int(alarms > 0)


if __name__ == "__main__":
    sys.exit(main())

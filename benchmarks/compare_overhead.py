"""What recording costs a PyTorch run: `python -m benchmarks.compare_overhead`."""

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from jaxopt_port.compare.record import record


def network(width: int, blocks: int) -> nn.Module:
    """A transformer's worth of linear layers and norms."""
    layers = []
    for _ in range(blocks):
        layers += [nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)]
    return nn.Sequential(*layers)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare_overhead", description=__doc__)
    parser.add_argument("--steps", type=int, default=20, help="of each kind, in turn")
    parser.add_argument("--tokens", type=int, default=512, help="in a batch")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model = network(width=360, blocks=10)
    count = sum(p.numel() for p in model.parameters())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    x = torch.randn(arguments.tokens, 360)

    def step(r: Any = None) -> float:
        start = time.perf_counter()
        if r:
            r.batch(x=x[:8])
        optimizer.zero_grad()
        loss = (model(x) ** 2).mean()
        if r:
            r.loss(loss)
        loss.backward()
        optimizer.step()
        return time.perf_counter() - start

    plain, sampled, size = [], [], 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        step()
        with contextlib.redirect_stderr(io.StringIO()) as said:
            r = record(model, optimizer, path, full=())
        for _ in range(arguments.steps):  # in turn, so that both see the same machine
            plain.append(step())
            if r.step == 0:
                with contextlib.redirect_stderr(said):
                    r.__enter__()
                r._muted = True
            r._muted = False
            before = path.stat().st_size
            sampled.append(step(r))
            size = path.stat().st_size - before
            r._muted = True
        r.__exit__()
        full_path = Path(folder) / "full"
        with contextlib.redirect_stderr(said), record(model, optimizer, full_path, full=(1,)) as r:
            start = full_path.stat().st_size
            full = step(r)
            full_size = full_path.stat().st_size - start
        with contextlib.redirect_stderr(said), record(model, optimizer, Path(folder) / "redo", full=()) as r:
            r.redo(lambda x: (model(x) ** 2).mean(), step=1)
            redone = step(r)
    ratios = [b / a for a, b in zip(plain, sampled, strict=True)]
    print(
        f"{count / 1e6:.1f} M parameters in {len(list(model.parameters()))} tensors, {arguments.tokens} tokens a batch"
    )
    print(
        f"a step {1e3 * statistics.median(plain):.0f} ms, sampled {1e3 * statistics.median(sampled):.0f} ms: ", end=""
    )
    print(f"{100 * (statistics.median(ratios) - 1):+.1f} % (median of {len(ratios)} pairs)")
    print(f"1,000 sampled steps {1000 * size / 1e6:.0f} MB, with batches of {8 * 360 * 4 / 1e3:.0f} kB")
    print(f"the start {start / 1e6:.0f} MB; a full step {full_size / 1e6:.0f} MB, {1e3 * full:.0f} ms; ", end="")
    print(f"one that is done again {1e3 * redone:.0f} ms")


if __name__ == "__main__":
    main()

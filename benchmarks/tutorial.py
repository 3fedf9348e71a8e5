"""Training the tutorial's network: `python -m benchmarks.tutorial [images] [start]`, on a GPU with `--device gpu`.

`images`: images a second of a training step by batch size, ours as `python -m train` takes it and torch's eager loop
and, on a GPU, its CUDA graph, in turns in one process, medians; both take their batches from arrays in memory. Ours
alone where there is no torch.

`start`: seconds of commands: `--help`, and a run to the end of its first step, on a cold and on a warm compilation
cache.
"""

import argparse
import importlib.util
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

BATCHES = (1, 64, 512)
PARTS = ("images", "start")
GOALS = {"cpu": "at least 1", "gpu": "at least 1.5 times the CUDA graph"}

Turn = Callable[[], float]  # takes an epoch; images a second
Step = Callable[[Any, Any], Any]  # of pictures and labels; the loss


def ours(images: np.ndarray, labels: np.ndarray, batch: int) -> Turn:
    from train.config import Config
    from train.data import Data, Examples
    from train.loop import Moment, fit
    from train.start import start
    from train.training import make_training

    config = Config(batch_size=batch, epochs=10**6, lr=0.01)
    training = make_training(config)
    moments = fit(config, training, Moment(start(config, training, 10)), Data(Examples(images, labels), None, 10, ""))

    def turn() -> float:
        for moment in moments:
            if moment.ended is not None:
                return len(labels) / moment.ended.seconds
        raise AssertionError("an epoch whose loss is not finite ends a run")

    return turn


def torchs(images: np.ndarray, labels: np.ndarray, batch: int, device: str, graph: bool) -> Turn:
    import torch
    from torch import nn

    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 32, 5, padding=2), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 32, 5, padding=2), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 5, padding=2), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(1024, 64), nn.Linear(64, 10)),
    ).to(device)
    optimizer, loss_fn = torch.optim.SGD(model.parameters(), lr=0.01), nn.CrossEntropyLoss()
    x_all = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(device)
    y_all = torch.from_numpy(labels.astype(np.int64)).to(device)

    def step(x: Any, y: Any) -> Any:
        optimizer.zero_grad()
        loss = loss_fn(model(x.float().div(255)), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    take = captured(step, x_all[:batch].clone(), y_all[:batch].clone()) if graph else step

    def turn() -> float:
        begin, losses = time.perf_counter(), []
        for at in range(0, len(labels), batch):
            losses.append(take(x_all[at : at + batch], y_all[at : at + batch]))
        torch.stack(losses).cpu()
        return len(labels) / (time.perf_counter() - begin)

    return turn


def captured(step: Step, x: Any, y: Any) -> Step:
    """The step as a CUDA graph, which reads its batch from `x` and `y`."""
    import torch

    side: Any = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            step(x, y)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step(x, y)

    def take(x_next: Any, y_next: Any) -> Any:
        x.copy_(x_next)
        y.copy_(y_next)
        graph.replay()
        return loss.clone()

    return take


def images_a_second(device: str, seconds: float) -> None:
    rng = np.random.default_rng(0)
    forms = ["eager"] if device == "cpu" else ["eager", "CUDA graph"]
    forms = forms if importlib.util.find_spec("torch") else []
    heads = ["batch", "ours, images/s", *(f"torch {form}" for form in forms)]
    heads += [f"ours / torch {form} ({GOALS[device]})" for form in forms[-1:]]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for batch in BATCHES:
        count = batch * max(8, 200 // batch) if device == "cpu" else batch * max(40, 8_000 // batch)
        images = rng.integers(0, 256, (count, 32, 32, 3), np.uint8)
        labels = rng.integers(0, 10, count).astype(np.int32)
        place = "cpu" if device == "cpu" else "cuda"
        turns = [ours(images, labels, batch)]
        turns += [torchs(images, labels, batch, place, form == "CUDA graph") for form in forms]
        for turn in turns:
            turn()
        rates: list[list[float]] = [[] for _ in turns]
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(rates[0]) < 3:
            for turn, each in zip(turns, rates, strict=True):
                each.append(turn())
        medians = [statistics.median(each) for each in rates]
        cells = [f"{batch}", *(f"{m:,.0f}" for m in medians), *(f"{medians[0] / m:.2f}" for m in medians[1:][-1:])]
        print(f"| {' | '.join(cells)} |", flush=True)


def seconds_to_the_first_step(folder: str, run: str) -> float:
    """Of `python -m train`, from its start to the line that it prints after an epoch of one step."""
    flags = ("--limit", "1", "--epochs", "1", "--quiet", "--run-dir", run)
    environment = {**os.environ, "XDG_CACHE_HOME": folder, "PYTHONUNBUFFERED": "1"}
    begin = time.perf_counter()
    command = [sys.executable, "-m", "train", *flags]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        taken = next(time.perf_counter() - begin for line in process.stdout if line.split()[:1] == ["1"])
        process.stdout.read()
    return taken


def start_up() -> None:
    with tempfile.TemporaryDirectory() as folder:
        taken = []
        for _ in range(3):
            begin = time.perf_counter()
            subprocess.run([sys.executable, "-m", "train", "--help"], check=True, stdout=subprocess.DEVNULL)
            taken.append(time.perf_counter() - begin)
        print(f"`--help`: {statistics.median(taken):.1f} s (goal 1)")
        runs = (f"{folder}/{number}" for number in range(100))
        seconds_to_the_first_step(folder, next(runs))  # prepares the digits
        cold = []
        for _ in range(3):
            shutil.rmtree(f"{folder}/jaxopt_port/compiled")
            cold.append(seconds_to_the_first_step(folder, next(runs)))
        warm = [seconds_to_the_first_step(folder, next(runs)) for _ in range(3)]
        print(f"to the end of the first step, compiling: {statistics.median(cold):.1f} s")
        print(f"to the end of the first step, compiled before: {statistics.median(warm):.1f} s (goal 2)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", help="images, start; by default both")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each batch size")
    arguments = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu" if arguments.device == "cpu" else "cuda")
    if unknown := set(arguments.what) - set(PARTS):
        parser.error(f"there is no {unknown.pop()!r}: the parts are {', '.join(PARTS)}")
    what = arguments.what or PARTS
    if "images" in what:
        images_a_second(arguments.device, arguments.seconds)
    if "start" in what:
        start_up()


if __name__ == "__main__":
    main()

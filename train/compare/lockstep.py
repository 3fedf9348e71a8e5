"""Our run and torch's, a step at a time, and how far apart their parameters are after each."""

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jaxtyping import Float, Float64

from train.compare.messages import Hello, Kind, Step, Task, Vector
from train.compare.vectors import vector
from train.config import Config
from train.data import Data
from train.epoch import Epoch
from train.loop import Moment, batches, end_epoch, fit, is_over, orders
from train.start import start
from train.step import State, make_step
from train.torch_layout import shapes, weights_in_torch
from train.training import Training, make_training, optimizer_options, scheduler_options

T = TypeVar("T")
Environment = dict[str, str]

TORCH: Environment = {"OMP_NUM_THREADS": "1"}
# What torch is compared with itself by. At a batch of one its one and two threads have the same bits. The others are
# torch on a CPU with fewer vector instructions: its convolutions (oneDNN) with SSE 4.1, its own kernels without AVX.
# (Without AVX torch draws other last bits of the initial weights too, so that one is given those of the others.)
YARDSTICKS: dict[str, Environment] = {
    "2 threads": {"OMP_NUM_THREADS": "2"},
    "oneDNN with SSE 4.1": TORCH | {"ONEDNN_MAX_CPU_ISA": "SSE41"},
    "ATen without AVX": TORCH | {"ATEN_CPU_CAPABILITY": "default"},
}
EPS = float(np.finfo(np.float32).eps)
CLASSES = 10
NAMES = tuple(shapes(CLASSES))
STARTS = np.cumsum([0, *(int(np.prod(shape)) for shape in shapes(CLASSES).values())])[:-1]


class TorchError(RuntimeError):
    """A process that trains in PyTorch has failed."""


class TorchProcess:
    """A process that trains in PyTorch; it reads its environment when it imports torch."""

    def __init__(self, task: Task, environment: Environment):
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        command = [sys.executable, "-m", "train.compare.torch_run"]
        pipe, env = subprocess.PIPE, {**os.environ, **environment}
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self._errors, env=env)
        assert self._process.stdin is not None
        with self._process.stdin as stdin:
            pickle.dump(task, stdin)

    def read(self, kind: type[T]) -> T:
        """The next message, which is of this kind."""
        assert self._process.stdout is not None
        try:
            message = pickle.load(self._process.stdout)
        except EOFError:
            self._errors.seek(0)
            lines = self._errors.read().decode(errors="replace").strip().splitlines() or ["no message"]
            raise TorchError(f"PyTorch's run ended with exit status {self._process.wait()}: {lines[-1]}") from None
        assert isinstance(message, kind), message
        return message

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._errors.close()


@contextmanager
def torch_process(task: Task, environment: Environment) -> Iterator[TorchProcess]:
    """A process that is ended when the block is left."""
    process = TorchProcess(task, environment)
    try:
        yield process
    finally:
        process.close()


def make_task(kind: Kind, config: Config, environment: Environment, **more: Any) -> Task:
    """What a process with that environment is to do."""
    weights = _weights(config) if "ATEN_CPU_CAPABILITY" in environment else None
    schedule = None if config.scheduler is None else scheduler_options(config)
    return Task(kind, config, optimizer_options(config), schedule, weights, **more)


def _weights(config: Config) -> dict[str, np.ndarray]:
    return weights_in_torch(start(config, make_training(config), CLASSES).params)


class Parting(NamedTuple):
    """The first step after which a parameter is further from torch's than the bound.

    Args:
      step: the batch, from 1.
      parameter: the first such, in torch's order.
      batches: the examples of the batches of that step of the optimizer.
      before: our state before it.
    """

    step: int
    parameter: int
    batches: list[np.ndarray]
    before: State


class Pair(NamedTuple):
    """An epoch here and in torch, and in torch's other forms."""

    ours: Epoch
    torch: Epoch
    others: list[Epoch]


class Lockstep:
    """Runs both sides.

    Args:
      config: the run.
      training: ours.
      bound: of a parameter's distance, in eps of its largest value.

    After `epochs` it holds `distances`: for each step, how far our parameters are from torch's, and below that those
    of each of `YARDSTICKS` are, in eps of the parameter's largest value; `parting`, where they first are further off
    than the bound; and `stopped`, the step at which our loss was not finite, with our loss there and torch's.
    """

    def __init__(self, config: Config, training: Training, bound: float):
        self.config, self.training, self.bound = config, training, bound
        self.parting: Parting | None = None
        self.stopped: tuple[int, float, float] | None = None
        self.hello: dict[str, Hello] = {}
        self._torch_losses: list[float] = []
        self._distances: list[Float[np.ndarray, "sides parameters"]] = []
        self._before: State | None = None
        self._window: list[np.ndarray] = []

    @property
    def distances(self) -> Float[np.ndarray, "steps sides parameters"]:
        return np.stack(self._distances)

    def first_beyond(self, side: int) -> tuple[int, int] | None:
        """The first step, from 1, and there the first parameter at which a side is further off than the bound."""
        beyond = ~(self.distances[:, side] <= self.bound)  # which NaN is
        steps = np.flatnonzero(beyond.any(axis=1))
        return (int(steps[0]) + 1, int(beyond[steps[0]].argmax())) if len(steps) else None

    def epochs(self, data: Data) -> Iterator[Pair]:
        """Run, yielding each epoch. It ends where our loss is no longer finite."""
        with ExitStack() as stack:
            environments = {"1 thread": TORCH, **YARDSTICKS}
            every = needs_test(self.config, self.training)
            tasks = [
                make_task("run", self.config, each, evaluates=data.test is not None and (every or each is TORCH))
                for each in environments.values()
            ]
            processes = [
                stack.enter_context(torch_process(task, each | {"OMP_WAIT_POLICY": "passive"}))
                for task, each in zip(tasks, environments.values(), strict=True)
            ]
            self.hello = {name: each.read(Hello) for name, each in zip(environments, processes, strict=True)}
            moment = Moment(start(self.config, self.training, CLASSES))
            step = make_step(self.training)
            while not is_over(self.config, moment):
                order, before = orders(self.config, moment, data)
                for (batch,) in batches(order, self.config, 0, before):
                    if self.parting is None:
                        self._remember(moment.state, batch)
                    examples = data.train.images[batch], data.train.labels[batch]
                    moment.state, record = step(moment.state, *examples, np.int32(moment.step))
                    moment.step += 1
                    moment.steps.add(record)
                    moment.steps.read()
                    self._watch(moment.state, processes)
                    if not moment.steps.finite:
                        break
                end_epoch(self.config, self.training, moment, data, order)
                ours = moment.ended
                assert ours is not None
                if not ours.finite:
                    self.stopped = ours.step, float(ours.losses[-1]), self._torch_losses[ours.step - 1]
                    return
                torch, *others = (process.read(Epoch) for process in processes)
                yield Pair(ours, torch, others)

    def _watch(self, state: State, processes: list[TorchProcess]) -> None:
        torch, *others = (process.read(Step) for process in processes)
        self._torch_losses.append(torch.loss)
        sides = [vector(state.params), *(other.params for other in others)]
        self._distances.append(np.stack([distance(side, torch.params) for side in sides]))
        beyond = ~(self._distances[-1][0] <= self.bound)
        if self.parting is None and beyond.any():
            assert self._before is not None
            self.parting = Parting(len(self._distances), int(beyond.argmax()), self._window, self._before)

    def _remember(self, state: State, batch: np.ndarray) -> None:
        """Keep how we stand before the first batch of a step of the optimizer: the state is donated."""
        if len(self._distances) % self.config.accumulate == 0:
            self._before, self._window = jax.tree.map(np.array, state), []
        self._window.append(batch)


def distance(a: Vector, b: Vector) -> Float64[np.ndarray, " parameters"]:
    """For each parameter the largest |a - b|, in eps of the largest |b|."""
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = np.maximum.reduceat(np.abs(a - b), STARTS).astype(np.float64)
        relative = apart / (EPS * np.maximum.reduceat(np.abs(b), STARTS).astype(np.float64))
    return np.where(apart == 0, 0.0, relative)


def alone(config: Config, training: Training, data: Data) -> tuple[list[Epoch], list[Epoch]]:
    """Both runs again, one after the other, with all of the machine and nothing to say of a step: for their speed."""
    data = data if needs_test(config, training) else data._replace(test=None)
    moments = fit(config, training, Moment(start(config, training, CLASSES)), data)
    ours = [moment.ended for moment in moments if moment.ended is not None]
    with torch_process(make_task("time", config, {}, evaluates=data.test is not None), {}) as process:
        process.read(Hello)
        return ours, [process.read(Epoch) for _ in ours]


def needs_test(config: Config, training: Training) -> bool:
    """Whether the run depends on its evaluations."""
    return config.evaluates and training.needs_metric and not training.every_step

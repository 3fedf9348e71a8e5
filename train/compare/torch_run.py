"""The run in PyTorch, as a user's script would have it, from the seed alone; recorded where one asks for it."""

import itertools
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from jaxopt_port.compare.record import Recorder, record
from train.config import Config
from train.data import Examples
from train.epoch import Epoch
from train.model import KERNEL, layers
from train.training import optimizer_options, scheduler_options

EVALUATION_BATCH = 500
FULL = (1, 10, 100, 1000)  # steps that are recorded whole, and done again

Batch = np.ndarray  # indices of examples


def network(classes: int = 10) -> torch.nn.Sequential:
    """The tutorial's network."""
    modules: list[torch.nn.Module] = []
    for layer in layers(classes):
        if layer.kind == "conv":
            conv = torch.nn.Conv2d(layer.inputs, layer.outputs, KERNEL, padding=KERNEL // 2)
            modules += [conv, torch.nn.MaxPool2d(2)]
        else:
            flatten = isinstance(modules[-1], torch.nn.MaxPool2d)
            modules += [*([torch.nn.Flatten()] if flatten else []), torch.nn.Linear(layer.inputs, layer.outputs)]
    return torch.nn.Sequential(*modules)


def to_tensor(images: np.ndarray) -> torch.Tensor:
    """A batch of pictures as torchvision's ToTensor has it."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(torch.float32).div(255)


class Run:
    """What trains a network: optimizer, scheduler, average of weights and loss, as the flags name them.

    It is a script's run: it seeds, makes the network, and goes through a DataLoader in each epoch. `metrics` are what
    the scheduler was told, where it is told something.
    """

    def __init__(self, config: Config, examples: Examples, test: Examples | None = None):
        self.config, self.examples, self.test = config, examples, test
        torch.manual_seed(config.seed)
        self.model = model = network()
        self.optimizer: Any = torch_class(config.optimizer)(model.parameters(), **optimizer_options(config))
        self.scheduler = self.average = None
        self.recorder: Recorder | None = None
        if config.scheduler is not None:
            self.scheduler = torch_class(config.scheduler)(self.optimizer, **scheduler_options(config))
        if config.ema is not None:
            ema = torch.optim.swa_utils.get_ema_multi_avg_fn(config.ema)
            self.average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=ema)
        self.batches = 0
        self.metrics: list[float] = []

    def recorded(self, path: Path, flush: bool) -> None:
        """All of it, written down for `jaxopt_port.compare.follow`; it ends where the loss is not finite.

        Args:
          path: of the file.
          flush: whether numbers too small for all their digits count as zeros, as they do for XLA on a CPU. Rprop
            multiplies two gradients, and takes another step where the product is none.
        """
        torch.set_flush_denormal(flush)
        try:
            self._record(path)
        finally:
            torch.set_flush_denormal(False)

    def _record(self, path: Path) -> None:
        with record(self.model, self.optimizer, path, full=FULL) as r:
            self.recorder = r
            for step in FULL:
                r.redo(lambda images, labels: self.forward(self.model, images, labels)[0], step)
            for number, batches in self.epochs():
                for batch in batches:
                    if not math.isfinite(self.step(batch)[0]):
                        return
                self.end_epoch(number)

    def epochs(self) -> Iterator[tuple[int, Iterator[Batch]]]:
        """Each epoch's number and batches. Between two, call `end_epoch`."""
        for number in range(1, self.config.epochs + 1):
            if self.batches == self.config.steps:
                return
            left = None if self.config.steps is None else self.config.steps - self.batches
            self.epoch: list[tuple[float, int, int, list[float]]] = []
            batches = loader(len(self.examples.labels), self.config.batch_size, self.config.shuffle)
            self.start = time.perf_counter()
            yield number, itertools.islice(batches, left)

    def step(self, batch: Batch) -> tuple[float, int]:
        """One batch, and what is due after it. Returns the loss before it, and how many were classified correctly."""
        rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        if self.recorder is not None:
            self.recorder.batch(images=self.examples.images[batch], labels=self.examples.labels[batch])
        loss, correct = self.closure_step(batch) if self.config.optimizer == "lbfgs" else self.backward(batch)
        self.batches += 1
        if self.batches % self.config.accumulate == 0:
            self.update()
            if self.config.scheduler_interval == "step":
                self.schedule(loss)
            if self.average is not None:
                self.average.update_parameters(self.model)
        self.epoch.append((loss, correct, len(batch), rates))
        return loss, correct

    def backward(self, batch: Batch) -> tuple[float, int]:
        loss, logits, labels = self.forward(self.model, self.examples.images[batch], self.examples.labels[batch])
        if self.recorder is not None:
            self.recorder.loss(loss)
        loss.backward()
        return loss.item(), int((logits.argmax(1) == labels).sum())

    def closure_step(self, batch: Batch) -> tuple[float, int]:
        """A step of an optimizer that evaluates the loss as often as it likes. The first evaluation counts."""
        seen: list[tuple[float, int]] = []

        def closure() -> float:
            self.optimizer.zero_grad()
            seen.append(self.backward(batch))
            return seen[-1][0]

        self.optimizer.step(closure)
        return seen[0]

    def update(self) -> None:
        """The optimizer's step with the gradients that are there."""
        if self.config.optimizer != "lbfgs":
            if self.config.clip_grad_norm is not None:
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_grad_norm)
            self.optimizer.step()
        self.optimizer.zero_grad()

    def schedule(self, metric: float) -> None:
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.metrics.append(float(metric))
            self.scheduler.step(metric)
        elif self.scheduler is not None:
            self.scheduler.step()

    def end_epoch(self, number: int) -> Epoch:
        """What the epoch came to, with what is due after it."""
        seconds = time.perf_counter() - self.start
        losses, correct, examples, lr = (np.array(column) for column in zip(*self.epoch, strict=True))
        test, ema_test = self.evaluate()
        if self.config.scheduler_interval == "epoch":
            self.schedule(losses.mean() if test is None else test[0])
        return Epoch(number, self.batches, losses, correct, examples, seconds, lr, test, ema_test)

    @torch.no_grad()
    def evaluate(self) -> list[tuple[float, float] | None]:
        """Mean loss and accuracy on the test split, of the network and of the average of weights."""
        if self.test is None:
            if self.config.evaluates:
                loader(1, 1, shuffle=False)  # draws a seed
            return [None, None]
        models = [self.model, *([] if self.average is None else [self.average])]
        sums = np.zeros((len(models), 2))
        for batch in loader(len(self.test.labels), EVALUATION_BATCH, shuffle=False):
            for model, of in zip(models, sums, strict=True):
                loss, logits, labels = self.forward(model, self.test.images[batch], self.test.labels[batch])
                of += loss.item() * len(batch), int((logits.argmax(1) == labels).sum())
        means = [(loss, accuracy) for loss, accuracy in (sums / len(self.test.labels)).tolist()]
        return [*means, None][:2]

    def forward(self, model: torch.nn.Module, images: np.ndarray, labels: np.ndarray) -> Any:
        """Loss, logits and labels, in the network's own dtype."""
        logits = model(to_tensor(images).to(next(model.parameters()).dtype))
        of = torch.from_numpy(labels).long()
        return torch.nn.functional.cross_entropy(logits, of), logits, of


def loader(examples: int, batch_size: int, shuffle: bool) -> Iterator[Batch]:
    """A DataLoader of the examples' indices."""
    indices: Any = range(examples)
    return (batch.numpy() for batch in torch.utils.data.DataLoader(indices, batch_size, shuffle))


def torch_class(name: str) -> Any:
    """torch's class for our name of an optimizer or a scheduler."""
    homes = (torch.optim, torch.optim.lr_scheduler, torch.optim.swa_utils)
    classes = {key.lower(): value for home in homes for key, value in vars(home).items() if isinstance(value, type)}
    return classes[name.replace("_", "")]

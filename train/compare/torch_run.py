"""The run in PyTorch, as a user's script would have it, from the seed alone.

A process of its own, that reads its `Task` from standard input and writes its messages, pickled, to standard output.
"""

import copy
import itertools
import pickle
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from train import data
from train.compare.messages import Hello, Redone, Step, Task, Vector
from train.data import Examples
from train.epoch import Epoch
from train.model import KERNEL, layers

EVALUATION_BATCH = 500

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

    It is a script's run: it seeds, makes the network, and goes through a DataLoader in each epoch.
    """

    def __init__(self, task: Task, examples: Examples, test: Examples | None = None):
        config = self.config = task.config
        self.examples, self.test = examples, test
        torch.manual_seed(config.seed)
        self.model = model = network()
        if task.weights is not None:
            model.load_state_dict({name: torch.tensor(array) for name, array in task.weights.items()})
        self.optimizer: Any = torch_class(config.optimizer)(model.parameters(), **task.optimizer)
        self.scheduler = self.average = None
        if config.scheduler is not None:
            self.scheduler = torch_class(config.scheduler)(self.optimizer, **task.scheduler or {})
        if config.ema is not None:
            ema = torch.optim.swa_utils.get_ema_multi_avg_fn(config.ema)
            self.average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=ema)
        self.batches = 0

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
        loss, logits, labels = self.forward(self.model, self.examples, batch)
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
        if self.scheduler is not None:
            self.scheduler.step(*([metric] if isinstance(self.scheduler, ReduceLROnPlateau) else []))

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
                loss, logits, labels = self.forward(model, self.test, batch)
                of += loss.item() * len(batch), int((logits.argmax(1) == labels).sum())
        means = [(loss, accuracy) for loss, accuracy in (sums / len(self.test.labels)).tolist()]
        return [*means, None][:2]

    def forward(self, model: torch.nn.Module, examples: Examples, batch: Batch) -> Any:
        logits, labels = model(to_tensor(examples.images[batch])), torch.from_numpy(examples.labels[batch]).long()
        return torch.nn.functional.cross_entropy(logits, labels), logits, labels


def loader(examples: int, batch_size: int, shuffle: bool) -> Iterator[Batch]:
    """A DataLoader of the examples' indices."""
    indices: Any = range(examples)
    return (batch.numpy() for batch in torch.utils.data.DataLoader(indices, batch_size, shuffle))


def torch_class(name: str) -> Any:
    """torch's class for our name of an optimizer or a scheduler."""
    homes = (torch.optim, torch.optim.lr_scheduler, torch.optim.swa_utils)
    classes = {key.lower(): value for home in homes for key, value in vars(home).items() if isinstance(value, type)}
    return classes[name.replace("_", "")]


def vector(tensors: Iterable[torch.Tensor | None]) -> Vector:
    """A copy of the tensors, one after the other."""
    return np.concatenate([tensor.detach().numpy().ravel() for tensor in tensors if tensor is not None])


def snapshot(run: Run, step: int) -> dict[str, Any]:
    """Run to the step of the optimizer that batch `step` is in. Returns how the run stood before, and its batches."""
    accumulate = run.config.accumulate
    first = (step - 1) // accumulate * accumulate  # batches before it
    state: dict[str, Any] = {}
    for number, batches in run.epochs():
        for batch in batches:
            if run.batches == first:
                both = {"model": run.model.state_dict(), "optimizer": run.optimizer.state_dict()}
                state = {**copy.deepcopy(both), "batches": []}
            if run.batches >= first:
                state["batches"].append(torch.from_numpy(batch))
            run.step(batch)
            if run.batches == first + accumulate:
                return state
        run.end_epoch(number)
    raise ValueError(f"the run has no step {step}")


def redo(run: Run, state: Mapping[str, Any], choices: Sequence[np.ndarray] | None = None) -> Redone:
    """The step of the optimizer that `snapshot` stopped before; with these choices of the max pooling, if any."""
    parameters, chosen, given = list(run.model.parameters()), [], iter(choices or ())

    def pool(_: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        chosen.append(largest(*inputs) if choices is None else next(given))
        return output if choices is None else pick(*inputs, chosen[-1])

    def restore() -> None:
        run.model.load_state_dict(state["model"])
        run.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        run.optimizer.zero_grad()

    restore()
    hooks = [one.register_forward_hook(pool) for one in run.model if isinstance(one, torch.nn.MaxPool2d)]
    losses = np.array([run.backward(batch.numpy())[0] for batch in state["batches"]])
    for hook in hooks:
        hook.remove()
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    after = []
    for these in (grads, state.get("grads", grads)):
        restore()
        for parameter, grad in zip(parameters, these, strict=True):
            parameter.grad = grad.clone()
        if run.config.optimizer == "lbfgs":
            run.closure_step(state["batches"][0].numpy())
        run.update()
        after.append(vector(parameters))
    return Redone(losses, chosen, vector(grads), *after)


def largest(x: torch.Tensor) -> np.ndarray:
    """Which value of each 2x2 window is the largest: 0 to 3."""
    at = torch.nn.functional.max_pool2d(x.detach(), 2, return_indices=True)[1].numpy()
    return (at // x.shape[3] % 2 * 2 + at % 2).astype(np.uint8)


def pick(x: torch.Tensor, choice: np.ndarray) -> torch.Tensor:
    """One value of each 2x2 window: 0 to 3."""
    windows = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).transpose(3, 4).flatten(4)
    return windows.gather(4, torch.from_numpy(choice).long()[..., None])[..., 0]


def messages(task: Task) -> Iterator[Any]:
    """What a process that does the task says."""
    config = task.config
    examples = data.load(config.dataset, config.split, config.data_dir, config.archive).first(config.limit)
    run = Run(
        task, examples, data.load(config.dataset, "test", config.data_dir, config.archive) if task.evaluates else None
    )
    if task.kind in ("run", "time"):
        shapes = {name: tuple(parameter.shape) for name, parameter in run.model.named_parameters()}
        threads, instructions = torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()
        yield Hello(shapes, torch.__version__, f"{threads} thread{'s' * (threads > 1)}, {instructions}")
        for number, batches in run.epochs():
            for batch in batches:
                loss, correct = run.step(batch)
                if task.kind == "run":
                    yield Step(loss, correct, vector(run.model.parameters()))
            yield run.end_epoch(number)
        return
    assert task.path is not None
    if task.kind == "redo":
        yield redo(run, torch.load(task.path), task.choices)
        return
    state = snapshot(run, task.step)
    done = redo(run, state)
    parameters = list(run.model.parameters())
    grads = torch.from_numpy(done.grads).split([parameter.numel() for parameter in parameters])
    like = [grad.view_as(parameter) for grad, parameter in zip(grads, parameters, strict=True)]
    torch.save({**state, "grads": like}, task.path)
    yield done


def main() -> None:
    for message in messages(pickle.load(sys.stdin.buffer)):
        pickle.dump(message, sys.stdout.buffer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()

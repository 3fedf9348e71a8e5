"""The tutorial in PyTorch: the oracle of `train`. It takes its weights, its order and its options from there."""

import json
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from train import data
from train.config import Config, parse
from train.data import Examples
from train.model import Params
from train.start import epoch_order, initial_params
from train.training import optimizer_options, scheduler_options


def network(params: Params) -> torch.nn.Sequential:
    """The tutorial's network with the weights of ours."""
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 32, 5, padding=2),
        torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(32, 32, 5, padding=2),
        torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(32, 64, 5, padding=2),
        torch.nn.MaxPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(1024, 64),
        torch.nn.Linear(64, 10),
    )
    model.load_state_dict(torch_weights(params))
    return model


def torch_weights(params: Params) -> dict[str, torch.Tensor]:
    """The parameters, or their gradients, in torch's names and layouts."""
    names = {"0": "Conv_0", "2": "Conv_1", "4": "Conv_2", "7": "Dense_0", "8": "Dense_1"}
    weights = {}
    for torch_name, name in names.items():
        kernel = np.asarray(params[name]["kernel"])
        weight = kernel.transpose(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T
        weights[f"{torch_name}.weight"] = torch.tensor(np.ascontiguousarray(weight))
        weights[f"{torch_name}.bias"] = torch.tensor(np.asarray(params[name]["bias"]))
    return weights


def to_tensor(images: np.ndarray) -> torch.Tensor:
    """A batch of pictures as torchvision's ToTensor has it."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(torch.float32).div(255)


class Epoch(NamedTuple):
    """What torch's run says of an epoch."""

    running_loss: float
    lr: list[float]  # in its last step
    ema_loss: float | None  # of the average of weights, over all examples


def epochs(config: Config, params: Params, examples: Examples) -> Iterator[Epoch]:
    """Train as the tutorial does, with what the flags add."""
    model = network(params)
    optimizer = torch_class(config.optimizer)(model.parameters(), **optimizer_options(config))
    scheduler = None
    if config.scheduler is not None:
        scheduler = torch_class(config.scheduler)(optimizer, **scheduler_options(config))
    average = None
    if config.ema is not None:
        ema = torch.optim.swa_utils.get_ema_multi_avg_fn(config.ema)
        average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=ema)
    criterion = torch.nn.CrossEntropyLoss()

    def loss_of(network: torch.nn.Module, batch: np.ndarray) -> torch.Tensor:
        return criterion(network(to_tensor(examples.images[batch])), torch.from_numpy(examples.labels[batch]).long())

    def schedule(metric: float) -> None:
        if scheduler is not None:
            scheduler.step(*([metric] if isinstance(scheduler, ReduceLROnPlateau) else []))

    batches = 0
    for epoch in range(1, config.epochs + 1):
        order = epoch_order(config, epoch, len(examples.labels))
        running_loss, lr = 0.0, []
        for start in range(0, len(order), config.batch_size):
            lr = [group["lr"] for group in optimizer.param_groups]
            loss = loss_of(model, order[start : start + config.batch_size])
            loss.backward()
            batches += 1
            if batches % config.accumulate == 0:
                if config.clip_grad_norm is not None:
                    torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
                if config.scheduler_interval == "step":
                    schedule(loss.item())
                if average is not None:
                    average.update_parameters(model)
            running_loss += loss.item()
        with torch.no_grad():
            ema_loss = None if average is None else loss_of(average, np.arange(len(examples.labels))).item()
        yield Epoch(running_loss, lr, ema_loss)
        if config.scheduler_interval == "epoch":
            schedule(running_loss / -(-len(order) // config.batch_size))


def torch_class(name: str) -> Any:
    """torch's class for our name of an optimizer or a scheduler."""
    homes = (torch.optim, torch.optim.lr_scheduler, torch.optim.swa_utils)
    classes = {key.lower(): value for home in homes for key, value in vars(home).items() if isinstance(value, type)}
    return classes[name.replace("_", "")]


def main() -> None:
    """Print the running losses of the run that the flags of `python -m train` name, as one line of JSON."""
    config = parse(sys.argv[1:])
    examples = data.load(config.dataset, config.split, config.data_dir).first(config.limit)
    run = epochs(config, initial_params(config), examples)
    print(json.dumps([epoch.running_loss for epoch in run]))


if __name__ == "__main__":
    main()

"""The tutorial in PyTorch: the oracle of `train`. It takes its weights, its order and its options from there."""

import json
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import torch

import jaxopt_port
from train import data
from train.config import Config, optimizer_options, parse
from train.data import Examples
from train.loop import epoch_order
from train.model import Params, init_params


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


def running_losses(config: Config, params: Params, examples: Examples) -> Iterator[float]:
    """Train as the tutorial does, yielding each epoch's running loss."""
    model = network(params)
    options = optimizer_options(config, jaxopt_port.optimizers[config.optimizer])
    classes: dict[str, Any] = {name.lower(): value for name, value in vars(torch.optim).items()}
    optimizer = classes[config.optimizer.replace("_", "")](model.parameters(), **options)
    criterion = torch.nn.CrossEntropyLoss()
    for epoch in range(1, config.epochs + 1):
        order = epoch_order(config, epoch, len(examples.labels))
        running_loss = 0.0
        for start in range(0, len(order), config.batch_size):
            batch = order[start : start + config.batch_size]
            optimizer.zero_grad()
            outputs = model(to_tensor(examples.images[batch]))
            loss = criterion(outputs, torch.from_numpy(examples.labels[batch]).long())
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
        yield running_loss


def main() -> None:
    """Print the running losses of the run that the flags of `python -m train` name, as one line of JSON."""
    config = parse(sys.argv[1:])
    examples = data.load(config.dataset, config.split, config.data_dir).first(config.limit)
    print(json.dumps(list(running_losses(config, init_params(jax.random.key(config.seed)), examples))))


if __name__ == "__main__":
    main()

"""The tutorial's network in PyTorch, with our weights."""

import torch

from train.compare import torch_run
from train.compare.torch_run import to_tensor as to_tensor
from train.config import Config
from train.model import Params
from train.start import start
from train.torch_layout import weights_in_torch
from train.training import make_training


def initial_params(config: Config) -> Params:
    """What our run starts from."""
    return start(config, make_training(config), 10).params


def network(params: Params) -> torch.nn.Sequential:
    """torch's network with the weights of ours."""
    model = torch_run.network()
    model.load_state_dict(torch_weights(params))
    return model


def torch_weights(params: Params) -> dict[str, torch.Tensor]:
    """The parameters, or their gradients, in torch's names and layouts."""
    return {name: torch.tensor(array) for name, array in weights_in_torch(params).items()}

"""The weights and the order that a run starts with; with `--init torch` those of a torch script with the same seed."""

import jax
import numpy as np
import pytest

from train.command_line import parse
from train.config import Config
from train.model import Params
from train.start import epoch_order, start
from train.training import make_training

EXAMPLES = 103


def initial_params(config: Config, classes: int = 10) -> Params:
    return start(config, make_training(config), classes).params


def test_both_are_the_networks_parameters() -> None:
    forms = [
        jax.tree.map(lambda x: (x.shape, x.dtype, type(x)), initial_params(Config(init=kind)))
        for kind in ("jax", "torch")
    ]
    assert forms[0] == forms[1]


def test_the_tutorial_starts_as_torch_does() -> None:
    assert parse([]).init == "torch"
    assert parse(["--init", "jax"]).init == "jax"


@pytest.mark.parametrize("evaluate", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_a_torch_script_starts_there(seed: int, evaluate: bool) -> None:
    torch = pytest.importorskip("torch")
    if torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        pytest.skip("torch runs without AVX2")
    from tests.train.torch_side import torch_weights

    config = Config(init="torch", seed=seed, shuffle=True, evaluate=evaluate)
    torch.manual_seed(seed)
    convolutions = [torch.nn.Conv2d(i, o, 5, padding=2) for i, o in ((3, 32), (32, 32), (32, 64))]
    network = torch.nn.Sequential(*convolutions, torch.nn.Linear(1024, 64), torch.nn.Linear(64, 10))
    for ours, theirs in zip(torch_weights(initial_params(config)).values(), network.parameters(), strict=True):
        assert ours.numpy().tobytes() == theirs.detach().numpy().tobytes()

    loader = torch.utils.data.DataLoader(range(EXAMPLES), batch_size=8, shuffle=True)  # pyright: ignore
    test = torch.utils.data.DataLoader(range(10), batch_size=5)  # pyright: ignore
    for number in range(1, 4):
        np.testing.assert_array_equal(epoch_order(config, number, EXAMPLES), torch.cat(list(loader)))
        if evaluate:
            list(test)

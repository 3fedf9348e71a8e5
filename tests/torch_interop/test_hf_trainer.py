"""A checkpoint that Hugging Face's Trainer wrote goes on here, and back."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_port as optim
from jaxopt_port import torch_interop
from jaxopt_port.lr_scheduler import lambda_lr
from jaxopt_port.torch_interop import layout, load_optimizer, load_scheduler, optimizer_state_dict, scheduler_state_dict

FOLDER = Path(__file__).parent / "data" / "foreign" / "trainer_adamw"
SHAPES = {  # of the module in make_foreign_checkpoints.py
    "embedding.weight": (5, 4),
    "norm.weight": (4,),
    "norm.bias": (4,),
    "hidden.weight": (3, 4),
    "hidden.bias": (3,),
    "head.weight": (2, 3),
    "head.bias": (2,),
}
DECAY = ["embedding.weight", "hidden.weight", "head.weight"]
NO_DECAY = [name for name in SHAPES if name not in DECAY]
PARAMS = {
    "Embed_0": {"embedding": jnp.ones((5, 4))},
    "LayerNorm_0": {"scale": jnp.ones(4), "bias": jnp.ones(4)},
    "Dense_0": {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)},
    "Dense_1": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)},
}


def linear_decay(step: int) -> float:
    """The Trainer's default schedule."""
    return max(0.0, float(12 - step) / 12)


def imported() -> tuple[dict[str, Any], optim.Optimizer, optim.OptState, layout.Mapping]:
    theirs = torch_interop.load_trainer(FOLDER).optimizer
    assert theirs is not None
    mapping = layout.infer(SHAPES, PARAMS)
    return theirs, *load_optimizer(optim.adamw, theirs, PARAMS, mapping), mapping


def test_groups_and_moments() -> None:
    theirs, _, state, mapping = imported()
    assert [group["weight_decay"] for group in optim.get_hyper(state)] == [0.01, 0.0]
    assert [group["lr"] for group in optim.get_hyper(state)] == [0.0005, 0.0005]
    assert [float(group["step"]) for group in state.steps] == [6.0, 6.0]
    for i, name in enumerate([*DECAY, *NO_DECAY]):
        entry = next(entry for entry in mapping.entries if entry.source.name == name)
        layer, array = entry.path.split("/")
        for key in ("exp_avg", "exp_avg_sq"):
            expected = theirs["state"][i][key]
            moment = getattr(state.slots, key)[layer][array]
            np.testing.assert_array_equal(moment, expected.T if array == "kernel" else expected)


def test_the_order_of_modules_is_asked_for_where_names_are_sorted() -> None:
    checkpoint = torch_interop.load_trainer(FOLDER)
    assert list(checkpoint.model) == sorted(SHAPES)
    assert checkpoint.optimizer is not None
    mapping = layout.infer(checkpoint.model, PARAMS)
    with pytest.raises(ValueError, match=r"In no order .* Say torch's order: param_names="):
        load_optimizer(optim.adamw, checkpoint.optimizer, PARAMS, mapping)
    _, state = load_optimizer(optim.adamw, checkpoint.optimizer, PARAMS, mapping, param_names=list(SHAPES))
    _, _, expected, _ = imported()
    for one, other in zip(jax.tree.leaves(state.slots), jax.tree.leaves(expected.slots), strict=True):
        np.testing.assert_array_equal(one, other)


def test_back_to_a_file_that_torch_loads(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    theirs, optimizer, state, mapping = imported()
    scheduler = lambda_lr(linear_decay)
    file = torch_interop.load_trainer(FOLDER).scheduler
    assert file is not None
    sched = load_scheduler(scheduler, file, state, theirs)
    torch_interop.save(optimizer_state_dict(optimizer, state, PARAMS, mapping, sched), tmp_path / "optimizer.pt")
    torch_interop.save(scheduler_state_dict(scheduler, sched, optimizer, PARAMS), tmp_path / "scheduler.pt")

    weights = {name: torch.nn.Parameter(torch.ones(shape)) for name, shape in SHAPES.items()}
    groups = [{"params": [weights[name] for name in names]} for names in (DECAY, NO_DECAY)]
    adamw = torch.optim.AdamW(groups, lr=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(adamw, linear_decay)
    adamw.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    schedule.load_state_dict(torch.load(tmp_path / "scheduler.pt", weights_only=True))
    original, back = torch.load(FOLDER / "optimizer.pt", weights_only=True), adamw.state_dict()
    assert [group.pop("param_names") for group in back["param_groups"]] == [DECAY, NO_DECAY]
    for group in (*original["param_groups"], *back["param_groups"]):
        del group["fused"]  # the Trainer's choice of a kernel
    assert back["param_groups"] == original["param_groups"]
    assert back["state"].keys() == original["state"].keys()
    for i, one in original["state"].items():
        assert one.keys() == back["state"][i].keys()
        assert all(torch.equal(one[key], back["state"][i][key]) for key in one)

    for _ in range(3):
        adamw.step()
        schedule.step()
        sched, state = scheduler.step(sched, state)
        assert scheduler.get_last_lr(sched) == schedule.get_last_lr()

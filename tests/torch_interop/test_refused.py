"""What cannot be carried over is refused, with what to do; and states of L-BFGS that have little in them."""

import collections
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_port as optim
from jaxopt_port import torch_interop
from jaxopt_port.torch_interop import layout, load_optimizer, optimizer_state_dict

WEIGHTS = {"fc.weight": np.ones((3, 2), np.float32), "fc.bias": np.ones(3, np.float32)}
PARAMS: Any = {"head": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
MAPPING = layout.infer(WEIGHTS, PARAMS)
MORE: Any = {**PARAMS, "more": {"bias": jnp.ones(1)}}
HEADS = {f"{name}": {"kernel": jnp.ones((4, 2, 2)), "bias": jnp.ones((2, 2))} for name in ("query", "key", "value")}
ATTENTION: Any = {"mha": {**HEADS, "out": {"kernel": jnp.ones((2, 2, 4)), "bias": jnp.ones(4)}}}
TORCHS_ATTENTION = {
    "mha.in_proj_weight": (12, 4),
    "mha.in_proj_bias": (12,),
    "mha.out_proj.weight": (4, 4),
    "mha.out_proj.bias": (4,),
}
IN_PARTS = layout.infer(TORCHS_ATTENTION, ATTENTION)
ADAM = {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "params": [0, 1]}
MUON = dict.fromkeys(("lr", "weight_decay", "momentum", "eps"), 0.1) | {"nesterov": True, "ns_steps": 5}
MUON |= {"ns_coefficients": (1.0, 1.0, 1.0), "adjust_lr_fn": None, "params": [0]}
LBFGS = {"lr": 1, "max_iter": 4, "max_eval": 5, "tolerance_grad": 1e-7, "tolerance_change": 1e-9, "history_size": 2}
LBFGS |= {"line_search_fn": None, "params": [0, 1]}


def adam_state(**changed: Any) -> dict[str, Any]:
    one = {"step": 3.0, "exp_avg": np.zeros((3, 2)), "exp_avg_sq": np.zeros((3, 2)), **changed}
    return {"state": {0: one}, "param_groups": [ADAM]}


def one_part_stepped() -> Any:
    optimizer = optim.adam()
    grads = {"mha": {**ATTENTION["mha"], "query": {"kernel": None, "bias": None}}}
    params, state = optimizer.step(grads, optimizer.init(ATTENTION), ATTENTION)
    return optimizer_state_dict(optimizer, state, params, IN_PARTS)


def without_query() -> Any:
    params = {"mha": {name: part for name, part in ATTENTION["mha"].items() if name != "query"}}
    return optimizer_state_dict(optim.adam(), optim.adam().init(params), params, IN_PARTS)


def of_fewer_groups() -> Any:
    scheduler, state = optim.lr_scheduler.step_lr(2), optim.sgd().init({})
    return torch_interop.load_scheduler(scheduler, {}, state, {"param_groups": [{"lr": 0.1}, {"lr": 0.2}]})


def with_an_attribute() -> Any:
    weights = collections.OrderedDict(WEIGHTS)
    weights.epoch = 3  # pyright: ignore[reportAttributeAccessIssue]
    return torch_interop.save(weights, "never.pt")


REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "a leaf that the mapping has not": (
        lambda: layout.to_torch(MAPPING, MORE),
        ValueError,
        "not in the mapping: more/bias. Infer it with the whole tree",
    ),
    "a weight that is missing": (
        lambda: layout.to_flax(MAPPING, {"fc.weight": WEIGHTS["fc.weight"]}, PARAMS),
        ValueError,
        "'fc.bias', which is 'head/bias' in flax, is missing: pass the whole state dict",
    ),
    "a parameter that the mapping has not": (
        lambda: load_optimizer(optim.adam, adam_state(), MORE, MAPPING),
        ValueError,
        "parameters that are not in the mapping: more/bias",
    ),
    "two of three parts": (
        without_query,
        ValueError,
        "'mha.in_proj_weight' of torch's is .*: params has not all of them",
    ),
    "parts that stepped apart": (one_part_stepped, ValueError, "is one parameter in torch, but its parts differ in"),
    "Muon of a matrix in parts": (
        lambda: load_optimizer(
            optim.muon, {"state": {}, "param_groups": [MUON]}, ATTENTION, IN_PARTS, param_names=["mha.in_proj_weight"]
        ),
        ValueError,
        "Muon makes 'mha.in_proj_weight' orthogonal as one matrix, .*: keep it as one, or start",
    ),
    "half a step": (
        lambda: load_optimizer(optim.adam, adam_state(step=1.5), PARAMS, MAPPING),
        ValueError,
        "'step' in the state of parameter 'fc.weight' is 1.5, which is no count of steps: the file is damaged",
    ),
    "another optimizer's state": (
        lambda: load_optimizer(optim.lbfgs, {"state": {0: {"exp_avg": 1.0}}, "param_groups": [LBFGS]}, PARAMS, MAPPING),
        ValueError,
        "the state has exp_avg: it is not one of lbfgs",
    ),
    "a state of fewer groups": (
        of_fewer_groups,
        ValueError,
        "has 2 parameter groups, the state 1: pass the state that",
    ),
    "normal numbers without AVX2": (
        lambda: torch_interop.Generator(0, avx2=False).normal(16),
        NotImplementedError,
        "without AVX2: take float64, or avx2=True",
    ),
    "a number for a path": (lambda: torch_interop.load(3), TypeError, "an open binary file is read, not a int"),  # pyright: ignore[reportArgumentType]
    "an attribute of a dict": (
        with_an_attribute,
        torch_interop.PtFileError,
        "is an OrderedDict with an attribute epoch",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    call, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        call()


def test_two_safetensors_files_in_a_folder(tmp_path: Path) -> None:
    for name in ("a", "b"):
        torch_interop.save_safetensors(WEIGHTS, tmp_path / f"{name}.safetensors")
    with pytest.raises(
        torch_interop.PtFileError, match=r"\['a.safetensors', 'b.safetensors'\] safetensors files; name"
    ):
        torch_interop.load_safetensors(tmp_path)


def test_lbfgs_before_its_first_step_and_at_a_minimum() -> None:
    """torch keeps nothing before the first step, and only its counts where the first gradient is zero."""
    torch = pytest.importorskip("torch")
    theirs = torch.optim.LBFGS([torch.zeros(3, requires_grad=True)], max_iter=4)
    weight = theirs.param_groups[0]["params"][0]

    def closure() -> Any:
        theirs.zero_grad()
        loss = (weight**2).sum()
        loss.backward()
        return loss

    optimizer, params = optim.lbfgs(max_iter=4), {"w": jnp.zeros(3)}
    state = optimizer.init(params)
    assert optimizer_state_dict(optimizer, state, params)["state"] == theirs.state_dict()["state"] == {}
    theirs.step(closure)
    _, params, state = optimizer.step_closure(lambda p: (p["w"] ** 2).sum(), state, params)
    ours, expected = optimizer_state_dict(optimizer, state, params)["state"], theirs.state_dict()["state"]
    assert ours == expected == {0: {"func_evals": 1, "n_iter": 0}}
    for states in ({}, expected):
        _, loaded = load_optimizer(optim.lbfgs, {**theirs.state_dict(), "state": states}, params)
        assert {key: int(x) for key, x in loaded.steps[0].items()} == states.get(0, {"func_evals": 0, "n_iter": 0})
        assert jax.tree.structure(loaded) == jax.tree.structure(state)

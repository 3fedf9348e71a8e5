"""The error inputs of torch's own test database, each by name: its exception type and its message here too."""

import re
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import pytest
from jax.experimental.sparse import BCOO

import jaxopt_port as optim
from tests.helpers import RULES

torch = pytest.importorskip("torch")

LR = "Tensor lr must be 1-element"  # which every optimizer has, with torch's words
# What every optimizer of torch refuses because it is handed parameters; ours are handed them later, in a tree. What
# stands in the place of each: a call, its error and the error's message, or why there is nothing to refuse.
GENERIC: dict[str, tuple[Callable[[], Any], type[Exception], str] | str] = {
    "invalid param type": (
        lambda: optim.adam({"w": jnp.ones(2)}),  # pyright: ignore[reportArgumentType]
        TypeError,
        r"lr must be a number, not a dict: .*optimizer\.init\(params\)",
    ),
    "a param group cannot have duplicate parameters": (
        lambda: optim.ParamGroup(["w", "w"]),
        ValueError,
        "a parameter group with duplicate parameters: w",
    ),
    "duplicate parameters should not occur across param groups either": (
        lambda: optim.adam(param_groups=[optim.ParamGroup(["w"]), optim.ParamGroup(["w", "b"])]),
        ValueError,
        "some parameters appear in more than one parameter group: w",
    ),
    "all optimizer params should be with/without names": "a parameter's name is its path: all have one",
    "all optimizer param groups should be with/without names.": "a parameter's name is its path: all have one",
}
# How many each has of its own: 34.
OWN = {"adafactor": 4, "adam": 6, "adamw": 6, "muon": 3, "nadam": 2, "radam": 2, "sparse_adam": 4}  # 1, the others


def error_inputs(name: str) -> list[Any]:
    from tests.oracle import optimizer_info

    return list(optimizer_info(name).optim_error_inputs_func(device="cpu", dtype=torch.float32))


def as_ours(params: Any) -> dict[str, Any]:
    """torch's parameters as a tree: a sparse tensor as a BCOO."""
    tensors = [p for group in params for p in (group["params"] if isinstance(group, dict) else [group])]
    return {f"p{i}": _array(t) for i, t in enumerate(tensors)}


def _array(t: Any) -> Any:
    return BCOO.fromdense(t.to_dense().detach().numpy()) if t.is_sparse else jnp.asarray(t.detach().numpy())


def _number(value: Any) -> Any:
    return value.numpy() if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("name", RULES)
def test_each_error_input_of_torch(name: str) -> None:
    seen = []
    for each in error_inputs(name):
        given = each.optimizer_error_input
        if given.desc in GENERIC:
            continue
        seen.append(given.desc)
        hints = {"foreach", "capturable"} & set(given.kwargs)  # have no meaning here
        kwargs = {k: tuple(map(_number, v)) if isinstance(v, tuple) else _number(v) for k, v in given.kwargs.items()}
        if hints:
            with pytest.raises(TypeError, match="unexpected keyword argument"):
                optim.optimizers[name](**kwargs)
            continue
        with pytest.raises(each.error_type) as error:
            optim.optimizers[name](**kwargs).init(as_ours(given.params))
        assert re.search(each.error_regex, str(error.value)), (given.desc, each.error_regex, str(error.value))
    assert LR in seen
    assert len(seen) == 1 + OWN.get(name, 1), seen


@pytest.mark.parametrize("what", GENERIC)
def test_what_stands_in_place_of_the_generic_ones(what: str) -> None:
    assert any(each.optimizer_error_input.desc == what for each in error_inputs("sgd"))
    stands = GENERIC[what]
    if not isinstance(stands, str):
        call, error, message = stands
        with pytest.raises(error, match=message):
            call()

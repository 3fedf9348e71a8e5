"""State dicts as live optimizers of torch's give them: whose they are, through JSON, by name, in bfloat16."""

import contextlib
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_port as optim
from jaxopt_port.torch_interop import load_optimizer, optimizer_state_dict

torch = pytest.importorskip("torch")
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict  # noqa: E402

from tests.oracle import torch_class  # noqa: E402
from tests.torch_interop.convert import tensors  # noqa: E402

NAMES = [name for name in optim.optimizers if name != "nonlinear_cg"]


def stepped(cls: Any, dtype: Any = torch.float32, **options: Any) -> Any:
    """A module, whose weights have both signs, and its optimizer after a step."""
    module = torch.nn.Linear(2, 3, bias=False, dtype=dtype)
    with torch.no_grad():
        module.weight.copy_(torch.linspace(-0.5, 0.4, 6).reshape(3, 2))
    optimizer = cls(module.parameters(), **options)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = (module.weight * module.weight).sum()
        loss.backward()
        if cls is torch.optim.SparseAdam:
            module.weight.grad = module.weight.grad.to_sparse()
        return loss

    optimizer.step(closure)
    return module, optimizer


def ours(dtype: Any = jnp.float32) -> dict[str, Any]:
    return {"weight": jnp.zeros((3, 2), dtype)}


@pytest.mark.parametrize("name", NAMES)
def test_only_its_own_optimizer_loads_a_state_dict(name: str) -> None:
    state_dict = stepped(torch_class(name))[1].state_dict()
    loaded = set()
    for other in NAMES:
        with contextlib.suppress(ValueError):
            load_optimizer(optim.optimizers[other], state_dict, ours())
            loaded.add(other)
    assert loaded == ({"adamw", "adam"} if name == "adamw" else {name})  # adam has AdamW's option as well


@pytest.mark.parametrize(
    ("cls", "factory", "message"),
    [
        (torch.optim.Adam, optim.adamw, "has decoupled_weight_decay=False: .* not of the optimizer adamw.*: load it w"),
        (torch.optim.Adam, optim.radam, r"has amsgrad: it is not of the optimizer radam.*: load it with optim\.adam$"),
        (
            torch.optim.RAdam,
            optim.adam,
            r"has no amsgrad: it is not of the optimizer adam.*: load it with optim\.radam",
        ),
    ],
)
def test_another_optimizers_is_named(cls: Any, factory: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_optimizer(factory, stepped(cls)[1].state_dict(), ours())


def test_keys_of_users_and_of_schedulers_are_no_options() -> None:
    _, optimizer = stepped(torch.optim.Adam)
    torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, 10)
    optimizer.param_groups[0] |= {"name": "decay", "lr_scale": 0.5}
    with pytest.warns(UserWarning, match="have name, lr_scale, which adam does not: they are left out"):
        load_optimizer(optim.adam, optimizer.state_dict(), ours())


def moment(state_dict: Any, dtype: Any = jnp.float32) -> np.ndarray:
    return np.asarray(load_optimizer(optim.adamw, state_dict, ours(dtype))[1].slots.exp_avg["weight"])


@pytest.mark.parametrize("name", ["adamw", "sgd", "lbfgs"])
def test_through_json(name: str) -> None:
    _, optimizer = stepped(torch_class(name), **({"momentum": 0.9} if name == "sgd" else {}))
    plain, factory = optimizer.state_dict(), optim.optimizers[name]
    through = json.loads(json.dumps(plain, default=lambda tensor: tensor.tolist()))
    states = (load_optimizer(factory, each, ours())[1] for each in (plain, through))
    jax.tree.map(np.testing.assert_array_equal, *states)


def test_states_by_the_names_of_parameters() -> None:
    module, optimizer = stepped(torch.optim.AdamW)
    np.testing.assert_array_equal(
        moment(get_optimizer_state_dict(module, optimizer)), optimizer.state[module.weight]["exp_avg"]
    )


def test_moments_in_bfloat16() -> None:
    module, optimizer = stepped(torch.optim.AdamW, torch.bfloat16)
    loaded = moment(optimizer.state_dict(), jnp.bfloat16)
    np.testing.assert_array_equal(loaded.astype(np.float32), optimizer.state[module.weight]["exp_avg"].float())


def test_what_torch_keeps_for_its_owner_is_passed_by() -> None:
    """torch's own load_state_dict takes both, and gives them back."""
    module, optimizer = stepped(torch.optim.AdamW)
    state_dict = optimizer.state_dict()
    state_dict["state"]["global"] = {"seen": 3}
    state_dict["param_groups"][0]["momentum"] = 0.9
    torch.optim.AdamW(module.parameters()).load_state_dict(state_dict)
    with pytest.warns(UserWarning, match="have momentum, which adamw does not"):
        np.testing.assert_array_equal(moment(state_dict), optimizer.state[module.weight]["exp_avg"])


def test_a_state_that_no_group_has_is_refused() -> None:
    state_dict = stepped(torch.optim.AdamW)[1].state_dict()
    with pytest.raises(ValueError, match="has states of 100, which its groups do not have: their params are 0"):
        moment({**state_dict, "state": {100: state_dict["state"][0]}})
    with pytest.raises(
        ValueError, match=r"pass state_dict\['optimizer'\]\. This is a dict of \['model', 'optimizer'\]"
    ):
        moment({"model": {}, "optimizer": state_dict})
    with pytest.raises(ValueError, match="This is None"):
        moment(None)


def test_the_optimizer_inside_is_asked_for() -> None:
    adamw, params = optim.adamw(lr=0.5), ours()
    for wrapped in (optax.chain(optax.clip(1.0), adamw), optim.every_k(adamw, 2)):
        state: Any = wrapped.init(params)
        with pytest.raises(ValueError, match=r"is a wrapper, .* pass the optimizer inside"):
            optimizer_state_dict(wrapped, state, params)  # pyright: ignore[reportArgumentType]
        _, theirs = stepped(torch.optim.AdamW)
        theirs.load_state_dict(tensors(optimizer_state_dict(adamw, state, params)))
        assert theirs.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize("name", [name for name in NAMES if name != "lbfgs"])
def test_what_no_optimizer_leaves_behind_is_refused(name: str) -> None:
    """In the first array that it keeps, the first of squares, and the count of steps."""
    options: dict[str, Any] = {"momentum": 0.9} if name == "sgd" else {}
    state_dict = stepped(torch_class(name), **options)[1].state_dict()
    state = state_dict["state"][0]
    arrays = [key for key, x in state.items() if getattr(x, "ndim", 0)]
    squares = [key for key in arrays if state[key].min() >= 0]
    counts = [key for key in state if key == "step"]
    damages: list[tuple[list[str], Callable[[Any], Any]]] = [
        (arrays[:1], lambda x: x.fill_(float("nan"))),
        (arrays[:1], lambda x: x.to(torch.int32)),
        (squares[:1], lambda x: x - 1.0),
        (counts, lambda x: x - 6),
        (counts, lambda x: x + 0.5),
    ]
    assert arrays
    for keys, damage in damages:
        for key in keys:
            damaged = {**state, key: damage(torch.as_tensor(state[key]).clone())}
            with pytest.raises(ValueError, match=f"'{key}' in the state of parameter 'weight' (has|is)"):
                load_optimizer(optim.optimizers[name], {**state_dict, "state": {0: damaged}}, ours())


def test_a_failed_run_of_lbfgs_is_refused() -> None:
    theirs = stepped(torch.optim.LBFGS, max_iter=3)[1].state_dict()
    theirs["state"][0]["old_dirs"][-1][0] = float("nan")
    with pytest.raises(ValueError, match="'old_dirs' in the state of lbfgs has NaN: the run had failed"):
        load_optimizer(optim.lbfgs, theirs, ours())


class Nothing(NamedTuple):
    pass


def test_what_torch_does_not_have_is_refused_by_name() -> None:
    rule = optim.Rule("descent", Nothing, lambda step, h, s: ({"lr": h.lr}, s), lambda p, g, s, c: (p - c.lr * g, s))
    mine, params = optim.lift(rule, {"lr": 0.5}), ours()
    for optimizer in (mine, optim.nonlinear_cg()):
        with pytest.raises(ValueError, match=r"torch has no (descent|nonlinear_cg), and no state dict of it"):
            optimizer_state_dict(optimizer, optimizer.init(params), params)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_moments_of_long_parameters_stay_short(dtype: Any) -> None:
    _, optimizer = stepped(torch.optim.AdamW)
    state_dict = optimizer.state_dict()
    state = state_dict["state"][0]
    state |= {key: state[key].to(dtype) for key in ("exp_avg", "exp_avg_sq")}
    adamw, loaded = load_optimizer(optim.adamw, state_dict, ours())
    assert loaded.slots.exp_avg["weight"].dtype == str(dtype).removeprefix("torch.")
    assert loaded.steps[0]["step"].dtype == jnp.float32
    back = tensors(optimizer_state_dict(adamw, loaded, ours())["state"][0])
    assert back["exp_avg"].dtype == back["exp_avg_sq"].dtype == dtype
    assert torch.equal(back["exp_avg"], state["exp_avg"])
    _, after = adamw.step({"weight": jnp.ones((3, 2))}, loaded, ours())
    assert after.slots.exp_avg["weight"].dtype == loaded.slots.exp_avg["weight"].dtype

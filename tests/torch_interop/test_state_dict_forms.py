"""State dicts as frameworks keep them: Lightning's lists, FSDP's names, flattened, torch's hints, other libraries'."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_port as optim
from jaxopt_port.torch_interop import layout, load_optimizer

torch = pytest.importorskip("torch")
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict  # noqa: E402

from tests.torch_interop.convert import arrays  # noqa: E402

PARAMS = {"first": {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}, "last": {"kernel": jnp.zeros((2, 2))}}


def stepped(cls: Any = torch.optim.AdamW, *, groups: bool = False, named: bool = False, **options: Any) -> Any:
    """A module and its optimizer after a step."""
    torch.manual_seed(0)
    module = torch.nn.Sequential()
    module.add_module("first", torch.nn.Linear(2, 2))
    module.add_module("last", torch.nn.Linear(2, 2, bias=False))
    given: Any = list(module.named_parameters() if named else module.parameters())
    if groups:
        given = [{"params": [given[1]], "weight_decay": 0.5}, {"params": [given[0], given[2]], "lr": 0.25}]
    optimizer = cls(given, **options)
    module(torch.ones(1, 2)).square().sum().backward()
    optimizer.step()
    return module, optimizer


def check(module: Any, optimizer: Any, state_dict: Any, factory: Any = optim.adamw, key: str = "exp_avg") -> Any:
    mapping = layout.infer(module.state_dict(), PARAMS)
    _, state = load_optimizer(factory, state_dict, PARAMS, mapping)
    moments = layout.to_torch(mapping, getattr(state.slots, key))
    for name, p in module.named_parameters():
        np.testing.assert_array_equal(moments[name], arrays(optimizer.state[p][key]))
    return state


def test_lightnings_list() -> None:
    module, optimizer = stepped()
    check(module, optimizer, [optimizer.state_dict()])
    with pytest.raises(ValueError, match=r"pass state_dict\[0\] or state_dict\[1\]\. This is"):
        check(module, optimizer, [optimizer.state_dict()] * 2)
    checkpoint = {"state_dict": module.state_dict(), "optimizer_states": [optimizer.state_dict()]}
    with pytest.raises(ValueError, match=r"pass state_dict\['optimizer_states'\]\[0\]\. This is"):
        check(module, optimizer, checkpoint)
    two = {"optimizers": {"generator": optimizer.state_dict(), "discriminator": optimizer.state_dict()}}
    with pytest.raises(ValueError, match=r"\['optimizers'\]\['generator'\] or state_dict\['optimizers'\]\['discrim"):
        check(module, optimizer, two)


@pytest.mark.parametrize("groups", [False, True])
@pytest.mark.parametrize("flat", [False, True])
def test_by_names_as_fsdp_has_them(flat: bool, groups: bool) -> None:
    module, optimizer = stepped(groups=groups)
    options = StateDictOptions(full_state_dict=True, flatten_optimizer_state_dict=flat)
    state_dict: Any = get_optimizer_state_dict(module, optimizer, options=options)
    assert ("state.first.weight.exp_avg" in state_dict) == flat
    state = check(module, optimizer, state_dict)
    found = sorted((group["weight_decay"], group["lr"]) for group in optim.get_hyper(state))
    assert found == ([(0.01, 0.25), (0.5, 0.001)] if groups else [(0.01, 0.001)])
    # wrapped once more, as FSDP and activation checkpointing name parameters
    text = "first._fsdp_wrapped_module._checkpoint_wrapped_module."
    if not flat:
        names = {name: name.replace("first.", text) for name in state_dict["state"]}
        for group in state_dict["param_groups"]:
            group["params"] = [names[name] for name in group["params"]]
        check(module, optimizer, {**state_dict, "state": {names[k]: v for k, v in state_dict["state"].items()}})


def test_zero_redundancy(tmp_path: Any) -> None:
    """torch's own ZeRO: the state dict that it consolidates."""
    from torch.distributed import destroy_process_group, init_process_group
    from torch.distributed.optim import ZeroRedundancyOptimizer

    init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        module, optimizer = stepped(
            lambda params: ZeroRedundancyOptimizer(params, optimizer_class=torch.optim.AdamW, lr=0.1)
        )
        optimizer.consolidate_state_dict()
        check(module, optimizer.optim, optimizer.state_dict())
    finally:
        destroy_process_group()


@pytest.mark.parametrize(
    ("cls", "factory", "key", "hints"),
    [
        (torch.optim.AdamW, optim.adamw, "exp_avg", {"fused": True}),
        (torch.optim.AdamW, optim.adamw, "exp_avg", {"foreach": True}),
        (torch.optim.Adam, optim.adam, "exp_avg", {"capturable": True, "foreach": False}),
        (torch.optim.Adam, optim.adam, "exp_avg", {"differentiable": True}),
        (torch.optim.ASGD, optim.asgd, "ax", {"capturable": True, "foreach": False}),
        (torch.optim.Adagrad, optim.adagrad, "sum", {"fused": True}),
        (torch.optim.SGD, optim.sgd, "momentum_buffer", {"fused": True, "momentum": 0.9}),
    ],
)
def test_hints_do_not_matter(cls: Any, factory: Any, key: str, hints: dict[str, bool]) -> None:
    module, optimizer = stepped(cls, **({"momentum": hints["momentum"]} if "momentum" in hints else {}))
    state_dict = optimizer.state_dict()
    state_dict["param_groups"][0] |= hints  # capturable states are of a GPU's
    if "capturable" in hints:
        for one in state_dict["state"].values():
            one["step"] = one["step"].reshape(1)
    check(module, optimizer, state_dict, factory, key)


@pytest.mark.parametrize("groups", [False, True])
def test_named_parameters(groups: bool) -> None:
    module, optimizer = stepped(groups=groups, named=True)
    state_dict = optimizer.state_dict()
    assert "param_names" in state_dict["param_groups"][0]
    check(module, optimizer, state_dict)


@pytest.mark.parametrize(
    ("state_dict", "message"),
    [
        (
            {
                "state": {0: {"step": 1, "exp_avg_sq": np.ones(2), "RMS": 1.0}},
                "param_groups": [
                    {"lr": None, "eps": (1e-30, 1e-3), "clip_threshold": 1.0, "decay_rate": -0.8, "beta1": None}
                    | {"weight_decay": 0.0, "scale_parameter": True, "relative_step": True, "warmup_init": False}
                    | {"params": [0]}
                ],
            },
            r"of transformers.optimization.Adafactor, another rule than torch.*beta2_decay is its decay_rate, d its",
        ),
        (
            {
                "state": {0: {"step": 1, "state1": np.ones(2, np.uint8), "qmap1": np.ones(256)}},
                "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0, "params": [0]}],
            },
            "of bitsandbytes, in 8 bits: start the optimizer with the weights alone",
        ),
        (
            {"optimizer_state_dict": {"zero_stage": 2, "base_optimizer_state": {}}, "ds_config": {}},
            r"a part of DeepSpeed's ZeRO, .*ds_to_universal",
        ),
    ],
)
def test_other_libraries_say_whose_they_are(state_dict: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_optimizer(optim.adafactor, state_dict, {"w": jnp.ones(2)})

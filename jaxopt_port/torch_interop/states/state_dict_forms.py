"""The forms that an optimizer's state dict has in checkpoints: torch's own, by names, flattened, Lightning's."""

from collections.abc import Iterator, Mapping
from typing import Any

# Whose a group with these keys is, or a state.
OTHERS: Mapping[frozenset[str], str] = {
    frozenset(("scale_parameter", "relative_step", "clip_threshold")): (
        "transformers.optimization.Adafactor, another rule than torch.optim.Adafactor: it adds eps to squares and "
        "decays by the scaled rate. Start optim.adafactor with the weights alone: beta2_decay is its decay_rate, d "
        "its clip_threshold, lr=1e-2 its relative_step; it has no beta1, no warmup_init, no scale_parameter=False"
    ),
    frozenset(("state1", "qmap1")): (
        "bitsandbytes, in 8 bits: start the optimizer with the weights alone, or save a run with 32 bits"
    ),
}
DEEPSPEED = ("zero_stage", "base_optimizer_state", "single_partition_of_fp32_groups", "fp32_flat_groups")


def as_torchs(state_dict: Any) -> dict[str, Any]:
    """The state dict as torch has it, each state under the very entry of its group's `params`.

    Taken are what JSON makes of one, with strings for numbers; names in place of numbers, as FSDP and
    `get_optimizer_state_dict` have them, flattened too; and Lightning's list, where it has one optimizer.

    Raises:
      ValueError: it is no optimizer's, or another library's; it has states that no group has.
    """
    if isinstance(state_dict, list | tuple) and len(state_dict) == 1:
        (state_dict,) = state_dict
    if isinstance(state_dict, Mapping) and _is_flattened(state_dict):
        state_dict = _unflattened(state_dict)
    if not isinstance(state_dict, Mapping) or not _is_one(state_dict):
        raise ValueError(_what_it_is(state_dict))
    found, groups = state_dict["state"], state_dict["param_groups"]
    for one in (*groups, *(state for state in found.values() if isinstance(state, Mapping))):
        whose = [whose for keys, whose in OTHERS.items() if keys <= one.keys()]
        if whose:
            raise ValueError(f"the state dict is of {whose[0]}")
    keys = {i: i if i in found else str(i) for group in groups for i in group["params"]}
    named = any(isinstance(i, str) for i in keys)
    apart = map(str, found.keys() - set(keys.values()))
    lost = [key for key in apart if named or key.isdigit()]  # what else is there torch keeps for its owner
    if lost:
        raise ValueError(
            f"the state dict has states of {', '.join(sorted(lost))}, which its groups do not have: their params are "
            f"{', '.join(map(str, keys))}"
        )
    return {"state": {i: found[key] for i, key in keys.items() if key in found}, "param_groups": groups}


def _is_one(x: Any) -> bool:
    return isinstance(x, Mapping) and {"state", "param_groups"} <= x.keys()


def _is_flattened(state_dict: Mapping[str, Any]) -> bool:
    keys = [str(key) for key in state_dict]
    return any(key.startswith("param_groups.") for key in keys) and all(
        key.startswith(("param_groups.", "state.")) for key in keys
    )


def _unflattened(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Of `StateDictOptions(flatten_optimizer_state_dict=True)`: `state.fc.weight.exp_avg`, `param_groups.fc.weight.lr`.

    Parameters with equal options are of one group.
    """
    states: dict[str, dict[str, Any]] = {}
    options: dict[str, dict[str, Any]] = {}
    for key, value in state_dict.items():
        into, rest = (
            (states, key[len("state.") :]) if key.startswith("state.") else (options, key[len("param_groups.") :])
        )
        name, _, what = rest.rpartition(".")
        into.setdefault(name, {})[what] = value
    groups: list[dict[str, Any]] = []
    for name, own in options.items():
        group = next((group for group in groups if repr(group) == repr({**own, "params": group["params"]})), None)
        if group is None:
            group = {**own, "params": []}
            groups.append(group)
        group["params"].append(name)
    return {"state": states, "param_groups": groups}


def _what_it_is(x: Any) -> str:
    """What is no optimizer's state dict, and where in it there are some."""
    what = f"a dict of {list(x)}" if isinstance(x, Mapping) else repr(x)
    inside = [f"state_dict{path}" for path in _paths_inside(x)]
    if any(key in DEEPSPEED for key in _keys(x)):
        remedy = (
            "it is a part of DeepSpeed's ZeRO, one of as many as there were processes: make them whole with "
            "deepspeed.checkpoint.ds_to_universal, or the weights alone with zero_to_fp32.py"
        )
    elif inside:
        remedy = f"pass {' or '.join(inside)}"
    else:
        remedy = "pass optimizer.state_dict(), such as checkpoint['optimizer']"
    return f"the state dict is not an optimizer's, which has state and param_groups: {remedy}. This is {what[:400]}"


def _keys(x: Any) -> Iterator[str]:
    if isinstance(x, Mapping):
        for key, value in x.items():
            yield str(key)
            if isinstance(value, Mapping):
                yield from map(str, value)


def _paths_inside(x: Any, depth: int = 3) -> Iterator[str]:
    entries = x.items() if isinstance(x, Mapping) else enumerate(x) if isinstance(x, list | tuple) else ()
    for key, value in entries:
        if _is_one(value):
            yield f"[{key!r}]"
        elif depth > 1:
            yield from (f"[{key!r}]{path}" for path in _paths_inside(value, depth - 1))

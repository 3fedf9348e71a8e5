"""torch's `optimizer.state_dict()`, both ways.

A state dict is what `torch.load` gives: dicts and lists of arrays (lists and torch's tensors too: see `as_array`) and
Python's numbers.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jaxopt_port.flat import Flat
from jaxopt_port.hyper import find_state, get_hyper, set_hyper
from jaxopt_port.optimizer import Optimizer, OptState, described
from jaxopt_port.param_groups import ParamGroup, leaf_paths
from jaxopt_port.torch_interop.layouts.layout import Mapping as LayoutMapping
from jaxopt_port.torch_interop.states import lbfgs_state, parameter_state
from jaxopt_port.torch_interop.states.parameter_order import Parameter, by_group, parameters
from jaxopt_port.torch_interop.states.state_dict_forms import as_torchs
from jaxopt_port.torch_interop.states.torch_groups import (
    HINTS,
    algorithm,
    exported_options,
    keys_of_users,
    matrix_options,
    options_of,
    rule_name,
)

Tree = Any

ANY_MOMENTUM = 0.9


def load_optimizer(
    factory: Callable[..., Optimizer],
    state_dict: Mapping[str, Any],
    params: Tree,
    mapping: LayoutMapping | None = None,
    param_names: Iterable[str] | None = None,
) -> tuple[Optimizer, OptState]:
    """`optimizer.load_state_dict(state_dict)`: an optimizer and its state, to go on from where torch's was.

    Hyper-parameters and groups come from the state dict: torch's first group is group 0, the others are lists of paths.
    What torch's `load_state_dict` adds to old state dicts is added. torch's hints (`foreach`, `fused`, ...) and what
    its schedulers keep in the groups (`initial_lr`, ...: see `load_scheduler`) have no place here, nor have keys of the
    user's own (timm's `lr_scale`), which a warning names. A tensor as a learning rate or a beta is taken as the number
    that it holds: torch then computes with rates in its dtype, float32, and is off from its own floats by an ulp.

    Unlike torch, shapes are checked, and float32 scalars (NAdam's, ASGD's) stay float32 beside float64 parameters.
    Muon, whose step depends on which axes are a matrix's rows, gets them from the mapping.

    Args:
      factory: `optim.adamw` and so on, the optimizer that wrote it. The state dict does not say which. One of another
        optimizer's options is refused, but AdamWs and Adams from before torch 2.6 look the same, and all of theirs load
        as `optim.adam` too, which has `decoupled_weight_decay`.
      state_dict: torch's, or what JSON makes of it; by names, as FSDP and `get_optimizer_state_dict` have it, flattened
        too; Lightning's list of one. States are looked up by the entries of `params` in its groups.
      params: the parameters that it belongs to. Those that `param_names` leave out are frozen.
      mapping: from `layout.infer`, where the parameters are in flax's names and layouts. Its order, that of torch's
        `state_dict()`, is taken for torch's; without it that of the leaves of `params`. Where these may have been
        sorted, as JAX sorts the keys of dicts and safetensors files their names, that is an error, not a guess.
      param_names: the parameters of torch's optimizer in torch's order, `[n for n, _ in model.named_parameters()]` or
        the names of `model.state_dict()`; paths in `params` where there is no mapping. Not needed where the state dict
        has names itself. Those that it leaves out are frozen.

    Returns:
      `(optimizer, state)`.

    Raises:
      ValueError: an option or a state that the optimizer does not have, or lacks; a state of no group's parameter;
        another number of parameters or other shapes; parameters or groups that cannot be told apart (by `param_names`
        they can).

    Example:
      >>> import jax.numpy as jnp, numpy as np, jaxopt_port as optim
      >>> state_dict = {     # torch.load("checkpoint.pt")["optimizer"]
      ...     "state": {0: {"step": np.float32(7), "exp_avg": np.array([0.5]), "exp_avg_sq": np.array([0.25])}},
      ...     "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01, "params": [0]}]}
      >>> optimizer, state = load_optimizer(optim.adamw, state_dict, {"w": jnp.ones(1)})
      >>> state.steps[0]["step"], state.slots.exp_avg["w"]
      (Array(7., dtype=float32), Array([0.5], dtype=float32))

    Source: torch/optim/optimizer.py, Optimizer.load_state_dict.
    """
    if not callable(factory):
        raise TypeError(
            "load_optimizer(factory, state_dict, params) needs the function that makes the optimizer, such as "
            f"jaxopt_port.adamw, not {described(factory)}"
        )
    name, state_dict = rule_name(factory()), as_torchs(state_dict)
    options = [options_of(factory, group, i) for i, group in enumerate(state_dict["param_groups"])]
    users = keys_of_users(factory, state_dict)
    if users:
        warnings.warn(
            f"the groups of the state dict have {', '.join(users)}, which {name} does not: they are left out",
            stacklevel=2,
        )
    order = parameters(params, mapping, param_names)
    members = by_group(state_dict, order, named=mapping is not None, flat=name == "lbfgs")
    if name == "lbfgs":
        optimizer = factory(**options[0])
        return optimizer, lbfgs_state.load(optimizer.init(params), state_dict, members[0], params)
    for own, matrices in zip(options, matrix_options(factory, members), strict=True):
        own |= matrices
    states = [[state_dict["state"].get(i) or {} for i in group["params"]] for group in state_dict["param_groups"]]
    buffered = [any(one.get("momentum_buffer") is not None for one in inside) for inside in states]
    off = [i for i, has in enumerate(buffered) if has and not options[i]["momentum"]]  # on before: there are buffers
    for group in off:
        options[group]["momentum"] = ANY_MOMENTUM
    optimizer = _make(factory, options, members, leaf_paths(params))
    state = optimizer.init(params)
    for group in off:
        state = set_hyper(state, group=group, momentum=0.0)
    flat = {
        leaf: (parameter, at, one)
        for inside, mine in zip(states, members, strict=True)
        for parameter, one in zip(mine, inside, strict=True)
        for at, leaf in enumerate(parameter.leaves)
    }
    return optimizer, parameter_state.fill(name, state, algorithm(optimizer).members(params), flat, params)


def optimizer_state_dict(
    optimizer: Optimizer,
    state: Any,
    params: Tree,
    mapping: LayoutMapping | None = None,
    sched: Mapping[str, Any] | None = None,
    param_names: Iterable[str] | None = None,
) -> dict[str, Any]:
    """`optimizer.state_dict()`, with arrays where torch has tensors.

    torch's `load_state_dict` needs tensors: `save` writes them, for `torch.load`, and `torch.from_numpy` makes one of
    an array.

    torch's parameters are numbered group by group, in the order of a group's list of paths where it has one, otherwise
    in that of `param_names`, or the mapping's, and without a mapping in that of the leaves. Their names are written as
    `param_names`, which torch does not look at. Left out are what torch leaves out, the states of parameters that have
    not stepped, and the groups that are frozen or empty.

    Args:
      optimizer: as its factory returned it, the one inside an `optax.chain` or an `every_k`.
      state: its state, or a pytree with one inside, as the state of the chain.
      params: the parameters.
      mapping: from `layout.infer`, where the parameters are in flax's names and layouts.
      sched: the state of a scheduler, for what torch's schedulers keep in the groups (`initial_lr`, ...).
      param_names: torch's names, or paths in `params` where there is no mapping, in the order of torch's
        `model.named_parameters()`, where the order of the mapping or of the leaves may come from a sort.

    Returns:
      `{"state": ..., "param_groups": ...}`.

    Raises:
      ValueError: what torch does not have, a wrapper around the optimizer or nonlinear conjugate gradients; a parameter
        of torch's that is in two groups or has stepped in parts; a state that has no layout in torch.

    Example:
      >>> import jax.numpy as jnp, jaxopt_port as optim
      >>> params = {"w": jnp.ones(1)}
      >>> optimizer = optim.sgd(lr=0.1, momentum=0.9)
      >>> params, state = optimizer.step({"w": jnp.ones(1)}, optimizer.init(params), params)
      >>> optimizer_state_dict(optimizer, state, params)["state"]
      {0: {'momentum_buffer': array([1.], dtype=float32)}}

    Source: torch/optim/optimizer.py, Optimizer.state_dict.
    """
    lifted, name = algorithm(optimizer), rule_name(optimizer)
    opt_state, order = find_state(state), parameters(params, mapping, param_names)
    if isinstance(lifted, Flat):
        opt_state = lifted.unflatten(opt_state, params)
    known, frozen = order.parameters, lifted.frozen_leaves(params)
    unnamed = [one.name for one in order.left_out if not all(frozen[leaf] for leaf in one.leaves)]
    if unnamed:
        raise ValueError(f"param_names has no {', '.join(unnamed)}, which the optimizer steps: give it all names")
    if name == "lbfgs":
        live = get_hyper(opt_state)[0]
        static: dict[str, Any] = lifted.static  # pyright: ignore[reportAssignmentType]
        group = {**live, **static, "params": list(range(len(known))), "param_names": [p.name for p in known]}
        states = lbfgs_state.save(opt_state, known, params)
        if states:
            order.check(known, by_shape=False)
        return {"state": states, "param_groups": [group]}
    live, members = get_hyper(opt_state), lifted.members(params)
    state_of = parameter_state.saver(name, opt_state, members, params)
    states: dict[int, dict[str, Any]] = {}
    param_groups: list[dict[str, Any]] = []
    for group in _exported(lifted, members):
        inside, listed = _inside(lifted, members, leaf_paths(params), known, group)
        start = sum(len(each["params"]) for each in param_groups)
        ids = list(range(start, start + len(inside)))
        scheduled = {} if sched is None else {k: float(v) for k, v in sched["param_groups"][group].items()}
        options = {**exported_options(optimizer, group), **live[group], **HINTS.get(name, {}), **scheduled}
        names = [parameter.name for parameter in inside]
        param_groups.append({**options, "params": ids, "param_names": names})
        found = {i: state_of(parameter) for i, parameter in zip(ids, inside, strict=True)}
        states |= {i: one for i, one in found.items() if one}
        if not listed and any(found.values()):
            order.check(inside)
    return {"state": states, "param_groups": param_groups}


def exported_groups(optimizer: Optimizer, params: Tree) -> list[int]:
    """The numbers of the groups that torch's optimizer has: those with parameters that are not frozen."""
    if rule_name(optimizer) == "lbfgs":
        return [0]
    lifted = algorithm(optimizer)
    return _exported(lifted, lifted.members(params))


def _exported(lifted: Any, members: list[int]) -> list[int]:
    return [group for group, frozen in enumerate(lifted.frozen) if not frozen and group in members]


def _make(
    factory: Callable[..., Optimizer], options: list[dict[str, Any]], members: list[list[Parameter]], paths: list[str]
) -> Optimizer:
    """The optimizer with torch's groups, and the parameters that are in none of them frozen."""
    lists = [[paths[leaf] for parameter in inside for leaf in parameter.leaves] for inside in members]
    in_one = {path for inside in lists for path in inside}
    groups = [
        ParamGroup(inside, **{k: v for k, v in own.items() if v != options[0].get(k)})
        for own, inside in zip(options[1:], lists[1:], strict=True)
    ]
    rest = [path for path in paths if path not in in_one]
    return factory(**options[0], param_groups=[*groups, *([ParamGroup(rest, frozen=True)] if rest else [])])


def _inside(
    lifted: Any, members: list[int], paths: list[str], known: list[Parameter], group: int
) -> tuple[list[Parameter], bool]:
    """The parameters of a group, in the order of its list of paths if it has one, and whether it has."""
    inside = [parameter for parameter in known if any(members[leaf] == group for leaf in parameter.leaves)]
    for parameter in inside:
        if any(members[leaf] != group for leaf in parameter.leaves):
            raise ValueError(
                f"{parameter.name!r} is one parameter in torch, and here in several groups: "
                f"{', '.join(f'{paths[leaf]} in {members[leaf]}' for leaf in parameter.leaves)}"
            )
    which = lifted.groups[group - 1].which if group else None
    if isinstance(which, tuple):
        inside.sort(key=lambda parameter: which.index(paths[parameter.leaves[0]]))
    return inside, isinstance(which, tuple)

"""torch's state of L-BFGS, which it keeps under its first parameter: vectors over all parameters, and lists of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_port.closure.flat import flatten, leaves_of, unflatten, wide_enough
from jaxopt_port.closure.lbfgs import LBFGSState
from jaxopt_port.optimizer import OptState
from jaxopt_port.scalars import float64
from jaxopt_port.torch_interop.files.as_array import as_array
from jaxopt_port.torch_interop.layouts.layout import torch_array
from jaxopt_port.torch_interop.states.parameter_order import Parameter
from jaxopt_port.torch_interop.states.parameter_state import check_numbers

COUNTERS = ("func_evals", "n_iter")
VECTORS = ("d", "prev_flat_grad")
NUMBERS = ("t", "H_diag", "prev_loss")
HISTORY = ("old_dirs", "old_stps", "ro")


def load(state: OptState, state_dict: Mapping[str, Any], known: Sequence[Parameter], params: Any) -> OptState:
    """A first state with torch's put in.

    Raises:
      ValueError: something that L-BFGS does not keep, a vector of another length, a longer history.
    """
    ids = state_dict["param_groups"][0]["params"]
    found = state_dict["state"].get(ids[0]) if ids else None
    if not found:
        return state
    unknown = [key for key in found if key not in (*COUNTERS, *VECTORS, *NUMBERS, *HISTORY, "al")]
    if unknown:
        raise ValueError(f"the state has {', '.join(unknown)}: it is not one of lbfgs")
    slots: LBFGSState = state.slots
    stored, rows = len(found.get("ro") or ()), slots.ro.shape[0]
    if stored > rows:
        raise ValueError(f"the state has a history of {stored}, history_size is {rows}: the file is damaged")

    leaves = jax.tree.leaves(params)
    covered = {leaf for parameter in known for leaf in parameter.leaves}
    if len(covered) < len(leaves):
        raise ValueError(
            f"torch's L-BFGS has {len(covered)} of the {len(leaves)} arrays in params, in vectors over all of its: "
            "pass what it steps, without batch statistics and the like"
        )

    for key in (*COUNTERS, *VECTORS, *NUMBERS, *HISTORY):
        value = found.get(key)
        for one in value if key in HISTORY and value else [] if value is None else [value]:
            check_numbers(key, as_array(one), "the state of lbfgs")

    def vector(x: Any) -> np.ndarray:
        return _to_flax(as_array(x), known, params)

    new: dict[str, Any] = {key: vector(found[key]) for key in VECTORS if found.get(key) is not None}
    new |= {key: as_array(found[key]) for key in NUMBERS if found.get(key) is not None}
    if stored:
        for key in HISTORY:
            old = np.zeros(getattr(slots, key).shape, slots.ro.dtype)
            old[:stored] = [as_array(x) if key == "ro" else vector(x) for x in found[key]]
            new[key] = old
    with float64():
        arrays = {key: jnp.asarray(np.array(x, slots.prev_flat_grad.dtype)) for key, x in new.items()}
        counts = {key: jnp.array(int(found.get(key, 0)), jnp.int32) for key in COUNTERS}
        if "d" in arrays:  # a tree like the parameters
            arrays["d"] = jax.tree.structure(params).unflatten(unflatten(arrays["d"], leaves_of(params)))
        slots = slots._replace(**arrays, stored=jnp.array(stored, jnp.int32))
    return OptState((counts,), slots, state.param_groups)


def save(state: OptState, known: Sequence[Parameter], params: Any) -> dict[int, dict[str, Any]]:
    """torch's `state_dict()["state"]`."""
    counts = {key: int(state.steps[0][key]) for key in COUNTERS}
    if not counts["func_evals"]:
        return {}
    if not counts["n_iter"]:
        return {0: counts}
    with wide_enough(params):
        s: LBFGSState = state.slots._replace(d=flatten(jax.tree.leaves(state.slots.d), leaves_of(params)))
        s = jax.tree.map(np.asarray, s)
    rows = [(int(s.oldest) + i) % len(s.ro) for i in range(int(s.stored))]

    def vector(x: Any) -> np.ndarray:
        return _to_torch(np.asarray(x), known, params)

    return {
        0: {
            **counts,
            "d": vector(s.d),
            "t": float(s.t),
            "old_dirs": [vector(s.old_dirs[row]) for row in rows],
            "old_stps": [vector(s.old_stps[row]) for row in rows],
            "ro": [np.array(s.ro[row]) for row in rows],
            "H_diag": np.array(s.H_diag),
            "prev_flat_grad": vector(s.prev_flat_grad),
            "prev_loss": float(s.prev_loss),
        }
    }


def _to_flax(x: np.ndarray, known: Sequence[Parameter], params: Any) -> np.ndarray:
    """A vector over torch's parameters in order, as one over the leaves."""
    leaves = leaves_of(params)
    width = [2 if jnp.iscomplexobj(leaf) else 1 for leaf in leaves]  # complex numbers are pairs
    sizes = [sum(leaves[leaf].size * width[leaf] for leaf in parameter.leaves) for parameter in known]
    if x.shape != (sum(sizes),):
        raise ValueError(
            f"a vector of the state is {list(x.shape)}, the parameters have {sum(sizes)} numbers: params or the "
            "mapping is not what the state dict was made with"
        )
    parts: dict[int, np.ndarray] = {}
    for parameter, array in zip(known, np.split(x, np.cumsum(sizes)[:-1]), strict=True):
        pieces = np.split(array, len(parameter.leaves))
        for leaf, entry, piece in zip(parameter.leaves, parameter.entries, pieces, strict=True):
            columns = piece.reshape(-1, width[leaf]).T
            moved = [entry.layout.to_flax(column.reshape(entry.layout.torch)).reshape(-1) for column in columns]
            parts[leaf] = np.stack(moved, -1).reshape(-1)
    return np.concatenate([parts[leaf] for leaf in range(len(leaves))])


def _to_torch(x: np.ndarray, known: Sequence[Parameter], params: Any) -> np.ndarray:
    """A vector over the leaves, as one over torch's parameters in order."""
    leaves = leaves_of(params)
    width = [2 if jnp.iscomplexobj(leaf) else 1 for leaf in leaves]
    ends = np.cumsum([leaf.size * w for leaf, w in zip(leaves, width, strict=True)])
    pieces = np.split(x, ends[:-1])
    parts = []
    for parameter in known:
        columns = [pieces[leaf].reshape(-1, width[leaf]).T for leaf in parameter.leaves]
        moved = [
            torch_array(
                parameter.name,
                parameter.entries,
                [
                    column[i].reshape(entry.layout.flax)
                    for column, entry in zip(columns, parameter.entries, strict=True)
                ],
            )
            for i in range(len(columns[0]))
        ]
        parts.append(np.stack([array.reshape(-1) for array in moved], -1).reshape(-1))
    return np.concatenate(parts)

"""torch's state dicts of GradScaler and AveragedModel, both ways."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxopt_port.gradients.grad_scaler import GradScaler, GradScalerState
from jaxopt_port.swa_utils import AveragedState
from jaxopt_port.torch_interop.layouts.layout import Mapping as LayoutMapping
from jaxopt_port.torch_interop.layouts.layout import to_flax, to_torch
from jaxopt_port.torch_interop.layouts.module_pairs import same_names

Tree = Any
SCALER = ("scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker")
MODULE = "module."  # torch's prefix of the names in an AveragedModel


def load_grad_scaler(state_dict: Mapping[str, Any]) -> tuple[GradScaler, GradScalerState]:
    """`scaler.load_state_dict(state_dict)`: a scaler with torch's options, and its state.

    Args:
      state_dict: of torch.amp.GradScaler.

    Returns:
      `(scaler, state)`.

    Raises:
      RuntimeError: it is empty, in torch's words.
      ValueError: it lacks something, and is not a GradScaler's.

    Example:
      >>> theirs = {"scale": 1024.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 100}
      >>> scaler, state = load_grad_scaler({**theirs, "_growth_tracker": 7})
      >>> scaler.growth_interval, float(state.scale), int(state.growth_tracker)
      (100, 1024.0, 7)

    Source: torch/amp/grad_scaler.py.
    """
    if not state_dict:
        raise RuntimeError(
            "The source state dict is empty, possibly because it was saved from a disabled instance of GradScaler. "
            "Such a one has no state to load: go on with GradScaler(enabled=False) and its init()"
        )
    missing = [key for key in SCALER if key not in state_dict]
    if missing:
        raise ValueError(
            f"the state dict has no {', '.join(missing)}: it is not of a GradScaler. Pass scaler.state_dict(), such as "
            f"checkpoint['scaler']. It has {', '.join(map(str, state_dict))}"
        )
    scaler = GradScaler(
        init_scale=float(state_dict["scale"]),
        growth_factor=float(state_dict["growth_factor"]),
        backoff_factor=float(state_dict["backoff_factor"]),
        growth_interval=int(state_dict["growth_interval"]),
    )
    return scaler, scaler.init()._replace(growth_tracker=jnp.asarray(int(state_dict["_growth_tracker"]), jnp.int32))


def grad_scaler_state_dict(scaler: GradScaler, state: GradScalerState) -> dict[str, float | int]:
    """`scaler.state_dict()`; empty where the scaler is not enabled.

    Args:
      scaler: the scaler.
      state: its state.

    Returns:
      torch's dict of numbers.

    Example:
      >>> scaler = GradScaler(init_scale=8.0)
      >>> grad_scaler_state_dict(scaler, scaler.init())["scale"]
      8.0

    Source: torch/amp/grad_scaler.py.
    """
    if not scaler.enabled:
        return {}
    return {
        "scale": float(state.scale),
        "growth_factor": scaler.growth_factor,
        "backoff_factor": scaler.backoff_factor,
        "growth_interval": scaler.growth_interval,
        "_growth_tracker": int(state.growth_tracker),
    }


def load_averaged_model(
    state_dict: Mapping[str, Any], params: Tree, mapping: LayoutMapping, buffers: Tree = None
) -> AveragedState:
    """`swa_model.load_state_dict(state_dict)`: the state of an `averaged_model`.

    Args:
      state_dict: of torch.optim.swa_utils.AveragedModel.
      params: the parameters, for their tree and dtypes.
      mapping: from `layout.infer`, of the model that is averaged: with or without the prefix `module.`, and those of
        DataParallel and torch.compile.
      buffers: the same of what else the model holds, as Flax's `batch_stats`.

    Returns:
      The state.

    Raises:
      ValueError: an array that is missing or has another shape; no `n_averaged`.

    Example:
      >>> import numpy as np
      >>> from jaxopt_port.torch_interop import layout
      >>> params = {"weight": jnp.zeros(1)}
      >>> theirs = {"n_averaged": 3, "module.weight": np.array([5.0])}
      >>> averaged = load_averaged_model(theirs, params, layout.infer({"weight": (1,)}, params))
      >>> int(averaged.n_averaged), averaged.params["weight"]
      (3, Array([5.], dtype=float32))

    Source: torch/optim/swa_utils.py.
    """
    if "n_averaged" not in state_dict:
        raise ValueError(f"no n_averaged: the state dict is not of an AveragedModel. It has {', '.join(state_dict)}")
    full = same_names([name for name in state_dict if name.startswith(MODULE)], mapping.by_name())
    module = {mine: state_dict[name] for name, mine in full.items()}
    n_averaged = jnp.asarray(int(state_dict["n_averaged"]), jnp.int32)
    return AveragedState(
        n_averaged, to_flax(mapping, module, params), None if buffers is None else to_flax(mapping, module, buffers)
    )


def averaged_model_state_dict(
    averaged: AveragedState, mapping: LayoutMapping, tied: Mapping[str, str] | None = None
) -> dict[str, np.ndarray]:
    """`swa_model.state_dict()`, without `num_batches_tracked`, which torch accepts.

    Args:
      averaged: the state of an `averaged_model`.
      mapping: from `layout.infer`, of the model that is averaged, with the names that it has in torch.
      tied: torch's names that are tied to others, as `layout.to_torch` takes them.

    Returns:
      Arrays by torch's names.

    Raises:
      ValueError: what `layout.to_torch` raises.

    Example:
      >>> from jaxopt_port.swa_utils import averaged_model
      >>> from jaxopt_port.torch_interop import layout
      >>> params = {"weight": jnp.ones(1)}
      >>> averaged_model_state_dict(averaged_model().init(params), layout.infer({"weight": (1,)}, params))
      {'n_averaged': array(0), 'module.weight': array([1.], dtype=float32)}

    Source: torch/optim/swa_utils.py.
    """
    module = to_torch(mapping, averaged.params, tied)
    if averaged.buffers is not None:
        module |= to_torch(mapping, averaged.buffers)
    names = [*(name for name in mapping.by_name() if name in module), *(tied or ())]
    return {"n_averaged": np.array(averaged.n_averaged, np.int64), **{MODULE + name: module[name] for name in names}}

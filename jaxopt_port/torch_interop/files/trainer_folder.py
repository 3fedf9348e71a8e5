"""The folder in which transformers' Trainer, or accelerate's `save_state`, keeps a run."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxopt_port.torch_interop.files.pt_file import load
from jaxopt_port.torch_interop.files.pt_types import PtFileError
from jaxopt_port.torch_interop.files.safetensors_file import load_safetensors
from jaxopt_port.torch_interop.files.source import check_folder

_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "adapter_model.safetensors",
)


class TrainerCheckpoint(NamedTuple):
    """What a folder has. What it does not have is None."""

    model: dict[str, np.ndarray]
    """Weights by name. A safetensors file has sorted the names."""
    optimizer: dict[str, Any] | None
    """torch's state dict, for `load_optimizer`."""
    scheduler: dict[str, Any] | None
    """torch's state dict, for `load_scheduler`."""
    scaler: dict[str, Any] | None
    """torch's state dict, for `load_grad_scaler`."""
    step: int | None
    """How many steps the optimizer has taken: the Trainer's `global_step`."""
    trainer_state: dict[str, Any] | None
    """`trainer_state.json`: epoch, log history, best metric."""


def load_trainer(folder: str | Path) -> TrainerCheckpoint:
    """A checkpoint folder of transformers' Trainer (`checkpoint-500`) or of accelerate's `save_state`, whole.

    Args:
      folder: its path.

    Returns:
      Weights, the state dicts of the optimizer, the scheduler and the gradient scaler, the step, and the Trainer's own
      state. The optimizer's parameters are numbered group by group, those with weight decay first.

    Raises:
      PtFileError: there are no weights, or they are spread over processes (FSDP, DeepSpeed); the message says how to
        make them whole. Or a file is damaged.
      OSError: a file cannot be opened.

    Example:
      >>> import tempfile, numpy as np
      >>> from jaxopt_port.torch_interop import save, save_safetensors
      >>> folder = tempfile.mkdtemp()
      >>> save_safetensors({"weight": np.ones(2, np.float32)}, f"{folder}/model.safetensors")
      >>> save({"state": {}, "param_groups": []}, f"{folder}/optimizer.pt")
      >>> load_trainer(folder).optimizer
      {'state': {}, 'param_groups': []}

    Source: transformers/trainer.py, accelerate/checkpointing.py.
    """
    folder = Path(folder)
    check_folder(folder)
    state_file = folder / "trainer_state.json"
    state = json.loads(state_file.read_text()) if state_file.exists() else None
    return TrainerCheckpoint(
        _weights(folder),
        _one(folder, "optimizer"),
        _one(folder, "scheduler"),
        _one(folder, "scaler"),
        None if state is None else state["global_step"],
        state,
    )


def _weights(folder: Path) -> dict[str, np.ndarray]:
    found = [name for name in _WEIGHTS if (folder / name).exists()]
    if len(found) != 1:
        raise PtFileError(f"{folder}: has {' and '.join(found) or 'none'} of {', '.join(_WEIGHTS)}")
    path = folder / found[0]
    if "safetensors" in path.name:
        return load_safetensors(path)
    if path.suffix == ".bin":
        return load(path)
    names = dict.fromkeys(json.loads(path.read_text())["weight_map"].values())
    if outside := [name for name in names if Path(name).name != name]:
        raise PtFileError(f"{path}: {outside[0]!r} is not a file beside the index")
    return {key: x for name in names for key, x in load(folder / name).items()}


def _one(folder: Path, name: str) -> dict[str, Any] | None:
    """The Trainer writes `optimizer.pt`, accelerate `optimizer.bin`, and a number for each after the first."""
    found = sorted(path for path in folder.glob(f"{name}*") if path.suffix in (".pt", ".bin"))
    if len(found) > 1:
        raise PtFileError(f"{folder}: has {', '.join(path.name for path in found)}: load(path) each")
    return load(found[0]) if found else None

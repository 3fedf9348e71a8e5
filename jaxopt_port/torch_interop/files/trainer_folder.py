"""The folder in which transformers' Trainer, or accelerate's `save_state`, keeps a run."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxopt_port.torch_interop.files.pt_file import load
from jaxopt_port.torch_interop.files.pt_types import PtFileError
from jaxopt_port.torch_interop.files.safetensors_file import load_parts, load_safetensors
from jaxopt_port.torch_interop.files.source import check_folder, read_json

_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "pytorch_model_fsdp.bin",
    "adapter_model.safetensors",
    "adapter_model.bin",
)


class TrainerCheckpoint(NamedTuple):
    """What a folder has. What it does not have is None."""

    model: dict[str, np.ndarray]
    """Weights by name. A safetensors file has sorted the names: say torch's order where it counts, `param_names`."""
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
    state = read_json(state_file) if state_file.exists() else None
    if state is not None and (not isinstance(state, dict) or type(state.get("global_step")) is not int):
        raise PtFileError(f"{state_file}: it has no global_step, a number, as a Trainer's state has")
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
    more = sorted(path.name for path in folder.glob("model_[0-9]*.safetensors"))  # accelerate's, of several models
    if len(found) != 1 or more:
        raise PtFileError(
            f"{folder}: has {' and '.join((*found, *more)) or 'none'} of {', '.join(_WEIGHTS)}"
            + (": load(path) or load_safetensors(path) reads each" if found else "")
        )
    path = folder / found[0]
    if path.suffix == ".json" and path.name.startswith("pytorch_model"):
        return load_parts(path, load)
    return load(path) if path.suffix == ".bin" else load_safetensors(path)


def _one(folder: Path, name: str) -> dict[str, Any] | None:
    """The Trainer writes `optimizer.pt`, accelerate `optimizer.bin`, and a number for each after the first."""
    found = sorted(path for path in folder.glob(f"{name}*") if path.suffix in (".pt", ".bin"))
    if len(found) > 1:
        raise PtFileError(f"{folder}: has {', '.join(path.name for path in found)}: load(path) each")
    return load(found[0]) if found else None

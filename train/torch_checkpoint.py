"""Runs that go on from a PyTorch checkpoint, and that end in one: `--resume-torch` and `--export-torch`."""

import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_port import Optimizer, OptState, optimizers, torch_interop
from jaxopt_port.hyper import find_state, replace_state
from jaxopt_port.torch_interop import layout
from train.config import Config
from train.errors import UsageError
from train.model import Params, init_params
from train.start import initial_params
from train.step import State, init
from train.torch_layout import mapping, mapping_of
from train.training import Training, optimizer_options

# What scripts call the entries of a checkpoint.
MODEL = ("model", "model_state_dict", "state_dict")
OPTIMIZER = ("optimizer", "optimizer_state_dict", "optimizer_states")
SCHEDULER = ("scheduler", "scheduler_state_dict", "lr_scheduler", "lr_schedulers")


class Checkpoint:
    """The state of a run, out of a PyTorch checkpoint and into one.

    Args:
      config: names the files.
      training: the run's.

    Raises:
      UsageError: a file that is not a checkpoint, of another network, or of an optimizer with other options; one that
        cannot be written.
    """

    def __init__(self, config: Config, training: Training):
        self.config, self.training = config, training
        self.optimizer = optimizers[config.optimizer](**optimizer_options(config))
        self.mapping = mapping()
        self.loaded: State | None = None
        if config.resume_torch is not None:
            try:
                self.loaded = self._load(torch_interop.load(config.resume_torch))
            except (OSError, ValueError, torch_interop.PtFileError) as error:
                raise UsageError(f"--resume-torch {config.resume_torch}: {error}") from error
        if config.export_torch is not None:
            self._check_export()

    @property
    def first(self) -> State:
        """What the run starts from."""
        return init(self.training, initial_params(self.config)) if self.loaded is None else self.loaded

    def save(self, state: State) -> None:
        """Write `--export-torch`, if it is asked for: a dict of state dicts, for `torch.load`.

        Raises:
          UsageError: the file cannot be written.
        """
        if self.config.export_torch is None:
            return
        opt_state = find_state(state.opt_state)
        states = {
            "model": layout.to_torch(self.mapping, state.params),
            "optimizer": torch_interop.optimizer_state_dict(
                self.optimizer, opt_state, state.params, self.mapping, state.sched
            ),
        }
        if self.training.scheduler is not None:
            states["scheduler"] = torch_interop.scheduler_state_dict(
                self.training.scheduler, state.sched, self.optimizer, state.params
            )
        try:
            torch_interop.save(states, self.config.export_torch)
        except OSError as error:
            raise UsageError(f"--export-torch {self.config.export_torch}: {error}") from error

    def _load(self, checkpoint: Any) -> State:
        model, theirs = _entry(checkpoint, MODEL), _entry(checkpoint, OPTIMIZER)
        self.mapping = mapping_of(model)
        params = layout.to_flax(self.mapping, model, jax.eval_shape(init_params, jax.random.key(0)))
        factory = optimizers[self.config.optimizer]
        optimizer, opt_state = torch_interop.load_optimizer(factory, theirs, params, self.mapping)
        self._check_options(optimizer, opt_state, params)
        state = init(self.training, params)
        state = state._replace(opt_state=replace_state(state.opt_state, opt_state))
        scheduler = self.training.scheduler
        if scheduler is None:
            return state
        if any(name in checkpoint for name in SCHEDULER):
            written = _entry(checkpoint, SCHEDULER)
            return state._replace(sched=torch_interop.load_scheduler(scheduler, written, opt_state, theirs))
        sched, opt_state = scheduler.init(state.opt_state)
        return state._replace(sched=sched, opt_state=opt_state)

    def _check_export(self) -> None:
        """Find out before the run whether the file can be written, and whether torch has such a state."""
        out = self.config.export_torch
        assert out is not None
        if not os.access(out if out.exists() else out.absolute().parent, os.W_OK):
            raise UsageError(f"--export-torch {out}: cannot be written; give another")
        params = init_params(jax.random.key(0))
        try:
            state = self.optimizer.init(params)
            stepped = state._replace(steps=jax.tree.map(jnp.ones_like, state.steps))
            torch_interop.optimizer_state_dict(self.optimizer, stepped, params, mapping())
        except ValueError as error:
            raise UsageError(f"--export-torch {out}: {error}") from error

    def _check_options(self, optimizer: Optimizer, opt_state: OptState, params: Params) -> None:
        """The flags decide what is not live: it has to be what the checkpoint has."""
        first = self.optimizer.init(params)
        ours, theirs = (
            torch_interop.optimizer_state_dict(o, s, params)["param_groups"]
            for o, s in ((self.optimizer, first), (optimizer, opt_state))
        )
        if len(theirs) != 1:
            raise ValueError(f"its optimizer has {len(theirs)} parameter groups, this program's has one")
        live = first.param_groups[0].keys() & opt_state.param_groups[0].keys()
        for key, value in theirs[0].items():
            if key not in live and value != ours[0][key]:
                raise ValueError(
                    f"its optimizer has {key}={value}, this run's {ours[0][key]}: write --option {key}={value}"
                )


def _entry(checkpoint: Any, names: tuple[str, ...]) -> Mapping[str, Any]:
    found = next((name for name in names if isinstance(checkpoint, Mapping) and name in checkpoint), None)
    if found is None:
        raise ValueError(f"it is not a dict with {' or '.join(map(repr, names))}")
    entry = checkpoint[found]
    if isinstance(entry, list) and len(entry) == 1:  # Lightning's, which can have several optimizers
        (entry,) = entry
    if not isinstance(entry, Mapping):
        raise ValueError(f"its {found!r} is a {type(entry).__name__}, not a state dict: save {found}.state_dict()")
    return entry

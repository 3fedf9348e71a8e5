"""Runs that go on from a PyTorch checkpoint, and that end in one: `--resume-torch` and `--export-torch`."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_port import Optimizer, OptState, optimizers, torch_interop
from jaxopt_port.hyper import find_state, replace_state
from jaxopt_port.torch_interop import layout
from train.compare.layouts import SHAPES
from train.config import Config
from train.epoch import Epoch
from train.errors import UsageError
from train.loop import Advance, Chunk, end_epoch
from train.model import Params, init_params
from train.step import Metrics, Rates, State, init
from train.training import Training, optimizer_options

# What scripts call the entries of a checkpoint.
MODEL = ("model", "model_state_dict", "state_dict")
OPTIMIZER = ("optimizer", "optimizer_state_dict")
SCHEDULER = ("scheduler", "scheduler_state_dict", "lr_scheduler")


class Checkpoint:
    """The state of a run, out of a PyTorch checkpoint and into one.

    `around` goes into `fit`: it puts what was loaded into the first state, and keeps the last.

    Args:
      config: names the files.
      training: the run's.

    Raises:
      UsageError: a file that is not a checkpoint, of another network, or of an optimizer with other options.
    """

    def __init__(self, config: Config, training: Training):
        self.config, self.training = config, training
        self.optimizer = optimizers[config.optimizer](**optimizer_options(config))
        self.names: Mapping[str, Any] = SHAPES  # torch's, with their shapes
        self.loaded: State | None = None
        self.last: State | None = None
        if config.resume_torch is not None:
            try:
                self.loaded = self._load(torch_interop.load(config.resume_torch))
            except (OSError, ValueError, torch_interop.PtFileError) as error:
                raise UsageError(f"--resume-torch {config.resume_torch}: {error}") from error
        if config.export_torch is not None:
            self._check_export()

    def params(self, first: Params) -> Params:
        """The parameters to start from."""
        return first if self.loaded is None else self.loaded.params

    def around(self, advance: Advance) -> Advance:
        """Starts from what was loaded, and remembers where the run is."""

        def remembered(state: State, chunk: Chunk) -> tuple[State, Metrics, Rates]:
            if self.last is None and self.loaded is not None:
                state = self.loaded
            self.last, metrics, rates = advance(state, chunk)
            return self.last, metrics, rates

        return remembered

    def save(self, epoch: Epoch) -> None:
        """Write `--export-torch` after the last epoch, if it is asked for: a dict of state dicts, for `torch.load`."""
        state = self.last
        if state is None or self.config.export_torch is None:
            return
        if epoch.finite and epoch.step != self.config.steps:
            state = end_epoch(self.training, state, epoch)
        sched, opt_state, mapping = state.sched, find_state(state.opt_state), _infer(self.names)
        states = {
            "model": layout.to_torch(mapping, state.params),
            "optimizer": torch_interop.optimizer_state_dict(self.optimizer, opt_state, state.params, mapping, sched),
        }
        if self.training.scheduler is not None:
            states["scheduler"] = torch_interop.scheduler_state_dict(
                self.training.scheduler, sched, self.optimizer, state.params
            )
        torch_interop.save(states, self.config.export_torch)

    def _load(self, checkpoint: Any) -> State:
        model, theirs = _entry(checkpoint, MODEL), _entry(checkpoint, OPTIMIZER)
        mapping = _infer(model)
        params = layout.to_flax(mapping, model, jax.eval_shape(init_params, jax.random.key(0)))
        factory = optimizers[self.config.optimizer]
        optimizer, opt_state = torch_interop.load_optimizer(factory, theirs, params, mapping)
        self._check_options(optimizer, opt_state, params)
        self.names = model
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
        """Find out before the run whether torch has a state for the optimizer's."""
        params = init_params(jax.random.key(0))
        try:
            state = self.optimizer.init(params)
            stepped = state._replace(steps=jax.tree.map(jnp.ones_like, state.steps))
            torch_interop.optimizer_state_dict(self.optimizer, stepped, params, _infer(SHAPES))
        except ValueError as error:
            raise UsageError(f"--export-torch {self.config.export_torch}: {error}") from error

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


def _infer(model: Mapping[str, Any]) -> layout.Mapping:
    """The tutorial's network, whatever its layers are called. It puts channels first before it flattens, as torch."""
    shapes = {name: tuple(getattr(x, "shape", x)) for name, x in model.items()}
    flattened = [name for name, shape in shapes.items() if shape == SHAPES["7.weight"]]
    params = jax.eval_shape(init_params, jax.random.key(0))
    return layout.infer(shapes, params, layouts=dict.fromkeys(flattened, layout.linear))


def _entry(checkpoint: Any, names: tuple[str, ...]) -> Any:
    found = next((name for name in names if isinstance(checkpoint, Mapping) and name in checkpoint), None)
    if found is None:
        raise ValueError(f"it is not a dict with {' or '.join(map(repr, names))}")
    return checkpoint[found]

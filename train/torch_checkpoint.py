"""Runs that go on from a PyTorch checkpoint, and that write one: `--resume-torch` and `--export-torch`."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_port import EveryKState, Optimizer, OptState, get_hyper, set_hyper, torch_interop
from jaxopt_port.torch_interop import layout
from train.config import Config, flag
from train.devices import on_host
from train.errors import UsageError
from train.loop import Moment, steps_per_epoch
from train.model import Params
from train.options import written
from train.recipes import RECIPES
from train.start import start
from train.step import State
from train.torch_layout import mapping, mapping_of, ours
from train.training import OPTIMIZERS, Training, make_optimizer, optimizer_options, states_of, with_states

# What scripts call the entries of a checkpoint.
MODEL = ("model", "model_state_dict", "state_dict")
OPTIMIZER = ("optimizer", "optimizer_state_dict", "optimizer_states")
SCHEDULER = ("scheduler", "scheduler_state_dict", "lr_scheduler", "lr_schedulers")
AVERAGE = ("averaged_model", "ema_model", "ema", "swa_model")
RUN = "train"  # an entry of our own: where the run was, and its settings

# Settings that have to be those of the run that wrote the file, if it says them, for the run to go on as if it had not
# stopped. Others are in the optimizer's and the scheduler's states, or name files.
SAME = (
    *("dataset", "split", "limit", "batch_size", "accumulate", "augment", "clip_grad_norm", "ema", "evaluate", "init"),
    *("optimizer", "precision", "scheduler", "scheduler_interval", "seed", "shuffle"),
)
NOT_NEGATIVE = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "acc_delta", "sum", "exp_inf", "step_size", "step")


def load(config: Config, training: Training, examples: int, classes: int) -> Moment:
    """Where a run from a PyTorch checkpoint starts.

    The file's learning rate and live options count, but for those that flags give.

    Raises:
      UsageError: a file that is not a checkpoint, of another network or run, or of an optimizer with other options.
    """
    try:
        checkpoint = torch_interop.load(config.resume_torch or "")
        run = checkpoint.get(RUN) if isinstance(checkpoint, Mapping) else None
        model, theirs = _entry(checkpoint, MODEL), _entry(checkpoint, OPTIMIZER)
        _check_arrays(model, theirs)
        names = mapping_of(model, classes)
        params = layout.to_flax(names, model, ours(classes))
        optimizer, opt_state = torch_interop.load_optimizer(OPTIMIZERS[config.optimizer], theirs, params, names)
        _check_static_options(config, optimizer, opt_state, params, names)
        opt_state = _with_flags(config, opt_state)
        has_schedule = training.scheduler is not None and any(name in checkpoint for name in SCHEDULER)
        if has_schedule and config.lr is not None:
            raise ValueError("its scheduler decides the learning rate; leave out --lr")
        state = _state(config, training, checkpoint, params, opt_state, theirs, names, classes)
        return _moment(config, state, run, examples)
    except (OSError, ValueError, TypeError, LookupError, torch_interop.PtFileError) as error:
        raise UsageError(f"--resume-torch {config.resume_torch}: {error}") from error


class TorchExport:
    """`--export-torch`, if it is asked for: a dict of state dicts, for `torch.load`.

    Raises:
      UsageError: torch has no such state.
    """

    def __init__(self, config: Config, training: Training, classes: int):
        self.config, self.training, self.mapping = config, training, mapping(classes)
        if config.export_torch is None:
            return
        if config.optimizer == "muon_adamw":
            raise UsageError(f"--export-torch {config.export_torch}: muon_adamw is two optimizers in torch")
        self.optimizer = make_optimizer(config)
        state = start(config, training._replace(scheduler=None, every_step=False), classes)
        (first,) = states_of(state.opt_state)
        stepped = first._replace(steps=jax.tree.map(jnp.ones_like, first.steps))
        try:
            torch_interop.optimizer_state_dict(self.optimizer, stepped, state.params, self.mapping)
        except ValueError as error:
            raise UsageError(f"--export-torch {config.export_torch}: {error}") from error

    def save(self, moment: Moment) -> None:
        """Write the file.

        Raises:
          OSError: it cannot be written.
        """
        if self.config.export_torch is None:
            return
        state: State = on_host(moment.state)
        (opt_state,) = states_of(state.opt_state)
        sched: Any = state.sched[0] if state.sched else None
        states: dict[str, Any] = {
            "model": layout.to_torch(self.mapping, state.params),
            "optimizer": torch_interop.optimizer_state_dict(
                self.optimizer, opt_state, state.params, self.mapping, sched
            ),
        }
        if self.training.scheduler is not None:
            states["scheduler"] = torch_interop.scheduler_state_dict(
                self.training.scheduler, sched, self.optimizer, state.params
            )
        if state.averaged is not None:
            states[AVERAGE[0]] = torch_interop.averaged_model_state_dict(state.averaged, self.mapping)
        pending = int(state.opt_state.calls) if isinstance(state.opt_state, EveryKState) else 0
        settings = {name: getattr(self.config, name) for name in SAME}
        states[RUN] = {"epoch": moment.number - 1, "step": moment.step, "pending": pending, **settings}
        torch_interop.save(states, self.config.export_torch)


def _with_flags(config: Config, opt_state: OptState) -> OptState:
    """The live options that flags give. What a recipe says of them has to be what the checkpoint has."""
    options, (hyper, *_) = optimizer_options(config), get_hyper(opt_state)
    recipe = RECIPES[config.recipe]()
    texts = config.option[len(recipe.option) :] if config.optimizer == recipe.optimizer else config.option
    flags = {text.partition("=")[0] for text in texts} | ({"lr"} if config.lr is not None else set())
    for name in options.keys() & hyper.keys() - flags:
        if options[name] != hyper[name]:
            raise ValueError(
                f"its optimizer has {name}={hyper[name]}, the {config.recipe} recipe {options[name]}: "
                f"write --option {name}={hyper[name]}, or the recipe's"
            )
    return set_hyper(opt_state, **{name: options[name] for name in sorted(flags & options.keys() & hyper.keys())})


def _state(
    config: Config,
    training: Training,
    checkpoint: Mapping[str, Any],
    params: Params,
    opt_state: OptState,
    theirs: Mapping[str, Any],
    names: layout.Mapping,
    classes: int,
) -> State:
    state = start(config, training._replace(scheduler=None), classes, params)
    state = state._replace(opt_state=with_states(state.opt_state, [opt_state]))
    if training.scheduler is not None:
        if any(name in checkpoint for name in SCHEDULER):
            written_ = _entry(checkpoint, SCHEDULER)
            sched = torch_interop.load_scheduler(training.scheduler, written_, opt_state, theirs)
            state = state._replace(sched=(sched,))
        else:
            sched, opt_state = training.start_schedule(state.opt_state)
            state = state._replace(sched=sched, opt_state=opt_state)
    if training.average is not None:
        if not any(name in checkpoint for name in AVERAGE):
            raise ValueError(f"it has no average of weights for --ema to go on with, an entry {' or '.join(AVERAGE)}")
        averaged = torch_interop.load_averaged_model(_entry(checkpoint, AVERAGE), params, names)
        state = state._replace(averaged=averaged)
    return state


def _moment(config: Config, state: State, run: Any, examples: int) -> Moment:
    """Where the file says that its run was, or else `--start-epoch`."""
    per_epoch = steps_per_epoch(config, examples)
    if run is None:
        number = config.start_epoch or 1
        return Moment(state, number, (number - 1) * per_epoch)
    for name in SAME:
        was, now = run[name], getattr(config, name)
        if was != now:
            raise ValueError(
                f"it is of a run with {flag(name, was)}, this one has {now}: write the same, or start another run from "
                f"a file without the entry {RUN!r}"
            )
    if run["pending"]:
        raise ValueError(
            f"its run was between two steps of the optimizer, and the gradients of {run['pending']} of "
            f"--accumulate {config.accumulate} batches are not in such a file: go on by --resume RUN"
        )
    if run["step"] != run["epoch"] * per_epoch:
        raise ValueError(
            "its run was in the middle of an epoch, of which such a file says nothing: go on by --resume RUN"
        )
    number = run["epoch"] + 1
    if config.start_epoch not in (None, number):
        raise ValueError(f"its run goes on with epoch {number}, not with --start-epoch {config.start_epoch}")
    if number > config.epochs:
        raise ValueError(f"its run has had {run['epoch']} epochs: give more, such as --epochs {number}")
    return Moment(state, number, run["step"])


def _check_arrays(model: Mapping[str, Any], optimizer: Mapping[str, Any]) -> None:
    """Weights and a state that some training can have left."""
    for name, array in model.items():
        if not np.issubdtype(np.asarray(array).dtype, np.floating):
            raise ValueError(f"its weight {name!r} is {np.asarray(array).dtype}, not floating point")
        if not np.isfinite(array).all():
            raise ValueError(f"its weight {name!r} is not finite")
    for parameter, slots in optimizer.get("state", {}).items():
        for name, value in slots.items() if isinstance(slots, Mapping) else ():
            where = f"its optimizer's {name} of parameter {parameter}"
            for array in value if isinstance(value, list | tuple) else [value]:
                array = np.asarray(0 if array is None else array)
                if not np.issubdtype(array.dtype, np.number):
                    raise ValueError(f"{where} is {array.dtype}, not numbers")
                if not np.isfinite(array).all():
                    raise ValueError(f"{where} is not finite")
                if name in NOT_NEGATIVE and (array < 0).any():
                    raise ValueError(f"{where} is negative: {array.min()}")


def _check_static_options(
    config: Config, optimizer: Optimizer, opt_state: OptState, params: Params, names: layout.Mapping
) -> None:
    """The flags decide what is not live: it has to be what the checkpoint has."""
    plain = make_optimizer(config)
    first = plain.init(params)
    mine, theirs = (
        torch_interop.optimizer_state_dict(o, s, params, names)["param_groups"]
        for o, s in ((plain, first), (optimizer, opt_state))
    )
    if len(theirs) != 1:
        raise ValueError(
            f"its optimizer has {len(theirs)} parameter groups, this program's has one: give a file of a run with one"
        )
    live = first.param_groups[0].keys() & opt_state.param_groups[0].keys()
    for key, value in theirs[0].items():
        if key not in live and value != mine[0][key]:
            raise ValueError(
                f"its optimizer has {key}={value}, this run's {mine[0][key]}: write --option {written({key: value})}"
            )


def _entry(checkpoint: Any, names: tuple[str, ...]) -> Mapping[str, Any]:
    found = next((name for name in names if isinstance(checkpoint, Mapping) and name in checkpoint), None)
    if found is None:
        raise ValueError(
            f"it is not a dict with {' or '.join(map(repr, names))}: save one, such as "
            f"{{{names[0]!r}: {names[0]}.state_dict(), ...}}"
        )
    entry = checkpoint[found]
    if isinstance(entry, list) and len(entry) == 1:  # Lightning's, which can have several optimizers
        (entry,) = entry
    if not isinstance(entry, Mapping):
        raise ValueError(f"its {found!r} is a {type(entry).__name__}, not a state dict: save {found}.state_dict()")
    return entry

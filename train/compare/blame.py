"""What parts the two runs at a step: both do it again from torch's own parameters, state and gradients."""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64

from jaxopt_port import optimizers, torch_interop
from jaxopt_port.hyper import find_state, replace_state
from jaxopt_port.scalars import float64
from train.compare import vectors
from train.compare.lockstep import (
    CLASSES,
    EPS,
    TORCH,
    YARDSTICKS,
    Environment,
    Lockstep,
    distance,
    make_task,
    torch_process,
)
from train.compare.messages import Choices, Kind, Redone, Vector
from train.config import Config
from train.data import Examples
from train.model import Network, Params
from train.step import State, batch_loss
from train.torch_layout import mapping

LossAndGrad = Callable[..., tuple[tuple[Any, Any], Params]]

TIMES = 3  # further off than so many times torch's distance from itself is not torch's rounding


class Stages(NamedTuple):
    """How far a step is from torch's, part by part, each from torch's own input to that part.

    Args:
      loss: the largest difference of a batch's loss, in eps of the loss.
      choices: max-pooling windows in which another value was the largest, so that another gets the gradient.
      gradient: that of each parameter's gradient, in eps of the gradient's largest value.
      backward: the same, from torch's gradient with the same choices.
      update: that of each parameter after a step with torch's gradient, in eps of its largest value.
      step: the same with the gradient of one's own.
    """

    loss: float
    choices: int
    gradient: Float64[np.ndarray, " parameters"]
    backward: Float64[np.ndarray, " parameters"]
    update: Float64[np.ndarray, " parameters"]
    step: Float64[np.ndarray, " parameters"]


class Blame(NamedTuple):
    """Which part of a step made the difference.

    Args:
      step: the first, from 1, after which a parameter is further off than the bound.
      parameter: the first such, in torch's order.
      apart: how far it is, in eps of its largest value.
      carried: how far it was before the step.
      windows: of the max pooling in the step.
      own_choices: those in which our run, from its own parameters, took another value than torch's run did.
      own_gradient: how far the parameter's gradient in our run is from torch's, in eps of its largest value.
      own_backward: the same, from torch's gradient with our run's choices.
      ours: our step's distance from torch's.
      others: that of torch's other forms.
      cause: forward, gradient or update.
      rounding: whether nothing in our step is further off than torch's other forms are, or the bound.
    """

    step: int
    parameter: int
    apart: float
    carried: float
    windows: int
    own_choices: int
    own_gradient: float
    own_backward: float
    ours: Stages
    others: dict[str, Stages]
    cause: Literal["forward", "gradient", "update"]
    rounding: bool

    @property
    def torch(self) -> Stages:
        """The largest distances of torch from itself."""
        return Stages(*(np.max(values, axis=0) for values in zip(*self.others.values(), strict=True)))


def blame(lockstep: Lockstep, examples: Examples) -> Blame | None:
    """What made the first difference beyond the bound; None where there is none.

    torch's run goes up to that step again and writes down its parameters, the optimizer's state and the gradients.
    From these our step, and that of torch's other forms, are done. Our hyper-parameters stay ours; so does our state
    where it has another form than torch's.
    """
    parting, config = lockstep.parting, lockstep.config
    if parting is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "step.pt"
        torch = _torch_step("part", config, TORCH, path=path, step=parting.step)
        dones = {name: _torch_step("redo", config, environment, path=path) for name, environment in YARDSTICKS.items()}
        batches = [Examples(examples.images[batch], examples.labels[batch]) for batch in parting.batches]
        written = torch_interop.load(path)
        loss_and_grad = jax.jit(jax.value_and_grad(batch_loss, has_aux=True))
        mine = our_step(loss_and_grad, lockstep, parting.before, written, torch.grads, batches)

        def differing(choices: list[Choices]) -> tuple[int, Redone]:
            """How many choices are not torch's, and torch's step with these."""
            count = sum(int((a != b).sum()) for a, b in zip(choices, torch.choices, strict=True))
            return count, torch if not count else _torch_step("redo", config, TORCH, path=path, choices=choices)

        def stages(done: Redone) -> Stages:
            choices, same = differing(done.choices)
            return Stages(
                loss=float((np.abs(done.losses - torch.losses) / (EPS * np.abs(torch.losses))).max()),
                choices=choices,
                gradient=distance(done.grads, torch.grads),
                backward=distance(done.grads, same.grads),
                update=distance(done.update, torch.update),
                step=distance(done.step, torch.step),
            )

        ours, others = stages(mine), {name: stages(done) for name, done in dones.items()}
        own = _on_device(parting.before).params
        own_gradient = vectors.vector(gradient(loss_and_grad, own, batches)[1])
        own_choices, same = differing(all_choices(own, batches))
    parameter, distances = parting.parameter, lockstep.distances[:, 0]
    first = parting.step - len(batches)
    found = Blame(
        step=parting.step,
        parameter=parameter,
        apart=float(distances[parting.step - 1, parameter]),
        carried=float(distances[first - 1, parameter]) if first else 0.0,
        windows=sum(choice.size for choice in torch.choices),
        own_choices=own_choices,
        own_gradient=float(distance(own_gradient, torch.grads)[parameter]),
        own_backward=float(distance(own_gradient, same.grads)[parameter]),
        ours=ours,
        others=others,
        cause="gradient",
        rounding=True,
    )
    return judged(found, lockstep.bound)


def judged(blame: Blame, bound: float) -> Blame:
    """With the first part of the step that is further off than torch is from itself and than the bound. Where none is,
    it is rounding, and the part is that with the largest share in the step."""
    ours, torch, at = blame.ours, blame.torch, blame.parameter
    if not ours.loss <= max(bound, TIMES * torch.loss):
        return blame._replace(cause="forward", rounding=False)
    if not ours.backward[at] <= max(bound, TIMES * torch.backward[at]):
        return blame._replace(cause="gradient", rounding=False)
    if not ours.update[at] <= max(bound, TIMES * torch.update[at]):
        return blame._replace(cause="update", rounding=False)
    if blame.own_gradient > 2 * blame.own_backward:
        return blame._replace(cause="forward")
    return blame._replace(cause="update" if ours.update[at] > ours.step[at] / 2 else "gradient")


def our_step(
    loss_and_grad: LossAndGrad,
    lockstep: Lockstep,
    before: State,
    written: dict[str, Any],
    grads: Vector,
    batches: list[Examples],
) -> Redone:
    """Our step from torch's parameters and state, and with torch's gradients."""
    training = lockstep.training
    params = torch_interop.layout.to_flax(mapping(CLASSES), written["model"], before.params)
    factory = optimizers[lockstep.config.optimizer]
    loaded = torch_interop.load_optimizer(factory, written["optimizer"], params, mapping(CLASSES))[1]
    opt_state = _on_device(before).opt_state
    state = find_state(opt_state)
    if jax.tree.structure((state.steps, state.slots)) == jax.tree.structure((loaded.steps, loaded.slots)):
        opt_state = replace_state(opt_state, state._replace(steps=loaded.steps, slots=loaded.slots))
    losses, mine = gradient(loss_and_grad, params, batches)
    step = jax.jit(training.optimizer.step)

    def stepped(grad: Params) -> Params:
        if training.closures:  # which evaluate the gradient themselves
            return training.optimizer.step_closure(batch_loss, opt_state, params, *batches[0], has_aux=True)[1]
        new, state = step(grad, opt_state, params)
        for _ in batches[1:]:  # every_k: the gradients are there already
            new, state = step(jax.tree.map(jnp.zeros_like, grad), state, new)
        return new

    return Redone(
        losses=losses,
        choices=all_choices(params, batches),
        grads=vectors.vector(mine),
        step=vectors.vector(stepped(mine)),
        update=vectors.vector(stepped(vectors.params(grads, params))),
    )


def _on_device(state: State) -> State:
    with float64():
        return jax.tree.map(jnp.asarray, state)


def gradient(loss_and_grad: LossAndGrad, params: Params, batches: list[Examples]) -> tuple[np.ndarray, Params]:
    """The losses of the batches, and the sum of their gradients."""
    found = [loss_and_grad(params, *batch) for batch in batches]
    summed = jax.tree.map(lambda *parts: sum(parts[1:], parts[0]), *(grads for _, grads in found))
    return np.array([float(loss) for (loss, _), _ in found]), summed


def all_choices(params: Params, batches: list[Examples]) -> list[Choices]:
    """Which value of each max-pooling window is the largest: 0 to 3; by batch and layer, with channels first."""
    apply = jax.jit(partial(Network().apply, capture_intermediates=True, mutable=["intermediates"]))
    chosen = []
    for batch in batches:
        seen: Any = apply({"params": params}, batch.images)[1]
        for layer in ("Conv_0", "Conv_1", "Conv_2"):
            x = np.asarray(seen["intermediates"][layer]["__call__"][0]).transpose(0, 3, 1, 2)
            windows = x.reshape(*x.shape[:2], x.shape[2] // 2, 2, x.shape[3] // 2, 2).swapaxes(3, 4)
            chosen.append(windows.reshape(*windows.shape[:4], 4).argmax(-1).astype(np.uint8))
    return chosen


def _torch_step(kind: Kind, config: Config, environment: Environment, **more: Any) -> Redone:
    with torch_process(make_task(kind, config, environment, **more), environment) as process:
        return process.read(Redone)

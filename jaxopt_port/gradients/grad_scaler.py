"""Loss scaling for training in float16: torch.amp.GradScaler as pure functions."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxopt_port.dtypes import is_inexact, times, widened, with_room
from jaxopt_port.optimizer import Optimizer, described
from jaxopt_port.scalars import NUMBER, Scalar, float64, is_known

Tree = Any


class GradScalerState(NamedTuple):
    """The state of a `GradScaler`, a pytree.

    Args:
      scale: what the loss is multiplied by, 0-d float32.
      growth_tracker: steps in a row without an infinite or NaN gradient, 0-d int32.
    """

    scale: jax.Array
    growth_tracker: jax.Array


@dataclass(frozen=True)
class GradScaler:
    r"""Scales the loss so that small gradients do not vanish in float16: torch.amp.GradScaler.

    A step whose gradients are not all finite is left out and the scale multiplied by `backoff_factor`; after
    `growth_interval` steps in a row that are not, it is multiplied by `growth_factor`, unless that is infinite.

    All methods are pure and can be jitted. The parameters and gradients are those that the optimizer sees, float32 as
    a rule; only the loss is computed in float16. Frozen parameters have no gradient in torch; here theirs count, and
    one that is infinite leaves out the step, unless `drop_frozen` makes them None first.

    Args:
      init_scale: the first scale.
      growth_factor: more than 1.
      backoff_factor: less than 1.
      growth_interval: how many steps without an infinite or NaN gradient it takes to grow.
      enabled: with False every method lets everything through, and `step` always steps.

    Raises:
      TypeError: torch's `device`, which there is no use for here.
      ValueError: a factor out of range, in torch's words.

    Example:
      >>> import jax, jax.numpy as jnp, jaxopt_port as optim
      >>> params, optimizer, scaler = {"w": jnp.ones(2)}, optim.sgd(lr=0.25), optim.GradScaler()
      >>> state, scaling = optimizer.init(params), scaler.init()
      >>> loss_fn = lambda params: (params["w"] ** 2).sum()
      >>> grads = jax.grad(lambda params: scaler.scale(scaling, loss_fn(params)))(params)  # scale(loss).backward()
      >>> grads, found_inf = scaler.unscale(scaling, grads)                                 # scaler.unscale_(optimizer)
      >>> grads, norm = optim.clip_grad_norm(grads, 10.0)
      >>> params, state, found_inf = scaler.step(optimizer, scaling, grads, state, params, found_inf)
      >>> scaling = scaler.update(scaling, found_inf)                                       # scaler.update()
      >>> params["w"], bool(found_inf)
      (Array([0.5, 0.5], dtype=float32), False)

    Source: torch/amp/grad_scaler.py; Micikevicius et al., Mixed precision training, 2018.
    """

    init_scale: float = 65536.0
    growth_factor: float = 2.0
    backoff_factor: float = 0.5
    growth_interval: int = 2000
    enabled: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.init_scale, NUMBER):
            raise TypeError(
                f"init_scale must be a number, not {self.init_scale!r}: GradScaler takes no device, arrays know theirs"
            )
        if self.enabled and self.growth_factor <= 1.0:
            raise ValueError(f"The growth factor must be > 1.0, not {self.growth_factor}.")
        if self.enabled and self.backoff_factor >= 1.0:
            raise ValueError(f"The backoff factor must be < 1.0, not {self.backoff_factor}.")

    def init(self) -> GradScalerState:
        """The first state.

        Returns:
          A `GradScalerState`.
        """
        return GradScalerState(jnp.asarray(self.init_scale, jnp.float32), jnp.zeros((), jnp.int32))

    def scale(self, state: GradScalerState, outputs: Tree) -> Tree:
        """`scaler.scale(loss)`: the loss, or every array of a tree, times the scale.

        Args:
          state: what `init` or the last `update` returned.
          outputs: the loss; a 0-d one of 16 bits becomes float32, in which the scale is.

        Returns:
          The same tree, scaled.
        """
        _check_state(state)
        if not self.enabled:
            return outputs

        def scaled(x: jax.Array) -> jax.Array:
            return times(x if x.ndim else x.astype(widened(x.dtype)), state.scale)

        with float64():
            return jax.tree.map(lambda x: scaled(jnp.asarray(x)), outputs)

    def get_scale(self, state: GradScalerState) -> float | jax.Array:
        """`scaler.get_scale()`: what the loss is multiplied by, for a log.

        Args:
          state: what `init` or the last `update` returned.

        Returns:
          The scale as a Python float, which waits for it, in a trace as a 0-d float32; 1.0 if the scaler is disabled.

        Example:
          >>> scaler = GradScaler(init_scale=8.0)
          >>> scaler.get_scale(scaler.init())
          8.0
        """
        _check_state(state)
        if not self.enabled:
            return 1.0
        return float(state.scale) if is_known(state.scale) else state.scale

    def unscale(self, state: GradScalerState, grads: Tree) -> tuple[Tree, jax.Array]:
        """`scaler.unscale_(optimizer)`: the gradients times 1 / scale, for what comes before the step, as clipping.

        Args:
          state: what `init` or the last `update` returned.
          grads: the gradients of the scaled loss; None stays None.

        Returns:
          `(grads, found_inf)`; `found_inf`, 0-d bool, says whether one of them was infinite or NaN.

        Raises:
          ValueError: float16 gradients, in torch's words: keep the parameters in float32.
        """
        _check_state(state)
        if not self.enabled:
            return grads, jnp.zeros((), bool)
        leaves = [g for g in jax.tree.leaves(grads) if is_inexact(g)]
        if any(g.dtype == jnp.float16 for g in leaves):
            raise ValueError("Attempting to unscale FP16 gradients. Keep the parameters in float32, cast in the loss.")
        with float64():
            scale = state.scale
            inverse = (1 / with_room(scale, scale).astype(jnp.float64)).astype(jnp.float32)
            found_inf = jnp.any(jnp.array([False, *(~jnp.isfinite(g).all() for g in leaves)]))
            return jax.tree.map(lambda g: times(with_room(g, scale), inverse) if is_inexact(g) else g, grads), found_inf

    def step(
        self,
        optimizer: Optimizer,
        state: GradScalerState,
        grads: Tree,
        opt_state: Any,
        params: Tree,
        found_inf: jax.Array | None,
    ) -> tuple[Tree, Any, jax.Array]:
        """`scaler.step(optimizer)`: steps where all gradients are finite; else parameters and state stay as they are.

        Args:
          optimizer: an `Optimizer`.
          state: what `init` or the last `update` returned.
          grads: the gradients, unscaled, or those of the scaled loss.
          opt_state: the optimizer's state.
          params: the parameters.
          found_inf: what `unscale` returned with these gradients, or None for those of the scaled loss, which are
            unscaled first. Arrays do not show which they are, so it has no default: unscaled twice, they would vanish.

        Returns:
          `(params, opt_state, found_inf)`; `found_inf` is what `update` needs.

        Raises:
          TypeError: an optimizer of another library, or a chain with one of this library inside.
          ValueError: float16 gradients, in torch's words.
        """
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"GradScaler.step needs an optimizer of jaxopt_port, not a {type(optimizer).__name__}: with optax's "
                "call unscale, the update of optax.apply_if_finite(optimizer, ...), and GradScaler.update"
            )
        _check_state(state)
        if found_inf is None:
            grads, found_inf = self.unscale(state, grads)
        new = optimizer.step(grads, opt_state, params)
        if not self.enabled:
            return *new, found_inf
        with float64():
            params, opt_state = jax.tree.map(lambda n, o: jnp.where(found_inf, o, n), new, (params, opt_state))
        return params, opt_state, found_inf

    def update(self, state: GradScalerState, found_inf: jax.Array, new_scale: Scalar | None = None) -> GradScalerState:
        """`scaler.update()`: the scale of the next step.

        Args:
          state: what `init` or the last `update` returned.
          found_inf: what `step` returned, or of several optimizers whether one of them found any.
          new_scale: the scale to take instead.

        Returns:
          The new state.
        """
        _check_state(state)
        if not self.enabled:
            return state
        if new_scale is not None:
            return state._replace(scale=jnp.asarray(new_scale, jnp.float32).reshape(()))
        with float64():
            scale, steps = state.scale.astype(jnp.float64), state.growth_tracker + jnp.ones((), jnp.int32)
            smaller, larger = ((scale * f).astype(jnp.float32) for f in (self.backoff_factor, self.growth_factor))
            grows = steps == self.growth_interval
            grown = jnp.where(grows & jnp.isfinite(larger), larger, state.scale)
            tracker = jnp.where(found_inf | grows, jnp.zeros_like(steps), steps)
            return GradScalerState(jnp.where(found_inf, smaller, grown), tracker)


def _check_state(state: Any) -> None:
    if not isinstance(state, GradScalerState):
        raise TypeError(
            "state must be the GradScalerState that init or update returned, and comes first, before the loss or the "
            f"gradients, not {described(state)}"
        )

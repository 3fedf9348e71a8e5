"""The devices of a run: a mesh with one axis, `data`. Each takes its part of a batch, and of what is divided."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from train.config import Config

AXIS = "data"
WHOLE = P()


class Devices(NamedTuple):
    """Several devices, of one process or of all.

    Args:
      mesh: all of them, along one axis.
      shard_params: whether each keeps a part of the parameters, and of the optimizer's state beside them.
      shard_optimizer: whether each keeps and steps a part of the optimizer's state.
    """

    mesh: Mesh
    shard_params: bool = False
    shard_optimizer: bool = False

    @property
    def described(self) -> str:
        """In words."""
        processes = jax.process_count()
        what = {"parameters": self.shard_params, "optimizer's state": self.shard_params or self.shard_optimizer}
        divided = [name for name, is_divided in what.items() if is_divided]
        return (
            f"{self.mesh.size} devices"
            + (f" of {processes} processes" if processes > 1 else "")
            + (f", {' and '.join(divided)} divided" if divided else "")
        )

    def spec(self, x: Any) -> P:
        """How an array is divided: along its longest axis that the devices divide; whole where there is none."""
        axes = [axis for axis, size in enumerate(x.shape) if size % self.mesh.size == 0]
        return P(*[None] * max(axes, key=lambda axis: x.shape[axis]), AXIS) if axes else WHOLE

    def _param_spec(self, x: Any) -> P:
        """How a parameter is kept between two steps."""
        return self.spec(x) if self.shard_params else WHOLE

    def _grad_spec(self, x: Any) -> P:
        """How its gradient is, and what steps with that."""
        return self.spec(x) if self.shard_params or self.shard_optimizer else WHOLE

    def shardings(self, state: Any) -> Any:
        """Of a `train.step.State`. In the optimizer's, what has the shape of a parameter is divided as its gradient."""
        shapes = {x.shape: self._grad_spec(x) for x in jax.tree.leaves(state.params)}
        specs = state._replace(
            params=jax.tree.map(self._param_spec, state.params),
            opt_state=jax.tree.map(lambda x: shapes.get(x.shape, WHOLE), state.opt_state),
            sched=jax.tree.map(lambda _: WHOLE, state.sched),
            averaged=jax.tree.map(self._param_spec, state.averaged),
        )
        return self._shardings(specs)

    def _shardings(self, specs: Any) -> Any:
        return jax.tree.map(lambda spec: NamedSharding(self.mesh, spec), specs, is_leaf=lambda x: isinstance(x, P))

    def place(self, state: Any) -> Any:
        """The state on its devices. Every process has to have all of what is not there yet."""

        def place(x: Any, sharding: NamedSharding) -> jax.Array:
            if isinstance(x, jax.Array) and x.sharding.is_equivalent_to(sharding, x.ndim):
                return x
            host = np.asarray(x)
            return jax.make_array_from_callback(host.shape, sharding, lambda part: host[part])

        return jax.tree.map(place, state, self.shardings(state))

    def keep(self, state: Any) -> Any:
        """The state as a jitted step has to return it."""
        return jax.lax.with_sharding_constraint(state, self.shardings(state))

    def whole(self, tree: Any) -> Any:
        """Arrays inside a jitted function, all of each on every device."""
        return jax.lax.with_sharding_constraint(tree, self.everywhere)

    def divided(self, params: Any) -> Any:
        """Parameters inside a jitted function, as their gradients are."""
        return jax.lax.with_sharding_constraint(params, self._shardings(jax.tree.map(self._grad_spec, params)))

    def kept(self, params: Any) -> Any:
        """Parameters inside a jitted function, as they are between two steps."""
        return jax.lax.with_sharding_constraint(params, self._shardings(jax.tree.map(self._param_spec, params)))

    def batch_spec(self, size: int) -> P:
        """How a batch is divided. One that the devices do not divide, the last of an epoch, each of them has whole."""
        return WHOLE if size % self.mesh.size else P(AXIS)

    @property
    def everywhere(self) -> NamedSharding:
        """Whole on every device."""
        return NamedSharding(self.mesh, WHOLE)

    def batch_sharding(self, size: int) -> NamedSharding:
        return NamedSharding(self.mesh, self.batch_spec(size))

    def batch(self, array: np.ndarray, order: np.ndarray) -> jax.Array:
        """Those examples of an array, each device's on it; a process reads its own alone."""

        def examples(part: Any) -> np.ndarray:
            return array[order[part[0]]]

        shape = len(order), *array.shape[1:]
        return jax.make_array_from_callback(shape, self.batch_sharding(len(order)), examples)

    def chunk(self, chunk: np.ndarray) -> jax.Array:
        """The examples of steps in a row, divided as their batches are."""
        sharding = NamedSharding(self.mesh, P(None, *self.batch_spec(chunk.shape[1])))
        return jax.make_array_from_callback(chunk.shape, sharding, lambda part: chunk[part])

    def copies(self, arrays: Any) -> Any:
        """All of each array on every device."""
        return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, self.everywhere, lambda _: x), arrays)

    def round_up(self, size: int) -> int:
        """To a batch that the devices divide."""
        return size + -size % self.mesh.size

    def value_and_grad(self, loss: Callable[..., Any]) -> Callable[..., Any]:
        """`jax.value_and_grad(loss, has_aux=True)` of a mean over a batch, each device with its part of it.

        The gradients are summed by an all-reduce, or where they are divided by a reduce-scatter. Parameters that are
        divided are gathered before.
        """

        def value_and_grad(params: Any, images: Any, labels: Any) -> Any:
            batch = self.batch_spec(len(labels))
            param_specs, grad_specs = (jax.tree.map(spec, params) for spec in (self._param_spec, self._grad_spec))

            def on_one(params: Any, images: Any, labels: Any) -> Any:
                params = jax.tree.map(_gather, params, param_specs)
                (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params, images, labels)
                metrics = metrics._replace(
                    loss=jax.lax.pmean(metrics.loss, AXIS),
                    correct=metrics.correct if batch == WHOLE else jax.lax.psum(metrics.correct, AXIS),
                )
                # A whole batch's too: devices that added in another order would part from each other for good.
                grads = jax.tree.map(self._mean, grads, grad_specs)
                return (jax.lax.pmean(value, AXIS), metrics), grads

            return jax.shard_map(
                on_one,
                mesh=self.mesh,
                in_specs=(param_specs, batch, batch),
                out_specs=((WHOLE, WHOLE), grad_specs),
                check_vma=False,  # it would sum the gradients of whole parameters before they are summed here
            )(params, images, labels)

        return value_and_grad

    def _mean(self, grad: Any, spec: P) -> Any:
        if spec == WHOLE:
            return jax.lax.pmean(grad, AXIS)
        return jax.lax.psum_scatter(grad, AXIS, scatter_dimension=len(spec) - 1, tiled=True) / self.mesh.size


def _gather(x: Any, spec: P) -> Any:
    return x if spec == WHOLE else jax.lax.all_gather(x, AXIS, axis=len(spec) - 1, tiled=True)


def devices_of(config: Config, devices: Sequence[Any] | None = None) -> Devices | None:
    """Those that a run is on, by default all that JAX sees, of all processes; None where that is one."""
    devices = jax.devices() if devices is None else devices
    if len(devices) == 1:
        return None
    mesh = jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)
    return Devices(mesh, config.shard_params, config.shard_optimizer)


def on_host(tree: Any) -> Any:
    """Copies of arrays, whole: all processes have to ask for what is divided among them."""

    def copy(x: Any) -> np.ndarray:
        if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
            assert isinstance(x.sharding, NamedSharding)
            # one after the other, so that a device has one array whole at a time
            x = jax.jit(lambda x: x, out_shardings=NamedSharding(x.sharding.mesh, WHOLE))(x)
        return np.array(x)

    return jax.tree.map(copy, tree)

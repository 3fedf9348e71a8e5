"""`flat` gives the optimizer's own numbers, with a group's state as one vector a dtype."""

import pickle
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, serialization
from flax.training.train_state import TrainState
from jax.experimental.sparse import BCOO
from jax.sharding import NamedSharding, PartitionSpec

import jaxopt_port as optim
from jaxopt_port.rule import Rule
from jaxopt_port.rules.adam import AdamState
from jaxopt_port.scalars import float64
from jaxopt_port.torch_interop import load_optimizer, optimizer_state_dict
from tests.exact.compare import SETTINGS
from tests.helpers import CountTraces, assert_same_bits, eps_apart, run_in_process

RULES: dict[str, dict[str, Any]] = {
    "adadelta": {},
    "adagrad": {"lr_decay": 0.1, "initial_accumulator_value": 0.5},
    "adam": {"amsgrad": True, "weight_decay": 0.1},
    "adamax": {},
    "adamw": {},
    "asgd": {"t0": 2.0, "weight_decay": 0.1},
    "nadam": {"weight_decay": 0.1, "decoupled_weight_decay": True},
    "radam": {},
    "rmsprop": {"centered": True, "momentum": 0.9},
    "rprop": {},
    "sgd": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
}
REFUSED = sorted(set(optim.optimizers) - set(RULES))
GROUPS = (
    optim.ParamGroup("a|b|f", lr=0.5, maximize=True),
    optim.ParamGroup("frozen|count", frozen=True),
    optim.ParamGroup("d", lr=0.25),
)


def arrays(seed: int) -> dict[str, Any]:
    """Parameters or gradients of every dtype."""
    rng = np.random.default_rng(seed)
    shapes = {
        "a": (3,),
        "b": (4, 5),
        "c": (2, 2),
        "d": (3,),
        "e": (),
        "f": (7,),
        "g": (5, 3),
        "frozen": (2,),
        "h": (3,),
    }
    dtypes = {"a": "float32", "f": "bfloat16", "g": "float32", "h": "float16", "d": "complex64", "e": "float64"}
    with float64():
        made = {k: jnp.asarray(rng.normal(size=shape), dtypes.get(k, "float32")) for k, shape in shapes.items()}
    return {**made, "count": jnp.arange(3)}


def run(optimizer: optim.Optimizer, state: Any, steps: int = 3, first: int = 1) -> tuple[Any, Any]:
    """Some steps, with another rate after each."""
    params, step = arrays(0), jax.jit(optimizer.step)
    for seed in range(first, first + steps):
        params, state = step(arrays(seed), state, params)
        state = optim.set_hyper(state, group=0, lr=0.1 / seed)
    return params, state


def assert_a_few_eps_apart(actual: Any, expected: Any) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert eps_apart(x, y) <= 4


def check_same_numbers(name: str, same: Callable[[Any, Any], None] = assert_same_bits) -> None:
    plain = optim.optimizers[name](**RULES[name], param_groups=GROUPS)
    flat = optim.flat(plain)
    params, state = run(plain, plain.init(arrays(0)))
    flat_params, flat_state = run(flat, flat.init(arrays(0)))
    same(flat_params, params)
    same(optim.unflatten_state(flat, flat_state, params), state)
    assert_same_bits(optim.flatten_state(flat, optim.unflatten_state(flat, flat_state, params), params), flat_state)


@pytest.mark.parametrize("name", RULES)
def test_same_numbers(name):
    """But for which products XLA fuses with a sum, which in an ordinary process differs by program and by release."""
    check_same_numbers(name, assert_a_few_eps_apart)


def check_all_rules() -> None:
    for name in RULES:
        check_same_numbers(name)


def test_same_numbers_without_rewritten_arithmetic():
    """With the flags under which the optimizers have torch's bits."""
    run_in_process(check_all_rules, SETTINGS["XLA_FLAGS"])


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_elementwise_is_refused_by_name(name):
    with pytest.raises(ValueError, match=name):
        optim.flat(optim.optimizers[name]())


def test_a_rule_of_the_users_has_to_say_that_it_is_elementwise():
    def update(p, g, s, c):
        return p - c.lr * g / jnp.linalg.norm(g), s

    rule = Rule("normalized", AdamState, lambda step, h, s: ({"lr": h.lr}, s), update)
    with pytest.raises(ValueError, match="normalized does not say"):
        optim.flat(optim.lift(rule, {"lr": 0.1}))


@pytest.mark.parametrize(
    "around",
    [lambda o: optim.every_k(o, 2), lambda o: optax.chain(o), lambda _: optax.adam(0.1)],
    ids=["every_k", "chain", "optax"],
)
def test_what_is_around_an_optimizer_goes_around_the_flat_one(around):
    with pytest.raises((TypeError, ValueError), match="as its factory returns it"):
        optim.flat(around(optim.adam()))


SMALL = {"bias": jnp.arange(3.0), "kernel": jnp.ones((4, 3))}


def grads(seed: int) -> dict[str, Any]:
    return jax.tree.map(lambda x: x * (seed + 0.3) + 0.1, SMALL)


def pair(name: str = "adamw", **options: Any) -> tuple[optim.Optimizer, optim.Optimizer]:
    plain = optim.optimizers[name](**options)
    return plain, optim.flat(plain)


def assert_same_run(plain: Any, flat: Any, given: list[Any], flat_of: Any = None) -> None:
    """The same steps of both, and the same state at the end."""
    (params, state), (flat_params, flat_state) = (
        _steps(jax.jit(optimizer.step), optimizer.init(SMALL), given) for optimizer in (plain, flat)
    )
    assert_same_bits(flat_params, params)
    assert_same_bits(optim.unflatten_state(flat_of or flat, flat_state, params), state)


def _steps(step: Any, state: Any, given: list[Any]) -> tuple[Any, Any]:
    params = SMALL
    for g in given:
        params, state = step(g, state, params)
    return params, state


def test_none_skips_a_parameter():
    given = [{**grads(0), "bias": None}, {**grads(1), "bias": None}, grads(2), {"bias": None, "kernel": None}]
    assert_same_run(*pair(), given)


def test_sparse_gradients():
    rows = BCOO((jnp.full((1, 3), 0.5), jnp.array([[2]])), shape=(4, 3))
    assert_same_run(*pair("sgd", momentum=0.9), [{**grads(0), "kernel": rows}, grads(1)])


def test_every_k_around_it():
    plain, flat = pair()
    assert_same_run(optim.every_k(plain, 2), optim.every_k(flat, 2), [{**grads(0), "bias": None}, grads(1)], flat)


def check_chain_train_state_and_scheduler() -> None:
    plain, flat = pair(lr=0.1)
    ends = []
    for optimizer in (plain, flat):
        train = TrainState.create(apply_fn=None, params=SMALL, tx=optax.chain(optax.clip(1.0), optimizer))
        sched = optim.lr_scheduler.exponential_lr(gamma=0.5)
        sched_state, opt_state = sched.init(train.opt_state)
        train = train.replace(opt_state=opt_state)
        for seed in range(2):
            train = jax.jit(lambda t, g: t.apply_gradients(grads=g))(train, grads(seed))
            sched_state, opt_state = sched.step(sched_state, train.opt_state)
            train = train.replace(opt_state=opt_state)
        ends.append(train)
    assert_same_bits(ends[1].params, ends[0].params)
    assert_same_bits(optim.unflatten_state(flat, ends[1].opt_state, SMALL), ends[0].opt_state)
    assert optim.get_hyper(ends[1].opt_state)[0]["lr"] == 0.025


def test_chain_train_state_and_scheduler():
    """Elsewhere XLA may fuse new - old and the sum that follows into the step, and contract them in other places."""
    run_in_process(check_chain_train_state_and_scheduler, SETTINGS["XLA_FLAGS"])


def check_nnx() -> None:
    ends = []
    for optimizer in pair():
        model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
        nnx_optimizer = nnx.Optimizer(model, optimizer, wrt=nnx.Param)
        for _ in range(2):
            nnx_optimizer.update(model, nnx.grad(lambda m: (m(jnp.ones((1, 3))) ** 2).sum())(model))
        ends.append(nnx.state(model))
    assert_same_bits(ends[1], ends[0])


def test_nnx():
    """Its update goes through new - old as well."""
    run_in_process(check_nnx, SETTINGS["XLA_FLAGS"])


def test_files():
    _, flat = pair()
    _, state = _steps(flat.step, flat.init(SMALL), [grads(0)])
    assert_same_bits(serialization.from_bytes(flat.init(SMALL), serialization.to_bytes(state)), state)
    assert_same_bits(pickle.loads(pickle.dumps(jax.device_get(state))), jax.device_get(state))


def test_orbax(tmp_path):
    import orbax.checkpoint as ocp

    _, flat = pair()
    _, state = _steps(flat.step, flat.init(SMALL), [grads(0)])
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        assert_same_bits(checkpointer.restore(tmp_path / "state", jax.eval_shape(flat.init, SMALL)), state)


def test_torch_import_and_export():
    plain, flat = pair()
    params, state = _steps(plain.step, plain.init(SMALL), [grads(0)])
    exported = optimizer_state_dict(plain, state, params)
    loaded, state = load_optimizer(optim.adamw, exported, params)
    flat = optim.flat(loaded)
    params, state = flat.step(grads(1), optim.flatten_state(flat, state, params), params)
    expected = _steps(plain.step, plain.init(SMALL), [grads(0), grads(1)])
    assert_same_bits(params, expected[0])
    np.testing.assert_equal(optimizer_state_dict(flat, state, params), optimizer_state_dict(plain, expected[1], params))


def test_add_param_group():
    ends = []
    for optimizer in pair(param_groups=[optim.ParamGroup("bias", frozen=True)]):
        params, state = _steps(optimizer.step, optimizer.init(SMALL), [grads(0)])
        new, state = optim.add_param_group(optimizer, state, params, optim.ParamGroup("bias", lr=0.5))
        params, state = new.step(grads(1), state, params)
        ends.append((params, state if not ends else optim.unflatten_state(new, state, params)))
    assert_same_bits(ends[1], ends[0])


def test_one_trace_for_all_rates():
    _, flat = pair()
    step = CountTraces(flat.step)
    state = flat.init(SMALL)
    for rate in (0.1, 0.2):
        _, state = step(grads(0), optim.set_hyper(state, lr=rate), SMALL)
    assert step.traces == 1


def test_buffers_and_form():
    plain, flat = pair()
    assert "flat(adamw(" in repr(flat)
    assert len(jax.tree.leaves(flat.init(SMALL).slots)) == 2
    assert jax.tree.map(lambda x: x.shape, flat.init(SMALL).slots.exp_avg) == ({"float32": (15,)},)
    abstract = jax.eval_shape(lambda: SMALL)
    for made in (flat.init(abstract), jax.eval_shape(flat.init, SMALL)):
        assert jax.tree.map(lambda x: (x.shape, x.dtype), made) == jax.tree.map(
            lambda x: (x.shape, x.dtype), flat.init(SMALL)
        )
    assert tuple(optim.flat(plain).init({}).slots) == (({},), ({},), None)


def test_mistakes():
    plain, flat = pair()
    state, flat_state = plain.init(SMALL), flat.init(SMALL)
    with pytest.raises(ValueError, match="flatten_state"):
        flat.step(grads(0), state, SMALL)
    with pytest.raises(ValueError, match="exp_avg"):
        plain.step(grads(0), flat_state, SMALL)
    with pytest.raises(ValueError, match="another optimizer"):
        optim.flatten_state(flat, optim.sgd().init(SMALL), SMALL)
    with pytest.raises(TypeError, match="is not flat"):
        optim.unflatten_state(plain, flat_state, SMALL)
    with pytest.raises(ValueError, match=r"'kernel' is float32\[3, 4\]"):
        flat.step({**grads(0), "kernel": jnp.ones((3, 4))}, flat_state, SMALL)
    with pytest.raises(TypeError, match=r"'bias' is float16"):
        flat.step({**grads(0), "bias": jnp.ones(3, jnp.float16)}, flat_state, SMALL)
    other = {**SMALL, "kernel": jnp.ones((5, 3))}
    for call in (lambda: flat.step(other, flat_state, other), lambda: optim.unflatten_state(flat, flat_state, other)):
        with pytest.raises(ValueError, match=r"15|18"):
            call()
    mixed = state._replace(slots=state.slots._replace(exp_avg={**SMALL, "bias": jnp.ones(3, jnp.bfloat16)}))
    with pytest.raises(ValueError, match="exp_avg of group 0 has bfloat16, float32"):
        optim.flatten_state(flat, mixed, SMALL)


def test_on_an_explicit_mesh():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        sharded = NamedSharding(mesh, PartitionSpec("data"))
        params = jax.device_put(SMALL, {"bias": NamedSharding(mesh, PartitionSpec()), "kernel": sharded})
        plain, flat = pair()
        given = jax.tree.map(lambda x: x + 1, params)
        new, _ = jax.jit(flat.step)(given, flat.init(params), params)
        expected, _ = jax.jit(plain.step)(given, plain.init(params), params)
    assert_same_bits(new, expected)
    assert new["kernel"].sharding.is_equivalent_to(sharded, 2)


def test_program_for_cuda():
    """What goes in and out of the program that a GPU runs: two buffers of moments, whatever the number of arrays."""
    params = [jnp.ones((2, 3)) for _ in range(20)]
    counts = {}
    for name, optimizer in zip(("plain", "flat"), pair(), strict=True):
        text = jax.jit(optimizer.step).trace(params, optimizer.init(params), params).lower(lowering_platforms=("cuda",))
        main = text.as_text().split("func.func public @main")[1].split("{\n")[0]
        counts[name] = main.count("%arg")
    numbers = 1 + 5  # the step, and lr, two betas, eps and weight_decay
    assert counts == {"plain": 4 * 20 + numbers, "flat": 2 * 20 + 2 + numbers}

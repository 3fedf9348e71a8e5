"""What state dicts can be like: partial, old, in odd order, of other shapes, in several groups."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxopt_port as optim
from jaxopt_port.torch_interop import layout, load_optimizer, optimizer_state_dict

PARAMS = {"a": jnp.arange(2.0), "b": jnp.ones((2, 3)), "c": jnp.zeros(())}


def grads(scale: float = 1.0) -> Any:
    return jax.tree.map(lambda p: scale * jnp.ones_like(p), PARAMS)


def adam_state(p: Any) -> dict[str, Any]:
    return {"step": np.float32(3), "exp_avg": np.full(np.shape(p), 0.5), "exp_avg_sq": np.full(np.shape(p), 0.25)}


def adam_group(ids: list[int], **options: Any) -> dict[str, Any]:
    return {"lr": 0.1, "betas": [0.8, 0.99], "eps": 1e-6, "weight_decay": 0, **options, "params": ids}


def adam_dict(**options: Any) -> dict[str, Any]:
    states = {i: adam_state(p) for i, p in enumerate(PARAMS.values())}
    return {"state": states, "param_groups": [adam_group([0, 1, 2], **options)]}


def test_old_state_dicts_with_missing_keys_and_python_numbers() -> None:
    state_dict = adam_dict(lr=np.float32(0.5))
    for one in state_dict["state"].values():
        one["step"] = 3  # an int before torch 1.12
    optimizer, state = load_optimizer(optim.adam, state_dict, PARAMS)
    assert optim.get_hyper(state) == [{"betas": (0.8, 0.99), "eps": 1e-6, "lr": 0.5, "weight_decay": 0.0}]
    exported = optimizer_state_dict(optimizer, state, PARAMS)
    group = exported["param_groups"][0]
    assert (group["amsgrad"], group["maximize"], group["decoupled_weight_decay"]) == (False, False, False)
    assert (group["foreach"], group["capturable"], group["differentiable"], group["fused"]) == (
        None,
        False,
        False,
        None,
    )
    assert exported["state"][1]["step"] == np.float32(3)


def test_adamw_in_an_adam_state_dict_stays_decoupled() -> None:
    optimizer, state = load_optimizer(optim.adam, adam_dict(decoupled_weight_decay=True, weight_decay=0.5), PARAMS)
    adamw, same = load_optimizer(optim.adamw, adam_dict(weight_decay=0.5), PARAMS)
    expected, _ = adamw.step(grads(), same, PARAMS)
    for name, ours in optimizer.step(grads(), state, PARAMS)[0].items():
        np.testing.assert_array_equal(ours, expected[name])


def test_parameters_that_never_stepped() -> None:
    state_dict = adam_dict()
    del state_dict["state"][1]
    optimizer, state = load_optimizer(optim.adam, state_dict, PARAMS)
    np.testing.assert_array_equal(state.steps[0]["step"], [3, 0, 3])
    assert not state.slots.exp_avg["b"].any()
    assert optimizer_state_dict(optimizer, state, PARAMS)["state"].keys() == {0, 2}


def test_buffers_of_a_momentum_that_is_now_off() -> None:
    group = {"lr": 0.1, "momentum": 0, "dampening": 0, "weight_decay": 0, "params": [0, 1, 2]}
    buffer = {"momentum_buffer": np.array([1.0, 2.0], np.float32)}
    state_dict = {"state": {0: buffer, 1: {"momentum_buffer": None}}, "param_groups": [group]}
    optimizer, state = load_optimizer(optim.sgd, state_dict, PARAMS)
    exported = optimizer_state_dict(optimizer, state, PARAMS)
    assert exported["param_groups"][0]["momentum"] == 0.0
    np.testing.assert_array_equal(exported["state"].pop(0)["momentum_buffer"], buffer["momentum_buffer"])
    assert exported["state"] == {}
    params, _ = optimizer.step(grads(), state, PARAMS)
    np.testing.assert_allclose(params["a"], PARAMS["a"] - 0.1)


def test_groups_are_told_by_shapes_or_names() -> None:
    second = adam_group([1, 2], weight_decay=0.3)
    states = {0: adam_state(PARAMS["b"]), 1: adam_state(PARAMS["a"]), 2: adam_state(PARAMS["c"])}
    state_dict = {"state": states, "param_groups": [adam_group([0]), second]}
    optimizer, state = load_optimizer(optim.adam, state_dict, PARAMS)
    exported = optimizer_state_dict(optimizer, state, PARAMS)
    assert [group["param_names"] for group in exported["param_groups"]] == [["b"], ["a", "c"]]
    assert [group["params"] for group in exported["param_groups"]] == [[0], [1, 2]]
    assert [group["weight_decay"] for group in optim.get_hyper(state)] == [0.0, 0.3]

    second["param_names"], state_dict["param_groups"][0]["param_names"] = ["c", "a"], ["b"]
    states[1], states[2] = states[2], states[1]
    optimizer, state = load_optimizer(optim.adam, state_dict, PARAMS)
    assert optimizer_state_dict(optimizer, state, PARAMS)["param_groups"][1]["param_names"] == ["c", "a"]


def test_groups_of_equal_shapes_follow_one_another() -> None:
    params = {name: jnp.ones(2) for name in ("w1", "w2", "w3")}
    states = {i: {**adam_state(np.ones(2)), "exp_avg": np.full(2, float(i))} for i in range(3)}
    state_dict = {"state": states, "param_groups": [adam_group([0, 1]), adam_group([2], lr=0.5)]}
    with pytest.warns(UserWarning, match="are taken to follow one another, w1 to w2; w3. Give each group its names"):
        optimizer, state = load_optimizer(optim.adam, state_dict, params)
    assert [group["lr"] for group in optim.get_hyper(state)] == [0.1, 0.5]
    exported = optimizer_state_dict(optimizer, state, params)
    assert [group["param_names"] for group in exported["param_groups"]] == [["w1", "w2"], ["w3"]]
    assert [exported["state"][i]["exp_avg"][0] for i in range(3)] == [0, 1, 2]


def test_groups_that_cannot_be_told() -> None:
    params = {"w1": jnp.ones(2), "w2": jnp.ones(3), "w3": jnp.ones(2), "w4": jnp.ones(2)}
    state_dict = {
        "state": {i: adam_state(np.ones(n)) for i, n in enumerate((3, 2, 2, 2))},
        "param_groups": [adam_group([0, 1]), adam_group([2, 3])],
    }
    with pytest.raises(ValueError, match=r"Several ways .* shapes of its states\. Give each group its names"):
        load_optimizer(optim.adam, state_dict, params)
    state_dict["state"][1] = adam_state(np.ones(4))
    with pytest.raises(ValueError, match=r"doesn't match the parameters\. In no order .*w1 \[2\], w2 \[3\]"):
        load_optimizer(optim.adam, state_dict, params)
    with pytest.raises(ValueError, match=r"contains 4 parameters, params 3: say .*param_names=.*a \[2\], b"):
        load_optimizer(optim.adam, state_dict, PARAMS)


def test_named_parameters_leave_the_others_frozen() -> None:
    state_dict = {"state": {0: adam_state(PARAMS["b"])}, "param_groups": [adam_group([0], param_names=["b"])]}
    optimizer, state = load_optimizer(optim.adam, state_dict, PARAMS)
    params, state = optimizer.step(grads(), state, PARAMS)
    np.testing.assert_array_equal(params["a"], PARAMS["a"])
    assert (params["b"] != PARAMS["b"]).all()
    exported = optimizer_state_dict(optimizer, state, params)
    assert [group["param_names"] for group in exported["param_groups"]] == [["b"]]
    assert exported["state"][0]["step"] == 4


@pytest.mark.parametrize(
    ("factory", "change", "message"),
    [
        (optim.sgd, {}, "no momentum, dampening: it is not of the optimizer sgd. It has lr, betas"),
        (optim.adam, {"exp_avg": np.ones(3)}, r"'exp_avg' in the state of parameter 'a' is \[3\] and should be \[2\]"),
        (optim.adam, {"step": np.ones(2)}, r"'step' in the state of parameter 'a' is \[2\] and should be \[\]"),
        (
            optim.adam,
            {"mu_product": 1.0},
            "parameter 'a' has mu_product: it is not one of adam, which keeps step, exp_a",
        ),
        (optim.adam, {"step": None}, "parameter 'a' has no step: it is not one of adam"),
        (optim.adam, {"exp_avg_sq": None}, "parameter 'a' has no 'exp_avg_sq'"),
        (optim.adam, {"exp_avg": np.ones(2) * 1j}, "complex"),
        (optim.nonlinear_cg, {}, "torch has no nonlinear_cg, and no state dict of it"),
    ],
)
def test_what_does_not_fit_is_refused(factory: Any, change: dict[str, Any], message: str) -> None:
    state_dict = adam_dict()
    state_dict["state"][0].update(change)
    with pytest.raises(ValueError, match=message):
        load_optimizer(factory, state_dict, PARAMS)


def test_amsgrad_needs_its_maximum() -> None:
    with pytest.raises(ValueError, match="has no 'max_exp_avg_sq', which the options of its group ask for"):
        load_optimizer(optim.adam, adam_dict(amsgrad=True), PARAMS)


SHAPES = {"fc.weight": (3, 2), "fc.bias": (3,)}
DENSE = {"Dense_0": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}


def test_adafactors_factors_change_places_with_the_axes() -> None:
    mapping = layout.infer(SHAPES, DENSE)
    rows, columns = np.arange(3.0, dtype=np.float32)[:, None], np.arange(5.0, 7.0, dtype=np.float32)[None]
    factored = {"step": np.float32(1), "row_var": rows, "col_var": columns}
    group = {"lr": 0.1, "beta2_decay": -0.8, "eps": (None, 1e-3), "d": 1.0, "weight_decay": 0.0, "params": [0, 1]}
    state_dict = {"state": {0: factored, 1: {"step": np.float32(1), "variance": np.ones(3)}}, "param_groups": [group]}
    optimizer, state = load_optimizer(optim.adafactor, state_dict, DENSE, mapping)
    np.testing.assert_array_equal(state.slots.row_var["Dense_0"]["kernel"], columns.T)
    np.testing.assert_array_equal(state.slots.col_var["Dense_0"]["kernel"], rows.T)
    exported = optimizer_state_dict(optimizer, state, DENSE, mapping)["state"][0]
    np.testing.assert_array_equal(exported["row_var"], rows)
    np.testing.assert_array_equal(exported["col_var"], columns)


def test_adafactors_factors_of_a_convolution_are_along_the_same_axes() -> None:
    params = {"Conv_0": {"kernel": jnp.ones((3, 5, 2, 4))}, "Dense_0": {"kernel": jnp.ones((2, 3))}}
    mapping = layout.infer({"c.weight": (4, 2, 3, 5), "fc.weight": (3, 2)}, params)
    rng = np.random.default_rng(0)
    rows, columns = (rng.random(shape, np.float32) for shape in ((4, 2, 3, 1), (4, 2, 1, 5)))
    of_dense = {"step": np.float32(1), "row_var": np.ones((3, 1)), "col_var": np.ones((1, 2))}
    of_convolution = {"step": np.float32(1), "row_var": rows, "col_var": columns}
    group = {"lr": 0.1, "beta2_decay": -0.8, "eps": (None, 1e-3), "d": 1.0, "weight_decay": 0.0, "params": [0, 1]}
    state_dict = {"state": {0: of_convolution, 1: of_dense}, "param_groups": [group]}
    optimizer, state = load_optimizer(optim.adafactor, state_dict, params, mapping)
    assert "factored_axes=(0, 1)" in repr(optimizer)
    np.testing.assert_array_equal(state.slots.row_var["Conv_0"]["kernel"], rows.transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(state.slots.col_var["Conv_0"]["kernel"], columns.transpose(2, 3, 1, 0))
    exported = optimizer_state_dict(optimizer, state, params, mapping)
    assert "factored_axes" not in exported["param_groups"][0]
    for number, one in state_dict["state"].items():
        for name, array in one.items():
            np.testing.assert_array_equal(exported["state"][number][name], array)

    other = optim.adafactor(0.1)  # of the last two axes
    params, state = other.step(params, other.init(params), params)
    with pytest.raises(ValueError, match=r"'c.weight' \[4, 2, 3, 5\] are 0 and 1 in flax .*factored_axes=\(0, 1\)\)"):
        optimizer_state_dict(other, state, params, mapping)


def test_one_adafactor_has_one_way_to_factor_for_a_group() -> None:
    params = {"Conv_0": {"kernel": jnp.ones((3, 3, 2, 4))}, "stack": jnp.ones((2, 3, 4))}
    mapping = layout.infer({"c.weight": (4, 2, 3, 3), "stack": (2, 3, 4)}, params)
    group = {"lr": 0.1, "beta2_decay": -0.8, "eps": (None, 1e-3), "d": 1.0, "weight_decay": 0.0}
    with pytest.raises(ValueError, match=r"c\.weight and stack do, and Adafactor has one way for a group"):
        load_optimizer(optim.adafactor, {"state": {}, "param_groups": [{**group, "params": [0, 1]}]}, params, mapping)
    groups = [{**group, "params": [i], "param_names": [name]} for i, name in enumerate(("c.weight", "stack"))]
    _, state = load_optimizer(optim.adafactor, {"state": {}, "param_groups": groups}, params, mapping)
    assert state.slots.row_var["Conv_0"]["kernel"].shape == (3, 1, 2, 4)
    assert state.slots.row_var["stack"].shape == (2, 3, 1)


def test_one_parameter_of_torchs_that_is_three_here() -> None:
    shapes = {"in_proj_weight": (12, 4), "in_proj_bias": (12,), "out_proj.weight": (4, 4), "out_proj.bias": (4,)}
    heads = {"kernel": jnp.ones((4, 2, 2)), "bias": jnp.ones((2, 2))}
    params: dict[str, Any] = dict.fromkeys(("query", "key", "value"), heads)
    params["out"] = {"kernel": jnp.ones((2, 2, 4)), "bias": jnp.ones(4)}
    mapping = layout.infer(shapes, params)
    rng = np.random.default_rng(0)
    states = {
        i: {
            "step": np.float32(2),
            "exp_avg": rng.random(shape, np.float32),
            "exp_avg_sq": rng.random(shape, np.float32),
        }
        for i, shape in enumerate(shapes.values())
    }
    state_dict = {"state": states, "param_groups": [adam_group([0, 1, 2, 3])]}
    optimizer, state = load_optimizer(optim.adam, state_dict, params, mapping)
    weight = states[0]["exp_avg"][4:8]  # the key's
    np.testing.assert_array_equal(state.slots.exp_avg["key"]["kernel"], weight.T.reshape(4, 2, 2))
    exported = optimizer_state_dict(optimizer, state, params, mapping)["state"]
    for i, one in states.items():
        for key, value in one.items():
            np.testing.assert_array_equal(exported[i][key], value)

    apart = optim.adam(param_groups=[optim.ParamGroup("key/.*", lr=0.5)])
    with pytest.raises(ValueError, match="'in_proj_weight' is one parameter in torch, and here in several groups"):
        optimizer_state_dict(apart, apart.init(params), params, mapping)


def test_lbfgs_vectors_move_with_the_layout() -> None:
    mapping = layout.infer(SHAPES, DENSE)
    vector = np.arange(9, dtype=np.float32)
    one = {"func_evals": 3, "n_iter": 2, "d": vector, "t": 1, "old_dirs": [vector], "old_stps": [-vector]}
    one |= {"ro": [np.float32(0.5)], "H_diag": np.float32(2), "prev_flat_grad": vector, "prev_loss": 1.5, "al": [None]}
    group = {"lr": 1, "max_iter": 3, "max_eval": 4, "tolerance_grad": 1e-7, "tolerance_change": 1e-9}
    group |= {"history_size": 2, "line_search_fn": None, "params": [0, 1]}
    state_dict = {"state": {0: one}, "param_groups": [group]}
    optimizer, state = load_optimizer(optim.lbfgs, state_dict, DENSE, mapping)
    np.testing.assert_array_equal(state.slots.d["Dense_0"]["bias"], [6, 7, 8])
    np.testing.assert_array_equal(state.slots.d["Dense_0"]["kernel"], [[0, 2, 4], [1, 3, 5]])
    exported = optimizer_state_dict(optimizer, state, DENSE, mapping)
    assert {k: v for k, v in exported["param_groups"][0].items() if k != "param_names"} == {**group, "maximize": False}
    for key, value in one.items():
        if key != "al":
            np.testing.assert_array_equal(exported["state"][0][key], value)
    with pytest.raises(ValueError, match="has a history of 3, history_size is 2"):
        load_optimizer(optim.lbfgs, {**state_dict, "state": {0: {**one, "ro": [1.0] * 3}}}, DENSE, mapping)
    with pytest.raises(ValueError, match=r"a vector of the state is \[8\], the parameters have 9 numbers"):
        load_optimizer(optim.lbfgs, {**state_dict, "state": {0: {**one, "d": vector[1:]}}}, DENSE, mapping)
    more = {
        "params": {"norm": {"bias": jnp.ones(2), "scale": jnp.ones(2)}, **DENSE},
        "batch_stats": {"norm": {"mean": jnp.ones(2), "var": jnp.ones(2)}},
    }
    shapes = {**SHAPES, **{f"norm.{name}": (2,) for name in ("weight", "bias", "running_mean", "running_var")}}
    state_dict["param_groups"][0]["params"] = [0, 1, 2, 3]
    with pytest.raises(ValueError, match="L-BFGS has 4 of the 6 arrays in params"):
        load_optimizer(optim.lbfgs, state_dict, more, layout.infer(shapes, more))


def test_lbfgs_has_complex_numbers_as_pairs() -> None:
    params = {"kernel": jnp.ones((2, 1), jnp.complex64)}
    mapping = layout.infer({"weight": (1, 2)}, params)
    vector = np.array([1, 2, 3, 4], np.float32)  # 1 + 2i, 3 + 4i
    one = {"func_evals": 1, "n_iter": 1, "d": vector, "t": 0.5, "old_dirs": [], "old_stps": [], "ro": [], "H_diag": 1}
    group = {"lr": 1, "max_iter": 3, "max_eval": 4, "tolerance_grad": 1e-7, "tolerance_change": 1e-9}
    group |= {"history_size": 2, "line_search_fn": "strong_wolfe", "params": [0]}
    state_dict = {"state": {0: {**one, "prev_flat_grad": vector, "prev_loss": 1.0}}, "param_groups": [group]}
    optimizer, state = load_optimizer(optim.lbfgs, state_dict, params, mapping)
    np.testing.assert_array_equal(state.slots.d["kernel"], [[1 + 2j], [3 + 4j]])
    exported = optimizer_state_dict(optimizer, state, params, mapping)["state"][0]
    np.testing.assert_array_equal(exported["d"], vector)
    assert (exported["old_dirs"], exported["prev_loss"]) == ([], 1.0)


@pytest.mark.parametrize("factory", [optim.adam, optim.adagrad, optim.rmsprop, optim.asgd])
def test_moments_of_transposed_complex_parameters(factory: Any) -> None:
    """torch's are transposed in memory, as their parameters are."""
    torch = pytest.importorskip("torch")
    from tests.oracle import torch_class

    weight = torch.nn.Parameter(torch.randn(3, 2, dtype=torch.complex64).t())
    theirs = torch_class(factory.__name__)([weight])
    weight.grad = torch.randn(2, 3, dtype=torch.complex64)
    theirs.step()
    params = {"w": jnp.asarray(weight.detach().numpy())}
    optimizer, state = load_optimizer(factory, theirs.state_dict(), params)
    back = optimizer_state_dict(optimizer, state, params)["state"][0]
    for name, value in theirs.state_dict()["state"][0].items():
        np.testing.assert_array_equal(back[name], value)


def test_boxed_parameters_get_boxed_moments() -> None:
    params = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Param)
    mapping = layout.infer({"weight": (3, 2), "bias": (3,)}, params)
    weight = np.arange(6, dtype=np.float32).reshape(3, 2)
    states = {0: {**adam_state(weight), "exp_avg": weight}, 1: adam_state(np.ones(3))}
    state_dict = {"state": states, "param_groups": [adam_group([0, 1])]}
    optimizer, state = load_optimizer(optim.adam, state_dict, params, mapping)
    assert jax.tree.structure(state) == jax.tree.structure(optimizer.init(params))
    np.testing.assert_array_equal(jax.tree.leaves(state.slots.exp_avg["kernel"])[0], weight.T)
    exported = optimizer_state_dict(optimizer, state, params, mapping)
    np.testing.assert_array_equal(exported["state"][0]["exp_avg"], weight)


def test_the_state_is_a_copy_that_steps_may_donate() -> None:
    state_dict = adam_dict()
    moment = state_dict["state"][0]["exp_avg"] = np.ones(2, np.float32)
    optimizer, state = load_optimizer(optim.adam, state_dict, PARAMS)
    exported = optimizer_state_dict(optimizer, state, PARAMS)["state"][0]["exp_avg"]
    moment[:] = 7
    exported[:] = 8
    np.testing.assert_array_equal(state.slots.exp_avg["a"], 1)


def muon_dict(*groups: list[int]) -> dict[str, Any]:
    options = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.95, "nesterov": True, "eps": 1e-7, "ns_steps": 5}
    options |= {"ns_coefficients": (3.4445, -4.775, 2.0315), "adjust_lr_fn": None}
    shapes = {0: (8, 2), 1: (3, 8)}
    states = {i: {"momentum_buffer": np.ones(shapes[i], np.float32)} for ids in groups for i in ids}
    return {"state": states, "param_groups": [{**options, "params": ids} for ids in groups]}


def test_muon_knows_which_axes_are_torchs_rows() -> None:
    torch = pytest.importorskip("torch")
    params = {"fc": {"kernel": jnp.zeros((2, 8))}, "own": jnp.zeros((3, 8))}
    mapping = layout.infer({"fc.weight": (8, 2), "own": (3, 8)}, params)
    with pytest.raises(ValueError, match=r"lie in several ways in flax, as fc.weight and own do"):
        load_optimizer(optim.muon, muon_dict([0, 1]), params, mapping)
    state_dict = muon_dict([0], [1])
    optimizer, state = load_optimizer(optim.muon, state_dict, params, mapping)
    weights = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((8, 2), (3, 8))]
    theirs = torch.optim.Muon([{"params": [weight]} for weight in weights])
    exported = optimizer_state_dict(optimizer, state, params, mapping)
    for group in exported["param_groups"]:
        group.pop("param_names")
    assert exported["param_groups"] == state_dict["param_groups"]
    as_tensors = [{"momentum_buffer": torch.from_numpy(one["momentum_buffer"])} for one in exported["state"].values()]
    theirs.load_state_dict({**exported, "state": dict(enumerate(as_tensors))})
    rng = np.random.default_rng(0)
    for weight in weights:
        weight.grad = torch.from_numpy(rng.standard_normal(weight.shape, np.float32))
    grads = {"fc": {"kernel": jnp.asarray(weights[0].grad.numpy().T)}, "own": jnp.asarray(weights[1].grad.numpy())}
    theirs.step()
    params, _ = optimizer.step(grads, state, params)
    np.testing.assert_allclose(params["fc"]["kernel"], weights[0].detach().numpy().T, atol=1e-3)
    np.testing.assert_allclose(params["own"], weights[1].detach().numpy(), atol=1e-3)

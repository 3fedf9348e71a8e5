"""What a newcomer from torch or optax writes first: an error that names the argument, the value and the remedy."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

import jaxopt_port as optim
from jaxopt_port import torch_interop

PARAMS: Any = {"w": jnp.ones(2), "b": jnp.ones(1)}
LIST: Any = [jnp.ones(1), jnp.ones(2)]  # model.parameters()
OPTIMIZER: Any = optim.adam()
STATE: Any = OPTIMIZER.init(PARAMS)
GROUP = optim.ParamGroup("w")
STATE_DICT: Any = {"state": {}, "param_groups": [{"lr": 0.1, "params": [0, 1]}]}
ADAM: Any = optim.adam  # the function, where what it returns is wanted
ANY: Any = optim  # any argument, whatever its type


def loss_fn(params: Any) -> Any:
    return (params["w"] ** 2).sum()


def jitted(function: Callable[[Any], Any]) -> Any:
    scheduler = optim.lr_scheduler.lambda_lr(function)
    return jax.jit(scheduler.step)(*scheduler.init(STATE))


MISTAKES: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    # torch's names
    "AdamW": (lambda: ANY.AdamW, AttributeError, r"'AdamW': torch's AdamW is jaxopt_port\.adamw, .*init\(params\)"),
    "StepLR": (lambda: ANY.lr_scheduler.StepLR, AttributeError, r"torch's StepLR is step_lr, .*init\(state\)"),
    "clip_grad_norm_": (lambda: ANY.clip_grad_norm_, AttributeError, "'clip_grad_norm_': it is clip_grad_norm"),
    "zero_grad": (lambda: OPTIMIZER.zero_grad(), AttributeError, "'zero_grad': gradients are values here"),
    "state_dict": (lambda: OPTIMIZER.state_dict(), AttributeError, "it is .*optimizer_state_dict"),
    "load_state_dict": (lambda: OPTIMIZER.load_state_dict({}), AttributeError, "it is .*load_optimizer"),
    "param_groups": (lambda: OPTIMIZER.param_groups, AttributeError, r"get_hyper\(state\)"),
    "a method add_param_group": (
        lambda: OPTIMIZER.add_param_group({}),
        AttributeError,
        "add_param_group.optimizer, st",
    ),
    "a glob for a pattern": (
        lambda: optim.sgd(param_groups=[optim.ParamGroup("w/*", lr=0.1)]).init({"w": PARAMS}),
        ValueError,
        r"matches no parameter \(a pattern is a regular expression for the whole path\)\. The paths are: w/b, w/w",
    ),
    "a linen module without variables": (
        lambda: optim.swa_utils.update_bn([], linen.BatchNorm()),
        TypeError,
        r"update_bn\(loader, model, .*batch_stats.*\), not a BatchNorm alone",
    ),
    "a function for a rule": (lambda: ANY.factory(optim.adam), TypeError, r"factory takes a Rule.*, not adam, a func"),
    "SWALR": (lambda: ANY.swa_utils.SWALR, AttributeError, r"'SWALR': it is swalr, .*init\(state\)"),
    "AveragedModel": (
        lambda: ANY.swa_utils.AveragedModel(PARAMS),
        TypeError,
        r"averaged_model\(avg_fn=...\) returns, .*init\(params\), not a dict here",
    ),
    "an optimizer that is not there": (lambda: ANY.Lion, AttributeError, "'Lion': the optimizers are adadelta, .*, sp"),
    "lr of an optimizer": (lambda: OPTIMIZER.lr, AttributeError, r"'lr': read it with .*get_hyper\(state\)"),
    "lr of a state": (lambda: STATE.lr, AttributeError, r"no attribute 'lr': hyper-parameters are read by .*get_hyper"),
    "a module for its weights": (
        lambda: ANY.torch_interop.layout.infer(linen.Dense(1), PARAMS),
        TypeError,
        r"module\.state_dict\(\), not a Dense",
    ),
    "t_max": (
        lambda: ANY.lr_scheduler.cosine_annealing_lr(t_max=10),
        TypeError,
        r"cosine_annealing_lr\(\) .*\. Its arguments are T_max, eta_min, last_epoch",
    ),
    "the rates of the optimizer's state": (
        lambda: ANY.lr_scheduler.step_lr(3).get_last_lr(STATE),
        TypeError,
        "first argument has to be the scheduler's state, which init returned, not a",
    ),
    "gradients after the norm": (
        lambda: ANY.clip_grad_norm(1.0, PARAMS),
        TypeError,
        "max_norm must be a number, not a dict: the gradients come first",
    ),
    # what a factory takes
    "parameters": (
        lambda: ANY.adamw(PARAMS),
        TypeError,
        r"lr must be a number, not a dict: .*optimizer\.init\(params\)",
    ),
    "parameters and lr": (
        lambda: ANY.adamw(PARAMS, lr=0.1),
        TypeError,
        r"adamw\(\) got lr twice, .* a dict and lr=0.1: .* adamw\(lr=...\)\.init\(params\)",
    ),
    "a list and lr": (lambda: ANY.lbfgs(LIST, lr=1), TypeError, r"lbfgs\(\) got lr twice, .* a list and lr=1: "),
    "params=": (lambda: ANY.sgd(params=LIST), TypeError, r"argument 'params': the parameters go to init"),
    "torch's groups": (lambda: ANY.sgd([{"params": 1}], lr=0.1), TypeError, r"groups to param_groups=\[ParamGroup"),
    "groups as dicts": (lambda: ANY.sgd(param_groups=[{"lr": 1}]), TypeError, r"\[{'lr': 1}\]: write \[ParamGroup"),
    "one group": (lambda: ANY.sgd(param_groups=GROUP), TypeError, r"not ParamGroup\('w'\): write \[ParamGroup\(which"),
    "fused": (lambda: ANY.adamw(fused=True), TypeError, r"adamw\(\) got .*'fused': .* leave it out"),
    "foreach": (lambda: ANY.sgd(foreach=True), TypeError, r"sgd\(\) got .*'foreach': .* leave it out"),
    "learning_rate": (lambda: ANY.adamw(learning_rate=0.1), TypeError, "'learning_rate': torch's name is lr"),
    "learning_rate of lbfgs": (lambda: ANY.lbfgs(learning_rate=1), TypeError, "'learning_rate': torch's name is lr"),
    "b1": (lambda: ANY.adam(b1=0.9), TypeError, r"'b1': torch's names are betas=\(b1, b2\)"),
    "beta1": (lambda: ANY.adam(beta1=0.9), TypeError, r"'beta1': torch's names are betas="),
    "a wrong name": (lambda: ANY.adam(momentum=0.9), TypeError, "'momentum'. Its arguments are lr, betas, eps"),
    "lr as a string": (lambda: ANY.adam(lr="0.1"), TypeError, "lr must be a number, not a str"),
    "one beta": (lambda: ANY.adam(betas=0.9), ValueError, "Invalid betas: 0.9, two numbers are needed"),
    # an optimizer is wanted
    "every_k of a name": (lambda: ANY.every_k("adam", 2), TypeError, r"adam\(lr=...\) returns it, not 'adam'"),
    "every_k of a function": (lambda: optim.every_k(ADAM, 2), TypeError, "needs an optimizer, .* not adam, a function"),
    "every_k, swapped": (lambda: ANY.every_k(2, OPTIMIZER), TypeError, r"every_k\(optimizer, k\) needs .* not 2"),
    "every_k of half": (lambda: ANY.every_k(OPTIMIZER, 2.5), ValueError, "k must be an integer of at least 1, not 2.5"),
    "flat of a function": (lambda: optim.flat(ADAM), TypeError, r"flat\(optimizer\) needs an optimizer, .* not adam"),
    "drop_frozen": (lambda: optim.drop_frozen(ADAM, PARAMS, PARAMS), TypeError, "drop_frozen.* not adam, a function"),
    "minimize of a function": (lambda: optim.minimize(ADAM, loss_fn, PARAMS), TypeError, "minimize.* not adam, a func"),
    "minimize, swapped": (
        lambda: ANY.minimize(loss_fn, optim.lbfgs(), PARAMS),
        TypeError,
        r"minimize\(optimizer, fun, params\) needs an optimizer, .* not loss_fn, a function",
    ),
    "minimize, params first": (
        lambda: ANY.minimize(optim.lbfgs(), PARAMS, loss_fn),
        TypeError,
        r"minimize\(optimizer, fun, params\) needs a function \(params, \*args\) -> loss as fun, not a dict",
    ),
    "optimizer_state_dict": (
        lambda: torch_interop.optimizer_state_dict(ADAM, STATE, PARAMS),
        TypeError,
        "needs an optimizer, .* not adam, a function",
    ),
    # a function that makes an optimizer is wanted
    "load_optimizer of a name": (
        lambda: ANY.torch_interop.load_optimizer("adamw", STATE_DICT, PARAMS),
        TypeError,
        "the function that makes the optimizer, such as jaxopt_port.adamw, not 'adamw'",
    ),
    "load_optimizer of an optimizer": (
        lambda: torch_interop.load_optimizer(OPTIMIZER, STATE_DICT, PARAMS),
        TypeError,
        "the function that makes the optimizer, such as jaxopt_port.adamw, not an Optimizer",
    ),
    # gradients, and the order of arguments
    "gradients as a list": (
        lambda: OPTIMIZER.step(LIST, STATE, PARAMS),
        ValueError,
        r"Expected dict, got \[float32\[1\], float32\[2\]\]\. Give a tree like the parameters, as jax\.grad",
    ),
    "a list to every_k": (
        lambda: optim.every_k(OPTIMIZER, 2).step(LIST, optim.every_k(OPTIMIZER, 2).init(PARAMS), PARAMS),
        ValueError,
        "the tree of the gradients is not that of the parameters: Expected dict, got",
    ),
    "a list to accumulate_grad": (
        lambda: optim.accumulate_grad(PARAMS, LIST),
        ValueError,
        "the tree of the new gradients is not that of the gradients so far: Expected dict, got",
    ),
    "loss and gradients": (
        lambda: OPTIMIZER.step(jax.value_and_grad(loss_fn)(PARAMS), STATE, PARAMS),
        ValueError,
        r"Expected dict, got \(float32\[\], {'b': float32",
    ),
    "state after params": (
        lambda: OPTIMIZER.step(PARAMS, PARAMS, STATE),
        TypeError,
        r"got a dict: state comes before params, as in step\(grads, state, params\)",
    ),
    "a closure that is a loss": (
        lambda: OPTIMIZER.step_closure(loss_fn(PARAMS), STATE, PARAMS),
        TypeError,
        r"closure must be a function, \(params, \*args\) -> loss, not an ArrayImpl",
    ),
    "closure, swapped": (
        lambda: OPTIMIZER.step_closure(STATE, loss_fn, PARAMS),
        TypeError,
        "closure must be.* OptState",
    ),
    # groups
    "a group of None": (lambda: ANY.ParamGroup(None), TypeError, "ParamGroup needs a pattern.*None"),
    "a group of arrays": (lambda: ANY.ParamGroup(LIST), TypeError, "ParamGroup needs a pattern, a list of paths"),
    "a group of an array": (
        lambda: ANY.ParamGroup(PARAMS["w"]),
        TypeError,
        "ParamGroup needs a pattern, a list of path",
    ),
    "a group as torch's": (
        lambda: ANY.ParamGroup({"params": 1}),
        TypeError,
        "ParamGroup needs a pattern.*{'params': 1}",
    ),
    "set_hyper of a name": (
        lambda: ANY.set_hyper(STATE, group="a", lr=0.1),
        ValueError,
        r"group 'a' does not exist: the state has groups 0 to 0, by their numbers, as in set_hyper\(state, group=0, lr",
    ),
    "set_hyper of the optimizer": (lambda: optim.set_hyper(OPTIMIZER, lr=0.1), TypeError, "pass its state"),
    "set_hyper(learning_rate)": (
        lambda: optim.set_hyper(STATE, learning_rate=0.1),
        ValueError,
        "'learning_rate' is not a live hyper-parameter of group 0: live are betas, eps, lr, weight_decay",
    ),
    "add_param_group, swapped": (
        lambda: ANY.add_param_group(STATE, OPTIMIZER, PARAMS, GROUP),
        TypeError,
        r"add_param_group\(optimizer, state, params, group\) needs an optimizer, .* not an OptState",
    ),
    "add_param_group, group first": (
        lambda: ANY.add_param_group(OPTIMIZER, STATE, GROUP, PARAMS),
        TypeError,
        r"group must be a ParamGroup\(which, lr=...\), not a dict",
    ),
    "add_param_group, params first": (
        lambda: ANY.add_param_group(OPTIMIZER, PARAMS, STATE, GROUP),
        TypeError,
        "expected the OptState that init returned, got a dict: state comes before params",
    ),
    # schedulers
    "math.cos under jit": (
        lambda: jitted(math.cos),
        TypeError,
        r"under jit .* lr_lambda .*tabulate\(function, steps\)",
    ),
    "if under jit": (lambda: jitted(lambda epoch: 1.0 if epoch < 2 else 0.1), TypeError, "lr_scheduler.tabulate"),
    "a scheduler of an optimizer": (
        lambda: ANY.lr_scheduler.step_lr(OPTIMIZER, 3),
        TypeError,
        r"step_lr got an optimizer: the scheduler gets its state, scheduler\.init\(state\)",
    ),
    "init of an optimizer": (
        lambda: optim.lr_scheduler.step_lr(3).init(OPTIMIZER),
        TypeError,
        r"this is the optimizer: pass its state, which optimizer\.init\(params\) returns",
    ),
    "scheduler.step, swapped": (
        lambda: optim.lr_scheduler.step_lr(3).step(STATE, optim.lr_scheduler.step_lr(3).init(STATE)[0]),
        TypeError,
        "the first argument has to be the scheduler's state, which init returned, not an OptState",
    ),
    # scalers
    "a disabled scaler's state": (
        lambda: torch_interop.load_grad_scaler({}),
        RuntimeError,
        r"disabled instance of GradScaler\. .* go on with GradScaler\(enabled=False\) and its init\(\)",
    ),
    "a scaler's device": (
        lambda: ANY.GradScaler("cuda"),
        TypeError,
        "init_scale must be a number, not 'cuda': .*no dev",
    ),
    "scale, swapped": (
        lambda: ANY.GradScaler().scale(jnp.ones(()), ANY.GradScaler().init()),
        TypeError,
        r"state must be the GradScalerState that init or update returned, .* not an ArrayImpl",
    ),
    "unscale of the optimizer": (
        lambda: ANY.GradScaler().unscale(OPTIMIZER, PARAMS),
        TypeError,
        r"state must be the GradScalerState that init or update returned, .* not an Optimizer",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_the_error_names_the_remedy(name: str) -> None:
    call, error, words = MISTAKES[name]
    with pytest.raises(error, match=words):
        call()


def test_numpys_integers_are_integers() -> None:
    optimizer = optim.every_k(OPTIMIZER, np.int64(2))  # pyright: ignore[reportArgumentType]
    params, state = optimizer.step(PARAMS, optimizer.init(PARAMS), PARAMS)
    assert (params["w"] == PARAMS["w"]).all()
    params, _ = optimizer.step(PARAMS, state, params)
    assert (params["w"] != PARAMS["w"]).all()
    assert optim.get_hyper(optim.set_hyper(STATE, group=np.int64(0), lr=0.5))[0]["lr"] == 0.5  # pyright: ignore

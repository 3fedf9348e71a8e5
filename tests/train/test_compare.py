"""`python -m train.compare`: the command end to end, and deliberate differences that it has to find."""

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import jaxopt_port as optim
from train import data
from train.compare import comparison
from train.compare.__main__ import arguments, main
from train.config import Config
from train.data import Data
from train.errors import UsageError
from train.training import make_training

torch = pytest.importorskip("torch")

CONFIG = Config(lr=0.01, init="torch", limit=40, batch_size=4, epochs=1)


def digits() -> Data:
    return Data(data.load("digits", "test").first(CONFIG.limit), None, 10, "")


def test_a_comparison_leaves_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Clipping, accumulation over the end of an epoch, a plateau, an average of weights, a shuffled order."""
    path = tmp_path / "report.html"
    argv = "--limit 22 --epochs 3 --batch-size 5 --accumulate 2 --clip-grad-norm 0.5 --ema 0.9 --option momentum=0.9"
    argv += " --scheduler reduce_lr_on_plateau --scheduler-option patience=0 --scheduler-option threshold=0.9"
    monkeypatch.setattr(sys, "argv", ["compare", *argv.split(), "--report", str(path)])
    assert main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("The port follows torch through all 7 steps: nothing is further off than rounding")
    assert lines[-1] == f"the report is {path}"
    assert "<h2>Step 1, from torch's own" in path.read_text()
    assert "Learning rate" in path.read_text()  # it has moved


def test_an_optimizer_that_takes_closures() -> None:
    config = replace(CONFIG, optimizer="lbfgs", option=("max_iter=4",), steps=2, scheduler="exponential_lr")
    config = replace(config, scheduler_option=("gamma=0.5",), scheduler_interval="step")
    found = comparison.followed(config, make_training(config), 4.0, digits())
    assert found.ok, found.verdict
    assert len(found.points) == 2


def test_adafactor_factors_what_torch_factors() -> None:
    config = replace(CONFIG, optimizer="adafactor", steps=2)
    found = comparison.followed(config, make_training(config), 4.0, digits())
    assert found.ok, found.verdict
    of_last_two = make_training(config)._replace(optimizer=optim.adafactor(0.01))
    blamed = comparison.followed(config, of_last_two, 4.0, digits()).blamed
    assert blamed is not None
    assert (blamed.step, blamed.stage, blamed.parameter) == (1, "update", "0.weight")
    assert "adafactor(factored_axes=(0, 1))" in blamed.why


def test_rprop_multiplies_gradients_that_are_nearly_zero() -> None:
    config = replace(CONFIG, optimizer="rprop", steps=4)  # in the fourth, products of 8.weight's are below 1e-38
    found = comparison.followed(config, make_training(config), 4.0, digits())
    assert found.ok, found.verdict


def test_another_schedule_is_found() -> None:
    """Two batches a step of the optimizer: the second step has another rate here."""
    config = replace(CONFIG, option=("momentum=0.9",), accumulate=2, clip_grad_norm=1.0, scheduler="step_lr")
    config = replace(config, scheduler_option=("step_size=1", "gamma=0.98"), scheduler_interval="step")
    other = make_training(replace(config, scheduler_option=("step_size=1", "gamma=0.99")))
    blamed = comparison.followed(config, other, 4.0, digits()).blamed
    assert blamed is not None
    assert (blamed.step, blamed.stage, blamed.parameter) == (2, "schedule", "0.weight")


Loss = Callable[..., tuple[jax.Array, Any]]


def wrong_loss(loss: Loss, there: jax.Array, *batch: Any) -> tuple[jax.Array, Any]:
    value, metrics = loss(*batch)
    return value * jnp.where(there, 1.001, 1.0), metrics


@jax.custom_vjp
def one(x: jax.Array, there: jax.Array) -> jax.Array:
    return x


def _one_backward(there: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, None]:
    return cotangent * jnp.where(there, 1.01, 1.0), None


one.defvjp(lambda x, there: (x, there), _one_backward)


def wrong_gradient(loss: Loss, there: jax.Array, params: Any, *batch: Any) -> tuple[jax.Array, Any]:
    layer = params["Dense_0"] | {"kernel": one(params["Dense_0"]["kernel"], there)}
    return loss(params | {"Dense_0": layer}, *batch)


@pytest.mark.parametrize(
    ("wrong", "stage", "parameter"), [(wrong_loss, "loss", None), (wrong_gradient, "gradient", "7.weight")]
)
def test_a_fault_in_a_batch_is_found(
    monkeypatch: pytest.MonkeyPatch, wrong: Callable[..., Any], stage: str, parameter: str | None
) -> None:
    loss, read = comparison.batch_loss, digits()
    faulty = read.train.images[36:40]  # those of the tenth step, which is looked at whole

    def batch_loss(params: Any, images: Any, labels: Any, *rest: Any) -> tuple[jax.Array, Any]:
        return wrong(loss, (jnp.asarray(images) == faulty).all(), params, images, labels, *rest)

    monkeypatch.setattr(comparison, "batch_loss", batch_loss)
    blamed = comparison.followed(CONFIG, make_training(CONFIG), 4.0, read).blamed
    assert blamed is not None
    assert (blamed.step, blamed.stage, blamed.parameter) == (10, stage, parameter)


def test_where_torch_diverges_the_comparison_ends() -> None:
    config = replace(CONFIG, lr=30.0)
    found = comparison.followed(config, make_training(config), 4.0, digits())
    assert found.points[0].torch < 10
    assert re.search(r"torch's loss is not finite in step \d", " ".join(found.notes))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--bound -1", "--bound -1.0: must be at least 0"),
        ("--report no/such/report.html", "--report no/such/report.html: is a directory, or in one that does not exist"),
        ("--run-dir new", "/new: no run folder is written"),
        ("--optimizer nonlinear_cg", "torch has none to compare with"),
    ],
)
def test_what_cannot_be_compared_is_said(argv: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        arguments(argv.split())


def test_what_torch_does_not_take_is_said() -> None:
    config = replace(CONFIG, optimizer="muon")
    with pytest.raises(UsageError, match="--optimizer muon: PyTorch's run ended: Muon only supports 2D"):
        comparison.followed(config, make_training(config), 4.0, digits())


def test_without_torch_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install torch"):
        arguments([])

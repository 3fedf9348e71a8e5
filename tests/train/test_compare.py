"""`python -m train.compare`: the command end to end, and deliberate differences that it has to find."""

import pickle
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train import data, step
from train.compare import blame, lockstep, report, verdict
from train.compare.__main__ import arguments, main
from train.compare.blame import Blame
from train.compare.lockstep import YARDSTICKS, Lockstep
from train.compare.messages import Task
from train.config import Config
from train.data import Data
from train.errors import UsageError
from train.training import Training, make_training

torch = pytest.importorskip("torch")
from train.compare import torch_run  # noqa: E402

CONFIG = Config(lr=0.01, init="torch", limit=20, batch_size=4, epochs=1)
SMALL = {name: YARDSTICKS[name] for name in ("oneDNN with SSE 4.1",)}


@pytest.fixture(autouse=True)
def _little_work(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in YARDSTICKS.keys() - SMALL.keys():
        monkeypatch.delitem(YARDSTICKS, name)
    monkeypatch.setattr(lockstep, "make_step", cache(lockstep.make_step))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


class Tags(HTMLParser):
    """Checks that tags are closed in order, and collects them."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_comparison_leaves_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "report.html"
    argv = ["--limit", 20, "--epochs", 2, "--batch-size", 5, "--bound", 0, "--report", path]
    monkeypatch.setattr(sys, "argv", ["compare", *map(str, argv)])
    assert main() == 0
    lines = capsys.readouterr().out.splitlines()
    for number, line in enumerate(lines[1:3], start=1):
        epoch, theirs, ours, apart, *_ = line.split()
        assert int(epoch) == number
        assert float(ours) == pytest.approx(float(theirs), rel=1e-5)
        assert abs(float(ours) - float(theirs)) == pytest.approx(float(apart), abs=1e-6)
    assert "first after step 1, in 0.weight" in lines[3]
    assert "by rounding" in lines[4]  # and so within what torch is from itself
    assert lines[-1] == f"the report is {path}"

    page = path.read_text()
    tags = Tags()
    tags.feed(page)
    assert not tags.open
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in tags.seen}
    assert not [attributes for _, attributes in tags.seen if {"src", "href"} & attributes.keys()]
    assert "url(" not in page
    assert len([tag for tag, _ in tags.seen if tag == "svg"]) == 2 + 10
    drawn = [attributes["class"] for tag, attributes in tags.seen if tag == "polyline"]
    assert {"ours", "torch", *(report.OTHERS[name] for name in SMALL)} == set(drawn)
    text = re.sub(r"<[^>]*>", " ", page)
    for part in ("0.weight", "8.bias", torch.__version__, jax.__version__, "batch size 5", lines[4].split(":")[0]):
        assert part in text


@contextmanager
def torch_here(task: Task, environment: dict[str, str]) -> Iterator[Any]:
    """torch's run in this process, which spares its start."""
    messages = torch_run.messages(pickle.loads(pickle.dumps(task)))

    class Reader:
        def read(self, kind: type) -> Any:
            message = next(messages)
            assert isinstance(message, kind)
            return message

    yield Reader()


def compared(monkeypatch: pytest.MonkeyPatch, training: Training, config: Config = CONFIG) -> Blame | None:
    monkeypatch.setattr(lockstep, "torch_process", torch_here)
    monkeypatch.setattr(blame, "torch_process", torch_here)
    run = Lockstep(config, training, 32.0)
    examples = data.load(config.dataset, config.split).first(config.limit)
    for _ in run.epochs(Data(examples, None, 10, "")):
        pass
    found = blame.blame(run, examples)
    where = "never part" if found is None else f"after step {found.step:,}, in {verdict.NAMES[found.parameter]}"
    assert where in verdict.sentences(run, found)[0]
    return found


def test_another_learning_rate_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two batches a step of the optimizer: the second step, at the fourth batch, has another rate here."""
    config = replace(CONFIG, option=("momentum=0.9",), accumulate=2, clip_grad_norm=1.0)
    schedule = {"scheduler": "step_lr", "scheduler_option": ("step_size=1", "gamma=0.99"), "scheduler_interval": "step"}
    found = compared(monkeypatch, make_training(replace(config, **schedule)), config)
    assert found is not None
    assert (found.step, found.cause, found.rounding) == (4, "update", False)
    assert found.carried < 32 < found.apart
    assert (found.ours.backward < 32).all()


Loss = Callable[..., tuple[jax.Array, Any]]


def wrong_loss(loss: Loss, there: jax.Array, *batch: Any) -> tuple[jax.Array, Any]:
    value, metrics = loss(*batch)
    value = value * jnp.where(there, 1.001, 1.0)
    return value, metrics._replace(loss=value)


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
    ("wrong", "cause", "parameter"), [(wrong_loss, "forward", None), (wrong_gradient, "gradient", "7.weight")]
)
def test_a_fault_in_a_batch_is_found(
    monkeypatch: pytest.MonkeyPatch, wrong: Callable[..., Any], cause: str, parameter: str | None
) -> None:
    loss, faulty = step.batch_loss, data.load("digits", "test").images[12:16]  # the fourth batch

    def batch_loss(params: Any, images: Any, labels: Any) -> tuple[jax.Array, Any]:
        return wrong(loss, (jnp.asarray(images) == faulty).all(), params, images, labels)

    monkeypatch.setattr(step, "batch_loss", batch_loss)
    monkeypatch.setattr(blame, "batch_loss", batch_loss)
    found = compared(monkeypatch, make_training(CONFIG))
    assert found is not None
    assert (found.step, found.cause, found.rounding) == (4, cause, False)
    if parameter is not None:
        assert verdict.NAMES[found.parameter] == parameter
        others = np.delete(found.ours.backward, found.parameter)
        assert (others < 32).all()


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


def test_without_torch_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install torch"):
        arguments([])

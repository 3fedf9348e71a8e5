"""The recorder: what is in the file, that it changes nothing in the run, and that it needs no JAX."""

import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxopt_port.compare import record as recorder
from jaxopt_port.compare.trace import Trace, TraceError, read

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

STEPS = 4


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 80), nn.ReLU(inplace=True), nn.BatchNorm1d(80), nn.Dropout(0.5), nn.Linear(80, 3))


def train(
    model: nn.Module,
    optimizer: Any,
    path: Path | None,
    *,
    full: tuple[int, ...] = (1,),
    redo: int | None = None,
    clip: float | None = None,
    scaler: Any = None,
    accumulate: int = 1,
    after_step: Callable[[], None] = lambda: None,
) -> list[float]:
    """A usual loop; its losses."""
    generator, losses = torch.Generator().manual_seed(1), []
    criterion = nn.CrossEntropyLoss()

    def run(r: Any) -> None:
        if redo:
            r.redo(lambda x, y: criterion(model(x), y), step=redo)
        for _ in range(STEPS):
            optimizer.zero_grad()
            for _ in range(accumulate):
                x = torch.randn(16, 5, generator=generator)
                y = torch.randint(0, 3, (16,), generator=generator)
                if r:
                    r.batch(x=x, y=y)
                loss = criterion(model(x), y)
                if r:
                    r.loss(loss)
                (scaler.scale(loss) if scaler else loss / accumulate).backward()
                losses.append(loss.item())
            if scaler:
                scaler.unscale_(optimizer)
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            if scaler:
                scaler.step(optimizer)
                scaler.update()
            else:
                optimizer.step()
            after_step()

    if path is None:
        run(None)
    else:
        with recorder.record(model, optimizer, path, full=full) as r:
            run(r)
    return losses


def sampled(trace: Trace, model: nn.Module) -> dict[str, np.ndarray]:
    return {n: p.detach().numpy().ravel()[trace.index[n]] for n, p in model.named_parameters()}


def test_it_needs_no_jax_and_is_loaded_by_its_path(tmp_path: Path) -> None:
    script = f"""
        import importlib.util, sys, torch
        spec = importlib.util.spec_from_file_location("record", {recorder.__file__!r})
        record = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(record)
        model = torch.nn.Linear(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        with record.record(model, optimizer, {str(tmp_path / "run.trace")!r}) as r:
            x = torch.ones(3, 2)
            r.batch(x=x)
            loss = model(x).sum()
            r.loss(loss)
            loss.backward()
            optimizer.step()
        assert not {{"jax", "jaxopt_port"}} & sys.modules.keys()
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, cwd=tmp_path)
    trace = read(tmp_path / "run.trace")
    (step,) = trace.steps
    before, after = trace.model["weight"], step.frame.arrays("after/")["weight"]
    np.testing.assert_array_equal(step.frame.arrays("grad/")["weight"], np.full((1, 2), 3.0, np.float32))
    np.testing.assert_allclose(after, before - 1.5, rtol=1e-6)
    np.testing.assert_array_equal(step.batches()[0]["x"], np.ones((3, 2), np.float32))


def test_recording_and_doing_a_step_again_change_nothing(tmp_path: Path) -> None:
    """Losses and weights have the same bits with a recorder, with dropout and BatchNorm, as without."""
    runs = []
    for path, redo in ((None, None), (tmp_path / "a", None), (tmp_path / "b", 2)):
        model = network()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        torch.manual_seed(7)
        losses = train(model, optimizer, path, redo=redo)
        runs.append((losses, {n: x.numpy().copy() for n, x in model.state_dict().items()}))
    for losses, state in runs[1:]:
        assert losses == runs[0][0]
        for name, value in state.items():
            np.testing.assert_array_equal(value, runs[0][1][name], err_msg=name)


def test_a_step_that_is_done_again_says_how_far_torch_is_from_itself(tmp_path: Path) -> None:
    model = network()
    train(model, torch.optim.AdamW(model.parameters(), lr=1e-2), tmp_path / "run", redo=2)
    steps = read(tmp_path / "run").steps
    assert [step.redo is not None for step in steps] == [False, True, False, False]
    assert [step.full for step in steps] == [True, True, False, False]
    assert steps[1].redo is not None
    apart = steps[1].redo["float64"]
    for quantity in ("loss", "grad", "output", "output_grad", "after"):
        l2 = [value[0] for value in apart[quantity].values()]
        assert max(l2) < 1e-5, quantity  # the same masks of the dropout, the same statistics
    assert max(value[0] for value in apart["grad"].values()) > 0


def test_a_killed_run_leaves_what_it_had(tmp_path: Path) -> None:
    model, path = network(), tmp_path / "run"
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), path)
    whole, data = read(path), path.read_bytes()
    rng = np.random.default_rng(0)
    for size in rng.integers(len(data) * 3 // 4, len(data), 10):
        path.write_bytes(data[:size])
        cut = read(path)
        assert cut.cut or size == len(data)
        for got, was in zip(cut.steps, whole.steps, strict=False):
            assert got.losses == was.losses
    for at in rng.integers(12, len(data) - 4, 10):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        try:
            damaged = read(path)
        except (TraceError, ValueError):
            continue
        assert damaged.cut  # a size that reaches past the end
    path.write_bytes(b"something else")
    with pytest.raises(TraceError, match="is no recorded run"):
        read(path)


def test_what_the_optimizer_saw_and_what_backward_left(tmp_path: Path) -> None:
    """Clipping, a GradScaler and accumulation: with their own figures."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train(model, optimizer, tmp_path / "clip", clip=0.25)
    (step, *_) = read(tmp_path / "clip").steps
    grads, raw = step.frame.arrays("grad/"), step.frame.arrays("raw/")
    assert np.sqrt(sum((g**2).sum() for g in grads.values())) == pytest.approx(0.25, rel=1e-4)
    assert np.sqrt(sum((g**2).sum() for g in raw.values())) > 0.3
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train(model, optimizer, tmp_path / "scaled", scaler=torch.amp.GradScaler("cpu", init_scale=1024.0))
    (step, *_) = read(tmp_path / "scaled").steps
    assert step.frame.header["factors"] == [1024.0]
    grads, raw = step.frame.arrays("grad/"), step.frame.arrays("raw/")
    for name, g in grads.items():
        np.testing.assert_allclose(raw[name], 1024 * g, rtol=1e-6)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train(model, optimizer, tmp_path / "parts", accumulate=2)
    (step, *_) = read(tmp_path / "parts").steps
    assert len(step.batches()) == len(step.losses) == 2
    assert step.frame.header["factors"] == [0.5, 0.5]


def test_groups_and_schedules_are_those_of_the_step(tmp_path: Path) -> None:
    model = network()
    parameters = list(model.parameters())
    groups = [{"params": parameters[:2], "lr": 0.2}, {"params": parameters[2:], "momentum": 0.5}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    train(model, optimizer, tmp_path / "run", after_step=scheduler.step)
    trace = read(tmp_path / "run")
    assert [[g["lr"] for g in step.hyper[0]] for step in trace.steps] == [
        [0.2 * 0.5**i, 0.1 * 0.5**i] for i in range(STEPS)
    ]
    assert [g["momentum"] for g in trace.steps[0].hyper[0]] == [0.9, 0.5]
    assert [len(g["names"]) for g in trace.optimizers[0]["groups"]] == [2, 4]


OPTIMIZERS = [
    "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "ASGD", "LBFGS", "NAdam", "RAdam", "RMSprop",
    "Rprop", "SGD", "Muon", "SparseAdam",
]  # fmt: skip


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_is_recorded(tmp_path: Path, name: str) -> None:
    """The sampled elements are those of the parameters after each step, and a full step holds the state before it."""
    torch.manual_seed(0)
    sparse = name == "SparseAdam"
    model = nn.Embedding(9, 4, sparse=True) if sparse else nn.Linear(9, 8, bias=False)
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.1)
    seen, state = [], {}
    with recorder.record(model, optimizer, tmp_path / "run", full=(3,)) as r:
        for _ in range(3):
            x = torch.randint(0, 9, (6,)) if sparse else torch.randn(6, 9)
            r.batch(x=x)

            def closure(x: Any = x) -> Any:
                optimizer.zero_grad()
                loss = (model(x) ** 2).sum()
                r.loss(loss)
                loss.backward()
                return loss

            state = {k: v.clone() for k, v in optimizer.state[model.weight].items() if hasattr(v, "clone")}
            if name == "LBFGS":
                optimizer.step(closure)
            else:
                closure()
                optimizer.step()
            seen.append(model.weight.detach().numpy().copy())
    trace = read(tmp_path / "run")
    for step, after in zip(trace.steps, seen, strict=True):
        np.testing.assert_array_equal(trace.samples(step, "after")["weight"], after.ravel()[trace.index["weight"]])
        assert trace.norms(step, "after")["weight"] == pytest.approx(np.linalg.norm(after), rel=1e-6)
    kept = trace.steps[2].frame.arrays("state/")
    for key, value in state.items():
        np.testing.assert_array_equal(kept[f"weight/{key}"], value.numpy())
    np.testing.assert_array_equal(trace.steps[2].frame.arrays("after/")["weight"], seen[2])


def test_layers_are_what_they_were_before_an_operation_in_place(tmp_path: Path) -> None:
    """torch's own autograd says what a module's output was and what its gradient is."""
    model: Any = network()
    x = torch.randn(16, 5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with recorder.record(model, optimizer, tmp_path / "run") as r:
        r.batch(x=x)
        first = x @ model[0].weight.T + model[0].bias
        loss = (model(x) ** 2).sum()
        r.loss(loss)
        loss.backward()
        optimizer.step()
    (step,) = read(tmp_path / "run").steps
    outputs = step.frame.arrays("output/")
    np.testing.assert_allclose(outputs["0"], first.detach().numpy(), rtol=1e-5, atol=1e-6)
    assert (outputs["0"] < 0).any()
    assert (outputs["1"] >= 0).all()
    assert step.frame.header["inputs"]["2"] == "1"
    np.testing.assert_allclose(step.frame.arrays("output_grad/")["4"], 2 * outputs["4"], rtol=1e-6)


def test_sizes_are_said_before_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.Linear(1000, 1000)
    optimizer = torch.optim.Adam(model.parameters())
    with recorder.record(model, optimizer, tmp_path / "run", layers=False) as r:
        said = capsys.readouterr().err
        sizes = []
        for _ in range(3):
            x = torch.zeros(1, 1000)
            r.batch(x=x)
            loss = model(x).sum()
            r.loss(loss)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            sizes.append((tmp_path / "run").stat().st_size)
    assert f"the start {r.sizes['start'] / 1e6:,.2f} MB" in said
    start = 4 * 1001 * 1000
    assert r.sizes["start"] == pytest.approx(start, rel=0.01)
    assert sizes[0] - start < 1.05 * r.sizes["full"]
    assert sizes[2] - sizes[1] < r.sizes["sampled"] + 4 * 1000 + 4000  # the batch, the header


def test_errors(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"full has \[0\]: steps are counted from 1"):
        recorder.record(model, optimizer, tmp_path / "run", full=(0,))
    with pytest.raises(ValueError, match="optimizer 0 has a parameter that the model does not have"):
        recorder.record(nn.Linear(2, 1), optimizer, tmp_path / "run")
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, not a dict"):
        recorder.record({}, optimizer, tmp_path / "run")
    with pytest.raises(TypeError, match=r"optimizer must be a torch.optim.Optimizer, or a list, not a NoneType"):
        recorder.record(model, None, tmp_path / "run")
    with pytest.raises(RuntimeError, match=r"r\.batch belongs into the block"):
        recorder.record(model, optimizer, tmp_path / "run").batch(x=torch.zeros(1, 2))
    with recorder.record(model, optimizer, tmp_path / "run") as r:
        r.batch(x=torch.zeros(1, 2))
        with pytest.raises(ValueError, match="step 1 is over or under way"):
            r.redo(lambda x: model(x).sum(), step=1)

"""`--resume-torch` and `--export-torch`: a torch run goes on here, and a run of ours in torch."""

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from train.__main__ import main

torch = pytest.importorskip("torch")
from tests.train import torch_side  # noqa: E402
from train import data  # noqa: E402
from train.command_line import parse  # noqa: E402

FLAGS = (
    "--limit 24 --batch-size 4 --option momentum=0.9 --scheduler exponential_lr --scheduler-option gamma=0.5 --quiet"
)


def command(*argv: object) -> int:
    return main([*FLAGS.split(), *map(str, argv)])


class TorchRun:
    """The same run in torch, in its own names."""

    def __init__(self) -> None:
        config = parse(FLAGS.split())
        self.examples = data.load("digits", "test").first(config.limit)
        self.model = torch_side.network(torch_side.initial_params(config))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.5)

    def states(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler}

    def save(self, path: Path) -> Path:
        torch.save({name: one.state_dict() for name, one in self.states().items()}, path)
        return path

    def load(self, path: Path) -> None:
        written = torch.load(path, weights_only=True)
        for name, one in self.states().items():
            one.load_state_dict(written[name])

    def epoch(self) -> None:
        for start in range(0, 24, 4):
            images, labels = (x[start : start + 4] for x in self.examples)
            self.optimizer.zero_grad()
            logits = self.model(torch_side.to_tensor(images))
            torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels).long()).backward()
            self.optimizer.step()
        self.scheduler.step()


def assert_close(ours: Path, theirs: TorchRun) -> None:
    written = torch.load(ours, weights_only=True)
    for name, value in theirs.model.state_dict().items():
        np.testing.assert_allclose(written["model"][name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    state = theirs.optimizer.state_dict()
    for i, one in state["state"].items():
        buffer = written["optimizer"]["state"][i]["momentum_buffer"]
        np.testing.assert_allclose(buffer, one["momentum_buffer"], rtol=1e-3, atol=1e-4)
    (group,), (expected,) = written["optimizer"]["param_groups"], state["param_groups"]
    assert {name: group[name] for name in expected} == expected
    assert written["scheduler"] == theirs.scheduler.state_dict()


def test_there_and_back(tmp_path: Path) -> None:
    theirs = TorchRun()
    theirs.epoch()
    half = theirs.save(tmp_path / "half.pt")
    out = tmp_path / "out.pt"
    argv = ["--resume-torch", half, "--export-torch", out, "--epochs", 1, "--run-dir", tmp_path / "a"]
    assert command(*argv) == 0
    theirs.epoch()
    assert_close(out, theirs)

    again = TorchRun()  # from ours, on in torch
    again.load(out)
    again.epoch()
    theirs.epoch()
    for ours, expected in zip(again.model.parameters(), theirs.model.parameters(), strict=True):
        np.testing.assert_allclose(ours.detach(), expected.detach(), rtol=1e-4, atol=1e-5)


def test_a_shuffled_run_goes_on_in_its_own_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = "cifar10 --dataset digits --split test --init torch --limit 24 --batch-size 4 --quiet"
    flags += " --scheduler-option T_max=12"  # by default that of each run's own length

    def last_epoch(name: str, *argv: object) -> dict[str, Any]:
        run = ["--run-dir", tmp_path / name, "--export-torch", tmp_path / f"{name}.pt"]
        monkeypatch.setattr(sys, "argv", ["train", *flags.split(), *map(str, (*run, *argv))])
        assert main() == 0
        line = json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[-1])
        return {key: value for key, value in line.items() if key != "images_per_second"}

    last_epoch("half", "--epochs", 1)
    resumed = last_epoch("resumed", "--epochs", 2, "--resume-torch", tmp_path / "half.pt", "--start-epoch", 2)
    assert resumed == last_epoch("whole", "--epochs", 2)
    whole, other = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("whole", "resumed"))
    assert pickle.dumps(jax.tree.map(np.asarray, whole)) == pickle.dumps(jax.tree.map(np.asarray, other))


def test_flags_are_used_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    half, flags = tmp_path / "half.pt", "--limit 6 --quiet --accumulate 2 --batch-size 2 --ema 0.9 --optimizer adam"

    def train(*argv: object) -> int:
        monkeypatch.setattr(sys, "argv", ["train", *flags.split(), *map(str, argv)])
        return main()

    assert train("--epochs", 2, "--export-torch", half, "--run-dir", tmp_path / "a") == 0  # 3 batches an epoch
    resume = ("--epochs", 3, "--resume-torch", half)
    used = ("--lr", 0.5, "--option", "betas=0.5,0.6", "--run-dir", tmp_path / "b")
    assert train(*resume, *used) == 0
    line = json.loads((tmp_path / "b" / "metrics.jsonl").read_text())
    assert (line["epoch"], line["step"], line["lr"]) == (3, 9, [0.5])
    capsys.readouterr()
    for argv, message in {
        "--seed 3": "it is of a run with --seed 0, this one has 3",
        "--limit 5": "it is of a run with --limit 6, this one has 5",
        "--batch-size 1": "it is of a run with --batch-size 2, this one has 1",
        "--ema 0.5": "it is of a run with --ema 0.9, this one has 0.5",
        "--start-epoch 2": "its run goes on with epoch 3, not with --start-epoch 2",
        "--option amsgrad=True": "its optimizer has amsgrad=False, this run's True",
    }.items():
        assert train(*resume, *argv.split(), "--run-dir", tmp_path / "c") == 2
        assert message in capsys.readouterr().err
    assert train(*resume[2:], "--epochs", 1, "--export-torch", tmp_path / "x.pt", "--run-dir", tmp_path / "c") == 2
    assert "has had 2 epochs: give more, such as --epochs 3" in capsys.readouterr().err

    odd = tmp_path / "odd.pt"
    assert train("--epochs", 1, "--export-torch", odd, "--run-dir", tmp_path / "d") == 0
    assert train("--epochs", 3, "--resume-torch", odd, "--run-dir", tmp_path / "c") == 2
    assert "the gradients of 1 of --accumulate 2 batches are not in such a file" in capsys.readouterr().err

    def spoil(kind: str, name: Any, value: float | None) -> None:
        written = torch.load(half, weights_only=True)
        entry = written["model"] if kind == "model" else written["optimizer"]["state"][0]
        entry[name] = entry[name].int() if value is None else torch.full_like(entry[name], value)
        torch.save(written, tmp_path / "spoilt.pt")

    for kind, name, value, message in (
        ("model", "0.weight", float("nan"), "its weight '0.weight' is not finite"),
        ("model", "0.weight", None, "its weight '0.weight' is int32, not floating point"),
        ("state", "exp_avg_sq", -1.0, "its optimizer's exp_avg_sq of parameter 0 is negative: -1.0"),
        ("state", "step", -5.0, "its optimizer's step of parameter 0 is negative: -5.0"),
        ("state", "exp_avg", float("inf"), "its optimizer's exp_avg of parameter 0 is not finite"),
    ):
        spoil(kind, name, value)
        assert train("--epochs", 3, "--resume-torch", tmp_path / "spoilt.pt", "--run-dir", tmp_path / "c") == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


def test_a_schedule_is_not_resumed_past_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    schedule = "--scheduler one_cycle_lr --scheduler-interval step --scheduler-option max_lr=0.1"
    flags = f"--quiet --limit 6 --option momentum=0.9 {schedule} --scheduler-option total_steps=8"
    half = tmp_path / "half.pt"
    for files, expected in {("--export-torch", half): 0, ("--resume-torch", half): 2}.items():
        run = ["--run-dir", str(tmp_path / files[0]), *map(str, files), "--epochs", "2" if expected else "1"]
        monkeypatch.setattr(sys, "argv", ["train", *flags.split(), *run])
        assert main() == expected
    message = "it has 8 steps, and the run takes 6 after the 6 it has taken"
    assert message in capsys.readouterr().err
    assert not (tmp_path / "--resume-torch").exists()


def test_what_cannot_be_resumed_or_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = TorchRun()
    (tmp_path / "no.pt").write_text("not a file of torch's")
    torch.save({"weights": {}}, tmp_path / "empty.pt")
    torch.save({"model": {"w": torch.ones(2)}, "optimizer": theirs.optimizer.state_dict()}, tmp_path / "other.pt")
    torch.save({"model": None, "optimizer": theirs.optimizer.state_dict()}, tmp_path / "none.pt")
    torch.save({"model": theirs.model.state_dict(), "optimizer": {}}, tmp_path / "dict.pt")
    theirs.optimizer.param_groups[0]["nesterov"] = True
    theirs.save(tmp_path / "nesterov.pt")
    run = ["--run-dir", tmp_path / "run"]
    for name, message in {
        "missing.pt": "No such file",
        "no.pt": "no.pt",
        "empty.pt": "it is not a dict with 'model' or 'model_state_dict' or 'state_dict'",
        "none.pt": "its 'model' is a NoneType, not a state dict",
        "dict.pt": "param_groups",
        "other.pt": "torch's 'w' (w [2]) has no counterpart",
        "nesterov.pt": "its optimizer has nesterov=True, this run's False: write --option nesterov=True",
    }.items():
        assert command("--resume-torch", tmp_path / name, *run) == 2
        printed = capsys.readouterr().err
        assert printed.startswith(f"error: --resume-torch {tmp_path / name}: ")
        assert message in printed
    assert command("--export-torch", tmp_path / "nowhere" / "out.pt", *run) == 2
    assert "in one that does not exist" in capsys.readouterr().err
    for optimizer, message in {"muon_adamw": "two optimizers in torch", "nonlinear_cg": "torch has no"}.items():
        monkeypatch.setattr(
            sys, "argv", ["train", "--optimizer", optimizer, "--export-torch", str(tmp_path / "out.pt")]
        )
        assert main() == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()

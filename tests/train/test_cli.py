"""The command: its run folder, its exit status, and its errors, each one line before any work is done."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from train.__main__ import main
from train.command_line import parse
from train.config import Config
from train.epoch import Epoch
from train.errors import UsageError
from train.recipes import RECIPES
from train.run import diverged
from train.training import make_training, with_length


def command(*argv: object) -> int:
    return main([str(one) for one in argv])


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command("--limit", 30, "--epochs", 3) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"\d{8}-\d{6}-tutorial", folder.name)

    config = json.loads((folder / "config.json").read_text())
    assert (config["optimizer"], config["lr"], config["limit"], config["batch_size"]) == ("sgd", 0.01, 30, 1)
    assert "jax" in config["versions"]

    lines = records(folder)
    assert [(line["epoch"], line["step"]) for line in lines] == [(1, 30), (2, 60), (3, 90)]
    assert [line["lr"] for line in lines] == [[0.01]] * 3
    assert lines[0]["running_loss"] == pytest.approx(30 * lines[0]["loss"])
    assert 60 < lines[0]["running_loss"] < 80  # 30 log(10) for a network that knows nothing
    with PIL.Image.open(folder / "loss.png") as picture:
        assert picture.size == (1350, 975)  # with no panel for a rate that is constant
        assert np.asarray(picture).std() > 5

    printed = capsys.readouterr().out
    for line in lines:
        assert f"{line['running_loss']:.4f}" in printed
    assert f"the run is in {folder.relative_to(tmp_path)}" in printed


def test_an_evaluated_run_with_options(tmp_path: Path) -> None:
    argv = "cifar10 --dataset digits --limit 64 --epochs 1 --optimizer adam --option betas=0.8,0.9 --quiet"
    assert command(*argv.split(), "--run-dir", tmp_path / "run") == 0
    (line,) = records(tmp_path / "run")
    assert line["lr"] == [1e-3]
    assert 0 < line["test_accuracy"] < 1
    assert line["test_loss"] > 0
    assert (tmp_path / "run" / "loss.png").stat().st_size > 10_000


def test_a_scheduled_averaged_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = "--limit 24 --batch-size 4 --epochs 3 --lr 0.1 --scheduler step_lr --scheduler-option step_size=1 --ema 0.5"
    more = "--scheduler-interval epoch --clip-grad-norm 1 --accumulate 2"
    assert command(*argv.split(), *more.split(), "--run-dir", tmp_path / "run") == 0
    lines = records(tmp_path / "run")
    assert [line["lr"] for line in lines] == [[0.1], [0.1 * 0.1], [0.1 * 0.1 * 0.1]]
    assert all(line["ema_test_loss"] != line["test_loss"] for line in lines)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["scheduler"] == "step_lr"
    assert (tmp_path / "run" / "loss.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert "EMA accuracy" in printed
    assert f"{lines[-1]['ema_test_loss']:.4f}" in printed


def test_divergence_is_recorded_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--limit", 20, "--lr", 1000, "--run-dir", tmp_path) == 1
    line = records(tmp_path)[-1]
    assert line["running_loss"] is None
    assert (tmp_path / "loss.png").exists()
    error = capsys.readouterr().err
    assert re.search(rf"stopped: the loss is \w+ at step {line['step']}, step \d+ of epoch {line['epoch']}", error)
    assert "PyTorch" not in error  # which nobody has run with this learning rate


def divergence(config: Config, **changes: Any) -> str:
    last = Epoch(19, 180_007, np.array([1.0, np.nan]), np.zeros(2), np.ones(2), 1.0, np.full((2, 1), 0.01))
    return diverged(config, make_training(config), last._replace(**changes), None)


def test_the_tutorials_divergence_is_torchs_too() -> None:
    message = divergence(RECIPES["tutorial"](), norms={"Conv_0": 1e30})
    assert "at step 180,007, step 2 of epoch 19" in message
    assert "Conv_0 1e+30; there is no checkpoint" in message
    assert "PyTorch's run of this tutorial diverges too" in message


@pytest.mark.parametrize("optimizer", ["sgd", "lbfgs"])
def test_what_is_advised_after_a_divergence_is_taken(optimizer: str) -> None:
    advised = re.search(r"A lower --lr, or (.+), may", divergence(parse(["--optimizer", optimizer, "--lr", "0.5"])))
    assert advised
    more = advised[1].split() + (["1"] if advised[1] == "--clip-grad-norm" else [])
    make_training(parse(["--optimizer", optimizer, "--lr", "0.1", *more]))


def test_a_recipe_is_what_the_other_flags_change() -> None:
    data_dir = ("cifar10", "--data-dir", "x")
    assert parse([]) == RECIPES["tutorial"]()
    assert parse([*data_dir, "--option", "nesterov=True"]).option == ("momentum=0.9", "nesterov=True")
    changed = parse([*data_dir, "--lr", "0.5", "--batch-size=32"])
    assert (changed.lr, changed.batch_size, changed.epochs) == (0.5, 32, RECIPES["cifar10"]().epochs)
    adam = parse([*data_dir, "--optimizer", "adam"])
    assert (adam.lr, adam.option) == (None, ())


@pytest.mark.parametrize(
    ("argv", "options"),
    [
        ("cifar10", ("T_max=120",)),
        ("cifar10 --accumulate 7", ("T_max=17",)),
        ("cifar10 --accumulate 500", ("T_max=1",)),
        ("cifar10 --scheduler-interval epoch --epochs 4", ("T_max=4",)),
        ("cifar10 --scheduler-option eta_min=0.1", ("eta_min=0.1", "T_max=120")),
        ("cifar10 --scheduler-option T_max=9", ("T_max=9",)),
        ("--scheduler one_cycle_lr --scheduler-option max_lr=1", ("max_lr=1", "total_steps=20")),
        ("--scheduler one_cycle_lr --scheduler-option epochs=2", ("epochs=2",)),
        ("--scheduler step_lr --scheduler-option step_size=2", ("step_size=2",)),
        ("", ()),
    ],
)
def test_a_schedule_is_as_long_as_the_run(argv: str, options: tuple[str, ...]) -> None:
    """Of 120 steps in 20 epochs, if no flag says another length."""
    assert with_length(parse(argv.split()), 120).scheduler_option == options


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--batch-size 0", "--batch-size 0: must be at least 1"),
        ("--epochs 0", "--epochs 0: must be at least 1"),
        ("--limit -1", "--limit -1: must be at least 1"),
        ("--steps 0", "--steps 0: must be at least 1"),
        ("--seed -1", "--seed -1: must be at least 0"),
        ("--optimizer sdg", r"--optimizer sdg: unknown; the optimizers are .*adam, .*sgd"),
        ("--option momentun=0.9", r"--option momentun=0.9: sgd has no such option; it has momentum, dampening"),
        ("--option momentum", "--option momentum: write KEY=VALUE"),
        ("--option lr=1", "--option lr=1: write --lr 1"),
        (
            "--option nesterov=yes",
            "--option nesterov=yes: nesterov is True or False, such as nesterov=F",
        ),
        ("--lr -1", "--optimizer sgd with lr=-1.0: Invalid learning rate: -1.0"),
        ("--option nesterov=True", "--optimizer sgd with lr=0.01 nesterov=True: Nesterov momentum requires"),
        ("--optimizer adam --option betas=0.9", "--option betas=0.9: betas takes 2 numbers, such as betas=0.9,0.999"),
        ("--optimizer adam --option betas=0.9,2.0", r"--optimizer adam with betas=\(0.9, 2.0\): Invalid beta"),
        ("--optimizer muon --lr 0.1", "--optimizer muon with lr=0.1: Muon only supports 2D parameters"),
        ("--scheduler cosine", "--scheduler cosine: unknown; the schedulers are .*cosine_annealing_lr"),
        ("--scheduler lambda_lr", "--scheduler lambda_lr: unknown"),
        (
            "--scheduler step_lr",
            "--scheduler step_lr with no options: it needs step_size; write --sched",
        ),
        ("--scheduler none", "--scheduler none: unknown; .*, and None for none"),
        ("--scheduler step_lr --scheduler-option step_size=x", r"--scheduler-option step_size=x: .*such as step_size="),
        ("--scheduler-interval step", "--scheduler-interval step: needs a --scheduler"),
        ("--scheduler-option step_size=3", "--scheduler-option step_size=3: needs a --scheduler"),
        ("--scheduler linear_lr --scheduler-option start_factor=2", "--scheduler linear_lr with start_factor=2: Start"),
        (
            "--scheduler one_cycle_lr --scheduler-option max_lr=1 --scheduler-option total_steps=9",
            "--scheduler one_cycle_lr: optimizer must support momentum or beta1",
        ),
        (
            "--scheduler one_cycle_lr --scheduler-option max_lr=1 --scheduler-option total_steps=9 --optimizer adam",
            r"--scheduler one_cycle_lr: it has 9 steps, and the run takes 20, .*total_steps=20",
        ),
        ("--accumulate 0", "--accumulate 0: must be at least 1"),
        ("--clip-grad-norm 0", r"--clip-grad-norm 0\.0: must be above 0"),
        ("--ema 2", r"--ema 2\.0: must be in \[0, 1\]"),
        ("--lr nan", "--lr nan: is not a number"),
        ("--steps 99999999999", "--steps 99999999999: must be at least 1 and below 2"),
        ("--optimizer lbfgs --option line_search_fn=foo", "--optimizer lbfgs with line_search_fn=foo: only 'strong_w"),
        ("--optimizer lbfgs --accumulate 2", "--accumulate 2: lbfgs evaluates .*; write --batch-size 2"),
        ("--optimizer lbfgs --clip-grad-norm 1", "--clip-grad-norm 1: lbfgs makes its own gradients"),
        ("--optimizer lbfgs --option history_size=9999999999", "--optimizer lbfgs with history_size=9999999999: "),
        ("--optimizer lbfgs --option history_size=99999999", "--optimizer lbfgs with .*: its state takes 1"),
        (
            "--scheduler cosine_annealing_lr --scheduler-option T_max=0",
            "--scheduler cosine_annealing_lr with T_max=0: .*ZeroDivision",
        ),
        (
            "--scheduler step_lr --scheduler-option step_size=0",
            "--scheduler step_lr with step_size=0: Expected positive",
        ),
        ("--dataset ../x", "--dataset ../x: is no name of a dataset"),
        ("--dataset mnist --data-dir /nowhere", "--data-dir /nowhere: no mnist/VERSION/dataset_info.json there"),
        ("--archive x.tar.gz", "--archive .*x.tar.gz: is for --dataset cifar10 and cifar100, not digits"),
        ("--dataset cifar10 --archive no.tar.gz", "--archive .*no.tar.gz: there is no such file"),
        ("--resume nowhere", "--resume nowhere: is not the folder of a run"),
        ("--export-torch /dev/null", "--export-torch /dev/null: is no place for a regular file"),
        ("--export-torch /proc/self/comm", "--export-torch /proc/self/comm: is no place for a regular file"),
    ],
)
def test_errors_are_one_line(
    argv: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command(*argv.split()) == 2
    error = capsys.readouterr().err
    assert re.match(f"error: {message}", error)
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_what_has_no_effect_is_said_or_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    argv = "--dataset digits --split test[:4] --batch-size 2 --epochs 1 --quiet"
    assert command(*argv.split(), "--accumulate", 3, "--run-dir", tmp_path / "run") == 2
    told = (
        "error: --accumulate 3: the run has 2 batches, and so no step of the optimizer; write --accumulate 2, or fewer"
    )
    assert told in capfd.readouterr().err
    assert command(*argv.split(), "--limit", 5, "--shard-params", "--run-dir", tmp_path / "run") == 0
    errors = capfd.readouterr().err.splitlines()
    assert "--limit 5: all 4 of digits test[:4] are taken" in errors
    assert "--shard-params: JAX sees one device, which has all of it" in errors


def test_a_link_that_leads_nowhere_is_no_place_for_an_export(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere/x.pt")
    with pytest.raises(UsageError, match=r"link: is a directory, or in one that does not exist"):
        parse(["--export-torch", str(tmp_path / "link")])


@pytest.mark.parametrize("flag", ["--run-dir", "--data-dir", "--export-torch"])
def test_a_path_that_is_no_text_is_refused(flag: str) -> None:
    with pytest.raises(UsageError, match=rf"{flag} .*: is not UTF-8"):
        parse([flag, "b\udcff"])


def test_a_run_is_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    assert command("--run-dir", tmp_path) == 2
    assert (
        capsys.readouterr().err == f"error: --run-dir {tmp_path}: exists and is not an empty directory; give another\n"
    )
    assert (tmp_path / "metrics.jsonl").read_text() == "{}\n"
    assert command("--steps", 1, "--run-dir", tmp_path / "metrics.jsonl" / "run") == 2
    assert "cannot be written" in capsys.readouterr().err


def test_help_is_fast_and_a_typo_gets_a_hint() -> None:
    code = (
        "import sys, train.command_line; sys.exit(any(name in sys.modules for name in ('jax', 'matplotlib', 'torch')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    typo = subprocess.run([sys.executable, "-m", "train", "--bach-size", "2"], capture_output=True, text=True)
    assert typo.returncode == 2
    assert "Perhaps you meant" in typo.stderr
    assert "--batch-size" in typo.stderr


def test_help_ends_on_a_narrow_terminal() -> None:
    environment = {**os.environ, "COLUMNS": "1"}
    command = [sys.executable, "-m", "train", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, env=environment, check=True, timeout=120).stdout
    assert "--batch-size" in shown
    assert "cifar10, lbfgs" in " ".join(shown.replace("│", " ").split())


def test_training_imports_neither_tensorflow_nor_torch_and_configures_nothing(tmp_path: Path) -> None:
    code = f"""
import sys, jax
before = dict(jax.config.values)
sys.argv = ["train", "--steps", "1", "--data-dir", {str(tmp_path)!r}, "--run-dir", {str(tmp_path / "run")!r}]
from train.__main__ import main
assert main() == 0
assert jax.config.values == before
assert not {{"tensorflow", "torch"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("recipe", ["lbfgs", "cifar10"])
def test_a_recipe_by_flag_is_the_recipe_by_name(recipe: str) -> None:
    by_name = parse([recipe, "--epochs", "3", "--quiet"])
    assert parse(["--epochs", "3", "--recipe", recipe, "--quiet"]) == by_name
    assert parse([f"--recipe={recipe}", "--epochs", "3", "--quiet"]) == by_name
    with pytest.raises(UsageError, match="--recipe other: there is none of this name"):
        parse(["--recipe", "other"])

"""`--tensorboard`: TensorBoard itself reads the event files, and finds in them what the run recorded."""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboardX.event_file_writer import EventsWriter

from train import run
from train.__main__ import main
from train.epoch import Columns, Epoch, Steps
from train.loop import Moment
from train.tensorboard import STRETCH, TensorBoard

STEPS = 2 * STRETCH + 20  # of an epoch
BATCH = 4


def command(*argv: object) -> int:
    return main(["--quiet", *map(str, argv)])


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Of each tag the steps and values, as TensorBoard shows them."""
    read = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    read.Reload()
    return {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def recorded(number: int, seed: int = 0) -> Epoch:
    draw = np.random.default_rng([number, seed])
    return Epoch(
        number,
        number * STEPS,
        draw.random(STEPS),
        draw.integers(0, BATCH + 1, STEPS),
        np.full(STEPS, BATCH),
        2.0,
        draw.random((STEPS, 2)),
    )


def expected(epochs: list[Epoch]) -> list[tuple[int, float]]:
    """The mean loss of each stretch, at its last step."""
    points = []
    for epoch in epochs:
        for end in (STRETCH, 2 * STRETCH, STEPS):
            losses = epoch.losses[(end - 1) // STRETCH * STRETCH : end]
            points.append((epoch.step - STEPS + end, pytest.approx(losses.mean())))
    return points


def under_way(epoch: Epoch, steps: int) -> Moment:
    columns = Columns(epoch.losses[:steps], epoch.correct[:steps], epoch.lr[:steps], np.zeros((steps, 1)))
    return Moment(Any, epoch.number, epoch.step - STEPS + steps, Steps(columns))  # pyright: ignore[reportArgumentType]


def test_it_is_what_the_run_recorded(tmp_path: Path) -> None:
    argv = "--limit 24 --batch-size 4 --epochs 3 --ema 0.5 --scheduler step_lr --scheduler-option step_size=1"
    assert command(*argv.split(), "--tensorboard", "--run-dir", tmp_path) == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    read = scalars(tmp_path)
    for tag, name in (
        ("loss/training", "loss"),
        ("accuracy/training", "accuracy"),
        ("loss/test", "test_loss"),
        ("accuracy/test", "test_accuracy"),
        ("loss/test_average_of_weights", "ema_test_loss"),
        ("accuracy/test_average_of_weights", "ema_test_accuracy"),
        ("images_per_second", "images_per_second"),
    ):
        assert read.pop(tag) == [(line["step"], pytest.approx(line[name])) for line in lines]
    steps = list(csv.DictReader((tmp_path / "steps.csv").open()))
    rates = {int(step["step"]): float(step["lr_0"]) for step in steps}
    assert read == {"learning_rate/group_0": [(line["step"], pytest.approx(rates[line["step"]])) for line in lines]}
    assert len(set(rates.values())) == 3


def test_steps_are_written_while_the_epoch_goes_on(tmp_path: Path) -> None:
    epochs = [recorded(1), recorded(2)]
    board = TensorBoard(tmp_path, BATCH, [], Moment(Any))  # pyright: ignore[reportArgumentType]
    for number, epoch in enumerate(epochs):
        for steps in (STRETCH - 1, STRETCH, STRETCH + 30):
            board.look(under_way(epoch, steps))
            done = 3 * number + (steps >= STRETCH)
            assert scalars(tmp_path).get("loss/training", []) == expected(epochs)[:done]
        board.look(Moment(Any, epoch.number + 1, epoch.step, ended=epoch))  # pyright: ignore[reportArgumentType]
    read = scalars(tmp_path)
    assert read["loss/training"] == expected(epochs)
    ends = [epoch.step - STEPS + end - 1 for epoch in epochs for end in (STRETCH, 2 * STRETCH, STEPS)]
    rates = np.concatenate([epoch.lr for epoch in epochs])
    assert read["learning_rate/group_1"] == [(end + 1, pytest.approx(rates[end, 1])) for end in ends]
    assert read["images_per_second"] == [(epoch.step, STEPS * BATCH / 2) for epoch in epochs]


def test_a_run_that_goes_on_writes_all_and_what_was_before_is_forgotten(tmp_path: Path) -> None:
    """The killed one was further than its last checkpoint, and was writing."""
    killed = TensorBoard(tmp_path, BATCH, [recorded(1)], Moment(Any))  # pyright: ignore[reportArgumentType]
    killed.add(recorded(2, seed=1))
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-9])
    file.rename(tmp_path / "events.out.tfevents.1000000000.host")
    board = TensorBoard(tmp_path, BATCH, [recorded(1)], under_way(recorded(2), 70))
    board.look(under_way(recorded(2), 71))
    assert scalars(tmp_path)["loss/training"] == expected([recorded(1), recorded(2)])[:4]
    board.look(Moment(Any, 3, 2 * STEPS, ended=recorded(2)))  # pyright: ignore[reportArgumentType]
    assert scalars(tmp_path)["loss/training"] == expected([recorded(1), recorded(2)])


def test_a_full_disk_costs_the_event_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_space(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(EventsWriter, "flush", no_space)
    argv = ["--limit", "4", "--epochs", "2", "--tensorboard", "--run-dir"]
    assert command(*argv, tmp_path) == run.NOT_ALL_WRITTEN
    assert capsys.readouterr().err.count("--tensorboard: ") == 1
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_without_the_package_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    assert command("--tensorboard", "--run-dir", tmp_path) == 2
    message = "error: --tensorboard: needs a package that is not installed: pip install tensorboardX\n"
    assert capsys.readouterr().err == message
    assert list(tmp_path.iterdir()) == []

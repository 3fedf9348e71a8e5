"""Signals in every phase, and outputs that break: a run is stopped in order, and never by what it writes to."""

import contextlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from train import data, output, plot, run, run_folder
from train.__main__ import main
from train.checkpoint import Checkpoints
from train.config import Config
from train.errors import UsageError
from train.loop import Moment
from train.start import start
from train.stopping import stopping
from train.training import make_training

LONG = "--limit 40 --epochs 5000 --quiet"


def begin(folder: Path, *argv: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "train", *LONG.split(), *argv, "--run-dir", str(folder)]
    # A suite that was started in the background may ignore SIGINT, which its processes inherit.
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heard)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_in_training(number: signal.Signals, tmp_path: Path) -> None:
    process = begin(tmp_path / "run")
    wait_for(tmp_path / "run" / "metrics.jsonl", process)
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == 128 + number
    assert f"to go on: python -m train --resume {tmp_path / 'run'}" in errors
    assert "Traceback" not in errors
    assert (tmp_path / "run" / "loss.png").exists()
    step = max(json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    newest = max(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert step <= int(newest) < step + 40


@pytest.mark.parametrize("seconds", [1.5])
def test_before_training(seconds: float, tmp_path: Path) -> None:
    process = begin(tmp_path / "run")
    time.sleep(seconds)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode in (143, -signal.SIGTERM)  # the latter before Python has come to the program
    assert "Traceback" not in errors
    assert process.returncode < 0 or "stopped by SIGTERM" in errors


def short(*argv: object) -> int:
    return main(["--limit", "4", "--epochs", "2", "--quiet", *map(str, argv)])


@pytest.fixture
def _handlers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The program's handlers, and after it those of before."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(stopping, "asked", None)
    monkeypatch.setattr(stopping, "_in_order", False)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # not heard in the background, see begin
    stopping.listen()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_handlers")
def test_a_run_that_has_a_folder_can_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Even if the signal comes while the folder is made."""
    create = run_folder.create

    def interrupted(*args: Any) -> run_folder.RunFolder:
        os.kill(os.getpid(), signal.SIGTERM)
        return create(*args)

    monkeypatch.setattr(run_folder, "create", interrupted)
    assert short("--run-dir", tmp_path / "a run") == 143
    told = f"stopped by SIGTERM after step 1; to go on: python -m train --resume '{tmp_path}/a run'\n"
    assert told in capfd.readouterr().err
    assert (tmp_path / "a run" / "checkpoints" / "00000001").exists()


@pytest.mark.usefixtures("_handlers")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_while_it_draws(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    save = plot.save

    def interrupted(*args: Any) -> None:
        os.kill(os.getpid(), number)
        save(*args)

    monkeypatch.setattr(plot, "save", interrupted)
    assert short("--run-dir", tmp_path) == 128 + number
    assert (tmp_path / "loss.png").exists()
    assert f"stopped by {number.name} after step 8" in capfd.readouterr().err


def test_a_broken_plot_costs_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*args: object) -> None:
        raise RuntimeError("no back end")

    monkeypatch.setattr(plot, "save", broken)
    assert short("--run-dir", tmp_path) == run.NOT_ALL_WRITTEN
    assert "not drawn (no back end)" in capsys.readouterr().err
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """As a full disk: a longer write is an error."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def no_space(*args: object, **kwargs: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_full_disk_costs_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("train.manifest.write", no_space)
    assert short("--run-dir", tmp_path) == run.NOT_ALL_WRITTEN
    assert "no checkpoint was written after step 8 ([Errno 28]" in capsys.readouterr().err
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_orbax_is_not_asked_to_write_where_there_is_no_room(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It answers with a traceback from each of its threads."""
    checkpoints = Checkpoints(Config(), run_folder.create(Config(run_dir=tmp_path / "run"), ""))
    moment = Moment(start(Config(), make_training(Config()), 10), step=1)
    with files_of_at_most(300_000):  # the parameters are 600,000 bytes
        checkpoints.save(moment)
        assert checkpoints.newest is None
    assert re.fullmatch(r".*no checkpoint was written after step 1 \(\[Errno 27\].*\n", capfd.readouterr().err)


def test_data_that_cannot_be_prepared_for_want_of_room_is_one_error(tmp_path: Path) -> None:
    with files_of_at_most(100_000), pytest.raises(UsageError, match="digits cannot be prepared there"):
        data.load("digits", "test", tmp_path)


def test_lines_that_could_not_be_written_are_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fsync, calls = os.fsync, []

    def full_at_first(descriptor: int) -> None:
        calls.append(descriptor)
        if 2 <= len(calls) <= 4:  # config.json is written
            (tmp_path / "metrics.jsonl").write_text('{"half a li')
            no_space()
        fsync(descriptor)

    monkeypatch.setattr(run_folder.os, "fsync", full_at_first)
    assert short("--run-dir", tmp_path) == 0
    assert "tried again" in capsys.readouterr().err
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]


def test_an_export_that_fails_costs_the_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("jaxopt_port.torch_interop.save", no_space)
    argv = ["--run-dir", tmp_path / "run", "--export-torch", tmp_path / "out.pt"]
    assert short(*argv) == run.NOT_ALL_WRITTEN
    assert capsys.readouterr().err.count("tried again after the next epoch") == 2


@pytest.mark.parametrize("redirect", ["| head -n 1", "> /dev/full 2>&-"])
def test_an_output_that_breaks_ends_nothing(redirect: str, tmp_path: Path) -> None:
    folder = tmp_path / "ordner-ü"
    command = f"{sys.executable} -m train --limit 4 --epochs 2 --run-dir '{folder}' {redirect}; echo ${{PIPESTATUS[0]}}"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(["bash", "-c", command], capture_output=True, env=environment)
    assert done.stdout.split()[-1] == b"0", done.stderr
    assert done.stderr == b""
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2
    assert (folder / "loss.png").exists()


def test_streams_write_what_they_can(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w", encoding="ascii") as file:
        stream = output.Tolerant(file)
        stream.write("ü\n")
    assert (tmp_path / "file").read_text() == "\\xfc\n"
    stream.write("after it was closed\n")
    assert output.Tolerant(None).write("nowhere") == 7


def test_checkpoints_that_a_killed_process_left_are_removed(tmp_path: Path) -> None:
    assert short("--run-dir", tmp_path) == 0
    (tmp_path / "checkpoints" / "00000009.writing").mkdir()
    assert main(["--resume", str(tmp_path)]) == 0
    assert [path.name for path in (tmp_path / "checkpoints").glob("*.writing")] == []

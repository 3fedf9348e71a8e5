"""A run that goes on is the run that was not stopped, in every bit; a damaged checkpoint is never restored."""

import contextlib
import json
import random
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from signal import SIGTERM
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import damage_checkpoints, kill_resume
from benchmarks.kill_resume import RUNS, differences, killed
from jaxopt_port import GradScaler
from train import loop, run, run_folder
from train.__main__ import main
from train.checkpoint import Checkpoints
from train.command_line import parse
from train.config import Config
from train.epoch import Steps
from train.errors import UsageError
from train.loop import Moment
from train.manifest import Damaged, verify, write
from train.stopping import stopping
from train.training import Training, make_training

COMMON = "--limit 22 --epochs 3 --batch-size 4 --checkpoint-every 4 --quiet"


class Killed(BaseException):
    """Ends a run where it is."""


def command(*argv: object) -> int:
    return main([str(one) for one in argv])


@pytest.fixture
def _compile_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[Any, Training] = {}

    def training(config: Config) -> Training:
        return made.setdefault((config.optimizer, config.option, config.scheduler, config.lr), make_training(config))

    monkeypatch.setattr(run, "make_training", training)
    monkeypatch.setattr(run.checks, "check_training", lambda *_: None)
    monkeypatch.setattr(loop, "make_step", cache(loop.make_step))


@pytest.mark.usefixtures("_compile_once")
@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_goes_on_is_the_same(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ended in the middle of an epoch without a word, and before the next checkpoint; then stopped by a signal."""
    flags = f"{COMMON} {RUNS[name]}".split()
    assert command(*flags, "--run-dir", tmp_path / "whole") == 0
    fit = loop.fit

    def ending_at(step: int, how: Callable[[], None]) -> Callable[..., Iterator[Moment]]:
        def ended(*args: Any) -> Iterator[Moment]:
            for moment in fit(*args):
                if moment.step == step:
                    how()
                yield moment

        return ended

    def kill() -> None:
        raise Killed

    def signal() -> None:
        monkeypatch.setattr(stopping, "asked", SIGTERM)

    monkeypatch.setattr(run, "fit", ending_at(10, kill))  # of 18, between checkpoints at 8 and 12
    with contextlib.suppress(Killed):
        command(*flags, "--run-dir", tmp_path / "killed")
    monkeypatch.setattr(run, "fit", ending_at(13, signal))
    assert command("--resume", tmp_path / "killed") == 143
    monkeypatch.setattr(stopping, "asked", None)
    monkeypatch.setattr(run, "fit", fit)
    assert command("--resume", tmp_path / "killed") == 0
    assert differences(tmp_path / "whole", tmp_path / "killed") == []
    assert (tmp_path / "killed" / "loss.png").exists()
    shutil.rmtree(tmp_path)


def test_a_process_is_killed_and_goes_on(tmp_path: Path) -> None:
    """SIGKILL, where it falls."""
    flags: list[str] = [*f"{COMMON} --option momentum=0.9".split()]
    ended, _ = killed(flags, tmp_path / "killed", kill_resume.Moment(0.01, trains=True))
    assert not ended
    while not ended:
        ended, what = killed(flags, tmp_path / "killed", None)
        assert what == "ended"
    assert killed(flags, tmp_path / "whole", None) == (True, "ended")
    assert differences(tmp_path / "whole", tmp_path / "killed") == []


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run."""
    path = tmp_path_factory.mktemp("run") / "run"
    assert command("--limit", 24, "--batch-size", 4, "--epochs", 3, "--quiet", "--run-dir", path) == 0
    return path


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def test_no_damaged_checkpoint_is_restored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert damage_checkpoints.checkpoints(random.Random(1), 12, tmp_path) == []


def test_what_another_run_wrote_is_set_aside(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    newest = max((copy / "checkpoints").iterdir())
    position = json.loads((newest / "position.json").read_text())
    (newest / "position.json").write_text(json.dumps(position | {"run": "another"}))
    write(newest)
    assert command("--resume", copy) == 0
    assert "another run's; set aside as damaged-" in capsys.readouterr().err


def test_one_that_this_program_cannot_restore_stays(tmp_path: Path) -> None:
    """Another version's, say: nothing is wrong with it."""
    checkpoints = saved(tmp_path)
    adam = Config(optimizer="adam")
    with pytest.raises(UsageError, match="checkpoint 00000001 is whole, but cannot be restored here"):
        checkpoints.restore(run.start(adam, make_training(adam), 10))
    assert checkpoints.newest == tmp_path / "run" / "checkpoints" / "00000001"


def test_one_that_could_not_be_written_is_written_at_the_next_occasion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("train.manifest.write", lambda *_: 1 / 0)
        checkpoints = saved(tmp_path)
    assert (checkpoints.newest, checkpoints.failed) == (None, True)
    checkpoints.save(Moment(run.start(Config(), make_training(Config()), 10), step=1))
    assert checkpoints.newest is not None
    assert not checkpoints.failed


def saved(tmp_path: Path) -> Checkpoints:
    """Those of a run that has one, after a step."""
    checkpoints = Checkpoints(Config(), run_folder.create(Config(run_dir=tmp_path / "run"), ""))
    checkpoints.save(Moment(run.start(Config(), make_training(Config()), 10), step=1))
    checkpoints.wait()
    return checkpoints


def test_without_a_whole_checkpoint_it_is_an_error(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for checkpoint in (copy / "checkpoints").iterdir():
        (checkpoint / "SHA256SUMS").unlink()
    assert command("--resume", copy) == 2
    assert "no checkpoint is whole" in capsys.readouterr().err
    assert command("--resume", copy) == 2  # and again


def test_the_newest_and_the_best_are_kept(copy: Path, tmp_path: Path) -> None:
    folder = run_folder.create(Config(run_dir=tmp_path / "other"), "")
    checkpoints = Checkpoints(Config(), folder)
    state = run.start(Config(), make_training(Config()), 10)
    (epoch,) = run_folder.read(copy)[:1]
    for step, loss in enumerate([3.0, 1.0, 2.0, 5.0, 4.0], start=1):
        ended = epoch._replace(losses=np.array([loss]))
        checkpoints.save(Moment(state, step, step, Steps(), 0.0, ended))
    checkpoints.wait()
    assert sorted(path.name for path in checkpoints.path.iterdir()) == ["00000002", "00000004", "00000005"]
    checkpoints.save(Moment(state, 6, 100_000_000, Steps(), 0.0, epoch._replace(losses=np.array([4.0]))))
    assert checkpoints.newest == checkpoints.path / "100000000"
    assert not (checkpoints.path / "00000004").exists()


def test_a_state_that_is_not_finite_is_no_checkpoint(tmp_path: Path) -> None:
    folder = run_folder.create(Config(run_dir=tmp_path / "run"), "")
    checkpoints = Checkpoints(Config(), folder)
    state = run.start(Config(), make_training(Config()), 10)
    checkpoints.save(Moment(state._replace(params=jax.tree.map(lambda p: p * jnp.nan, state.params)), step=1))
    assert checkpoints.newest is None


def test_a_scaler_is_carried(tmp_path: Path) -> None:
    """Whatever a state is made of: `torch.amp.GradScaler`'s too."""
    folder = run_folder.create(Config(run_dir=tmp_path / "run"), "")
    checkpoints = Checkpoints(Config(), folder)
    state = run.start(Config(), make_training(Config()), 10)
    state = state._replace(averaged=GradScaler(init_scale=3.0).init())
    checkpoints.save(Moment(state, step=1))
    checkpoints.wait()
    found = checkpoints.restore(state._replace(averaged=GradScaler().init()))
    assert found is not None
    assert found[0].state.averaged.scale == 3.0


def test_settings_that_contradict_are_refused(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for argv, message in {
        "--lr 0.5": "--lr 0.5: the run in .* has 0.01, and goes on with that",
        "--batch-size 1": "--batch-size 1: the run in .* has 4",
        "--option momentum=0.9": "--option momentum=0.9: the run in .* has none",
        "--augment": "--augment True: the run in .* has False",
        "--run-dir other": "--run-dir .*other: the run in",
    }.items():
        with pytest.raises(UsageError, match=message):
            parse(["--resume", str(copy), *argv.split()])
    with pytest.raises(UsageError, match="it is a run of the tutorial recipe, not of cifar10"):
        parse(["cifar10", "--resume", str(copy)])
    same = parse(["--resume", str(copy), "--batch-size", "4", "--checkpoint-every", "3"])
    assert (same.batch_size, same.checkpoint_every, same.lr) == (4, 3, 0.01)

    moved = parse(["--resume", str(copy), "--export-torch", str(copy / "x.pt"), "--data-dir", str(copy)])
    assert (moved.export_torch, moved.data_dir) == (copy / "x.pt", copy)

    (copy / "config.json").write_text((copy / "config.json").read_text().replace('"lr": 0.01', '"lr": 0.02'))
    with pytest.raises(UsageError, match=r"its config.json was changed"):
        parse(["--resume", str(copy)])


def test_the_archive_is_not_needed_any_more(tmp_path: Path) -> None:
    config = Config(dataset="cifar10", archive=tmp_path / "removed.tar.gz", run_dir=tmp_path / "run")
    run_folder.create(config, "")
    assert parse(["--resume", str(tmp_path / "run")]).archive == config.archive


def test_a_run_is_one_processs(copy: Path) -> None:
    with run_folder.reopen(copy), pytest.raises(UsageError, match="still going on in another process"):
        run_folder.reopen(copy)
    run_folder.reopen(copy)
    with pytest.raises(UsageError, match="has a run in it"):
        run_folder.create(Config(run_dir=copy), "")


def test_what_differs_is_said(copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    needs = run_folder.needs
    monkeypatch.setattr(run_folder, "needs", lambda data: {**needs(data), "cores": 77})
    assert command("--resume", copy) == 0
    said = capsys.readouterr()
    assert "77 now; its last bits may be others" in said.err
    assert "goes on after step 18, which was the last" in said.out
    monkeypatch.setattr(run_folder, "needs", lambda data: needs("other"))
    assert command("--resume", copy) == 2
    assert "began with other pictures" in capsys.readouterr().err


def test_records_that_were_changed_are_set_aside(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "metrics.jsonl").write_text("{}\n")
    assert command("--resume", copy) == 0
    assert "set aside as" in capsys.readouterr().err
    assert (copy / "damaged-metrics.jsonl").read_text() == "{}\n"


def test_a_manifest_is_what_sha256sum_reads(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "file").write_text("abc")
    write(tmp_path)
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert (tmp_path / "SHA256SUMS").read_text() == f"{digest}  sub/file\n"
    verify(tmp_path)
    (tmp_path / "sub" / "more").touch()
    with pytest.raises(Damaged, match="sub/more is not in its SHA256SUMS"):
        verify(tmp_path)

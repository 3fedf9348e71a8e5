"""The picture: what is drawn is what was recorded, in a panel only for what changes."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from train import plot, run_folder
from train.config import Config
from train.epoch import Epoch

CONFIG = Config(lr=0.1, batch_size=4)
STEPS = 5  # of an epoch


def recorded(epochs: int, lr: Sequence[Sequence[float]] = ((0.1,),), **more: Any) -> list[Epoch]:
    """Epochs of STEPS steps, with losses that fall; `lr` has a row an epoch, or one for all."""
    rows = [lr[number % len(lr)] for number in range(epochs)]
    draw = np.random.default_rng(0)
    return [
        Epoch(
            number + 1,
            (number + 1) * STEPS,
            2.0 / (number + 1) + draw.random(STEPS),
            draw.integers(0, 5, STEPS),
            np.full(STEPS, 4),
            1.0,
            np.tile(np.array(rates, np.float64), (STEPS, 1)),
            **{name: values[number] for name, values in more.items()},
        )
        for number, rates in enumerate(rows)
    ]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """What was saved, last of all."""
    saved, save = [], Figure.savefig

    def keep(figure: Figure, *args: Any, **kwargs: Any) -> None:
        saved.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return saved


def draw(path: Path, figures: list[Figure], *runs: tuple[Config, list[Epoch]]) -> dict[str, Axes]:
    """The panels of the picture, by what they show."""
    plot.save([plot.Run(f"run {n}", *run) for n, run in enumerate(runs)], path / "x.png")
    assert_nothing_cut_off(figures[-1], path / "x.png")
    return {axes.get_ylabel(): axes for axes in figures[-1].axes}


def assert_nothing_cut_off(figure: Figure, path: Path) -> None:
    """All texts are inside the picture, and do not lie on each other."""
    with PIL.Image.open(path) as picture:
        width, height = picture.size
    legends = [text for legend in figure.legends for text in legend.get_texts()]
    texts = [*legends, *(axes.yaxis.label for axes in figure.axes)]
    suptitle = getattr(figure, "_suptitle", None)
    boxes = [text.get_window_extent() for text in ([suptitle, *texts] if suptitle is not None else texts)]
    for box in boxes:
        assert 0 <= box.x0 < box.x1 <= width
        assert 0 <= box.y0 < box.y1 <= height
    assert not any(one.overlaps(other) for n, one in enumerate(boxes) for other in boxes[:n])


def curve(axes: Axes, marker: str) -> tuple[np.ndarray, np.ndarray]:
    (line,) = [line for line in axes.lines if line.get_marker() == marker]
    return np.asarray(line.get_xdata()), np.asarray(line.get_ydata())


def test_the_curves_are_the_records(tmp_path: Path, figures: list[Figure]) -> None:
    tests = [(1.5, 0.25), (1.25, 0.5), (1.0, 0.75)]
    epochs = recorded(3, test=tests, ema_test=[(loss / 2, accuracy) for loss, accuracy in tests])
    panels = draw(tmp_path, figures, (CONFIG, epochs))
    assert list(panels) == ["loss per example", "accuracy"]
    for axes, of in ((panels["loss per example"], "loss"), (panels["accuracy"], "accuracy")):
        x, y = curve(axes, "o")
        np.testing.assert_array_equal(x, [0.5, 1.5, 2.5])
        np.testing.assert_array_equal(y, [getattr(epoch, of) for epoch in epochs])
        x, y = curve(axes, "s")
        np.testing.assert_array_equal(x, [1, 2, 3])
        np.testing.assert_array_equal(y, [test[of == "accuracy"] for test in tests])
    np.testing.assert_array_equal(curve(panels["loss per example"], "^")[1], [0.75, 0.625, 0.5])
    x, y = curve(panels["loss per example"], "")
    np.testing.assert_allclose(x * STEPS, np.arange(15) + 0.5)
    np.testing.assert_array_equal(y, np.concatenate([epoch.losses for epoch in epochs]))
    assert figures[-1].axes[-1].get_xlabel() == "epoch"


@pytest.mark.parametrize(
    ("lr", "lines"),
    [
        (((0.1,),), 0),
        (((0.1, 0.2),), 0),
        (((0.1,), (0.01,)), 1),
        (((0.1, 0.1), (0.01, 0.01)), 1),
        (((0.1, 0.2), (0.01, 0.2)), 2),
    ],
)
def test_rates_are_drawn_where_they_change(
    lr: Sequence[Sequence[float]], lines: int, tmp_path: Path, figures: list[Figure]
) -> None:
    panels = draw(tmp_path, figures, (CONFIG, recorded(2, lr)))
    assert len(panels["learning rate"].lines if lines else []) == lines
    assert ("learning rate" in panels) == (lines > 0)
    if lines:
        x, y = map(np.asarray, panels["learning rate"].lines[0].get_data())
        np.testing.assert_array_equal(x * STEPS, np.arange(11))
        np.testing.assert_array_equal(y, [*np.repeat([rates[0] for rates in lr], STEPS), lr[-1][0]])


def test_a_constant_rate_that_no_flag_gave_is_in_the_title(tmp_path: Path, figures: list[Figure]) -> None:
    draw(tmp_path, figures, (replace(CONFIG, optimizer="adam", lr=None), recorded(2, ((0.001,),))))
    assert "adam(); batch size 4; digits test; learning rate 0.001; 40 pictures seen" in (
        figures[-1].get_suptitle().replace("\n", " ")
    )


def test_one_epoch_is_drawn_by_the_step(tmp_path: Path, figures: list[Figure]) -> None:
    panels = draw(tmp_path, figures, (CONFIG, recorded(1)))
    assert figures[-1].axes[-1].get_xlabel() == "step"
    np.testing.assert_array_equal(curve(panels["loss per example"], "")[0], np.arange(5) + 0.5)
    (epoch,) = recorded(1)
    panels = draw(tmp_path, figures, (CONFIG, [epoch._replace(losses=epoch.losses[:1], step=1)]))
    assert len(curve(panels["loss per example"], ".")[0]) == 1  # and is seen


@pytest.mark.parametrize("finite", [0, 1, 3])
def test_a_run_that_diverged(finite: int, tmp_path: Path, figures: list[Figure]) -> None:
    *_, last = epochs = recorded(2)
    losses = np.where(np.arange(STEPS) < finite, last.losses, np.nan)[: finite + 1]
    losses[:finite] *= 1e30
    cut = {name: getattr(last, name)[: finite + 1] for name in ("correct", "examples", "lr")}
    epochs = [*epochs[:-1], last._replace(losses=losses, step=STEPS + finite + 1, **cut)]
    panels = draw(tmp_path, figures, (CONFIG, epochs))
    (text,) = panels["loss per example"].texts
    assert text.get_text().strip() == f"not finite at step {STEPS + finite + 1}"
    assert panels["loss per example"].get_ylim()[1] < 1e5  # the losses before can be seen
    panels = draw(tmp_path, figures, (CONFIG, [epochs[-1]._replace(step=finite + 1)]))
    assert "loss per example" in panels


def test_a_run_that_began_elsewhere_is_drawn_from_there(tmp_path: Path, figures: list[Figure]) -> None:
    panels = draw(tmp_path, figures, (CONFIG, recorded(4)[2:]))
    np.testing.assert_array_equal(curve(panels["loss per example"], "o")[0], [2.5, 3.5])
    assert curve(panels["loss per example"], "")[0][0] == pytest.approx(2.1)
    assert panels["loss per example"].get_xlim()[0] == 2


def test_runs_over_each_other(tmp_path: Path, figures: list[Figure]) -> None:
    """Each has its colour, and its name with what it alone does."""
    other = replace(CONFIG, lr=0.2, seed=3)
    panels = draw(tmp_path, figures, (CONFIG, recorded(2)), (other, recorded(3)))
    by_color = {line.get_color(): line for line in panels["accuracy"].lines}
    assert [len(np.asarray(line.get_xdata())) for line in by_color.values()] == [2, 3]
    colors = figures[-1].legends[0]
    assert [text.get_text() for text in colors.get_texts()] == [
        "run 0: tutorial recipe: sgd(lr=0.1); seed 0",
        "run 1: tutorial recipe: sgd(lr=0.2); seed 3",
    ]
    assert colors.get_title().get_text() == "batch size 4; digits test"
    assert [handle.get_color() for handle in colors.get_lines()] == list(by_color)


@pytest.mark.parametrize("lr", [((0.1,), (0.02,)), ((0.1,), (0.0001,))])
def test_the_rates_of_all_runs_are_in_sight(
    lr: Sequence[Sequence[float]], tmp_path: Path, figures: list[Figure]
) -> None:
    panels = draw(tmp_path, figures, *((CONFIG, recorded(2, rates)) for rates in (lr, ((0.3,),), ((0.2,),))))
    low, high = panels["learning rate"].get_ylim()
    assert low <= lr[1][0]
    assert high > 0.3
    assert (low == 0) == (lr[1][0] == 0.02)  # linear


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It draws what the folders hold, and says in a line what is none."""
    monkeypatch.chdir(tmp_path)
    for name, seed in (("a", 0), ("b", 1)):
        with run_folder.create(replace(CONFIG, run_dir=tmp_path / name, seed=seed), "digest") as folder:
            assert plot.main([name]) == 2
            assert "no epoch of it is recorded yet" in capsys.readouterr().err
            for epoch in recorded(2, ema_test=[(1.0, 0.5)] * 2):
                folder.add(epoch)
    (run, again) = (plot.read(tmp_path / "a", "a"), recorded(2, ema_test=[(1.0, 0.5)] * 2))
    for one, other in zip(run.epochs, again, strict=True):
        np.testing.assert_array_equal(one.losses, other.losses)
        np.testing.assert_array_equal(one.lr, other.lr)
        assert (one.accuracy, one.ema_test) == (other.accuracy, other.ema_test)
    assert plot.main(["a"]) == plot.main(["a", "b"]) == 0
    assert plot.main(["a", "b", "--out", "both.svg"]) == 0
    assert capsys.readouterr().out.split() == [str(Path("a", "loss.png")), "runs.png", "both.svg"]
    assert "<svg" in (tmp_path / "both.svg").read_text()
    for argv, message in (
        (["c"], "RUN c: is not the folder of a run"),
        (["a", "--out", "."], "--out .: is no name of a picture"),
        (["a", "--out", "x.foo"], "--out x.foo: cannot be written .*foo"),
        (["a", "--out", "no/x.png"], "--out no/x.png: cannot be written"),
    ):
        assert plot.main(argv) == 2
        error = capsys.readouterr().err
        assert re.match(f"error: {message}", error)
        assert error.count("\n") == 1

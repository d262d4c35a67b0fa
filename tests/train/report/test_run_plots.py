import math
import os

import matplotlib.colors
import numpy as np
import pytest
from PIL import Image

from nfnet.errors import UserError
from train.report.colors import BLUE, GREEN, VERMILION
from train.report.run_plots import write_plots
from train.run.records.metrics import MetricsWriter, read_metrics

TRAIN, EVALUATION, EMA = (
  tuple(round(255 * channel) for channel in matplotlib.colors.to_rgb(color))
  for color in (BLUE, VERMILION, GREEN)
)


def write_run(workdir, *, kinds=("train", "evaluation", "ema"), loss=lambda step: 7 * 0.99**step):
  with MetricsWriter(str(workdir), restored_step=None) as writer:
    for step in range(1, 300, 10):
      if "train" in kinds:
        rate = 1.6 * min(step / 50, 0.5 + 0.5 * math.cos(math.pi * step / 300))
        writer.write({"step": step, "kind": "train", "loss": loss(step), "learning_rate": rate})
      for ema in (False, True):
        if step % 50 == 1 and ("ema" if ema else "evaluation") in kinds:
          top1 = step / (360 if ema else 400)
          values = {"loss": 1.1 * loss(step), "top1": top1, "top5": top1**0.3, "ema": ema}
          writer.write({"step": step, "kind": "evaluation", **values})


def pixels(path):
  with Image.open(path) as image:
    return np.asarray(image.convert("RGB")).astype(int)


def colors(path):
  return {
    color
    for color in (TRAIN, EVALUATION, EMA)
    if (abs(pixels(path) - np.array(color)) < 3).all(axis=2).any()
  }


def test_pictures_show_their_series(tmp_path):
  write_run(tmp_path)
  loss, learning_rate, accuracy = write_plots(
    read_metrics(str(tmp_path)), str(tmp_path), title="F0 demo"
  )
  assert [path.relative_to(tmp_path).as_posix() for path in (loss, learning_rate, accuracy)] == [
    "plots/loss.png",
    "plots/learning_rate.png",
    "plots/accuracy.png",
  ]
  assert colors(loss) == {TRAIN, EVALUATION, EMA}
  assert colors(learning_rate) == {TRAIN}
  assert colors(accuracy) == {EVALUATION, EMA}
  for path in (loss, learning_rate, accuracy):
    assert pixels(path).shape == (675, 1200, 3)


@pytest.mark.parametrize(
  ("kinds", "names"),
  [
    ((), []),
    (("train",), ["loss.png", "learning_rate.png"]),
    (("evaluation",), ["loss.png", "accuracy.png"]),
  ],
)
def test_picture_without_records_is_left_out(tmp_path, kinds, names):
  write_run(tmp_path, kinds=kinds)
  pictures = write_plots(read_metrics(str(tmp_path)), str(tmp_path), title="x")
  assert [path.name for path in pictures] == names
  for path in pictures:
    assert colors(path) == {{"train": TRAIN, "evaluation": EVALUATION}[kind] for kind in kinds}


@pytest.mark.parametrize("loss", [math.nan, math.inf, 0.0, -1.0])
def test_odd_losses_do_not_hide_the_others(tmp_path, loss):
  write_run(tmp_path, loss=lambda step: loss if step > 100 else 1.0)
  assert colors(write_plots(read_metrics(str(tmp_path)), str(tmp_path), title="x")[0]) == {
    TRAIN,
    EVALUATION,
    EMA,
  }


def test_run_that_never_had_a_loss_is_drawn(tmp_path):
  write_run(tmp_path, loss=lambda step: math.nan)
  assert len(write_plots(read_metrics(str(tmp_path)), str(tmp_path), title="x")) == 3


def test_plots_that_cannot_be_written_are_named(tmp_path):
  write_run(tmp_path)
  (tmp_path / "plots").write_text("")
  with pytest.raises(UserError, match="plots"):
    write_plots(read_metrics(str(tmp_path)), str(tmp_path), title="x")


def test_a_name_is_no_formula(tmp_path):
  write_run(tmp_path)
  assert len(write_plots(read_metrics(tmp_path), tmp_path, title="$\\nothing$")) == 3


def test_a_pipe_in_the_place_of_a_plot_does_not_hold_up_a_run(tmp_path):
  write_run(tmp_path)
  (tmp_path / "plots").mkdir()
  os.mkfifo(tmp_path / "plots" / "loss.png")
  with pytest.raises(UserError, match="cannot be written"):
    write_plots(read_metrics(tmp_path), tmp_path, title="some")


def test_a_line_of_one_point_is_seen(tmp_path):
  with MetricsWriter(str(tmp_path), restored_step=None) as writer:
    writer.write({"step": 3, "kind": "train", "loss": 2.0, "learning_rate": 0.1})
  for path in write_plots(read_metrics(tmp_path), str(tmp_path), title="one step"):
    assert colors(path) == {TRAIN}

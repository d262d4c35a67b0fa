"""Draws a confusion matrix that can be read, whether it has 2 or 1,000 classes."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from train.report.confusion import aggregated
from train.report.figure import new_plot, plain_text

CLASSES_SHOWN_MAX = 30
"""Rows of a picture; of more classes, it shows those that are confused most often."""

_NAME_CHARACTERS_MAX = 24
_INCHES_PER_CLASS = 0.32


def draw_confusion(confusion: np.ndarray, class_names: Sequence[str], title: str) -> Figure | None:
  """Draws a matrix whose cells are shares of a class's images, in percent.

  The last row and column are all other classes together, if there are more than
  `CLASSES_SHOWN_MAX`.

  Args:
    confusion: [class, predicted class], numbers of images.
    class_names: names of the classes, by index.
    title: text above the plot.

  Returns:
    The plot; None if there are no images.
  """
  matrix, names = aggregated(confusion, class_names, CLASSES_SHOWN_MAX)
  if not matrix.any():
    return None
  percent = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
  side = 2.5 + _INCHES_PER_CLASS * max(len(names), 6)
  figure, axes = new_plot(title, "predicted class", "class", inches=(side + 0.8, side))
  image = axes.imshow(percent, cmap="Blues", vmin=0, vmax=100)
  axes.grid(visible=False)
  labels = [plain_text(_shortened(name)) for name in names]
  axes.set_xticks(range(len(names)), labels, rotation=90, fontsize=7)
  axes.set_yticks(range(len(names)), labels, fontsize=7)
  for (row, column), value in np.ndenumerate(percent):
    if matrix[row, column]:
      # Less than half a percent is not nothing.
      text = f"{value:.0f}" if value >= 0.5 else "<1"
      color = "white" if value > 50 else "black"
      axes.text(column, row, text, ha="center", va="center", fontsize=6, color=color)
  bar = figure.colorbar(image, ax=axes, shrink=0.7)
  bar.set_label("share of the class's images (%)")
  return figure


def _shortened(name: str) -> str:
  if len(name) <= _NAME_CHARACTERS_MAX:
    return name
  return f"{name[: _NAME_CHARACTERS_MAX - 1]}\N{HORIZONTAL ELLIPSIS}"

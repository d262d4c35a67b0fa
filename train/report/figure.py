"""The style of all plots: axes, ticks, labels, legends. The colors are in `train.report.colors`."""

import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import (
  FixedLocator,
  Formatter,
  FuncFormatter,
  Locator,
  MaxNLocator,
  NullLocator,
)

# Of digits in the size of tick labels, beside an axis of the usual width.
_CHARACTERS_BESIDE_AXIS = 75
_TITLE_CHARACTERS_PER_INCH = 8
_LABEL_INCHES = 0.8
_LOG_TICKS_MIN, _LOG_TICKS_MAX = 4, 8
_VALUES_LABELED_MAX = 12
_LEGEND_CHARACTERS_PER_INCH = 12.5
_LEGEND_HANDLE_CHARACTERS = 7
_LEGEND_ROWS_INSIDE = 2
_LEGEND_INCHES_PER_ROW = 0.17


def new_plot(
  title: str, x_label: str, y_label: str, *, inches: tuple[float, float] = (8, 4.5)
) -> tuple[Figure, Axes]:
  """Returns an empty plot in the common style; the caller adds scales and a legend.

  Args:
    title: text above the plot.
    x_label: quantity and unit of the horizontal axis.
    y_label: quantity and unit of the vertical axis.
    inches: width and height.
  """
  # Made without pyplot, which keeps global state and might open a window.
  figure = Figure(figsize=inches, dpi=150, layout="constrained")
  FigureCanvasAgg(figure)
  axes = figure.add_subplot()
  lines = textwrap.wrap(
    title,
    int((inches[0] - _LABEL_INCHES) * _TITLE_CHARACTERS_PER_INCH),
    max_lines=3,
    placeholder=" ...",
  )
  axes.set_title(plain_text("\n".join(lines)), loc="left", fontweight="bold")
  axes.set_xlabel(x_label)
  axes.set_ylabel(y_label)
  axes.grid(color="#DDDDDD", linewidth=0.6)
  axes.set_axisbelow(True)
  axes.spines[["top", "right"]].set_visible(False)
  return figure, axes


def plain_text(name: str) -> str:
  """Returns what Matplotlib shows as a name, whatever characters that has.

  It would read what is between two dollar signs as a formula, and fail if it is none, and it leaves
  names out of legends that begin with an underscore.
  """
  return (" " if name.startswith("_") else "") + name.replace("$", r"\$")


def draw_line(axes: Axes, x: Sequence[float], y: Sequence[float], **style: Any) -> Line2D:
  """Draws a line; points that have no neighbor get a marker, since they have no line either.

  Args:
    axes: plot.
    x: positions.
    y: values; those that are not finite leave a gap.
    **style: style of the line, as `Axes.plot` takes it; with a marker, all points have it.
  """
  (line,) = axes.plot(x, y, **style)
  if style.get("marker") is None:
    is_shown = np.concatenate([[False], np.isfinite(np.asarray(y, float)), [False]])
    alone = np.flatnonzero(is_shown[1:-1] & ~is_shown[:-2] & ~is_shown[2:])
    if alone.size:
      line.set(marker="o", markersize=4, markevery=alone.tolist())
  return line


def add_legend(figure: Figure) -> None:
  """Lists the labels of the first plot below it, where they cover no data."""
  handles, labels = figure.axes[0].get_legend_handles_labels()
  if not labels:
    return
  room = figure.get_figwidth() * _LEGEND_CHARACTERS_PER_INCH
  # As few rows as there is room for; a column is as wide as its longest label.
  for rows in range(1, len(labels) + 1):
    own = [labels[first : first + rows] for first in range(0, len(labels), rows)]
    if sum(max(map(len, column)) + _LEGEND_HANDLE_CHARACTERS for column in own) <= room:
      break
  figure.set_figheight(
    figure.get_figheight() + max(0, rows - _LEGEND_ROWS_INSIDE) * _LEGEND_INCHES_PER_ROW
  )
  figure.legend(
    handles,
    labels,
    loc="outside lower center",
    ncols=len(own),
    frameon=False,
    fontsize="small",
  )


def whole_axis(axis: Axis) -> None:
  """Labels an axis of whole numbers, such as steps, with whole numbers only."""
  axis.set_major_locator(_WholeLocator())
  axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value + 0:,.0f}".replace("-0", "0")))


def log_axis(axis: Axis) -> None:
  """Makes an axis logarithmic, labeled with plain numbers, unless it has no value above 0.

  It has four labels or more, whether the values span many decades or a part of one.
  """
  is_x = axis.axis_name == "x"
  lines = [line.get_xdata() if is_x else line.get_ydata() for line in axis.axes.lines]
  values = np.concatenate([np.asarray(line, float) for line in lines] or [np.zeros(0)])
  if not (np.isfinite(values) & (values > 0)).any():
    return
  axis.axes.set(**{f"{axis.axis_name}scale": "log"})
  axis.set_major_locator(_PlainLogLocator())
  axis.set_major_formatter(_PlainFormatter())
  axis.set_minor_locator(NullLocator())


def log_axis_at(axis: Axis, values: Iterable[float]) -> None:
  """Makes an axis logarithmic, with labels at the values that occur, as far as there is room."""
  ends = (min(values := sorted(set(values))), values[-1])
  apart = max(1 + 1e-9, (ends[1] / ends[0]) ** (1 / _VALUES_LABELED_MAX))
  chosen = values[:1]
  for value in values:
    if value >= chosen[-1] * apart:
      chosen.append(value)
  axis.axes.set(**{f"{axis.axis_name}scale": "log"})
  axis.set_major_locator(FixedLocator(chosen))
  axis.set_major_formatter(_PlainFormatter())
  axis.set_minor_locator(NullLocator())


class _WholeLocator(MaxNLocator):
  """Places ticks at whole numbers, as many as their labels leave room for."""

  def __init__(self):
    super().__init__(integer=True, min_n_ticks=1)

  def tick_values(self, vmin: float, vmax: float) -> Any:
    """Returns positions of ticks, at least for the view that is given."""
    characters = max(len(f"{end:,.0f}") for end in (vmin, vmax)) + 2
    self.set_params(nbins=max(2, min(9, _CHARACTERS_BESIDE_AXIS // characters)))
    return super().tick_values(vmin, vmax)


class _PlainLogLocator(Locator):
  """Places ticks on a logarithmic axis at round numbers."""

  def __call__(self) -> list[float]:
    return self.tick_values(*self.axis.get_view_interval())

  def tick_values(self, vmin: float, vmax: float) -> list[float]:
    """Returns the fewest of several sets of round numbers of which four are in the view."""
    low, high = sorted((vmin, vmax))
    if not 0 < low < high < math.inf:
      return []
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    stride = max(1, math.ceil((last - first) / _LOG_TICKS_MAX))
    powers = range(first - first % stride, last + 1, stride)
    for multiples in ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 5), (1, 1.5, 2, 3, 4, 5, 7)):
      # Written out, so that 3 times a power of ten is the nearest float.
      numbers = [float(f"{multiple}e{power}") for power in powers for multiple in multiples]
      if len(ticks := [number for number in numbers if low <= number <= high]) >= _LOG_TICKS_MIN:
        return ticks
    linear = MaxNLocator(_LOG_TICKS_MAX - 1, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return [tick for tick in linear.tolist() if low <= tick <= high]


class _PlainFormatter(Formatter):
  """Writes numbers with the digits that tell them apart."""

  def __call__(self, value: float, position: int | None = None) -> str:
    return _plain_number(value, 6)

  def format_ticks(self, values: Sequence[float]) -> list[str]:
    """Returns the labels of all ticks."""
    labels: list[str] = []
    for digits in (6, 9, 12, 16):
      labels = [_plain_number(value, digits) for value in values]
      if len(set(labels)) == len(labels):
        break
    return labels


def _plain_number(value: float, digits: int) -> str:
  """Returns 0.25, 25,000 or 2.5 x 10^12, with so many significant digits at most."""
  if value == 0 or 1e-4 <= abs(value) < 1e6:
    return f"{value:,.{digits}g}"
  mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
  mantissa = mantissa.rstrip("0").rstrip(".")
  factor = "" if mantissa == "1" else rf"{mantissa}\times"
  return f"${factor}10^{{{int(exponent)}}}$"

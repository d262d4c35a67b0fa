"""The style of all figures: colors, axes, grid."""

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

COLORS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7")
"""Okabe and Ito's, which people with any color vision tell apart."""


def picture(
  title: str, x_label: str, y_label: str, *, inches: tuple[float, float] = (8, 4.5)
) -> tuple[Figure, Axes]:
  """An empty picture in the style of all others; legends and scales are the caller's.

  Args:
    title: above it.
    x_label: quantity and unit.
    y_label: quantity and unit.
    inches: width and height.
  """
  # Figure and canvas directly: pyplot would keep global state and might open a window.
  figure = Figure(figsize=inches, dpi=150, layout="constrained")
  FigureCanvasAgg(figure)
  axes = figure.add_subplot()
  axes.set_title(title, loc="left", fontweight="bold")
  axes.set_xlabel(x_label)
  axes.set_ylabel(y_label)
  axes.grid(color="#DDDDDD", linewidth=0.6)
  axes.set_axisbelow(True)
  axes.spines[["top", "right"]].set_visible(False)
  return figure, axes


def plain_log_axis(axis: Axis) -> None:
  """Plain labels, for what spans about a decade, as losses and errors do."""
  axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
  axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
  axis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:.2g}"))

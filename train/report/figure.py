"""The style of all plots: axes, grid, labels. Their colors are in `train.report.colors`."""

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator


def new_plot(
  title: str, x_label: str, y_label: str, *, inches: tuple[float, float] = (8, 4.5)
) -> tuple[Figure, Axes]:
  """Returns an empty plot in the common style; the caller adds legends and scales.

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
  axes.set_title(plain_text(title), loc="left", fontweight="bold")
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


def plain_log_axis(axis: Axis) -> None:
  """Labels a logarithmic axis with plain numbers, for values that span about a decade.

  Losses and errors are such values.
  """
  axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
  axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
  axis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:.2g}"))

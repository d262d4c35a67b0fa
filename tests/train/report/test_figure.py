import math

import pytest

from train.report.figure import (
  add_legend,
  draw_line,
  log_axis,
  log_axis_at,
  new_plot,
  whole_axis,
)

NAN = math.nan


@pytest.fixture
def axes():
  return new_plot("a plot", "x", "y")[1]


def labels(axis):
  """The labels in the view, as they are drawn."""
  axis.figure.canvas.draw()
  low, high = sorted(axis.get_view_interval())
  return [
    label.get_text()
    for position, label in zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True)
    if low <= position <= high
  ]


def overlap(axis):
  """Whether labels that `labels` has drawn cover each other."""
  boxes = [label.get_window_extent() for label in axis.get_ticklabels() if label.get_text()]
  minor = [label for label in axis.get_ticklabels(minor=True) if label.get_text()]
  return bool(minor) or any(
    one.overlaps(other) for index, one in enumerate(boxes) for other in boxes[:index]
  )


@pytest.mark.parametrize(
  ("values", "marked"),
  [
    ([2.0], [0]),
    ([1.0, 2.0], []),
    ([1.0, NAN, 3.0, 4.0, NAN, 5.0], [0, 5]),
    ([NAN, NAN], []),
    ([math.inf, 1.0, NAN], [1]),
  ],
)
def test_points_without_a_line_have_a_marker(axes, values, marked):
  line = draw_line(axes, range(len(values)), values)
  assert (line.get_markevery() or []) == marked
  assert line.get_marker() == ("o" if marked else "None")


def test_a_line_with_markers_keeps_them(axes):
  line = draw_line(axes, [1], [2.0], marker="s")
  assert (line.get_marker(), line.get_markevery()) == ("s", None)


@pytest.mark.parametrize(
  ("ends", "expected"),
  [
    ((1, 1), ["1"]),
    ((1, 2), ["1", "2"]),
    ((0, 4), ["0", "1", "2", "3", "4"]),
    ((NAN, NAN), ["0"]),
    ((5, 200_000), None),
    ((1_999_999_950, 2_000_000_000), None),
    ((0, 10**15), None),
  ],
)
def test_whole_numbers_have_labels_of_their_own(axes, ends, expected):
  axes.plot(ends, (1, 2))
  whole_axis(axes.xaxis)
  found = labels(axes.xaxis)
  assert found == (expected or found)
  assert len(set(found)) == len(found) >= 1
  assert not any("." in label for label in found)
  assert not overlap(axes.xaxis)


@pytest.mark.parametrize(
  ("ends", "expected"),
  [
    ((0.7, 15), ["1", "2", "5", "10"]),
    ((1.05, 2.15), ["1.2", "1.4", "1.6", "1.8", "2"]),
    ((0.02, 300), ["0.1", "1", "10", "100"]),
    ((400, 300_000), ["1,000", "3,000", "10,000", "30,000", "100,000", "300,000"]),
    ((8e11, 9e13), [r"$10^{12}$", r"$3\times10^{12}$", r"$10^{13}$", r"$3\times10^{13}$"]),
    ((2e-12, 8e-12), None),
    ((1e-30, 1e30), None),
    ((2.0, 2.0000001), None),
    ((3.0, 3.0), None),
  ],
)
@pytest.mark.parametrize("name", ["xaxis", "yaxis"])
def test_logarithmic_axes_have_four_labels_or_more(axes, ends, expected, name):
  axes.plot(*((ends, (1, 2)) if name == "xaxis" else ((1, 2), ends)))
  axis = getattr(axes, name)
  log_axis(axis)
  found = labels(axis)
  assert axis.get_scale() == "log"
  assert 4 <= len(set(found)) == len(found) <= 12
  assert set(expected or ()) <= set(found)
  assert not overlap(axis)


@pytest.mark.parametrize("values", [[0.0, 0.0], [NAN, -1.0], []])
def test_an_axis_without_a_positive_value_stays_linear(axes, values, recwarn):
  axes.plot(range(len(values)), values)
  log_axis(axes.yaxis)
  axes.figure.canvas.draw()
  assert axes.get_yscale() == "linear"
  assert not recwarn


@pytest.mark.parametrize(
  ("values", "expected"),
  [
    ([4, 64, 1024, 64], ["4", "64", "1,024"]),
    ([0.25], ["0.25"]),
    ([1, 1.001, 2, 8], ["1", "2", "8"]),
  ],
)
def test_labels_are_at_the_values_that_occur(axes, values, expected):
  axes.plot(values, range(len(values)))
  log_axis_at(axes.xaxis, values)
  assert labels(axes.xaxis) == expected
  assert not overlap(axes.xaxis)


@pytest.mark.parametrize("count", [1, 5, 40])
def test_a_legend_is_beside_the_plot_and_inside_the_picture(axes, count):
  for index in range(count):
    axes.plot([0, 1], [index, 1], label=f"network {index} {'x' * (index % 30)}")
  add_legend(axes.figure)
  axes.figure.canvas.draw()
  (legend,) = axes.figure.legends
  box, plot, picture = legend.get_window_extent(), axes.get_tightbbox(), axes.figure.bbox
  assert len(legend.get_texts()) == count
  assert not box.overlaps(plot)
  assert picture.x0 <= box.x0
  assert box.x1 <= picture.x1
  assert picture.y0 <= box.y0
  assert axes.bbox.height > 0.55 * 4.5 * 150


def test_a_plot_without_labels_has_no_legend(axes):
  add_legend(axes.figure)
  assert axes.figure.legends == []


@pytest.mark.parametrize("title", ["a name", "many words " * 50, "x" * 300, "$x_" * 60, ""])
def test_a_title_is_inside_the_picture(title):
  figure, axes = new_plot(title, "x", "y", inches=(4, 3))
  figure.canvas.draw()
  box = axes.get_tightbbox()
  assert box.x1 <= figure.bbox.x1
  assert box.y1 <= figure.bbox.y1

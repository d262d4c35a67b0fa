"""Confusion matrices: the most frequent confusions, and rows of text for a file.

A confusion matrix has the number of images of class i for which class j was predicted in [i, j].
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Confusion(NamedTuple):
  """One kind of error: images of a class that are taken for another one."""

  true_class: int
  predicted_class: int
  images: int


def most_confused(confusion: np.ndarray, count_max: int) -> list[Confusion]:
  """Returns the most frequent confusions, the most frequent one first.

  Args:
    confusion: [class, predicted class], numbers of images.
    count_max: most confusions to return.
  """
  errors = confusion * (1 - np.eye(len(confusion)))
  order = np.argsort(-errors, axis=None, kind="stable")[:count_max]
  pairs = zip(*np.unravel_index(order, errors.shape), strict=True)
  return [
    Confusion(int(true), int(predicted), int(errors[true, predicted]))
    for true, predicted in pairs
    if errors[true, predicted] > 0
  ]


def matrix_rows(confusion: np.ndarray, class_names: Sequence[str]) -> list[list[str]]:
  """Returns the matrix for a CSV file: a line of predicted classes, then a line for each class.

  Classes that have no images and are never predicted are left out.

  Args:
    confusion: [class, predicted class], numbers of images.
    class_names: names of the classes, by index.
  """
  occur = occurring_classes(confusion)
  header = ["class / predicted class", *(class_names[i] for i in occur)]
  return [
    header,
    *([class_names[i], *(f"{confusion[i, j]:.0f}" for j in occur)] for i in occur),
  ]


def occurring_classes(confusion: np.ndarray) -> list[int]:
  """Returns the classes that have images or are predicted."""
  return np.flatnonzero(confusion.sum(0) + confusion.sum(1)).tolist()


def aggregated(
  confusion: np.ndarray, class_names: Sequence[str], classes_max: int
) -> tuple[np.ndarray, list[str]]:
  """Returns a matrix of few enough classes to be looked at.

  If more occur, those that are confused most often remain, in their order, and the last row and
  column are all others together.

  Args:
    confusion: [class, predicted class], numbers of images.
    class_names: names of the classes, by index.
    classes_max: largest number of rows, at least 2.

  Returns:
    The matrix and the names of its rows.
  """
  occur = occurring_classes(confusion)
  if len(occur) <= classes_max:
    return confusion[np.ix_(occur, occur)], [class_names[i] for i in occur]
  wrong = confusion.sum(0) + confusion.sum(1) - 2 * np.diag(confusion)
  worst = np.argsort(-wrong, kind="stable")[: classes_max - 1]
  shown = np.sort(worst).tolist()
  # Row i of a class that is shown; the last row of any other.
  rows = np.full(len(confusion), len(shown))
  rows[shown] = range(len(shown))
  # The sum over rows and columns of the same number, by products with what assigns them.
  assigns = np.eye(len(shown) + 1)[rows]
  names = [*(class_names[i] for i in shown), f"{len(occur) - len(shown)} others"]
  return assigns.T @ confusion @ assigns, names

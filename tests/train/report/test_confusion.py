import numpy as np
import pytest

from train.report.confusion import aggregated, matrix_rows, most_confused
from train.report.confusion_plot import CLASSES_SHOWN_MAX, draw_confusion


def matrix(classes, seed=0):
  return np.random.default_rng(seed).poisson(2, (classes, classes)).astype(float)


def test_the_most_frequent_confusions_come_first():
  confusion = np.array([[9.0, 1, 4], [0, 9, 0], [4, 2, 9]])
  assert most_confused(confusion, 3) == [(0, 2, 4), (2, 0, 4), (2, 1, 2)]
  assert len(most_confused(confusion, 99)) == 4
  assert most_confused(np.eye(3), 5) == []


def test_rows_leave_out_classes_that_do_not_occur():
  confusion = np.zeros((4, 4))
  confusion[0, 0], confusion[0, 2] = 3, 1
  assert matrix_rows(confusion, list("abcd")) == [
    ["class / predicted class", "a", "c"],
    ["a", "3", "1"],
    ["c", "0", "0"],
  ]


def test_of_many_classes_the_most_confused_remain_and_no_image_is_lost():
  confusion = np.diag(np.arange(1.0, 101))
  confusion[7, 90], confusion[31, 30] = 5, 3
  found, names = aggregated(confusion, [str(i) for i in range(100)], 5)
  assert names == ["7", "30", "31", "90", "96 others"]
  assert found.sum() == confusion.sum()
  np.testing.assert_array_equal(np.diag(found)[:4], [8, 31, 32, 91])
  assert (found[0, 3], found[2, 1]) == (5, 3)
  others = confusion.sum() - found[:4].sum()
  assert found[4, 4] == others


@pytest.mark.parametrize("classes", [2, CLASSES_SHOWN_MAX, 1000])
def test_pictures_have_few_rows_with_names(classes):
  names = [f"$ {i}" if i % 2 else f"_{i}" for i in range(classes)]
  figure = draw_confusion(matrix(classes), names, "a $ title")
  labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
  assert len(labels) == min(classes, CLASSES_SHOWN_MAX)
  assert (labels[-1] == "971 others") == (classes == 1000)


def test_nothing_is_drawn_of_no_images():
  assert draw_confusion(np.zeros((3, 3)), list("abc"), "x") is None

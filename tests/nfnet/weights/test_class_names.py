import random

import pytest

from nfnet.errors import UserError
from nfnet.weights.class_names import (
  match_classes,
  match_unnamed_classes,
  read_class_names,
  read_names_file,
)


def match(network, data):
  return match_classes(network, data, network_source="network N", data_source="data set D")


@pytest.mark.parametrize(
  ("network", "data", "classes"),
  [
    ("abc", "abc", (0, 1, 2)),
    ("abc", "bca", (1, 2, 0)),
    ("abc", "ca", (2, 0)),
    ("abc", "b", (1,)),
    (["caf\u00e9", "na\u00efve"], ["nai\u0308ve", "cafe\u0301"], (1, 0)),
    # As they were trained, so there is nothing to match.
    ("aab", "aab", (0, 1, 2)),
  ],
)
def test_classes_are_matched_by_name(network, data, classes):
  for kind in (tuple, list):
    assert match(kind(network), kind(data)) == classes


@pytest.mark.parametrize(
  ("network", "data", "words"),
  [
    ("abc", "012", ["3 of 3 classes", "'0', '1', '2'", "lacks 3: 'a', 'b', 'c'"]),
    ("abc", "abd", ["1 of 3 classes", "know: 'd'", "lacks 1: 'c'"]),
    ("abc", "abcd", ["1 of 4 classes", "know: 'd'", "lacks 0: none"]),
    ("abcdefgh", "ABCDEFGH", ["'A', 'B', 'C', 'D', 'E', ...;", "'a', 'b', 'c', 'd', 'e', ...;"]),
    (["Ant"], ["ant"], ["know: 'ant'", "lacks 1: 'Ant'"]),
    (["\x1b[31m"], ["\n\udcff" * 99], [r"'\x1b[31m'", r"'\n\udcff\n\udcff"]),
    ("aab", "ab", ["network N has two classes named 'a'"]),
    ("ab", "aa", ["data set D has two classes named 'a'"]),
  ],
)
def test_classes_that_cannot_be_matched_are_named(network, data, words):
  with pytest.raises(UserError) as error:
    match(tuple(network), tuple(data))
  text = str(error.value)
  assert text.isprintable()
  assert text.isascii()
  assert len(text) < 600
  for word in words:
    assert word in text


@pytest.mark.parametrize(
  ("metadata", "names"),
  [
    (None, None),
    ({}, None),
    ({"class_names": None}, None),
    ({"class_names": ["a", "b"]}, ("a", "b")),
  ],
)
def test_names_in_metadata(metadata, names):
  assert read_class_names(metadata, 2, source="weights W") == names


@pytest.mark.parametrize(
  ("names", "message"),
  [
    (["a"], "its metadata names 1 class, but its classifier has 2"),
    ([], "its metadata names 0 classes, but its classifier has 2"),
    ("ab", "class_names in its metadata are not a list of names"),
    ([1, 2], "class_names in its metadata are not a list of names"),
  ],
)
def test_names_that_do_not_fit_the_classifier_are_refused(names, message):
  with pytest.raises(UserError, match=f"weights W: {message}"):
    read_class_names({"class_names": names}, 2, source="weights W")


def match_unnamed(num_classes, data):
  return match_unnamed_classes(
    num_classes, data, network_source="network N", data_source="data set D"
  )


def test_imagenets_classes_are_in_the_order_of_their_wordnet_ids():
  ids = [f"n{7 * i + 1440764:08d}" for i in range(1000)]
  data = random.Random(0).sample(ids, 1000)
  found = match_unnamed(1000, data)
  assert found.names == tuple(ids)
  assert [found.names[index] for index in found.classes] == data
  assert match_unnamed(1000, ids).classes == tuple(range(1000))
  assert "WordNet" in found.how


@pytest.mark.parametrize(
  ("num_classes", "data"),
  [
    (3, ["a", "b", "c"]),
    (1000, ["n01440764", "n01443537"]),
    (1000, [f"n{i:07d}" for i in range(1000)]),
    (1000, ["n01440764"] * 1000),
    (1001, [f"n{i:08d}" for i in range(1000)]),
    (21841, [f"n{i:08d}" for i in range(21841)]),
  ],
)
def test_other_classes_without_names_are_refused(num_classes, data):
  with pytest.raises(UserError, match=r"network N has .* --class_names_file=FILE") as error:
    match_unnamed(num_classes, data)
  assert "\n" not in str(error.value)


def test_names_are_read_one_a_line(tmp_path):
  path = tmp_path / "names.txt"
  path.write_bytes("\ufeffcat\r\n\n tabby cat \ncafé".encode())
  assert read_names_file(str(path), 3) == ("cat", "tabby cat", "café")
  with pytest.raises(UserError, match="are 3 names, one per line, but the classifier has 5"):
    read_names_file(str(path), 5)
  path.write_bytes(b"caf\xe9")
  with pytest.raises(UserError, match="are not UTF-8"):
    read_names_file(str(path), 1)
  with pytest.raises(UserError, match="cannot be read"):
    read_names_file(str(tmp_path / "missing"), 1)

import functools
import pathlib
import sys

import numpy as np
import pytest

from nfnet.errors import UserError
from nfnet.images.decoding import decode_image
from tests.train.data import image_files
from train.data.dataset_writer import write_dataset
from train.data.image_sources import describe_source, read_source
from train.data.sources.images import Pixels
from train.data.sources.own_source import Example
from train.data.sources.source import Source

MODULE = """
import functools
from tests.train.data import image_files
from train.data.sources.own_source import Example

def picture(number):
  return image_files.noise(number)

def pictures():
  for number in range(12):
    name = "cat" if number % 3 else "dog"
    yield Example(f"{number:02d}", name, functools.partial(picture, number))

class Numbered:
  class_names = ("no", "yes")

  def __iter__(self):
    for number in range(12):
      split = "train" if number < 8 else "test"
      yield Example(f"{number:02d}", number % 2, image_files.TEN_IMAGES[number % 10][0], split)

nothing = None
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
  (tmp_path / "my_pictures.py").write_text(MODULE)
  monkeypatch.syspath_prepend(tmp_path)
  yield "my_pictures"
  sys.modules.pop("my_pictures", None)


@pytest.mark.parametrize("workers", [0, 1])
def test_functions_are_called_where_images_are_read(tmp_path, module, workers):
  source = read_source(f"{module}:pictures", 0.3)
  assert source.class_names == ("cat", "dog")
  assert "examples of the Python source my_pictures:pictures; 30%" in source.how
  write_dataset(tmp_path / "data", source, workers=workers)
  records = [
    record
    for split in ("train", "validation")
    for record in image_files.read_all(tmp_path / "data", split)
  ]
  assert sorted(record.labels for record in records) == [(0,)] * 8 + [(1,)] * 4
  assert {decode_image(record.image).tobytes() for record in records} == {
    image_files.noise(number).tobytes() for number in range(12)
  }


def test_a_class_names_its_classes_and_splits(module):
  source = read_source(f"{module}:Numbered")
  assert source.class_names == ("no", "yes")
  assert {split: len(images) for split, images in source.splits.items()} == {
    "train": 8,
    "validation": 4,
  }


def test_images_of_several_labels_are_carried_through(tmp_path):
  def examples():
    for number, (image, _) in enumerate(image_files.TEN_IMAGES):
      yield Example(str(number), ["a", "b", "a"] if number % 2 else "c", image)

  source = read_source(examples, 0.3)
  assert "note: images have up to 2 labels each" in describe_source(source)
  manifest = write_dataset(tmp_path / "data", source)
  assert manifest.labels_per_record_max == 2
  assert {record.labels for record in image_files.read_all(tmp_path / "data", "train")} == {
    (0, 1),
    (2,),
  }


def test_a_missing_file_is_an_unreadable_image(tmp_path):
  (tmp_path / "a.png").write_bytes(image_files.TEN_IMAGES[0][0])

  def examples():
    for split in ("train", "validation"):
      for label in "ab":
        yield Example(label, label, tmp_path / "a.png", split)
    yield Example("c", "a", tmp_path / "none.png")

  source = read_source(examples)
  with pytest.raises(UserError, match=r"image c cannot be read \(No such file or directory\)"):
    write_dataset(tmp_path / "data", source)
  manifest = write_dataset(tmp_path / "data", source, skip_bad_images=True)
  assert manifest.skipped_images == ("c",)


def test_another_image_makes_another_data_set(tmp_path):
  def examples(first):
    image = [first, image_files.TEN_IMAGES[1][0]]
    return [Example(str(i), i, image[i], s) for s in ("train", "validation") for i in range(2)]

  fingerprints = set()
  for first in (b"a", b"b", np.zeros((1, 4), np.uint8), np.zeros((4, 1), np.uint8), "a", "b"):
    (image, *_) = read_source(functools.partial(examples, first)).splits["train"]
    fingerprints.add(image.fingerprint())
  assert len(fingerprints) == 6


def test_a_whole_source_may_be_returned():
  images = tuple(
    Pixels(name, (label,), np.zeros((1, 4), np.uint8)) for label, name in enumerate("ab")
  )
  source = Source(("a", "b"), {"train": images})
  assert read_source(lambda: source) is source


PNG = image_files.TEN_IMAGES[0][0]


@pytest.mark.parametrize(
  ("examples", "message"),
  [
    ([("a", "b")], "example 0 is a value of type tuple, must be train.data.sources.own_source.Ex"),
    (3, "returned 3, must be examples or a Source"),
    ([], "has no image with a label"),
    ([Example("", "a", PNG)], "example 0 has the name '', must be text"),
    ([Example("x", "a", PNG, "dev")], r"\('x'\) has the split 'dev', must be one of train, valid"),
    ([Example("x", 1.5, PNG)], "has the labels"),
    ([Example("x", [], PNG)], "has the labels"),
    (
      [Example("x", list(range(1025)), PNG)],
      "has an image of 1,025 labels; there may be 1,024",
    ),
    ([Example("x", "a", 3)], "has the image 3, must be a path, bytes, an array, or a function"),
    ([Example("x", "a", np.zeros(3))], r"has pixels of float64 \[3\], must be uint8"),
    ([Example("x", "a", lambda: PNG)], "cannot be sent to another process .* functools.partial"),
    ([Example("x", "a", PNG), Example("y", 1, PNG)], "labels that are numbers and labels that are"),
    ([Example("x", "a", PNG), Example("y", "a", PNG)], "has only one class, a; a classifier needs"),
    ([Example("x", -1, PNG), Example("y", 1, PNG)], "has the label -1; a class index is 0 to"),
    ([Example("x", "a", PNG), Example("x", "b", PNG)], "two images named 'x' in train"),
    ([Example("x", "a", PNG), Example("y", "A\x1b", PNG)], "is empty, has control characters"),
    ([Example("x", "a", PNG, "test"), Example("y", "b", PNG, "test")], "has no training images"),
  ],
)
def test_examples_that_are_refused(examples, message):
  with pytest.raises(UserError, match=message):
    read_source(lambda: examples)


@pytest.mark.parametrize(
  ("reference", "message"),
  [
    ("my_picture:pictures", "finds no module my_picture from this folder"),
    ("my_pictures:picture_list", "my_pictures has no function or class picture_list"),
    ("my_pictures:nothing", "has no function or class nothing"),
  ],
)
def test_references_that_lead_nowhere(module, reference, message):
  with pytest.raises(UserError, match=message):
    read_source(reference)


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("\nimport my_missing", r"No module named 'my_missing' \(.*my_broken_0\.py, line 2\)"),
    ("def f(:", r"my_broken_1 raised SyntaxError: invalid syntax \(my_broken_1\.py, line 1\)"),
    (
      "1 / 0",
      r"my_broken_2 raised ZeroDivisionError: division by zero \(.*my_broken_2\.py",
    ),
  ],
)
def test_a_module_that_cannot_be_imported_shows_where(tmp_path, monkeypatch, text, message):
  name = message[message.index("my_broken_") :][: len("my_broken_0")]
  (tmp_path / f"{name}.py").write_text(text)
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(UserError, match=message):
    read_source(f"{name}:pictures")


def raise_error(number):
  raise KeyError(number)


def wrong_pixels(shape, dtype):
  return np.zeros(shape, dtype)


@pytest.mark.parametrize(
  ("function", "message"),
  [
    (
      functools.partial(raise_error, 7),
      r"image '[ab]': its function raised KeyError: 7 \(.*",
    ),
    (functools.partial(wrong_pixels, (4, 4, 3), np.float32), "pixels of float32 .*, must be uint8"),
    (functools.partial(wrong_pixels, (4, 4, 4), np.uint8), r"uint8 \[4, 4, 4\], must be uint8"),
    (functools.partial(wrong_pixels, (0, 4, 3), np.uint8), r"uint8 \[0, 4, 3\], must be uint8"),
    (functools.partial(str, "/"), r"image [ab] cannot be read \(Is a directory\): add --skip"),
  ],
)
def test_functions_that_return_no_image_are_named(tmp_path, function, message):
  splits = ("train", "validation")
  examples = [Example(label, label, function, split) for split in splits for label in "ab"]
  with pytest.raises(UserError, match=message):
    write_dataset(tmp_path / "data", read_source(lambda: examples))


def failing_examples():
  yield Example("a", "a", PNG)
  raise OSError("no disk")


def failing_function():
  raise IndexError("no row")


@pytest.mark.parametrize(
  ("function", "message"),
  [
    (failing_examples, r"failing_examples raised OSError: no disk \(.*, line .*\) after 1 example"),
    (failing_function, r"failing_function raised IndexError: no row \(.*test_own_source.py, line"),
  ],
)
def test_errors_of_the_function_are_one_line(function, message):
  with pytest.raises(UserError, match=message):
    read_source(function)


def test_every_function_can_be_sent_to_another_process():
  functions = [functools.partial(wrong_pixels, (4, 4), np.uint8), lambda: PNG]
  examples = [Example(str(number), number, one) for number, one in enumerate(functions)]
  with pytest.raises(UserError, match=r"example 1 \('1'\): its function cannot be sent to another"):
    read_source(lambda: examples)


@pytest.mark.parametrize("kind", [np.int64, np.array, lambda label: np.array([label])])
def test_labels_of_numpy(kind):
  numbers = [Example(str(label), kind(label), PNG) for label in range(9)]
  names = [Example(str(label), np.str_("ab"[label % 2]), PNG) for label in range(9)]
  for examples, class_names in ((numbers, tuple("012345678")), (names, ("a", "b"))):
    source = read_source(lambda examples=examples: examples, 0.4)
    assert source.class_names == class_names


def test_a_source_that_names_its_classes_takes_no_other_names(module):
  assert read_source(f"{module}:Numbered", class_names=("no", "yes")).class_names == ("no", "yes")
  with pytest.raises(UserError, match=r"--class_names: .* names its classes itself; leave out the"):
    read_source(f"{module}:Numbered", class_names=("yes", "no"))


@pytest.mark.parametrize("class_names", [None, 5, [1, 2], "ab", [["a"], ["b"]], ["a", "\ud800"]])
def test_names_of_classes_are_texts(class_names):
  class Numbered:
    def __iter__(self):
      return (Example(str(number), number % 2, PNG) for number in range(9))

  Numbered.class_names = class_names
  with pytest.raises(
    UserError, match=r"^Numbered has the class_names .*, must be a list of names$"
  ):
    read_source(Numbered, 0.4)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"size_bytes": None}, r"has the size_bytes None, must be a number of bytes"),
    ({"size_bytes": "12"}, r"has the size_bytes '12', must be"),
    ({"size_bytes": -1}, r"has the size_bytes -1, must be"),
    ({"version": 3}, r"has the version 3, must be text"),
    ({"version": "\ud800"}, r"has the version '\\ud800', must be text"),
    ({"name": "\ud800"}, r"example 0 has the name '\\ud800', must be text"),
    ({"name": 3}, r"example 0 has the name 3, must be text"),
    ({"split": ["train"]}, r"has the split \['train'\], must be one of train, valid"),
    ({"labels": "\ud800"}, r"has a class named .* not UTF-8"),
    ({"labels": b"ab"}, r"has the labels .*, must be names or numbers"),
    ({"image": "a\0b"}, r"has the path 'a\\x00b', which no file can have: correct it"),
    ({"image": "\ud800"}, r"has the path '\\ud800', which no file can have"),
    (
      {"image": "gs://bucket/a.jpg"},
      r"image=gs://bucket/a.jpg is in a bucket, .*: mount the bucket",
    ),
    ({"image": pathlib.Path("s3://bucket/a")}, r"image=s3:/bucket/a is not a path of this machine"),
  ],
)
def test_fields_that_are_refused(fields, message):
  first = {"name": "x", "labels": "a", "image": functools.partial(bytes, 1)} | fields
  with pytest.raises(UserError, match=message):
    read_source(lambda: [Example(**first), Example("y", "b", PNG)])


@pytest.mark.parametrize("path", ["gs://bucket/a.jpg", "a\0b"])
def test_paths_that_functions_return_are_checked(tmp_path, path):
  function = functools.partial(str, path)
  splits = ("train", "validation")
  examples = [Example(label, label, function, split) for split in splits for label in "ab"]
  with pytest.raises(UserError, match=r"image '[ab]'.*(is in a bucket|which no file can have)"):
    write_dataset(tmp_path / "data", read_source(lambda: examples))


def pixels(**fields):
  given = {"name": "x", "labels": (0,), "pixels": np.zeros((1, 4), np.uint8)} | fields
  return Pixels(**given)


@pytest.mark.parametrize(
  ("source", "message"),
  [
    (Source((), {}), "the Source has 0 classes, must have two"),
    (Source("ab", {}), "the Source has the class_names 'ab', must be a tuple of names"),
    (Source(("a", 1), {}), "the Source has the class_names .*, must be a list of names"),
    (Source(("a", "a"), {}), "the Source has two classes named 'a'"),
    (Source(("a", "b"), {}), "the Source has no split train, must have one"),
    (Source(("a", "b"), []), "the Source has the splits .*, must be images by split"),
    (
      Source(("a", "b"), {"dev": ()}),
      "the Source has the split 'dev', must be one of train, valid",
    ),
    (
      Source(("a", "b"), {"train": ()}),
      "as the split train, must be a tuple of at least one image",
    ),
    (Source(("a", "b"), {"train": (3,)}), "image 0 of train is 3 without name, labels, size_bytes"),
    (
      Source(("a", "b"), {"train": (pixels(labels=(2,)),)}),
      "the labels .2., must be a tuple of cl",
    ),
    (Source(("a", "b"), {"train": (pixels(labels=()),)}), "has no labels, must have one"),
    (
      Source(("a", "b"), {"train": (pixels(name=3),)}),
      "image 0 of train has the name 3, must be t",
    ),
    (Source(("a", "b"), {"train": (pixels(), pixels())}), "two images named 'x' in train: rename"),
    (Source(("a", "b"), {"train": (pixels(),)}, notes="n"), "has the notes 'n', must be a list of"),
  ],
)
def test_whole_sources_that_are_refused(source, message):
  with pytest.raises(UserError, match=message):
    read_source(lambda: source)


def test_a_whole_source_has_its_own_names():
  source = Source(("a", "b"), {"train": (pixels(),)})
  with pytest.raises(UserError, match=r"--class_names: .* names its classes itself; leave out the"):
    read_source(lambda: source, class_names=("c", "d"))

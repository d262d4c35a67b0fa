import itertools
import json
import subprocess
import sys

import pyarrow
import pyarrow.parquet
import pytest

from nfnet.errors import UserError
from nfnet.images.headers import BadImageError
from tests.repository import ROOT
from tests.train.data import image_files
from tests.train.data.sources import miniatures
from train.data.dataset_writer import _tasks, write_dataset
from train.data.image_sources import read_source
from train.data.sources import parquet

PROGRAM_WITHOUT_PYARROW = """
import runpy, sys
sys.modules["pyarrow"] = None
runpy.run_module("train.prepare_data", run_name="__main__", alter_sys=True)
"""
"""Python itself takes the second line to mean that there is no such package."""


def examples(first, count, label=lambda number: number % 3):
  return [(miniatures.picture(number), label(number)) for number in range(first, first + count)]


def write(root, **options):
  for index in range(2):
    name = f"data/train-{index:05d}-of-00002.parquet"
    miniatures.write_parquet(root / name, examples(10 * index, 10), **options)
  name = "data/validation-00000-of-00001.parquet"
  miniatures.write_parquet(root / name, examples(20, 4), **options)
  return root


def test_files_of_hugging_face(tmp_path):
  source = read_source(write(tmp_path / "source"))
  assert source.class_names == image_files.CLASS_NAMES
  assert source.how == "3 parquet files; images are in the column image, labels in label"
  found = {image.read(): image.labels for image in source.splits["train"]}
  assert found == {image: (label,) for image, label in examples(0, 20)}
  write_dataset(tmp_path / "a", source, files_per_split=3)
  write_dataset(tmp_path / "b", source, files_per_split=3, workers=2)
  assert image_files.file_hashes(tmp_path / "a") == image_files.file_hashes(tmp_path / "b")
  one = read_source(tmp_path / "source" / "data" / "train-00000-of-00002.parquet", 0.3)
  assert len(one.splits["train"]) + len(one.splits["validation"]) == 10


def test_images_of_a_row_group_are_read_together(tmp_path):
  source = read_source(write(tmp_path / "source", row_group_size=5))
  write_dataset(tmp_path / "data", source)
  places = {image: number // 5 for number, (image, _) in enumerate(examples(0, 20))}
  stored = [places[record.image] for record in image_files.read_all(tmp_path / "data", "train")]
  changes = sum(first != second for first, second in itertools.pairwise(stored))
  assert changes == 3
  images = source.splits["train"] * 4
  assert [len(task) for task in _tasks(sorted(images, key=lambda image: image.group))] == [20] * 4


def test_columns_without_metadata(tmp_path):
  path = tmp_path / "train.parquet"
  table = {"picture": [image for image, _ in examples(0, 30)], "category": ["b", "a"] * 15}
  pyarrow.parquet.write_table(pyarrow.table({**table, "size": [1] * 30}), path)
  source = read_source(tmp_path, 0.3)
  assert source.class_names == ("a", "b")
  numbered = read_source(tmp_path, 0.3, label_field="size", class_names=("x", "y"))
  assert numbered.class_names == ("x", "y")
  with pytest.raises(UserError, match="has no column kind; it has picture, category, size"):
    read_source(tmp_path, label_field="kind")
  with pytest.raises(UserError, match="the column size has the type int64, must be bytes"):
    read_source(tmp_path, image_field="size")
  with pytest.raises(UserError, match="the column picture has the type binary, must be whole num"):
    read_source(tmp_path, label_field="picture")
  pyarrow.parquet.write_table(pyarrow.table({"a": [b"x"], "b": [b"y"], "label": [1]}), path)
  with pytest.raises(UserError, match="2 columns of images that can be told: of a, b, give --"):
    read_source(tmp_path)


def test_lists_of_labels(tmp_path):
  feature = {"feature": {"names": ["x", "y", "z"], "_type": "ClassLabel"}, "_type": "Sequence"}
  features = {"image": {"_type": "Image"}, "label": feature}
  metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
  images = examples(0, 12, lambda number: [number % 3, 1])
  miniatures.write_parquet(tmp_path / "a.parquet", images, metadata=metadata)
  source = read_source(tmp_path, 0.3)
  assert source.class_names == ("x", "y", "z")
  assert {image.labels for image in source.splits["train"]} <= {(0, 1), (1,), (1, 2)}


def test_rows_without_image_or_label(tmp_path):
  root = write(tmp_path / "source")
  more = [(None, 0), (b"", 1), (b"bad", 1), (miniatures.picture(50), -1)]
  miniatures.write_parquet(root / "data" / "train-x.parquet", more)
  miniatures.write_parquet(root / "data" / "test-0.parquet", examples(60, 3, lambda _: -1))
  source = read_source(root)
  assert "left out: test: 3 images without a label" in source.notes
  manifest = write_dataset(tmp_path / "data", source, skip_bad_images=True)
  assert manifest.skipped_images == tuple(f"data/train-x.parquet/{row:07d}" for row in range(4))


def test_damaged_files(tmp_path):
  root = write(tmp_path / "source")
  path = root / "data" / "train-00001-of-00002.parquet"
  whole = path.read_bytes()
  path.write_bytes(whole[:-10])
  with pytest.raises(UserError, match=r"train-00001-of-00002\.parquet is damaged or no parquet"):
    read_source(root)
  path.write_bytes(whole)
  source = read_source(root)
  start = whole.index(b"\xff\xd8\xff")
  damaged = whole[: start - 40] + b"\xff" * 60 + whole[start + 20 :]
  path.write_bytes(damaged)
  manifest = write_dataset(tmp_path / "data", source, skip_bad_images=True)
  # The first row group.
  assert set(manifest.skipped_images) <= {
    f"data/train-00001-of-00002.parquet/{row:07d}" for row in range(4)
  }
  assert manifest.skipped_images
  miniatures.write_parquet(path, examples(0, 4), metadata=miniatures.hugging_face_metadata("abc"))
  with pytest.raises(UserError, match="has other columns or classes than"):
    read_source(root)


@pytest.mark.parametrize(
  "metadata", [b"", b"[]", b'{"info": 3}', b'{"info": {"features": [1]}}', b"[" * 100_000]
)
def test_damaged_metadata_are_none(tmp_path, metadata):
  metadata = {b"huggingface": metadata}
  miniatures.write_parquet(tmp_path / "a.parquet", examples(0, 12), metadata=metadata)
  assert read_source(tmp_path, 0.3).class_names == ("0", "1", "2")


def test_columns_of_views(tmp_path):
  views = {"binary": pyarrow.binary_view(), "text": pyarrow.string_view()}
  cells = [miniatures.picture(number) for number in range(12)]
  names = [image_files.CLASS_NAMES[number % 3] for number in range(12)]
  table = {
    "image": pyarrow.array(cells, views["binary"]),
    "label": pyarrow.array(names, views["text"]),
  }
  pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "a.parquet")
  source = read_source(tmp_path, 0.3)
  assert source.class_names == image_files.CLASS_NAMES
  assert {image.read() for image in source.splits["train"]} <= set(cells)


def test_a_row_group_is_read_in_pieces(tmp_path, monkeypatch):
  monkeypatch.setattr(parquet, "_ROWS_PER_BATCH", 3)
  monkeypatch.setattr(parquet, "_GROUP_BYTES_NOTED", 1000)
  source = read_source(write(tmp_path / "source", row_group_size=10))
  found = {image.read(): image.labels for image in source.splits["train"]}
  assert found == {image: (label,) for image, label in examples(0, 20)}
  image = source.splits["train"][0]
  assert parquet._images(image.container, image.columns, 0).num_chunks == 4
  (note,) = source.notes
  assert note.startswith("note: row groups have up to ")
  assert note.endswith("kB of images, and each of the --workers keeps one in memory")


def test_an_empty_file_is_left_out(tmp_path):
  root = write(tmp_path / "source")
  miniatures.write_parquet(root / "data" / "train-x.parquet", [(b"x", 1)])
  path = root / "data" / "train-x.parquet"
  pyarrow.parquet.write_table(pyarrow.parquet.read_table(path).slice(0, 0), path)
  assert len(read_source(root).splits["train"]) == 20


def test_images_are_bounded(tmp_path, monkeypatch):
  source = read_source(write(tmp_path / "source"))
  monkeypatch.setattr(parquet, "ENCODED_BYTES_MAX", 100)
  with pytest.raises(BadImageError, match="has more than 100 bytes: make the image smaller"):
    source.splits["train"][0].read()


def test_without_pyarrow_a_line_says_what_to_install(tmp_path):
  """Nothing else of the project needs it, so the command gets as far as the file."""
  (tmp_path / "a.parquet").write_bytes(b"PAR1")
  arguments = (f"--source={tmp_path}", f"--out={tmp_path / 'data'}")
  completed = subprocess.run(
    [sys.executable, "-c", PROGRAM_WITHOUT_PYARROW, *arguments],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert (completed.returncode, completed.stdout) == (2, "")
  assert completed.stderr == (
    "error: parquet files are read by pyarrow, which is not installed: pip install pyarrow\n"
  )


@pytest.mark.parametrize("first", ["test", "zest"])
@pytest.mark.parametrize("label", [None, pyarrow.nulls(3)])
def test_a_split_whose_files_have_no_labels_is_left_out(tmp_path, label, first):
  root = write(tmp_path / "source")
  # The files without labels may be the first or the last ones that are opened.
  path = root / ("data" if first == "test" else "z") / "test-00000-of-00001.parquet"
  miniatures.write_parquet(path, examples(60, 3))
  table = pyarrow.parquet.read_table(path).drop_columns("label")
  if label is not None:
    table = table.append_column("label", label)
  pyarrow.parquet.write_table(table, path)
  source = read_source(root)
  assert "left out: test: 3 images without a label" in source.notes
  assert {split: len(images) for split, images in source.splits.items()} == {
    "train": 20,
    "validation": 4,
  }
  # In a split that has labels, they are damaged.
  path.rename(root / "data" / "train-x.parquet")
  source = read_source(root)
  assert {image.problem for image in source.splits["train"]} == {"", "it has no label, but None"}
  (root / "data" / "train-x.parquet").rename(tmp_path / "alone.parquet")
  with pytest.raises(
    UserError, match=r"no column of labels that can|label has the type null, must"
  ):
    read_source(tmp_path / "alone.parquet")


def test_truth_values_are_classes(tmp_path):
  miniatures.write_parquet(
    tmp_path / "a.parquet", examples(0, 12, lambda number: number % 3 == 0), metadata={}
  )
  source = read_source(tmp_path, 0.3)
  assert source.class_names == ("False", "True")
  labels = {image.read(): image.labels for image in source.splits["train"]}
  assert labels.items() <= {miniatures.picture(n): (int(n % 3 == 0),) for n in range(12)}.items()
  assert read_source(tmp_path, 0.3, class_names=("no", "yes")).class_names == ("no", "yes")


def test_a_label_that_the_metadata_do_not_name(tmp_path):
  miniatures.write_parquet(tmp_path / "a.parquet", examples(0, 12, lambda n: "antelope"))
  with pytest.raises(UserError, match="correct it or add it to the names that the source itself"):
    read_source(tmp_path)

"""An option that a format does not read is refused, and one that it reads has an effect."""

import pytest

from nfnet.errors import UserError
from tests.train.data import image_files
from tests.train.data.sources import miniatures
from tests.train.data.sources.test_every_format import SOURCES
from train.data.image_sources import FORMATS, SELECTIVE_OPTIONS, read_source
from train.data.sources.source import Options

NONSENSE = {
  "class_names": ("nothing", "else"),
  "layout": "splits",
  "merge_subfolders": True,
  "labels": "/nope.csv",
  "image_field": "nope",
  "label_field": "nope",
}
"""A value of each option that no source below can be read with, if it is read."""
READ = {
  "class_folders": {"layout", "merge_subfolders"},
  "idx": {"class_names"},
  "cifar": set(),
  "table": {"class_names", "labels", "image_field", "label_field"},
  "imagenet": {"class_names", "labels", "image_field", "label_field"},
  "class_tars": {"class_names"},
  "webdataset": {"class_names", "image_field", "label_field"},
  "parquet": {"class_names", "image_field", "label_field"},
  "tfds": {"class_names", "image_field", "label_field"},
  "python": {"class_names"},
}


def test_every_option_is_read_by_all_formats_or_by_those_that_say_so():
  assert set(NONSENSE) == set(SELECTIVE_OPTIONS)
  assert set(READ) == set(FORMATS[1:])
  assert set(vars(Options())) - set(SELECTIVE_OPTIONS) == {"evaluation_share", "excluded"}


@pytest.mark.parametrize("source_format", FORMATS[1:])
def test_no_option_is_ignored(tmp_path, source_format):
  source = SOURCES[source_format](tmp_path / "source")
  for option, value in NONSENSE.items():
    # Subfolders are merged where there are some: tests/train/data/preparation.
    if (source_format, option) == ("class_folders", "merge_subfolders"):
      read_source(source, 0.3, source_format=source_format, merge_subfolders=True)
      continue
    with pytest.raises(UserError) as refused:
      read_source(source, 0.3, source_format=source_format, **{option: value})
    text = f"--{option} is for sources of the format "
    assert (text in str(refused.value)) == (option not in READ[source_format]), str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_message_names_the_formats_that_read_the_option(tmp_path):
  root = image_files.write_class_folders(tmp_path / "source", 6)
  with pytest.raises(UserError) as refused:
    read_source(root, source_format="class_folders", labels="/nope.csv")
  assert str(refused.value) == (
    f"--labels is for sources of the format table or imagenet, and {root} is read as "
    "class_folders: leave out the flag, or give another --format"
  )


def test_fields_are_refused_where_the_source_has_nothing_that_has_fields(tmp_path):
  shards = miniatures.write_webdataset(tmp_path / "shards")
  with pytest.raises(UserError, match=r"is a field of \.json files, and .* labels in \.cls files"):
    read_source(shards, label_field="label")
  imagenet = miniatures.write_imagenet(tmp_path / "imagenet")
  with pytest.raises(UserError, match=r"--label_field is for a table of the validation images"):
    read_source(imagenet, label_field="label")

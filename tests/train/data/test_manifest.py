import dataclasses

import pytest

from nfnet.errors import UserError
from tests.train.data import image_files
from train.data.manifest import MANIFEST_NAME, Manifest, load_manifest, save_manifest


def test_manifest_comes_back_as_it_was(tmp_path):
  written = image_files.write_records(tmp_path / "data", {"train": image_files.TEN_IMAGES})
  assert load_manifest(tmp_path / "data") == written


def test_missing_folder(tmp_path):
  with pytest.raises(UserError, match="nowhere does not exist"):
    load_manifest(tmp_path / "nowhere")


def test_empty_folder(tmp_path):
  with pytest.raises(UserError, match="has no manifest"):
    load_manifest(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format_version": 99}', '"x"'])
def test_file_that_is_no_manifest(tmp_path, content):
  (tmp_path / MANIFEST_NAME).write_text(content)
  with pytest.raises(UserError, match=r"manifest\.json"):
    load_manifest(tmp_path)


@pytest.mark.parametrize(
  "field", [f.name for f in dataclasses.fields(Manifest) if f.name != "images_in_two_splits"]
)
def test_manifest_without_a_field(folder, field):
  image_files.edit_manifest(folder, lambda fields: fields.pop(field))
  with pytest.raises(UserError, match=r"manifest\.json"):
    load_manifest(folder)


def test_the_number_of_images_in_two_splits_may_be_unknown(folder):
  assert load_manifest(folder).images_in_two_splits is None
  image_files.edit_manifest(folder, lambda fields: fields.update(images_in_two_splits=3))
  assert load_manifest(folder).images_in_two_splits == 3
  image_files.edit_manifest(folder, lambda fields: fields.update(images_in_two_splits="3"))
  with pytest.raises(UserError, match="images_in_two_splits is '3', must be an integer"):
    load_manifest(folder)


@pytest.mark.parametrize(
  "text", ["[" * 100_000, '{"a":' * 100_000, "\udc00", '{"\x1b[2J": "\x00"}']
)
def test_text_that_parsers_stumble_over(tmp_path, text):
  (tmp_path / MANIFEST_NAME).write_bytes(text.encode("utf-8", "surrogatepass"))
  with pytest.raises(UserError, match=r"manifest\.json") as caught:
    load_manifest(tmp_path)
  assert str(caught.value).isprintable()


def test_manifest_whose_files_do_not_add_up(folder):
  image_files.edit_manifest(folder, lambda fields: fields["splits"]["train"].update(records=11))
  with pytest.raises(UserError, match="'train' has 11 records, but its record files have 10"):
    load_manifest(folder)


def test_a_manifest_that_cannot_be_written_leaves_the_old_one(tmp_path):
  folder = tmp_path / "data"
  manifest = image_files.write_records(folder, {"train": image_files.TEN_IMAGES})
  (folder / "manifest.tmp").mkdir()
  with pytest.raises(OSError, match=r"manifest\.tmp"):
    save_manifest(folder, dataclasses.replace(manifest, class_names=()))
  assert load_manifest(folder) == manifest

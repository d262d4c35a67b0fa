import dataclasses

import pytest

from nfnet.errors import UserError
from tests.train.data import image_files
from train.data import manifest
from train.data.manifest import (
  MANIFEST_NAME,
  Manifest,
  check_file_sizes,
  load_manifest,
  save_manifest,
)


def test_manifest_comes_back_as_it_was(tmp_path):
  written = image_files.write_records(tmp_path / "data", {"train": image_files.TEN_IMAGES})
  assert load_manifest(tmp_path / "data") == written


def test_missing_folder(tmp_path):
  with pytest.raises(UserError, match="nowhere does not exist"):
    load_manifest(tmp_path / "nowhere")


def test_empty_folder(tmp_path):
  with pytest.raises(UserError, match="has no manifest"):
    load_manifest(tmp_path)


@pytest.mark.parametrize("name", ["x" * 300, "link"])
def test_a_folder_that_cannot_be_looked_at(tmp_path, name):
  (tmp_path / "link").symlink_to("link")
  with pytest.raises(UserError, match=r"cannot be read: (File name too long|Too many levels)"):
    load_manifest(tmp_path / name)


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "\udc80", "."])
def test_record_files_whose_names_no_file_can_have_are_missing(folder, name):
  image_files.edit_manifest(folder, _set_file(file=name))
  with pytest.raises(UserError, match=r"is in manifest\.json but missing"):
    check_file_sizes(folder, load_manifest(folder).splits["train"])


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format_version": 99}', '"x"'])
def test_file_that_is_no_manifest(tmp_path, content):
  (tmp_path / MANIFEST_NAME).write_text(content)
  with pytest.raises(UserError, match=r"manifest\.json"):
    load_manifest(tmp_path)


@pytest.mark.parametrize(
  "field", [f.name for f in dataclasses.fields(Manifest) if f.name not in manifest._OPTIONAL]
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


def _set_file(**fields):
  return lambda manifest: manifest["splits"]["train"]["shards"][0].update(fields)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda manifest: manifest.update(class_names="cat"), "class_names is 'cat', must be a list"),
    (lambda manifest: manifest.update(class_names=[1, "b"]), r"class_names\[0\] is 1, must be of"),
    (lambda manifest: manifest.update(splits=[]), r"splits is \[\], must be an object"),
    (
      lambda manifest: manifest["splits"].update(train=None),
      "splits.train is None, must be an obj",
    ),
    (
      lambda manifest: manifest["splits"].update({"\x1b[31m": 1}),
      r"splits\.\\x1b\[31m is 1, must be",
    ),
    (lambda manifest: manifest.update(labels_per_record_max=2**20), "labels_per_record_max is"),
    (lambda manifest: manifest.update(skipped_images=None), "skipped_images is None, must be a"),
    (lambda manifest: manifest.update(format_version="1\n" * 10**5), r"format_version '1\\n1"),
    (_set_file(records=-10), r"shards\[0\]\.records is -10, must be an integer"),
    (_set_file(records="10"), r"shards\[0\]\.records is '10', must be an integer"),
    (_set_file(records=True), r"shards\[0\]\.records is True, must be an integer"),
    (_set_file(records=10**400), r"shards\[0\]\.records is an integer of 1329 bits, must be"),
    (_set_file(size_bytes=1e300), r"shards\[0\]\.size_bytes is 1e\+300, must be an integer"),
    (_set_file(size_bytes=9), "has 10 records in 9 bytes"),
    (_set_file(file="../data/train"), "'../data/train' is not the name of a file beside it"),
    (_set_file(file="/etc/passwd"), "'/etc/passwd' is not the name of a file beside it"),
    (_set_file(file=""), "'' is not the name of a file beside it"),
    (_set_file(file=".."), "'..' is not the name of a file beside it"),
    (lambda manifest: manifest.update(image_sizes={"a": {}}), "has no field 'shorter_side'"),
    (lambda manifest: manifest.update(repeated_images=-1), "repeated_images is -1, must be an int"),
    (_set_file(file=[]), r"shards\[0\]\.file is \[\], must be of type str"),
  ],
)
def test_a_manifest_of_wrong_types_or_values_is_one_line(folder, change, message):
  image_files.edit_manifest(folder, change)
  with pytest.raises(UserError, match=message) as error:
    load_manifest(folder)
  assert str(error.value).isprintable()
  assert len(str(error.value)) < 1000


@pytest.mark.parametrize("content", [b"[" * 10**5, b'{"a":' * 10**5, b"9" * 10**5, b"\xff\x1b[31m"])
def test_a_hostile_manifest_is_one_line(tmp_path, content):
  (tmp_path / MANIFEST_NAME).write_bytes(content)
  with pytest.raises(UserError, match=r"manifest\.json is damaged: ") as error:
    load_manifest(tmp_path)
  assert str(error.value).isprintable()


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

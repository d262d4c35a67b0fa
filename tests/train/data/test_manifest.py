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


def test_manifest_from_before_images_were_compared(folder):
  image_files.edit_manifest(folder, lambda fields: fields.pop("images_in_two_splits"))
  assert load_manifest(folder).images_in_two_splits is None


@pytest.mark.parametrize(
  ("field", "value"),
  [
    *(("file", value) for value in ("../secret", "/etc/passwd", "", "..", 3, None)),
    *(("records", value) for value in (True, -1, 1.5, "10", float("inf"), 2**80, None)),
    *(("size_bytes", value) for value in (-1, float("nan"), [])),
    ("sha256", 7),
  ],
)
def test_record_file_with_a_field_of_another_kind(folder, field, value):
  image_files.edit_manifest(
    folder, lambda fields: fields["splits"]["train"]["shards"][0].update({field: value})
  )
  with pytest.raises(UserError, match=r"manifest\.json is damaged"):
    load_manifest(folder)


@pytest.mark.parametrize("value", [10**12, -1, True, "1", float("inf")])
def test_labels_per_record_that_cannot_be(folder, value):
  image_files.edit_manifest(folder, lambda fields: fields.update(labels_per_record_max=value))
  with pytest.raises(UserError, match=r"manifest\.json is damaged"):
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

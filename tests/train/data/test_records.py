import dataclasses
import json

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfnet.errors import UserError
from tests.train.data import image_files
from train.data import record_reader, records

IMAGES = [
  (image_files.encode(image_files.noise(index), "PNG"), (index % 3,)) for index in range(10)
]


@pytest.fixture
def folder(tmp_path):
  image_files.write_records(tmp_path / "data", {"train": IMAGES, "validation": IMAGES[:4]})
  return tmp_path / "data"


def verify(folder):
  return list(records.verify(folder, records.load_manifest(folder)))


def edit_manifest(folder, edit):
  path = folder / records.MANIFEST_NAME
  fields = json.loads(path.read_text())
  edit(fields)
  path.write_text(json.dumps(fields))


@given(
  st.builds(
    records.Record,
    st.integers(0, 2**63 - 1),
    st.lists(st.integers(0, 2**31 - 1), min_size=1).map(tuple),
    st.binary(),
  )
)
def test_records_come_back_as_they_were(record):
  assert records.decode_record(records.encode_record(record)) == record


@given(st.binary(max_size=60))
def test_bytes_that_are_no_record_raise_the_one_error(stored):
  with pytest.raises(records.BadRecordError):
    records.decode_record(stored)


@pytest.mark.parametrize(
  "fields",
  [
    {"id": 0, "labels": [], "image": b""},
    {"id": 0, "labels": ["ant"], "image": b""},
    {"id": 0, "labels": [1], "image": "text"},
    {"id": 0, "image": b""},
    [0, [1], b""],
  ],
)
def test_msgpack_of_something_else_raises_the_one_error(fields):
  with pytest.raises(records.BadRecordError):
    records.decode_record(msgpack.packb(fields))


def test_a_record_cut_short_raises_the_one_error():
  stored = records.encode_record(records.Record(3, (1, 2), b"image"))
  for length_bytes in range(len(stored)):
    with pytest.raises(records.BadRecordError):
      records.decode_record(stored[:length_bytes])


def test_manifest_comes_back_as_it_was(tmp_path):
  written = image_files.write_records(tmp_path / "data", {"train": IMAGES})
  assert records.load_manifest(tmp_path / "data") == written


def test_missing_folder(tmp_path):
  with pytest.raises(UserError, match="nowhere does not exist"):
    records.load_manifest(tmp_path / "nowhere")


def test_empty_folder(tmp_path):
  with pytest.raises(UserError, match="has no manifest"):
    records.load_manifest(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format_version": 99}', '"x"'])
def test_file_that_is_no_manifest(tmp_path, content):
  (tmp_path / records.MANIFEST_NAME).write_text(content)
  with pytest.raises(UserError, match=r"manifest\.json"):
    records.load_manifest(tmp_path)


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(records.Manifest)])
def test_manifest_without_a_field(folder, field):
  edit_manifest(folder, lambda fields: fields.pop(field))
  with pytest.raises(UserError, match=r"manifest\.json"):
    records.load_manifest(folder)


def test_manifest_whose_shards_do_not_add_up(folder):
  edit_manifest(folder, lambda fields: fields["splits"]["train"].update(records=11))
  with pytest.raises(UserError, match="'train' has 11 records, its shards together 10"):
    records.load_manifest(folder)


def test_a_whole_data_set_verifies(folder):
  assert [shard.records for shard in verify(folder)] == [10, 4]


def test_missing_shard(folder):
  (folder / "train.array_record").unlink()
  with pytest.raises(UserError, match=r"train\.array_record .*missing"):
    verify(folder)


def test_shard_cut_short(folder):
  path = folder / "train.array_record"
  path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(UserError, match=r"train\.array_record has 131071 bytes where .* 131072"):
    verify(folder)


def test_shard_with_one_bit_changed(folder):
  path = folder / "train.array_record"
  content = bytearray(path.read_bytes())
  content[1000] ^= 1
  path.write_bytes(content)
  with pytest.raises(UserError, match=r"train\.array_record has SHA-256"):
    verify(folder)


def test_shard_with_another_number_of_records(folder):
  def edit(fields):
    fields["splits"]["train"]["records"] = 9
    fields["splits"]["train"]["shards"][0]["records"] = 9

  edit_manifest(folder, edit)
  with pytest.raises(UserError, match=r"train\.array_record has 10 records where .* 9"):
    verify(folder)


def test_records_of_another_split(folder):
  edit_manifest(
    folder,
    lambda fields: fields["splits"].update(
      train={
        "records": 14,
        "shards": [fields["splits"][name]["shards"][0] for name in ("train", "validation")],
      }
    ),
  )
  with pytest.raises(UserError, match="record 0 has id 0, not 10"):
    verify(folder)


def test_labels_beyond_the_classes(folder):
  edit_manifest(folder, lambda fields: fields.update(class_names=["ant", "bee"]))
  with pytest.raises(UserError, match=r"labels \[2\]; there are 2 classes"):
    verify(folder)


def test_a_manifest_that_cannot_be_written_leaves_the_old_one(tmp_path):
  folder = tmp_path / "data"
  manifest = image_files.write_records(folder, {"train": IMAGES})
  (folder / "manifest.tmp").mkdir()
  with pytest.raises(OSError, match=r"manifest\.tmp"):
    records.save_manifest(folder, dataclasses.replace(manifest, class_names=()))
  assert records.load_manifest(folder) == manifest


@pytest.mark.parametrize("in_memory_bytes_max", [0, 2**30])
def test_reader_finds_every_record_over_several_shards(tmp_path, monkeypatch, in_memory_bytes_max):
  monkeypatch.setattr(record_reader, "IN_MEMORY_BYTES_MAX", in_memory_bytes_max)
  manifest = image_files.write_dataset(tmp_path / "data", train=23, shards=4)
  reader = record_reader.RecordReader(tmp_path / "data", manifest.splits["train"])
  assert len(reader) == 23
  assert [reader.read(index).id for index in range(23)] == list(range(23))
  assert reader.describe(5) == "record 0 of train-00001-of-00004.array_record"


@pytest.mark.parametrize("in_memory_bytes_max", [0, 2**30])
def test_reader_loses_only_the_damaged_record(folder, monkeypatch, in_memory_bytes_max):
  monkeypatch.setattr(record_reader, "IN_MEMORY_BYTES_MAX", in_memory_bytes_max)
  path = folder / "train.array_record"
  content = bytearray(path.read_bytes())
  content[content.index(IMAGES[6][0]) + 500] ^= 1
  path.write_bytes(content)
  reader = record_reader.RecordReader(folder, records.load_manifest(folder).splits["train"])
  with pytest.raises(records.BadRecordError, match="hash mismatch"):
    reader.read(6)
  others = [0, 1, 2, 3, 4, 5, 7, 8, 9]
  assert [reader.read(index).id for index in others] == others


def test_reader_refuses_a_shard_with_another_number_of_records(folder):
  (folder / "train.array_record").write_bytes((folder / "validation.array_record").read_bytes())
  reader = record_reader.RecordReader(folder, records.load_manifest(folder).splits["train"])
  with pytest.raises(UserError, match=r"train\.array_record has 4 records where .* 10"):
    reader.read(0)

import pytest

from nfnet.errors import UserError
from tests.train.data import image_files
from train.data import record_files
from train.data.manifest import load_manifest
from train.data.record_reader import RecordReader


@pytest.mark.parametrize("in_memory_bytes_max", [0, 2**30])
def test_reader_finds_every_record_over_several_files(tmp_path, in_memory_bytes_max):
  manifest = image_files.write_dataset(tmp_path / "data", train=23, files=4)
  reader = RecordReader(tmp_path / "data", manifest.splits["train"], in_memory_bytes_max)
  assert len(reader) == 23
  assert [reader.read(index).id for index in range(23)] == list(range(23))
  assert reader.describe(5) == "record 0 of train-00001-of-00004.array_record"


@pytest.mark.parametrize("in_memory_bytes_max", [0, 2**30])
def test_reader_loses_only_the_damaged_record(folder, in_memory_bytes_max):
  path = folder / "train.array_record"
  content = bytearray(path.read_bytes())
  content[content.index(image_files.TEN_IMAGES[6][0]) + 500] ^= 1
  path.write_bytes(content)
  split = load_manifest(folder).splits["train"]
  reader = RecordReader(folder, split, in_memory_bytes_max)
  with pytest.raises(record_files.BadRecordError, match="hash mismatch"):
    reader.read(6)
  others = [0, 1, 2, 3, 4, 5, 7, 8, 9]
  assert [reader.read(index).id for index in others] == others


def test_reader_refuses_a_file_with_another_number_of_records(folder):
  (folder / "train.array_record").write_bytes((folder / "validation.array_record").read_bytes())
  reader = RecordReader(folder, load_manifest(folder).splits["train"])
  with pytest.raises(UserError, match=r"train\.array_record has 4 records where .* 10"):
    reader.read(0)

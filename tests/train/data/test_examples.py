import pytest

from tests.train.data import image_files
from train.data.examples import Decoder
from train.data.manifest import load_manifest
from train.data.record_reader import RecordReader


@pytest.mark.parametrize(("in_memory_bytes_max", "is_kept"), [(2**30, True), (0, False)])
def test_only_images_of_a_small_split_are_kept(folder, in_memory_bytes_max, is_kept):
  manifest = load_manifest(folder)
  reader = RecordReader(folder, manifest.splits["train"], in_memory_bytes_max)
  decoder = Decoder(reader, manifest)
  assert (decoder.load(0)[0] is decoder.load(0)[0]) == is_kept


def test_labels_beyond_the_classes_are_a_bad_record(folder):
  image_files.edit_manifest(folder, lambda fields: fields.update(class_names=["ant", "bee"]))
  manifest = load_manifest(folder)
  decoder = Decoder(RecordReader(folder, manifest.splits["train"]), manifest)
  decoder.load(1)
  assert decoder.describe_bad(1) == "record 1 of train.array_record (readable now)"
  assert decoder.describe_bad(2) == "record 2 of train.array_record (has labels [2])"

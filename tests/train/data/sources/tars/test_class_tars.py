import os
import tarfile

import pytest

from nfnet.errors import UserError
from tests.train.data import image_files
from tests.train.data.sources import miniatures
from train.data.dataset_writer import write_dataset
from train.data.image_sources import describe_source, read_source


def unpack(root, out):
  for path in root.rglob("*.tar"):
    folder = out / path.relative_to(root).with_suffix("")
    folder.mkdir(parents=True)
    with tarfile.open(path) as archive:
      archive.extractall(folder, filter="data")
  return out


@pytest.mark.parametrize("folders", [[""], ["train", "val"]])
def test_tars_of_classes_make_the_data_set_of_class_folders(tmp_path, folders):
  for folder in folders:
    miniatures.write_class_tars(tmp_path / "tars" / folder)
  source = read_source(tmp_path / "tars", 0.3)
  assert source.class_names == miniatures.WORDNET_IDS
  assert "each tar file in" in source.how
  folders = read_source(unpack(tmp_path / "tars", tmp_path / "folders"), 0.3)
  write_dataset(tmp_path / "a", source, files_per_split=2, workers=1)
  write_dataset(tmp_path / "b", folders, files_per_split=2)
  assert image_files.file_hashes(tmp_path / "a") == image_files.file_hashes(tmp_path / "b")


def test_a_tar_of_tars(tmp_path):
  inner = [
    (f"whole/{name}.tar", miniatures.tar_bytes(miniatures.class_members(label, 6)))
    for label, name in enumerate(miniatures.WORDNET_IDS)
  ]
  path = miniatures.write_tar(tmp_path / "whole.tar", inner)
  miniatures.write_class_tars(tmp_path / "tars")
  nested, flat = read_source(path, 0.3), read_source(tmp_path / "tars", 0.3)
  for split, images in flat.splits.items():
    assert [image.name for image in nested.splits[split]] == [image.name for image in images]
    assert [one.read() for one in nested.splits[split]] == [one.read() for one in images]


def test_other_members_are_ignored_and_bad_ones_listed(tmp_path):
  root = miniatures.write_class_tars(tmp_path / "tars")
  first, second, third = (root / f"{name}.tar" for name in miniatures.WORDNET_IDS)
  members = miniatures.class_members(0, 6)
  others = [("readme.txt", b"x"), ("._a.jpg", b"x"), members[0], ("bad.jpg", b"bad")]
  miniatures.write_tar(first, [*members, *others])
  miniatures.cut(second, 10240 - 1024 + 600)
  source = read_source(root, 0.3)
  text = describe_source(source)
  assert "ignored: 2 members of tar files that are not images: " in text
  with pytest.raises(UserError, match="add --skip_bad_images"):
    write_dataset(tmp_path / "data", source, files_per_split=4)
  # What the first command has finished is not read again.
  again = read_source(root, 0.3)
  manifest = write_dataset(tmp_path / "data", again, files_per_split=4, skip_bad_images=True)
  write_dataset(tmp_path / "whole", source, files_per_split=4, skip_bad_images=True)
  assert image_files.file_hashes(tmp_path / "data") == image_files.file_hashes(tmp_path / "whole")
  names = miniatures.WORDNET_IDS
  found = manifest.skipped_images
  assert f"{names[1]}.tar" in found
  assert f"{names[0]}/bad.jpg" in found
  assert any(name.startswith(f"{names[0]}/{members[0][0]} at byte ") for name in found)
  os.utime(third)
  with pytest.raises(UserError, match="already holds a finished data set"):
    write_dataset(tmp_path / "data", read_source(root, 0.3), files_per_split=4)


def test_a_tar_of_tars_that_is_cut_off(tmp_path):
  inner = [
    (f"{name}.tar", miniatures.tar_bytes(miniatures.class_members(label, 6)))
    for label, name in enumerate(miniatures.WORDNET_IDS)
  ]
  path = miniatures.write_tar(tmp_path / "whole.tar", inner)
  miniatures.cut(path, path.stat().st_size - 1024 - len(inner[0][1]) - 3000)
  source = read_source(path, 0.3)
  manifest = write_dataset(tmp_path / "data", source, skip_bad_images=True)
  assert manifest.class_names == miniatures.WORDNET_IDS[:2]
  assert {"whole.tar", "n02119789.tar"} <= set(manifest.skipped_images)


@pytest.mark.parametrize(
  ("members", "message"),
  [
    ([("a/b/c.jpg", b"x")], "has folders of images .* unpack it"),
    (
      [("ant/c.jpg", b"x")],
      r"has folders of images \(ant/c.jpg\), .* rename it if ant is",
    ),
    (
      [("x.jpg", b"x"), ("y.cls", b"0")],
      r"labels beside its images \(y.cls\).*=webdataset",
    ),
    ([], "nothing tells the classes: unpack it|has no image with a label"),
  ],
)
def test_tars_that_are_refused(tmp_path, members, message):
  for name in "ab":
    miniatures.write_tar(tmp_path / f"{name}.tar", members)
  with pytest.raises(UserError, match=message):
    read_source(tmp_path)
  (tmp_path / "a.tar").write_bytes(b"no archive")
  with pytest.raises(UserError, match=r"a\.tar: it is not a tar file"):
    read_source(tmp_path)


def test_one_tar_of_images_does_not_tell_classes(tmp_path):
  path = miniatures.write_tar(tmp_path / "all.tar", miniatures.class_members(0, 3))
  with pytest.raises(UserError, match="nothing tells the classes: unpack it"):
    read_source(path)


def test_tars_beside_class_folders_are_refused(tmp_path):
  root = miniatures.write_class_tars(image_files.write_class_folders(tmp_path / "source", 8))
  with pytest.raises(UserError, match="give --format=class_tars or --format=class_folders"):
    read_source(root)
  assert read_source(root, source_format="class_folders").class_names == image_files.CLASS_NAMES


def test_endings_in_capitals(tmp_path):
  root = miniatures.write_class_tars(tmp_path)
  (root / "n01440764.tar").rename(root / "n01440764.TAR")
  assert read_source(root).class_names == miniatures.WORDNET_IDS
  inner = [
    (f"{name}.TAR", miniatures.tar_bytes(miniatures.class_members(label, 6)))
    for label, name in enumerate(miniatures.WORDNET_IDS)
  ]
  assert read_source(miniatures.write_tar(tmp_path / "all.TAR", inner)).class_names == (
    miniatures.WORDNET_IDS
  )


@pytest.mark.parametrize("name", ["n9.tar.gz", "n9.tgz", "n9.TAR.xz"])
def test_compressed_classes_are_not_passed_over(tmp_path, name):
  root = miniatures.write_class_tars(tmp_path / "tars")
  (root / name).write_bytes(b"\x1f\x8b")
  with pytest.raises(UserError, match=rf"has compressed tar files \({name}\), in which nothing"):
    read_source(root)
  # The same is there uncompressed.
  miniatures.write_tar(root / "n9.tar", miniatures.class_members(0, 6))
  assert len(read_source(root).class_names) == 4
  path = miniatures.write_tar(tmp_path / "all.tar", [(f"x/{name}", b"\x1f\x8b")])
  with pytest.raises(UserError, match=rf"all.tar holds compressed tar files \(x/{name}\)"):
    read_source(path)


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a.zip"])
def test_packed_sources_are_recognized(tmp_path, name):
  (tmp_path / name).write_bytes(b"PK")
  with pytest.raises(UserError, match=rf"has no folder with images, but \S+/{name}: unpack it"):
    read_source(tmp_path)
  with pytest.raises(UserError, match=rf"{name} is compressed, so nothing in it can be found"):
    read_source(tmp_path / name)
  # Beside class folders, it is what they were unpacked from.
  image_files.write_class_folders(tmp_path, 8)
  assert read_source(tmp_path).class_names == image_files.CLASS_NAMES


def test_another_archive_makes_another_data_set(tmp_path):
  root = miniatures.write_class_tars(tmp_path)
  fingerprints = {image.fingerprint() for image in read_source(root).splits["train"]}
  for path in root.iterdir():
    os.utime(path, ns=(1, 1))
  assert fingerprints.isdisjoint(image.fingerprint() for image in read_source(root).splits["train"])


def test_numbers_are_in_the_order_of_class_folders(tmp_path):
  for label, name in enumerate(("1", "2", "10")):
    miniatures.write_tar(tmp_path / "tars" / f"{name}.tar", miniatures.class_members(label, 6))
  source = read_source(tmp_path / "tars", 0.3)
  folders = read_source(unpack(tmp_path / "tars", tmp_path / "folders"), 0.3)
  assert source.class_names == folders.class_names == ("1", "10", "2")
  assert {image.name: image.labels for image in source.splits["train"]} == {
    image.name: image.labels for image in folders.splits["train"]
  }

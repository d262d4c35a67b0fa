import csv
import io
import tarfile

import pytest

from nfnet.errors import UserError
from tests.train.data import image_files
from tests.train.data.sources import miniatures
from train.data.dataset_writer import write_dataset
from train.data.image_sources import read_source


@pytest.mark.parametrize("devkit", ["tar", "folder", "Kaggle"])
def test_the_distributed_files_make_the_data_set_of_sorted_class_folders(tmp_path, devkit):
  root = miniatures.write_imagenet(tmp_path / "ImageNet", devkit=devkit)
  source = read_source(root)
  assert source.class_names == miniatures.WORDNET_IDS
  assert "training images are in ILSVRC2012_img_train.tar, validation images in" in source.how
  folders = read_source(miniatures.unpack_imagenet(root, tmp_path / "folders"))
  write_dataset(tmp_path / "a", source)
  write_dataset(tmp_path / "b", folders)
  assert image_files.file_hashes(tmp_path / "a") == image_files.file_hashes(tmp_path / "b")
  assert not list(root.rglob("*.JPEG"))


def test_kaggles_folders_and_a_table_elsewhere(tmp_path):
  root = miniatures.write_imagenet(tmp_path / "ImageNet", devkit="Kaggle")
  folders = miniatures.unpack_imagenet(root, tmp_path / "folders")
  expected = read_source(folders).splits
  labels = {image.read(): image.labels for image in expected["validation"]}
  for path in list((folders / "val").rglob("*.JPEG")):
    path.rename(folders / "val" / path.name)
  for folder in list((folders / "val").iterdir()):
    if folder.is_dir():
      folder.rmdir()
  with pytest.raises(UserError, match="has the validation images without their classes: put ILS"):
    read_source(folders)
  source = read_source(folders, labels=str(root / "LOC_val_solution.csv"))
  found = {image.read(): image.labels for image in source.splits["validation"]}
  assert found == labels
  assert source.splits["train"] == expected["train"]


def test_a_table_of_labels(tmp_path):
  root = miniatures.write_imagenet(tmp_path / "ImageNet", devkit="none")
  with open(tmp_path / "mapping.csv", "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["file", "label"])
    for place in range(1, 6):
      name = f"ILSVRC2012_val_{place:08d}.JPEG"
      writer.writerow([name, miniatures.WORDNET_IDS[place % 3]])
  source = read_source(root, labels=str(tmp_path / "mapping.csv"))
  manifest = write_dataset(tmp_path / "data", source, skip_bad_images=True)
  # The table does not have the sixth.
  assert manifest.skipped_images == ("val/ILSVRC2012_val_00000006.JPEG",)
  assert manifest.splits["validation"].records == 5


def test_training_images_alone_are_divided(tmp_path):
  root = miniatures.write_imagenet(tmp_path / "ImageNet", images=8, devkit="none")
  source = read_source(root / "ILSVRC2012_img_train.tar", 0.3)
  assert len(source.splits["train"]) + len(source.splits["validation"]) == 24
  (root / "ILSVRC2012_img_val.tar").unlink()
  assert read_source(root, 0.3).splits == source.splits


def no_devkit(root):
  (root / "ILSVRC2012_devkit_t12.tar.gz").unlink()
  return "ILSVRC2012_devkit_t12.tar.gz or LOC_val_solution.csv there, or give --labels="


def damaged_devkit(root):
  miniatures.cut(root / "ILSVRC2012_devkit_t12.tar.gz", 60)
  return "ILSVRC2012_devkit_t12.tar.gz (is damaged|has no)"


def huge_meta(root):
  path = root / "ILSVRC2012_devkit_t12.tar.gz"
  with tarfile.open(path, "w:gz", compresslevel=1) as archive:
    member = tarfile.TarInfo("data/meta.mat")
    member.size = 64 * 2**20 + 1
    archive.addfile(member, io.BytesIO(bytes(member.size)))
  return "has a meta.mat of 67,108,865 bytes: it is another file"


def damaged_meta(root):
  (root / "ILSVRC2012_devkit_t12").mkdir()
  (root / "ILSVRC2012_devkit_t12" / "meta.mat").write_bytes(b"MATLAB" * 100)
  truth = root / "ILSVRC2012_devkit_t12" / "ILSVRC2012_validation_ground_truth.txt"
  truth.write_text("1\n2\n")
  return "ILSVRC2012_devkit_t12 is damaged"


def no_ground_truth(root):
  (root / "ILSVRC2012_devkit_t12").mkdir()
  (root / "ILSVRC2012_devkit_t12" / "meta.mat").write_bytes(b"")
  return "has no ILSVRC2012_validation_ground_truth.txt"


def other_classes(root):
  inner = [(f"n{n:08d}.tar", miniatures.tar_bytes(miniatures.class_members(0, 3))) for n in (1, 2)]
  miniatures.write_tar(root / "ILSVRC2012_img_train.tar", inner)
  return "validation images have 3 classes that no training image has, such as 'n01440764'"


def training_images_cut_off(root):
  path = root / "ILSVRC2012_img_train.tar"
  miniatures.cut(path, path.stat().st_size // 2)
  return "do not belong together; .* cannot be used, such as '.*train.tar': damaged after "


def no_training_images(root):
  (root / "ILSVRC2012_img_train.tar").unlink()
  return "has neither ILSVRC2012_img_train.tar nor a folder train"


@pytest.mark.parametrize(
  "change",
  [
    no_devkit,
    damaged_devkit,
    huge_meta,
    damaged_meta,
    no_ground_truth,
    other_classes,
    training_images_cut_off,
    no_training_images,
  ],
)
def test_files_that_are_refused(tmp_path, change):
  root = miniatures.write_imagenet(tmp_path / "ImageNet")
  message = change(root)
  with pytest.raises(UserError, match=message):
    read_source(root)


def test_the_validation_file_alone_is_refused(tmp_path):
  root = miniatures.write_imagenet(tmp_path / "ImageNet")
  with pytest.raises(UserError, match="has no training images: give the folder with"):
    read_source(root / "ILSVRC2012_img_val.tar")


def test_a_folder_of_the_inner_tar_files(tmp_path):
  root = miniatures.write_imagenet(tmp_path / "ImageNet")
  expected = read_source(root)
  with tarfile.open(root / "ILSVRC2012_img_train.tar") as archive:
    archive.extractall(root / "train", filter="data")
  moved = (root / "ILSVRC2012_img_train.tar").rename(tmp_path / "all.tar")
  source = read_source(root)
  moved.rename(root / "ILSVRC2012_img_train.tar")
  for split, images in expected.splits.items():
    assert [one.name for one in source.splits[split]] == [one.name for one in images]
    assert [one.read() for one in source.splits[split]] == [one.read() for one in images]


def test_labels_of_more_images_than_there_are(tmp_path):
  root = miniatures.write_imagenet(tmp_path / "ImageNet", devkit="folder")
  truth = root / "ILSVRC2012_devkit_t12" / "data" / "ILSVRC2012_validation_ground_truth.txt"
  assert not read_source(root).notes
  truth.write_text(truth.read_text() + "1\n2\n")
  (note,) = read_source(root).notes
  assert note.endswith("are for 8 images, of which 2 are not in ILSVRC2012_img_val.tar")

import pytest

from nfnet.errors import UserError
from tests.train.data import image_files
from tests.train.data.sources import miniatures
from train.data.dataset_writer import write_dataset
from train.data.image_sources import describe_source, read_source


def labels_of(source, split="train"):
  return {
    image.name: tuple(source.class_names[label] for label in image.labels)
    for image in source.splits[split]
  }


def test_a_flat_folder_and_its_table(tmp_path):
  root = miniatures.write_table(tmp_path / "source")
  source = read_source(root)
  assert source.class_names == image_files.CLASS_NAMES
  assert labels_of(source, "validation") == {
    "006.jpg": ("ant",), "007.jpg": ("bee",), "008.jpg": ("cat",)
  }  # fmt: skip
  manifest = write_dataset(tmp_path / "data", source)
  assert {name: split.records for name, split in manifest.splits.items()} == {
    "train": 6,
    "validation": 3,
  }
  # The table was read, so it is not among the files that are ignored; another one is.
  assert not any("ignored" in note for note in source.notes)
  (root / "other.csv").touch()
  assert "ignored: 1 file ending in .csv" in read_source(root).notes
  (root / "other.csv").unlink()
  # The table itself may be named too, and so may the format.
  assert read_source(root / "labels.csv") == source
  assert read_source(root, source_format="table") == source


def test_a_table_makes_the_data_set_of_the_same_class_folders(tmp_path):
  image_files.write_class_folders(tmp_path / "source", 6)
  folders = read_source(tmp_path / "source", 0.3)
  lines = [f"{p.relative_to(tmp_path / 'source')};{p.parent.name}" for p in tmp_path.rglob("*/*.*")]
  (tmp_path / "elsewhere.csv").write_text("\ufeffpath;class\n" + "\n".join(sorted(lines)))
  table = read_source(tmp_path / "source", 0.3, labels=str(tmp_path / "elsewhere.csv"))
  write_dataset(tmp_path / "a", folders)
  write_dataset(tmp_path / "b", table)
  assert image_files.file_hashes(tmp_path / "a") == image_files.file_hashes(tmp_path / "b")


def test_images_may_have_several_labels(tmp_path):
  root = miniatures.write_table(
    tmp_path, label=lambda number: "red | round" if number % 2 else "round"
  )
  source = read_source(root)
  assert source.class_names == ("red", "round")
  assert labels_of(source)["001.jpg"] == ("red", "round")
  assert "--config.loss.kind=sigmoid" in describe_source(source)
  manifest = write_dataset(tmp_path / "data", source)
  assert manifest.labels_per_record_max == 2


def test_numbers_are_names_in_their_order_or_indices(tmp_path):
  root = miniatures.write_table(tmp_path, label=lambda number: (2, 10, 1)[number % 3])
  assert read_source(root).class_names == ("1", "2", "10")
  names = [f"c{index}" for index in range(11)]
  source = read_source(root, class_names=names)
  assert source.class_names == tuple(names)
  assert labels_of(source)["001.jpg"] == ("c10",)
  with pytest.raises(UserError, match="has the label 10, but there are 3 class names"):
    read_source(root, class_names=names[:3])
  with pytest.raises(
    UserError, match="has the label 1, but there is 1 class name: labels are 0 to 0"
  ):
    read_source(root, class_names=names[:1])


@pytest.mark.parametrize("name", ["{}", "./images/{}", "images\\{}", "{}.jpg", "images/{}.jpg"])
def test_names_that_mean_one_image(tmp_path, name):
  (tmp_path / "images").mkdir()
  lines = ["image_id,category"]
  for number in range(12):
    stem = name.format(f"{number:02d}")
    stem += ".jpg" if "images" in name and not stem.endswith(".jpg") else ""
    lines.append(f"{stem},{'ab'[number % 2]}")
    (tmp_path / "images" / f"{number:02d}.jpg").write_bytes(miniatures.picture(number))
  (tmp_path / "labels.csv").write_text("\n".join(lines))
  source = read_source(tmp_path, 0.3)
  found = labels_of(source) | labels_of(source, "validation")
  assert found == {f"images/{n:02d}.jpg": ("ab"[n % 2],) for n in range(12)}


def test_lines_without_an_image_and_images_without_a_line(tmp_path):
  root = miniatures.write_table(tmp_path / "source")
  (root / "extra.jpg").write_bytes(miniatures.picture(0))
  outside = tmp_path / "outside.jpg"
  outside.write_bytes(miniatures.picture(50))
  (root / "nothing.jpg").write_bytes(miniatures.picture(51))
  with open(root / "labels.csv", "a") as file:
    file.write(f"../outside.jpg,ant,train\n{outside},ant,train\n\nnothing.jpg,,train\n")
  source = read_source(root)
  assert "left out: 1 image that the table does not name: extra.jpg" in source.notes
  with pytest.raises(UserError, match="cannot be read"):
    write_dataset(tmp_path / "data", source)
  manifest = write_dataset(tmp_path / "data", source, skip_bad_images=True)
  assert manifest.skipped_images == ("../outside.jpg", str(outside), "nothing.jpg")
  assert manifest.splits["train"].records == 6


TABLES = {
  "": "labels.csv is empty: its first line names the columns",
  "000.jpg,a\n001.jpg,b": "or put a line with the columns' names first, such as file,label",
  "file,label": "has no line below its columns",
  "name,label\n000.jpg,a": r"no column of the images in its first line, name,label: give --im",
  "file,what\n000.jpg,a": "no column of the labels in its first line, file,what: give --la",
  "file,image,label\n000.jpg,1,a": "has 2 columns of the images",
  "file,label\n000.jpg,a,b": "line 2: 3 fields where the first line has 2",
  "file,label\n000.jpg,a\n./000.jpg,b": r"names '000.jpg' twice, in lines 2 and 3: give all labels",
  "file,label\nx.jpg,a\nx.jpg,b": "names 'x.jpg' twice",
  "file,label\n,a": "line 2: the column file is empty",
  "file,label,split\n000.jpg,a,dev": "line 2: 'dev' is not a split",
  "file,label\n000.jpg,a\n001.jpg,a": "has only one class, a",
  "file,label\n000.jpg,a\n001.jpg,\x07": r"has a class named '\\x07'",
  "file,label\n000.jpg,\xff": "is not a CSV file in UTF-8.*; save it as CSV in UTF-8",
  "file,label\nb/x.jpg,a\nb/y.jpg,b": (
    r"no image with a label; 2 images cannot be used, such as 'b/x.jpg': line 2 of \S+ names it"
  ),
  "file,label\n000.JPG,a\n001.jpg,b": "only one class, b; .*; 1 image cannot be used, .*'000.JPG'",
  'file,label\n000.jpg,"a': "is not a CSV file in UTF-8",
  "file,label\n00,a": "00' may be a/00.jpg or b/00.jpg: give the path",
}


@pytest.mark.parametrize("table", TABLES)
def test_tables_that_are_refused(tmp_path, table):
  root = miniatures.write_table(tmp_path / "source", images=3)
  for folder in "ab":
    (root / folder).mkdir()
    (root / folder / "00.jpg").write_bytes(miniatures.picture(0))
  (root / "labels.csv").write_bytes(table.encode("latin-1"))
  with pytest.raises(UserError, match=TABLES[table]):
    read_source(root, source_format="table")


def test_columns_may_be_named(tmp_path):
  root = miniatures.write_table(tmp_path, header=("Photo", "Species", "split"))
  source = read_source(root, image_field="photo", label_field="Species")
  assert source.class_names == image_files.CLASS_NAMES
  with pytest.raises(UserError, match="has no column named Kind in its first line"):
    read_source(root, image_field="photo", label_field="Kind")


def test_a_table_beside_class_folders_is_refused(tmp_path):
  root = image_files.write_class_folders(tmp_path / "source", 8)
  miniatures.write_table(root)
  with pytest.raises(UserError, match="in 2 ways: give --format=table or --format=class_folders"):
    read_source(root)
  assert len(read_source(root, source_format="class_folders").class_names) == 3
  (root / "labels.tsv").touch()
  with pytest.raises(UserError, match=r"has labels.csv and labels.tsv: give --labels="):
    read_source(root)


@pytest.mark.parametrize("name", ["{root}/{}", ".//{}", "a/../{}"])
def test_other_ways_to_write_a_path(tmp_path, name):
  root = miniatures.write_table(tmp_path, images=9)
  text = (root / "labels.csv").read_text()
  for number in range(9):
    own = f"{number:03d}.jpg"
    text = text.replace(own, name.format(own, root=root))
  (root / "labels.csv").write_text(f"\n{text}")
  source = read_source(root)
  assert sorted(labels_of(source)) == [f"{number:03d}.jpg" for number in range(6)]


def test_letters_and_accents_may_be_apart(tmp_path):
  for stem in ("caf\u00e9", "cafe\u0301s", "b", "c"):
    (tmp_path / f"{stem}.jpg").write_bytes(miniatures.picture(0))
  rows = "cafe\u0301.jpg,x\ncaf\u00e9s,y\nb.jpg,x\nc.jpg,y\n"
  (tmp_path / "labels.csv").write_text(f"file,label\n{rows}")
  source = read_source(tmp_path, 0.5)
  found = labels_of(source) | labels_of(source, "validation")
  assert found == {
    "caf\u00e9.jpg": ("x",),
    "cafe\u0301s.jpg": ("y",),
    "b.jpg": ("x",),
    "c.jpg": ("y",),
  }
  # Both may be there: then each line means its own.
  (tmp_path / "cafe\u0301.jpg").write_bytes(miniatures.picture(1))
  source = read_source(tmp_path, 0.5)
  assert "cafe\u0301.jpg" in labels_of(source) | labels_of(source, "validation")


def test_a_split_without_labels_is_left_out_and_a_missing_one_is_not(tmp_path):
  root = miniatures.write_table(tmp_path / "source")
  (root / "t.jpg").write_bytes(miniatures.picture(50))
  with open(root / "labels.csv", "a") as file:
    file.write("t.jpg,,test\n")
  source = read_source(root)
  assert "left out: test: 1 image without a label" in source.notes
  assert set(source.splits) == {"train", "validation"}
  (root / "t.jpg").unlink()
  assert [image.name for image in read_source(root).splits["test"]] == ["t.jpg"]


def test_a_table_is_given_once(tmp_path):
  table = str(miniatures.write_table(tmp_path) / "labels.csv")
  with pytest.raises(UserError, match=r"labels\.csv is a table, so give no --labels"):
    read_source(table, labels=table)


def test_numbers_that_are_names_are_no_indices(tmp_path):
  root = miniatures.write_table(tmp_path, label=lambda number: number % 2)
  by_name = read_source(root, class_names=("1", "0"))
  assert labels_of(by_name)["001.jpg"] == ("1",)
  by_index = read_source(root, class_names=("b", "a"))
  assert labels_of(by_index)["001.jpg"] == ("a",)


def test_a_space_before_a_quotation_mark_is_no_part_of_a_name(tmp_path):
  root = miniatures.write_table(tmp_path, images=6)
  lines = ['file, "label"', *(f'{n:03d}.jpg, "{("rose", "a,b")[n % 2]}"' for n in range(6))]
  (root / "labels.csv").write_text("\n".join(lines))
  assert read_source(root, 0.5).class_names == ("a,b", "rose")

import pytest

from nfnet.errors import UserError
from tests.train.data import image_files
from tests.train.data.sources import miniatures
from train.data.dataset_writer import write_dataset
from train.data.image_sources import read_source


def contents(source, split="train"):
  return {image.read(): image.labels for image in source.splits[split]}


EXPECTED = {miniatures.picture(number): (number % 3,) for number in range(12)}


@pytest.mark.parametrize(
  ("options", "class_names"),
  [
    ({}, ("0", "1", "2")),
    ({"suffix": ".json", "label": lambda n: {"width": 24, "label": n % 3}}, ("0", "1", "2")),
    ({"suffix": ".txt", "label": lambda n: image_files.CLASS_NAMES[n % 3].encode()}, None),
    ({"suffix": ".cls", "label": lambda n: image_files.CLASS_NAMES[n % 3].encode()}, None),
    ({"suffix": ".json", "label": lambda n: {"class_name": image_files.CLASS_NAMES[n % 3]}}, None),
  ],
)
def test_labels_beside_the_images(tmp_path, options, class_names):
  root = miniatures.write_webdataset(tmp_path / "shards", **options)
  source = read_source(root)
  assert source.class_names == (class_names or image_files.CLASS_NAMES)
  assert contents(source) == EXPECTED
  assert len(source.splits["validation"]) == 6
  suffix = options.get("suffix", ".cls")
  assert source.how == f"3 WebDataset shards; labels are those in the {suffix} files"
  write_dataset(tmp_path / "data", source, workers=1)
  assert len(image_files.read_all(tmp_path / "data", "train")) == 12


def test_patterns_name_shards(tmp_path):
  root = miniatures.write_webdataset(tmp_path / "shards")
  source = read_source(f"{root}/train-{{000000..000001}}.tar", 0.3)
  assert contents(source) | contents(source, "validation") == EXPECTED
  both = read_source(f"{root}/{{train-000000,val-000000}}.tar")
  assert len(both.splits["train"]) == len(both.splits["validation"]) == 6
  with pytest.raises(UserError, match=r"3 files of 5 not found, such as .*train-000002\.tar"):
    read_source(f"{root}/train-{{000000..000004}}.tar")
  for pattern, message in (
    ("a{1..0}.tar", "is not a range of numbers"),
    ("a{0..99999999}.tar", "is not a range of numbers"),
    ("a{x}.tar", "for numbers, or"),
    ("{0..9999}{0..9999}.tar", "stands for more than"),
  ):
    with pytest.raises(UserError, match=message):
      read_source(f"{root}/{pattern}")


def test_names_of_numbered_classes(tmp_path):
  root = miniatures.write_webdataset(tmp_path)
  assert read_source(root, class_names=image_files.CLASS_NAMES).class_names == ("ant", "bee", "cat")
  with pytest.raises(UserError, match="has the label 2, but there are 2 class names"):
    read_source(root, class_names=("ant", "bee"))


def test_a_sample_may_have_several_labels(tmp_path):
  label = {"suffix": ".json", "label": lambda number: {"tags": [number % 3, 2], "label": 1}}
  root = miniatures.write_webdataset(tmp_path / "shards", **label)
  source = read_source(root, label_field="tags")
  assert set(contents(source).values()) == {(0, 2), (1, 2), (2,)}
  assert write_dataset(tmp_path / "data", source).labels_per_record_max == 2


def test_bad_samples_are_listed(tmp_path):
  root = miniatures.write_webdataset(tmp_path / "shards")
  bad = [
    ("no_label.jpg", miniatures.picture(0)),
    ("empty.jpg", miniatures.picture(0)),
    ("empty.cls", b""),
    ("two.jpg", miniatures.picture(1)),
    ("two.cls", b"1"),
    ("two.cls", b"2"),
    ("images.jpg", miniatures.picture(1)),
    ("images.png", miniatures.picture(1)),
    ("images.cls", b"1"),
    ("broken.jpg", miniatures.picture(0)[:200]),
    ("broken.cls", b"1"),
    ("binary.jpg", miniatures.picture(0)),
    ("binary.cls", b"\xff"),
    ("../up.jpg", miniatures.picture(20)),
    ("../up.cls", b"1"),
    ("lonely.cls", b"1"),
    ("notes.md", b"1"),
    ("__MACOSX/._a.jpg", b"1"),
  ]
  miniatures.write_tar(root / "train-000001.tar", bad)
  source = read_source(root)
  assert "left out: 1 sample without an image" in source.notes
  assert any(note.startswith("ignored: 2 members of tar files that") for note in source.notes)
  manifest = write_dataset(tmp_path / "data", source, skip_bad_images=True)
  assert [name.rpartition("/")[2] for name in manifest.skipped_images] == sorted(
    ["binary.jpg", "broken.jpg", "empty.jpg", "images.jpg", "images.png", "no_label.jpg", "two.jpg"]
  )
  assert manifest.splits["train"].records == 7
  assert not (tmp_path / "up.jpg").exists()


def test_the_extension_of_the_images_may_be_named(tmp_path):
  def members(first):
    for number in range(first, first + 6):
      for suffix in ("jpg", "seg.png", "png"):
        yield f"{number}.{suffix}", miniatures.picture(number)
      yield f"{number}.cls", str(number % 2).encode()

  miniatures.write_tar(tmp_path / "train.tar", list(members(0)))
  miniatures.write_tar(tmp_path / "test.tar", list(members(6)))
  source = read_source(tmp_path, image_field="PNG")
  assert {image.name.rpartition(".")[2] for image in source.splits["train"]} == {"png"}
  assert all(not image.problem for image in source.splits["train"])


def test_a_shard_that_is_cut_off_loses_its_end_and_says_so(tmp_path):
  root = miniatures.write_webdataset(tmp_path / "shards")
  path = root / "train-000001.tar"
  whole = path.stat().st_size
  miniatures.cut(path, 10240)
  source = read_source(root)
  with pytest.raises(UserError, match=r"image train-000001.tar(/\S+)? cannot be read"):
    write_dataset(tmp_path / "data", source)
  manifest = write_dataset(tmp_path / "data", source, skip_bad_images=True)
  assert "train-000001.tar" in manifest.skipped_images
  assert whole > path.stat().st_size


def captions(root):
  miniatures.write_webdataset(root, images=30, suffix=".txt", label=lambda n: f"photo {n}".encode())
  return "different texts: they are captions, not classes"


def no_label_in_json(root):
  miniatures.write_webdataset(root, suffix=".json", label=lambda n: {"width": 3})
  return r"fields \['width'\] and none named label, .*: give --label_field= one of them"


def some_splits(root):
  miniatures.write_webdataset(root)
  (root / "val-000000.tar").rename(root / "more.tar")
  return "has files named as splits .* beside others"


def two_splits(root):
  miniatures.write_webdataset(root)
  (root / "val-000000.tar").rename(root / "train-val.tar")
  return "train-val.tar may be of the splits train and validation: rename it"


def no_training(root):
  miniatures.write_webdataset(root)
  for index in range(2):
    (root / f"train-{index:06d}.tar").rename(root / f"test-{index}.tar")
  return "has files named test and none named train"


def one_class(root):
  miniatures.write_webdataset(root, label=lambda n: b"ant")
  return "has only one class, ant"


def compressed(root):
  root.mkdir()
  (root / "train-0.tar").write_bytes(b"\x1f\x8b" + bytes(99))
  return r"train-0.tar: it is compressed, so nothing in it can be found: run gzip -d"


@pytest.mark.parametrize(
  "write",
  [captions, no_label_in_json, some_splits, two_splits, no_training, one_class, compressed],
)
def test_shards_that_are_refused(tmp_path, write):
  message = write(tmp_path / "shards")
  with pytest.raises(UserError, match=message):
    read_source(tmp_path / "shards")


def test_images_may_come_before_all_labels(tmp_path):
  for shard in range(2):
    members = miniatures.samples(300 * shard, 300)
    members.sort(key=lambda member: member[0].endswith(".cls"))
    miniatures.write_tar(tmp_path / f"shard-{shard}.tar", members)
  assert read_source(tmp_path).class_names == ("0", "1", "2")


def test_a_split_without_labels_is_left_out(tmp_path):
  root = miniatures.write_webdataset(tmp_path)
  # It comes first.
  pictures = [(f"{number}.jpg", miniatures.picture(number)) for number in range(3)]
  miniatures.write_tar(root / "test-000000.tar", pictures)
  source = read_source(root)
  assert source.class_names == ("0", "1", "2")
  assert source.notes == ("left out: test: 3 images without a label",)


@pytest.mark.parametrize(
  ("suffix", "value"),
  [(".cls", b"-1"), (".cls", b""), (".json", {"label": -1}), (".json", {"label": None})],
)
def test_samples_that_say_they_have_no_label(tmp_path, suffix, value):
  label = (lambda n: n % 3) if suffix == ".cls" else (lambda n: {"label": n % 3})
  root = miniatures.write_webdataset(tmp_path, suffix=suffix, label=label)
  test = miniatures.samples(50, 2, suffix=suffix, label=lambda n: value)
  miniatures.write_tar(root / "test-000000.tar", test)
  source = read_source(root)
  assert source.class_names == ("0", "1", "2")
  assert source.notes == ("left out: test: 2 images without a label",)
  # In a split with labels, they are damaged.
  miniatures.write_tar(root / "train-000001.tar", test)
  problems = [image.problem for image in read_source(root).splits["train"] if image.problem]
  assert len(problems) == 2
  assert "has no label" in problems[0]


def test_a_damaged_split_is_not_left_out(tmp_path):
  root = miniatures.write_webdataset(tmp_path, suffix=".json", label=lambda n: {"label": n % 3})
  bad = miniatures.samples(50, 2, suffix=".json", label=lambda n: {"label": 1.5})
  miniatures.write_tar(root / "test-000000.tar", bad)
  (first, _) = read_source(root).splits["test"]
  assert first.problem == "its .json has 1.5 in the field 'label', must be a whole number or a name"


def test_why_no_image_can_be_used(tmp_path):
  miniatures.write_webdataset(tmp_path, suffix=".json", label=lambda n: {"label": n % 2 == 0})
  message = r"no image with a label; 18 images cannot be used, such as 'train-.*jpg': its .json has"
  with pytest.raises(UserError, match=message):
    read_source(tmp_path)


def test_shards_behind_a_link(tmp_path):
  miniatures.write_webdataset(tmp_path / "disk")
  (tmp_path / "shards").mkdir()
  (tmp_path / "shards" / "a").symlink_to(tmp_path / "disk")
  (tmp_path / "shards" / "loop").symlink_to(tmp_path / "shards")
  source = read_source(tmp_path / "shards")
  assert {split: len(images) for split, images in source.splits.items()} == {
    "train": 12,
    "validation": 6,
  }


def test_stars_are_no_pattern(tmp_path):
  miniatures.write_webdataset(tmp_path)
  with pytest.raises(UserError, match=r"\*\.tar does not exist: write braces, such as {000"):
    read_source(tmp_path / "train-*.tar")


def test_label_files_that_are_none(tmp_path):
  root = miniatures.write_webdataset(tmp_path)
  labels = {"long.cls": bytes(2**20 + 1), "two.cls": b"1", "two.CLS": b"2"}
  images = {name.partition(".")[0]: f"{name.partition('.')[0]}.jpg" for name in labels}
  members = [*labels.items(), *((name, miniatures.picture(0)) for name in images.values())]
  miniatures.write_tar(root / "train-000001.tar", members)
  found = [image.problem for image in read_source(root).splits["train"] if image.problem]
  assert found == ["its .cls has 1,048,577 bytes", "it has two files .cls"]


def test_a_field_means_the_json_where_there_are_others(tmp_path):
  members = miniatures.samples(0, 12)
  members += [(f"{n:06d}.json", b'{"color": "%s"}' % (b"red", b"blue")[n % 2]) for n in range(12)]
  path = miniatures.write_tar(tmp_path / "train.tar", members)
  assert read_source(path, 0.3).class_names == ("0", "1", "2")
  assert read_source(path, 0.3, label_field="color").class_names == ("blue", "red")


def test_an_extension_that_no_sample_has(tmp_path):
  root = miniatures.write_webdataset(tmp_path)
  with pytest.raises(UserError, match=r"has no file \.png in any sample: .* one of \.jpg$"):
    read_source(root, image_field="png")


def test_whole_numbers_may_have_a_point(tmp_path):
  def label(number):
    return {"label": float(number % 3) if number != 1 else -1.0}

  root = miniatures.write_webdataset(tmp_path, suffix=".json", label=label)
  source = read_source(root)
  assert source.class_names == ("0", "1", "2")
  problems = [image.problem for image in source.splits["train"] if image.problem]
  assert problems == ["its .json has no label in the field 'label', but -1"]


def test_one_number_is_written_in_one_way(tmp_path):
  root = miniatures.write_webdataset(tmp_path, label=lambda n: (b"0", b"1", b"01")[n % 3])
  with pytest.raises(UserError, match="has the labels '1' and '01', which are one number: write"):
    read_source(root)


def test_numbers_with_gaps(tmp_path):
  root = miniatures.write_webdataset(tmp_path / "a", label=lambda n: (0, 900_000)[n % 2])
  message = (
    r"has 2 labels that are numbers, the largest 900,000, for which a network would need 900,001 "
    r"classes: if they are not indices, number the classes from 0"
  )
  with pytest.raises(UserError, match=message):
    read_source(root)
  # A sample of ImageNet.
  root = miniatures.write_webdataset(tmp_path / "b", label=lambda n: (0, 999)[n % 2])
  source = read_source(root)
  assert len(source.class_names) == 1000
  assert "has only 2 labels that are numbers, the largest 999, so the network" in source.notes[0]
  root = miniatures.write_webdataset(tmp_path / "c", label=lambda n: (0, 19)[n % 2])
  assert not any("so the network" in note for note in read_source(root).notes)

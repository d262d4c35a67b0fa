import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from nfnet.errors import UserError
from nfnet.images.resizing import resize_and_center_crop
from tests.processes import children, is_running
from tests.repository import ROOT
from tests.train.data import image_files
from train.config.experiment import Data
from train.data.batches import evaluation_batches, train_batches
from train.data.dataset import class_names, evaluation_examples, train_examples

EXAMPLES = 60
BATCH_SIZE = 24
# Three passes over the data, none of which is a whole number of batches.
BATCHES = 3 * EXAMPLES // BATCH_SIZE


def config(path, **changes):
  fields = {
    "path": str(path),
    "num_classes": 3,
    "batch_size": BATCH_SIZE,
    "evaluation_batch_size": BATCH_SIZE,
    "train_pixels": 16,
    "evaluation_pixels": 16,
    "evaluation_resize_margin": 2,
    **changes,
  }
  return Data(**fields)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
  path = tmp_path_factory.mktemp("data") / "noise"
  image_files.write_dataset(path, train=EXAMPLES, validation=31, files=3)
  return path


def join(batches_of_hosts):
  """Returns one global batch from the hosts' data shards, in the order of the ids."""
  joined = {
    name: np.concatenate([batch[name] for batch in batches_of_hosts])
    for name in batches_of_hosts[0]
  }
  order = np.lexsort((joined["image"].sum(axis=(1, 2, 3)), joined["id"]))
  return {name: values[order] for name, values in joined.items()}


def global_batches(settings, hosts, count, state=None, seed=0):
  """Runs `hosts` pipelines side by side; returns the global batches and the last state."""
  parts = []
  states = []
  for host in range(hosts):
    with train_batches(settings, seed, shard_index=host, shard_count=hosts) as batches:
      if state is not None:
        batches.set_state(json.loads(json.dumps(state)))
      parts.append([{k: np.array(v) for k, v in next(batches).items()} for _ in range(count)])
      states.append(batches.get_state())
  assert all(other == states[0] for other in states)
  return [join(part) for part in zip(*parts, strict=True)], states[0]


def assert_equal_batches(found, expected):
  assert len(found) == len(expected)
  for one, other in zip(found, expected, strict=True):
    for name, values in other.items():
      np.testing.assert_array_equal(one[name], values, err_msg=name)


def test_a_batch_is_what_it_says(dataset):
  with train_batches(config(dataset), seed=0) as batches:
    batch = next(batches)
  assert {name: (values.dtype, values.shape) for name, values in batch.items()} == {
    "image": (np.uint8, (BATCH_SIZE, 16, 16, 3)),
    "labels": (np.int32, (BATCH_SIZE, 1)),
    "weight": (np.float32, (BATCH_SIZE,)),
    "id": (np.int64, (BATCH_SIZE,)),
    "position": (np.int64, (BATCH_SIZE,)),
  }
  np.testing.assert_array_equal(batch["position"], np.arange(BATCH_SIZE))
  assert batch["weight"].all()
  assert set(batch["labels"].ravel()) == {0, 1, 2}


def test_every_record_comes_once_an_epoch_in_another_order(dataset):
  with train_batches(config(dataset), seed=0) as iterator:
    ids = np.concatenate([next(iterator)["id"] for _ in range(BATCHES + 1)])
  epochs = ids[: 3 * EXAMPLES].reshape(3, EXAMPLES)
  for epoch in epochs:
    assert sorted(epoch) == list(range(EXAMPLES))
  assert len({tuple(epoch) for epoch in epochs}) == 3


def test_repetitions_of_an_image_come_in_a_row_each_augmented_anew(dataset):
  def in_order(repetitions):
    settings = config(dataset, repetitions=repetitions)
    batches, _ = global_batches(settings, 1, repetitions * BATCHES)
    joined = {name: np.concatenate([b[name] for b in batches]) for name in ("position", *compared)}
    order = np.argsort(joined["position"])
    return [joined[name][order] for name in compared]

  compared = ("id", "image")
  once_ids, once_images = in_order(1)
  ids, images = in_order(4)
  # The same order, each image four times.
  np.testing.assert_array_equal(ids, once_ids.repeat(4))
  images = images.reshape(-1, 4, 16, 16, 3)
  np.testing.assert_array_equal(images[:, 0], once_images)
  different = [len({image.tobytes() for image in group}) for group in images]
  assert np.mean(different) > 3.9


@pytest.mark.parametrize(("hosts", "workers"), [(2, 0), (1, 2)])
def test_hosts_and_workers_change_no_repetition_and_no_distortion(dataset, hosts, workers):
  settings = config(dataset, repetitions=4, rand_augment_layers=4)
  plain, _ = global_batches(config(dataset, repetitions=4), 1, 3)
  expected, state = global_batches(settings, 1, 3)
  found, found_state = global_batches(dataclasses.replace(settings, workers=workers), hosts, 3)
  assert_equal_batches(found, expected)
  assert found_state == state
  changed = [
    (one != other).any()
    for batch, undistorted in zip(expected, plain, strict=True)
    for one, other in zip(batch["image"], undistorted["image"], strict=True)
  ]
  assert np.mean(changed) > 0.9


WORKERS_OF_HOSTS = [
  *((hosts, 0) for hosts in (2, 3, 4, 8)),
  # Starting workers takes seconds; the test of switches at random steps starts some as well.
  *(pytest.param(hosts, 2, marks=pytest.mark.slow) for hosts in (1, 2, 3, 4, 8)),
]


@pytest.mark.parametrize(("hosts", "workers"), WORKERS_OF_HOSTS)
def test_hosts_and_workers_change_no_batch_and_no_draw(dataset, hosts, workers):
  expected, state = global_batches(config(dataset), 1, BATCHES)
  found, found_state = global_batches(config(dataset, workers=workers), hosts, BATCHES)
  assert_equal_batches(found, expected)
  assert found_state == state


@pytest.mark.parametrize(
  ("before", "after"),
  [
    ((1, 0), (1, 0)),
    ((2, 0), (3, 0)),
    *(
      pytest.param(before, after, marks=pytest.mark.slow)
      for before, after in (((4, 0), (1, 2)), ((1, 2), (2, 0)))
    ),
  ],
)
def test_a_run_resumes_on_other_hosts_and_workers(dataset, before, after):
  whole, _ = global_batches(config(dataset), 1, 6)
  (hosts, workers), (later_hosts, later_workers) = before, after
  first, state = global_batches(config(dataset, workers=workers), hosts, 2)
  rest, _ = global_batches(config(dataset, workers=later_workers), later_hosts, 4, state)
  assert_equal_batches(first + rest, whole)


def test_hosts_and_workers_switched_at_random_steps_change_nothing(tmp_path):
  """The global batches and draws of three epochs stay the same, with each id once an epoch."""
  examples, batches = 248, 31
  image_files.write_dataset(tmp_path / "data", train=examples, validation=1, files=3)
  settings = config(tmp_path / "data")
  expected, _ = global_batches(settings, 1, batches)
  random = np.random.default_rng(0)
  hosts = np.concatenate([random.permutation([1, 2, 3, 4, 8]) for _ in range(2)])
  cuts = np.sort(random.choice(np.arange(1, batches), len(hosts) - 1, replace=False))
  # Workers take seconds to start, so only two of the stretches have them.
  workers = [2 if i == np.argmax(hosts == 1) else 0 for i in range(len(hosts))]
  workers[len(hosts) - 1 - np.argmax(hosts[::-1] == 2)] = 1
  found, state = [], None
  for i, count in enumerate(np.diff([0, *cuts, batches])):
    stretch = dataclasses.replace(settings, workers=workers[i])
    part, state = global_batches(stretch, int(hosts[i]), count, state)
    found += part
  assert_equal_batches(found, expected)
  ids = np.concatenate([batch["id"][np.argsort(batch["position"])] for batch in found])
  for epoch in range(3):
    own = ids[epoch * examples : (epoch + 1) * examples]
    np.testing.assert_array_equal(np.sort(own), np.arange(examples))


def test_an_iterator_can_be_set_back(dataset):
  with train_batches(config(dataset), seed=0) as batches:
    state = batches.get_state()
    first = [next(batches)["id"] for _ in range(3)]
    batches.set_state(state)
    np.testing.assert_array_equal([next(batches)["id"] for _ in range(3)], first)


def test_the_seed_decides_order_and_draws(dataset):
  (one,), _ = global_batches(config(dataset, batch_size=EXAMPLES), 1, 1, seed=0)
  (two,), _ = global_batches(config(dataset, batch_size=EXAMPLES), 1, 1, seed=1)
  np.testing.assert_array_equal(one["id"], two["id"])
  assert not np.array_equal(one["image"], two["image"])
  orders = []
  for seed in range(3):
    with train_batches(config(dataset, batch_size=EXAMPLES), seed) as batches:
      orders += [tuple(batch["id"]) for batch in itertools.islice(batches, 4)]
  # No epoch of one seed is a later epoch of another seed either.
  assert len(set(orders)) == len(orders)


def test_an_image_is_drawn_anew_each_epoch(dataset):
  (first, second), _ = global_batches(config(dataset, batch_size=EXAMPLES), 1, 2)
  np.testing.assert_array_equal(first["id"], second["id"])
  assert not (first["image"] == second["image"]).all(axis=(1, 2, 3)).any()


def test_without_flips_and_crops_the_images_are_the_stored_ones(tmp_path):
  pixels = [image_files.noise(index, 16, 16) for index in range(4)]
  images = [(image_files.encode(image, "PNG"), (index % 3,)) for index, image in enumerate(pixels)]
  image_files.write_records(tmp_path / "data", {"train": images, "validation": images})
  settings = config(
    tmp_path / "data",
    batch_size=4,
    evaluation_batch_size=4,
    evaluation_resize_margin=0,
    crop_area_min=1.0,
    crop_aspect_ratio_max=1.0,
    horizontal_flip=False,
  )
  (train,), _ = global_batches(settings, 1, 1)
  np.testing.assert_array_equal(train["image"], pixels)
  np.testing.assert_array_equal(train["labels"][:, 0], [0, 1, 2, 0])
  (evaluated,) = evaluation_batches(settings)
  np.testing.assert_array_equal(evaluated["image"], pixels)


@pytest.mark.parametrize("resize", ["squash", "shorter_side"])
def test_evaluation_images_are_resized_in_the_way_that_is_set(tmp_path, resize):
  pixels = [image_files.noise(index, 40, 60) for index in range(2)]
  images = [(image_files.encode(image, "PNG"), (0,)) for image in pixels]
  image_files.write_records(tmp_path / "data", {"train": images, "validation": images})
  settings = config(tmp_path / "data", evaluation_batch_size=2, evaluation_resize=resize)
  (batch,) = evaluation_batches(settings)
  expected = [resize_and_center_crop(image, 16, 2, resize) for image in pixels]
  np.testing.assert_array_equal(batch["image"], expected)


def test_several_labels_are_filled_up(tmp_path):
  image = image_files.encode(image_files.noise(0), "PNG")
  images = [(image, (0, 2)), (image, (1,))]
  image_files.write_records(tmp_path / "data", {"train": images}, labels_per_record_max=2)
  (batch,), _ = global_batches(config(tmp_path / "data", batch_size=2), 1, 1)
  np.testing.assert_array_equal(batch["labels"], [[0, 2], [1, -1]])


@pytest.mark.parametrize(("hosts", "workers"), [(1, 0), (2, 0), (3, 0), (1, 2)])
def test_evaluation_shows_every_image_once_and_fills_up(dataset, hosts, workers):
  settings = config(dataset, workers=workers)
  parts = []
  for host in range(hosts):
    with evaluation_batches(settings, shard_index=host, shard_count=hosts) as batches:
      parts.append([{k: np.array(v) for k, v in batch.items()} for batch in batches])
  assert [len(part) for part in parts] == [2] * hosts
  joined = [join(part) for part in zip(*parts, strict=True)]
  assert all(len(batch["id"]) == BATCH_SIZE for batch in joined)
  ids = np.concatenate([batch["id"] for batch in joined])
  weights = np.concatenate([batch["weight"] for batch in joined])
  assert sorted(ids[weights == 1]) == list(range(31))
  assert set(ids[weights == 0]) == {-1}


def test_evaluation_draws_nothing(dataset):
  first = [np.array(batch["image"]) for batch in evaluation_batches(config(dataset))]
  second = [np.array(batch["image"]) for batch in evaluation_batches(config(dataset))]
  np.testing.assert_array_equal(first, second)


def test_counts_and_names(dataset):
  settings = config(dataset)
  assert class_names(settings) == image_files.CLASS_NAMES
  assert train_examples(settings) == EXAMPLES
  assert evaluation_examples(settings) == 31


UNUSUAL_IMAGES = [
  image_files.encode(image_files.noise(1, 1, 1), "JPEG"),
  image_files.encode(np.arange(256, dtype=np.uint16).reshape(16, 16) * 257, "PNG"),
  image_files.encode(image_files.Image.fromarray(image_files.noise(2)).convert("CMYK"), "JPEG"),
]


def write_with_bad_images(folder, good):
  bad = image_files.BAD_IMAGES.values()
  images = [(image, (0,)) for image in [*bad, *UNUSUAL_IMAGES, *[image_files.JPEG] * good]]
  image_files.write_records(folder, {"train": images, "validation": images})
  return len(images)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_become_black_and_weigh_nothing(tmp_path, workers):
  count = write_with_bad_images(tmp_path / "data", good=5)
  settings = config(
    tmp_path / "data", batch_size=count, evaluation_batch_size=count, workers=workers
  )
  (train,), _ = global_batches(settings, 1, 1)
  with evaluation_batches(dataclasses.replace(settings, workers=0)) as batches:
    (evaluated,) = [{k: np.array(v) for k, v in batch.items()} for batch in batches]
  for batch in (train, evaluated):
    np.testing.assert_array_equal(batch["id"], np.arange(count))
    np.testing.assert_array_equal(batch["weight"], [0, 0, 0, 0] + [1] * (count - 4))
    assert not batch["image"][:4].any()
    np.testing.assert_array_equal(batch["labels"][:4], [[-1]] * 4)
    assert batch["image"][4:].any(axis=(1, 2, 3)).all()


def test_too_many_bad_images_end_the_run_naming_the_records(tmp_path):
  write_with_bad_images(tmp_path / "data", good=20)
  settings = config(tmp_path / "data", bad_image_share_max=0.0005)
  # Five of 10,000 are allowed; each epoch of 27 has four.
  with train_batches(settings, seed=0) as batches:
    for _ in range(3):
      next(batches)
    batches.check_bad_images(5, 48)
    with pytest.raises(UserError) as raised:
      batches.check_bad_images(6, 48)
  message = str(raised.value)
  assert message.startswith("6 of 48 images")
  assert "data.bad_image_share_max=0.0005" in message
  assert str(tmp_path / "data") in message
  assert "record 0 of train.array_record (the file is empty)" in message
  assert "record 1 of train.array_record (" in message
  assert message.count("record 0 of") == 1


def test_no_bad_image_is_tolerated_when_the_share_is_zero(tmp_path):
  write_with_bad_images(tmp_path / "data", good=20)
  settings = config(tmp_path / "data", bad_image_share_max=0.0)
  with evaluation_batches(settings) as batches:
    batches.check_bad_images(0, 24)
    with pytest.raises(UserError, match=r"1 of 24 images.*: none of this host's"):
      batches.check_bad_images(1, 24)


@pytest.mark.parametrize("read", [train_examples, lambda d: train_batches(d, 0)])
@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"path": ""}, r"data\.path is not set"),
    ({"path": "/nonexistent/data"}, "/nonexistent/data does not exist"),
    ({"train_split": "training"}, "no images in split 'training'; it has train, validation"),
  ],
)
def test_data_that_is_not_there(dataset, changes, message, read):
  with pytest.raises(UserError, match=message):
    read(config(**{"path": dataset, **changes}))


@pytest.mark.parametrize("open_batches", [lambda d: train_batches(d, 0), evaluation_batches])
def test_another_number_of_classes(dataset, open_batches):
  with pytest.raises(UserError, match=r"data\.num_classes=10, but .* has 3 classes"):
    open_batches(config(dataset, num_classes=10))


def test_a_batch_that_the_hosts_cannot_share(dataset):
  with pytest.raises(UserError, match="24 images cannot be divided among 5 hosts"):
    train_batches(config(dataset), 0, shard_count=5)


def test_a_record_file_cut_short_is_found_at_the_start(tmp_path):
  image_files.write_dataset(tmp_path / "data", train=10)
  path = tmp_path / "data" / "train-00000-of-00001.array_record"
  path.write_bytes(path.read_bytes()[:-100])
  with pytest.raises(UserError, match=rf"{path} has \d+ bytes where"):
    train_batches(config(tmp_path / "data"), 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_record_file_of_another_set_is_found_when_it_is_opened(tmp_path, workers):
  image_files.write_dataset(tmp_path / "data", train=10)
  image_files.write_dataset(tmp_path / "other", train=9)
  name = "train-00000-of-00001.array_record"
  other = (tmp_path / "other" / name).read_bytes()
  assert len(other) == (tmp_path / "data" / name).stat().st_size
  (tmp_path / "data" / name).write_bytes(other)
  settings = config(tmp_path / "data", workers=workers)
  with (
    train_batches(settings, 0) as batches,
    pytest.raises(UserError, match=f"{name} has 9 records where .* 10"),
  ):
    next(batches)


def test_a_position_in_another_data_set_is_refused(dataset, tmp_path):
  image_files.write_dataset(tmp_path / "data", train=EXAMPLES, seed=1)
  with train_batches(config(dataset), 0) as batches:
    next(batches)
    state = batches.get_state()
  with (
    train_batches(config(tmp_path / "data"), 0) as batches,
    pytest.raises(UserError, match="is not the one that the saved position belongs to"),
  ):
    batches.set_state(state)


PROGRAM = """
import dataclasses, sys, time
from train.config.experiment import Data
from train.data.batches import evaluation_batches, train_batches

if __name__ == "__main__":
  settings = Data(
    path=sys.argv[1],
    num_classes=3,
    batch_size=8,
    evaluation_batch_size=8,
    train_pixels=16,
    evaluation_pixels=16,
    workers=2,
  )
  batches = train_batches(settings, 0)
  next(batches)["image"].sum()
  print("ready", flush=True)
  time.sleep(float(sys.argv[2]))
  evaluation = evaluation_batches(dataclasses.replace(settings, workers=0))
  assert sum(batch["weight"].sum() for batch in evaluation) == 31
"""


def start_program(tmp_path, dataset, seconds):
  path = tmp_path / "program.py"
  path.write_text(PROGRAM)
  return subprocess.Popen(
    [sys.executable, "-W", "error", str(path), str(dataset), str(seconds)],
    env={"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def test_workers_end_when_the_training_process_is_killed(tmp_path, dataset):
  process = start_program(tmp_path, dataset, seconds=300)
  assert process.stdout.readline() == "ready\n"
  workers = children(process.pid)
  assert len(workers) >= 2
  process.send_signal(signal.SIGKILL)
  process.wait()
  deadline = time.monotonic() + 20
  while any(map(is_running, workers)) and time.monotonic() < deadline:
    time.sleep(0.1)
  left = [pid for pid in workers if is_running(pid)]
  for pid in left:
    os.kill(pid, signal.SIGKILL)
  # Not earlier, since workers that live on hold the other end of the pipes.
  process.communicate()
  assert not left


def test_a_program_that_closes_nothing_ends_without_a_complaint(tmp_path, dataset):
  process = start_program(tmp_path, dataset, seconds=0)
  output, errors = process.communicate(timeout=120)
  assert (output, errors, process.returncode) == ("ready\n", "", 0)


def test_batches_that_would_not_fit_into_memory_are_refused(folder):
  data = Data(path=str(folder), num_classes=3, batch_size=2**20, workers=64, train_pixels=1000)
  with pytest.raises(
    UserError, match=r"data\.workers=64: 129 batches of 3.15e\+03 GB .* lower data"
  ):
    train_batches(data, seed=0)

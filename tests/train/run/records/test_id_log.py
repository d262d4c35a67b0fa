import json
import time

import numpy as np
import pytest

from nfnet.errors import UserError
from train.audit_data import as_text, audit
from train.data.epoch_order import example_order
from train.run.records.bookkeeping import DAMAGED_FOLDER
from train.run.records.id_log import RECORD, IdLog, hash_ids, id_sum, next_start, read_records

EXAMPLES, BATCH_SIZE, SEED = 40, 16, 3
ORDER = {"seed": SEED, "examples": EXAMPLES, "batch_size": BATCH_SIZE, "repetitions": 1}


def batches_of(processes, process, repetitions=1):
  """What `train.data.batches` gives a process, without the images."""
  ids = example_order(EXAMPLES, SEED, repetitions)
  step = 0
  while True:
    positions = np.arange(step * BATCH_SIZE, (step + 1) * BATCH_SIZE)[process::processes]
    step += 1
    yield (
      step,
      {
        "id": np.array([ids[int(position)] for position in positions]),
        "position": positions,
        "weight": np.ones(len(positions), np.float32),
      },
    )


def write(workdir, first, last, *, start=1, processes=1, change=None, left_out=(), repetitions=1):
  order = {**ORDER, "repetitions": repetitions}
  for process in range(processes):
    with IdLog(str(workdir), start=start, process=process, processes=processes, order=order) as log:
      for step, batch in batches_of(processes, process, repetitions):
        if step > last:
          break
        if step >= first:
          if change is not None:
            change(process, step, batch)
          log.append(step, batch, left_out=step in left_out)
      log.flush()


def test_a_run_of_two_and_a_half_epochs(tmp_path):
  write(tmp_path, 1, 6)
  found = audit(str(tmp_path))
  assert (found.steps, found.images) == (6, 96)
  assert (found.complete_epochs, found.partial_epoch_images) == (2, 16)
  assert (found.blank, found.left_out, found.repeated_steps, found.starts) == (0, 0, 0, 1)


def test_repetitions_make_longer_epochs(tmp_path):
  # 128 images are one epoch of 120, three times 40, and eight of the next.
  write(tmp_path, 1, 8, processes=2, repetitions=3)
  found = audit(str(tmp_path))
  assert (found.repetitions, found.complete_epochs, found.partial_epoch_images) == (3, 1, 8)
  assert "complete epochs, each image 3 times" in as_text(found)


def test_a_repetition_too_many_is_found(tmp_path):
  def once_more(process, step, batch):
    if step == 2:
      batch["id"][-1] = batch["id"][0]

  write(tmp_path, 1, 8, repetitions=3, change=once_more)
  with pytest.raises(UserError, match=r"epoch 0 are not the 40 of the data set, each 3 times"):
    audit(str(tmp_path))


def test_restarts_in_other_numbers_of_processes(tmp_path):
  write(tmp_path, 1, 4, start=1, processes=2)
  write(tmp_path, 3, 7, start=2, processes=4)
  write(tmp_path, 8, 9, start=3, processes=1)
  found = audit(str(tmp_path))
  assert (found.steps, found.starts, found.repeated_steps) == (9, 3, 2)
  assert (found.complete_epochs, found.partial_epoch_images) == (3, 24)


def test_a_step_of_which_a_process_was_killed_is_of_the_next_start(tmp_path):
  write(tmp_path, 1, 4, start=1, processes=2)
  path = tmp_path / "ids" / "00001.bin"
  # In the middle of its last record.
  path.write_bytes(path.read_bytes()[:-10])
  write(tmp_path, 4, 5, start=2, processes=2)
  assert audit(str(tmp_path)).steps == 5


def test_bad_and_left_out_images_are_counted(tmp_path):
  def change(process, step, batch):
    if step == 2:
      batch["weight"][:3] = 0

  write(tmp_path, 1, 5, change=change, left_out=(4, 5))
  found = audit(str(tmp_path))
  assert (found.blank, found.left_out) == (3, 32)


def test_the_last_start_counts_though_the_clock_was_set_back(tmp_path, monkeypatch):
  now_ns = next_start(str(tmp_path))
  assert now_ns <= time.time_ns()
  write(tmp_path, 1, 5, start=now_ns)
  monkeypatch.setattr(time, "time_ns", lambda: now_ns - 10**15)
  # It has rolled back.
  write(tmp_path, 4, 6, start=next_start(str(tmp_path)), left_out=(4, 5))
  found = audit(str(tmp_path))
  assert (found.left_out, found.starts, found.repeated_steps) == (32, 2, 2)


def lose_one(process, step, batch):
  if step == 3:
    for name in batch:
      batch[name] = batch[name][:-1]


def repeat_one(process, step, batch):
  if step == 2:
    batch["id"][0] = batch["id"][1]


def swap_with_another_epoch(process, step, batch):
  if step == 3:
    # Ids of both epochs in another's place: the batch as a set stays the same.
    first, last = batch["id"][0], batch["id"][-1]
    batch["id"][0], batch["id"][-1] = last, first


def other_order(process, step, batch):
  if step == 6:
    batch["id"] = (batch["id"] + 1) % EXAMPLES


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lose_one, "no record of step 3"),
    (repeat_one, "the 40 images of epoch 0 are not the 40"),
    (swap_with_another_epoch, "epoch 0 are not the 40"),
    (other_order, "images of step 6 are not those of its place in the order"),
  ],
)
def test_what_is_not_once_an_epoch_is_found(tmp_path, change, message):
  write(tmp_path, 1, 6, change=change)
  with pytest.raises(UserError, match=message):
    audit(str(tmp_path))


def test_a_step_done_again_with_other_images_is_found(tmp_path):
  write(tmp_path, 1, 4, start=1)
  write(tmp_path, 4, 4, start=2, change=lambda process, step, batch: batch["id"].sort())
  audit(str(tmp_path))
  write(tmp_path, 4, 4, start=3, change=lambda process, step, batch: batch["id"].put(0, 99))
  with pytest.raises(UserError, match="step 4 was done again with other images"):
    audit(str(tmp_path))


def flip_a_bit(content):
  content[RECORD.itemsize + 20] ^= 4


def insert_bytes(content):
  content[2 * RECORD.itemsize : 2 * RECORD.itemsize] = b"some bytes that are not a record"


def prepend_bytes(content):
  content[:0] = b"some"


def cut_out_bytes(content):
  del content[RECORD.itemsize + 5 : RECORD.itemsize + 9]


def zero(content):
  content[RECORD.itemsize : 2 * RECORD.itemsize] = bytes(RECORD.itemsize)


@pytest.mark.parametrize(
  ("damage", "lost_steps"),
  [(flip_a_bit, [2]), (insert_bytes, []), (prepend_bytes, []), (cut_out_bytes, [2]), (zero, [2])],
)
def test_damage_hides_no_more_than_the_records_it_is_in(tmp_path, damage, lost_steps, capsys):
  write(tmp_path, 1, 7)
  path = tmp_path / "ids" / "00000.bin"
  whole = audit(str(tmp_path))
  content = bytearray(path.read_bytes())
  damage(content)
  path.write_bytes(content)
  for _ in range(2):
    records, damaged_bytes = read_records(str(tmp_path))
    assert damaged_bytes > 0
    assert sorted(set(range(1, 8)) - set(records["step"].tolist())) == lost_steps
    found = audit(str(tmp_path))
    assert (found.steps, found.unproven_steps) == (7, len(lost_steps))
    # An epoch has 2.5 steps.
    assert found.unproven_epochs == len(lost_steps)
    assert found.complete_epochs + found.unproven_epochs == whole.complete_epochs
    assert ("not proven" in as_text(found)) == bool(lost_steps)
    if not lost_steps:
      break
  # A run that goes on sets the damage aside, and its records follow the sound ones.
  write(tmp_path, 8, 9, start=2)
  assert (tmp_path / DAMAGED_FOLDER / "ids" / "00000.bin").exists()
  records, damaged_bytes = read_records(str(tmp_path))
  assert damaged_bytes > 0
  assert sorted(set(range(1, 10)) - set(records["step"].tolist())) == lost_steps
  assert audit(str(tmp_path)).unproven_steps == len(lost_steps)


def test_a_file_without_any_record_is_one_line(tmp_path):
  write(tmp_path, 1, 1)
  (tmp_path / "ids" / "00000.bin").write_bytes(bytes(range(256)) * 100)
  with pytest.raises(UserError, match="no sound record"):
    audit(str(tmp_path))


NOT_ORDERS = (
  b"",
  b"{",
  b"[]",
  b"\xff",
  b"{}",
  b"[" * 100_000,
  *(
    json.dumps({**ORDER, **change}).encode()
    for change in ({"examples": -8}, {"batch_size": 0}, {"repetitions": True}, {"seed": 0.5})
  ),
)


@pytest.mark.parametrize("content", NOT_ORDERS)
def test_a_damaged_order_is_written_anew(tmp_path, content):
  write(tmp_path, 1, 4)
  (tmp_path / "ids" / "order.json").write_bytes(content)
  with pytest.raises(UserError, match=r"order\.json is damaged: .*start the run again"):
    audit(str(tmp_path))
  write(tmp_path, 5, 4)
  assert audit(str(tmp_path)).steps == 4


@pytest.mark.parametrize("make", [lambda folder: None, lambda folder: (folder / "ids").mkdir()])
def test_a_folder_without_a_record_is_named(tmp_path, make):
  make(tmp_path)
  with pytest.raises(UserError, match=r"order\.json cannot be read"):
    audit(str(tmp_path))


def test_sums_do_not_depend_on_the_order_and_tell_sets_apart():
  random = np.random.default_rng(0)
  ids = random.permutation(10_000)
  assert id_sum(ids) == id_sum(np.arange(10_000))
  assert len(np.unique(hash_ids(ids))) == 10_000
  # Sets with the same sum of ids.
  assert id_sum(np.array([1, 4])) != id_sum(np.array([2, 3]))
  # Published first outputs of splitmix64 for the seed 0: the hash of i is output i of it.
  assert hex(hash_ids(np.array([0]))[0]) == "0xe220a8397b1dcdaf"

import json
import math
import os
import subprocess
import sys
import textwrap

import pytest

from nfnet.errors import UserError
from train.run.records.bookkeeping import DAMAGED_FOLDER, make_place
from train.run.records.goodput import START_UP, STEP, Ledger, as_text, read_goodput
from train.run.records.id_log import IdLog, read_order, read_records
from train.run.records.metrics import MetricsWriter, read_metrics

METRICS = [{"step": step, "kind": "train", "loss": 1.0} for step in (1, 2)]
LEDGER = [
  {"started_unix_seconds": 1e9, "cores": 2, "device_kind": "some"},
  {"step": 2, "seconds": {STEP: 2.0}},
]
ORDER = {"seed": 0, "examples": 8, "batch_size": 4, "repetitions": 1}

NOT_RECORDS = {
  "text": b"Traceback (most recent call last):",
  "not UTF-8": b'{"step": 3, "kind": "event", "text": "\xff\xfe"}',
  "binary": bytes(range(256)).replace(b"\n", b""),
  "zeros": b"\0" * 100,
  "empty": b"",
  "a list": b"[1, 2]",
  "a number": b"3",
  "a cut record": b'{"step": 3, "kind": "tr',
  "two records": b'{"step": 3, "kind": "train"}{"step": 4, "kind": "train"}',
  "steps of other types": b'{"step": "3", "kind": "train", "seconds": {}}',
  "a step that is NaN": b'{"step": NaN, "kind": "train", "seconds": {}}',
  "a step that is true": b'{"step": true, "kind": "train", "seconds": {}}',
  "a step below zero": b'{"step": -3, "kind": "train", "seconds": {}}',
  "a step too large": b'{"step": 1' + b"0" * 30 + b', "kind": "train", "seconds": {}}',
  "a number of many digits": b'{"step": ' + b"1" * 10_000 + b', "kind": "train"}',
  "values of other types": b'{"step": 3, "kind": "train", "loss": "low", "seconds": {"step": "x"}}',
  "values that are lists": b'{"step": 3, "kind": "train", "loss": [1], "seconds": [1]}',
  "another kind": b'{"step": 3, "kind": ["train"], "seconds": {"sleep": 1.0}}',
  "deeply nested": b"[" * 100_000,
  "a huge line": b'{"step": 3, "kind": "event", "text": "' + b"x" * (3 << 20) + b'"}',
}


def lines(records):
  return [json.dumps(record).encode() + b"\n" for record in records]


@pytest.mark.parametrize("garbage", NOT_RECORDS.values(), ids=NOT_RECORDS)
def test_what_is_not_a_record_is_left_out_and_set_aside(tmp_path, garbage, caplog):
  for name, records in (("metrics.jsonl", METRICS), ("goodput.jsonl", LEDGER)):
    first, last = lines(records)
    (tmp_path / name).write_bytes(first + garbage + b"\n" + last)
  assert read_metrics(tmp_path) == METRICS
  assert read_goodput(str(tmp_path)).seconds[STEP] == 2.0
  assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
    "left out what is not a record, 1 line"
  ] * 2
  with MetricsWriter(str(tmp_path), restored_step=2) as writer, Ledger(str(tmp_path)) as ledger:
    ledger.goes_on_from(2)
    writer.write({"step": 3, "kind": "train", "loss": 1.0})
  assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2, 3]
  assert read_goodput(str(tmp_path)).starts == 2
  for name in ("metrics.jsonl", "goodput.jsonl"):
    assert (tmp_path / DAMAGED_FOLDER / name).read_bytes() == garbage + b"\n"
    assert f"{name}: set aside what is not a record, 1 line" in caplog.text


def test_a_ledger_without_its_first_lines_adds_up(tmp_path):
  (tmp_path / "goodput.jsonl").write_bytes(lines(LEDGER)[1])
  assert read_goodput(str(tmp_path)).wall_seconds == 2.0
  (tmp_path / "goodput.jsonl").write_bytes(b"?\n")
  assert "starts: 0" in as_text(read_goodput(str(tmp_path)))


def make_folder(path):
  path.mkdir(parents=True)
  (path / "file").write_text("something")


def make_loop(path):
  path.symlink_to(path)


IN_THE_PLACE = {"a folder": make_folder, "a pipe": os.mkfifo, "a loop of links": make_loop}


@pytest.mark.parametrize("make", IN_THE_PLACE.values(), ids=IN_THE_PLACE)
def test_what_is_in_the_place_of_a_file_is_moved_aside(tmp_path, make):
  (tmp_path / "ids").mkdir()
  names = ("metrics.jsonl", "goodput.jsonl", "ids/00000.bin", "ids/order.json")
  for name in names:
    make(tmp_path / name)
  (tmp_path / "tensorboard").write_text("a file in the place of a folder")
  for read in (read_metrics, read_goodput, read_order):
    with pytest.raises(UserError, match="cannot be read"):
      read(str(tmp_path))
  assert read_records(str(tmp_path))[1] > 0
  with (
    MetricsWriter(str(tmp_path), restored_step=2) as writer,
    Ledger(str(tmp_path)) as ledger,
    IdLog(str(tmp_path), start=1, process=0, processes=1, order=ORDER),
  ):
    ledger.goes_on_from(2)
    writer.write(METRICS[0])
  assert read_metrics(tmp_path) == METRICS[:1]
  assert read_goodput(str(tmp_path)).seconds[START_UP] > 0
  assert read_order(str(tmp_path)) == ORDER
  assert list((tmp_path / "tensorboard").iterdir())
  for name in (*names, "tensorboard"):
    assert os.path.lexists(tmp_path / DAMAGED_FOLDER / name)


def test_pipes_that_cannot_be_moved_aside_are_not_waited_for(tmp_path, caplog):
  os.mkfifo(tmp_path / "metrics.jsonl")
  (tmp_path / DAMAGED_FOLDER).write_text("a file in the place of the folder")
  with MetricsWriter(str(tmp_path), restored_step=2) as writer:
    writer.write(METRICS[0])
  assert "metrics.jsonl cannot be written" in caplog.text
  (tmp_path / DAMAGED_FOLDER).unlink()
  (tmp_path / DAMAGED_FOLDER).mkdir()
  os.mkfifo(tmp_path / DAMAGED_FOLDER / "goodput.jsonl")
  (tmp_path / "goodput.jsonl").write_bytes(b"garbage\n" + lines(LEDGER)[0])
  with Ledger(str(tmp_path)) as ledger:
    ledger.goes_on_from(2)
  assert read_goodput(str(tmp_path)).starts == 2


def test_what_was_moved_aside_before_stays_there(tmp_path):
  for number in range(3):
    make_folder(tmp_path / "ids" / "order.json")
    (tmp_path / "ids" / "order.json" / "file").write_text(str(number))
    make_place(tmp_path, "ids/order.json")
  for number, name in enumerate(("order.json", "order.json.1", "order.json.2")):
    assert (tmp_path / DAMAGED_FOLDER / "ids" / name / "file").read_text() == str(number)


def test_a_file_in_the_place_of_the_folder_of_ids(tmp_path):
  (tmp_path / "ids").write_text("")
  with IdLog(str(tmp_path), start=1, process=0, processes=1, order=ORDER):
    pass
  assert read_order(str(tmp_path)) == ORDER
  assert len(read_records(str(tmp_path))[0]) == 0


def test_numbers_that_are_not_finite_are_nan(tmp_path):
  (tmp_path / "metrics.jsonl").write_text('{"step": 1, "kind": "train", "loss": Infinity}\n')
  assert math.isnan(read_metrics(tmp_path)[0]["loss"])


def test_an_integer_beyond_64_bits_is_a_float_in_metrics(tmp_path):
  """NumPy, and with it a plot, would make an array of objects of it."""
  line = '{"step": 1, "kind": "train", "loss": 1%s}\n' % ("0" * 30)
  (tmp_path / "metrics.jsonl").write_text(line)
  assert repr(read_metrics(tmp_path)[0]["loss"]) == "1e+30"


def test_a_link_in_the_place_of_an_unfinished_file_is_not_followed(tmp_path):
  other = tmp_path / "another"
  other.write_text("somebody else's")
  for name, records in (("metrics", METRICS), ("goodput", LEDGER)):
    (tmp_path / f"{name}.jsonl").write_bytes(b"".join(lines(records)))
    (tmp_path / f"{name}.tmp").symlink_to(other)
  with MetricsWriter(str(tmp_path), restored_step=1), Ledger(str(tmp_path)):
    pass
  assert other.read_text() == "somebody else's"


def test_a_full_disk_is_reported_once_and_nothing_is_lost_if_there_is_room_again(tmp_path):
  program = """
    import resource, sys
    import numpy as np
    from train.run.records.goodput import Ledger
    from train.run.records.id_log import IdLog
    from train.run.records.metrics import MetricsWriter

    order = {"seed": 0, "examples": 8, "batch_size": 4, "repetitions": 1}
    batch = {"id": np.arange(4), "position": np.arange(4), "weight": np.ones(4)}
    with (
      MetricsWriter(sys.argv[1], restored_step=None) as metrics,
      Ledger(sys.argv[1]) as ledger,
      IdLog(sys.argv[1], start=1, process=0, processes=1, order=order) as ids,
    ):
      for limit in (1000, resource.RLIM_INFINITY):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        for step in range(100):
          metrics.write({"step": step, "kind": "train", "loss": 1.0})
          ids.append(step + 1, batch)
          ids.flush()
          ledger.goes_on_from(step)
    print("done")
  """
  done = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(program), tmp_path],
    env={"PYTHONPATH": ":".join(sys.path), "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout == "done\n"
  (said,) = done.stderr.splitlines()
  assert "cannot be written: File too large; the run goes on without it" in said
  assert [record["step"] for record in read_metrics(tmp_path)] == [*range(100), *range(100)]
  assert read_records(str(tmp_path))[0]["step"].tolist() == [*range(1, 101), *range(1, 101)]
  ledger = (tmp_path / "goodput.jsonl").read_text().splitlines()
  assert sum("goes_on_from_step" in line for line in ledger) == 200

import json
import math
import re

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.crc32c import crc32c
from tensorboardX.proto import event_pb2

from nfnet.errors import UserError
from train.run.records.metrics import MetricsWriter, is_evaluated, read_metrics


def train_record(step):
  return {"step": step, "kind": "train", "loss": 7.0 / step, "learning_rate": 0.1}


def write(workdir, steps, restored_step=None):
  with MetricsWriter(str(workdir), restored_step=restored_step) as writer:
    for step in steps:
      writer.write(train_record(step))


def events(workdir):
  """The events of all files in the order written, as (step, tag or None, value)."""
  found = []
  files = sorted((workdir / "tensorboard").iterdir(), key=lambda path: int(path.suffix[1:]))
  for file in files:
    content = file.read_bytes()
    while content:
      length = int.from_bytes(content[:8], "little")
      assert masked(content[:8]) == content[8:12]
      data, checksum = content[12 : 12 + length], content[12 + length : 16 + length]
      assert masked(data) == checksum
      event = event_pb2.Event.FromString(data)
      if event.HasField("summary"):
        found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
      elif event.HasField("session_log"):
        found.append((event.step, None, event.session_log.status))
      content = content[16 + length :]
  return found


def masked(data):
  value = crc32c(data)
  return (((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little")


def test_each_record_is_on_disk_at_once(tmp_path):
  records = [
    train_record(1),
    {"step": 1, "kind": "evaluation", "top1": 0.5, "ema": True, "note": "ä"},
  ]
  with MetricsWriter(str(tmp_path), restored_step=None) as writer:
    for count, record in enumerate(records, start=1):
      writer.write(record)
      lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
      assert [json.loads(line) for line in lines] == records[:count]
  assert read_metrics(tmp_path) == records


@pytest.mark.parametrize("scalar", [np.float32(0.25), np.float64(0.25), jnp.float32(0.25), 0.25])
def test_arrays_become_numbers(tmp_path, scalar):
  with MetricsWriter(str(tmp_path), restored_step=None) as writer:
    writer.write({"step": np.int64(3), "kind": "train", "loss": scalar})
  assert read_metrics(tmp_path) == [{"step": 3, "kind": "train", "loss": 0.25}]


@pytest.mark.parametrize("value", [math.nan, math.inf, jnp.float32(-math.inf)])
def test_not_finite_is_null_and_read_as_nan(tmp_path, value):
  for restored_step in (None, 1):  # the second time it is rewritten
    with MetricsWriter(str(tmp_path), restored_step=restored_step) as writer:
      if restored_step is None:
        writer.write({"step": 1, "kind": "train", "loss": value})
  assert '"loss": null' in (tmp_path / "metrics.jsonl").read_text()
  assert math.isnan(read_metrics(tmp_path)[0]["loss"])


@pytest.mark.parametrize(
  ("restored_step", "kept"), [(None, []), (0, []), (2, [1, 2]), (3, [1, 2, 3]), (9, [1, 2, 3, 4])]
)
@pytest.mark.parametrize("torn", ["", '{"step": 5, "ki'])
def test_resumed_run_has_each_step_once(tmp_path, restored_step, kept, torn):
  write(tmp_path, [1, 2, 3, 4])
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write(torn)
  assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2, 3, 4]
  write(tmp_path, [10], restored_step)
  assert [record["step"] for record in read_metrics(tmp_path)] == [*kept, 10]


def test_an_evaluation_that_was_cut_short_is_recorded_once(tmp_path):
  with MetricsWriter(str(tmp_path), restored_step=None) as writer:
    for step, kind in ((4, "train"), (4, "evaluation"), (8, "train"), (8, "evaluation")):
      writer.write({"step": step, "kind": kind, "loss": 1.0})
  with MetricsWriter(str(tmp_path), restored_step=8, evaluates_again=True) as writer:
    writer.write({"step": 8, "kind": "evaluation", "loss": 2.0})
  assert [(r["step"], r["kind"], r["loss"]) for r in read_metrics(tmp_path)] == [
    (4, "train", 1.0),
    (4, "evaluation", 1.0),
    (8, "train", 1.0),
    (8, "evaluation", 2.0),
  ]


def test_an_evaluation_is_on_record_once_its_last_network_is(tmp_path):
  assert not is_evaluated(str(tmp_path), 8, ema=True)
  with MetricsWriter(str(tmp_path), restored_step=None) as writer:
    writer.write({"step": 4, "kind": "evaluation", "ema": True, "loss": 1.0})
    writer.write({"step": 8, "kind": "evaluation", "ema": False, "loss": 1.0})
  assert is_evaluated(str(tmp_path), 8, ema=False)
  assert is_evaluated(str(tmp_path), 4, ema=True)
  assert not is_evaluated(str(tmp_path), 8, ema=True)


def test_tensorboard_gets_the_numbers_and_forgets_on_resume(tmp_path):
  write(tmp_path, [1, 2])
  with MetricsWriter(str(tmp_path), restored_step=1) as writer:
    for ema in (False, True):
      writer.write({"step": 2, "kind": "evaluation", "top1": 0.5, "ema": ema, "name": "x"})
  assert events(tmp_path) == [
    (0, None, event_pb2.SessionLog.START),
    (1, "train/loss", 7.0),
    (1, "train/learning_rate", np.float32(0.1)),
    (2, "train/loss", 3.5),
    (2, "train/learning_rate", np.float32(0.1)),
    (2, None, event_pb2.SessionLog.START),
    (2, "evaluation/top1", 0.5),
    (2, "evaluation_ema/top1", 0.5),
  ]


def test_a_missing_file_is_named(tmp_path):
  path = str(tmp_path / "metrics.jsonl")
  with pytest.raises(UserError, match=f"{re.escape(path)}.*cannot be read: No such file"):
    read_metrics(tmp_path)

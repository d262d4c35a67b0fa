"""Checkpoints in a bucket, where a folder can neither be renamed nor be there without a file."""

import contextlib
import re

import jax
import numpy as np
import pytest

from nfnet.errors import UserError
from nfnet.weights.checkpoint_reader import read_checkpoint
from train.run.checkpoints.manager import BEST_METRIC, Checkpoints


def save(checkpoints, step, top1=0.0):
  arrays = {"w": jax.numpy.full(8, step, jax.numpy.float32)}
  checkpoints.save(
    step,
    parameters=arrays,
    ema=arrays,
    optimizer=arrays,
    data_state={"step": step},
    metadata={"experiment": {}},
    metrics={BEST_METRIC: top1},
  )


def restore(checkpoints):
  like = {"w": np.zeros(8, np.float32)}
  return checkpoints.restore(parameters=like, ema=like, optimizer=like)


def save_and_wait(checkpoints, step):
  save(checkpoints, step)
  checkpoints.wait()


@pytest.fixture
def workdir(gcs):
  return f"{gcs.url}/run"


def steps_in(gcs, folder="checkpoints"):
  return sorted({int(name.split("/")[2]) for name in gcs.names(f"run/{folder}/")})


def test_the_newest_and_the_best_are_kept_and_restored(gcs, workdir):
  with Checkpoints(workdir, keep=2) as checkpoints:
    for step, top1 in ((1, 0.5), (2, 0.9), (3, 0.1), (4, 0.2)):
      save(checkpoints, step, top1)
    checkpoints.wait()
    assert steps_in(gcs) == checkpoints.all_steps() == [2, 3, 4]
  with Checkpoints(workdir, keep=2) as checkpoints:
    restored = restore(checkpoints)
    assert (restored.step, restored.data_state) == (4, {"step": 4})
    np.testing.assert_array_equal(restored.parameters["w"], np.full(8, 4))
    save(checkpoints, 5)
    checkpoints.wait()
    assert steps_in(gcs) == [2, 4, 5]
    checkpoints.delete_after(2)
    save(checkpoints, 4)
  assert steps_in(gcs) == [2, 4]
  parameters, metadata = read_checkpoint(workdir)
  np.testing.assert_array_equal(parameters["w"], np.full(8, 4))
  assert metadata["step"] == 4


def test_a_save_that_has_not_ended_is_no_checkpoint_and_is_removed(gcs, workdir):
  with Checkpoints(workdir, keep=9) as checkpoints:
    save(checkpoints, 1)
    save(checkpoints, 2)
  gcs.remove("run/checkpoints/2/commit_success.txt")
  for name in ("3/params/_METADATA", "4.bak/a"):
    gcs.put(f"run/checkpoints/{name}", b"")
  assert read_checkpoint(workdir)[1]["step"] == 1
  with Checkpoints(workdir, keep=9) as checkpoints:
    assert checkpoints.all_steps() == [1]
    assert {name.split("/")[2] for name in gcs.names("run/checkpoints/")} == {"1", "4.bak"}
    assert restore(checkpoints).step == 1
    save(checkpoints, 2)


def test_a_checkpoint_is_there_only_with_its_digests(gcs, workdir):
  seen = []

  def look(method, address):
    if method == "POST" and address.endswith("checkpoints/1/commit_success.txt"):
      seen.append("run/checkpoints/1/digests.sha256" in gcs.names())
    return None

  gcs.storage.refuse = look
  with Checkpoints(workdir, keep=1) as checkpoints:
    save(checkpoints, 1)
  assert seen == [True]


@pytest.mark.parametrize("part", ["params/d/", "optimizer/_METADATA", "experiment/metadata"])
def test_a_damaged_one_is_set_aside(gcs, workdir, part):
  with Checkpoints(workdir, keep=9) as checkpoints:
    save(checkpoints, 1)
    save(checkpoints, 2)
  name = next(one for one in gcs.names() if f"checkpoints/2/{part}" in one)
  gcs.put(name, bytes([gcs.read(name)[0] ^ 1]) + gcs.read(name)[1:])
  with Checkpoints(workdir, keep=9) as checkpoints:
    restored = restore(checkpoints)
    assert (restored.step, restored.set_aside) == (1, (2,))
    assert checkpoints.all_steps() == [1]
  assert steps_in(gcs) == [1]
  assert steps_in(gcs, "checkpoints_damaged") == [2]


def test_one_of_another_run_is_not_taken(gcs, workdir):
  with Checkpoints(workdir, keep=9) as checkpoints:
    save(checkpoints, 1)
  gcs.put("run/run.json", b'{"run": "another"}')
  with (
    Checkpoints(workdir, keep=9) as checkpoints,
    pytest.raises(UserError, match="it belongs to run"),
  ):
    restore(checkpoints)


# What Orbax writes through `BucketPath`, and what TensorStore writes itself.
@pytest.mark.parametrize("part", ["", "params/ocdbt"])
def test_a_save_that_is_refused_is_one_line_and_the_one_before_stays(gcs, workdir, part):
  checkpoints = Checkpoints(workdir, keep=9)
  save_and_wait(checkpoints, 1)
  gcs.refuse(403, "POST", f"checkpoints/2/{part}")
  with pytest.raises(UserError, match=re.escape("be saved: Permission denied; ")) as error:
    save_and_wait(checkpoints, 2)
  assert "the newest complete one is of step 1" in str(error.value)
  with contextlib.suppress(UserError):
    checkpoints.close()
  gcs.storage.refuse = lambda *unused: None
  assert read_checkpoint(workdir)[1]["step"] == 1

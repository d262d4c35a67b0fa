"""Steps that go wrong in real runs. What is wrong is put into the loss of chosen steps."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nfnet.errors import UserError
from tests.train.runs import final_sha256
from tests.train.small_network import TINY
from train.audit_data import audit
from train.config.experiment import Data, Experiment, Faults, Model, Optimizer, Schedule
from train.run import loop
from train.run.checkpoints import Checkpoints
from train.step import train_step
from train.step.sharding.mesh import make_mesh

BATCH_SIZE = 16
GOES_BACK = "is not finite: back to step"


pytestmark = pytest.mark.usefixtures("small_networks")


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
  """Which compiles in a fraction of the time of eight."""
  monkeypatch.setattr(loop, "make_mesh", functools.partial(make_mesh, jax.devices()[:1]))


@pytest.fixture(scope="module")
def experiment(digits):
  return Experiment(
    name="faults",
    model=Model(variant=TINY.name, compute_dtype="float32", block_execution="unrolled"),
    data=Data(
      path=str(digits),
      num_classes=10,
      batch_size=BATCH_SIZE,
      evaluation_batch_size=40,
      train_pixels=16,
      evaluation_pixels=16,
      evaluation_resize_margin=0,
    ),
    optimizer=Optimizer(peak_learning_rate=0.1, warmup_steps=3, ema_decay=0.9),
    schedule=Schedule(train_steps=14, log_every_steps=7, checkpoint_every_steps=4),
  )


@jax.custom_vjp
def without_gradient(losses, is_bad):
  return losses


without_gradient.defvjp(
  lambda losses, is_bad: (losses, is_bad),
  lambda is_bad, cotangent: (cotangent * jnp.where(is_bad, jnp.nan, 1.0), None),
)


@pytest.fixture
def fault(monkeypatch):
  """A function that makes `kind` of steps bad: "loss" or "gradient"."""
  example_losses, put_batch = train_step.example_losses, loop.put_batch

  def inject(kind, steps):
    def marked(batch, mesh):
      if int(batch["position"][0]) // BATCH_SIZE + 1 in steps:
        batch = {**batch, "labels": np.full_like(batch["labels"], -1)}
      return put_batch(batch, mesh)

    def losses_of(loss, logits, targets):
      losses = example_losses(loss, logits, targets)
      is_bad = jnp.sum(targets, axis=-1) == 0
      if kind == "loss":
        return jnp.where(is_bad, jnp.inf, losses)
      return without_gradient(losses, is_bad)

    monkeypatch.setattr(loop, "put_batch", marked)
    monkeypatch.setattr(train_step, "example_losses", losses_of)

  return inject


def events(records):
  return [(r["step"], r["text"]) for r in records if r["kind"] == "event"]


def with_faults(experiment, **changes):
  return dataclasses.replace(experiment, faults=Faults(**changes))


def test_a_loss_that_is_not_finite_is_skipped_and_counted(experiment, fault, tmp_path):
  fault("loss", {5, 13})
  records = loop.train(experiment, str(tmp_path))
  assert events(records) == [
    (5, "step 5 was skipped: loss inf"),
    (13, "step 13 was skipped: loss inf"),
  ]
  trained = [r for r in records if r["kind"] == "train"]
  assert [(r["step"], r["skipped_steps"]) for r in trained] == [
    (4, 0),
    (7, 1),
    (8, 1),
    (12, 1),
    (14, 2),
  ]
  assert all(np.isfinite(r["loss"]) for r in trained)


def test_a_gradient_that_is_not_finite_leaves_what_skipping_its_step_leaves(
  experiment, fault, tmp_path
):
  fault("loss", {2, 7})
  loop.train(experiment, str(tmp_path / "skipped"))
  fault("gradient", {2, 7})
  records = loop.train(experiment, str(tmp_path / "rolled back"))
  # From the beginning, since step 2 comes before the first checkpoint; later from step 4.
  assert events(records) == [
    (0, f"the gradient of step 2 {GOES_BACK} 0, and on without the batches of steps 2 to 2"),
    (4, f"the gradient of step 7 {GOES_BACK} 4, and on without the batches of steps 7 to 7"),
  ]
  assert final_sha256(tmp_path / "rolled back") == final_sha256(tmp_path / "skipped")
  found = audit(str(tmp_path / "rolled back"))
  assert (found.steps, found.starts, found.left_out) == (14, 3, 2 * BATCH_SIZE)


def test_several_in_a_row_roll_back_to_before_they_began(experiment, fault, tmp_path):
  fault("loss", {11, 12, 13})
  careful = with_faults(experiment, then="roll_back", skipped_in_a_row_max=3, roll_back_steps=2)
  records = loop.train(careful, str(tmp_path))
  # The checkpoint of step 8 is the newest that is older than step 9.
  (event,) = events(records)
  assert event[0] == 8
  assert event[1].startswith("3 steps in a row were skipped, from step 11 (loss inf) to 13")
  assert event[1].endswith("back to step 8, and on without the batches of steps 9 to 13")
  assert audit(str(tmp_path)).left_out == 5 * BATCH_SIZE
  with Checkpoints(str(tmp_path), keep=2) as checkpoints:
    assert checkpoints.all_steps()[-1] == 14


def test_what_is_left_out_stays_so_when_the_run_is_resumed(experiment, fault, tmp_path):
  fault("loss", {6, 7})
  careful = with_faults(experiment, then="roll_back", skipped_in_a_row_max=2, roll_back_steps=1)
  loop.train(careful, str(tmp_path))
  expected = final_sha256(tmp_path)
  with Checkpoints(str(tmp_path), keep=2) as checkpoints:
    checkpoints.delete_after(12)
  # Nothing is wrong any more, yet the steps before step 12 are not done again.
  fault("loss", set())
  loop.train(careful, str(tmp_path))
  assert final_sha256(tmp_path) == expected
  with Checkpoints(str(tmp_path), keep=2) as checkpoints:
    checkpoints.delete_after(4)
  # From step 4, where nothing was left out yet.
  loop.train(careful, str(tmp_path))
  assert final_sha256(tmp_path) != expected


def test_several_in_a_row_stop_the_run_if_so_configured(experiment, fault, tmp_path):
  fault("loss", {6, 7})
  with pytest.raises(UserError, match=r"2 steps in a row .* from step 6 .* to 7 .*then='stop'"):
    loop.train(with_faults(experiment, skipped_in_a_row_max=2), str(tmp_path))


def test_rolling_back_has_an_end(experiment, fault, tmp_path):
  fault("gradient", {6, 7, 9})
  with pytest.raises(UserError, match=r"step 9 is not finite, after faults\.roll_backs_max=2 ear"):
    loop.train(with_faults(experiment, roll_backs_max=2), str(tmp_path))


def test_nothing_that_is_not_finite_is_saved(experiment, monkeypatch, tmp_path):
  monkeypatch.setattr(loop, "_is_finite", lambda state: state.optimizer.step < 8)
  with pytest.raises(
    UserError, match=r"state after step 8 is not finite and was not saved.*step 4"
  ):
    loop.train(experiment, str(tmp_path))
  with Checkpoints(str(tmp_path), keep=2) as checkpoints:
    assert checkpoints.all_steps() == [4]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_is_seen(value):
  tree = {"a": np.ones((3, 4), np.float32), "step": np.int32(3), "b": np.zeros(5, np.float32)}
  assert loop._is_finite(tree)
  tree["a"][2, 1] = value
  assert not loop._is_finite(tree)

"""What real runs do about bad steps; faults are put into the loss of chosen steps.

What is decided, and why, is tested in test_faults.py.
"""

import dataclasses
import functools
import shlex

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nfnet.errors import UserError
from nfnet.initialization import initial_parameters
from nfnet.weights.checkpoint_reader import read_metadata
from tests.train.runs import final_sha256
from tests.train.shared_steps import share_steps
from tests.train.small_network import TINY
from train.audit_data import audit
from train.config.experiment import Data, Experiment, Faults, Model, Optimizer, Schedule
from train.config.overrides import override
from train.run import loop
from train.run.checkpoints.manager import Checkpoints
from train.run.faults import DIVERGED
from train.run.records.metrics import read_metrics
from train.step import train_step
from train.step.model import make_model
from train.step.sharding.mesh import make_mesh

BATCH_SIZE = 16
ROLLED_BACK = "is not finite: rolled back to step"


pytestmark = pytest.mark.usefixtures("small_networks", "few_programs")


@pytest.fixture(scope="module")
def few_programs():
  """Programs for one device take a fraction of the time of those for eight, and runs share them."""
  example_losses = train_step.example_losses

  def losses_of(loss, logits, targets):
    losses = example_losses(loss, logits, targets)
    is_marked = jnp.sum(targets, axis=-1) == 0
    losses = without_gradient(losses, is_marked & ~jnp.all(is_marked))
    return jnp.where(jnp.all(is_marked), jnp.inf, losses)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loop, "make_mesh", functools.partial(make_mesh, jax.devices()[:1]))
    patch.setattr(train_step, "example_losses", losses_of)
    share_steps(patch)
    yield


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
    schedule=Schedule(train_steps=10, log_every_steps=7, checkpoint_every_steps=4),
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
  """Returns a function that makes the "loss" or the "gradient" of chosen steps bad.

  One program does both: all images of a step, or the first one, have no label.
  """
  put_batch = loop.put_batch

  def inject(kind, steps):
    def marked(batch, mesh):
      if int(batch["position"][0]) // BATCH_SIZE + 1 in steps:
        labels = batch["labels"].copy()
        labels[: None if kind == "loss" else 1] = -1
        batch = {**batch, "labels": labels}
      return put_batch(batch, mesh)

    monkeypatch.setattr(loop, "put_batch", marked)

  return inject


def events(records):
  return [(r["step"], r["text"]) for r in records if r["kind"] == "event"]


def with_faults(experiment, **changes):
  return dataclasses.replace(experiment, faults=Faults(**changes))


def test_bad_losses_are_skipped_and_bad_gradients_leave_what_skipping_leaves(
  experiment, fault, tmp_path
):
  fault("loss", {2, 7})
  records = loop.train(experiment, str(tmp_path / "skipped"))
  assert events(records) == [
    (2, "step 2 was skipped: loss inf"),
    (7, "step 7 was skipped: loss inf"),
  ]
  trained = [r for r in records if r["kind"] == "train"]
  assert [(r["step"], r["skipped_steps"]) for r in trained] == [(4, 1), (7, 2), (8, 2), (10, 2)]
  assert all(np.isfinite(r["loss"]) for r in trained)

  fault("gradient", {2, 7})
  records = loop.train(experiment, str(tmp_path / "rolled back"))
  # From the beginning, since step 2 comes before the first checkpoint; later from step 4.
  assert events(records) == [
    (0, f"the gradient of step 2 {ROLLED_BACK} 0, leaving out the batches of steps 2 to 2"),
    (4, f"the gradient of step 7 {ROLLED_BACK} 4, leaving out the batches of steps 7 to 7"),
  ]
  assert final_sha256(tmp_path / "rolled back") == final_sha256(tmp_path / "skipped")
  found = audit(str(tmp_path / "rolled back"))
  assert (found.steps, found.starts, found.left_out) == (10, 3, 2 * BATCH_SIZE)

  # The second roll-back is one too many.
  with pytest.raises(UserError, match=r"step 7 is not finite, after faults\.roll_backs_max=1 ear"):
    loop.train(with_faults(experiment, roll_backs_max=1), str(tmp_path / "stopped"))


def test_the_advice_to_a_run_that_has_diverged_can_be_followed(experiment, fault, tmp_path):
  fault("loss", {6, 7})
  strict = with_faults(experiment, skipped_in_a_row_max=2)
  workdir = str(tmp_path)
  with pytest.raises(UserError, match="newest checkpoint is of step 4; to go on") as error:
    loop.train(strict, workdir, accepted_changes=())
  overrides, accepted = split_arguments(str(error.value).partition("again with ")[2])
  # The loss is no longer bad at the lower rate.
  fault("loss", set())
  lower = override(strict, overrides)
  assert lower.optimizer.peak_learning_rate == 0.05
  with pytest.raises(UserError, match=r"rate was 0\.1 and is now 0\.05; resume it with") as error:
    loop.train(lower, workdir, accepted_changes=())
  assert split_arguments(str(error.value))[1] == accepted
  records = loop.train(lower, workdir, accepted_changes=accepted)
  assert records[-1]["step"] == 10
  changed = "resumed after step 4 with optimizer.peak_learning_rate=0.05 instead of 0.1"
  assert (4, changed) in events(records)
  metadata = read_metadata(tmp_path / "checkpoints" / "10")
  assert metadata["experiment"]["optimizer"]["peak_learning_rate"] == 0.05
  assert metadata["changes"] == [
    {"step": 4, "field": "optimizer.peak_learning_rate", "from": 0.1, "to": 0.05}
  ]
  # From now on this is the experiment of the workdir.
  loop.train(lower, workdir, accepted_changes=())
  with pytest.raises(UserError, match=r"rate was 0\.05 and is now 0\.1"):
    loop.train(strict, workdir, accepted_changes=())


def test_advice_before_the_first_checkpoint_can_be_followed(experiment, fault, tmp_path):
  fault("loss", {2})
  strict = with_faults(experiment, skipped_in_a_row_max=1)
  with pytest.raises(UserError, match="before the first checkpoint; run the same") as error:
    loop.train(strict, str(tmp_path))
  fault("loss", set())
  overrides, _ = split_arguments(str(error.value).partition("again with ")[2])
  assert loop.train(override(strict, overrides), str(tmp_path))[-1]["step"] == 10


def split_arguments(text):
  """The fields that the arguments in a message set, and those whose change they accept."""
  words = shlex.split(text)
  accepted = [word for word in words if word.startswith("--accept_changes=")]
  fields = accepted[-1].partition("=")[2].split(",") if accepted else []
  return [word for word in words if word.startswith("--config.")], fields


def test_batches_left_out_after_a_roll_back_stay_so_when_the_run_is_resumed(
  experiment, fault, tmp_path
):
  fault("loss", {6, 7})
  careful = with_faults(experiment, then="roll_back", skipped_in_a_row_max=2, roll_back_steps=1)
  records = loop.train(careful, str(tmp_path))
  ((step, text),) = events(records)
  assert step == 4
  assert text.startswith("2 steps in a row were skipped, from step 6 (loss inf) to 7 (loss inf)")
  assert text.endswith("rolled back to step 4, leaving out the batches of steps 5 to 7")
  assert audit(str(tmp_path)).left_out == 3 * BATCH_SIZE
  expected = final_sha256(tmp_path)
  with Checkpoints(str(tmp_path), keep=2) as checkpoints:
    assert checkpoints.all_steps()[-1] == 10
    checkpoints.delete_after(8)
  # Nothing is wrong any more, yet the steps before step 8 are not done again.
  fault("loss", set())
  loop.train(careful, str(tmp_path))
  assert final_sha256(tmp_path) == expected
  with Checkpoints(str(tmp_path), keep=2) as checkpoints:
    checkpoints.delete_after(0)
  # From the beginning, where nothing was left out yet.
  loop.train(careful, str(tmp_path))
  assert final_sha256(tmp_path) != expected


def test_nothing_that_is_not_finite_is_saved(experiment, fault, tmp_path):
  # The program that other tests have compiled.
  fault("loss", set())

  def broken():
    parameters = initial_parameters(make_model(experiment), 0)
    parameters["classifier"]["bias"][0] = np.nan
    return parameters

  message = "the state after step 4 is not finite and was not saved"
  with pytest.raises(UserError, match=message):
    loop.train(experiment, str(tmp_path), initial=broken)
  with Checkpoints(str(tmp_path), keep=2) as checkpoints:
    assert checkpoints.all_steps() == []
  last = read_metrics(tmp_path)[-1]
  assert (last["step"], last["kind"], last["fault"]) == (4, "event", DIVERGED)
  assert last["text"].startswith(message)

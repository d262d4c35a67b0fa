import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nfnet.errors import UserError
from nfnet.images.normalization import normalize
from nfnet.initialization import initial_parameters
from nfnet.model import apply
from tests.train.step.training import (
  BATCH,
  EXPERIMENT,
  assert_close,
  assert_same_training,
  make_batch,
  norm,
  run,
  training,
  with_shards,
)
from train.config.experiment import Sharpness
from train.step.gradients.sharpness_aware import ascend, ascent_image_count, split_in_groups
from train.step.losses import example_losses, targets_from_labels
from train.step.sharding.batch import check_train_batch
from train.step.sharding.mesh import make_mesh

STEPS = 20
SHARPNESS = Sharpness(radius=0.05, group_images=2, ascent_share=0.5)


def sharp(*, shards=1, accumulation=1, **changes):
  return dataclasses.replace(
    with_shards(EXPERIMENT, shards),
    sharpness=dataclasses.replace(SHARPNESS, **changes),
    optimizer=dataclasses.replace(EXPERIMENT.optimizer, gradient_accumulation=accumulation),
  )


pytestmark = pytest.mark.usefixtures("small_networks")


def step_by_hand(trained):
  """Parameters after one step of the papers' formula, without any of the loop's machinery.

  And the loss of the groups together, there and without a perturbation.
  """
  experiment = trained.experiment
  parameters = jax.tree.map(jnp.asarray, initial_parameters(trained.model, experiment.seed))
  batch, sharpness = jax.tree.map(jnp.asarray, make_batch()), experiment.sharpness
  step_key = jax.random.fold_in(jax.random.key(experiment.seed), 0)

  def loss_sum(parameters, members, counted):
    keys = jnp.stack([jax.random.fold_in(step_key, i) for i in members])
    logits = apply(trained.model, parameters, normalize(batch["image"][members]), keys=keys)
    targets = targets_from_labels(batch["labels"][members], 10)
    losses = example_losses(experiment.loss, logits, targets)
    return jnp.sum(losses * batch["weight"][members] * counted) / (BATCH - 1)

  differentiate = jax.jit(jax.value_and_grad(loss_sum))
  groups, everything = BATCH // sharpness.group_images, np.ones(sharpness.group_images, np.float32)
  total, loss, plain_loss = jax.tree.map(jnp.zeros_like, parameters), 0.0, 0.0
  for group in range(groups):
    members = np.arange(group, BATCH, groups)
    # The others count nothing: of fewer images, it would be another program to compile.
    ascending = np.arange(len(members)) < len(members) * sharpness.ascent_share
    _, up = differentiate(parameters, members, ascending.astype(np.float32))
    length = norm(jax.device_get(up))
    worst = jax.tree.map(lambda p, g, n=length: p + sharpness.radius * g / n, parameters, up)
    group_loss, gradients = differentiate(worst, members, everything)
    total, loss = jax.tree.map(jnp.add, total, gradients), loss + group_loss
    plain_loss += differentiate(parameters, members, everything)[0]
  optimizer = trained.optimizer
  new = jax.jit(optimizer.step)(total, optimizer.init(parameters), parameters, parameters)
  return new.parameters, float(loss), float(plain_loss)


def test_a_step_is_that_of_the_papers_formula():
  """Dropout and stochastic depth have the same keys before and after the ascent."""
  # The schedule's first learning rate would be 0.
  trained = training(sharp(group_images=4), learning_rate=0.1)
  state, (metrics,) = trained.run(1)
  parameters, loss, plain_loss = step_by_hand(trained)
  assert_close(state.parameters, jax.device_get(parameters))
  assert metrics["loss"] == pytest.approx(loss, rel=1e-6)
  # The perturbation is not a rounding error.
  assert loss > plain_loss + 1e-3


@pytest.mark.slow
def test_twenty_steps_on_two_replicas_of_four_shards_are_those_of_one_device():
  # A group on each device in two parts, and eight groups on one device.
  spread = run(sharp(shards=4, accumulation=2), devices=8, steps=STEPS)
  assert_same_training(spread, run(sharp(), steps=STEPS))


def test_a_perturbation_is_of_its_length_whatever_the_gradients_scale():
  generator = np.random.default_rng(0)
  parameters, gradients = (
    {"a": jnp.asarray(generator.standard_normal((3, 4)), jnp.float32), "b": jnp.float32(x)}
    for x in (1.0, -2.0)
  )
  for scale in (1.0, 1e-12, 1e-36, 1e36):
    scaled = jax.tree.map(lambda g, s=scale: s * g, gradients)
    moved = jax.tree.map(np.subtract, ascend(parameters, scaled, 0.3), parameters)
    assert norm(moved) == pytest.approx(0.3, rel=1e-5)
    assert moved["b"] < 0
  unmoved = ascend(parameters, jax.tree.map(jnp.zeros_like, gradients), 0.3)
  jax.tree.map(np.testing.assert_array_equal, unmoved, parameters)


def test_groups_are_positions_modulo_their_number():
  # What the second of two devices has of 16 examples in groups of 4: its are the odd positions.
  positions = jnp.arange(1, 16, 2)
  groups = split_in_groups({"position": positions}, 2)["position"]
  np.testing.assert_array_equal(groups, [[1, 5, 9, 13], [3, 7, 11, 15]])


def test_the_ascent_is_from_a_share_and_from_one_image_at_least():
  assert [ascent_image_count(size, 0.2) for size in (1, 4, 16, 64)] == [1, 1, 3, 13]
  assert ascent_image_count(16, 1.0) == 16


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (dict(group_images=4), "group_images=4 does not divide the 2 examples that each of 8 devices"),
    (dict(group_images=3), "group_images=3 does not divide"),
  ],
)
def test_a_group_that_a_device_has_a_part_of_is_refused(changes, message):
  with pytest.raises(UserError, match=message):
    check_train_batch(sharp(**changes), make_mesh())


def test_parts_that_cut_groups_unevenly_are_refused():
  experiment = dataclasses.replace(
    sharp(group_images=4, accumulation=2),
    data=dataclasses.replace(EXPERIMENT.data, batch_size=8 * 12),
  )
  with pytest.raises(UserError, match="each of 8 devices has 3 groups"):
    check_train_batch(experiment, make_mesh())

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nfnet.errors import UserError
from train.config.experiment import Data, Experiment, Loss, Mixing, Schedule
from train.step.losses import example_losses, targets_from_labels
from train.step.mixing import mix, mixed_targets
from train.step.sharding.batch import check_train_batch
from train.step.sharding.mesh import make_mesh

BOTH = Mixing(mixup_alpha=0.2, cutmix=True)
SIDE = (12, 20)


def batch_of(images, *, weight=None, seed=0):
  """Every pixel of an image has its own value, and no two images have the same anywhere."""
  generator = np.random.default_rng(seed)
  values = np.stack([generator.permutation(240) for _ in range(images * 3)])
  pixels = values.reshape(images, 3, *SIDE).transpose(0, 2, 3, 1).astype(np.uint8)
  return {
    "image": jnp.asarray(pixels),
    "labels": jnp.arange(images, dtype=jnp.int32)[:, None],
    "weight": jnp.ones(images) if weight is None else jnp.asarray(weight, jnp.float32),
    "position": jnp.arange(images, dtype=jnp.int32),
  }


def keys_of(positions, seed=7):
  return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(positions)


def mixed(batch, mixing=BOTH):
  return jax.jit(mix, static_argnums=2)(batch, keys_of(batch["position"]), mixing)


PARTNERS = np.array([4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11])


def test_images_and_targets_are_mixed_in_the_same_proportion():
  batch = batch_of(16)
  found = mixed(batch)
  np.testing.assert_array_equal(found["partner_labels"][:, 0], PARTNERS)
  own = np.asarray(batch["image"], np.float32)
  other = own[PARTNERS]
  share = np.asarray(found["partner_share"])
  assert ((share >= 0) & (share <= 1)).all()
  # One half by MixUp,
  averaged = own + share[:, None, None, None] * (other - own)
  np.testing.assert_allclose(found["image"][:8], averaged[:8], atol=0.501)
  # the other by CutMix.
  for image, first, second, area in zip(
    found["image"][8:], own[8:], other[8:], share[8:], strict=True
  ):
    is_first = (np.asarray(image) == first).all(-1)
    is_second = (np.asarray(image) == second).all(-1)
    np.testing.assert_array_equal(is_first, ~is_second)
    np.testing.assert_allclose(is_second.mean(), area, atol=1e-6)
    rows, columns = np.nonzero(is_second.any(1))[0], np.nonzero(is_second.any(0))[0]
    if len(rows):
      box = is_second[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
      assert box.all()
      # Twice the same half, where no border cuts it off.
      for found_at, length in ((rows, SIDE[0]), (columns, SIDE[1])):
        if found_at[0] > 0 and found_at[-1] < length - 1:
          assert len(found_at) % 2 == 0


@pytest.mark.parametrize("mixing", [Mixing(mixup_alpha=0.2), Mixing(cutmix=True)], ids=str)
def test_one_alone_mixes_the_whole_batch(mixing):
  batch = batch_of(16)
  found, both = mixed(batch, mixing), mixed(batch)
  half = slice(0, 8) if mixing.mixup_alpha else slice(8, 16)
  np.testing.assert_array_equal(found["image"][half], both["image"][half])
  assert (np.asarray(found["partner_share"]) > 0).sum() >= 12
  # Whole numbers of pixels, or not.
  pixels = np.asarray(found["partner_share"]) * SIDE[0] * SIDE[1]
  assert np.allclose(pixels, np.round(pixels), atol=1e-3) == mixing.cutmix


def test_an_image_that_does_not_count_is_mixed_into_no_other():
  weight = np.ones(16)
  weight[[4, 9]] = 0
  batch = batch_of(16, weight=weight)
  found = mixed(batch)
  for index in (0, 13):
    np.testing.assert_array_equal(found["image"][index], batch["image"][index])
    assert found["partner_share"][index] == 0
  np.testing.assert_array_equal(found["weight"], weight)


@pytest.mark.parametrize("devices", [2, 4])
def test_the_number_of_devices_changes_nothing(devices):
  whole = mixed(batch_of(16))
  for device in range(devices):
    part = jax.tree.map(lambda x, first=device: x[first::devices], batch_of(16))
    own = mixed(part)
    np.testing.assert_array_equal(own["image"], whole["image"][device::devices])
    np.testing.assert_array_equal(own["partner_share"], whole["partner_share"][device::devices])
    np.testing.assert_array_equal(own["partner_labels"], whole["partner_labels"][device::devices])


def test_shares_have_the_distributions_of_the_papers():
  batch = jax.tree.map(lambda x: jnp.repeat(x[:1], 8000, axis=0), batch_of(1))
  batch["position"] = jnp.arange(8000)
  share = np.asarray(mixed(batch)["partner_share"])
  mixup, cutmix = share[:4000], share[4000:]
  # Beta(0.2, 0.2): mean 1/2, variance 1/5.6. Four standard errors each.
  assert mixup.mean() == pytest.approx(0.5, abs=0.027)
  assert mixup.var() == pytest.approx(1 / 5.6, abs=0.01)
  # A square of side s = sqrt(u), u uniform, at a center uniform in the image: of each side
  # s * (1 - s / 4) lies inside, so of the area u * (1 - s / 4)^2, whose mean is 0.321. Whole pixels
  # take 5 % off sides of 12.
  assert cutmix.mean() == pytest.approx(0.3, abs=0.025)
  assert cutmix.max() > 0.7
  assert cutmix.min() < 0.01


def test_another_step_is_mixed_otherwise_and_unlike_the_network_draws():
  batch = batch_of(16)
  one, other = (mix(batch, keys_of(batch["position"], seed), BOTH) for seed in (1, 2))
  assert (one["partner_share"] != other["partner_share"]).all()
  # Dropout draws from the same keys: what it draws must not say how an image was mixed.
  keys = keys_of(batch["position"], 1)
  betas = jax.vmap(lambda key: jax.random.beta(key, 0.2, 0.2))(keys)
  assert (np.abs(betas[:8] - one["partner_share"][:8]) > 1e-3).all()


def test_the_loss_is_that_of_both_classes_in_their_shares():
  logits = jax.random.normal(jax.random.key(0), (4, 5))
  own, partner = (jnp.array(labels)[:, None] for labels in ([0, 1, 2, 3], [4, 3, 2, 0]))
  first, second = (targets_from_labels(labels, 5) for labels in (own, partner))
  share = jnp.array([0.0, 0.25, 0.5, 1.0])
  batch = {"labels": own, "partner_labels": partner, "partner_share": share}
  np.testing.assert_array_equal(mixed_targets({"labels": own}, 5), first)
  for loss in (Loss(label_smoothing=0.1), Loss(kind="sigmoid")):
    found = example_losses(loss, logits, mixed_targets(batch, 5))
    one, other = (example_losses(loss, logits, targets) for targets in (first, second))
    expected = (1 - share) * one + share * other
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_quarters_must_be_whole():
  mesh = make_mesh()
  images = 2 * mesh.size
  experiment = Experiment(
    name="x", data=Data(batch_size=images), mixing=BOTH, schedule=Schedule(train_steps=1)
  )
  with pytest.raises(
    UserError, match=rf"^data.batch_size={images} gives each .* 2 images; MixUp .* multiple of 32$"
  ):
    check_train_batch(experiment, mesh)

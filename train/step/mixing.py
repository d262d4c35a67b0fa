"""MixUp and CutMix: mixes images of a batch with each other, inside the jitted step.

MixUp (Zhang et al., https://arxiv.org/abs/1710.09412) averages two images, CutMix (Yun et al.,
https://arxiv.org/abs/1905.04899) pastes a rectangle of the other image; the targets are mixed in
the same proportion. With both, one half of the batch is mixed by MixUp and the other by CutMix
(paper B, appendix A).

The image at position p of a batch of B is mixed with its partner a quarter of the batch away, that
is, p + B/4 in the first and third quarter and p - B/4 in the others. If each of n devices has every
n-th example, both images are on the same device, whatever n is. All draws depend only on the
example's own key, so the result does not depend on the number of devices either.

The code released with paper B reads twice as many images and uses each once; here every image is
used twice, in two mixtures that are drawn separately.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt8

from train.config.experiment import Mixing
from train.step.losses import targets_from_labels

IMAGES_MULTIPLE = 4
"""Required divisor of the number of images on each device: two halves, each made of pairs."""

_MIXING_KEY = 0x6D6978
"""Number folded into the keys, so that these draws are independent of the network's."""


def mix(batch: Mapping[str, Any], keys: Key[Array, " n"], mixing: Mixing) -> dict[str, Any]:
  """Mixes the images of a device. An image of weight 0 is mixed into no other.

  Args:
    batch: image, labels and weight, as `train.step.sharding.batch.put_batch` distributes them.
    keys: one key for each example.
    mixing: MixUp, CutMix or both.

  Returns:
    The batch with the mixed images (uint8, rounded), and for `mixed_targets` "partner_labels" and
    "partner_share" (float32 [n], the partner's share in each image).
  """
  images, labels, weight = batch["image"], batch["labels"], batch["weight"]
  keys = jax.vmap(lambda key: jax.random.fold_in(key, _MIXING_KEY))(keys)
  partner_images, partner_labels, partner_weight = jax.tree.map(
    _of_partners, (images, labels, weight)
  )
  masks = _masks(keys, images.shape[1:3], mixing) * partner_weight[:, None, None]
  mixed = _blend(images, partner_images, masks)
  return {
    **batch,
    "image": mixed,
    "partner_labels": partner_labels,
    "partner_share": jnp.mean(masks, axis=(1, 2)),
  }


def mixed_targets(batch: Mapping[str, Any], num_classes: int) -> Float[Array, "n classes"]:
  """Returns a batch's targets; those of mixed images are (1 - share) * own + share * partner's.

  Args:
    batch: batch from `mix`, or one that was not mixed.
    num_classes: width of the classifier.
  """
  targets = targets_from_labels(batch["labels"], num_classes)
  if "partner_labels" not in batch:
    return targets
  partner_targets = targets_from_labels(batch["partner_labels"], num_classes)
  return targets + batch["partner_share"][:, None] * (partner_targets - targets)


def _of_partners(x: Array) -> Array:
  """Exchanges quarters 0 and 1, and quarters 2 and 3."""
  quarters = jnp.reshape(x, (2, 2, x.shape[0] // IMAGES_MULTIPLE, *x.shape[1:]))
  return jnp.reshape(quarters[:, ::-1], x.shape)


def _masks(
  keys: Key[Array, " n"], shape: tuple[int, int], mixing: Mixing
) -> Float[Array, "n height width"]:
  """Draws the partner's share of each pixel."""
  alpha = mixing.mixup_alpha
  mixup = jax.vmap(lambda key: jnp.full(shape, jax.random.beta(key, alpha, alpha), jnp.float32))
  cutmix = jax.vmap(lambda key: _rectangle(key, shape))
  if alpha is None:
    return cutmix(keys)
  if not mixing.cutmix:
    return mixup(keys)
  half = keys.shape[0] // 2
  return jnp.concatenate([mixup(keys[:half]), cutmix(keys[half:])])


def _rectangle(key: Key[Array, ""], shape: tuple[int, int]) -> Float[Array, "height width"]:
  """Draws a mask that is 1 in a random rectangle and 0 elsewhere.

  The rectangle's area, as a share of the image, is uniform in [0, 1]; what lies beyond the border
  is then cut off.
  """
  share_key, *center_keys = jax.random.split(key, 3)
  side_share = jnp.sqrt(jax.random.uniform(share_key))
  inside = []
  for length, center_key in zip(shape, center_keys, strict=True):
    center = jax.random.randint(center_key, (), 0, length)
    half = jnp.floor(side_share * length).astype(jnp.int32) // 2
    distance = jnp.arange(length) - center
    inside.append((distance >= -half) & (distance < half))
  rows, columns = inside
  return (rows[:, None] & columns[None, :]).astype(jnp.float32)


def _blend(
  images: UInt8[Array, "n height width 3"],
  partners: UInt8[Array, "n height width 3"],
  masks: Float[Array, "n height width"],
) -> UInt8[Array, "n height width 3"]:
  """Mixes each pixel with the partner's pixel, in float32, and rounds the result."""
  own, other = images.astype(jnp.float32), partners.astype(jnp.float32)
  return jnp.round(own + masks[..., None] * (other - own)).astype(jnp.uint8)

"""Draws stochastic depth and dropout, both from one key for each example.

Results therefore depend neither on how a batch is spread over devices nor on how blocks are run.
Paper B, section 4.1 and table 1; as in the released code, kept branches are not rescaled.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

# Numbers that are folded into an example's key, so that the two draws are independent.
_STOCHASTIC_DEPTH, _DROPOUT = 0, 1


def draw_kept_branches(
  keys: Key[Array, " n"], drop_rates: Sequence[float]
) -> Float[Array, "blocks n"]:
  """Decides which residual branches are kept.

  Args:
    keys: one key for each example.
    drop_rates: probability with which each block's branch is dropped.

  Returns:
    float32, 0 where a block's branch is dropped for an example, otherwise 1.
  """
  draw = jax.vmap(
    lambda key: jax.random.uniform(jax.random.fold_in(key, _STOCHASTIC_DEPTH), len(drop_rates))
  )
  rates = jnp.asarray(drop_rates, jnp.float32)[None, :]
  return jnp.transpose((draw(keys) >= rates).astype(jnp.float32))


def dropout(
  features: Float[Array, "n c"], keys: Key[Array, " n"], rate: float
) -> Float[Array, "n c"]:
  """Zeroes each feature with probability `rate` and divides the others by 1 - `rate`."""
  draw = jax.vmap(
    lambda key: jax.random.bernoulli(
      jax.random.fold_in(key, _DROPOUT), 1 - rate, features.shape[1:]
    )
  )
  return jnp.where(draw(keys), features / (1 - rate), 0.0)

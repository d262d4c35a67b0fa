import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nfnet.stochastic_depth import draw_kept_branches, dropout

NUM_DRAWS = 4000
DROP_RATES = [0.6 * i / 6 for i in range(6)]


@pytest.fixture(scope="module")
def keys():
  return jax.random.split(jax.random.key(0), NUM_DRAWS)


@pytest.fixture(scope="module")
def keep(keys):
  return np.asarray(draw_kept_branches(keys, DROP_RATES))


def test_each_block_drops_at_its_rate_and_independently(keep):
  assert keep.shape == (6, NUM_DRAWS)
  assert keep.dtype == np.float32
  assert set(np.unique(keep)) == {0.0, 1.0}
  # Four standard deviations of a mean of Bernoulli draws.
  assert np.abs(np.mean(keep, axis=1) - 1 + DROP_RATES).max() < 4 * 0.5 / np.sqrt(NUM_DRAWS)
  correlation = np.corrcoef(keep[1:])
  assert np.abs(correlation - np.eye(5)).max() < 4.5 / np.sqrt(NUM_DRAWS)


def test_dropout_drops_its_share_and_keeps_the_mean():
  features = jnp.ones((64, 1000), jnp.float32)
  dropped = dropout(features, jax.random.split(jax.random.key(0), 64), 0.25)
  assert np.unique(dropped).tolist() == pytest.approx([0, 1 / 0.75])
  assert np.mean(dropped == 0) == pytest.approx(0.25, abs=0.01)
  assert len(np.unique(dropped, axis=0)) == 64


def test_dropout_and_stochastic_depth_draw_independently(keys, keep):
  """Equal keys would give equal numbers at equal places of arrays of equal shape."""
  last_feature = np.asarray(dropout(jnp.ones((NUM_DRAWS, 6)), keys, 0.5))[:, -1]
  assert abs(np.corrcoef(keep[-1], last_feature)[0, 1]) < 4 / np.sqrt(NUM_DRAWS)

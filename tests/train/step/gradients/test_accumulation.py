"""Gradients that are added up part by part."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from train.step.gradients.accumulation import accumulate
from train.step.sharding.mesh import DATA_AXES, make_mesh

PARTS = 512


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_parts_are_summed_in_float32_and_rounded_once(dtype):
  """In bfloat16, adding 1 to 256 gives 256."""

  def of_part(parameters, batch, keys, share):
    del keys
    gradients = jax.tree.map(lambda x: jnp.mean(batch).astype(x.dtype) * x, parameters)
    return (share * jnp.sum(batch), share), gradients

  @functools.partial(
    jax.shard_map, mesh=make_mesh(jax.devices()[:1]), in_specs=P(DATA_AXES), out_specs=P(DATA_AXES)
  )
  def sums(batch):
    varying = functools.partial(jax.lax.pcast, axis_name=DATA_AXES, to="varying")
    parameters = {"weight": varying(jnp.ones(3, dtype))}
    share = varying(jnp.float32(1))
    (loss, _), gradients = accumulate(of_part, PARTS)(parameters, batch, batch, share)
    return loss[None], gradients

  loss, gradients = jax.jit(sums)(np.ones(PARTS, np.float32))
  assert loss == PARTS
  assert gradients["weight"].dtype == dtype
  np.testing.assert_array_equal(gradients["weight"].astype(jnp.float32), PARTS)

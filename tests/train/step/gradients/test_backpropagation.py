"""Gradients that are taken segment by segment."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from nfnet.initialization import initial_parameters
from nfnet.model import apply
from tests.train.step.training import EXPERIMENT, with_model
from train.step.gradients.backpropagation import backpropagate
from train.step.model import make_model
from train.step.sharding.mesh import DATA_AXES, make_mesh
from train.step.sharding.parameters import gather, parameter_specs, put_parameters, start_sums

pytestmark = pytest.mark.usefixtures("small_networks")

IMAGES, CLASSES = 8, EXPERIMENT.data.num_classes


def operands():
  generator = np.random.default_rng(0)
  images = generator.standard_normal((IMAGES, 16, 16, 3)).astype(np.float32)
  return images, jax.random.split(jax.random.key(0), IMAGES)


def losses(logits):
  weights = jnp.cos(jnp.arange(CLASSES, dtype=jnp.float32))
  return jnp.sum(jnp.square(logits) * weights[None]), jnp.max(logits)


@pytest.mark.parametrize("block_execution", ["unrolled", "scan"])
def test_gradients_are_those_of_the_whole_network(block_execution):
  model = make_model(with_model(EXPERIMENT, block_execution=block_execution))
  parameters = put_parameters(
    model, initial_parameters(model, seed=0), make_mesh(jax.devices()[:1])
  )
  images, keys = operands()

  @jax.jit
  def both(parameters, images, keys):
    whole = jax.value_and_grad(
      lambda parameters: losses(apply(model, parameters, images, keys=keys)), has_aux=True
    )
    *ours, rings = backpropagate(model, parameters, images, keys, losses, lambda gradients: ())
    assert not rings
    return tuple(ours), whole(parameters)

  ours, expected = both(parameters, images, keys)
  assert jax.tree.structure(ours) == jax.tree.structure(expected)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours, expected)


def test_sums_travel_while_earlier_segments_compute():
  model = make_model(EXPERIMENT)
  mesh = make_mesh(parameter_shards=4)
  specs = parameter_specs(model, mesh)
  parameters = put_parameters(model, initial_parameters(model, seed=0), mesh)
  images, keys = operands()
  left = {}

  def of_device(parameters, images, keys):
    whole = gather(parameters, specs, jnp.dtype("float32"))

    def start(gradients):
      return start_sums(gradients, specs, jnp.dtype("float32"), "reference")

    values, _, rings = backpropagate(model, whole, images, keys, losses, start)
    left.update({piece.name: 3 - ring.hops for ring in rings for piece in ring.pieces})
    return values[0][None]

  step = jax.shard_map(
    of_device, mesh=mesh, in_specs=(specs, P(DATA_AXES), P(DATA_AXES)), out_specs=P(DATA_AXES)
  )
  text = str(jax.make_jaxpr(step)(parameters, images, keys))
  segments = len(model.runs) + 2
  # A sum makes a hop beside each segment that comes later in the backward pass.
  for name, hops in left.items():
    part, _, rest = name.partition("/")
    position = {"stem": 0, "blocks": 1}.get(part, segments - 1)
    position += int(rest.split("/")[0]) if part == "blocks" else 0
    assert hops == max(0, 3 - position), name
  # Each segment but the last one has hops that are tied to its result.
  assert text.count("optimization_barrier") == segments - 1

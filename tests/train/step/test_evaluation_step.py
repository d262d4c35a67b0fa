import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nfnet.images.normalization import normalize
from nfnet.initialization import initial_parameters
from nfnet.model import pooled_features
from tests.train.step.training import BATCH, EXPERIMENT, assert_close, make_batch
from train.step.evaluation_step import make_evaluation_step, make_feature_step
from train.step.model import make_model
from train.step.sharding.batch import put_batch
from train.step.sharding.mesh import make_mesh
from train.step.sharding.parameters import put_parameters

pytestmark = pytest.mark.usefixtures("small_networks")


def test_evaluation_sums_over_real_examples_without_smoothing():
  mesh = make_mesh(jax.devices()[:4])
  model = make_model(EXPERIMENT)
  parameters = initial_parameters(model, 0)
  parameters["classifier"]["weight"] *= 0
  step = jax.jit(make_evaluation_step(model, EXPERIMENT.loss, mesh))
  batch = put_batch(make_batch(), mesh)
  sums = step(put_parameters(model, parameters, mesh), batch)
  assert float(sums["examples"]) == BATCH - 1
  np.testing.assert_allclose(sums["loss"], (BATCH - 1) * np.log(10), rtol=1e-5)
  # All logits are equal: the first classes win.
  labels = make_batch()["labels"][np.arange(BATCH) != 3, 0]
  assert float(sums["top1"]) == np.sum(labels == 0)
  assert float(sums["top5"]) == np.sum(labels < 5)
  np.testing.assert_array_equal(sums["class_examples"], np.bincount(labels, minlength=10))
  assert {leaf.dtype for leaf in jax.tree.leaves(sums)} == {jnp.dtype(jnp.float32)}


def test_features_of_a_batch_are_those_of_its_images_in_the_order_of_the_devices():
  mesh = make_mesh(jax.devices()[:2], parameter_shards=2)
  model = make_model(EXPERIMENT)
  parameters = jax.tree.map(jnp.asarray, initial_parameters(model, 0))
  step = jax.jit(make_feature_step(model, mesh))
  batch = put_batch(make_batch(), mesh)
  features = step(put_parameters(model, parameters, mesh), batch)
  expected = jax.jit(lambda images: pooled_features(model, parameters, normalize(images)))(
    make_batch()["image"]
  )
  in_order = np.asarray(expected)[np.asarray(batch["position"])]
  assert_close(np.asarray(features), in_order)

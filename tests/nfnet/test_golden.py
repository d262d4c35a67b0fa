"""Compares with outputs of the released code for weights that `golden/values.py` makes."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kernels
from nfnet.model import NFNet, apply
from nfnet.weights.haiku import from_haiku
from nfnet.weights.haiku_and_timm_names import parameter_names
from nfnet.weights.network_matching import parameter_at
from tests.nfnet.golden import values

FOLDER = pathlib.Path(__file__).parent / "golden"
EXPERIMENTS = {
  "haiku_F0_64px": ("F0", "paper", 64),
  "haiku_F0plus_rounded_64px": ("F0+", "released", 64),
  "haiku_F1_96px": ("F1", "paper", 96),
}
NUM_CLASSES = 1000
LABEL_SMOOTHING = 0.1
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, CLIPPING = 0.1, 0.9, 2e-5, 0.01


class Golden:
  """Holds the quantities of one file, and the same from this project."""

  def __init__(self, name):
    variant, bottleneck, pixels = EXPERIMENTS[name]
    with np.load(FOLDER / f"{name}.npz") as file:
      self.expected = dict(file)
    tree = {}
    for key, shape in zip(self.expected["keys"], self.expected["shapes"], strict=True):
      module, leaf = str(key).rsplit("/", 1)
      tree.setdefault(module, {})[leaf] = values.value(str(key), tuple(json.loads(shape)))
    weights = from_haiku(tree, variant)
    assert (weights.bottleneck, weights.num_classes) == (bottleneck, NUM_CLASSES)
    self.parameters = jax.tree.map(jnp.asarray, weights.parameters)
    row_of_key = {str(key): row for row, key in enumerate(self.expected["keys"])}
    self.rows = {
      name.path: row_of_key[f"{name.haiku_module}/{name.haiku_leaf}"]
      for name in parameter_names(variant)
    }
    model = NFNet(variant, NUM_CLASSES, bottleneck=bottleneck)
    images = jnp.asarray(values.images(2, pixels))
    one_hot = jax.nn.one_hot(values.labels(2, NUM_CLASSES), NUM_CLASSES)
    targets = (1 - LABEL_SMOOTHING) * one_hot + LABEL_SMOOTHING / NUM_CLASSES

    def loss_and_logits(parameters):
      logits = apply(model, parameters, images)
      return -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(logits), axis=-1)), logits

    # It runs three times on 70 million parameters, for longer than this takes to compile.
    self.loss_and_gradients = jax.jit(
      jax.value_and_grad(loss_and_logits, has_aux=True),
      compiler_options={"xla_backend_optimization_level": 1},
    )
    (self.loss, self.logits), self.gradients = self.loss_and_gradients(self.parameters)

  def in_rows(self, tree, function):
    """Returns `function` of each parameter of `tree`, in the file's order."""
    result = [None] * len(self.rows)
    for path, row in self.rows.items():
      result[row] = function(np.asarray(parameter_at(tree, path)))
    return np.array(result)


# Each takes a minute of one core, most of it for compiling.
SLOW = ("haiku_F0plus_rounded_64px", "haiku_F1_96px")


@pytest.fixture(
  scope="module",
  params=[
    pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in EXPERIMENTS
  ],
)
def golden(request):
  return Golden(request.param)


def l2_norm(array):
  return np.sqrt(np.sum(np.square(array, dtype=np.float64)))


def first_four(array):
  """The file repeats scalars."""
  return np.resize(array.ravel()[:4], 4)


def test_logits_and_loss(golden):
  # The two programs sum in different orders. float32 rounds by 6e-8; the largest difference seen
  # in logits of up to 0.9 is 6e-7. A changed epsilon or gelu moves them by 1e-3.
  np.testing.assert_allclose(golden.logits, golden.expected["logits"], rtol=0, atol=5e-6)
  np.testing.assert_allclose(golden.loss, golden.expected["loss"], rtol=1e-6)


def test_gradient_norms(golden):
  # A skip gain's gradient is one sum over all pixels and channels, whose terms nearly cancel. The
  # largest differences seen are 2e-5 for skip gains and 2e-6 for all others.
  is_scalar = golden.in_rows(golden.parameters, np.ndim) == 0
  norms = golden.in_rows(golden.gradients, l2_norm)
  expected = golden.expected["grad_l2"]
  np.testing.assert_allclose(norms[~is_scalar], expected[~is_scalar], rtol=2e-5)
  np.testing.assert_allclose(norms[is_scalar], expected[is_scalar], rtol=2e-4)


def test_the_loss_after_an_optimizer_step(golden):
  parameters, _ = stepped(
    golden.parameters, golden.gradients, jax.tree.map(jnp.zeros_like, golden.parameters)
  )
  (loss, _), _ = golden.loss_and_gradients(parameters)
  # The bound is that of three steps, below.
  np.testing.assert_allclose(loss, golden.expected["step_losses"][1], rtol=1e-5)


@pytest.mark.slow
def test_three_optimizer_steps(golden):
  parameters = golden.parameters
  buffers = jax.tree.map(jnp.zeros_like, parameters)
  losses = []
  for step in range(3):
    if step == 0:
      loss, gradients = golden.loss, golden.gradients
    else:
      (loss, _), gradients = golden.loss_and_gradients(parameters)
    losses.append(loss)
    parameters, buffers = stepped(parameters, gradients, buffers)

  # The gradients' relative error of 2e-5 reaches the parameters times the learning rate and the
  # clip: 1e-7 of each. The third loss of F0 has jumped up again, which amplifies it to 1.3e-6.
  np.testing.assert_allclose(losses, golden.expected["step_losses"], rtol=1e-5)
  np.testing.assert_allclose(
    golden.in_rows(parameters, l2_norm), golden.expected["param_l2_after"], rtol=1e-6
  )
  np.testing.assert_allclose(
    golden.in_rows(parameters, first_four), golden.expected["param_first4_after"], rtol=0, atol=1e-6
  )


# Compiled once for each shape, because one program for all parameters takes minutes to compile.
sgd_agc = jax.jit(kernels.sgd_agc_step)


def stepped(parameters, gradients, buffers):
  """Returns parameters and momentum buffers after a step."""
  pairs = jax.tree_util.tree_map_with_path(one_step, parameters, gradients, buffers)
  return jax.tree.transpose(jax.tree.structure(parameters), None, pairs)


def one_step(path, parameter, gradient, buffer):
  names = tuple(key.key for key in path)
  is_decayed = names[-1] not in ("gain", "bias", "skip_gain")
  step = sgd_agc(
    {"x": parameter},
    {"x": gradient},
    {"x": buffer},
    learning_rate=jnp.float32(LEARNING_RATE),
    momentum=jnp.float32(MOMENTUM),
    weight_decay=jnp.float32(WEIGHT_DECAY if is_decayed else 0.0),
    clipping=None if names == ("classifier", "weight") else jnp.float32(CLIPPING),
  )
  return step.parameters["x"], step.momentum_buffers["x"]

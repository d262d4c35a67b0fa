import functools
import inspect
import math

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import kernels
from nfnet import model as model_module
from nfnet.block_arrangement import arrange_blocks
from nfnet.initialization import initial_parameters
from nfnet.model import (
  NFNet,
  apply,
  bind,
  parameter_shapes,
  pooled_features,
  stage_features,
)
from tests.train.small_network import SMALL, TINY

# Most tests use this one, which compiles faster than P0 and has a block of each kind as well.
NAME = SMALL.name
# Unoptimized programs are slow: 32 px take four times as long.
PIXELS = 16
NUM_IMAGES = 4
NUM_CLASSES = 5

pytestmark = pytest.mark.usefixtures("small_networks")


def some_parameters(name):
  """Returns parameters whose skip gains are not 0, as they are initially: every branch counts."""
  rng = np.random.default_rng(0)

  def draw(path, value):
    if path[-1].key == "skip_gain":
      return jnp.float32(rng.uniform(0.5, 1.0))
    if path[-1].key == "bias":
      return jnp.asarray(0.1 * rng.standard_normal(value.shape), jnp.float32)
    return jnp.asarray(value)

  model = NFNet(name, NUM_CLASSES)
  return jax.tree_util.tree_map_with_path(draw, initial_parameters(model, seed=0))


@pytest.fixture(scope="module")
def parameters(small_networks):
  return some_parameters(NAME)


@pytest.fixture(scope="module")
def images():
  rng = np.random.default_rng(1)
  return jnp.asarray(rng.standard_normal((NUM_IMAGES, PIXELS, PIXELS, 3)), jnp.float32)


@pytest.fixture(scope="module")
def keys():
  return jax.random.split(jax.random.key(2), NUM_IMAGES)


@functools.cache
def compiled(name=NAME, **arguments):
  model = NFNet(name, NUM_CLASSES, **arguments)
  return jax.jit(lambda parameters, images, keys: apply(model, parameters, images, keys=keys))


def loss_and_gradients(name, **arguments):
  # At higher rates, a deep network drops some block for all four images; it then has no gradient.
  model = NFNet(name, NUM_CLASSES, stochastic_depth_rate=0.3, **arguments)

  def loss(parameters, images, keys):
    return jnp.sum(jnp.square(apply(model, parameters, images, keys=keys)))

  return jax.value_and_grad(loss)


@functools.cache
def compiled_gradient(name, **arguments):
  return jax.jit(loss_and_gradients(name, **arguments))


SIZES = [NAME, *(pytest.param(name, marks=pytest.mark.slow) for name in ("P0", "N0", "N1"))]


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize(
  ("block_execution", "rematerialize"),
  [
    pytest.param("scan", False, marks=pytest.mark.slow),
    ("scan", True),
    pytest.param("unrolled", True, marks=pytest.mark.slow),
  ],
)
def test_every_way_to_run_the_blocks_gives_the_same(
  name, block_execution, rematerialize, images, keys
):
  parameters = some_parameters(name)
  expected = compiled_gradient(name, block_execution="unrolled")(parameters, images, keys)
  function = compiled_gradient(name, block_execution=block_execution, rematerialize=rematerialize)
  loss, gradients = function(parameters, images, keys)
  np.testing.assert_allclose(loss, expected[0], rtol=1e-5)
  for (path, actual), wanted in zip(
    jax.tree.leaves_with_path(gradients), jax.tree.leaves(expected[1]), strict=True
  ):
    # The arithmetic is the same in other fusions. A skip gain's gradient is a sum of thousands of
    # terms that nearly cancel; all other gradients agree to rounding over some 50 layers.
    tolerance = 1e-3 if wanted.ndim == 0 else 2e-5
    atol = tolerance * np.abs(wanted).max()
    assert atol > 0
    np.testing.assert_allclose(actual, wanted, rtol=0, atol=atol, err_msg=str(path))


def test_images_that_fill_up_the_batch_for_kernels_change_nothing(images, keys):
  parameters = some_parameters(TINY.name)
  loss, gradients = compiled_gradient(TINY.name, implementation="pallas")(parameters, images, keys)
  expected_loss, expected = compiled_gradient(TINY.name)(parameters, images, keys)
  np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
  for actual, wanted in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
    # Sums over more images have another order; see above.
    tolerance = 1e-3 if wanted.ndim == 0 else 2e-5
    np.testing.assert_allclose(actual, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


def count_pads(jaxpr):
  return sum(
    (equation.primitive.name == "pad")
    + sum(map(count_pads, jax.extend.core.jaxprs_in_params(equation.params)))
    for equation in jaxpr.eqns
  )


def test_the_batch_is_filled_up_once_and_not_by_every_kernel(small_networks):
  def pads(num_images):
    arguments = (
      parameter_shapes(NFNet(TINY.name, NUM_CLASSES)),
      jax.ShapeDtypeStruct((num_images, PIXELS, PIXELS, 3), jnp.float32),
      jax.eval_shape(lambda: jax.random.split(jax.random.key(0), num_images)),
    )
    function = loss_and_gradients(TINY.name, implementation="pallas")
    return count_pads(jax.make_jaxpr(function)(*arguments).jaxpr)

  # The images and the mask of stochastic depth.
  assert pads(kernels.IMAGES_MULTIPLE - 1) - pads(kernels.IMAGES_MULTIPLE) <= 2


@pytest.mark.parametrize("block_execution", ["scan", "unrolled"])
def test_stacked_blocks_are_the_same_parameters(block_execution, parameters, images):
  model = NFNet(NAME, NUM_CLASSES, block_execution=block_execution)
  assert model.block_keys == (
    ("0", "1", "2:4") if block_execution == "scan" else ("0", "1", "2", "3")
  )
  arranged = arrange_blocks(parameters, model.block_keys)
  function = compiled(block_execution=block_execution, dropout_rate=0.0)
  np.testing.assert_array_equal(
    function(arranged, images, None), function(parameters, images, None)
  )
  if block_execution == "unrolled":
    stacked = arrange_blocks(parameters, NFNet(NAME, NUM_CLASSES).block_keys)
    with pytest.raises(ValueError, match="lack blocks/2/"):
      function(stacked, images, None)


@pytest.mark.parametrize("block_execution", ["scan", "unrolled"])
def test_shapes_do_not_depend_on_how_blocks_are_run(block_execution):
  shapes = parameter_shapes(NFNet("N1", NUM_CLASSES, block_execution=block_execution))
  assert list(shapes["blocks"]) == [str(i) for i in range(24)]
  assert shapes == parameter_shapes(NFNet("N1", NUM_CLASSES))


def traced(images, keys, **arguments):
  model = NFNet("P0", NUM_CLASSES, **arguments)
  shapes = parameter_shapes(model)
  return str(jax.make_jaxpr(lambda p, x: apply(model, p, x, keys=keys))(shapes, images))


def test_inference_ignores_stochastic_depth_and_dropout(images):
  random = {"dropout_rate": 0.9, "stochastic_depth_rate": 0.9}
  assert traced(images, None, **random) == traced(images, None, dropout_rate=0.0)


def test_training_without_rates_is_inference(images, keys):
  assert traced(images, keys, dropout_rate=0.0) == traced(images, None, dropout_rate=0.0)


def test_each_example_has_its_own_key(parameters, images, keys):
  """So the result does not depend on how the batch is spread over devices."""
  function = compiled(dropout_rate=0.5, stochastic_depth_rate=0.8)
  order = np.array([2, 0, 3, 1])
  expected = function(parameters, images, keys)[order]
  np.testing.assert_allclose(function(parameters, images[order], keys[order]), expected, rtol=1e-5)
  assert not np.allclose(function(parameters, images, keys[order])[order], expected, rtol=1e-3)


def test_equal_images_with_different_keys_differ(parameters, images, keys):
  same = jnp.broadcast_to(images[:1], images.shape)
  logits = compiled(dropout_rate=0.0, stochastic_depth_rate=0.8)(parameters, same, keys)
  assert len(np.unique(np.round(logits, 4), axis=0)) > 1


def test_a_dropped_branch_leaves_the_shortcut(parameters, images, keys):
  """Dropping makes no difference while all skip gains are 0."""
  function = compiled(dropout_rate=0.0, stochastic_depth_rate=0.8)
  without_branches = jax.tree_util.tree_map_with_path(
    lambda path, value: value * 0 if path[-1].key == "skip_gain" else value, parameters
  )
  # They are two programs, whose sums may be rounded otherwise.
  np.testing.assert_allclose(
    function(without_branches, images, keys),
    function(without_branches, images, None),
    atol=2**-24,
    rtol=2**-22,
  )
  assert not np.allclose(function(parameters, images, keys), function(parameters, images, None))


def test_bfloat16_compute_gives_float32_logits_close_to_float32(parameters, images):
  logits = compiled(compute_dtype=jnp.dtype("bfloat16"))(parameters, images, None)
  expected = compiled(dropout_rate=0.0)(parameters, images, None)
  assert logits.dtype == jnp.float32
  # 8 bits of mantissa; the errors of 20 layers add like a random walk: 2^-9 * sqrt(20) = 0.9 %.
  error = np.linalg.norm(logits - expected) / np.linalg.norm(expected)
  assert 1e-5 < error < 0.03


def test_bfloat16_gradients_are_float32(parameters, images, keys):
  _, gradients = jax.eval_shape(
    compiled_gradient(NAME, compute_dtype=jnp.dtype("bfloat16")), parameters, images, keys
  )
  assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("shape", [(1, 16, 32, 3), (2, 33, 20, 3), (1, 1, 1, 3)])
def test_images_of_any_sides(shape, parameters):
  function = functools.partial(apply, NFNet(NAME, NUM_CLASSES))
  logits = jax.eval_shape(function, parameters, jax.ShapeDtypeStruct(shape, jnp.float32))
  assert logits.shape == (shape[0], NUM_CLASSES)


def test_images_do_not_see_each_other(parameters, images):
  function = compiled(dropout_rate=0.0)
  changed = images.at[1].set(0.0)
  before, after = function(parameters, images, None), function(parameters, changed, None)
  others = np.array([0, 2, 3])
  np.testing.assert_allclose(after[others], before[others], rtol=1e-5, atol=1e-6)
  assert not np.allclose(after[1], before[1])


def test_initial_network_is_its_shortcuts():
  """Skip gains start at 0."""
  shapes = parameter_shapes(NFNet("P0", NUM_CLASSES))
  fresh = initial_parameters(NFNet("P0", NUM_CLASSES), seed=3)
  assert jax.tree.map(np.shape, fresh) == jax.tree.map(lambda shape: shape.shape, shapes)
  assert all(fresh["blocks"][str(i)]["skip_gain"] == 0 for i in range(6))


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"variant": "F9"}, "variant 'F9'"),
    ({"activation": "swish"}, "activation 'swish'"),
    ({"bottleneck": "half"}, "bottleneck"),
    ({"block_execution": "loop"}, "block_execution"),
    ({"numerics": "torch"}, "numerics"),
    ({"implementation": "cuda"}, "implementation"),
    ({"num_classes": 0}, "num_classes=0: must be a whole number"),
    ({"dropout_rate": 1.5}, "dropout_rate=1.5: must be"),
    ({"stochastic_depth_rate": -0.1}, "stochastic_depth_rate=-0.1: must be"),
    ({"compute_dtype": jnp.dtype("int8")}, "compute_dtype=int8: must be"),
    ({"alpha": math.nan}, "alpha=nan: must be a finite number"),
    ({"alpha": -0.1}, "alpha=-0.1: must be"),
  ],
)
def test_bad_arguments(arguments, message):
  arguments = {"variant": "P0", "num_classes": NUM_CLASSES, **arguments}
  with pytest.raises(Exception, match=message):
    NFNet(**arguments)


@pytest.mark.parametrize("compute_dtype", ["bf16", None, ["float32"]])
def test_what_is_no_dtype(compute_dtype):
  # The tests check the types of NFNet's own arguments.
  with pytest.raises(ValueError, match=r"compute_dtype=.*: must be a floating-point type, such as"):
    model_module._checked_compute_dtype(compute_dtype)


def test_missing_and_superfluous_parameters_are_errors(parameters, images):
  model = NFNet(NAME, NUM_CLASSES)
  without = {key: value for key, value in parameters.items() if key != "final_conv"}
  with pytest.raises(ValueError, match=r"lack final_conv/bias \(3 are missing\)"):
    apply(model, without, images)
  with pytest.raises(ValueError, match="have 'surplus'"):
    apply(model, {**parameters, "surplus": jnp.zeros(3)}, images)


def test_parameters_of_another_network_are_errors(parameters, images):
  other = NFNet(NAME, NUM_CLASSES + 1)
  with pytest.raises(ValueError, match=r"classifier/bias has shape \[5\]; must be \[6\] in NFNet"):
    apply(other, parameters, images)
  shapes = parameter_shapes(other)
  with pytest.raises(ValueError, match=r"has a shape and no value: nfnet\.initial_parameters"):
    apply(other, shapes, images)
  with pytest.raises(ValueError, match="must be float32"):
    apply(other, jax.tree.map(lambda shape: np.zeros(shape.shape, np.int8), shapes), images)


def test_parameters_are_checked_once(parameters, images, monkeypatch):
  """Looking at all of them took 6 ms for each batch of an F0, on top of every call's own work."""
  check, calls = model_module.check_parameters, []

  def counted(*arguments):
    calls.append(arguments)
    check(*arguments)

  monkeypatch.setattr(model_module, "check_parameters", counted)
  model = NFNet(NAME, NUM_CLASSES)

  def bias(network, images):
    return network.classifier.bias[...]

  for _ in range(3):
    model_module._run(bias, model, parameters, images)
  assert len(calls) == 1
  others = {**parameters, "classifier": {**parameters["classifier"], "bias": np.zeros(2)}}
  with pytest.raises(ValueError, match=r"classifier/bias has shape \[2\]; must be \[5\]"):
    model_module._run(bias, model, others, images)
  others["classifier"]["bias"] = "zeros"
  with pytest.raises(ValueError, match=r"classifier/bias has shape \[\]; must be \[5\]"):
    model_module._run(bias, model, others, images)


def test_a_program_for_any_number_of_images_runs_references(parameters):
  model = NFNet(NAME, NUM_CLASSES, implementation="pallas", stochastic_depth_rate=0.3)
  (count,) = export.symbolic_shape("count")
  images = jax.ShapeDtypeStruct((count, PIXELS, PIXELS, 3), jnp.float32)
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))
  keys = jax.ShapeDtypeStruct((count,), keys.dtype)
  kernels.fallback_counts.clear()
  for arguments in ({}, {"keys": keys}):
    program = jax.make_jaxpr(functools.partial(apply, model))(parameters, images, **arguments)
    assert program.out_avals[0].shape == (count, NUM_CLASSES)
    # Only kernels need whole tiles of images.
    assert "mod(" not in str(program)
  assert {op for op, _ in kernels.fallback_counts} == {
    "stem",
    "scaled_ws_conv",
    "conv_se_residual",
    "fully_connected_layer",
  }
  kernels.fallback_counts.clear()


def test_a_network_without_values_says_what_to_call(images):
  model = NFNet(NAME, NUM_CLASSES)
  for call in (
    lambda: model(images),
    lambda: model.pooled_features(images),
    lambda: model.stage_features(images),
    lambda: model.blocks[0](jnp.zeros((4, 4, 2, 16)), beta=jnp.float32(1.0), keep=None),
  ):
    with pytest.raises(ValueError, match=r"holds no values: call nfnet.apply\(model, parameters, "):
      call()


def test_a_network_with_values_is_called_with_images(parameters, images):
  model = NFNet(NAME, NUM_CLASSES, dropout_rate=0.0)
  network = jax.jit(lambda parameters, images: bind(model, parameters)(images))
  expected = compiled(dropout_rate=0.0)(parameters, images, None)
  np.testing.assert_allclose(network(parameters, images), expected, rtol=1e-5, atol=1e-6)


def test_mistakes_in_images_and_keys_are_errors(parameters, images):
  model = NFNet(NAME, NUM_CLASSES)
  # Without the types that the tests check.
  unchecked = inspect.unwrap(apply)
  with pytest.raises(ValueError, match="images are uint8"):
    unchecked(model, parameters, np.asarray(images).astype(np.uint8))
  with pytest.raises(ValueError, match="so they are not normalized"):
    unchecked(model, parameters, 100 * images)
  with pytest.raises(ValueError, match=r"keys are int32; .*: jax\.random\.split"):
    inspect.unwrap(NFNet.__call__)(bind(model, parameters), images, keys=jnp.arange(NUM_IMAGES))
  with pytest.raises(ValueError, match=r"keys have shape \[\] for 4 images; give one key for each"):
    inspect.unwrap(NFNet.__call__)(model, images, keys=jax.random.key(0))


def test_features_of_the_stages_are_what_the_next_one_takes(parameters, images):
  model = NFNet(NAME, NUM_CLASSES)
  images = jnp.concatenate([images, images], axis=2)
  stages = stage_features(model, parameters, images)
  # The small network has two stages.
  assert [x.shape for x in stages] == [(NUM_IMAGES, 4, 8, 32), (NUM_IMAGES, 2, 4, 64)]
  assert {x.dtype for x in stages} == {jnp.dtype("float32")}

  @jax.jit
  def head(parameters, x):
    x = bind(model, parameters).final_conv(jnp.transpose(x, (1, 2, 0, 3))).result
    return jnp.mean(model.activation(x), axis=(0, 1))

  unrolled = NFNet(NAME, NUM_CLASSES, block_execution="unrolled")
  shapes = jax.eval_shape(functools.partial(stage_features, unrolled), parameters, images)
  assert [x.shape for x in shapes] == [x.shape for x in stages]
  pooled = pooled_features(model, parameters, images)
  np.testing.assert_allclose(head(parameters, stages[-1]), pooled, rtol=1e-4, atol=1e-5)
  weight, bias = parameters["classifier"]["weight"], parameters["classifier"]["bias"]
  logits = apply(model, parameters, images)
  np.testing.assert_allclose(pooled @ weight + bias[None], logits, rtol=1e-4, atol=1e-5)


def test_the_text_of_a_network_is_short_and_true():
  assert (
    repr(NFNet("F0", 1000)) == 'NFNet("F0", num_classes=1000): 12 blocks, 71,489,284 parameters'
  )
  model = NFNet(
    "F7+", 10, numerics="timm", compute_dtype=jnp.dtype("bfloat16"), bottleneck="released"
  )
  count = sum(math.prod(shape.shape) for shape in jax.tree.leaves(parameter_shapes(model)))
  assert str(model) == (
    'NFNet("F7+", num_classes=10, numerics="timm", bottleneck="released", '
    f'compute_dtype="bfloat16"): 96 blocks, {count:,} parameters'
  )

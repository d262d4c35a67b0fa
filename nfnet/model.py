"""Defines the network: stem, four stages of residual blocks, head.

Paper B (https://arxiv.org/abs/2102.06171), section 4, with the numerics of the code released with
it or, on request, of timm. There are a few deliberate differences from that code:

- Activations are HWNC inside the network, which is what the TPU kernels need; images are NHWC.
- Statistics, activations and the gate are computed in float32, whatever the compute dtype.
- Stochastic depth and dropout draw from one key for each example (`stochastic_depth.py`).
- F+ has a bottleneck of 192 channels in its first stage unless told otherwise (`variants.py`).
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import NoneType
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import export
from jaxtyping import Array, Float, Key

import kernels
from kernels.scaled_ws_conv.reference import activate
from nfnet.activations import Numerics, ScaledActivation, scaled_activation
from nfnet.block import Block
from nfnet.block_arrangement import BLOCKS, arrange_blocks, block_key, is_stacked
from nfnet.errors import (
  check_choice,
  check_flag,
  check_number,
  checked_whole_number,
  format_count,
  quoted,
)
from nfnet.images.network_input import check_network_input
from nfnet.layers import Linear, ScaledWSConv
from nfnet.stochastic_depth import draw_kept_branches, dropout
from nfnet.variants import Bottleneck, get_variant

BlockExecution = Literal["scan", "unrolled"]
Images = Float[Array | np.ndarray, "n height width 3"]
"""Normalized images (`nfnet.images.normalization`)."""
Count = int | Any
"""A number of images; in a program for any number of them, a symbolic dimension of `jax.export`."""
Parameters = Mapping[str, Any]
"""Nested dictionaries of float32 arrays, by name."""

CLASSIFIER = "classifier"
"""Name of the last layer's parameters."""
CLASSIFIER_WEIGHT = f"{CLASSIFIER}/weight"
"""Full name of the one weight that initialization, AGC and sharding treat differently."""
_CLASSES_MAX = 2**31 - 1


class Stem(nnx.Module):
  """Computes four 3x3 convolutions of strides 2, 1, 1, 2, with activations between them."""

  def __init__(
    self,
    channels: tuple[int, int, int, int],
    *,
    activation: ScaledActivation,
    standardization: kernels.Standardization,
    implementation: kernels.Implementation,
  ):
    inputs = (3, *channels[:-1])
    self.conv0, self.conv1, self.conv2, self.conv3 = (
      ScaledWSConv(
        *sizes,
        filter_pixels=3,
        standardization=standardization,
        implementation=implementation,
      )
      for sizes in zip(inputs, channels, strict=True)
    )
    self.activation = activation
    self.standardization = standardization
    self.implementation = implementation

  def __call__(self, x: Float[Array, "h w n c"]) -> Float[Array, "h2 w2 n o"]:
    """Returns the input of the first stage, a quarter as high and wide as the images."""
    convs = (self.conv0, self.conv1, self.conv2, self.conv3)
    return kernels.stem_convolutions(
      x,
      tuple(conv.weight[...] for conv in convs),
      tuple(conv.gain[...] for conv in convs),
      tuple(conv.bias[...] for conv in convs),
      activation=self.activation.function,
      input_scale=jnp.float32(self.activation.gain),
      standardization=self.standardization,
      implementation=self.implementation,
    )


class NFNet(nnx.Module):
  """Holds the structure of a normalizer-free network; `apply` runs it with parameter values.

  What its arguments were can be read from the attributes `variant`, `num_classes`,
  `activation_name`, `numerics` and `bottleneck`.

  Args:
    variant: name from `nfnet.variants.VARIANTS`.
    num_classes: width of the classifier.
    activation: name from `nfnet.activations.ACTIVATIONS`.
    numerics: "released" applies the parameters as the code released with paper B does, "timm" as
      timm's `dm_nfnet_f*` do: with `kernels.Standardization` "timm", and an exact gelu.
    alpha: weight of the residual branches.
    stochastic_depth_rate: drop rate that grows linearly from 0 at the first block; a block after
      the last would have this rate.
    dropout_rate: dropout rate before the classifier; None means the variant's own.
    bottleneck: see `Variant.blocks`.
    block_execution: "scan" runs equal blocks as one loop over their stacked parameters; "unrolled"
      traces each block separately. The parameters are the same (`block_arrangement.py`).
    rematerialize: whether the backward pass recomputes the inside of each block.
    compute_dtype: dtype of activations and matrix products.
    implementation: implementation of the ops, "reference" or "pallas".

  Raises:
    ValueError: an argument has an invalid value.
  """

  def __init__(
    self,
    variant: str,
    num_classes: int,
    *,
    activation: str = "gelu",
    numerics: Numerics = "released",
    alpha: float = 0.2,
    stochastic_depth_rate: float = 0.0,
    dropout_rate: float | None = None,
    bottleneck: Bottleneck = "paper",
    block_execution: BlockExecution = "scan",
    rematerialize: bool = False,
    compute_dtype: jnp.dtype = jnp.float32,
    implementation: kernels.Implementation = "reference",
  ):
    check_choice("block_execution", block_execution, get_args(BlockExecution))
    check_choice("numerics", numerics, get_args(Numerics))
    check_choice("implementation", implementation, get_args(kernels.Implementation))
    check_flag("rematerialize", rematerialize)
    for name, rate in (
      ("stochastic_depth_rate", stochastic_depth_rate),
      ("dropout_rate", 0.0 if dropout_rate is None else dropout_rate),
    ):
      check_number(name, rate, lambda x: 0 <= x < 1, "a number of at least 0 and below 1")
    check_number("alpha", alpha, lambda x: 0 <= x < math.inf, "a finite number of at least 0")
    check_choice("bottleneck", bottleneck, get_args(Bottleneck))
    scaled = scaled_activation(activation, numerics)
    shape = get_variant(variant)
    common = dict(standardization=numerics, implementation=implementation)
    self.variant = variant
    self.num_classes = checked_whole_number("num_classes", num_classes, 1, _CLASSES_MAX)
    self.activation_name = activation
    self.numerics = numerics
    self.bottleneck = bottleneck
    self.activation = scaled
    self.implementation = implementation
    self.compute_dtype = _checked_compute_dtype(compute_dtype)
    self.images_multiple = kernels.IMAGES_MULTIPLE if implementation == "pallas" else 1
    self.rematerialize = rematerialize
    self.dropout_rate = shape.dropout_rate if dropout_rate is None else dropout_rate
    block_shapes = shape.blocks(alpha=alpha, bottleneck=bottleneck)
    # The blocks of a run share one program. A run is either all blocks of a stage after its
    # transition block, or a single block.
    programs = range(len(block_shapes))
    if block_execution == "scan":
      programs = [(block.stage, block.index_in_stage > 0) for block in block_shapes]
    self.runs = tuple(_ranges_of_equals(programs))
    self.stages = tuple(block_shapes[run.start].stage for run in self.runs)
    self.betas = tuple(block.beta for block in block_shapes)
    self.drop_rates = tuple(
      stochastic_depth_rate * block.stochastic_depth_share for block in block_shapes
    )

    self.stem = Stem(
      (*shape.stem_channels, shape.stage_channels[0] // 2), activation=self.activation, **common
    )
    self.blocks = nnx.List(
      Block(block_shapes[run.start], activation=self.activation, alpha=alpha, **common)
      for run in self.runs
    )
    self.final_conv = ScaledWSConv(
      shape.stage_channels[3], shape.head_channels, filter_pixels=1, **common
    )
    self.classifier = Linear(shape.head_channels, self.num_classes)

  def __str__(self) -> str:
    """Returns the arguments that are not the default, and the size."""
    arguments = [f'"{self.variant}"', f"num_classes={self.num_classes}"]
    for name, value, default in (
      ("activation", self.activation_name, "gelu"),
      ("numerics", self.numerics, "released"),
      ("bottleneck", self.bottleneck, "paper"),
      ("compute_dtype", str(self.compute_dtype), "float32"),
      ("implementation", self.implementation, "reference"),
    ):
      if value != default:
        arguments.append(f'{name}="{value}"')
    count = sum(math.prod(shape.shape) for shape in jax.tree.leaves(parameter_shapes(self)))
    blocks = format_count(len(self.betas), "block")
    return f"NFNet({', '.join(arguments)}): {blocks}, {format_count(count, 'parameter')}"

  # The one of NNX takes pages, and counts equal blocks once.
  __repr__ = __str__

  def __call__(
    self,
    images: Images,
    *,
    keys: Key[Array, " n"] | None = None,
  ) -> Float[Array, "n classes"]:
    """Returns logits in float32, of a network that `bind` has given its values.

    Args:
      images: normalized images (`nfnet.images.normalization`).
      keys: one key for each example, which turns dropout and stochastic depth on for training;
        None for inference.

    Raises:
      ValueError: the network has no values, or `images` or `keys` are of another kind.
    """
    check_network_input(images)
    if keys is not None:
      _check_keys(keys, images.shape[0])
    x = images
    for segment in segments(self, images.shape[0], keys=keys):
      x = segment.run(self, x)
    return x

  def pooled_features(self, images: Images) -> Float[Array, "n c"]:
    """Returns the classifier's input in float32: the last activations, averaged over space.

    Args:
      images: normalized images (`nfnet.images.normalization`).

    Raises:
      ValueError: the network has no values, or `images` are of another kind.
    """
    *_, x = self._outputs_before_head(images)
    with jax.named_scope("head"):
      return self._pooled(x, images.shape[0])

  def stage_features(self, images: Images) -> list[Float[Array, "n h w c"]]:
    """Returns the output of each of the four stages, in float32 and NHWC.

    Height and width are those of the images divided by 4, 8, 16 and 32 and rounded up.

    Args:
      images: normalized images (`nfnet.images.normalization`).

    Raises:
      ValueError: the network has no values, or `images` are of another kind.
    """
    _, *outputs = self._outputs_before_head(images)
    # A stage may be several runs of blocks, of which the last one ends it.
    ends = dict(zip(self.stages, outputs, strict=True))
    return [
      jnp.transpose(x[:, :, : len(images)], (2, 0, 1, 3)).astype(jnp.float32) for x in ends.values()
    ]

  def _outputs_before_head(self, images: Images) -> list[Float[Array, "h w padded_n c"]]:
    """Returns the outputs of the stem and of each run of blocks."""
    check_network_input(images)
    *before_head, _ = segments(self, images.shape[0], keys=None)
    outputs, x = [], images
    for segment in before_head:
      x = segment.run(self, x)
      outputs.append(self._added_up(x))
    return outputs

  def _padding(self, count: Count) -> int:
    """Returns how many images are appended to a batch; kernels cover no symbolic number of them."""
    return 0 if export.is_symbolic_dim(count) else -count % self.images_multiple

  def _added_up(self, x: Array | kernels.PendingSum) -> Float[Array, "h w n c"]:
    if not isinstance(x, kernels.PendingSum):
      return x
    return kernels.add_up(x, implementation=self.implementation)

  def _run_stem(self, images: Float[Array, "n height width 3"]) -> Float[Array, "h w padded_n c"]:
    # Padding once here saves every kernel from padding its operands and slicing its results.
    padding = self._padding(images.shape[0])
    x = jnp.transpose(images, (1, 2, 0, 3)).astype(self.compute_dtype)
    x = jnp.pad(x, ((0, 0), (0, 0), (0, padding), (0, 0)))
    # Compiled programs and traces show the names of these scopes.
    with jax.named_scope("stem"):
      return self.stem(x)

  def _run_blocks(
    self,
    position: int,
    x: Float[Array, "h w n c"] | kernels.PendingSum,
    keep: Float[Array, "blocks n"] | None,
  ) -> Float[Array, "h2 w2 n o"] | kernels.PendingSum:
    """Runs the blocks of one of `self.runs`, with the masks of all blocks."""
    run = self.runs[position]
    # What is saved between blocks should be one array, not the two of a sum.
    adds_up = self.rematerialize or len(run) > 1
    if adds_up:
      x = self._added_up(x)

    def run_block(block, x, beta, keep):
      x = block(x, beta=beta, keep=keep)
      return self._added_up(x) if adds_up else x

    if self.rematerialize:
      # NNX modules are not JAX types, so the parameters are passed and the block rebuilt inside.
      run_block = _rematerialized(run_block)

    def scan_blocks(block, x, beta, keep):
      # `block` has the structure of one block and the stacked parameters of all blocks of the run.
      graph, stacked = nnx.split(block)

      def body(x, inputs):
        parameters, beta, keep = inputs
        return run_block(nnx.merge(graph, parameters), x, beta, keep), None

      return jax.lax.scan(body, x, (stacked, beta, keep))[0]

    at, execute = (
      (run.start, run_block) if len(run) == 1 else (slice(run.start, run.stop), scan_blocks)
    )
    betas = jnp.asarray(self.betas, jnp.float32)
    with jax.named_scope(f"stage_{self.stages[position] + 1}"):
      return execute(self.blocks[position], x, betas[at], None if keep is None else keep[at])

  def _run_head(
    self,
    x: Float[Array, "h w padded_n c"] | kernels.PendingSum,
    count: Count,
    keys: Key[Array, " n"] | None,
  ) -> Float[Array, "n classes"]:
    with jax.named_scope("head"):
      features = self._pooled(x, count)
      if keys is not None and self.dropout_rate > 0:
        features = dropout(features, keys, self.dropout_rate)
      classifier = self.classifier
      return kernels.fully_connected_layer(
        features,
        classifier.weight[...],
        classifier.bias[...],
        dtype=self.compute_dtype,
        implementation=self.implementation,
      )

  def _pooled(
    self, x: Float[Array, "h w padded_n c"] | kernels.PendingSum, count: Count
  ) -> Float[Array, "n o"]:
    x = activate(self.activation, self.final_conv(x).result)
    return jnp.mean(x, axis=(0, 1), dtype=jnp.float32)[:count]

  @property
  def block_keys(self) -> tuple[str, ...]:
    """Returns the keys for `arrange_blocks` with which `apply` has nothing to stack."""
    return tuple(map(block_key, self.runs))


def _check_keys(keys: Any, count: Any) -> None:
  """Raises ValueError unless there is a key for each of `count` images, a number or a symbol."""
  cure = f"jax.random.split(jax.random.key(SEED), {count})"
  if not isinstance(keys, jax.Array | np.ndarray):
    raise ValueError(
      f"keys are a value of type {type(keys).__name__}; must be one array of keys: {cure}"
    )
  if np.shape(keys) != (count,):
    raise ValueError(
      f"keys have shape {list(np.shape(keys))} for {format_count(count, 'image')}; give one key "
      f"for each: {cure}"
    )
  if not jnp.issubdtype(keys.dtype, jax.dtypes.prng_key):
    raise ValueError(f"keys are {keys.dtype}; must be keys for random numbers: {cure}")


def _checked_compute_dtype(compute_dtype: Any) -> jnp.dtype:
  try:
    # NumPy takes None for float64.
    dtype = None if compute_dtype is None else jnp.dtype(compute_dtype)
  except (TypeError, ValueError):
    dtype = None
  if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
    raise ValueError(
      f"compute_dtype={dtype or quoted(compute_dtype)}: must be a floating-point type, such as "
      '"float32" or "bfloat16"'
    )
  return dtype


def _ranges_of_equals(values: Iterable[Any]) -> Iterator[range]:
  stop = 0
  for _, group in itertools.groupby(values):
    start, stop = stop, stop + len(list(group))
    yield range(start, stop)


def _rematerialized(run):
  def wrapped(block, x, beta, keep):
    graph, parameters = nnx.split(block)

    @jax.checkpoint
    def inner(parameters, x, beta, keep):
      return run(nnx.merge(graph, parameters), x, beta, keep)

    return inner(parameters, x, beta, keep)

  return wrapped


class Segment(NamedTuple):
  """A consecutive part of the network: the stem, blocks that run as one program, or the head.

  Attributes:
    paths: where its parameters are in the nested dictionaries, arranged by `model.block_keys`.
    run: function (network with values for at least these parameters, input) -> output. Inputs and
      outputs are arrays or, between blocks that run by kernels, `kernels.PendingSum`.
  """

  paths: tuple[tuple[str, ...], ...]
  run: Callable[[NFNet, Array | kernels.PendingSum], Array | kernels.PendingSum]

  def select(self, parameters: Parameters) -> dict[str, Any]:
    """Returns the segment's own parameters, in the same nesting."""
    own: dict[str, Any] = {}
    for *outer, last in self.paths:
      source, target = parameters, own
      for key in outer:
        source, target = source[key], target.setdefault(key, {})
      target[last] = source[last]
    return own


def segments(model: NFNet, count: Count, *, keys: Key[Array, " n"] | None) -> tuple[Segment, ...]:
  """Returns the segments of a network in order, each of which takes the output of the one before.

  The first one takes normalized images, [n, height, width, 3], and the last one returns logits.

  Args:
    model: the network.
    count: number of images.
    keys: one key for each example in training; None for inference.
  """
  keep = None
  if keys is not None and any(model.drop_rates):
    keep = draw_kept_branches(keys, model.drop_rates)
    keep = jnp.pad(keep, ((0, 0), (0, model._padding(count))))
  return (
    Segment((("stem",),), lambda network, images: network._run_stem(images)),
    *(
      Segment(
        ((BLOCKS, key),),
        lambda network, x, position=position: network._run_blocks(position, x, keep),
      )
      for position, key in enumerate(model.block_keys)
    ),
    Segment((("final_conv",), (CLASSIFIER,)), lambda network, x: network._run_head(x, count, keys)),
  )


def parameter_shapes(model: NFNet) -> dict[str, Any]:
  """Returns nested dictionaries of `jax.ShapeDtypeStruct` by name, each block under its number."""
  shapes = nnx.to_pure_dict(nnx.state(model, nnx.Param))
  blocks = {
    str(i): shapes[BLOCKS][position] for position, run in enumerate(model.runs) for i in run
  }
  return {**shapes, BLOCKS: blocks}


def parameter_name(path: tuple[Any, ...]) -> str:
  """Returns the keys of a path in a parameter tree joined by slashes: "blocks/3/conv0/weight"."""
  return jax.tree_util.keystr(path, simple=True, separator="/")


def bind(model: NFNet, parameters: Parameters) -> NFNet:
  """Returns a network that holds values, and is called with images only.

  Args:
    model: structure of the network, which stays as it is.
    parameters: arrays as for `apply`.

  Raises:
    ValueError: a parameter is missing, superfluous, or of another shape or kind.
  """
  check_parameters(model, parameters)
  return _bound(model, arrange_blocks(parameters, model.block_keys))


def apply(
  model: NFNet,
  parameters: Parameters,
  images: Images,
  *,
  keys: Key[Array, " n"] | None = None,
) -> Float[Array, "n classes"]:
  """Returns logits in float32, as a pure function of parameters and images (`NFNet.__call__`).

  It is compiled when it is called, unless it is part of a program that is being traced.

  Args:
    model: structure of the network.
    parameters: arrays like `parameter_shapes(model)`, or the same arranged by `arrange_blocks` with
      `model.block_keys`, which saves stacking them here.
    images: normalized images (`nfnet.images.normalization`).
    keys: one key for each example in training; None for inference.

  Raises:
    ValueError: `model` is not a network; a parameter is missing, superfluous, or of another shape
      or kind than the network's; or `images` or `keys` are of another kind.
  """
  return _run(NFNet.__call__, model, parameters, images, keys=keys)


def apply_segment(
  model: NFNet, segment: Segment, parameters: Parameters, x: Array | kernels.PendingSum
) -> Array | kernels.PendingSum:
  """Returns the output of one of `segments(model, ...)`.

  Args:
    model: structure of the network.
    segment: the segment.
    parameters: nested dictionaries with the values at `segment.paths`, arranged with
      `model.block_keys`.
    x: output of the segment before, or normalized images for the first one.
  """
  return segment.run(_bound(model, parameters), x)


def pooled_features(model: NFNet, parameters: Parameters, images: Images) -> Float[Array, "n c"]:
  """Returns the classifier's input in float32, as a pure function (`NFNet.pooled_features`).

  Args:
    model: structure of the network.
    parameters: arrays as for `apply`.
    images: normalized images (`nfnet.images.normalization`).

  Raises:
    ValueError: as in `apply`.
  """
  return _run(NFNet.pooled_features, model, parameters, images)


def stage_features(
  model: NFNet, parameters: Parameters, images: Images
) -> list[Float[Array, "n h w c"]]:
  """Returns the output of each stage in float32, as a pure function (`NFNet.stage_features`).

  Args:
    model: structure of the network.
    parameters: arrays as for `apply`.
    images: normalized images (`nfnet.images.normalization`).

  Raises:
    ValueError: as in `apply`.
  """
  return _run(NFNet.stage_features, model, parameters, images)


def _run(
  method: Callable[..., Any],
  model: NFNet,
  parameters: Parameters,
  images: Any,
  **arguments: Key[Array, " n"] | None,
) -> Any:
  """Calls a method of the network with values, compiled if it is not part of a larger program."""
  check_model(model)
  _check_nesting(parameters)
  arrays = (parameters, images, arguments)
  leaves = (*jax.tree.leaves(parameters), images, *arguments.values())
  if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
    return method(bind(model, parameters), images, **arguments)
  # Only here are the values at hand. Operation by operation, a network would take many times as
  # long as it takes to compile.
  check_network_input(images)
  if arguments.get("keys") is not None:
    _check_keys(arguments["keys"], images.shape[0])
  try:
    # What is traced checks the parameters (`bind`). That is done once for all calls with parameters
    # of the same names, shapes and dtypes, for which JAX keeps the program.
    return _compiled(method, model, *arrays)
  except TypeError:
    # Something among them is not an array, which JAX refuses before it traces.
    check_parameters(model, parameters)
    raise


@functools.partial(jax.jit, static_argnums=(0, 1))
def _compiled(
  method: Callable[..., Any],
  model: NFNet,
  parameters: Parameters,
  images: Images,
  arguments: dict[str, Key[Array, " n"] | None],
) -> Any:
  return method(bind(model, parameters), images, **arguments)


def standardized(
  model: NFNet, parameters: Parameters, *, gradient_dtype: jnp.dtype | None
) -> Parameters:
  """Returns parameters whose filters are standardized, except the stem's, for `apply`.

  `apply` gives the same logits with them. A training step takes this way: filters are standardized
  once for both passes, travel between devices in the compute dtype, and their gradients are summed
  over devices before they go through the derivative of the standardization, which is linear.

  Args:
    model: structure of the network.
    parameters: arrays like `parameter_shapes(model)`, arranged with `model.block_keys`. Filters may
      have some of their output channels only.
    gradient_dtype: dtype of the filters' gradients; see `kernels.standardize_filters`.
  """
  common = dict(dtype=model.compute_dtype, gradient_dtype=gradient_dtype)
  blocks = dict(parameters[BLOCKS])
  for run, block in zip(model.runs, model.blocks, strict=True):
    key, betas = block_key(run), jnp.asarray(model.betas[run.start : run.stop], jnp.float32)

    def standardize(parameters, beta, block=block):
      return block.standardized(parameters, beta=beta, **common)

    blocks[key] = (
      standardize(blocks[key], betas[0])
      if len(run) == 1
      else jax.vmap(standardize)(blocks[key], betas)
    )
  final_conv = model.final_conv.standardized(parameters["final_conv"], **common)
  return {**parameters, BLOCKS: blocks, "final_conv": final_conv}


def check_model(model: Any) -> None:
  """Raises ValueError unless an argument is a network."""
  if not isinstance(model, NFNet):
    raise ValueError(
      f"model={quoted(model)}: must be the network for which the parameters are, such as "
      'nfnet.NFNet("F0", num_classes=1000)'
    )


def check_parameters(model: NFNet, parameters: Parameters) -> None:
  """Checks names, shapes and dtypes.

  Args:
    model: structure of the network.
    parameters: arrays as for `apply`.

  Raises:
    ValueError: `model` is not a network, or a parameter is missing, superfluous, or of another
      shape or kind.
  """
  check_model(model)
  _check_nesting(parameters)
  needed = parameter_shapes(model)
  blocks = parameters.get(BLOCKS)
  if isinstance(blocks, Mapping) and any(map(is_stacked, blocks)):
    needed = arrange_blocks(needed, model.block_keys)
  given, needed = _by_name(parameters), _by_name(needed)
  # NNX would leave a missing parameter without a value, which fails later, inside an op.
  if missing := sorted(needed.keys() - given.keys()):
    raise ValueError(
      f"parameters lack {missing[0]} ({len(missing)} are missing), so they are not those of {model}"
    )
  if superfluous := sorted(given.keys() - needed.keys()):
    raise ValueError(
      f"parameters have {quoted(superfluous[0])} ({len(superfluous)} are superfluous), which is "
      f"not in {model}"
    )
  for name, value in given.items():
    if isinstance(value, kernels.StandardizedFilters):
      continue
    if isinstance(value, jax.ShapeDtypeStruct):
      raise ValueError(
        f"{name} has a shape and no value: nfnet.initial_parameters(model, SEED) draws values"
      )
    shape = needed[name].shape
    if np.shape(value) != shape:
      cure = ""
      if name.startswith(CLASSIFIER) and np.ndim(value) == len(shape):
        cure = f"; the parameters are of a network with num_classes={np.shape(value)[-1]}"
      raise ValueError(
        f"{name} has shape {list(np.shape(value))}; must be {list(shape)} in {model}{cure}"
      )
    try:
      dtype = jnp.result_type(value)
    except (TypeError, ValueError):
      dtype = f"a value of type {type(value).__name__}"
    if isinstance(dtype, str) or not jnp.issubdtype(dtype, jnp.floating):
      raise ValueError(f"{name} is {dtype}; parameters must be float32")


def _check_nesting(parameters: Any, path: tuple[str, ...] = ()) -> None:
  """Raises ValueError unless parameters are nested dictionaries, whose keys are text."""
  cure = "must be nested dictionaries, from nfnet.load or nfnet.initial_parameters"
  if not isinstance(parameters, Mapping):
    is_leaf = path and not isinstance(parameters, list | tuple | set | NoneType)
    if is_leaf or isinstance(parameters, kernels.StandardizedFilters):
      return
    place = f"in parameters, {'/'.join(path)} is" if path else "parameters are"
    raise ValueError(f"{place} a value of type {type(parameters).__name__}; {cure}")
  for key, value in parameters.items():
    if not isinstance(key, str):
      raise ValueError(f"parameters have the key {quoted(key)}; keys are text: {cure}")
    _check_nesting(value, (*path, key))


def _bound(model: NFNet, arranged: Parameters) -> NFNet:
  """Returns the network with values for those of its parameters that are given."""
  positions = {key: position for position, key in enumerate(model.block_keys)}
  blocks = {positions[key]: values for key, values in arranged.get(BLOCKS, {}).items()}
  graph, state = nnx.split(model)
  nnx.replace_by_pure_dict(state, {**arranged, BLOCKS: blocks})
  return nnx.merge(graph, state)


def _by_name(parameters: Parameters) -> dict[str, Any]:
  leaves = jax.tree.leaves_with_path(
    parameters, is_leaf=lambda leaf: isinstance(leaf, kernels.StandardizedFilters)
  )
  return {parameter_name(path): value for path, value in leaves}

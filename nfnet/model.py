"""The network: stem, four stages of residual blocks, head.

Paper B (https://arxiv.org/abs/2102.06171), section 4; numerics of the code released with it. A few
things differ from that code on purpose:

- Activations are HWNC inside, which is what the TPU kernels want; images come in as NHWC.
- Statistics, activations and the gate are computed in float32 whatever the compute dtype.
- Stochastic depth and dropout draw from one key an example, so that results do not depend on how
  the batch is spread over devices.
- F+ has a bottleneck of 192 channels in its first stage unless told otherwise (`variants.py`).
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

import kernels
from kernels.scaled_ws_conv.reference import activate
from nfnet.activations import ScaledActivation, scaled_activation
from nfnet.block import Block
from nfnet.block_arrangement import BLOCKS, arrange_blocks, block_key, is_stacked
from nfnet.layers import Linear, ScaledWSConv
from nfnet.variants import Bottleneck, get_variant

BlockExecution = Literal["scan", "unrolled"]
Parameters = Mapping[str, Any]
"""Nested dictionaries, by name, of float32 arrays."""

CLASSIFIER = "classifier"
"""Name of the last layer's parameters."""
CLASSIFIER_WEIGHT = f"{CLASSIFIER}/weight"
"""Full name of the one weight that initialization, AGC and sharding treat differently."""


class Stem(nnx.Module):
  """Four 3x3 convolutions, strides 2, 1, 1, 2, with activations between."""

  def __init__(
    self,
    channels: tuple[int, int, int, int],
    *,
    activation: ScaledActivation,
    implementation: kernels.Implementation,
  ):
    inputs = (3, *channels[:-1])
    self.conv0, self.conv1, self.conv2, self.conv3 = (
      ScaledWSConv(*sizes, filter_pixels=3, implementation=implementation)
      for sizes in zip(inputs, channels, strict=True)
    )
    self.activation = activation
    self.implementation = implementation

  def __call__(self, x: Float[Array, "h w n c"]) -> Float[Array, "h2 w2 n o"]:
    """The input of the first stage, a quarter as high and wide."""
    convs = (self.conv0, self.conv1, self.conv2, self.conv3)
    return kernels.stem_convolutions(
      x,
      tuple(conv.weight[...] for conv in convs),
      tuple(conv.gain[...] for conv in convs),
      tuple(conv.bias[...] for conv in convs),
      activation=self.activation.function,
      input_scale=jnp.float32(self.activation.gain),
      implementation=self.implementation,
    )


class NFNet(nnx.Module):
  """A normalizer-free network: its structure. `apply` runs it with values for its parameters.

  Args:
    variant: name from `nfnet.variants.VARIANTS`.
    num_classes: width of the classifier.
    activation: name from `nfnet.activations.ACTIVATIONS`.
    alpha: weight of the residual branches.
    stochastic_depth_rate: drop rate that a block after the last would have.
    dropout_rate: before the classifier; None is the variant's own.
    bottleneck: see `Variant.blocks`.
    block_execution: "scan" runs equal blocks as one loop over their stacked parameters;
      "unrolled" writes them out. The parameters are the same (`block_arrangement.py`).
    rematerialize: recompute the inside of each block in the backward pass.
    compute_dtype: of activations and matrix products.
    implementation: of the ops, "reference" or "pallas".

  Raises:
    ValueError: an argument has a value that it cannot have.
  """

  def __init__(
    self,
    variant: str,
    num_classes: int,
    *,
    activation: str = "gelu",
    alpha: float = 0.2,
    stochastic_depth_rate: float = 0.0,
    dropout_rate: float | None = None,
    bottleneck: Bottleneck = "paper",
    block_execution: BlockExecution = "scan",
    rematerialize: bool = False,
    compute_dtype: jnp.dtype = jnp.float32,
    implementation: kernels.Implementation = "reference",
  ):
    if block_execution not in ("scan", "unrolled"):
      raise ValueError(f'{block_execution=}: must be "scan" or "unrolled"')
    shape = get_variant(variant)
    common = dict(implementation=implementation)
    self.activation = scaled_activation(activation)
    self.compute_dtype = jnp.dtype(compute_dtype)
    self.images_multiple = kernels.IMAGES_MULTIPLE if implementation == "pallas" else 1
    self.rematerialize = rematerialize
    self.dropout_rate = shape.dropout_rate if dropout_rate is None else dropout_rate
    block_shapes = shape.blocks(alpha=alpha, bottleneck=bottleneck)
    # What one run of blocks has in common: the program that computes them.
    runs = range(len(block_shapes))
    if block_execution == "scan":
      runs = [(block.stage, block.index_in_stage > 0) for block in block_shapes]
    self.runs = tuple(_ranges_of_equals(runs))
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
    self.classifier = Linear(shape.head_channels, num_classes)

  def __call__(
    self,
    images: Float[Array, "n height width 3"],
    *,
    keys: Key[Array, " n"] | None = None,
  ) -> Float[Array, "n classes"]:
    """Logits in float32.

    Args:
      images: normalized (`nfnet.preprocessing`).
      keys: one for each example switches dropout and stochastic depth on, as training wants;
        None is inference.
    """
    features = self.features(images, keys=keys)
    with jax.named_scope("head"):
      if keys is not None and self.dropout_rate > 0:
        features = _dropout(features, keys, self.dropout_rate)
      classifier = self.classifier
      logits = jnp.dot(
        features.astype(self.compute_dtype),
        classifier.weight[...].astype(self.compute_dtype),
        preferred_element_type=jnp.float32,
      )
      return logits + classifier.bias[...][None, :]

  def features(
    self,
    images: Float[Array, "n height width 3"],
    *,
    keys: Key[Array, " n"] | None = None,
  ) -> Float[Array, "n c"]:
    """What the classifier sees, in float32: the last activations, averaged over space.

    Args:
      images: normalized (`nfnet.preprocessing`).
      keys: one for each example switches stochastic depth on; None is inference.
    """
    count = images.shape[0]
    # Each kernel would pad its operands and slice its results.
    padding = -count % self.images_multiple
    x = jnp.transpose(images, (1, 2, 0, 3)).astype(self.compute_dtype)
    x = jnp.pad(x, ((0, 0), (0, 0), (0, padding), (0, 0)))
    keep = self._draw_keep(keys)
    if keep is not None:
      keep = jnp.pad(keep, ((0, 0), (0, padding)))
    # Scopes name the parts in compiled programs and traces.
    with jax.named_scope("stem"):
      x = self.stem(x)
    x = self._run_blocks(x, keep)
    with jax.named_scope("head"):
      x = activate(self.activation, self.final_conv(x).result)
      return jnp.mean(x, axis=(0, 1), dtype=jnp.float32)[:count]

  def _draw_keep(self, keys: Key[Array, " n"] | None) -> Float[Array, "blocks n"] | None:
    """For each block and example 1, or 0 where stochastic depth drops the branch."""
    if keys is None or not any(self.drop_rates):
      return None
    draw = jax.vmap(
      lambda key: jax.random.uniform(jax.random.fold_in(key, 0), len(self.drop_rates))
    )
    rates = jnp.asarray(self.drop_rates, jnp.float32)[None, :]
    return jnp.transpose((draw(keys) >= rates).astype(jnp.float32))

  def _run_blocks(
    self, x: Float[Array, "h w n c"], keep: Float[Array, "blocks n"] | None
  ) -> Float[Array, "h2 w2 n o"]:
    betas = jnp.asarray(self.betas, jnp.float32)

    def run_block(block, x, beta, keep):
      return block(x, beta=beta, keep=keep)

    if self.rematerialize:
      # NNX modules are not JAX types: pass the parameters and rebuild the block inside.
      run_block = _rematerialized(run_block)

    def scan_blocks(block, x, beta, keep):
      # The block is that of one position; its parameters are those of all.
      graph, stacked = nnx.split(block)

      def body(x, inputs):
        parameters, beta, keep = inputs
        return run_block(nnx.merge(graph, parameters), x, beta, keep), None

      return jax.lax.scan(body, x, (stacked, beta, keep))[0]

    for run, stage, block in zip(self.runs, self.stages, self.blocks, strict=True):
      at, execute = (
        (run.start, run_block) if len(run) == 1 else (slice(run.start, run.stop), scan_blocks)
      )
      with jax.named_scope(f"stage_{stage + 1}"):
        x = execute(block, x, betas[at], None if keep is None else keep[at])
    return x

  @property
  def block_keys(self) -> tuple[str, ...]:
    """For `arrange_blocks`: the arrangement in which `apply` has nothing to stack."""
    return tuple(map(block_key, self.runs))


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


def _dropout(
  features: Float[Array, "n c"], keys: Key[Array, " n"], rate: float
) -> Float[Array, "n c"]:
  """Zeroes a share `rate` of each example's features and rescales the rest."""
  draw = jax.vmap(
    lambda key: jax.random.bernoulli(jax.random.fold_in(key, 1), 1 - rate, features.shape[1:])
  )
  return jnp.where(draw(keys), features / (1 - rate), 0.0)


def parameter_shapes(model: NFNet) -> dict[str, Any]:
  """Nested dictionaries, by name, of `jax.ShapeDtypeStruct`; each block under its number."""
  shapes = nnx.to_pure_dict(nnx.state(model, nnx.Param))
  blocks = {
    str(i): shapes[BLOCKS][position] for position, run in enumerate(model.runs) for i in run
  }
  return {**shapes, BLOCKS: blocks}


def parameter_name(path: tuple[Any, ...]) -> str:
  """Returns the keys of a path in a parameter tree joined by slashes: "blocks/3/conv0/weight"."""
  return jax.tree_util.keystr(path, simple=True, separator="/")


def apply(
  model: NFNet,
  parameters: Parameters,
  images: Float[Array, "n height width 3"],
  *,
  keys: Key[Array, " n"] | None = None,
) -> Float[Array, "n classes"]:
  """Logits in float32, as a pure function of the parameters and images (`NFNet.__call__`).

  Args:
    model: the structure.
    parameters: like `parameter_shapes(model)`, or the same by `arrange_blocks` with
      `model.block_keys`, which saves stacking them here.
    images: normalized (`nfnet.preprocessing`).
    keys: one an example for training, None for inference.

  Raises:
    ValueError: `parameters` lacks one or has one too many.
  """
  return _with_parameters(model, parameters)(images, keys=keys)


def apply_features(
  model: NFNet, parameters: Parameters, images: Float[Array, "n height width 3"]
) -> Float[Array, "n c"]:
  """Features of inference in float32, as a pure function (`NFNet.features`).

  Args:
    model: the structure.
    parameters: as for `apply`.
    images: normalized (`nfnet.preprocessing`).

  Raises:
    ValueError: `parameters` lacks one or has one too many.
  """
  return _with_parameters(model, parameters).features(images)


def _with_parameters(model: NFNet, parameters: Parameters) -> NFNet:
  needed = parameter_shapes(model)
  if any(map(is_stacked, parameters.get(BLOCKS, ()))):
    needed = arrange_blocks(needed, model.block_keys)
  _check_names(parameters, needed)
  arranged = arrange_blocks(parameters, model.block_keys)
  blocks = {i: arranged[BLOCKS][key] for i, key in enumerate(model.block_keys)}
  graph, state = nnx.split(model)
  nnx.replace_by_pure_dict(state, {**arranged, BLOCKS: blocks})
  return nnx.merge(graph, state)


def _check_names(parameters: Parameters, needed: Parameters) -> None:
  def names(tree):
    return {parameter_name(path) for path, _ in jax.tree.leaves_with_path(tree)}

  # NNX would leave a missing one without a value, to fail somewhere inside of an op.
  if missing := sorted(names(needed) - names(parameters)):
    raise ValueError(f"parameters lack {missing[0]}, of {len(missing)} that are missing")
  if superfluous := sorted(names(parameters) - names(needed)):
    raise ValueError(f"parameters have {superfluous[0]}, which the network does not have")

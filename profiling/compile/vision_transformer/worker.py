"""Compiles one training step of a vision transformer, in a process of its own.

    python -m profiling.compile.vision_transformer.worker REQUEST.json FOLDER

Writes what `profiling.compile.step_worker` writes. `profiling.vit` starts it.
"""

import dataclasses
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from nfnet.images.normalization import normalize
from profiling.compile.topology import describe_devices, parse_topology
from profiling.compile.vision_transformer.model import (
  VISION_TRANSFORMERS,
  VisionTransformer,
  apply,
)
from profiling.compile.worker import compile_step, serve
from train.config.experiment import Loss
from train.step.losses import example_losses, targets_from_labels
from train.step.sharding.batch import batch_sharding
from train.step.sharding.mesh import DATA_AXES, make_mesh
from train.step.sharding.parameters import gather, sum_gradients


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionTransformerRequest:
  """The training step of one vision transformer on one slice.

  Attributes:
    model: name in `profiling.compile.vision_transformer.model.VISION_TRANSFORMERS`.
    topology: name of the slice, for example "v4:4x4x8".
    batch_per_chip: images per step and chip.
    pixels: side of an image.
    num_classes: width of the classifier.
    rematerialize: whether each layer is recomputed in the backward pass.
  """

  model: str
  topology: str
  batch_per_chip: int
  pixels: int
  num_classes: int
  rematerialize: bool


def make_optimizer() -> optax.GradientTransformation:
  """Returns Adafactor with momentum in bfloat16 (https://arxiv.org/abs/2106.04560, section 3.4)."""
  return optax.adafactor(
    1e-3, momentum=0.9, dtype_momentum=jnp.bfloat16, weight_decay_rate=3e-5, clipping_threshold=1.0
  )


def make_step(
  model: VisionTransformer, optimizer: optax.GradientTransformation, mesh: Mesh, rematerialize: bool
) -> Any:
  """Returns the pure function (state, batch) -> (next state, loss).

  Examples are spread over the devices; every device holds all parameters.

  Args:
    model: size of the network.
    optimizer: update rule.
    mesh: devices.
    rematerialize: whether each layer is recomputed in the backward pass.
  """

  def step_on_device(state: Any, batch: Any) -> tuple[Any, Any]:
    parameters, optimizer_state = state
    specs = jax.tree.map(lambda _: P(), parameters)

    def local_loss(parameters):
      images = normalize(batch["image"])
      logits = apply(
        model, parameters, images, dtype=jnp.dtype("bfloat16"), rematerialize=rematerialize
      )
      targets = targets_from_labels(batch["labels"], logits.shape[-1])
      return jnp.mean(example_losses(Loss(kind="sigmoid"), logits, targets)) / mesh.size

    loss, gradients = jax.value_and_grad(local_loss)(
      gather(parameters, specs, jnp.dtype("float32"))
    )
    gradients = sum_gradients(gradients, {}, jnp.dtype("float32"))
    with jax.named_scope("optimizer"):
      updates, optimizer_state = optimizer.update(gradients, optimizer_state, parameters)
      parameters = optax.apply_updates(parameters, updates)
    return (parameters, optimizer_state), jax.lax.psum(loss, DATA_AXES)

  return jax.shard_map(
    step_on_device, mesh=mesh, in_specs=(P(), P(DATA_AXES)), out_specs=(P(), P())
  )


def compile_request(fields: dict[str, Any], folder: pathlib.Path) -> dict[str, Any]:
  """Compiles the step of a request for its slice.

  Args:
    fields: see `VisionTransformerRequest`.
    folder: folder in which to keep the program.

  Returns:
    The figures that `profiling.compile.worker.compile_step` returns.

  Raises:
    UserError: there is no such slice.
    jax.errors.JaxRuntimeError: the compiler refuses the program.
  """
  request = VisionTransformerRequest(**fields)
  topology = parse_topology(request.topology)
  mesh = make_mesh(describe_devices(topology))
  model = VISION_TRANSFORMERS[request.model]
  optimizer = make_optimizer()
  parameters = model.parameter_shapes(request.pixels, request.num_classes)
  state = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, P())),
    (parameters, jax.eval_shape(optimizer.init, parameters)),
  )
  images = request.batch_per_chip * topology.chips

  def described(dtype, *shape):
    return jax.ShapeDtypeStruct((images, *shape), dtype, sharding=batch_sharding(mesh))

  batch = {
    "image": described("uint8", request.pixels, request.pixels, 3),
    "labels": described("int32", 1),
  }
  step = jax.jit(make_step(model, optimizer, mesh, request.rematerialize), donate_argnums=0)
  return compile_step(step, state, batch, folder)


if __name__ == "__main__":
  serve(compile_request, *sys.argv[1:])

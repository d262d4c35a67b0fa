"""Compiles the candidates for the tile of one convolution kernel, in a process of its own.

    python -m profiling.tile_worker REQUEST.json FOLDER

Leaves what `profiling.op_worker` leaves; each entry has the candidate as well.
"""

import dataclasses
import functools
import itertools
import sys
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from kernels.scaled_ws_conv import backward_tpu, forward_tpu
from kernels.scaled_ws_conv.geometry import Geometry
from kernels.scaled_ws_conv.reference import VARIANCE_FLOOR
from kernels.scaled_ws_conv.tile import VMEM_BYTES, Blocks, Direction, candidates, choose
from kernels.tpu import SUBLANES
from nfnet.activations import scaled_activation
from profiling.op_shapes import ConvShape, StemShape, TailShape, named_shapes
from profiling.op_worker import Program, main


@dataclasses.dataclass(frozen=True, kw_only=True)
class TileRequest:
  """The likely best tiles of a kernel.

  Attributes:
    topology: name of a slice of which the device is one.
    images: of a device.
    name: of the kernel's geometry.
    direction: of the pass.
    count: of candidates.
  """

  topology: str
  images: int
  name: str
  direction: Direction
  count: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class TiledKernel:
  """One kernel of the published networks.

  Attributes:
    geometry: what it computes.
    activates_input: with a gelu.
    standardizes: false for the stem, whose weights come standardized.
    differentiates_input: false for the first convolution.
  """

  geometry: Geometry
  activates_input: bool
  standardizes: bool
  differentiates_input: bool = True


def tiled_kernels(images: int) -> dict[str, TiledKernel]:
  """By the geometry's name, for that many images a device."""
  kernels = {}
  for shape in named_shapes():
    if isinstance(shape, TailShape):
      shape = shape.convolution
    if not isinstance(shape, ConvShape | StemShape):
      continue
    for i, geometry in enumerate(shape.geometries(images)):
      is_stem = isinstance(shape, StemShape)
      # The stem's first convolution has the images.
      is_first = is_stem and i == 0
      kernels[geometry.name] = TiledKernel(
        geometry=geometry,
        activates_input=not is_first if is_stem else shape.activates_input,
        standardizes=not is_stem,
        differentiates_input=not is_first,
      )
  return kernels


def programs(request: TileRequest) -> Iterator[Program]:
  """A program for each candidate; the tile that the op uses today is one."""
  kernel = tiled_kernels(request.images)[request.name]
  problem = kernel.geometry, request.direction
  used = choose(*problem)
  others = (blocks for blocks in candidates(*problem, VMEM_BYTES) if blocks != used)
  for blocks in (used, *itertools.islice(others, request.count - 1)):
    make = _forward_program if request.direction == "forward" else _backward_program
    yield make(kernel, blocks)


def _facts(blocks: Blocks):
  return {"tile": dataclasses.asdict(blocks.tile), "vmem_bytes": blocks.vmem_bytes}


def _described(shape: tuple[int, ...], dtype: str = "float32") -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))


def _operands(kernel: TiledKernel):
  """Input, result, weight, a vector of the output channels and the input's scale."""
  g = kernel.geometry
  result = g.height, g.width, g.outputs, g.images, g.out_channels
  return (
    _described(g.input_shape, "bfloat16"),
    _described(result, "bfloat16"),
    _described((len(g.taps), g.group_inputs, g.out_channels)),
    _described((1, g.out_channels)),
    _described((1,)),
  )


def _activation(kernel: TiledKernel):
  return scaled_activation("gelu").function if kernel.activates_input else None


def _forward_program(kernel: TiledKernel, blocks: Blocks) -> Program:
  x, _, weight, vector, scale = _operands(kernel)
  gain = vector if kernel.standardizes else None
  return Program(
    label=kernel.geometry.name,
    direction="forward",
    function=functools.partial(
      forward_tpu.convolve,
      blocks=blocks,
      activation=_activation(kernel),
      variance_floor=VARIANCE_FLOOR,
    ),
    arguments=(x, weight, gain, vector, scale),
    facts=_facts(blocks),
  )


def _backward_program(kernel: TiledKernel, blocks: Blocks) -> Program:
  g = kernel.geometry
  x, result, weight, _, scale = _operands(kernel)
  return Program(
    label=g.name,
    direction="backward",
    function=functools.partial(
      backward_tpu.gradients,
      blocks=blocks,
      activation=_activation(kernel),
      differentiates_input=kernel.differentiates_input,
    ),
    arguments=(
      x,
      result,
      _described((g.images, g.out_channels)) if g.returns_mean else None,
      x if g.returns_input else None,
      weight,
      _described((SUBLANES, g.out_channels)),
      scale,
    ),
    facts=_facts(blocks),
  )


if __name__ == "__main__":
  main(TileRequest, programs, *sys.argv[1:])

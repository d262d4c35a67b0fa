"""Compiles the candidates for the tile of one kernel, in a process of its own.

    python -m profiling.compile.tile_worker REQUEST.json FOLDER

Leaves what `profiling.compile.op_worker` leaves; each entry has the candidate as well.
"""

import dataclasses
import functools
import itertools
import math
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from kernels.scaled_ws_conv import backward_tpu, forward_tpu
from kernels.scaled_ws_conv import tile as conv_tile
from kernels.scaled_ws_conv.geometry import Geometry
from kernels.scaled_ws_conv.reference import VARIANCE_FLOOR
from kernels.se_residual import kernel_tpu as residual_kernel
from kernels.se_residual import tile as residual_tile
from kernels.sgd_agc import kernel_tpu as update_kernel
from kernels.sgd_agc import tile as update_tile
from kernels.sgd_agc.reference import GRADIENT_NORM_FLOOR, PARAMETER_NORM_FLOOR
from kernels.sgd_agc.tile import Matrix
from kernels.tpu import LANES, SUBLANES, VMEM_BYTES
from nfnet.activations import scaled_activation
from profiling.compile.op_shapes import (
  ConvShape,
  SqueezeExciteShape,
  StemShape,
  UpdateShape,
  named_shapes,
)
from profiling.compile.op_worker import Program, compile_all
from profiling.compile.worker import serve

Op = Literal["scaled_ws_conv", "se_residual", "sgd_agc"]
OPS: tuple[Op, ...] = get_args(Op)
Sweep = Callable[[int], Iterator[Program]]
"""The programs of so many candidates; the tile that the op uses today is the first one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TileRequest:
  """The likely best tiles of a kernel.

  Attributes:
    topology: name of a slice of which the device is one.
    images: of a device.
    op: whose kernel it is.
    name: of the kernel's work.
    direction: of the pass.
    count: of candidates.
  """

  topology: str
  images: int
  op: Op
  name: str
  direction: str
  count: int


def programs(request: TileRequest) -> Iterator[Program]:
  """A program for each candidate."""
  return sweeps(request.op, request.images)[request.name, request.direction](request.count)


def sweeps(op: Op, images: int) -> dict[tuple[str, str], Sweep]:
  """All kernels of an op in the published networks, by name and direction.

  Args:
    op: with tiles.
    images: a device.
  """
  match op:
    case "scaled_ws_conv":
      return _convolution_sweeps(images)
    case "se_residual":
      return _residual_sweeps(images)
    case "sgd_agc":
      return _update_sweeps()


def _first(used: Any, others: Iterable[Any], count: int) -> Iterator[Any]:
  yield used
  yield from itertools.islice((blocks for blocks in others if blocks != used), count - 1)


def _facts(blocks: Any) -> dict[str, Any]:
  return {"tile": dataclasses.asdict(blocks.tile), "vmem_bytes": blocks.vmem_bytes}


def _described(shape: tuple[int, ...], dtype: str = "float32") -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))


# Convolutions.


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
    if isinstance(shape, UpdateShape):
      continue
    for i, geometry in enumerate(shape.geometries(images)):
      is_stem = isinstance(shape, StemShape)
      # The stem's first convolution has the images.
      is_first = is_stem and i == 0
      kernels[geometry.name] = TiledKernel(
        geometry=geometry,
        activates_input=shape.activates_input if isinstance(shape, ConvShape) else not is_first,
        standardizes=not is_stem,
        differentiates_input=not is_first,
      )
  return kernels


def _convolution_sweeps(images: int) -> dict[tuple[str, str], Sweep]:
  def sweep(kernel, direction, make, count):
    problem = kernel.geometry, direction
    others = conv_tile.candidates(*problem, VMEM_BYTES)
    for blocks in _first(conv_tile.choose(*problem), others, count):
      yield make(kernel, blocks)

  passes = (("forward", _forward_program), ("backward", _backward_program))
  return {
    (name, direction): functools.partial(sweep, kernel, direction, make)
    for name, kernel in tiled_kernels(images).items()
    for direction, make in passes
  }


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


def _forward_program(kernel: TiledKernel, blocks: conv_tile.Blocks) -> Program:
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


def _backward_program(kernel: TiledKernel, blocks: conv_tile.Blocks) -> Program:
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
      *[_described((g.images, g.out_channels)) if g.ends_branch else None] * 2,
      x if g.returns_input else None,
      weight,
      _described((SUBLANES, g.out_channels)),
      scale,
    ),
    facts=_facts(blocks),
  )


# Squeeze-excite.


def _residual_sweeps(images: int) -> dict[tuple[str, str], Sweep]:
  found = {}
  for shape in named_shapes():
    if isinstance(shape, SqueezeExciteShape):
      conv = shape.convolution
      wide = _described((conv.pixels, conv.pixels, images, conv.out_channels), "bfloat16")
      name = residual_tile.name(wide.shape, wide.dtype.itemsize)
      for direction in ("forward", "backward"):
        found[name, direction] = functools.partial(_residual_programs, name, direction, wide)
  return found


def _residual_programs(name, direction, wide, count) -> Iterator[Program]:
  problem = wide.shape, wide.dtype.itemsize, direction
  if direction == "forward":
    function, arguments = residual_kernel.add_scaled, (wide, wide, _described(wide.shape[2:]))
  else:
    function, arguments = residual_kernel.sums_over_space, (wide, wide)
  used = residual_tile.choose(*problem)
  for blocks in _first(used, residual_tile.candidates(*problem), count):
    yield Program(
      label=name,
      direction=direction,
      function=functools.partial(function, blocks=blocks),
      arguments=arguments,
      facts=_facts(blocks),
    )


# The optimizer.


def _update_sweeps() -> dict[tuple[str, str], Sweep]:
  found = {}
  for shape in named_shapes():
    if isinstance(shape, UpdateShape) and len(shape.shapes) == 1:
      *inputs, outputs = shape.shapes[0]
      rows, columns = math.prod(inputs), outputs
      if not shape.clipped and columns % LANES:
        rows, columns = columns, rows
      for gradient_dtype in ("float32", "bfloat16"):
        itemsize = jnp.dtype(gradient_dtype).itemsize
        matrix = Matrix(rows=rows, columns=columns, clips=shape.clipped, gradient_itemsize=itemsize)
        if rows % matrix.tile_rows == 0:
          found[matrix.name, "update"] = functools.partial(_update_programs, matrix, gradient_dtype)
  return found


def _update_programs(matrix: Matrix, gradient_dtype: str, count: int) -> Iterator[Program]:
  one = _described((matrix.rows, matrix.columns))
  gradient = _described(one.shape, gradient_dtype)
  for blocks in _first(update_tile.choose(matrix), update_tile.candidates(matrix), count):
    yield Program(
      label=matrix.name,
      direction="update",
      function=functools.partial(
        update_kernel.update, blocks=blocks, floors=(PARAMETER_NORM_FLOOR, GRADIENT_NORM_FLOOR)
      ),
      arguments=(_described((5,)), [one, gradient, one]),
      donated=(1,),
      facts=_facts(blocks),
    )


def compile_request(fields: dict[str, Any], folder: pathlib.Path) -> dict[str, Any]:
  """Compiles the candidates of a request, `TileRequest`, into the folder."""
  request = TileRequest(**fields)
  return {"programs": compile_all(list(programs(request)), request.topology, folder)}


if __name__ == "__main__":
  serve(compile_request, *sys.argv[1:])

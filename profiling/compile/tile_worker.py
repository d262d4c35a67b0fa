"""Compiles one kernel with each candidate for its tile, in a process of its own.

    python -m profiling.compile.tile_worker REQUEST.json FOLDER

Writes what `profiling.compile.op_worker` writes; each entry also has the candidate.
"""

import dataclasses
import functools
import itertools
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from kernels.layout import SUBLANES
from kernels.scaled_ws_conv import backward_tpu, forward_tpu
from kernels.scaled_ws_conv import tile as conv_tile
from kernels.scaled_ws_conv.filters import RawFilters, StandardizedFilters, to_rows
from kernels.scaled_ws_conv.formulas import PendingSum
from kernels.scaled_ws_conv.problem import Problem as ConvolutionProblem
from kernels.se_residual import residual_tpu
from kernels.se_residual import tile as residual_tile
from kernels.se_residual.problem import Problem as ResidualProblem
from kernels.sgd_agc import tile as update_tile
from kernels.sgd_agc import update_tpu
from kernels.sgd_agc.problem import Problem as UpdateProblem
from kernels.sgd_agc.problem import problem_of as update_problem_of
from kernels.stem import tile as stem_tile
from kernels.tpu import VMEM_BYTES
from nfnet.activations import scaled_activation
from profiling.compile.op_shapes import (
  ConvShape,
  FullyConnectedShape,
  SqueezeExciteShape,
  StemShape,
  UpdateShape,
  named_shapes,
)
from profiling.compile.op_worker import Program, compile_all
from profiling.compile.worker import serve

Op = Literal["scaled_ws_conv", "stem", "se_residual", "sgd_agc"]
OPS: tuple[Op, ...] = get_args(Op)
Key = tuple[Any, str]
"""The problem that a kernel solves (`Problem` of the op) and the direction of the pass."""
Sweep = Callable[[int], Iterator[Program]]
"""Function from a number of candidates to their programs; the tile in use comes first."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TileRequest:
  """A request to compile a kernel with its likely best tiles.

  Attributes:
    topology: name of the slice that the device belongs to.
    images: number of images per device.
    op: op that has the kernel.
    problem: fields of the problem that the kernel solves.
    direction: direction of the pass.
    count: number of candidates.
  """

  topology: str
  images: int
  op: Op
  problem: dict[str, Any]
  direction: str
  count: int


def programs(request: TileRequest) -> Iterator[Program]:
  """Returns a program for each candidate."""
  for (problem, direction), sweep in sweeps(request.op, request.images).items():
    if (dataclasses.asdict(problem), direction) == (request.problem, request.direction):
      return sweep(request.count)
  raise ValueError(f"{request=}: {request.op} has no such kernel")


def sweeps(op: Op, images: int) -> dict[Key, Sweep]:
  """Returns the sweeps of all kernels that an op has in the published networks.

  Args:
    op: op with tiles.
    images: number of images per device.
  """
  match op:
    case "scaled_ws_conv" | "stem":
      return _convolution_sweeps(op, images)
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
  """One convolution of the published networks.

  Attributes:
    problem: problem that the kernels solve.
    activates_input: whether the input goes through a gelu.
    differentiates_input: whether the input's gradient is computed; not for the first convolution.
  """

  problem: ConvolutionProblem
  activates_input: bool
  differentiates_input: bool = True


def tiled_kernels(op: Literal["scaled_ws_conv", "stem"], images: int) -> list[TiledKernel]:
  """Returns an op's kernels for `images` images per device, each problem once."""
  kernels = {}
  for shape in named_shapes():
    is_stem = isinstance(shape, StemShape)
    if isinstance(shape, UpdateShape | FullyConnectedShape) or is_stem != (op == "stem"):
      continue
    for i, problem in enumerate(shape.problems(images)):
      # The stem's first convolution reads the images, which are not activated or differentiated.
      is_first = is_stem and i == 0
      kernels[problem] = TiledKernel(
        problem=problem,
        activates_input=shape.activates_input if isinstance(shape, ConvShape) else not is_first,
        differentiates_input=not is_first,
      )
  return list(kernels.values())


def _convolution_sweeps(op: Literal["scaled_ws_conv", "stem"], images: int) -> dict[Key, Sweep]:
  choose = stem_tile.choose if op == "stem" else conv_tile.choose

  def sweep(kernel, direction, make, count):
    used = choose(kernel.problem, direction)
    others = conv_tile.candidates(kernel.problem, direction, VMEM_BYTES)
    for blocks in _first(used, others, count):
      yield make(kernel, blocks)

  passes = (("forward", _forward_program), ("backward", _backward_program))
  return {
    (kernel.problem, direction): functools.partial(sweep, kernel, direction, make)
    for kernel in tiled_kernels(op, images)
    for direction, make in passes
  }


def _operands(kernel: TiledKernel):
  """Returns input, result and filters."""
  problem = kernel.problem
  pixels = problem.height, problem.width, problem.outputs
  outputs = problem.out_channels
  weight = _described((len(problem.taps), problem.group_inputs, outputs))
  if problem.standardized:
    rows = jax.eval_shape(to_rows, weight)
    filters = StandardizedFilters(_described(rows.shape, "bfloat16"), rows)
  else:
    filters = RawFilters(weight, _described((outputs,)), _described(()))
  return (
    _described(problem.input_shape, "bfloat16"),
    _described((*pixels, problem.images, outputs), "bfloat16"),
    filters,
  )


def _sum_of(x: jax.ShapeDtypeStruct) -> PendingSum:
  """Returns a sum in place of an input that has no phases."""
  height, _, width, _, *image = x.shape
  wide, narrow = _described((height, width, *image), "bfloat16"), _described(image)
  return PendingSum(wide, wide, narrow, narrow)


def _activation(kernel: TiledKernel):
  return scaled_activation("gelu", "released").function if kernel.activates_input else None


def _forward_program(kernel: TiledKernel, blocks: conv_tile.Blocks) -> Program:
  x, _, filters = _operands(kernel)
  return Program(
    label=kernel.problem.label,
    direction="forward",
    function=functools.partial(
      forward_tpu.convolve,
      blocks=blocks,
      activation=_activation(kernel),
      standardization="released",
    ),
    arguments=(
      _sum_of(x) if kernel.problem.sums_input else x,
      filters,
      _described((1, kernel.problem.out_channels)),
    ),
    facts=_facts(blocks),
  )


def _backward_program(kernel: TiledKernel, blocks: conv_tile.Blocks) -> Program:
  problem = kernel.problem
  x, result, filters = _operands(kernel)
  image = _described((problem.images, problem.out_channels)) if problem.ends_branch else None
  return Program(
    label=problem.label,
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
      image,
      image,
      x if problem.returns_input else None,
      _sum_of(x).branch if problem.sums_input else None,
      filters,
      None if problem.standardized else _described((SUBLANES, problem.out_channels)),
    ),
    facts=_facts(blocks) | {"added_hbm_bytes": blocks.part_bytes},
  )


# Squeeze-excite.


def _residual_sweeps(images: int) -> dict[Key, Sweep]:
  found = {}
  for shape in named_shapes():
    if isinstance(shape, SqueezeExciteShape):
      convolution, *_ = shape.problems(images)
      problem = ResidualProblem(
        height=convolution.height,
        width=convolution.width,
        images=convolution.images,
        channels=convolution.out_channels,
        itemsize=convolution.itemsize,
      )
      for direction in ("forward", "backward"):
        found[problem, direction] = functools.partial(_residual_programs, problem, direction)
  return found


def _residual_programs(problem: ResidualProblem, direction, count) -> Iterator[Program]:
  shape = problem.height, problem.width, problem.images, problem.channels
  wide, narrow = _described(shape, "bfloat16"), _described(shape[2:])
  if direction == "forward":
    function, arguments = residual_tpu.add_scaled, (wide, wide, narrow)
  else:
    function, arguments = residual_tpu.sums_over_space, (wide, wide)
  used = residual_tile.choose(problem, direction)
  for blocks in _first(used, residual_tile.candidates(problem, direction), count):
    yield Program(
      label=problem.label,
      direction=direction,
      function=functools.partial(function, blocks=blocks),
      arguments=arguments,
      facts=_facts(blocks),
    )


# The optimizer.


def _update_sweeps() -> dict[Key, Sweep]:
  found = {}
  for shape in named_shapes():
    if isinstance(shape, UpdateShape) and len(shape.shapes) == 1:
      for gradient_dtype in ("float32", "bfloat16"):
        itemsize = jnp.dtype(gradient_dtype).itemsize
        problem = update_problem_of(
          shape.shapes[0], clips=shape.clipped, gradient_itemsize=itemsize, has_ema=False
        )
        # Where the kernel widens bfloat16 gradients, the problem is that of float32 gradients.
        if problem.gradient_itemsize == itemsize:
          found[problem, "update"] = functools.partial(_update_programs, problem, gradient_dtype)
  return found


def _update_programs(problem: UpdateProblem, gradient_dtype: str, count: int) -> Iterator[Program]:
  one = _described((problem.rows, problem.columns))
  gradient = _described(one.shape, gradient_dtype)
  for blocks in _first(update_tile.choose(problem), update_tile.candidates(problem), count):
    yield Program(
      label=problem.label,
      direction="update",
      function=functools.partial(update_tpu.update, blocks=blocks),
      arguments=(_described((5,)), one, gradient, one, None),
      donated=(1, 3),
      facts=_facts(blocks),
    )


def compile_request(fields: dict[str, Any], folder: pathlib.Path) -> dict[str, Any]:
  """Compiles the candidates of a request, `TileRequest`, into the folder."""
  request = TileRequest(**fields)
  return {"programs": compile_all(list(programs(request)), request.topology, folder)}


if __name__ == "__main__":
  serve(compile_request, *sys.argv[1:])

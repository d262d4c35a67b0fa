"""Compiles the ops one by one, in a process of its own; `profiling.kernels` starts it.

    python -m profiling.compile.op_worker REQUEST.json FOLDER

Writes a folder FOLDER/NUMBER for each program, with program.hlo.gz and the compiler's texts about
Pallas kernels. FOLDER/result.json lists the programs, with the bytes of their arguments and results
or the compiler's error message. If the request is invalid, FOLDER/error.txt says why in one line.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

import kernels
from nfnet.activations import scaled_activation
from profiling.compile import matmul_kernel
from profiling.compile.op_shapes import (
  ConvShape,
  FullyConnectedShape,
  OpShape,
  SqueezeExciteShape,
  StemShape,
  UpdateShape,
  named_shapes,
)
from profiling.compile.topology import describe_devices, parse_topology
from profiling.compile.worker import keep_program, serve
from profiling.compiler_text.kernel_dumps import DUMPS

YARDSTICK = f"matmul {matmul_kernel.SIZE}x{matmul_kernel.SIZE}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpRequest:
  """A request to compile every op at every published shape, for one device.

  Attributes:
    topology: name of the slice that the device belongs to.
    images: number of images on the device, which all of its cores share.
    kernels: "reference" or "pallas".
    only: substring of the labels of the ops to compile; "" compiles all of them.
  """

  topology: str
  images: int
  kernels: Literal["reference", "pallas"]
  only: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
  """A program to compile.

  Attributes:
    label: label of the op's shape.
    direction: "forward"; "backward"; "both" is forward with all gradients; "convolution forward"
      and "convolution both" are these for the convolution without squeeze-excite; "update";
      "yardstick" is the matrix product as a kernel and "yardstick by XLA" the same by XLA.
    function: function of JAX arrays.
    arguments: descriptions of the function's arguments: trees of `jax.ShapeDtypeStruct`.
    donated: positions of the arguments that the results may overwrite.
    facts: data to keep with the results of the compilation.
  """

  label: str
  direction: Literal[
    "forward",
    "backward",
    "both",
    "convolution forward",
    "convolution both",
    "update",
    "yardstick",
    "yardstick by XLA",
  ]
  function: Callable[..., Any]
  arguments: tuple[Any, ...]
  donated: tuple[int, ...] = ()
  facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def programs(request: OpRequest) -> Iterator[Program]:
  """Yields all programs of a request."""
  size = (matmul_kernel.SIZE, matmul_kernel.SIZE)
  everything = [
    Program(
      label=YARDSTICK,
      direction=direction,
      function=function,
      arguments=(jax.ShapeDtypeStruct(size, jnp.bfloat16),) * 2,
    )
    for direction, function in (
      ("yardstick", matmul_kernel.matmul),
      ("yardstick by XLA", jnp.dot),
    )
  ]
  for shape in named_shapes():
    everything += programs_of(shape, request)
  return (program for program in everything if request.only in program.label)


def programs_of(shape: OpShape, request: OpRequest) -> list[Program]:
  """Returns the programs of one op."""
  match shape:
    case ConvShape():
      return _conv_programs(shape, request)
    case StemShape():
      return _stem_programs(shape, request)
    case SqueezeExciteShape():
      return _squeeze_excite_programs(shape, request)
    case FullyConnectedShape():
      return _fully_connected_programs(shape, request)
    case UpdateShape():
      return [_update_program(shape, request)]


def _described(*shape: int, dtype: str = "float32") -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))


def _convolution(shape: ConvShape, request: OpRequest) -> Callable[..., kernels.Convolution]:
  activation = scaled_activation("gelu", "released")

  def forward(weight, gain, bias, beta, x):
    return kernels.scaled_ws_convolution(
      x,
      weight,
      gain,
      bias,
      stride=shape.stride,
      groups=shape.groups,
      pool=shape.pool,
      activation=activation.function if shape.activates_input else None,
      input_scale=beta if shape.activates_input else None,
      returns_input=shape.returns_input,
      implementation=request.kernels,
    )

  return forward


def _convolution_arguments(shape: ConvShape, images: int) -> tuple[jax.ShapeDtypeStruct, ...]:
  kernel, outputs = shape.filter_pixels, shape.out_channels
  return (
    _described(kernel, kernel, shape.in_channels // shape.groups, outputs),
    _described(outputs),
    _described(outputs),
    _described(),
    _described(shape.pixels, shape.pixels, images, shape.in_channels, dtype="bfloat16"),
  )


_CONVOLUTION_DIFFERENTIATED = (0, 1, 2, 4)
"""Positions of the differentiated arguments: all but beta, which is not learned."""


def _conv_programs(
  shape: ConvShape, request: OpRequest, *, in_order: bool = False
) -> list[Program]:
  arguments = _convolution_arguments(shape, request.images)
  side, outputs = shape.out_pixels, shape.out_channels
  result = kernels.Convolution(
    _described(side, side, request.images, outputs, dtype="bfloat16"),
    arguments[-1] if shape.returns_input else None,
  )
  return _forward_and_both(
    shape.label,
    _convolution(shape, request),
    arguments,
    _CONVOLUTION_DIFFERENTIATED,
    result,
    in_order=in_order,
  )


def _stem_programs(shape: StemShape, request: OpRequest) -> list[Program]:
  activation = scaled_activation("gelu", "released")

  def forward(weights, gains, biases, images):
    return kernels.stem_convolutions(
      images,
      weights,
      gains,
      biases,
      activation=activation.function,
      input_scale=jnp.float32(activation.gain),
      implementation=request.kernels,
    )

  channels = (3, *shape.channels)
  pairs = zip(channels, shape.channels, strict=False)
  vectors = tuple(map(_described, shape.channels))
  side = shape.out_pixels
  arguments = (
    tuple(_described(3, 3, *pair) for pair in pairs),
    vectors,
    vectors,
    _described(shape.pixels, shape.pixels, request.images, 3, dtype="bfloat16"),
  )
  y = _described(side, side, request.images, shape.channels[-1], dtype="bfloat16")
  return _forward_and_both(shape.label, forward, arguments, (0, 1, 2), y)


def _squeeze_excite_programs(shape: SqueezeExciteShape, request: OpRequest) -> list[Program]:
  conv = shape.convolution
  activation = scaled_activation("gelu", "released")

  def forward(weight, gain, bias, beta, x, shortcut, gate, skip_gain, keep):
    return kernels.conv_se_residual(
      x,
      weight,
      gain,
      bias,
      shortcut,
      gate,
      skip_gain,
      beta,
      keep,
      activation=activation.function,
      implementation=request.kernels,
    )

  channels, hidden = conv.out_channels, shape.squeeze_channels
  conv_arguments = _convolution_arguments(conv, request.images)
  wide = _described(conv.pixels, conv.pixels, request.images, channels, dtype="bfloat16")
  gate = kernels.Gate(
    squeeze_weight=_described(channels, hidden),
    squeeze_bias=_described(hidden),
    excite_weight=_described(hidden, channels),
    excite_bias=_described(channels),
  )
  skip_gain = _described()
  arguments = (*conv_arguments, wide, gate, skip_gain, _described(request.images))
  # The shortcut's gradient is the cotangent itself, which takes no time; keep is not a parameter.
  differentiated = (
    *_CONVOLUTION_DIFFERENTIATED,
    *range(len(conv_arguments) + 1, len(arguments) - 1),
  )
  return [
    *_forward_and_both(shape.label, forward, arguments, differentiated, wide, in_order=True),
    *(
      dataclasses.replace(program, label=shape.label, direction=f"convolution {program.direction}")
      for program in _conv_programs(conv, request, in_order=True)
    ),
  ]


def _fully_connected_programs(shape: FullyConnectedShape, request: OpRequest) -> list[Program]:
  def forward(x, weight, bias):
    return kernels.fully_connected_layer(
      x, weight, bias, dtype="bfloat16", implementation=request.kernels
    )

  arguments = (
    _described(request.images, shape.inputs),
    # In this dtype, its gradient travels to other devices.
    _described(shape.inputs, shape.outputs, dtype="bfloat16"),
    _described(shape.outputs),
  )
  y = _described(request.images, shape.outputs)
  return _forward_and_both(shape.label, forward, arguments, (0, 1, 2), y)


def _forward_and_both(
  label: str,
  forward: Callable[..., Any],
  arguments: tuple[Any, ...],
  differentiated: tuple[int, ...],
  result: Any,
  *,
  in_order: bool = False,
) -> list[Program]:
  """Returns both programs; with `in_order`, the backward pass starts only after the result."""

  def both(cotangent, *arguments):
    def of_differentiated(*values):
      changed = dict(zip(differentiated, values, strict=True))
      return forward(*(changed.get(i, argument) for i, argument in enumerate(arguments)))

    y, pullback = jax.vjp(of_differentiated, *(arguments[i] for i in differentiated))
    if in_order:
      y, cotangent = jax.lax.optimization_barrier((y, cotangent))
    return _new(y), pullback(cotangent)

  return [
    Program(
      label=label,
      direction="forward",
      function=lambda *arguments: _new(forward(*arguments)),
      arguments=arguments,
    ),
    Program(label=label, direction="both", function=both, arguments=(result, *arguments)),
  ]


def _new(result: Any) -> Any:
  """Drops the input that a convolution returns: here, unlike in a network, it would be copied."""
  return result._replace(input=None) if isinstance(result, kernels.Convolution) else result


def _update_program(shape: UpdateShape, request: OpRequest) -> Program:
  def update(parameters, gradients, buffers, rate):
    return kernels.sgd_agc_step(
      parameters,
      gradients,
      buffers,
      learning_rate=rate,
      momentum=jnp.float32(0.9),
      weight_decay=jnp.float32(2e-5),
      clipping=jnp.float32(0.01) if shape.clipped else None,
      implementation=request.kernels,
    )

  leaves = {f"{i}": _described(*one) for i, one in enumerate(shape.shapes)}
  return Program(
    label=shape.label,
    direction="update",
    function=update,
    arguments=(leaves, leaves, leaves, _described()),
    donated=(0, 2),
  )


def compile_all(
  todo: Sequence[Program], topology: str, folder: pathlib.Path
) -> list[dict[str, Any]]:
  """Compiles one program after another and keeps each result in a folder of its own.

  Raises:
    UserError: there is no such slice.
  """
  device = describe_devices(parse_topology(topology))[0]
  mesh = jax.make_mesh((1,), ("device",), (jax.sharding.AxisType.Auto,), devices=[device])
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  entries = []
  for i, program in enumerate(todo):
    # The process that waits for this one shows this line.
    print(f"{i + 1}/{len(todo)} {program.label}, {program.direction}", flush=True)
    entry = {"label": program.label, "direction": program.direction, **program.facts}
    entries.append(entry)
    arguments = jax.tree.map(
      lambda argument: jax.ShapeDtypeStruct(argument.shape, argument.dtype, sharding=sharding),
      program.arguments,
    )
    function = jax.jit(program.function, donate_argnums=program.donated)
    try:
      # Pallas asks the mesh for which chip it compiles.
      with jax.set_mesh(mesh):
        compiled = function.lower(*arguments).compile()
    except jax.errors.JaxRuntimeError as error:
      entry["error"] = str(error).splitlines()[0]
      continue
    memory = compiled.memory_analysis()
    entry["argument_bytes"] = memory.argument_size_in_bytes
    entry["output_bytes"] = memory.output_size_in_bytes
    own = folder / str(i)
    own.mkdir()
    keep_program(compiled.as_text(), own, dumps=folder / DUMPS)
  return entries


def compile_request(fields: dict[str, Any], folder: pathlib.Path) -> dict[str, Any]:
  """Compiles the programs of a request, `OpRequest`, into the folder; see `compile_all`."""
  request = OpRequest(**fields)
  return {"programs": compile_all(list(programs(request)), request.topology, folder)}


if __name__ == "__main__":
  serve(compile_request, *sys.argv[1:])

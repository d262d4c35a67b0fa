"""Times the ops of a network on one device of this machine, forward and backward.

The programs are those that `profiling.kernels` compiles, so that times can stand beside its cycles.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import kernels
from profiling.compile.op_shapes import (
  ConvShape,
  FullyConnectedShape,
  OpShape,
  SqueezeExciteShape,
  StemShape,
)
from profiling.compile.op_worker import OpRequest, Program, programs_of
from profiling.measure.call_times import seconds_per_call

_LAUNCHES_MIN = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpTime:
  """The measured time of one op at one shape in one direction.

  Attributes:
    label: op and shape.
    direction: "forward", "backward" or "update", as in `profiling.estimate.op_cycles.OpRow`.
    calls: number of calls in one training step.
    seconds: time of one call; None if it could not be measured.
    is_resolved: whether the device was measured: each program that enters the time took at least
      twice as long as a program of the same arguments that computes nothing.
    error: what went wrong, in one line.
  """

  label: str
  direction: str
  calls: int
  seconds: float | None = None
  is_resolved: bool = False
  error: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ProgramTime:
  seconds: float
  launch_seconds: float


def one_line(error: Exception) -> str:
  """Returns an error's type and the first line of its message."""
  lines = str(error).strip().splitlines()
  return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def signs_of(shape: OpShape) -> dict[str, dict[str, int]]:
  """Returns the programs whose times are added or subtracted, by direction of the op.

  The rows of `profiling.estimate.op_cycles.make_rows` are made of cycles in the same way.
  """
  match shape:
    case ConvShape() | StemShape() | FullyConnectedShape():
      return {"forward": {"forward": 1}, "backward": {"both": 1, "forward": -1}}
    case SqueezeExciteShape():
      return {
        "forward": {"forward": 1, "convolution forward": -1},
        "backward": {
          "both": 1,
          "convolution forward": 1,
          "forward": -1,
          "convolution both": -1,
        },
      }
    case _:
      return {"update": {"update": 1}}


def time_ops(shapes: Mapping[OpShape, int], request: OpRequest, calls: int) -> list[OpTime]:
  """Times ops one after another; one that fails has an error in place of a time.

  Args:
    shapes: ops and how often a step calls each.
    request: images and kernels; its topology and `only` are not used.
    calls: number of calls of each program that one measurement averages over.
  """
  rows = []
  for shape, count in tqdm(shapes.items(), desc="ops", leave=False, disable=None):
    times: dict[str, _ProgramTime] = {}
    errors: dict[str, str] = {}
    for program in programs_of(shape, request):
      try:
        times[program.direction] = _time_program(program, calls)
      # Whatever the compiler or the device raises is a result.
      except Exception as error:
        errors[program.direction] = one_line(error)
    for direction, signs in signs_of(shape).items():
      row = OpTime(label=shape.label, direction=direction, calls=count)
      failed = [errors[name] for name in signs if name in errors]
      if failed:
        rows.append(dataclasses.replace(row, error=failed[0]))
        continue
      seconds = sum(sign * times[name].seconds for name, sign in signs.items())
      is_resolved = seconds > 0 and all(
        times[name].seconds >= _LAUNCHES_MIN * times[name].launch_seconds for name in signs
      )
      rows.append(dataclasses.replace(row, seconds=seconds, is_resolved=is_resolved))
  return rows


def draw(described: Any, seed: int) -> Any:
  """Returns normally distributed arrays on the device, small enough that no sigmoid saturates.

  Args:
    described: tree of `jax.ShapeDtypeStruct`.
    seed: seed of the draws.
  """
  generator = np.random.default_rng(seed)
  return jax.tree.map(
    lambda one: jnp.asarray(generator.standard_normal(one.shape, np.float32) / 8, one.dtype),
    described,
  )


def _time_program(program: Program, calls: int) -> _ProgramTime:
  arguments = draw(program.arguments, seed=0)
  launch = jax.jit(lambda *_: jnp.float32(0), keep_unused=True)
  # The first is timed before its arguments are given away.
  launch_seconds = seconds_per_call(launch, arguments, calls)
  run = jax.jit(program.function, donate_argnums=program.donated)
  seconds = seconds_per_call(run, arguments, calls, next_arguments=_next_arguments)
  return _ProgramTime(seconds=seconds, launch_seconds=launch_seconds)


def _next_arguments(arguments: tuple[Any, ...], result: Any) -> tuple[Any, ...]:
  """Returns the arguments of the next call: an update has overwritten its own."""
  if not isinstance(result, kernels.Step):
    return arguments
  _, gradients, _, learning_rate = arguments
  return result.parameters, gradients, result.momentum_buffers, learning_rate

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from profiling.compile.op_shapes import ConvShape, UpdateShape, named_shapes
from profiling.compile.op_worker import OpRequest, Program
from profiling.compiler_text.chips import CHIPS
from profiling.estimate.op_cycles import CompiledOp, make_rows
from profiling.measure import op_times
from profiling.measure.op_times import OpTime, signs_of, time_ops

REQUEST = OpRequest(topology="v4:2x2x1", images=2, kernels="reference")
SMALL = ConvShape(pixels=2, in_channels=8, out_channels=8, filter_pixels=1)
UPDATE = UpdateShape(shapes=((8, 8),))


def test_times_are_composed_as_cycles_are():
  """The two stand side by side."""
  kinds = {type(shape): shape for shape in named_shapes()}.values()
  directions = {direction for shape in kinds for s in signs_of(shape).values() for direction in s}
  cycles = {name: 10**i for i, name in enumerate(sorted(directions))}
  for shape in kinds:
    programs = {
      (shape.label, name): CompiledOp(operation_cycles=count) for name, count in cycles.items()
    }
    rows = make_rows(programs, None, chip=CHIPS["v4"], images=32)
    assert {row.direction: row.xla_cycles for row in rows} == {
      direction: sum(sign * cycles[name] for name, sign in signs.items())
      for direction, signs in signs_of(shape).items()
    }


def timed(monkeypatch, seconds):
  """Makes programs take some time by direction, and launches 1 ms."""
  monkeypatch.setattr(
    op_times,
    "_time_program",
    lambda program, calls: op_times._ProgramTime(
      seconds=seconds[program.direction], launch_seconds=1e-3
    ),
  )


def test_ops_are_timed_in_each_direction(monkeypatch):
  timed(monkeypatch, {"forward": 5e-3, "both": 12e-3, "update": 3e-3})
  rows = time_ops({SMALL: 4, UPDATE: 1}, REQUEST, calls=1)
  assert [(row.label, row.direction, row.calls, row.is_resolved) for row in rows] == [
    (SMALL.label, "forward", 4, True),
    (SMALL.label, "backward", 4, True),
    (UPDATE.label, "update", 1, True),
  ]
  assert [row.seconds for row in rows] == pytest.approx([5e-3, 7e-3, 3e-3])


@pytest.mark.parametrize(
  ("forward", "both", "resolved"),
  [
    # Launching is more than half of it, also where it is only subtracted.
    (1.9e-3, 12e-3, [False, False]),
    (5e-3, 4e-3, [True, False]),
  ],
)
def test_what_does_not_measure_the_device_is_marked(forward, both, resolved, monkeypatch):
  timed(monkeypatch, {"forward": forward, "both": both})
  assert [row.is_resolved for row in time_ops({SMALL: 1}, REQUEST, calls=1)] == resolved


def test_an_op_that_fails_is_recorded_and_the_rest_goes_on(monkeypatch):
  def time_program(program, calls):
    if program.direction == "both":
      raise RuntimeError("Mosaic failed\nto compile")
    return op_times._ProgramTime(seconds=1.0, launch_seconds=0.1)

  monkeypatch.setattr(op_times, "_time_program", time_program)
  forward, backward, update = time_ops({SMALL: 1, UPDATE: 1}, REQUEST, calls=1)
  assert forward.seconds == update.seconds == 1.0
  assert backward == OpTime(
    label=SMALL.label, direction="backward", calls=1, error="RuntimeError: Mosaic failed"
  )


def test_programs_run_on_the_device():
  """An update overwrites its arguments, so each call goes on from the one before."""
  rows = time_ops({SMALL: 1, UPDATE: 1}, REQUEST, calls=2)
  assert [row.error for row in rows] == [None] * 3
  assert rows[0].seconds > 0
  assert rows[2].seconds > 0


def test_arrays_are_as_described():
  described = (jax.ShapeDtypeStruct((3, 4), jnp.bfloat16), [jax.ShapeDtypeStruct((), jnp.float32)])
  drawn = op_times.draw(described, seed=0)
  assert jax.tree.map(lambda one: (one.shape, one.dtype), drawn) == jax.tree.map(
    lambda one: (one.shape, one.dtype), described
  )


def test_a_program_is_launched_with_its_arguments(monkeypatch):
  seen = []

  def seconds_per_call(run, arguments, calls, **unused_rest):
    seen.append((float(run(*arguments)), len(arguments), calls))
    return float(len(seen))

  monkeypatch.setattr(op_times, "seconds_per_call", seconds_per_call)
  program = Program(
    label="sum",
    direction="forward",
    function=lambda x, y: x + y + 1000,
    arguments=(jax.ShapeDtypeStruct((), jnp.float32),) * 2,
  )
  measured = op_times._time_program(program, 9)
  assert dataclasses.asdict(measured) == {"launch_seconds": 1.0, "seconds": 2.0}
  assert seen[0] == (0.0, 2, 9)
  assert seen[1][0] > 900

"""Compiles with the real TPU compiler, for chips that are not there."""

import collections
import dataclasses
import os

import pytest

from nfnet.errors import UserError
from profiling.compile.compilation import compile_step
from profiling.compile.request import StepRequest, plain_experiment, replace_fields
from profiling.compile.topology import parse_topology
from profiling.compiler_text.hlo_cycles import read_operations
from profiling.compiler_text.schedule import read_schedule
from profiling.estimate.step_time import estimate
from tests.profiling import shared_step

PLAIN = plain_experiment("P0", batch_size=32, pixels=16, num_classes=10)
WITH_KERNELS = {"model": {"kernels": "pallas", "block_execution": "unrolled"}}


def request(topology="v4:2x2x1", **changes):
  return StepRequest(experiment=replace_fields(PLAIN, **changes), topology=topology)


@pytest.fixture(scope="module")
def compiled():
  """A step with kernels: some of the smallest network's channels fill the lanes."""
  return compile_step(shared_step.REQUEST, cache=shared_step.COMPILATIONS)


def test_has_the_program_of_the_real_step(compiled):
  assert "HloModule jit_step_on_device" in compiled.hlo_text
  # The network's parts, the sum of the gradients over four chips and the optimizer are in it.
  for name in ("jvp(stem)", "transpose(jvp(stage_3))", "jvp(head)", "optimizer/"):
    assert name in compiled.hlo_text
  assert "replica_groups={{0,1,2,3}}" in compiled.hlo_text


def test_has_measured_and_stated_figures(compiled):
  assert compiled.compile_seconds > 0
  assert compiled.lower_seconds > 0
  # Python and JAX alone take more than this.
  assert compiled.peak_memory_bytes > 10**8
  # Parameters and momentum of 78,466 float32 each are the least there must be.
  assert 2 * 4 * 78_000 < compiled.hbm_bytes < 10**9
  assert set(compiled.versions) == {"jax", "jaxlib", "libtpu", "flax", "optax"}


def test_the_result_is_kept_and_found_again(compiled):
  (folder,) = shared_step.COMPILATIONS.iterdir()
  assert {path.name for path in folder.iterdir() if not path.name.startswith("kernel_")} == {
    "kernels.json",
    "log.txt",
    "program.hlo.gz",
    "request.json",
    "result.json",
  }
  # There is no time to compile anything, and where the images are cannot matter.
  elsewhere = dataclasses.replace(
    shared_step.REQUEST,
    experiment=replace_fields(
      shared_step.REQUEST.experiment, data={"path": "elsewhere", "workers": 3}
    ),
  )
  again = compile_step(elsewhere, cache=shared_step.COMPILATIONS, time_limit_seconds=0)
  assert again == compiled


def test_kernels_have_profiles(compiled):
  assert {name.split(".")[0] for name in compiled.kernels} == {
    "scaled_ws_conv",
    "scaled_ws_conv_gradients",
    "sgd_agc",
    "sgd_agc_small",
  }
  # More than a hundred small parameters share them.
  assert sum(name.startswith("sgd_agc_small") for name in compiled.kernels) <= 4
  topology = parse_topology("v4:2x2x1")
  text = compiled.hlo_text
  time = estimate(read_operations(text), read_schedule(text), topology, compiled.kernels)
  seconds = {part: s for (part, kind), s in time.by("part", "kind").items() if kind == "kernel"}
  assert seconds["optimizer"] > 0
  runs = {one.name: one.executions for one in read_operations(text)}
  assert sum(seconds.values()) == pytest.approx(
    sum(runs[name] * one.seconds(topology.chip) for name, one in compiled.kernels.items())
  )


def kernels_of(compiled):
  """Returns the operations of a step that are kernels."""
  found = [one for one in read_operations(compiled.hlo_text) if one.kind == "kernel"]
  assert {kernel.name for kernel in found} == set(compiled.kernels)
  return found


def test_kernels_in_loops_are_counted_as_often_as_they_run(compiled):
  """Stage 3 has a loop of two blocks, inside that over the two parts."""
  blocks = {"jvp(stage_3)/while", "transpose(jvp(stage_3))/while"}
  found = set()
  for kernel in kernels_of(compiled):
    inside = {one for one in blocks if one in kernel.source}
    found |= inside
    is_update = kernel.name.startswith("sgd_agc")
    assert kernel.executions == (1 if is_update else 4 if inside else 2)
  assert found == blocks


@pytest.mark.slow
def test_kernels_in_loops_run_as_often_as_those_without_loops(compiled, tmp_path):
  """The compiler fuses some."""

  def executions(compiled):
    counts = collections.Counter()
    for kernel in kernels_of(compiled):
      counts[kernel.name.split(".")[0]] += kernel.executions
    return counts

  loops = executions(compiled)
  unrolled = executions(compile_step(request(**WITH_KERNELS), cache=tmp_path))
  for name in ("scaled_ws_conv", "scaled_ws_conv_gradients"):
    assert loops[name] == 2 * unrolled[name] > 0


def test_what_goes_wrong_is_one_line_and_leaves_nothing(tmp_path):
  with pytest.raises(UserError, match=r"data\.num_classes=0: must be at least 1") as error:
    compile_step(request(data={"num_classes": 0}), cache=tmp_path)
  assert "\n" not in str(error.value)
  assert not list(tmp_path.iterdir())


def test_a_compiler_that_dies_is_reported(tmp_path, monkeypatch):
  monkeypatch.setenv("LIBTPU_INIT_ARGS", "--no_such_flag=1")
  with pytest.raises(UserError, match=r"the compiling process ended with code -?\d+") as error:
    compile_step(request(), cache=tmp_path)
  assert "\n" not in str(error.value)
  assert not list(tmp_path.iterdir())
  assert not [name for name in os.listdir() if name.startswith("core")]

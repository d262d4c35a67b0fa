"""Compiles with the real TPU compiler, for chips that are not there."""

import collections
import dataclasses
import json
import os

import pytest

from nfnet.errors import UserError
from profiling.compile import compilation
from profiling.compile.compilation import DeviceMemoryError, compile_step
from profiling.compile.request import StepRequest, block_execution_for, experiment_for
from profiling.compile.topology import parse_topology
from profiling.compiler_text.hlo_cycles import read_operations
from profiling.estimate.step_time import estimate

STEP = "profiling.compile.step_worker"
REQUEST = StepRequest(
  variant="P0", topology="v4:2x2x1", batch_per_chip=8, pixels=32, num_classes=10
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def compiled(cache):
  return compile_step(REQUEST, cache=cache)


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


def test_the_second_time_nothing_is_compiled(compiled, cache, monkeypatch):
  monkeypatch.setattr(compilation, "_run", lambda *unused: pytest.fail("compiled again"))
  assert compile_step(REQUEST, cache=cache) == compiled


def test_only_the_result_is_left_behind(compiled, cache):
  (folder,) = cache.iterdir()
  assert {path.name for path in folder.iterdir()} == {
    "log.txt",
    "program.hlo.gz",
    "request.json",
    "result.json",
  }


@pytest.mark.parametrize(
  "change",
  [
    {"variant": "P1"},
    {"topology": "v4:2x2x2"},
    {"batch_per_chip": 9},
    {"pixels": 33},
    {"num_classes": 11},
    {"kernels": "pallas"},
    {"bottleneck": "released"},
    {"block_execution": "unrolled"},
    {"rematerialize": True},
    {"ema": True},
    {"parameter_shards": 2},
    {"gradient_accumulation": 2},
    {"gradient_dtype": "bfloat16"},
    {"sharpness_group_images": 4},
  ],
  ids=lambda change: next(iter(change)),
)
def test_every_field_is_part_of_the_key(change):
  assert set(change) < {field.name for field in dataclasses.fields(StepRequest)}
  changed = dataclasses.replace(REQUEST, **change)
  assert compilation._key(STEP, changed, {}) != compilation._key(STEP, REQUEST, {})


def test_versions_flags_and_source_are_part_of_the_key(monkeypatch, tmp_path):
  before = compilation._key(STEP, REQUEST, {"jax": "1"})
  assert compilation._key(STEP, REQUEST, {"jax": "1"}) == before
  assert compilation._key(STEP, REQUEST, {"jax": "2"}) != before
  for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS"):
    with monkeypatch.context() as context:
      context.setenv(name, "--xla_something=1")
      assert compilation._key(STEP, REQUEST, {"jax": "1"}) != before
  file = tmp_path / "model.py"
  monkeypatch.setattr(compilation, "_ROOT", tmp_path)
  monkeypatch.setattr(compilation, "_SOURCES", ("model.py",))
  monkeypatch.setattr(compilation, "_WORKER_SOURCES", {STEP: ()})
  file.write_text("a = 1\n")
  before = compilation._key(STEP, REQUEST, {})
  file.write_text("a = 2\n")
  assert compilation._key(STEP, REQUEST, {}) != before


@pytest.fixture(scope="module")
def with_kernels(tmp_path_factory):
  """Request and compilation of a step with kernels, and the cache, which holds nothing else."""
  cache = tmp_path_factory.mktemp("with_kernels")
  request = dataclasses.replace(REQUEST, kernels="pallas", block_execution="unrolled")
  return request, compile_step(request, cache=cache), cache


def test_what_the_compiler_wrote_about_kernels_is_kept_and_all_else_is_not(with_kernels):
  """Some of the smallest network's channels fill the lanes."""
  request, compiled, cache = with_kernels
  assert {name.split(".")[0] for name in compiled.kernels} == {
    "scaled_ws_conv",
    "scaled_ws_conv_gradients",
    "sgd_agc",
    "sgd_agc_small",
    "standardization_gradient",
  }
  (folder,) = cache.iterdir()
  assert {path.name for path in folder.iterdir() if not path.name.startswith("kernel_")} == {
    "kernels.json",
    "log.txt",
    "program.hlo.gz",
    "request.json",
    "result.json",
  }
  topology = parse_topology(request.topology)
  time = estimate(read_operations(compiled.hlo_text), topology, compiled.kernels)
  seconds = {part: s for (part, kind), s in time.by("part", "kind").items() if kind == "kernel"}
  assert seconds["optimizer"] > 0
  assert sum(seconds.values()) == pytest.approx(
    sum(kernel.seconds(topology.chip) for kernel in compiled.kernels.values())
  )


def test_kernels_in_loops_are_counted_as_often_as_they_run(with_kernels, tmp_path):
  """Stage 3 has a loop of two blocks, inside of that over the parts; the compiler fuses some."""

  def executions(compiled):
    kernels = [one for one in read_operations(compiled.hlo_text) if one.kind == "kernel"]
    assert {kernel.name for kernel in kernels} == set(compiled.kernels)
    counts = collections.Counter()
    for kernel in kernels:
      counts[kernel.name.split(".")[0]] += kernel.executions
    return counts

  request, compiled, _ = with_kernels
  written_out = executions(compiled)
  looping = dataclasses.replace(request, block_execution="scan", gradient_accumulation=2)
  loops = executions(compile_step(looping, cache=tmp_path))
  for name in ("scaled_ws_conv", "scaled_ws_conv_gradients", "standardization_gradient"):
    assert loops[name] == 2 * written_out[name] > 0


@pytest.mark.parametrize(
  ("change", "limits", "message"),
  [
    ({"topology": "v4:2x3x1"}, {}, r"compiling P0 for v4:2x3x1: topology 'v4:2x3x1'"),
    ({"num_classes": 0}, {}, r"data\.num_classes=0: must be at least 1"),
    ({}, {"memory_limit_bytes": 10**8}, r"more than 0\.1 GB of memory; raise --memory_limit_gb"),
    ({}, {"time_limit_seconds": 0.5}, r"took more than 0\.5 seconds; raise --time_limit_seconds"),
    ({"batch_per_chip": 4_000_000}, {}, r"RESOURCE_EXHAUSTED: .* exceeds available HBM"),
  ],
  ids=["topology", "field", "memory", "time", "hbm"],
)
def test_what_goes_wrong_is_one_line_and_leaves_nothing(change, limits, message, tmp_path):
  with pytest.raises(UserError, match=message) as error:
    compile_step(dataclasses.replace(REQUEST, **change), cache=tmp_path, **limits)
  assert "\n" not in str(error.value)
  assert isinstance(error.value, DeviceMemoryError) == ("exceeds available HBM" in message)
  assert not list(tmp_path.iterdir())


def test_a_compiler_that_dies_is_reported(tmp_path, monkeypatch):
  monkeypatch.setenv("LIBTPU_INIT_ARGS", "--no_such_flag=1")
  with pytest.raises(UserError, match=r"the compiling process ended with code -?\d+") as error:
    compile_step(REQUEST, cache=tmp_path)
  assert "\n" not in str(error.value)
  assert not list(tmp_path.iterdir())
  assert not [name for name in os.listdir() if name.startswith("core")]


def test_a_missing_compiler_is_reported(tmp_path, monkeypatch):
  monkeypatch.setattr(compilation, "_PACKAGES", ("no_such_package",))
  with pytest.raises(UserError, match=r"no_such_package is not installed.*pip install"):
    compile_step(REQUEST, cache=tmp_path)


def test_the_experiment_is_that_of_the_papers():
  experiment = experiment_for(REQUEST, chips=4)
  assert experiment.data.batch_size == 32
  assert experiment.model.compute_dtype == "bfloat16"
  assert experiment.model.block_execution == "scan"
  assert experiment.optimizer.agc_clipping == 0.01
  assert experiment.optimizer.ema_decay is None
  unrolled = experiment_for(dataclasses.replace(REQUEST, block_execution="unrolled"), chips=4)
  assert unrolled.model.block_execution == "unrolled"
  pallas = experiment_for(dataclasses.replace(REQUEST, kernels="pallas", ema=True), chips=4)
  assert pallas.model.kernels == "pallas"
  assert pallas.model.block_execution == "unrolled"
  assert pallas.optimizer.ema_decay is not None
  parts = experiment_for(dataclasses.replace(REQUEST, gradient_accumulation=2), chips=4)
  assert parts.optimizer.gradient_accumulation == 2
  assert parts.sharpness.radius is None
  sam = experiment_for(dataclasses.replace(REQUEST, sharpness_group_images=4), chips=4)
  assert (sam.sharpness.radius, sam.sharpness.group_images) == (0.05, 4)
  # In parts or not, a request's images are those of the whole step.
  assert parts.data.batch_size == 32


@pytest.mark.parametrize(
  ("variant", "kernels", "expected"),
  [("F3", "pallas", "unrolled"), ("F4", "pallas", "scan"), ("F0", "reference", "scan")],
)
def test_kernels_get_blocks_written_out_as_far_as_the_compiler_manages(variant, kernels, expected):
  assert block_execution_for(variant, kernels) == expected


def test_a_request_survives_json():
  text = json.dumps(dataclasses.asdict(REQUEST))
  assert StepRequest(**json.loads(text)) == REQUEST

"""From a compiled step of a ViT to core-hours."""

import dataclasses
import json

import pytest

from profiling.compile.cache import run_worker
from profiling.compile.compilation import read_compilation
from profiling.compile.topology import parse_topology
from profiling.compile.vision_transformer.model import VISION_TRANSFORMERS
from profiling.compile.vision_transformer.worker import VisionTransformerRequest
from profiling.compiler_text.hlo_cycles import read_operations
from profiling.compiler_text.schedule import read_schedule
from profiling.estimate import published
from profiling.estimate.step_time import estimate
from profiling.vit import Report, as_json, as_text
from tests.profiling.reports import compilation, compute_row, step_time


def report_of(run, seconds, hbm_gibibytes=20):
  return Report(
    run=run,
    request=VisionTransformerRequest(
      model=run.model,
      topology="v4:4x4x8",
      batch_per_chip=32,
      pixels=224,
      num_classes=30_000,
      rematerialize=False,
    ),
    compilation=compilation(hbm_bytes=hbm_gibibytes * 2**30),
    time=step_time(compute_row(seconds)),
  )


def test_core_hours_by_hand():
  run = published.VisionTransformerRun("ViT-g/14", 120_000, 16e9)
  report = report_of(run, 0.25)
  # 32 images a quarter of a second and chip, two cores a chip.
  assert report.estimated_core_hours == pytest.approx(16e9 / 128 * 2 / 3600)
  macs = VISION_TRANSFORMERS["ViT-g/14"].macs(224, 30_000)
  assert report.mfu == pytest.approx(6 * macs * 128 / 275e12)


def test_what_is_not_known_is_not_estimated():
  known = report_of(published.VisionTransformerRun("ViT-g/14", 120_000, 16e9), 0.25)
  unknown = report_of(published.VisionTransformerRun("ViT-G/14", 280_000, None), 0.5, 40)
  assert unknown.estimated_core_hours is None
  text = as_text([known, unknown])
  assert "69,444" in text
  assert "DOES NOT FIT" in text
  # 64 images a second and chip of two cores for 280,000 core-hours.
  assert f"{280_000 / 2 * 3600 * 64 / 1e9:.1f}" in text
  steps = json.loads(json.dumps(as_json([known, unknown])))["steps"]
  assert [step["estimated_core_hours"] is None for step in steps] == [False, True]


@pytest.mark.slow
def test_a_step_compiles_for_a_tpu(tmp_path):
  request = VisionTransformerRequest(
    model="SoViT-400m/14",
    topology="v4:2x2x1",
    batch_per_chip=1,
    pixels=28,
    num_classes=10,
    rematerialize=True,
  )
  folder, versions = run_worker(
    "profiling.compile.vision_transformer.worker",
    dataclasses.asdict(request),
    what="a ViT",
    dumps=False,
    cache=tmp_path,
  )
  topology = parse_topology(request.topology)
  compiled = read_compilation(folder, versions, topology.chip)
  time = estimate(read_operations(compiled.hlo_text), read_schedule(compiled.hlo_text), topology)
  # Four tokens an image: parameters, momentum and gradients are what is moved, 428 million of them.
  assert compiled.hbm_bytes > 6 * 420e6
  assert time.collective_bytes > 4 * 420e6
  assert 0.001 < time.compute_seconds < 1

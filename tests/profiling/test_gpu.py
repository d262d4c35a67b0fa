import json

import jax
import pytest

from profiling import gpu


def figures(speed):
  return {"images_per_second": speed, "device_kind": "a card"}


def test_speeds_stand_side_by_side():
  rows = [
    {"variant": "F0", "this_project": figures(1200.0), "timm": figures(1000.0)},
    {"variant": "F3", "this_project": figures(400.0), "timm": {"not_measured": "no timm"}},
  ]
  first, second = gpu.as_text(rows).splitlines()[-3:-1]
  assert first.split() == ["F0", "1200", "1000", "1.20", "a", "card"]
  assert "not measured: no timm" in second
  assert second.split()[:2] == ["F3", "400"]


def test_what_cannot_run_is_not_measured():
  result = gpu._run(["-c", "import sys; sys.exit('out of memory')"], json.loads)
  assert result == {"not_measured": "out of memory"}
  assert gpu._run(["-c", "print('{\"a\": 1}')"], lambda text: text) == {"a": 1}


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="there is one")
def test_without_a_gpu_nothing_is_measured():
  assert not gpu.has_gpu()


def test_the_step_is_measured_by_the_real_command(monkeypatch):
  """On a CPU, at a size that it can do."""
  monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
  monkeypatch.setattr(gpu, "_BATCH_SIZE", 8)
  monkeypatch.setattr(gpu, "_PIXELS", 32)
  result = gpu.measure_jax("P0", 1)
  assert result["variant"] == "P0"
  assert (result["images_per_step"], result["pixels"]) == (8, 32)
  assert result["compute_dtype"] == "bfloat16"
  assert result["images_per_second"] > 0

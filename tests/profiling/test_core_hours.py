import dataclasses
import json

import pytest

from nfnet.errors import UserError
from profiling.compile.compilation import Compilation
from profiling.compile.topology import parse_topology
from profiling.core_hours import Estimates, as_json, as_text, draw, requests
from profiling.estimate import published
from profiling.estimate.step_time import Row, StepTime
from profiling.step import StepReport

SLICE = parse_topology("v4:4x4x8")


def step(request, seconds):
  return StepReport(
    request=request,
    compilation=Compilation(
      hlo_text="",
      kernels={},
      lower_seconds=1.0,
      compile_seconds=1.0,
      peak_memory_bytes=1,
      hbm_bytes=2**30,
      versions={"jax": "1"},
    ),
    time=StepTime(
      rows=(Row(part="stem", direction="forward", kind="convolution", seconds=seconds),),
      collective_bytes=0,
    ),
  )


@pytest.fixture
def estimates():
  steps = requests(SLICE, "reference")
  finetuning = step(steps.pop("finetuning"), 0.5)
  seconds = dict(zip(published.VARIANTS, (0.02, 0.03, 0.06, 0.09, 0.12, 0.16), strict=True))
  return Estimates(
    pretraining={variant: step(request, seconds[variant]) for variant, request in steps.items()},
    finetuning=finetuning,
  )


def test_steps_are_those_of_the_paper():
  steps = requests(SLICE, "reference")
  assert set(steps) == {"F0", "F1", "F3", "F3+", "F7", "F7+", "finetuning"}
  for variant in published.VARIANTS:
    request = steps[variant]
    # 4096 images on 128 chips.
    assert (request.variant, request.batch_per_chip) == (variant, 32)
    assert (request.pixels, request.num_classes, request.bottleneck) == (224, 30_000, "paper")
    assert not request.ema
  assert (steps["finetuning"].batch_per_chip, steps["finetuning"].pixels) == (16, 384)


def test_steps_can_run_their_blocks_another_way():
  configured = requests(SLICE, "pallas")
  changed = requests(SLICE, "pallas", block_execution="unrolled", gradient_dtype="bfloat16")
  assert configured["F7"].block_execution == "scan"
  assert list(changed) == list(configured)
  for name, request in changed.items():
    assert request == dataclasses.replace(
      configured[name], block_execution="unrolled", gradient_dtype="bfloat16"
    )


def test_a_slice_that_does_not_divide_the_batch_is_an_error():
  with pytest.raises(UserError, match=r"'v4:4x4x3': a batch of 4096 .* 48 chips"):
    requests(parse_topology("v4:4x4x3"), "reference")


def test_core_hours_by_hand(estimates):
  # 4e9 images are 976,562.5 steps of 4096; 20 ms each on 128 chips of two cores.
  expected = 976_562.5 * 0.02 * 128 * 2 / 3600
  assert estimates.core_hours("F0", 1) == pytest.approx(expected)
  assert estimates.core_hours("F0", 0.25) == pytest.approx(expected / 4)
  steps = 50 * 1_281_167 / 2048
  assert estimates.finetuning_core_hours == pytest.approx(steps * 0.5 * 128 * 2 / 3600)


def test_text_has_estimated_published_and_ratio(estimates):
  text = as_text(estimates)
  # F3: 60 ms a step; the paper has 4,870 core-hours for one epoch.
  assert "4,167 / 4,870 = 0.86" in text
  assert "Estimated, not measured" in text
  assert "Rules: " in text
  # 4,167 core-hours on 64 chips of two cores are 1.4 days.
  assert any(line.split()[:2] == ["F3", "1.4"] for line in text.splitlines())


def test_json_has_every_run_with_both_costs(estimates):
  fields = json.loads(json.dumps(as_json(estimates)))
  assert len(fields["pretraining"]) == 36
  one = next(r for r in fields["pretraining"] if (r["variant"], r["epochs"]) == ("F7+", 8))
  assert one["published_core_hours"] == 106_615
  assert one["published_loss_nats"] == 2.339
  assert one["estimated_core_hours"] == pytest.approx(estimates.core_hours("F7+", 8))
  assert fields["what"] == "estimated from the compiler's schedule, not measured"
  assert set(fields["steps"]) == {*published.VARIANTS, "finetuning"}


def test_picture_has_two_curves_a_variant(estimates, tmp_path):
  figure = draw(estimates)
  (axes,) = figure.axes
  curves = [line for line in axes.lines if len(line.get_xdata())]
  assert len(curves) == 12
  f3_published, f3_estimated = curves[4], curves[5]
  assert list(f3_published.get_xdata())[2] == 4870
  assert list(f3_estimated.get_xdata())[2] == pytest.approx(estimates.core_hours("F3", 1))
  assert list(f3_published.get_ydata()) == list(f3_estimated.get_ydata())
  figure.savefig(tmp_path / "plot.png")
  assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_published_hours_grow_with_size_and_epochs_and_losses_fall():
  for variant in published.VARIANTS:
    runs = [run for run in published.RUNS if run.name == variant]
    assert [run.epochs for run in runs] == list(published.EPOCHS)
    hours = [run.compute for run in runs]
    assert hours == sorted(hours)
    losses = [run.loss_nats for run in runs]
    assert losses == sorted(losses, reverse=True)
  for epochs in published.EPOCHS:
    hours = [run.compute for run in published.RUNS if run.epochs == epochs]
    assert hours == sorted(hours)


def test_what_does_not_fit_is_marked(estimates):
  step_ = estimates.pretraining["F7"]
  compilation = dataclasses.replace(step_.compilation, hbm_bytes=2**36)
  estimates.pretraining["F7"] = dataclasses.replace(step_, compilation=compilation)
  assert as_text(estimates).count("DOES NOT FIT") == 1

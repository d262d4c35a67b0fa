import dataclasses
import json

import pytest

from profiling.compile.topology import parse_topology
from profiling.core_hours import as_json, as_text, draw
from profiling.estimate import published
from profiling.estimate.paper_runs import Estimates, requests
from tests.profiling.reports import compute_row, report

SLICE = parse_topology("v4:4x4x8")


@pytest.fixture
def estimates():
  steps = requests(SLICE, "reference")
  finetuning = report(steps.pop("finetuning"), compute_row(0.5))
  seconds = dict(zip(published.VARIANTS, (0.02, 0.03, 0.06, 0.09, 0.12, 0.16), strict=True))
  return Estimates(
    pretraining={
      variant: report(request, compute_row(seconds[variant])) for variant, request in steps.items()
    },
    finetuning=finetuning,
  )


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


def test_plot_has_two_curves_a_variant(estimates, tmp_path):
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

"""The steps of paper A's runs are those of the configurations, and what they would cost."""

import dataclasses

import pytest

from nfnet.errors import UserError
from profiling.compile.request import replace_fields
from profiling.compile.topology import parse_topology
from profiling.estimate import published
from profiling.estimate.paper_runs import (
  Estimates,
  finetuning_experiment,
  pretraining_experiment,
  requests,
)
from tests.profiling.reports import compute_row, report

SLICE = parse_topology("v4:4x4x8")


def test_steps_are_those_that_the_configurations_train_with():
  steps = requests(SLICE, "pallas")
  assert set(steps) == {"F0", "F1", "F3", "F3+", "F7", "F7+", "finetuning"}
  for variant in published.VARIANTS:
    assert steps[variant].experiment == pretraining_experiment(variant, "pallas")
    # 4096 images on 128 chips.
    assert steps[variant].batch_per_chip == 32
  assert steps["finetuning"].experiment == finetuning_experiment("pallas")
  assert steps["finetuning"].batch_per_chip == 16


def test_fine_tuning_has_all_of_its_regularization():
  experiment = requests(SLICE, "pallas")["finetuning"].experiment
  assert experiment.model.stochastic_depth_rate == 0.1
  assert experiment.model.dropout_rate == 0.25
  assert experiment.optimizer.weight_decay == 1e-5
  assert experiment.loss.label_smoothing == 0.1
  assert experiment.sharpness.group_images == 16


def test_only_what_is_asked_for_differs_from_the_configurations():
  configured = requests(SLICE, "pallas")
  changes = {
    "model": {"block_execution": "scan"},
    "parallelism": {"gradient_dtype": "float32"},
  }
  changed = requests(SLICE, "pallas", **changes)
  assert list(changed) == list(configured)
  for name, request in changed.items():
    experiment = replace_fields(configured[name].experiment, **changes)
    assert request == dataclasses.replace(configured[name], experiment=experiment)


def test_a_slice_that_does_not_divide_the_batch_is_an_error():
  with pytest.raises(UserError, match=r"^chips=48: must divide the batch of 4096$"):
    requests(parse_topology("v4:4x4x3"), "reference")


def test_core_hours_by_hand():
  steps = requests(SLICE, "reference")
  estimates = Estimates(
    pretraining={"F0": report(steps["F0"], compute_row(0.02))},
    finetuning=report(steps["finetuning"], compute_row(0.5)),
  )
  # 4e9 images are 976,562.5 steps of 4096; 20 ms each on 128 chips of two cores.
  expected = 976_562.5 * 0.02 * 128 * 2 / 3600
  assert estimates.core_hours("F0", 1) == pytest.approx(expected)
  assert estimates.core_hours("F0", 0.25) == pytest.approx(expected / 4)
  finetuning_steps = 50 * 1_281_167 / 2048
  assert estimates.finetuning_core_hours == pytest.approx(finetuning_steps * 0.5 * 128 * 2 / 3600)

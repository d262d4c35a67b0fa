"""The step that is compiled is the one that is configured, in every field that a step has."""

import dataclasses
import json
import pathlib
import types
import typing

import pytest

import train.configs
from nfnet.errors import UserError
from profiling.compile.request import (
  FIELDS_OUTSIDE_THE_STEP,
  StepRequest,
  block_execution_for,
  plain_experiment,
  replace_fields,
)
from train.config.field_names import field_types, field_values
from train.config.files import load_experiment

CONFIGS = pathlib.Path(train.configs.__file__).parent
# The configuration of small data sets reads one.
FILES = sorted({path.name for path in CONFIGS.glob("[a-z]*.py")} - {"finetune_small.py"})
ARGUMENTS = [
  *FILES,
  "imagenet.py:variant=F5,sharpness=true",
  "imagenet_finetune.py:variant=F3,repetitions=4,group_images=8",
  "jft_pretrain.py:variant=F7+,epochs=0.25,chips=1024",
]
PLAIN = plain_experiment("P0", batch_size=32, pixels=32, num_classes=10)


def compiled_experiment(request):
  """Returns the experiment that the compiling process reads."""
  return StepRequest.from_json(json.loads(json.dumps(request.to_json()))).experiment


def differences(one, other):
  """Returns the fields in which two experiments differ."""
  values = field_values(other)
  return {field for field, value in field_values(one).items() if value != values[field]}


def set_field(experiment, field, value):
  """Returns the experiment with one field, named with dots, replaced."""
  section, _, name = field.rpartition(".")
  if section:
    return replace_fields(experiment, **{section: {name: value}})
  return dataclasses.replace(experiment, **{name: value})


def another_value(annotation, value):
  """Returns a value of a field's type that is not `value`."""
  if typing.get_origin(annotation) in (types.UnionType, typing.Union):
    (annotation,) = set(typing.get_args(annotation)) - {types.NoneType}
  if typing.get_origin(annotation) is typing.Annotated:
    annotation = annotation.__origin__
  if typing.get_origin(annotation) is typing.Literal:
    return next(choice for choice in typing.get_args(annotation) if choice != value)
  if annotation is bool:
    return not value
  if annotation is str:
    return f"another {value}"
  # Four chips still divide a batch.
  return (value or 0) + annotation(4)


@pytest.mark.parametrize("config", ARGUMENTS)
@pytest.mark.parametrize("overrides", [(), ("--config.model.dropout_rate=0.4", "--config.seed=7")])
def test_the_compiled_experiment_is_the_configured_one(config, overrides):
  configured = load_experiment(str(CONFIGS / config), overrides)
  compiled = compiled_experiment(StepRequest(experiment=configured, topology="v4:2x2x1"))
  assert differences(compiled, configured) <= FIELDS_OUTSIDE_THE_STEP


@pytest.mark.parametrize("field", field_types())
def test_every_field_of_an_experiment_is_compiled_or_known_to_be_outside_the_step(field):
  value = another_value(field_types()[field], field_values(PLAIN)[field])
  changed = StepRequest(experiment=set_field(PLAIN, field, value), topology="v4:2x2x1")
  request = StepRequest(experiment=PLAIN, topology="v4:2x2x1")
  if field in FIELDS_OUTSIDE_THE_STEP:
    # Nothing that a cache key is made of depends on it.
    assert changed.to_json() == request.to_json()
  else:
    assert differences(compiled_experiment(changed), compiled_experiment(request)) == {field}
    assert field_values(compiled_experiment(changed))[field] == value


def test_there_is_no_field_outside_the_step_that_an_experiment_does_not_have():
  assert set(field_types()) > FIELDS_OUTSIDE_THE_STEP


@pytest.mark.parametrize(
  ("variant", "kernels", "expected"),
  [("F3", "pallas", "unrolled"), ("F4", "pallas", "scan"), ("F0", "reference", "scan")],
)
def test_kernels_get_unrolled_blocks_as_far_as_the_compiler_manages(variant, kernels, expected):
  assert block_execution_for(variant, kernels) == expected


def test_a_batch_that_does_not_divide_among_the_chips_is_an_error():
  with pytest.raises(UserError, match=r"'v4:2x2x3': a batch of 32 .* 12 chips"):
    StepRequest(experiment=PLAIN, topology="v4:2x2x3")


def test_a_batch_is_divided_among_chips_and_not_devices():
  assert StepRequest(experiment=PLAIN, topology="v3:2x2").batch_per_chip == 8


def test_the_plain_experiment_is_what_both_papers_have_in_common():
  assert PLAIN.model.compute_dtype == "bfloat16"
  assert PLAIN.optimizer.agc_clipping == 0.01
  assert PLAIN.optimizer.ema_decay is None
  # The variant's own.
  assert PLAIN.model.dropout_rate is None
  assert PLAIN.model.stochastic_depth_rate == 0
  assert not PLAIN.mixing.is_on
  assert PLAIN.sharpness.radius is None

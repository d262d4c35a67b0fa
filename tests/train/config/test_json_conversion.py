import dataclasses
import json
import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfnet.errors import UserError
from tests.train.config.valid_experiment import VALID
from train.config.experiment import Experiment
from train.config.json_conversion import from_json, to_json
from train.config.validation import validate


def experiments():
  """Returns a strategy for experiments with any values of the right types, valid or not."""

  def strategy(annotation):
    if dataclasses.is_dataclass(annotation):
      hints = typing.get_type_hints(annotation)
      return st.builds(annotation, **{name: strategy(hint) for name, hint in hints.items()})
    if typing.get_origin(annotation) is typing.Literal:
      return st.sampled_from(typing.get_args(annotation))
    strategies = {
      int: st.integers(),
      float: st.floats(allow_nan=False, allow_infinity=False),
      bool: st.booleans(),
      str: st.text(),
      type(None): st.none(),
    }
    if annotation in strategies:
      return strategies[annotation]
    return st.one_of(*map(strategy, typing.get_args(annotation)))

  return strategy(Experiment)


@given(experiments())
def test_json_round_trip_is_exact(experiment):
  assert from_json(json.loads(json.dumps(to_json(experiment)))) == experiment


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda fields: [], r"saved experiment: it is \[\], not fields"),
    (lambda fields: None, "saved experiment: it is None, not fields"),
    (lambda fields: {}, "saved experiment has no field name"),
    (
      lambda fields: {**fields, "model": [1, 2]},
      r"saved experiment: model is \[1, 2\], not fields",
    ),
    (
      lambda fields: {**fields, "data": "text\n"},
      r"saved experiment: data is 'text\\n', not fields",
    ),
    (lambda fields: {**fields, "\x1b[31m": 1}, r"has the field \\x1b\[31m, which"),
    (lambda fields: {**fields, "seed": 10**400}, "seed=.*: must be an integer"),
    (lambda fields: {**fields, "seed": [[[]]]}, "seed=.*: must be an integer"),
    (
      lambda fields: {**fields, "optimizer": {"momentum": 10**400}},
      "momentum=.*: must be a finite",
    ),
    (lambda fields: {**fields, "model": {"variant": {}}}, "variant"),
  ],
)
def test_json_of_wrong_types_is_one_line(change, message):
  with pytest.raises(UserError, match=message) as error:
    validate(from_json(change(to_json(VALID))))
  assert str(error.value).isprintable()


def test_experiments_of_versions_that_could_not_choose_mean_what_these_did():
  fields = to_json(VALID)
  del fields["data"]["evaluation_resize"], fields["model"]["numerics"]
  experiment = from_json(fields)
  assert experiment.data.evaluation_resize == "shorter_side"
  assert experiment.model.numerics == "released"


def test_json_of_another_version_is_refused_by_name():
  fields = to_json(VALID)
  fields["optimizer"]["lookahead"] = 3
  with pytest.raises(UserError, match=r"optimizer\.lookahead"):
    from_json(fields)

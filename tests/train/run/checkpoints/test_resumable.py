import dataclasses
import re

import pytest

from nfnet.errors import UserError
from train.config.experiment import (
  ACCEPTABLE_ON_RESUME,
  CHANGEABLE_ON_RESUME,
  Experiment,
  Optimizer,
  Schedule,
)
from train.config.field_names import field_values
from train.config.json_conversion import to_json
from train.run.checkpoints.resumable import check_class_names, check_resumable

EXPERIMENT = Experiment(
  name="saved", optimizer=Optimizer(warmup_steps=1), schedule=Schedule(train_steps=9)
)


def other_value(value):
  if isinstance(value, bool):
    return not value
  return {"scan": "unrolled", "reference": "pallas"}.get(value, 7 if value is None else value * 2)


@pytest.mark.parametrize("field", sorted(field_values(EXPERIMENT)))
def test_exactly_the_changeable_fields_may_change(field):
  fields = to_json(EXPERIMENT)
  *section, name = field.split(".")
  holder = fields[section[0]] if section else fields
  holder[name] = other_value(holder[name]) or 7
  saved = {"experiment": fields}
  if field in CHANGEABLE_ON_RESUME:
    check_resumable(saved, EXPERIMENT)
    return
  with pytest.raises(UserError, match=re.escape(field)) as error:
    check_resumable(saved, EXPERIMENT)
  assert (f"--accept_changes={field}" in str(error.value)) == (field in ACCEPTABLE_ON_RESUME)
  check_resumable(saved, EXPERIMENT, [field])


def test_only_accepted_fields_may_differ():
  saved = {"experiment": to_json(EXPERIMENT)}
  changed = dataclasses.replace(
    EXPERIMENT, seed=7, optimizer=dataclasses.replace(EXPERIMENT.optimizer, agc_clipping=0.02)
  )
  with pytest.raises(UserError, match=r"seed was 0 and is now 7; resume it with --config\.seed=0,"):
    check_resumable(saved, changed, ["optimizer.agc_clipping"])


def test_what_can_be_copied_is_quoted_for_the_shell():
  saved = {"experiment": {**to_json(EXPERIMENT), "initial_weights": "/data/my weights"}}
  with pytest.raises(UserError, match=r"with '--config\.initial_weights=/data/my weights', or"):
    check_resumable(saved, EXPERIMENT)


def test_names_of_classes_may_be_composed_in_another_way():
  check_class_names({"class_names": ["caf\u00e9"]}, ["cafe\u0301"], "D")
  with pytest.raises(UserError, match="class 0 was"):
    check_class_names({"class_names": ["caf\u00e9"]}, ["cafe"], "D")

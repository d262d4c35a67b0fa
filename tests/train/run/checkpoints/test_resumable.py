import re

import pytest

from nfnet.errors import UserError
from train.config.experiment import CHANGEABLE_ON_RESUME, Experiment, Optimizer, Schedule
from train.config.field_names import field_values
from train.config.json_conversion import to_json
from train.run.checkpoints.resumable import check_resumable

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
  else:
    with pytest.raises(UserError, match=re.escape(field)):
      check_resumable(saved, EXPERIMENT)

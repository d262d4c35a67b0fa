import re
import subprocess
import sys

import pytest

from nfnet.errors import UserError
from tests.repository import ROOT
from tests.train.config.valid_experiment import replaced
from train.config.experiment import CHANGEABLE_ON_RESUME
from train.config.field_names import field_types
from train.config.validation import validate


@pytest.mark.parametrize(
  ("experiment", "message"),
  [
    (replaced(schedule={"train_epochs": 1.0}), "exactly one of the two"),
    (replaced(schedule={"train_steps": None}), "exactly one of the two"),
    (replaced(optimizer={"warmup_epochs": 1.0}), "exactly one of the two"),
    (replaced(optimizer={"warmup_steps": None}), "exactly one of the two"),
    (replaced(optimizer={"warmup_steps": 101}), "must not exceed schedule.train_steps=100"),
    (replaced(optimizer={"gradient_accumulation": 3}), "must divide data.batch_size=64"),
    (replaced(loss={"kind": "sigmoid", "label_smoothing": 0.1}), "softmax only"),
    (replaced(sharpness={"radius": 0.05}), "sharpness.group_images=None: set both"),
    (replaced(sharpness={"group_images": 16}), "sharpness.group_images=16: set both"),
    (replaced(sharpness={"radius": -0.1, "group_images": 16}), "radius=-0.1: must be greater than"),
    (replaced(sharpness={"ascent_share": 1.5}), "ascent_share=1.5: must be greater than 0 and at"),
    (replaced(loss={"kind": "hinge"}), "loss.kind='hinge': must be one of softmax, sigmoid"),
    (replaced(model={"variant": "F9"}), "model.variant: unknown variant 'F9'"),
    (replaced(model={"activation": "gelo"}), "model.activation='gelo': must be one of"),
    (replaced(data={"train_pixels": 4097}), "data.train_pixels=4097: must be between 1 and 4096"),
    (replaced(data={"evaluation_pixels": 10**6}), "data.evaluation_pixels=1000000: must be betw"),
    (replaced(data={"evaluation_resize_margin": 10**9}), "between 0 and 4096"),
    (replaced(data={"batch_size": 0}), "data.batch_size=0: must be at least 1"),
    (replaced(data={"batch_size": "64"}), "data.batch_size='64': must be an integer"),
    (replaced(data={"batch_size": True}), "data.batch_size=True: must be an integer"),
    (replaced(data={"crop_area_min": 0.0}), "data.crop_area_min=0.0: must be greater than 0"),
    (replaced(optimizer={"momentum": 1.0}), "optimizer.momentum=1.0: must be at least 0 and less"),
    (replaced(optimizer={"peak_learning_rate": float("inf")}), "must be a finite number"),
    (replaced(optimizer={"weight_decay": True}), "weight_decay=True: must be a finite number"),
    (replaced(optimizer={"agc_clipping": 0}), "optimizer.agc_clipping=0: must be greater than 0"),
    (replaced(seed=-1), "seed=-1: must be between 0 and"),
  ],
)
def test_rule_names_field_value_and_requirement(experiment, message):
  with pytest.raises(UserError, match=re.escape(message)):
    validate(experiment)


def test_changeable_fields_exist():
  assert set(field_types()) >= CHANGEABLE_ON_RESUME


def test_importing_the_fields_does_not_import_jax():
  program = "import sys, train.config.experiment; sys.exit('jax' in sys.modules)"
  subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)

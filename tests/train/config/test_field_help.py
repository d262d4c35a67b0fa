import re

import pytest

from tests import commands
from train.config.experiment import Data
from train.config.field_help import attribute_descriptions, describe_fields
from train.config.field_names import field_types


def test_every_field_has_its_values_default_and_meaning():
  text = describe_fields()
  parts = re.split(r"^  --config\.(\S+)=VALUE$", text, flags=re.MULTILINE)
  found = dict(zip(parts[1::2], parts[2::2], strict=True))
  assert list(found) == list(field_types())
  for field, description in found.items():
    values, meaning = description.strip().split("\n", 1)
    assert re.search(r"; (default: \S+.*|no default|has to be set)$", values), field
    assert len(meaning.split()) > 1, field
  assert "an integer, at least 1; default: 4096" in found["data.batch_size"]
  assert "one of softmax, sigmoid; default: softmax" in found["loss.kind"]
  assert "a finite number or none, greater than 0; default: none" in found["mixing.mixup_alpha"]
  assert "has to be set" in found["name"]
  assert "data: The images: where they are" in text
  assert max(map(len, text.splitlines())) <= 110


def test_descriptions_of_several_lines_are_whole():
  text = attribute_descriptions(Data)["evaluation_resize"]
  assert text.startswith('"squash" resizes both sides')
  assert text.endswith("See `nfnet.images.resizing`.")


@pytest.mark.parametrize("module", ["train.pretrain", "train.demo"])
def test_the_flag_needs_no_other_flag(module):
  result = commands.run(module, "--help_config")
  assert (result.returncode, result.stderr) == (0, "")
  assert "--config.optimizer.momentum=VALUE" in result.stdout

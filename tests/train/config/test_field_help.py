import re

import pytest

from nfnet.activations import ACTIVATIONS
from nfnet.variants import VARIANTS
from tests import commands
from train.config.experiment import Data, Model
from train.config.field_help import attribute_descriptions, describe_fields
from train.config.field_names import field_types, field_units, split_optional


def fields_in(text):
  """Returns what a text says of each field, by its name."""
  parts = re.split(r"^  --config\.(\S+)=VALUE$", text, flags=re.MULTILINE)
  return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_every_field_has_its_values_default_and_meaning():
  text = describe_fields()
  found = fields_in(text)
  assert list(found) == list(field_types())
  for field, description in found.items():
    values, meaning = description.strip().split("\n", 1)
    assert re.search(r"; (default: \S+.*|no default|has to be set)$", values), field
    assert len(meaning.split()) > 1, field
  assert "an integer, at least 1; unit: images per step; default: 4096" in found["data.batch_size"]
  assert "one of softmax, sigmoid; default: softmax" in found["loss.kind"]
  assert "a finite number or none, greater than 0; default: none" in found["mixing.mixup_alpha"]
  assert "has to be set" in found["name"]
  assert "data: The images: where they are" in text
  assert "None" not in text
  assert max(map(len, text.splitlines())) <= 110


def test_every_number_has_a_unit_or_says_that_it_has_none():
  numbers = {
    field for field, hint in field_types().items() if split_optional(hint)[0] in (int, float)
  }
  units = field_units()
  assert units.keys() == numbers
  for field, description in fields_in(describe_fields()).items():
    shown = re.findall(r"; unit: ([^;]+); ", description.strip().splitlines()[0])
    assert shown == ([units[field]] if units.get(field) else []), field
    # A count has the unit that its name ends with.
    if ending := re.search(r"_(steps|epochs|pixels|classes)$", field):
      assert shown == [ending[1]], field
    if split_optional(field_types()[field])[0] is int and field != "seed":
      assert shown, field
  assert units["data.batch_size"] == "images per step"
  assert units["parallelism.parameter_shards"] == "devices"


def test_the_names_of_variants_and_activations_are_listed():
  described = attribute_descriptions(Model)
  ranges = re.findall(r"([A-Z])(\d)(\+?) to \1(\d)\3", described["variant"])
  listed = [
    f"{letter}{number}{plus}"
    for letter, first, plus, last in ranges
    for number in range(int(first), int(last) + 1)
  ]
  assert listed == list(VARIANTS)
  names = described["activation"].partition(" (")[0]
  assert tuple(re.split(r", | or ", names)) == ACTIVATIONS


def test_descriptions_of_several_lines_are_whole():
  text = attribute_descriptions(Data)["evaluation_resize"]
  assert text.startswith('"squash" resizes both sides')
  assert text.endswith("See `nfnet.images.resizing`.")


@pytest.mark.parametrize("module", ["train.pretrain", "train.demo"])
def test_the_flag_needs_no_other_flag(module):
  result = commands.run(module, "--help_config")
  assert (result.returncode, result.stderr) == (0, "")
  assert list(fields_in(result.stdout)) == list(field_types())
  assert "--workdir" not in result.stdout


@pytest.mark.parametrize("module", ["train.pretrain", "train.evaluate"])
def test_help_ends_with_all_fields(module):
  """The flags come first, and the fields only where they can be set."""
  result = commands.run(module, "--help")
  assert (result.returncode, result.stderr) == (0, "")
  flags, _, fields = result.stdout.partition("\nFields of a configuration")
  assert "--workdir" in flags
  assert list(fields_in(fields)) == list(field_types())
  assert f"\nFields of a configuration{fields}" == f"\n{describe_fields()}\n"


def test_help_has_no_fields_where_none_can_be_set():
  assert fields_in(commands.run("train.demo", "--help").stdout) == {}

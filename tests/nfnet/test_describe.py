import json

import pytest

from nfnet.cost import count
from nfnet.describe import as_json, as_text
from tests import commands


def run(*arguments):
  return commands.run("nfnet.describe", *arguments)


def test_the_text_has_the_totals_and_a_row_for_each_part():
  text = as_text(count("F7+", num_classes=30_000, pixels=224))
  head, table = text.split("\n\n")
  assert "F7+, 30,000 classes, 224 px, bottleneck as in the papers" in head
  assert "951.70 M" in head
  assert "111.30 G" in head
  assert "667.80 G" in head
  rows = table.splitlines()
  assert len({len(row) for row in rows}) == 1
  assert [row[:12].strip() for row in rows[1:]] == [
    *("stem", "stage 1", "stage 2", "stage 3", "stage 4", "final conv", "classifier")
  ]


def test_small_networks_are_not_rounded_to_nothing():
  text = as_text(count("N0", num_classes=10, pixels=32))
  assert "1.09 M" in text
  assert "0.00" not in text


def test_the_json_parts_add_up_to_the_totals():
  cost = as_json(count("F4+", num_classes=1000, pixels=512, bottleneck="released"))
  for quantity in ("parameters", "macs"):
    assert sum(part[quantity] for part in cost["parts"]) == cost[quantity]
  assert cost["training_flops"] == 6 * cost["macs"]
  assert cost["bottleneck"] == "released"


def test_the_command_prints_json_at_the_test_resolution_by_default():
  result = run("--variant=F0", "--json")
  assert result.returncode == 0, result.stderr
  cost = json.loads(result.stdout)
  assert (cost["pixels"], cost["num_classes"], cost["parameters"]) == (256, 1000, 71_489_284)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--variant=F8"], "unknown variant 'F8'; nearest: F"),
    (["--variant=F0", "--pixels=0"], "--pixels=0"),
    ([], "--variant"),
  ],
)
def test_bad_arguments_are_one_line(arguments, message):
  result = run(*arguments)
  assert result.returncode == 2
  (line,) = result.stderr.splitlines()
  assert message in line

import json
import re

import pytest

from nfnet.cost import count
from profiling.compile.topology import parse_topology
from profiling.compiler_text.chips import CHIPS
from profiling.estimate.report import request_as_json
from profiling.generations import SLICES, as_json, as_text, requests
from tests import commands
from tests.profiling.reports import collective_row, compute_row, report


def test_there_is_one_slice_of_four_chips_of_each_generation():
  slices = [parse_topology(name) for name in SLICES]
  assert {one.chip.name for one in slices} == set(CHIPS)
  assert [one.chips for one in slices] == [4] * len(CHIPS)


def test_a_row_a_generation():
  wanted = requests("F3", batch_per_chip=32)
  reports = [
    report(
      request,
      compute_row(0.06),
      collective_row(0.02),
      collective_seconds=0.03,
      hbm_bytes=20 * 2**30,
    )
    for request in wanted
  ]
  text = as_text(reports)
  assert "not measured" in text
  flops = 6 * count("F3", num_classes=1000, pixels=224).macs * 400
  for chip in CHIPS.values():
    (line,) = [line for line in text.splitlines() if line.startswith(f"{chip.name} ")]
    fields = line.split()
    assert fields[2:6] == ["80.0,", "90.0", "20.0", "400"]
    assert fields[6] == f"{flops / chip.peak_flops:.1%}"
    # 20 GiB a device: a v3 device is one core of two and a v5e chip has 16.
    assert ("DOES NOT FIT" in line) == (chip.name in ("v3", "v5e"))
  figures = json.loads(json.dumps(as_json(reports)))
  assert figures["steps"][1]["images_per_second_per_chip"] == pytest.approx(400)
  assert figures["steps"][1]["mfu"] == pytest.approx(flops / 275e12)
  assert request_as_json(wanted[0]).items() <= figures["steps"][0].items()


@pytest.mark.parametrize(
  ("argument", "message"),
  [("--variant=F9", "--variant: "), ("stray", "unexpected argument 'stray'")],
)
def test_what_a_user_gets_wrong_is_one_line(argument, message, tmp_path):
  result = commands.run(
    "profiling.generations", argument, environment={"XDG_CACHE_HOME": str(tmp_path)}
  )
  assert result.returncode == 2
  assert re.fullmatch(rf"error: .*{re.escape(message)}.*\n", result.stderr), result.stderr

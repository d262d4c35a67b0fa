import json
import re

import pytest

from profiling.compile.op_worker import OpRequest
from profiling.kernels import as_json, as_text
from tests import commands
from tests.profiling.op_rows import ROWS, row


def test_the_table_has_the_kernels_figures():
  request = OpRequest(topology="v4:2x2x1", images=32, kernels="pallas")
  text = as_text(ROWS, request)
  assert "not measured" in text
  (line,) = [line for line in text.splitlines() if line.startswith("conv b")]
  columns = re.split(r" {2,}", line.strip())
  assert columns == [
    "conv b", "forward", "F+", "800", "100", "MXU", "8.00", "100", "8.00", "50 25 10 20", "3", "2",
    "1.0", "0.8",
  ]  # fmt: skip
  figures = json.loads(json.dumps(as_json(ROWS, request, {"jax": "1"})))
  assert figures["rows"][1]["kernels"][0]["spills"] == 3
  assert figures["rows"][1]["bound_cycles"] == 100


def test_what_does_not_compile_is_in_the_table():
  request = OpRequest(topology="v4:2x2x1", images=32, kernels="pallas")
  rows = [row("conv a", "forward", 200, None, {"F0": 2}, error="RESOURCE_EXHAUSTED: vmem")]
  assert "RESOURCE_EXHAUSTED: vmem" in as_text(rows, request)


@pytest.mark.parametrize(
  ("arguments", "message", "printed"),
  [
    (["--only=no such op"], "--only=no such op: none of the labels", "conv 1x1 7px 1536->3072"),
    (["--only=9x9", "--sweep=stem"], "--only=9x9: none of the labels", "stem 3->16 of"),
    (["--topology=v9:2"], "topology 'v9:2'", ""),
    (["stray"], "unexpected argument 'stray'", ""),
  ],
)
def test_what_a_user_gets_wrong_is_one_line(arguments, message, printed, tmp_path):
  result = commands.run(
    "profiling.kernels", *arguments, environment={"XDG_CACHE_HOME": str(tmp_path)}
  )
  assert result.returncode == 2
  assert printed in result.stdout
  assert re.fullmatch(rf"error: .*{re.escape(message)}.*\n", result.stderr), result.stderr

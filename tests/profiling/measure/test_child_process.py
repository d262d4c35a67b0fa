import sys

import pytest

from profiling.measure.child_process import run_for_json


def test_the_figures_are_the_last_line_of_the_output():
  assert run_for_json([sys.executable, "-c", "print('a note'); print('{\"a\": 1}')"]) == {"a": 1}


@pytest.mark.parametrize(
  ("code", "reason"),
  [
    ("import sys; sys.exit('out of memory')", "out of memory"),
    ("import sys; sys.exit(3)", "exit code 3"),
    ("import time; time.sleep(60)", "no figures after 1 s"),
  ],
)
def test_what_fails_is_not_measured(code, reason):
  result = run_for_json([sys.executable, "-c", code], timeout_seconds=1)
  assert result == {"not_measured": reason}

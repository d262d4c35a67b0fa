import json
import subprocess
import sys

import pytest

import kernels
import nfnet
from tests.repository import ROOT

NO_CALLS = {"VARIANTS", "UserError"}
CHARACTERS_MAX = 300
# What the arguments are called in messages about files and pictures.
OTHER_NAMES = {"path": ("weights",), "pictures": ("image",)}


@pytest.fixture(scope="module")
def mistakes():
  result = subprocess.run(
    [sys.executable, "-m", "tests.nfnet.argument_mistakes"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  *lines, end = map(json.loads, result.stdout.splitlines())
  assert end == "the end"
  return lines


def test_every_public_function_is_tried(mistakes):
  tried = {call for call, *_ in mistakes}
  assert {f"nfnet.{name}" for name in set(nfnet.__all__) - NO_CALLS} <= tried
  functions = {f"kernels.{name}" for name in kernels.__all__ if name[0].islower()}
  assert functions - {"kernels.fallback_counts"} <= tried


def test_a_wrong_argument_ends_in_one_short_line_that_names_it(mistakes):
  assert len(mistakes) > 3000
  for call, argument, wrong, kind, text in mistakes:
    place = f"{call}, {argument} is {wrong}: {kind}: {text[:200]}"
    assert kind in ("ValueError", "UserError"), place
    assert "\n" not in text, place
    assert len(text) < CHARACTERS_MAX, place
    names = (argument.rstrip("s"), *OTHER_NAMES.get(argument, ()))
    assert any(name in text for name in names), place

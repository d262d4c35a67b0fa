import dataclasses
import json
import os
import re
import subprocess
import sys

import pytest

from nfnet.errors import UserError
from profiling.compile.request import StepRequest, plain_experiment
from profiling.compile.topology import parse_topology
from profiling.memory import Trial, as_json, as_text, fastest, run, trials
from tests import commands
from tests.profiling.reports import compute_row, report

SLICE = parse_topology("v4:4x4x8")


def estimated(trial, *, seconds, hbm_gib):
  step = report(trial.request, compute_row(seconds), hbm_bytes=hbm_gib * 2**30)
  return dataclasses.replace(trial, step=step)


@pytest.fixture
def results():
  """Returns results of F7+: refused plainly, fitting rematerialized, too large in two parts."""
  refused, rematerialized, halves = trials(["F7+"], SLICE, "reference")
  return [
    refused,
    estimated(rematerialized, seconds=0.36, hbm_gib=17),
    estimated(halves, seconds=0.3, hbm_gib=33),
  ]


def test_three_ways_a_variant_and_the_configured_one_is_known():
  found = trials(["F7", "F7+"], SLICE, "reference")
  assert [
    (trial.request.experiment.model.variant, trial.way, trial.is_configured) for trial in found
  ] == [
    ("F7", "nothing", True),
    ("F7", "blocks rematerialized", False),
    ("F7", "2 parts", False),
    ("F7+", "nothing", False),
    ("F7+", "blocks rematerialized", True),
    ("F7+", "2 parts", False),
  ]
  assert {trial.request.batch_per_chip for trial in found} == {32}
  # More parts than the configuration has where it has some.
  (*_, parts) = trials(["F0"], parse_topology("v4:4x4x4"), "reference")
  assert parts.request.batch_per_chip == 64
  assert parts.request.experiment.optimizer.gradient_accumulation == 4


@pytest.mark.slow
def test_only_a_refusal_for_memory_is_a_result(tmp_path):
  experiment = plain_experiment("P0", batch_size=16_000_000, pixels=32, num_classes=10)
  request = StepRequest(experiment=experiment, topology="v4:2x2x1")
  trial = Trial(request=request, is_configured=True)
  assert run(trial, cache=tmp_path) == trial
  assert not trial.fits
  with pytest.raises(UserError, match="took more than 0 seconds"):
    run(trial, cache=tmp_path, time_limit_seconds=0)
  assert not list(tmp_path.iterdir())


def test_the_fastest_is_of_those_that_fit(results):
  assert fastest(results) == {"F7+": results[1]}
  results[2] = estimated(results[2], seconds=0.3, hbm_gib=32)
  assert fastest(results) == {"F7+": results[2]}
  assert fastest(results[:1]) == {}


def test_a_row_a_way(results):
  text = as_text(results)
  assert text.startswith("32 images a chip on v4:4x4x8, 224 px, 30,000 classes, kernels: reference")
  lines = [" ".join(line.split()) for line in text.splitlines() if line.startswith("F7+ ")]
  assert lines == [
    "F7+ nothing refused",
    "F7+ blocks rematerialized 17.0 15.0 360.0, 360.0 * yes",
    "F7+ 2 parts 33.0 -1.0 300.0, 300.0",
  ]


def test_the_json_has_the_same_figures_in_base_units(results):
  fields = json.loads(json.dumps(as_json(results, "python -m profiling.memory")))
  assert fields["command"] == "python -m profiling.memory"
  refused, rematerialized, halves = fields["steps"]
  assert not refused["fits"]
  assert "hbm_bytes" not in refused
  assert rematerialized["hbm_margin_bytes"] == 15 * 2**30
  assert rematerialized["is_fastest_that_fits"]
  assert rematerialized["is_configured"]
  assert (halves["fits"], halves["step_seconds"]) == (False, 0.3)


def command(*arguments, cache):
  return subprocess.run(
    [sys.executable, "-m", "profiling.memory", *arguments],
    env={**os.environ, "XDG_CACHE_HOME": str(cache)},
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.mark.slow
def test_rematerialization_and_parts_need_less_memory(tmp_path):
  out = tmp_path / "out.json"
  result = command("--variants=P1", f"--json={out}", cache=tmp_path)
  assert result.returncode == 0, result.stderr
  nothing, rematerialized, halves = json.loads(out.read_text())["steps"]
  assert rematerialized["hbm_bytes"] < nothing["hbm_bytes"]
  assert halves["hbm_bytes"] < nothing["hbm_bytes"]


@pytest.mark.parametrize(
  ("argument", "message"),
  [
    ("--variants=G0", "--variants: unknown variant 'G0'"),
    ("--variants=", "--variants= names none"),
    ("--topology=v4:4x4x3", "chips=48: must divide the batch of 4096"),
    ("stray", "unexpected argument 'stray'"),
  ],
)
def test_what_a_user_gets_wrong_is_one_line(argument, message, tmp_path):
  result = commands.run("profiling.memory", argument, environment={"XDG_CACHE_HOME": str(tmp_path)})
  assert result.returncode == 2
  assert re.fullmatch(rf"error: .*{re.escape(message)}.*\n", result.stderr), result.stderr

import dataclasses
import json
import os
import subprocess
import sys

import pytest
from PIL import Image

from nfnet.errors import UserError
from tests.repository import ROOT
from tests.train.scaling.test_finetuning_law import PAPER_A, grid
from train.choose_checkpoint import as_text, choose
from train.published_runs import PAPER_A_NFNETS
from train.scaling.finetuning_law import fit
from train.scaling.run_table import read_runs
from train.small_study import RUNS


def run(*arguments):
  return subprocess.run(
    [sys.executable, "-m", "train.choose_checkpoint", *arguments],
    cwd=ROOT,
    env=os.environ,
    capture_output=True,
    text=True,
    check=False,
  )


def test_candidates_come_in_the_order_of_their_predictions():
  finetuned, candidates = grid(noise=0.01)[:12], grid(seed=1)[12:]
  choice = choose(finetuned, candidates)
  law = fit(choice.law.kind, finetuned)
  assert {one.run for one in choice.ranked} == set(candidates)
  predictions = [one.error_percent for one in choice.ranked]
  assert predictions == sorted(law.error_percent(run) for run in candidates)
  for one in choice.ranked:
    low, high = one.interval_percent
    assert low < one.error_percent < high
    assert one.interval_percent == law.interval_percent(one.run)


def test_the_order_decides_and_not_the_error():
  """In the small study one run is far off, most of all for the law that orders best."""
  choice = choose(read_runs([RUNS]).runs, ())
  (found,) = (check for check in choice.checks if check.kind == choice.law.kind)
  assert found.wrong_pairs == min(check.wrong_pairs for check in choice.checks)
  assert found.mean_error > min(check.mean_error for check in choice.checks[1:])


def test_the_law_is_the_one_that_predicts_best():
  runs = grid(noise=0.001, size_exponent=-0.3)
  choice = choose(runs, ())
  assert choice.law.kind.label == "loss and size"
  assert [check.kind and check.kind.label for check in choice.checks] == [
    None,
    "loss alone",
    "loss and size",
  ]
  # Without a law in size, its exponent is noise that costs more than it tells.
  errors = {check.kind.label: check.mean_error for check in choice.checks[1:]}
  assert errors["loss and size"] < 0.1 * errors["loss alone"]


def test_without_candidates_each_network_is_predicted_by_the_others():
  choice = choose(PAPER_A, ())
  found = next(check for check in choice.checks if check.kind == choice.law.kind)
  predictions = dict(zip(PAPER_A, found.predictions, strict=True))
  assert [one.error_percent for one in choice.ranked] == sorted(predictions.values())
  assert all(one.error_percent == predictions[one.run] for one in choice.ranked)
  assert all(one.interval_percent is None for one in choice.ranked)
  assert (choice.ranked[0].run.name, choice.ranked[0].run.epochs) == ("F7+", 8)


def test_quantities_that_a_candidate_lacks_are_not_used():
  probed = [
    dataclasses.replace(run, probe_squared_error=run.top1_error_percent / 100) for run in grid()
  ]
  assert "probe" in choose(probed, ()).law.kind.quantities
  assert "probe" not in choose(probed, grid(seed=1)).law.kind.quantities


def test_too_few_networks():
  with pytest.raises(UserError, match="4 fine-tuned runs of 1 networks are too few"):
    choose(grid(networks=1), ())


def test_text_names_every_candidate():
  text = as_text(choose(PAPER_A, ()))
  for run in PAPER_A:
    assert f"{run.top1_error_percent:.2f} %" in text
  assert "order of pre-training loss" in text


def test_the_command(tmp_path):
  result = run(
    f"--finetuned={PAPER_A_NFNETS}",
    f"--candidates={PAPER_A_NFNETS}",
    "--parameters_max=600000000",
    f"--json={tmp_path / 'choice.json'}",
    f"--plot={tmp_path / 'choice.png'}",
  )
  assert result.returncode == 0, result.stderr
  found = json.loads((tmp_path / "choice.json").read_text())
  # 36 runs without the six of F7+.
  assert len(found["ranked"]) == 30
  assert "F7+" not in {one["name"] for one in found["ranked"]}
  assert found["law"]["by"] == "loss and size"
  errors = [one["predicted_error_percent"] for one in found["ranked"]]
  assert errors == sorted(errors)
  with Image.open(tmp_path / "choice.png") as picture:
    assert picture.size[0] > 300
  result = run(f"--finetuned={PAPER_A_NFNETS}", "--parameters_max=1000")
  assert result.returncode == 2
  assert result.stderr.strip() == "error: --parameters_max=1000: no network is as small"

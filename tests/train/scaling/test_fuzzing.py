"""Mutated tables of runs give laws or an error of one line, and quickly."""

import random

import pytest

from tests import fuzzing
from train.published_runs import PAPER_A_FINETUNED, PAPER_A_NFNETS
from train.scaling.analysis import analyze
from train.scaling.analysis_json import as_json
from train.scaling.analysis_text import as_text
from train.scaling.checkpoint_choice import as_text as choice_text
from train.scaling.checkpoint_choice import choose
from train.scaling.run_table import read_runs

SMALL = b"""\xef\xbb\xbf# a comment\r
name,parameters,epochs,compute_flops,loss_nats,top1_error_percent\r
"a, b",1000,0.5,1e9,3.5,20\r
c,2000,0.5,2e9,3.25,19.5\r
c,2000,1,4e9,3.1,19\r
d,4000,1,8e9,3.0,18\r
d,4000,2,16e9,2.75,17\r
e,8000,2,3.2e10,2.5,16.5\r
"""


@pytest.mark.parametrize(
  ("count", "resamples"),
  [(50, 2), pytest.param(10_000, 0, marks=pytest.mark.slow)],
  ids=["few", "many"],
)
def test_mutated_tables(tmp_path, count, resamples):
  path = tmp_path / "runs.csv"

  def read(content):
    path.write_bytes(content)
    table = read_runs([str(path)])
    analysis = analyze(table, resamples=resamples, seed=0)
    as_text(analysis)
    as_json(analysis)
    runs = [one for one in table.runs if one.loss_nats and one.top1_error_percent]
    choice_text(choose(runs, []))

  seeds = [SMALL, SMALL, PAPER_A_NFNETS.read_bytes()[:1500], PAPER_A_FINETUNED.read_bytes()]
  mutations = fuzzing.mutations(seeds, random.Random(0))
  findings = fuzzing.run_bounded(read, [next(mutations) for _ in range(count)])
  assert not findings, fuzzing.describe(findings)

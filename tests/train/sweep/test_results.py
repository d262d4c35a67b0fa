"""The result of a trial, and the table of all."""

import json

import pytest

from nfnet.errors import UserError
from tests.train.sweep.trials import make_trial
from train.scaling.run_table import read_runs
from train.sweep.claim import claim_trial
from train.sweep.folder import DONE, RUNNING, Entry, SweepFolder
from train.sweep.results import best_results, read_result, results, write_results
from train.sweep.trial import trial_name
from train.sweep.trial_table import table_rows


def row(name, epochs, rate, loss):
  return {
    "trial": trial_name(name, epochs, rate),
    "name": name,
    "parameters": 1000,
    "epochs": epochs,
    "learning_rate": rate,
    "compute_flops": 10**9,
    "loss_nats": loss,
    "held_out_error_percent": 37.5,
  }


def finish(folder, trial, result):
  claim_trial(folder, folder.entries()[trial.name], "other.7.8").move(DONE, result)


def test_results_are_written_with_what_others_finish_meanwhile(folder):
  first, late = make_trial(0.1), make_trial(0.8)
  for trial in (first, late):
    folder.add(trial)
  finish(folder, first, row("P0", 0.5, 0.1, 1.25))

  class FolderOfABusyWorker(SweepFolder):
    """A folder in which another worker finishes a trial between reading and writing."""

    def writing(self):
      if folder.entries()[late.name].state != DONE:
        finish(folder, late, row("P0", 0.5, 0.8, 1.0))
      return super().writing()

  entries = folder.entries()
  path = write_results(FolderOfABusyWorker(folder.path), entries, results(folder, entries))
  assert not list((folder.path / RUNNING).iterdir())
  assert path.read_text() == (
    "trial,name,parameters,epochs,learning_rate,compute_flops,loss_nats,held_out_error_percent\n"
    "P0_epochs-0.5_rate-0.8,P0,1000,0.5,0.8,1000000000,1.0,37.5\n"
    "P0_epochs-0.5_rate-0.1,P0,1000,0.5,0.1,1000000000,1.25,37.5\n"
  )
  # The scaling laws read it as it is.
  assert [run.loss_nats for run in read_runs([str(path)]).runs] == [1.0, 1.25]


def test_showing_a_sweep_reads_each_result_once(folder, monkeypatch):
  trials = [make_trial(rate) for rate in (0.1, 0.8)]
  for trial in trials:
    folder.add(trial)
    finish(folder, trial, row("P0", 0.5, trial.learning_rate, 1.25))
  read, names = Entry.read, []
  monkeypatch.setattr(Entry, "read", lambda entry: names.append(entry.name) or read(entry))
  entries = folder.entries()
  rows = results(folder, entries)
  assert len(table_rows(folder, entries, rows)) == 2
  write_results(folder, entries, rows)
  assert sorted(names) == sorted(trial.name for trial in trials)


def test_the_best_of_each_variant_and_budget():
  rows = [
    row("P0", 1, 0.1, 0.5),
    row("N0", 1, 0.1, 0.4),
    row("P0", 1, 0.05, 0.3),
    row("P0", 2, 0.1, 0.6),
    row("N0", 1, 0.05, 0.45),
  ]
  assert best_results(rows) == [rows[2], rows[1], rows[3]]


def test_the_result_is_that_of_the_moving_average_at_the_last_step(tmp_path):
  trial = make_trial(steps=20)
  record = {"kind": "evaluation", "step": 20, "loss": 3.0, "top1": 0.25, "ema": False}
  records = [
    {**record, "step": 10, "loss": 1.0, "ema": True},
    {**record, "loss": 2.5, "ema": True},
    record,
  ]

  def result_of(some):
    text = "".join(json.dumps(one) + "\n" for one in some)
    (tmp_path / "metrics.jsonl").write_text(text)
    return read_result(tmp_path, trial)

  result = result_of(records)
  assert (result["loss_nats"], result["held_out_error_percent"]) == (2.5, 75)
  assert result_of(records[2:])["loss_nats"] == 3.0
  with pytest.raises(UserError, match="no evaluation of the last step"):
    result_of(records[:1])

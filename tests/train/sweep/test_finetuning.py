"""What needs no training; `test_sweep.py` fine-tunes what a real sweep has pre-trained."""

import dataclasses

import pytest

from nfnet.errors import InUseError, UserError
from train.run.leases.workdir_lease import lease_on
from train.sweep import finetuning
from train.sweep.claim import claim_trial
from train.sweep.finetuning import (
  FINETUNED_FOLDER,
  SET_BY_FINETUNING,
  finetune_sweep,
  run_once,
)
from train.sweep.folder import DONE

CONFIG = "train/configs/demo_finetune.py"


def finetune(folder, *overrides):
  return finetune_sweep(folder, CONFIG, overrides, seeds=1, all_trials=False, probe_images_max=10)


def test_a_sweep_that_has_finished_nothing(folder):
  with pytest.raises(UserError, match=r"no trial that is done; run train\.sweep first"):
    finetune(folder)


def finish(folder, trial):
  result = {
    **{"loss_nats": 1.0, "held_out_error_percent": 1.0, **dataclasses.asdict(trial)},
    **{"trial": trial.name, "name": trial.variant},
  }
  claim_trial(folder, folder.entries()[trial.name], "other.7.8").move(DONE, result)


def test_each_run_is_announced_when_it_begins(folder, trial, monkeypatch, capsys):
  def begin(_, workdir, loggers):
    assert capsys.readouterr().out == f"{trial.name}: seed 0, {workdir}/log.txt\n"
    assert not loggers
    raise UserError("begun")

  monkeypatch.setattr(finetuning, "_error_percent", begin)
  finish(folder, trial)
  with pytest.raises(UserError, match="begun"):
    finetune(folder)


def test_a_sweep_that_another_process_fine_tunes(folder, trial):
  finish(folder, trial)
  with (
    lease_on(folder.path / FINETUNED_FOLDER),
    pytest.raises(InUseError, match="in use by process"),
  ):
    finetune(folder)


@pytest.mark.parametrize("field", SET_BY_FINETUNING)
def test_fields_that_each_trial_sets(field, folder):
  with pytest.raises(UserError, match=f"--config.{field} is set for each trial"):
    finetune(folder, f"--config.{field}=3")


def test_only_what_was_asked_for_before_is_not_done_again(tmp_path):
  runs = []

  def ask(images_max):
    def run():
      runs.append(images_max)
      return {"found": 2.0 * images_max}

    return run_once(tmp_path / "probe.json", {"images_max": images_max}, ("found",), run)

  assert ask(10) == ask(10) == {"found": 20.0}
  assert ask(20) == {"found": 40.0}
  assert runs == [10, 20]

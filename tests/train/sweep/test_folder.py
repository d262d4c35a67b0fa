"""The states of a sweep's trials, and the folder that workers share."""

import dataclasses
import json
import os

import pytest

from nfnet.errors import UserError
from tests.train.sweep.trials import FIXED, make_trial, state, together
from train.sweep.claim import claim_trial
from train.sweep.folder import DONE, FAILED, RUNNING, WAITING, SweepFolder


def test_a_trial_goes_through_its_states(folder, trial):
  assert trial.name == "P0_epochs-0.5_rate-0.1"
  assert (folder.path / "waiting" / trial.name).is_file()
  claim = claim_trial(folder, folder.entries()[trial.name], "host.1.2")
  (running,) = (folder.path / "running").iterdir()
  assert running.name == f"{trial.name}@host.1.2"
  entry = folder.entries()[trial.name]
  assert (entry.state, entry.worker) == (RUNNING, "host.1.2")
  claim.move(WAITING, {"starts": 1})
  assert folder.entries()[trial.name].read() == {"starts": 1}
  claim = claim_trial(folder, folder.entries()[trial.name], "host.1.2")
  assert claim.read() == {"starts": 1}
  claim.move(DONE, {"loss": 1.5})
  assert json.loads((folder.path / "done" / trial.name).read_text()) == {"loss": 1.5}
  assert not list((folder.path / "running").iterdir())
  assert folder.trial(trial.name) == trial
  assert SweepFolder(folder.path).trial(trial.name) == trial


def test_a_trial_is_added_once(folder, trial):
  assert not folder.add(trial)
  claim = claim_trial(folder, folder.entries()[trial.name], "host.1.2")
  assert not folder.add(trial)
  claim.move(DONE, {})
  assert not folder.add(trial)
  assert state(folder, trial) == DONE


def test_of_many_that_add_a_trial_one_does(folder):
  every = [make_trial(rate) for rate in range(1, 31)]
  added = together(8, lambda _: [folder.add(trial) for trial in every])
  assert [sum(column) for column in zip(*added, strict=True)] == [1] * len(every)
  assert len(list((folder.path / "waiting").iterdir())) == len(every)
  assert {path.name for path in (folder.path / "trials").iterdir()} == {t.name for t in every}


def test_who_died_while_adding_loses_no_trial(folder, trial):
  os.rename(folder.path / "waiting" / trial.name, folder.trial_folder(trial.name) / "entry")
  assert state(folder, trial) == WAITING
  assert (folder.path / "waiting" / trial.name).is_file()


def test_a_deleted_entry_leaves_the_trial_out(folder, trial):
  (folder.path / "waiting" / trial.name).unlink()
  assert folder.entries() == {}
  assert not folder.add(trial)
  assert folder.names() == {trial.name}


def test_what_failed_is_run_again_unless_it_diverged(folder):
  for rate, failure in ((0.1, {"reason": "disk"}), (0.2, {"diverged": True}), (0.4, None)):
    trial = make_trial(rate)
    folder.add(trial)
    claim = claim_trial(folder, folder.entries()[trial.name], "host.1.2")
    claim.move(DONE if failure is None else FAILED, failure or {})
  assert folder.retry_failed() == [make_trial(0.1).name]
  assert [state(folder, make_trial(rate)) for rate in (0.1, 0.2, 0.4)] == [WAITING, FAILED, DONE]


def test_one_folder_is_of_one_configuration(folder):
  folder.create(FIXED)
  with pytest.raises(UserError, match=r"config was 'a\.py' and is now 'b\.py'; give another"):
    folder.create({**FIXED, "config": "b.py"})
  # The first one stays, and nothing is left behind.
  folder.create(FIXED)
  assert not list(folder.path.rglob(".*"))


def test_many_create_a_folder_at_once(tmp_path):
  together(8, lambda _: SweepFolder(tmp_path / "sweep").create(FIXED))
  assert json.loads((tmp_path / "sweep" / "plan.json").read_text()) == FIXED


def test_what_cannot_be_a_folder_is_one_line(tmp_path, folder):
  with pytest.raises(UserError, match="gcsfuse --implicit-dirs bucket DIR"):
    SweepFolder("gs://bucket/sweep")
  with pytest.raises(UserError, match="there is no sweep"):
    SweepFolder(tmp_path).check()
  file = tmp_path / "file"
  file.write_text("")
  with pytest.raises(UserError, match=r"' is in the way \(Not a directory\); move"):
    SweepFolder(file / "sweep").create(FIXED)
  (folder.path / "plan.json").write_text("{")
  with pytest.raises(UserError, match=r"plan\.json' is damaged"):
    folder.create(FIXED)
  trial = make_trial()
  folder.add(trial)
  (folder.trial_folder(trial.name) / "trial.json").write_text('{"name": "a"}')
  with pytest.raises(UserError, match=r"trial file .* does not have the fields of a trial"):
    SweepFolder(folder.path).trial(trial.name)


def test_trials_are_ordered_small_and_short_first():
  small = make_trial()
  large = dataclasses.replace(small, compute_flops=10**10)
  higher = dataclasses.replace(small, learning_rate=0.2)
  assert sorted([large, small, higher], key=lambda one: one.order) == [higher, small, large]

"""What needs no training; `test_sweep.py` fine-tunes what a real sweep has pre-trained."""

import pytest

from nfnet.errors import UserError
from train.finetune_sweep import SET_BY_FINETUNE_SWEEP, _once, finetune_sweep
from train.sweep.folder import SweepFolder
from train.sweep.results import best_results

CONFIG = "train/configs/demo_finetune.py"


def row(name, epochs, rate, loss):
  return {
    "trial": f"{name}-{rate}",
    "name": name,
    "epochs": epochs,
    "learning_rate": rate,
    "loss_nats": loss,
  }


def finetune(folder, *overrides):
  return finetune_sweep(folder, CONFIG, overrides, seeds=1, all_trials=False, probe_images_max=10)


def test_the_best_of_each_variant_and_budget():
  rows = [
    row("P0", 1, 0.1, 0.5),
    row("N0", 1, 0.1, 0.4),
    row("P0", 1, 0.05, 0.3),
    row("P0", 2, 0.1, 0.6),
    row("N0", 1, 0.05, 0.45),
  ]
  assert best_results(rows) == [rows[2], rows[1], rows[3]]


def test_a_sweep_that_has_finished_nothing(tmp_path):
  folder = SweepFolder(tmp_path)
  folder.create({})
  with pytest.raises(UserError, match=r"no trial that is done; run train\.sweep first"):
    finetune(folder)


@pytest.mark.parametrize("field", SET_BY_FINETUNE_SWEEP)
def test_fields_that_each_trial_sets(field, tmp_path):
  folder = SweepFolder(tmp_path)
  folder.create({})
  with pytest.raises(UserError, match=f"--config.{field} is what each trial sets"):
    finetune(folder, f"--config.{field}=3")


def test_only_what_was_asked_for_before_is_not_done_again(tmp_path):
  runs = []

  def ask(images_max):
    def run():
      runs.append(images_max)
      return {"found": 2.0 * images_max}

    return _once(tmp_path / "probe.json", {"images_max": images_max}, run)

  assert ask(10) == ask(10) == {"found": 20.0}
  assert ask(20) == {"found": 40.0}
  assert runs == [10, 20]

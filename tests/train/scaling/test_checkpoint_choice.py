import dataclasses

import pytest

from nfnet.errors import UserError
from tests.train.scaling.known_laws import PAPER_A_FINE_TUNED, fine_tuned_runs
from train.scaling.checkpoint_choice import as_text, choose, draw
from train.scaling.laws.finetuning_law import fit_finetuning_law
from train.scaling.run_table import read_runs
from train.small_study import RUNS


def test_candidates_come_in_the_order_of_their_predictions():
  finetuned, candidates = fine_tuned_runs(noise=0.01)[:12], fine_tuned_runs(seed=1)[12:]
  choice = choose(finetuned, candidates)
  law = fit_finetuning_law(choice.law.kind, finetuned)
  assert {one.run for one in choice.ranked} == set(candidates)
  predictions = [one.error_percent for one in choice.ranked]
  assert predictions == sorted(law.error_percent(run) for run in candidates)
  for one in choice.ranked:
    low, high = one.interval_percent
    assert low < one.error_percent < high
    assert one.interval_percent == law.interval_percent(one.run)


def test_the_order_decides_and_not_the_error():
  """One run of the small study is far off, most of all for the law that orders best."""
  choice = choose(read_runs([RUNS["fashion_mnist"]]).runs, ())
  (found,) = (validation for validation in choice.validations if validation.kind == choice.law.kind)
  assert found.wrong_pairs == min(validation.wrong_pairs for validation in choice.validations)
  assert found.mean_error > min(validation.mean_error for validation in choice.validations[1:])


def test_the_law_is_the_one_that_predicts_best():
  runs = fine_tuned_runs(noise=0.001, size_exponent=-0.3)
  choice = choose(runs, ())
  assert choice.law.kind.label == "loss and size"
  assert [validation.kind and validation.kind.label for validation in choice.validations] == [
    None,
    "loss alone",
    "loss and size",
  ]
  # Without a law in size, its exponent is noise that costs more than it tells.
  errors = {validation.kind.label: validation.mean_error for validation in choice.validations[1:]}
  assert errors["loss and size"] < 0.1 * errors["loss alone"]


def test_without_candidates_each_network_is_predicted_by_the_others():
  choice = choose(PAPER_A_FINE_TUNED, ())
  found = next(
    validation for validation in choice.validations if validation.kind == choice.law.kind
  )
  predictions = dict(zip(PAPER_A_FINE_TUNED, found.predictions, strict=True))
  assert [one.error_percent for one in choice.ranked] == sorted(predictions.values())
  assert all(one.error_percent == predictions[one.run] for one in choice.ranked)
  assert all(one.interval_percent is None for one in choice.ranked)
  assert (choice.ranked[0].run.name, choice.ranked[0].run.epochs) == ("F7+", 8)


def test_quantities_that_a_candidate_lacks_are_not_used():
  probed = [
    dataclasses.replace(run, probe_squared_error=run.top1_error_percent / 100)
    for run in fine_tuned_runs()
  ]
  assert "probe" in choose(probed, ()).law.kind.quantities
  assert "probe" not in choose(probed, fine_tuned_runs(seed=1)).law.kind.quantities


def test_too_few_networks():
  with pytest.raises(UserError, match="4 fine-tuned runs of 1 network: too few"):
    choose(fine_tuned_runs(networks=1), ())
  with pytest.raises(UserError, match="0 fine-tuned runs of 0 networks: too few"):
    choose((), ())


def test_losses_that_are_all_equal_determine_no_law():
  equal = [dataclasses.replace(run, loss_nats=2.5, parameters=1e6) for run in fine_tuned_runs()]
  with pytest.raises(UserError, match="16 fine-tuned runs of 4 networks: too few"):
    choose(equal, ())


def test_errors_that_are_all_equal_are_ranked():
  equal = [dataclasses.replace(run, top1_error_percent=10.0) for run in fine_tuned_runs()]
  choice = choose(equal, ())
  assert {round(one.error_percent, 6) for one in choice.ranked} == {10}
  as_text(choice)
  draw(choice)


def test_text_names_every_candidate():
  text = as_text(choose(PAPER_A_FINE_TUNED, ()))
  for run in PAPER_A_FINE_TUNED:
    assert f"{run.top1_error_percent:.2f} %" in text
  assert "order of pre-training loss" in text


def test_names_are_no_formulas_in_the_plot():
  names = ("$\\nothing$", "_hidden", "$", "a_b$c")
  runs = [
    dataclasses.replace(run, name=name) for name in names for run in fine_tuned_runs(noise=0.01)[:2]
  ]
  figure = draw(choose(runs, ()))
  figure.canvas.draw()
  assert len(figure.legends[0].get_texts()) == len(names)


def test_more_runs_than_can_be_compared_are_refused():
  runs = fine_tuned_runs() * (2_001 // len(fine_tuned_runs()) + 1)
  with pytest.raises(UserError, match=r"fine-tuned runs, where 2,000 are the most; give fewer"):
    choose(runs, ())

import os
import re
import subprocess
import sys

import pytest

from nfnet.cost import count
from nfnet.errors import UserError
from tests.repository import ROOT
from train.config.files import load_experiment
from train.data.dataset import train_examples
from train.sweep.plan import load_plan, make_trial
from train.sweep.trial import number_text

DEMO = """
config = "train/configs/demo_pretrain.py"
variants = ["P0", "N0"]
epochs = [0.5, 1]
learning_rates = [0.1, 0.05]
[overrides]
optimizer.warmup_steps = 20
optimizer.ema_decay = "none"
data.horizontal_flip = false
"""
SEARCH = """
config = "train/configs/jft_pretrain.py:variant={variant},epochs={epochs}"
variants = ["F0", "F7+"]
epochs = [0.25, 8]
learning_rates = "search"
start_learning_rate = 1.6
"""


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
  monkeypatch.chdir(ROOT)


@pytest.fixture
def load(tmp_path):
  def load_text(text):
    path = tmp_path / "plan.toml"
    path.write_text(text)
    return load_plan(str(path))

  return load_text


def test_a_grid_is_all_combinations(load):
  plan = load(DEMO)
  assert not plan.is_search
  trials = list(plan.trials())
  assert [trial.name for trial in sorted(trials, key=lambda one: one.order)] == [
    "P0_epochs-0.5_rate-0.1",
    "P0_epochs-0.5_rate-0.05",
    # Twice the steps of P0 cost more than the larger network does.
    "N0_epochs-0.5_rate-0.1",
    "N0_epochs-0.5_rate-0.05",
    "P0_epochs-1_rate-0.1",
    "P0_epochs-1_rate-0.05",
    "N0_epochs-1_rate-0.1",
    "N0_epochs-1_rate-0.05",
  ]


def test_a_trial_is_what_its_arguments_say(load):
  plan = load(DEMO)
  trial = make_trial(plan, "N0", 0.5, 0.05)
  config, *overrides = plan.arguments("N0", 0.5, 0.05)
  experiment = load_experiment(config.removeprefix("--config="), overrides)
  assert experiment.name == trial.name
  assert experiment.model.variant == trial.variant == "N0"
  assert experiment.schedule.train_epochs == trial.epochs == 0.5
  assert experiment.schedule.train_steps is None
  assert experiment.optimizer.peak_learning_rate == trial.learning_rate == 0.05
  assert experiment.optimizer.warmup_steps == 20
  assert experiment.optimizer.ema_decay is None
  assert not experiment.data.horizontal_flip
  cost = count("N0", num_classes=10, pixels=32)
  assert trial.parameters == cost.parameters
  assert trial.steps == round(0.5 * train_examples(experiment.data) / 64)
  assert trial.images == 64 * trial.steps
  assert trial.compute_flops == 6 * cost.macs * trial.images


@pytest.mark.parametrize("config", ["train/configs/jft_pretrain.py", "jft_pretrain"])
def test_a_configuration_may_take_variant_and_epochs(load, config):
  # Its data are not at hand.
  data = "data.path = 'train/demo_data/fashion_mnist'\ndata.num_classes = 10"
  search = SEARCH.replace("train/configs/jft_pretrain.py", config)
  plan = load(search + f"[overrides]\noptimizer.warmup_steps = 0\n{data}\n")
  assert plan.is_search
  assert plan.start_learning_rate == 1.6
  assert list(plan.trials()) == []
  assert plan.arguments("F7+", 8.0, 0.8)[0] == (f"--config={config}:variant=F7+,epochs=8")
  assert sorted(plan.cells().values()) == [("F0", 0.25), ("F0", 8), ("F7+", 0.25), ("F7+", 8)]


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (("variants =", "variant ="), "unknown field 'variant'; nearest: variants"),
    (('config = "train', 'confg = "train'), "unknown field 'confg'; nearest: config"),
    (("epochs = [0.5, 1]\n", ""), "epochs is missing"),
    (("[0.5, 1]", "0.5"), "epochs=0.5: must be a list of numbers"),
    (("[0.5, 1]", "[]"), "epochs=[]: must be a list of numbers"),
    (("[0.5, 1]", '["1"]'), "epochs has '1': must be numbers greater than 0"),
    (("[0.5, 1]", "[0]"), "epochs has 0: must be numbers greater than 0"),
    (("[0.5, 1]", "[true]"), "epochs has True: must be numbers greater than 0"),
    (("[0.5, 1]", "[inf]"), "epochs has inf: must be numbers greater than 0"),
    (("[0.5, 1]", "[1, 1.0]"), "epochs has 1.0 twice"),
    (('["P0", "N0"]', '["P0", "Q0"]'), "variants: unknown variant 'Q0'"),
    (('["P0", "N0"]', '"P0"'), "variants='P0': must be a list of variants"),
    (("[0.1, 0.05]", '"serch"'), "learning_rates='serch': must be \"search\" or a list"),
    (("[0.1, 0.05]", '"search"'), "start_learning_rate=None: must be a number greater than 0"),
    (
      ("[0.1, 0.05]", "[0.1]\nstart_learning_rate = 0.1"),
      'start_learning_rate=0.1: is for learning_rates="search"',
    ),
    (("config = ", "config = 3 #"), "config=3: must be a configuration"),
    (("warmup_steps", "warmup_stepz"), "unknown field 'optimizer.warmup_stepz'; nearest: opt"),
    (("warmup_steps = 20", "warmup_steps = [20]"), "optimizer.warmup_steps=[20]: must be text"),
    (("warmup_steps = 20", "warmup_steps = 0.5"), "warmup_steps='0.5': must be an integer"),
    (("warmup_steps = 20", "warmup_steps = 79"), "the warm-up takes 79 of 78 steps"),
    (
      ("optimizer.warmup_steps = 20", "schedule.train_steps = 20"),
      "schedule.train_steps is set by the sweep for each trial",
    ),
    (("[overrides]\noptimizer.warmup_steps = 20", "overrides = 3\n[x]"), "unknown field 'x'"),
    ((DEMO[DEMO.index("[overrides]") :], "overrides = 3"), "overrides=3: must be a table"),
    (("data.horizontal_flip = false", "data.path = '/nowhere'"), "/nowhere"),
    (("data.horizontal_flip = false", "initial_weights = 'a'"), "pre-trains from random"),
    (("train/configs/demo", "train/configs/deno"), "deno_pretrain.py' cannot be read"),
    (("epochs = [0.5", "epochs = [0.5 0.5"), "is not TOML: "),
  ],
)
def test_what_cannot_work_is_one_line(load, change, message):
  assert change[0] in DEMO
  with pytest.raises(UserError, match=re.escape(message)) as error:
    load(DEMO.replace(*change, 1))
  assert "plan file " in str(error.value)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  "line",
  [
    *("x = " + "[" * 5000, "x = " + "{a=" * 5000, "epochs." + "a." * 400_000 + "a = 1"),
    *(
      "[overrides." + "a." * 400 + "a]\n" + "b." * 480 + "b = 1",
      "x = " + "9" * 5000,
      "x = '" + "a" * 10**5,
    ),
    *('"\\u001b[31m' + "a" * 10**5 + '" = 1', 'config = "\\u0000"', 'config = "\\u001b[31m\\n"'),
  ],
)
def test_a_hostile_plan_is_one_line(load, line):
  for text in (line, DEMO + line, f"{line}\n{DEMO}", DEMO[DEMO.index("variants") :] + "\n" + line):
    with pytest.raises(UserError) as error:
      load(text)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 3000


def test_a_plan_that_is_not_there(tmp_path):
  with pytest.raises(UserError, match="cannot be read: No such file"):
    load_plan(str(tmp_path / "plan.toml"))


@pytest.mark.parametrize(
  ("number", "text"), [(1.0, "1"), (0.4, "0.4"), (1.6 / 2**11, "0.00078125"), (8, "8")]
)
def test_numbers_in_names_are_exact(number, text):
  assert number_text(number) == text
  assert float(text) == number


def test_a_plan_leaves_the_devices_to_the_trainings(tmp_path):
  """A TPU is held by the first process that starts JAX's devices; here that would be an error."""
  path = tmp_path / "plan.toml"
  path.write_text(DEMO)
  load = "import sys, train.sweep.worker; from train.sweep.plan import load_plan as load; "
  result = subprocess.run(
    [sys.executable, "-c", load + "load(sys.argv[1])", path],
    env={**os.environ, "JAX_PLATFORMS": "absent"},
    capture_output=True,
    text=True,
    check=False,
  )
  assert (result.returncode, result.stderr) == (0, "")

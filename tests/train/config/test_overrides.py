import re
import subprocess
import sys
import textwrap

import pytest
from absl import flags

from nfnet.errors import UserError
from tests.train.config.valid_experiment import VALID, replaced
from train.config.field_names import field_values
from train.config.files import load_experiment
from train.config.overrides import as_argument, parse_arguments


@pytest.mark.parametrize(
  ("argument", "field", "value"),
  [
    ("--config.optimizer.peak_learning_rate=0.4", "optimizer.peak_learning_rate", 0.4),
    ("--config.optimizer.weight_decay=1e-3", "optimizer.weight_decay", 1e-3),
    ("--config.optimizer.peak_learning_rate=2", "optimizer.peak_learning_rate", 2.0),
    ("-config.seed=7", "seed", 7),
    ("--config.data.horizontal_flip=False", "data.horizontal_flip", False),
    ("--config.model.rematerialize=true", "model.rematerialize", True),
    ("--config.optimizer.ema_decay=none", "optimizer.ema_decay", None),
    ("--config.model.bottleneck=released", "model.bottleneck", "released"),
    ("--config.name=a=b none", "name", "a=b none"),
    ("--config.initial_weights=/runs/f0", "initial_weights", "/runs/f0"),
    ("--config.data.path=", "data.path", ""),
  ],
)
def test_override_sets_one_field(config, argument, field, value):
  changed = field_values(load_experiment(config, [argument]))
  assert changed[field] == value
  assert type(changed[field]) is type(value)
  assert {**changed, field: None} == {**field_values(VALID), field: None}


def test_later_override_wins(config):
  overrides = ["--config.seed=1", "--config.seed=2"]
  assert load_experiment(config, overrides).seed == 2


@pytest.mark.parametrize(
  ("argument", "message"),
  [
    ("--config.optimizer.peak_lerning_rate=1", "nearest: --config.optimizer.peak_learning_rate"),
    ("--config.momentum=1", "nearest: --config.optimizer.momentum"),
    ("--config.data.batch_size=1.5", "--config.data.batch_size='1.5': must be an integer"),
    ("--config.data.batch_size=none", "must be an integer"),
    ("--config.optimizer.momentum=nan", "must be a finite number"),
    ("--config.optimizer.momentum=fast", "must be a finite number"),
    ("--config.optimizer.agc_clipping=x", "must be a finite number or none"),
    ("--config.data.horizontal_flip=1", "must be true or false"),
    ("--config.loss.kind=hinge", "'hinge': must be one of softmax, sigmoid"),
    ("--config.model=F0", "section of fields"),
    ("--config.seed", "write --config.seed=VALUE"),
  ],
)
def test_bad_override_is_refused(config, argument, message):
  with pytest.raises(UserError, match=re.escape(message)):
    load_experiment(config, [argument])


def test_arguments_reproduce_an_experiment(config):
  wanted = replaced(
    name="wanted",
    model={"variant": "N0", "rematerialize": True, "dropout_rate": 0.1},
    data={"horizontal_flip": False},
    optimizer={"ema_decay": None, "weight_decay": 1e-7},
    schedule={"train_steps": None, "train_epochs": 2.5},
  )
  arguments = [as_argument(field, value) for field, value in field_values(wanted).items()]
  assert load_experiment(config, arguments) == wanted


@pytest.fixture
def absl_flags():
  """Defines a flag as a main would, and restores absl's flags, which are global."""
  values = flags.FLAGS
  flags.DEFINE_string("workdir", None, "", flag_values=values)
  yield values
  del values.workdir
  values.unparse_flags()


def test_arguments_are_split_between_absl_and_the_experiment(absl_flags):
  rest = parse_arguments(["main", "--workdir=/tmp/a", "--config.seed=3", "-config.name=b"])
  assert rest == ["main", "--config.seed=3", "-config.name=b"]
  assert absl_flags.is_parsed()
  assert absl_flags.workdir == "/tmp/a"


@pytest.mark.parametrize(
  ("argument", "message"),
  [
    ("--wordkir=x", "unknown flag --wordkir; nearest: --workdir"),
    ("--optimizer.momentum=0.8", "nearest: --config.optimizer.momentum"),
    ("0.8", "unexpected argument '0.8'"),
    ("--workdir", "workdir"),
  ],
)
def test_bad_flag_is_refused(absl_flags, argument, message):
  with pytest.raises(UserError, match=re.escape(message)):
    parse_arguments(["main", argument])


def test_main_prints_one_line_and_exits_with_2(config, tmp_path):
  main = tmp_path / "main.py"
  main.write_text(
    textwrap.dedent("""\
      import sys
      from absl import flags
      from nfnet.command_line import run_main
      from train.config.files import load_experiment
      from train.config.overrides import parse_arguments

      CONFIG = flags.DEFINE_string("config", None, "file", required=True)

      def main(arguments):
        print(load_experiment(CONFIG.value, arguments[1:]).seed)

      if __name__ == "__main__":
        run_main(main, flags_parser=parse_arguments)
      """)
  )

  def run(*arguments):
    return subprocess.run(
      [sys.executable, main, *arguments],
      env={"PYTHONPATH": ":".join(sys.path), "JAX_PLATFORMS": "cpu"},
      capture_output=True,
      text=True,
      check=False,
    )

  good = run(f"--config={config}", "--config.seed=5")
  assert (good.returncode, good.stdout, good.stderr) == (0, "5\n", "")
  for arguments in ((f"--config={config}", "--config.sed=5"), ("--confg=x",), ()):
    bad = run(*arguments)
    assert bad.returncode == 2
    assert bad.stderr.startswith("error: ")
    assert bad.stderr.count("\n") == 1, bad.stderr

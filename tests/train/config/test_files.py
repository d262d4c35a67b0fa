import pathlib
import re

import pytest

from nfnet.errors import UserError, quoted
from tests.repository import ROOT
from tests.train.config.valid_experiment import VALID
from train.config.files import load_experiment


def test_file_gives_the_experiment_and_no_bytecode(config, tmp_path):
  assert load_experiment(config) == VALID
  assert [path.name for path in tmp_path.iterdir()] == ["config.py"]


@pytest.mark.parametrize(
  ("source", "message"),
  [
    ("def experiment(:", "line 1: invalid syntax"),
    ("x = 1", "has no function experiment()"),
    ("experiment = 3", "has no function experiment()"),
    ("def experiment():\n  return {}", "returned dict"),
    ("import nothing_like_this", "line 1: ModuleNotFoundError"),
    ("def experiment():\n  return 1 / 0", "line 2: ZeroDivisionError"),
    (
      "from train.config.experiment import Data\ndef experiment():\n  return Data(batchsize=1)",
      "nearest field: batch_size",
    ),
    (
      "from train.config.experiment import *\n"
      "def experiment():\n  return Experiment(name='x', model='F0')",
      "model='F0': must be a Model(...)",
    ),
  ],
)
def test_bad_file_is_refused(tmp_path, source, message):
  path = tmp_path / "config.py"
  path.write_text(source)
  with pytest.raises(UserError, match=re.escape(message)) as caught:
    load_experiment(str(path))
  assert "\n" not in str(caught.value)
  assert message.startswith(("model", "nearest")) or str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["absent.py", "."])
def test_unreadable_file_is_refused(tmp_path, name):
  with pytest.raises(UserError, match="cannot be read"):
    load_experiment(str(tmp_path / name))


@pytest.mark.parametrize("arguments", ["", ":variant=F1"])
def test_a_missing_file_of_an_installed_name_is_answered_with_the_name(
  arguments, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(UserError, match=rf"No such file.*--config=imagenet{arguments}$"):
    load_experiment(f"train/configs/imagenet.py{arguments}")
  with pytest.raises(UserError, match=r"No such file or directory$"):
    load_experiment("train/configs/mine.py")


CONFIGS = ROOT / "train" / "configs"
NAMES = sorted(path.stem for path in CONFIGS.glob("[a-z]*.py"))


# The configuration of small data sets reads one, and has tests of its own.
@pytest.mark.parametrize("name", sorted({*NAMES} - {"finetune_small"}))
def test_an_existing_experiment_is_found_by_its_name_in_any_folder(name, tmp_path, monkeypatch):
  # A folder of the same name, such as one of results, is not meant.
  (tmp_path / name).mkdir()
  monkeypatch.chdir(tmp_path)
  assert load_experiment(name) == load_experiment(str(CONFIGS / f"{name}.py"))


def test_a_name_takes_arguments_and_overrides():
  named = load_experiment("imagenet:variant=F3,sharpness=true", ["--config.seed=5"])
  file = f"{CONFIGS / 'imagenet.py'}:variant=F3,sharpness=true"
  assert named == load_experiment(file, ["--config.seed=5"])
  with pytest.raises(UserError, match=r"imagenet\.py' has no argument 'size'"):
    load_experiment("imagenet:size=F3")


@pytest.mark.parametrize(
  "name", ["imagnet", "imagnet:variant=F3", "__init__", "imagenet-21k", "x" * 5000]
)
def test_a_wrong_name_ends_in_one_line_with_the_names(name):
  with pytest.raises(UserError, match=f"neither a file nor one of {', '.join(NAMES)}$") as caught:
    load_experiment(name)
  assert quoted(name.partition(":")[0]) in str(caught.value)


def test_a_file_is_a_file_whatever_it_is_called(config, tmp_path, monkeypatch):
  (tmp_path / "imagenet").write_bytes(pathlib.Path(config).read_bytes())
  monkeypatch.chdir(tmp_path)
  assert load_experiment("imagenet") == VALID
  assert load_experiment("config.py") == VALID


@pytest.mark.parametrize(
  "signature",
  [
    "variant: str = 'F0', steps: int = 2, sharp: bool = False, name=None",
    "variant='F0', steps=2, sharp=False, name=None",
    "variant, steps=2, sharp=False, *, name=''",
  ],
)
@pytest.mark.parametrize("future", ["", "from __future__ import annotations\n"])
def test_arguments_have_the_type_of_their_annotation_or_default(future, signature, tmp_path):
  path = tmp_path / "config.py"
  path.write_text(
    f"{future}from train.config.experiment import Experiment, Model, Optimizer, Schedule\n"
    f"def experiment({signature}):\n"
    "  assert sharp is True\n"
    "  return Experiment(name=name, model=Model(variant=variant),\n"
    "    optimizer=Optimizer(warmup_steps=0), schedule=Schedule(train_steps=steps))\n"
  )
  experiment = load_experiment(f"{path}:variant=F1,steps=7,sharp=true,name=x")
  assert (experiment.model.variant, experiment.schedule.train_steps) == ("F1", 7)
  with pytest.raises(UserError, match=r"argument steps of .*'7\.5': must be an integer"):
    load_experiment(f"{path}:variant=F1,steps=7.5,sharp=true,name=x")


def test_arguments_that_a_configuration_needs_are_named():
  file = CONFIGS / "finetune_small.py"
  for typed in ("finetune_small", file):
    for given, shown in (("", ""), (":", ""), (":variant=P0", "variant=P0,")):
      cure = re.escape(f"after a colon, --config={typed}:{shown}data=DATA")
      with pytest.raises(UserError, match=f"has no value for data: .*{cure}$"):
        load_experiment(f"{typed}{given}")


def test_a_comma_in_an_argument_is_explained(tmp_path):
  path = tmp_path / "config.py"
  path.write_text("def experiment(data='', epochs=1): pass")
  with pytest.raises(UserError) as refused:
    load_experiment(f"{path}:epochs=2,data=birds,2024")
  assert str(refused.value) == (
    f"configuration file '{path}': commas separate its arguments, so '2024' is not part of data; "
    "if data is a path with a comma, rename what it leads to or give a link to it (ln -s)"
  )

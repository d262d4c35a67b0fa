"""Paths, modules, flags and fields that the prose names exist, and so do the notes' commands."""

import pytest

from tests.docs.names import check_name, names
from tests.docs.pages import PAGES, DocumentationError, check_command, inline_commands, page_name
from tests.repository import ROOT
from tests.test_command_lines import COMMANDS

BUILD_NOTES = ROOT / "BUILD_NOTES.md"


@pytest.mark.parametrize("path", [*PAGES, BUILD_NOTES], ids=page_name)
def test_what_the_text_names_is_there(path):
  found = list(names(page_name(path), path.read_text(encoding="utf-8")))
  assert len(found) > 10
  for place, name in found:
    check_name(place, name)


def test_commands_in_the_build_notes_are_what_the_code_takes():
  commands = list(inline_commands("BUILD_NOTES.md", BUILD_NOTES.read_text(encoding="utf-8")))
  assert len(commands) > 10
  for place, words in commands:
    check_command(place, words)


def test_the_changelog_names_modules_by_their_names_of_now():
  lines = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()
  # Rows are a name of before and a name of now.
  now = [line.split("|")[2] if line.startswith("|") else line for line in lines]
  assert now != lines
  for place, name in names("CHANGELOG.md", "\n".join(now)):
    check_name(place, name)


def test_the_page_of_commands_lists_all_of_them():
  text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
  commands = [words for _, words in inline_commands("commands.md", text)]
  listed = [words[2] for words in commands if words[0] == "python"]
  assert sorted(listed) == COMMANDS


def test_names_and_their_lines():
  text = "`one` and\n`two\n  words`\n```bash\n`inside`\n```\n````` ``` ````` `three`"
  assert list(names("page.md", text)) == [
    ("page.md:1", "one"),
    ("page.md:2", "two words"),
    ("page.md:7", "three"),
  ]


@pytest.mark.parametrize(
  ("name", "complaint"),
  [
    ("train/run/looop.py", "there is no train/run/looop.py"),
    ("python -m pytest -m slow tests/nowhere.py", "there is no tests/nowhere.py"),
    (
      "--config=train/configs/image.py:variant=F0",
      "there is no train/configs/image.py",
    ),
    ("imagenet_f0.py", "there is no imagenet_f0.py"),
    ("train.run.looop", "there is no train.run.looop"),
    ("train.run.loop.trian", "there is no train.run.loop.trian"),
    ("train.config.experiment.Data.paths", "there is no train.config.experiment.Data.paths"),
    ("data.paths=DATA", "there is no field data.paths"),
    ("--config.data.paths=DATA", "there is no field --config.data.paths"),
    ("--nospots", "no program has a flag --nospots"),
    ("nfnet.predict --spot", "nfnet.predict has no flag --spot"),
  ],
)
def test_a_name_of_nothing_is_found(name, complaint):
  with pytest.raises(DocumentationError, match=f"page.md:1: {complaint}"):
    check_name("page.md:1", name)


@pytest.mark.parametrize(
  "name",
  [
    "train/run/loop.py",
    "tests/kernels/NAME/test_NAME.py",
    "sgd_agc/tile.py",
    "imagenet.py:variant=F0",
    "train.config.experiment.Data.path",
    "kernels.sgd_agc_step(...)",
    "--config.data.path=DATA",
    "--config.FIELD=VALUE",
    "--nospot",
    "nfnet.predict --resize",
    "metrics.jsonl",
    "np.float32",
  ],
)
def test_a_name_of_something_is_accepted(name):
  check_name("page.md:1", name)

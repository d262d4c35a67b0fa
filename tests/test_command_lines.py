"""Every flag and every field that holds a path passes the one function that checks paths."""

import ast
import json
import re

import pytest

from tests import commands
from tests.docs.pages import flags_of
from tests.repository import ROOT, syntax_tree
from train.config.experiment import Experiment
from train.config.field_names import field_types, path_fields

NOT_PATHS = {
  # A path in it has a function behind it (`train.config.own_functions`).
  "logger",
  # train.prepare_data
  *("image_field", "label_field"),
  # nfnet and profiling
  *("variant", "topology", "only"),
  # train.launch; its workdir, share and image are those of other machines
  *("name", "image", "shared", "cluster", "zone", "project"),
  "coordinator",
}
"""Flags of free text that name no path of this machine."""
TEXT_FIELDS = {"name", "model.variant", "model.activation", "data.train_split"}
TEXT_FIELDS.add("data.evaluation_split")
COMMANDS = sorted(
  path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__main__")
  for top in ("nfnet", "train", "profiling")
  for path in (ROOT / top).rglob("*.py")
  if "run_main(main" in path.read_text(encoding="utf-8")
)


def test_all_commands_are_looked_at():
  assert len(COMMANDS) > 25
  assert {"nfnet.predict", "train.sweep", "train.demo_data.make_digits"} <= set(COMMANDS)


@pytest.mark.parametrize("module", COMMANDS)
def test_flags_of_free_text_are_no_paths(module):
  found = flags_of(module)
  texts = {name for name, kind in found.items() if kind == "string"}
  if module == "train.launch":
    texts.discard("workdir")
  assert texts <= NOT_PATHS
  for name in ("workdir", "out", "json", "plot", "plots", "config", "weights", "folder"):
    assert found.get(name, "path") in ("path", "bool") or module == "train.launch"


RESULTS = {"json", "csv", "logits_out", "plot", "confusion_csv", "confusion_plot"}
"""Flags that name a file to write, of any command."""
TAKEN_IN_A_BUCKET = {
  *((f"train.{name}", "workdir") for name in ("pretrain", "finetune", "audit_data", "goodput")),
  *(("train.evaluate", flag) for flag in ("workdir", "data", "weights")),
  *((module, "weights") for module in ("nfnet.predict", "nfnet.export", "train.probe")),
  ("train.show_data", "out"),
}
"""The other flags that docs/buckets.md allows a bucket for."""


def path_flags(module):
  return [name for name, kind in flags_of(module).items() if kind == "path"]


@pytest.mark.parametrize("module", [module for module in COMMANDS if path_flags(module)])
def test_a_bucket_is_taken_or_refused_before_the_work(module, gcs):
  place = f"{gcs.url}/some/file"
  arguments = [f"--{flag}={place}" for flag in path_flags(module)]
  found = json.loads(commands.run("tests.parsed_flags", module, *arguments).stdout)
  refused = {
    flag
    for flag in path_flags(module)
    # Of what is taken, there may be an error about another flag that is needed.
    if (found[f"--{flag}={place}"] or "").startswith(f"--{flag}={place} is in a bucket, but has ")
  }
  taken = {flag for flag in path_flags(module) if (module, flag) in TAKEN_IN_A_BUCKET}
  assert refused == set(path_flags(module)) - taken - RESULTS
  assert all("\n" not in found[f"--{flag}={place}"] for flag in refused)


def test_results_are_written_by_functions_that_know_buckets():
  """Tests of these functions write into a bucket."""
  files = [path for top in ("nfnet", "train", "profiling") for path in (ROOT / top).rglob("*.py")]
  text = "\n".join(path.read_text(encoding="utf-8") for path in files)
  writer = r"(?:write_json|write_csv|save_figure|open_to_write|_writing)\(\s*\"(\w+)\""
  assert set(re.findall(writer, text)) == {*RESULTS, "out"}
  for module in COMMANDS:
    path = ROOT / module.replace(".", "/")
    file = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    own = file.read_text(encoding="utf-8")
    if module == "nfnet.predict":
      own += (ROOT / "nfnet/prediction/result_files.py").read_text(encoding="utf-8")
    assert RESULTS & set(path_flags(module)) <= set(re.findall(writer, own)), module


@pytest.mark.parametrize(
  "module",
  # All of them come to it in the same way.
  [
    pytest.param(module, marks=pytest.mark.slow if i % 6 else ())
    for i, module in enumerate(COMMANDS)
  ],
)
def test_help_shows_the_flags_of_other_modules(module):
  """absl by itself shows only those that are defined in the main module."""
  result = commands.run(module, "--help")
  shown = re.findall(r"^  --(?:\[no\])?(\w+):", result.stdout, re.MULTILINE)
  assert flags_of(module).keys() <= set(shown)
  # Those of absl are for --helpfull.
  assert "verbosity" not in shown


def test_paths_that_are_written_are_tried_before_the_work():
  """Flags of these names hold results, data sets and workdirs."""
  uses = {}
  for top in ("nfnet", "train", "profiling"):
    for path in (ROOT / top).rglob("*.py"):
      for node in ast.walk(syntax_tree(path)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "define_path":
          use = next(one.value.value for one in node.keywords if one.arg == "use")
          uses.setdefault(ast.literal_eval(node.args[0]), set()).add(use)
  assert len(uses) > 15
  for name in ("json", "plot", "logits_out"):
    assert uses[name] == {"write file"}
  for name in ("plots", "folder", "compilation_cache"):
    assert uses[name] == {"write folder"}
  # Data sets are folders, the sheet of train.show_data is a file.
  assert uses["out"] == {"write folder", "write file"}
  # Audits and evaluations read the workdir that trainings write.
  assert uses["workdir"] == {"read", "write folder"}


def test_fields_of_text_are_paths_or_known_not_to_be():
  texts = {name for name, kind in field_types().items() if kind in (str, str | None)}
  assert texts == TEXT_FIELDS | set(path_fields())
  assert Experiment.__dataclass_fields__["initial_weights"].name in path_fields()


def test_every_program_is_a_command_or_a_worker_of_one():
  """`run_main` sees to it that output which cannot be written ends no command."""
  programs = {
    path.relative_to(ROOT).as_posix()
    for top in ("nfnet", "train", "profiling")
    for path in (ROOT / top).rglob("*.py")
    if '__name__ == "__main__"' in (text := path.read_text(encoding="utf-8"))
    and "run_main(main" not in text
  }
  # Their output goes to a log or to the command that has started them.
  assert programs == {
    *(f"profiling/compile/{kind}_worker.py" for kind in ("op", "step", "tile")),
    "profiling/compile/vision_transformer/worker.py",
    "profiling/measure/input_worker.py",
    "profiling/measure/torch_timm.py",
    "train/data/batch_workers/process.py",
    "train/sweep/trial_process.py",
  }


@pytest.mark.parametrize("module", COMMANDS)
def test_results_are_printed_before_they_are_written(module):
  """A table that took hours is not lost with a file that cannot be written."""
  path = ROOT / module.replace(".", "/")
  file = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
  for function in syntax_tree(file).body:
    writes = [
      node
      for statement in getattr(function, "body", ())
      if isinstance(statement, ast.Expr)
      for node in (statement.value,)
      if isinstance(node, ast.Call)
      and getattr(node.func, "id", None) in ("write_json", "save_figure", "save_figures")
    ]
    assert not writes, "pass it to train.report.output.print_and_write"


def test_limits_that_messages_say_to_raise_are_flags():
  """The message of `profiling.compile.worker_process` is the same for all that compile."""
  compiling = re.compile(
    r"estimate\.(report|paper_runs|op_cycles) import|compile\.compilation import"
  )
  modules = [
    f"profiling.{path.stem}"
    for path in (ROOT / "profiling").glob("*.py")
    if compiling.search(path.read_text(encoding="utf-8"))
  ]
  assert len(modules) >= 9
  for module in modules:
    assert {"memory_limit_gb", "time_limit_seconds"} <= flags_of(module).keys(), module

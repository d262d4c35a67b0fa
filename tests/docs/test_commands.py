"""Runs every command of README.md and docs/, or compares it with the code where that cannot be."""

import dataclasses
import io
import itertools
import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests import commands
from tests.docs.pages import (
  FASHION_MNIST,
  PACKAGES,
  PAGES,
  PLACEHOLDERS,
  ROOT,
  Block,
  DocumentationError,
  blocks,
  check_block,
  check_command,
  flags_of,
  inline_commands,
  page_name,
  read_page,
  shell_commands,
)
from tests.quick_compilation import XLA_FLAGS
from tests.train.data.sources import miniatures
from train.data import dataset_writer
from train.data.manifest import load_manifest
from train.data.preparation.class_folders import TRAIN, VALIDATION
from train.data.record_reader import RecordReader
from train.data.sources.images import Pixels
from train.data.sources.source import Source

IN_DEFAULT_TESTS = ("bash", "python")
IN_ALL_TESTS = (*IN_DEFAULT_TESTS, "bash slow", "python slow")
SECONDS_MAX = 2400


def photographs():
  """Returns real photographs of clothes by class, gray, 28 x 28 pixels."""
  manifest = load_manifest(FASHION_MNIST)
  reader = RecordReader(FASHION_MNIST, manifest.splits["validation"])
  found = {name: [] for name in manifest.class_names}
  for record in map(reader.read, range(400)):
    found[manifest.class_names[record.labels[0]]].append(Image.open(io.BytesIO(record.image)))
  return found


def write_class_folders(root, classes, images):
  """Writes root/CLASS/*.jpg, *.png and *.webp: so many classes, with so many images each."""
  for name, pictures in list(photographs().items())[:classes]:
    folder = root / name.replace("/", " or ")
    folder.mkdir(parents=True)
    for index, picture in enumerate(pictures[:images]):
      picture.save(folder / f"{index:03d}.{('jpg', 'png', 'webp')[index % 3]}")


LAUNCH_ALL = """
import json, sys
from absl.testing import flagsaver
from train.config.overrides import parse_arguments
from train.launch.__main__ import main
for arguments in json.load(sys.stdin):
  print(*arguments, file=sys.stderr)
  with flagsaver.flagsaver():
    main(parse_arguments(arguments))
"""
"""Runs `train.launch` with each list of arguments, in one process: most of a start is imports."""


def launch(*commands):
  """Runs commands `train.launch ...`, with examples in place of the words that readers replace."""
  replaced = []
  for words in commands:
    parts = (word.partition("=") for word in words)
    replaced.append([f"{name}{equals}{PLACEHOLDERS.get(v, v)}" for name, equals, v in parts])
  result = subprocess.run(
    [sys.executable, "-c", LAUNCH_ALL],
    cwd=ROOT,
    input=json.dumps(replaced),
    capture_output=True,
    text=True,
    timeout=SECONDS_MAX,
    check=False,
  )
  assert result.returncode == 0, result.stderr


def program_of(name):
  """Returns the only Python program of a page."""
  page = read_page(ROOT / "docs" / name)
  (program,) = (block.text for block in page if block.kind == "python")
  return program


def two_pictures(folder):
  for name, picture in zip(("a.jpg", "b.png"), photographs()["Pullover"], strict=False):
    picture.save(folder / name)


def own_images(folder):
  write_class_folders(folder / "PICTURES", classes=3, images=30)
  two_pictures(folder)


def released_weights(folder):
  # Only the slow commands need JAX in this process.
  from nfnet.initialization import initial_parameters
  from nfnet.model import NFNet
  from nfnet.weights.haiku import save_haiku
  from nfnet.weights.timm import save_timm

  two_pictures(folder)
  parameters = initial_parameters(NFNet("F0", 1000), 0)
  save_haiku(str(folder / "F0_haiku.npz"), parameters, "F0")
  save_timm(str(folder / "TRAINED.safetensors"), parameters, "F0")
  imagenet_classes(folder / "DATA")


def imagenet_classes(folder):
  """Writes a data set whose 1,000 classes are named by WordNet ids; three of them have pictures."""
  pictures = photographs()["Pullover"]
  images = tuple(
    Pixels(f"{label:03d}", (label,), np.asarray(picture))
    for label, picture in zip((7, 400, 999), pictures, strict=False)
  )
  names = tuple(f"n{number:08d}" for number in range(1000))
  dataset_writer.write_dataset(folder, Source(names, {TRAIN: images[:1], VALIDATION: images}))


def released_f0(folder):
  from nfnet.initialization import initial_parameters
  from nfnet.model import NFNet
  from nfnet.weights.timm import save_timm

  two_pictures(folder)
  save_timm(str(folder / "F0.safetensors"), initial_parameters(NFNet("F0", 1000), 0), "F0")


def small_weights(folder):
  pytest.importorskip("flatbuffers", reason="jax.export writes programs with flatbuffers")
  from nfnet.initialization import initial_parameters
  from nfnet.model import NFNet
  from nfnet.weights.timm import save_timm

  save_timm(str(folder / "P0.safetensors"), initial_parameters(NFNet("P0", 10), 0), "P0")


def jpeg(picture):
  encoded = io.BytesIO()
  picture.save(encoded, "JPEG")
  return encoded.getvalue()


def imagenet_files(folder):
  """Writes both archives, of photographs of four classes, and Kaggle's table."""
  classes = [(re.sub(r"\W", "_", name), one) for name, one in list(photographs().items())[:4]]
  inner = [
    (f"{name}.tar", miniatures.tar_bytes([(f"{n}.JPEG", jpeg(one[n])) for n in range(24)]))
    for name, one in classes
  ]
  root = folder / "IMAGENET"
  miniatures.write_tar(root / "ILSVRC2012_img_train.tar", inner)
  held_out = [(name, picture) for name, one in classes for picture in one[24:32]]
  names = [f"ILSVRC2012_val_{number:08d}" for number in range(1, len(held_out) + 1)]
  miniatures.write_tar(
    root / "ILSVRC2012_img_val.tar",
    [(f"{name}.JPEG", jpeg(one)) for name, (_, one) in zip(names, held_out, strict=True)],
  )
  lines = [f"{name},{label} 1 2 3 4" for name, (label, _) in zip(names, held_out, strict=True)]
  (root / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *lines]))


def cifar_10(folder):
  files = miniatures.cifar_10_files([f"class {number}" for number in range(10)], images=30)
  miniatures.write_cifar_archive(folder / "cifar-10-binary.tar.gz", files)


def other_formats(folder):
  miniatures.write_table(folder / "FLOWERS", images=30)


def all_other_formats(folder):
  other_formats(folder)
  miniatures.write_webdataset(folder / "SHARDS", images=15)
  miniatures.write_imagenet(folder / "IMAGENET")
  miniatures.write_class_tars(folder / "IMAGENET21K", images=8)
  images = [(miniatures.picture(number), number % 3) for number in range(30)]
  miniatures.write_parquet(folder / "PARQUET" / "train-00000-of-00001.parquet", images)
  splits = {"train": miniatures.tfds_examples(0, 12), "test": miniatures.tfds_examples(20, 6)}
  miniatures.write_tfds(folder / "TFDS" / "birds" / "1.0.0", splits)
  program = program_of("data_sources.md")
  (folder / "my_pictures.py").write_text(program.partition("write_dataset(")[0])


def digits_in_a_bucket(folder):
  """Does what the page has `gcloud storage cp` do."""
  from nfnet.buckets.bucket_path import BucketPath
  from train.data.dataset_writer import write_dataset
  from train.demo_data import make_digits

  write_dataset(folder / "uploaded", make_digits.source())
  for path in (folder / "uploaded").glob("*.*"):
    (BucketPath("gs://bucket/digits") / path.name).write_bytes(path.read_bytes())


def own_logger(folder):
  (folder / "my_loggers.py").write_text(program_of("loggers.md"))


def cifar_10_and_its_halves(folder):
  cifar_10(folder)
  (folder / "cifar_halves.py").write_text(program_of("fine_tuning.md"))


SET_UP = {
  "docs/your_own_images.md": own_images,
  "docs/imagenet_from_scratch.md": imagenet_files,
  "docs/data_sources.md": other_formats,
}
"""What makes the files that a page takes for granted, by the page's name."""
SET_UP_SLOW = {
  **SET_UP,
  "README.md": own_images,
  "docs/buckets.md": digits_in_a_bucket,
  "docs/cifar10.md": cifar_10,
  "docs/fine_tuning.md": cifar_10_and_its_halves,
  "docs/networks.md": released_weights,
  "docs/from_python.md": released_f0,
  "docs/serving.md": small_weights,
  "docs/data_sources.md": all_other_formats,
  "docs/loggers.md": own_logger,
}
"""What makes them for a page's slow commands too."""


def script(runnable):
  parts = ["set -eo pipefail"]
  numbered = enumerate(runnable)
  for is_python, group in itertools.groupby(
    numbered, lambda pair: pair[1].kind.startswith("python")
  ):
    if is_python:
      program = [f"print('@@ block {number}')\n{block.text}" for number, block in group]
      # Unbuffered, so that an error is printed after what came before it.
      parts += ["python -u - <<'END_OF_PROGRAM'", *program, "END_OF_PROGRAM"]
    else:
      parts += [f"echo '@@ block {number}'\n{block.text}" for number, block in group]
  return "\n".join([*parts, "echo '@@ the end'", ""])


def run(folder, runnable, *, forks=True):
  """Runs blocks as one shell session and returns what each of them printed.

  With `forks`, programs start without the seconds that imports take, but never two at a time.
  """
  for name in (*PACKAGES, "tests", "pyproject.toml"):
    (folder / name).symlink_to(ROOT / name)
  # This is a folder of its own: what commands write there must not end up in the repository.
  (folder / "docs").mkdir()
  (folder / "session.sh").write_text(script(runnable))
  found_in = [str(pathlib.Path(sys.executable).parent), os.environ["PATH"]]
  inherited = []
  if forks:
    programs = folder / ".programs"
    programs.mkdir()
    found_in.insert(0, str(programs))
    inherited.append(commands.write_python(programs))
  environment = {
    **os.environ,
    "PATH": os.pathsep.join(found_in),
    # There is one device, as on a laptop.
    "XLA_FLAGS": XLA_FLAGS,
  }
  result = subprocess.run(
    ["bash", "session.sh"],
    cwd=folder,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    timeout=SECONDS_MAX,
    pass_fds=inherited,
    check=False,
  )
  _, *outputs = result.stdout.split("@@ block ")
  place = runnable[len(outputs) - 1].place
  assert result.returncode == 0, f"{place}: exit code {result.returncode}\n{outputs[-1][-4000:]}"
  return outputs


def assert_prints(block, output):
  """Checks that the lines of a `text output` block come in their order; `...` stands for others."""
  lines = iter([" ".join(line.split()) for line in output.splitlines()])
  skips = True
  for expected in (" ".join(line.split()) for line in block.text.splitlines()):
    if expected == "...":
      skips = True
      continue
    for line in lines:
      if line == expected:
        break
      assert skips, f"{block.place}: {expected!r} expected, the command prints {line!r}"
    else:
      pytest.fail(f"{block.place}: {expected!r} is not printed:\n{output}")
    skips = False


def run_page(path, folder, kinds, set_up, **options):
  page = read_page(path)
  runnable = [block for block in page if block.kind in kinds]
  if not runnable:
    pytest.skip("nothing to run")
  set_up.get(page_name(path), lambda folder: None)(folder)
  outputs = dict(zip(runnable, run(folder, runnable, **options), strict=True))
  for before, block in itertools.pairwise(page):
    if block.kind == "text output" and before in outputs:
      assert_prints(block, outputs[before])


def test_there_is_something_to_run():
  names = {page_name(path) for path in PAGES}
  assert names.issuperset(SET_UP_SLOW)
  assert len(names) > 8
  for path in (ROOT / "docs").glob("*.md"):
    if path.name not in ("index.md", "commands.md", "results.md", "hyper_parameters.md"):
      kinds = {block.kind.partition(" ")[0] for block in read_page(path)}
      assert kinds & {"bash", "python"}, path


def test_the_readme_is_one_page():
  assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130


@pytest.mark.parametrize("path", PAGES, ids=page_name)
def test_commands_are_what_the_code_takes(path):
  page = read_page(path)
  for before, block in itertools.pairwise([None, *page]):
    check_block(block)
    if block.kind == "text output":
      assert before, block.place
      assert before.kind in IN_ALL_TESTS, f"{block.place}: no command before it is run"
  for place, words in inline_commands(page_name(path), path.read_text(encoding="utf-8")):
    check_command(place, words)


@pytest.mark.parametrize("path", PAGES, ids=page_name)
def test_commands_run(path, tmp_path):
  run_page(path, tmp_path, IN_DEFAULT_TESTS, SET_UP)


@pytest.mark.slow
@pytest.mark.parametrize("path", PAGES, ids=page_name)
def test_all_commands_run(path, tmp_path, gcs_storage):
  gcs_storage.buckets.add("bucket")
  if not any(block.kind.endswith(" slow") for block in read_page(path)):
    pytest.skip("no slow commands")
  run_page(path, tmp_path, IN_ALL_TESTS, SET_UP_SLOW, forks=False)


def test_launches_are_accepted():
  """Nothing is started, since what follows the pipe is left out."""
  found = [block for path in PAGES for block in read_page(path) if block.kind == "bash tpu"]
  commands = [words[2:] for block in found for words in shell_commands(block.text)]
  launches = [words for words in commands if words[:1] == ["train.launch"]]
  assert len(launches) > 2
  # The last one is refused after the others, so all of them have run.
  with pytest.raises(AssertionError, match=r"(?s)--topology=v4:8x4x4.*there is no such slice"):
    launch(*launches, [*launches[0], "--topology=v4:8x4x4"])


def block_of(text, kind="bash tpu"):
  return Block(page="page.md", line=1, kind=kind, text=text)


@pytest.mark.parametrize(
  ("text", "complaint"),
  [
    ("python -m train.pretrian --workdir=RUN", "no program train.pretrian"),
    ("python -m train.run.loop", "no program train.run.loop"),
    ("python -m train.pretrain --workdirs=RUN", "no flag --workdirs"),
    ("python -m train.pretrain --variant=F0", "no flag --variant"),
    ("python -m train.pretrain --config=train/configs/imagenet.py:size=F0", "no argument 'size'"),
    ("python -m train.pretrain --config=train/configs/nothing.py", "cannot be read"),
    ("python -m train.finetune --config=finetune_small:data=DATA,size=P0", "no argument 'size'"),
    ("python -m train.pretrain --config=FILE --config.data.paths=DATA", "no field --config.data.p"),
    ("python -m train.evaluate --workdir=RUN --config.seed=one", "seed='one'"),
    ("docker ps | python -m train.pretrain --work=RUN", "no flag --work"),
    ("exec python -m train.pretrain --work=RUN", "no flag --work"),
    ("python -m profiling.step --variant=F0 --pixels=large", "--pixels=large: not a number"),
    ("python train/pretrain.py", "write python -m"),
    ("nfnets pretrian --workdir=RUN", "nfnets has no command pretrian"),
    ("nfnets pretrain --work=RUN", "no flag --work"),
    ("terraform apply", "unknown program terraform"),
    ("docker ps    # what runs", "a comment would be copied"),
  ],
)
def test_what_is_not_there_is_found(text, complaint):
  with pytest.raises(DocumentationError, match=complaint):
    check_block(block_of(text))


@pytest.mark.parametrize(
  "text",
  [
    "python -m train.launch --to=xpk --nospot --name=a | bash",
    "nfnets pretrain --config=imagenet:variant=F0 --workdir=RUN && nfnets --help",
    "python -m train.pretrain --config=FILE --multi_host --compilation_cache=DIR",
    "python -m train.finetune --config=finetune_small:data=DATA,variant=P0 --workdir=RUN",
    "python -m train.evaluate --workdir=RUN --config.data.batch_size=N --coordinator=HOST:1234",
    "X=1 python -m profiling.step --variant=F3 \\\n  --batch_per_chip=16 > out.txt",
  ],
)
def test_what_is_there_is_accepted(text):
  check_block(block_of(text))


def test_targets_of_the_makefile():
  check_block(block_of("make demo", "bash make"))
  with pytest.raises(DocumentationError, match="make demos is not in the Makefile"):
    check_block(block_of("make demos", "bash make"))


@pytest.mark.parametrize(
  ("text", "complaint"),
  [
    ("```\nls\n```", "page.md:1: unknown fence ```;"),
    ("text\n\n```bash later\nls\n```", "page.md:3: unknown fence ```bash later"),
    ("```bash\nls\n", "page.md:1: fence is not closed"),
  ],
)
def test_unknown_fences_are_found(text, complaint):
  with pytest.raises(DocumentationError, match=complaint):
    blocks("page.md", text)


def test_python_goes_on_from_block_to_block(tmp_path):
  first, second = block_of("x = 1\nprint(x)", "python"), block_of("print(x + 1)", "python")
  between = block_of("echo between", "bash")
  outputs = run(tmp_path, [first, second, between])
  assert [output.split()[1:] for output in outputs[:2]] == [["1"], ["2"]]
  assert outputs[2].split()[1] == "between"


def test_a_program_that_fails_is_found_by_its_block(tmp_path):
  good, bad = block_of("x = 1", "python"), block_of("nothing", "python")
  bad = dataclasses.replace(bad, line=7)
  with pytest.raises(AssertionError, match=r"(?s)page.md:7: exit code 1.*NameError"):
    run(tmp_path, [good, bad])


def test_a_command_that_fails_is_found(tmp_path):
  good, bad = block_of("echo one", "bash"), block_of("ls nowhere\necho two", "bash")
  with pytest.raises(AssertionError, match=r"(?s)page.md:1: exit code 2.*nowhere"):
    run(tmp_path, [good, bad])


@pytest.mark.parametrize("shown", ["one", "one\n...\nfour", "two\nthree"])
def test_output_that_is_printed(shown):
  assert_prints(block_of(shown, "text output"), "one\ntwo\n three\nfour")


@pytest.mark.parametrize("shown", ["five", "one\nthree", "two\n...\none"])
def test_output_that_is_not_printed(shown):
  with pytest.raises((AssertionError, pytest.fail.Exception)):
    assert_prints(block_of(shown, "text output"), "one\ntwo\n three\nfour")


def test_flags_are_those_that_the_program_defines():
  assert flags_of("train.pretrain").keys() == {
    *("config", "help_config", "workdir", "compilation_cache", "accept_changes", "logger"),
    *("multi_host", "coordinator", "process_count", "process_index"),
  }
  assert flags_of("profiling.step")["pixels"] == "integer"

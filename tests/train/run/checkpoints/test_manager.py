import contextlib
import dataclasses
import errno
import gc
import itertools
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nfnet.errors import UserError
from nfnet.weights.checkpoint_reader import read_checkpoint
from tests.processes import wait_for
from train.config.experiment import Experiment, Model, Optimizer, Schedule
from train.config.field_names import field_values
from train.config.json_conversion import to_json
from train.run.checkpoints.manager import BEST_METRIC, Checkpoints

EXPERIMENT = Experiment(
  name="saved", optimizer=Optimizer(warmup_steps=1), schedule=Schedule(train_steps=9)
)


def state(step):
  """Returns trees like a run's: a block without parameters, mixed dtypes, named tuples of optax."""
  keys = iter(jax.random.split(jax.random.key(step), 4))
  parameters = {
    "stem": {"conv": {"kernel": jax.random.normal(next(keys), (3, 3, 3, 16))}},
    "block": {},
    "head": {"bias": jnp.full((), step, jnp.float32)},
  }
  return {
    "parameters": parameters,
    "ema": jax.tree.map(lambda leaf: leaf / 2, parameters),
    "optimizer": {
      "sgd": optax.sgd(0.1, momentum=0.9).init(parameters),
      "count": jnp.int32(step),
      "half": jax.random.normal(next(keys), (5,), jnp.bfloat16),
    },
  }


def abstract(trees):
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), trees
  )


def save(checkpoints, step, *, experiment=EXPERIMENT, top1=None, **changes):
  checkpoints.save(
    step,
    **{**state(step), **changes},
    data_state={"global_next_index": 10 * step},
    metadata={"experiment": to_json(experiment), "class_names": ["a", "b"]},
    metrics=None if top1 is None else {BEST_METRIC: top1},
  )


def assert_equal(found, expected):
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    assert one.dtype == other.dtype
    assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def assert_is_step(restored, step):
  expected = state(step)
  assert restored.step == restored.metadata["step"] == step
  assert_equal({name: getattr(restored, name) for name in expected}, expected)
  assert restored.data_state == {"global_next_index": 10 * step}


def test_restores_what_was_saved(tmp_path):
  with Checkpoints(str(tmp_path / "new" / "run"), keep=2) as checkpoints:
    assert checkpoints.latest_step() is None
    save(checkpoints, 3)
    checkpoints.wait()
    restored = checkpoints.restore(**abstract(state(0)), experiment=EXPERIMENT)
  assert_is_step(restored, 3)
  assert restored.metadata["class_names"] == ["a", "b"]


def test_another_process_would_restore_it_too(tmp_path):
  for step in (1, 2):
    with Checkpoints(str(tmp_path), keep=2) as checkpoints:
      save(checkpoints, step)
  with Checkpoints(str(tmp_path), keep=2) as checkpoints:
    assert_is_step(checkpoints.restore(**abstract(state(0))), 2)


def test_average_is_optional(tmp_path):
  with Checkpoints(str(tmp_path), keep=2) as checkpoints:
    save(checkpoints, 1, ema=None)
    checkpoints.wait()
    restored = checkpoints.restore(**{**abstract(state(0)), "ema": None})
  assert restored.ema is None
  assert not (tmp_path / "checkpoints/1/ema").exists()


def test_restores_to_the_sharding_asked_for(tmp_path):
  mesh = jax.make_mesh((len(jax.devices()),), ("data",))
  sharding = jax.NamedSharding(mesh, jax.P(None, None, None, "data"))
  with Checkpoints(str(tmp_path), keep=2) as checkpoints:
    save(checkpoints, 1)
    checkpoints.wait()
    target = abstract(state(0))
    kernel = target["parameters"]["stem"]["conv"]["kernel"]
    target["parameters"]["stem"]["conv"]["kernel"] = jax.ShapeDtypeStruct(
      kernel.shape, kernel.dtype, sharding=sharding
    )
    restored = checkpoints.restore(**target)
  assert restored.parameters["stem"]["conv"]["kernel"].sharding == sharding
  assert_is_step(restored, 1)


def test_saved_arrays_may_be_donated_while_they_are_written(tmp_path):
  increment = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
  parameters = {"w": jnp.zeros(4_000_000)}
  with Checkpoints(str(tmp_path), keep=1) as checkpoints:
    save(checkpoints, 1, parameters=parameters, ema=None)
    for _ in range(3):
      parameters = increment(parameters)
    checkpoints.wait()
  found, _ = read_checkpoint(str(tmp_path))
  assert not found["w"].any()


@pytest.mark.parametrize("reopen", [False, True])
def test_newest_and_best_are_kept(tmp_path, reopen):
  top1 = {1: 0.2, 2: 0.9, 3: None, 4: 0.9, 5: float("nan"), 6: 0.4, 7: None, 8: 0.3}
  kept = []
  checkpoints = Checkpoints(str(tmp_path), keep=2)
  for step, value in top1.items():
    save(checkpoints, step, top1=value)
    if reopen:
      checkpoints.close()
      checkpoints = Checkpoints(str(tmp_path), keep=2)
    checkpoints.wait()
    kept.append(sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()))
  # Of two that are equally good the later one is kept.
  assert kept == [[1], [1, 2], [2, 3], [3, 4], [4, 5], [4, 5, 6], [4, 6, 7], [4, 7, 8]]
  checkpoints.close()


@pytest.mark.parametrize("step", [1, 2])
def test_save_that_orbax_would_skip_is_an_error(tmp_path, step):
  with Checkpoints(str(tmp_path), keep=2) as checkpoints:
    save(checkpoints, 2)
    with pytest.raises(ValueError, match=f"step={step} must be later than the newest checkpoint 2"):
      save(checkpoints, step)


CHANGED = [
  ("optimizer.momentum", {"optimizer": Optimizer(warmup_steps=1, momentum=0.95)}),
  ("schedule.train_steps", {"schedule": Schedule(train_steps=10)}),
  ("model.variant", {"model": Model(variant="F1")}),
  ("seed", {"seed": 1}),
]


@pytest.mark.parametrize(("field", "change"), CHANGED)
def test_changed_experiment_is_refused(tmp_path, field, change):
  asked = dataclasses.replace(EXPERIMENT, **change)
  saved, new = field_values(EXPERIMENT)[field], field_values(asked)[field]
  with Checkpoints(str(tmp_path), keep=2) as checkpoints:
    save(checkpoints, 1)
    checkpoints.wait()
    message = f"{field} was {saved!r} and is now {new!r}; resume it with --config.{field}={saved},"
    # Another network has other shapes; the field must be named nevertheless.
    with pytest.raises(UserError, match=re.escape(message)):
      checkpoints.restore(parameters={}, ema=None, optimizer={}, experiment=asked)
    assert checkpoints.latest_step() == 1


def cut(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zero(path):
  path.write_bytes(bytes(path.stat().st_size))


def flip(path, bit=77):
  content = bytearray(path.read_bytes())
  content[bit // 8] ^= 1 << bit % 8
  path.write_bytes(content)


DAMAGES = [
  *((cut, "params/d/*"), (flip, "optimizer/d/*"), (zero, "params/manifest.ocdbt")),
  *((pathlib.Path.unlink, "data/metadata"), (flip, "experiment/m*"), (cut, "digests.sha256")),
]
FURTHER_DAMAGES = [
  *((flip, "params/d/*"), (cut, "optimizer/d/*")),
  *((flip, "params/manifest.ocdbt"), (pathlib.Path.unlink, "params/manifest.ocdbt")),
  *((zero, "data/metadata"), (flip, "data/metadata")),
  *itertools.product((cut, zero, pathlib.Path.unlink), ("experiment/m*",)),
  *itertools.product((zero, flip, pathlib.Path.unlink), ("digests.sha256",)),
]


def damage(folder, how, pattern):
  files = [path for path in folder.glob(pattern) if path.is_file()]
  assert files
  for path in files:
    how(path)


@pytest.mark.parametrize(
  ("how", "pattern"),
  [*DAMAGES, *(pytest.param(*damage, marks=pytest.mark.slow) for damage in FURTHER_DAMAGES)],
)
def test_damaged_newest_is_set_aside(tmp_path, how, pattern):
  with Checkpoints(str(tmp_path), keep=3) as checkpoints:
    for step in (1, 2):
      save(checkpoints, step)
  damage(tmp_path / "checkpoints/2", how, pattern)
  with Checkpoints(str(tmp_path), keep=3) as checkpoints:
    restored = checkpoints.restore(**abstract(state(0)), experiment=EXPERIMENT)
    assert_is_step(restored, 1)
    assert (tmp_path / "checkpoints_damaged/2").is_dir()
    save(checkpoints, 2)
    checkpoints.wait()
    assert_is_step(checkpoints.restore(**abstract(state(0))), 2)


def test_several_damaged_ones_are_set_aside_and_named(tmp_path):
  with Checkpoints(str(tmp_path), keep=3) as checkpoints:
    for step in (1, 2, 3):
      save(checkpoints, step)
  for step in (2, 3):
    damage(tmp_path / f"checkpoints/{step}", flip, "params/d/*")
  with Checkpoints(str(tmp_path), keep=3) as checkpoints:
    restored = checkpoints.restore(**abstract(state(0)))
    assert_is_step(restored, 1)
    assert restored.set_aside == (3, 2)
    assert checkpoints.latest_step() == 1


@pytest.mark.parametrize("count", [10, pytest.param(200, marks=pytest.mark.slow)])
def test_of_many_flipped_bits_none_is_accepted(count, tmp_path):
  with Checkpoints(str(tmp_path), keep=3) as checkpoints:
    save(checkpoints, 1, top1=0.5)
    checkpoints.wait()
    folder = tmp_path / "checkpoints/1"
    files = [path for path in folder.rglob("*") if path.is_file()]
    sizes = [path.stat().st_size for path in files]
    random = np.random.default_rng(0)
    # Bits of all files alike, and of each file at least some.
    bits = [
      (files[i], int(random.integers(8 * sizes[i])))
      for i in [
        *range(len(files)),
        *random.choice(len(files), count, p=np.divide(sizes, sum(sizes))),
      ]
      if sizes[i]
    ]
    accepted = set()
    for path, bit in bits:
      flip(path, bit)
      with contextlib.suppress(UserError):
        # What is accepted has no bit of this file.
        assert_is_step(checkpoints.restore(**abstract(state(0))), 1)
        accepted.add(path.relative_to(folder).as_posix())
      flip(path, bit)
    # When a save began and ended; of no use to anybody who restores.
    assert accepted <= {"_CHECKPOINT_METADATA", "commit_success.txt"}
    assert_is_step(checkpoints.restore(**abstract(state(0))), 1)


def test_damage_is_reported_in_one_line(tmp_path):
  code = """
    import gc, pathlib
    import jax
    from nfnet.weights.checkpoint_reader import read_checkpoint
    from nfnet.errors import UserError

    parameters = {f"w{i}": jax.numpy.full((200, 200), i) for i in range(20)}
    with Checkpoints(workdir, keep=1) as checkpoints:
      checkpoints.save(
        1, parameters=parameters, ema=None, optimizer=parameters, data_state={},
        metadata={"experiment": {}}
      )
      checkpoints.wait()
      pathlib.Path(workdir, "checkpoints/1/params/manifest.ocdbt").unlink()
      for read in (
        lambda: checkpoints.restore(parameters=parameters, ema=None, optimizer=parameters),
        lambda: read_checkpoint(workdir),
      ):
        try:
          read()
        except UserError as error:
          print(error)
        gc.collect()
  """
  pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
  with python(code, str(tmp_path), **pipes) as process:
    output, errors = process.communicate()
  assert (process.returncode, errors) == (0, "")
  lines = output.splitlines()
  assert [re.search("cannot be (read|restored)", line)[1] for line in lines] == ["restored", "read"]
  assert all("params/manifest.ocdbt is missing" in line for line in lines)


def test_nothing_moves_when_no_checkpoint_can_be_restored(tmp_path):
  with Checkpoints(str(tmp_path), keep=3) as checkpoints:
    for step in (1, 2):
      save(checkpoints, step)
    checkpoints.wait()
    wrong = abstract(state(0))
    wrong["parameters"]["head"]["bias"] = abstract(jnp.zeros(3))
    folder = str(tmp_path / "checkpoints/2")
    with pytest.raises(UserError, match=re.escape(f"checkpoint {folder} cannot be restored")):
      checkpoints.restore(**wrong)
    assert sorted(path.name for path in tmp_path.glob("*/*")) == ["1", "2"]


def test_absent_checkpoint_is_named(tmp_path):
  with (
    Checkpoints(str(tmp_path), keep=3) as checkpoints,
    pytest.raises(UserError, match=f"{re.escape(str(tmp_path))}.* holds no checkpoint"),
  ):
    checkpoints.restore(**abstract(state(0)))


def test_workdir_that_cannot_be_written_is_named(tmp_path):
  (tmp_path / "file").write_text("")
  workdir = str(tmp_path / "file" / "run")
  with pytest.raises(UserError, match=re.escape(f"workdir {workdir!r} cannot be written")):
    Checkpoints(workdir, keep=1)


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
def test_no_thread_outlives_a_save_whose_folder_cannot_be_created(tmp_path):
  before = set(threading.enumerate())
  checkpoints = Checkpoints(str(tmp_path), keep=1)
  (tmp_path / "checkpoints").rmdir()
  (tmp_path / "checkpoints").write_text("a file in the place of the folder")
  save(checkpoints, 1)
  with pytest.raises(UserError, match="could not be saved"):
    checkpoints.wait()
  with contextlib.suppress(UserError):
    checkpoints.close()
  assert not [one for one in set(threading.enumerate()) - before if not one.daemon]
  del checkpoints
  # While the warnings of this test are ignored.
  gc.collect()


SAVE_MUCH = """\
  import resource, sys
  import numpy as np
  from train.run.checkpoints.manager import Checkpoints

  workdir = sys.argv[1]

  def save(checkpoints, step, size, count=1):
    generator = np.random.default_rng(step)
    arrays = {"w" * i: generator.standard_normal(size, np.float32) for i in range(1, count + 1)}
    checkpoints.save(
      step, parameters=arrays, ema=None, optimizer=arrays, data_state={},
      metadata={"experiment": {}},
    )
"""


def python(code, *arguments, prefix=(), **options):
  return subprocess.Popen(
    [*prefix, sys.executable, "-c", textwrap.dedent(SAVE_MUCH) + textwrap.dedent(code), *arguments],
    env={**os.environ, "PYTHONPATH": ":".join(sys.path), "JAX_PLATFORMS": "cpu"},
    text=True,
    **options,
  )


@pytest.mark.parametrize(
  "reached", [pytest.param("2.*tmp*", marks=pytest.mark.slow), "2.*tmp*/**/d/*"]
)
def test_killed_while_saving_leaves_the_one_before(tmp_path, reached):
  code = """
    with Checkpoints(workdir, keep=1) as checkpoints:
      save(checkpoints, 1, 1000)
      checkpoints.wait()
      save(checkpoints, 2, 20_000_000)
  """
  folder = tmp_path / "checkpoints"
  with python(code, str(tmp_path)) as process:
    wait_for(lambda: any(folder.glob(reached)), process)
    process.send_signal(signal.SIGKILL)
  left = sorted(path.name for path in folder.iterdir())
  assert left[0] == "1"
  assert left[1].startswith("2.")
  with Checkpoints(str(tmp_path), keep=1) as checkpoints:
    assert checkpoints.latest_step() == 1
    found = abstract(jnp.zeros(1000))
    restored = checkpoints.restore(parameters={"w": found}, ema=None, optimizer={"w": found})
    expected = np.random.default_rng(1).standard_normal(1000, np.float32)
    assert np.asarray(restored.parameters["w"]).tobytes() == expected.tobytes()
    save(checkpoints, 3)
  assert [path.name for path in folder.iterdir()] == ["3"]


def test_a_folder_that_cannot_be_written_is_noticed_before_the_first_save(tmp_path, monkeypatch):
  def refuse(*unused, dir, **options):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(dir))

  monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
  with pytest.raises(UserError, match="cannot be written: Read-only file system; give another"):
    Checkpoints(str(tmp_path), keep=1)


FULL_DISK = """
  from nfnet.errors import UserError

  checkpoints = Checkpoints(workdir, keep=1)
  save(checkpoints, 1, 1000)
  checkpoints.wait()
  if "limit" in sys.argv:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
  # Writes of many arrays are under way when the first one fails.
  save(checkpoints, 2, 50_000, count=20)
  try:
    checkpoints.wait() if "wait" in sys.argv else save(checkpoints, 3, 10)
  except UserError as error:
    print(error)
  assert checkpoints.latest_step() == 1
  save(checkpoints, 4, 1000)
  checkpoints.close()
  import pathlib
  print(sorted(path.name for path in pathlib.Path(workdir, "checkpoints").glob("?")))
"""

# Whoever may not mount gets the same through a limit on the size of a file.
OWN_MOUNTS = ("unshare", "-rm", "sh", "-c")
MAY_MOUNT = (
  shutil.which("unshare")
  and not subprocess.run(
    [*OWN_MOUNTS, "mount -t tmpfs tmpfs /mnt"], check=False, capture_output=True
  ).returncode
)


@pytest.mark.parametrize("noticed", ["wait", "next save"])
@pytest.mark.parametrize(
  ("kind", "reason"),
  [
    ("limit", "File too large"),
    pytest.param(
      "mount",
      "No space left on device",
      marks=pytest.mark.skipif(not MAY_MOUNT, reason="needs the right to mount"),
    ),
  ],
)
def test_full_disk_is_explained_and_nothing_is_lost(tmp_path, kind, reason, noticed):
  prefix = ()
  if kind == "mount":
    mount = f'mount -t tmpfs -o size=1m tmpfs {tmp_path} && exec "$@"'
    prefix = (*OWN_MOUNTS, mount, "sh")
  pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
  with python(FULL_DISK, str(tmp_path), kind, noticed, prefix=prefix, **pipes) as process:
    output, errors = process.communicate()
  assert (process.returncode, errors) == (0, "")
  message, folders = output.splitlines()
  assert message == (
    f"workdir {str(tmp_path)!r}: the checkpoint could not be saved: {reason}; the newest complete "
    "one is of step 1; make room and run the same command again to resume"
  )
  assert folders == "['4']"

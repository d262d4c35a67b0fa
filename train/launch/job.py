"""Describes one run on a slice, and checks it as far as possible without the slice."""

import dataclasses
import os
import pathlib
import re
from collections.abc import Sequence

from jax.sharding import AbstractMesh

from nfnet.errors import UserError, escaped, format_count, quoted, shortened
from nfnet.system.paths import is_in_bucket, path_or_bucket
from train.config.accepted_changes import FLAG
from train.config.experiment import Experiment
from train.config.field_names import field_values, path_fields
from train.config.files import load_experiment, split_arguments
from train.launch.slices import Slice, parse_slice
from train.step.sharding.batch import check_batch_size, check_train_batch
from train.step.sharding.mesh import DATA_AXES, mesh_shape

SHARED_FOLDER = "/shared"
"""Path at which every worker mounts the same folder."""
GRACE_SECONDS = 120
"""Number of seconds between telling a worker to end and killing it."""

_REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
# Kubernetes allows 63 characters for names of pods, which are NAME-workers-0-1023-abcde.
_NAME_CHARACTERS_MAX = 40
_RESTARTS_MAX = 10**6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
  """A run on a slice: its command, image, topology and folders.

  Attributes:
    name: name of the slice, the workload and the logs.
    image: image of the container, as a registry knows it.
    slice: slice of TPUs.
    shared: share, bucket or storage that is mounted at `SHARED_FOLDER`.
    restarts_max: number of restarts after which a run that keeps failing is given up.
    spot: whether to use capacity that may be taken away.
    command: command that each worker runs.
    experiment: experiment that the command trains.
  """

  name: str
  image: str
  slice: Slice
  shared: str
  restarts_max: int
  spot: bool
  command: tuple[str, ...]
  experiment: Experiment

  def describe(self) -> str:
    """Returns one line for the person who starts the job."""
    data = self.experiment.data
    return (
      f"{escaped(self.experiment.name)}: {self.slice.topology} = {self.slice.chips} chips "
      f"({self.slice.accelerator_type}) = {format_count(self.slice.hosts, 'worker')}; "
      f"{format_count(data.batch_size, 'image')} per step = "
      f"{data.batch_size // self.slice.chips} per chip"
    )


def make_job(
  *,
  name: str | None,
  image: str | None,
  topology: str | None,
  shared: str | None,
  config: str | None,
  workdir: str | None,
  overrides: Sequence[str] = (),
  restarts_max: int = 20,
  spot: bool = False,
  accepted_changes: Sequence[str] = (),
) -> Job:
  """Makes a job from the arguments of the command line and checks it.

  Args:
    name: see `Job`.
    image: see `Job`.
    topology: topology of the slice, for example "v4:4x4x4".
    shared: see `Job`.
    config: configuration of this repository, with its arguments, as for `train.pretrain`.
    workdir: folder of the run, under `SHARED_FOLDER` or in a bucket.
    overrides: arguments `--config.FIELD=VALUE`.
    restarts_max: see `Job`.
    spot: see `Job`.
    accepted_changes: fields that may differ from those of the run in `workdir`.

  Raises:
    UserError: an argument is missing, does not fit the slice, or names a path that no worker has.
  """
  texts = {
    **{"name": name, "image": image, "topology": topology, "shared": shared},
    **{"config": config, "workdir": workdir},
  }
  for flag, text in texts.items():
    check_printable(f"--{flag}", text or "")
  for override in overrides:
    check_printable(*override.partition("=")[::2])
  if not re.fullmatch(rf"[a-z]([-a-z0-9]{{0,{_NAME_CHARACTERS_MAX - 2}}}[a-z0-9])?", name or ""):
    raise UserError(
      f"--name={name}: give lower-case letters, digits and hyphens, the first a letter, at most "
      f"{_NAME_CHARACTERS_MAX}"
    )
  if not re.fullmatch(r"[a-z0-9][A-Za-z0-9_./:@-]*", image or ""):
    raise UserError(
      f"--image={image}: name the image that was built from train/launch/Dockerfile and pushed, "
      "for example REGION-docker.pkg.dev/PROJECT/REPOSITORY/nfnets:TAG"
    )
  if topology is None:
    raise UserError("--topology=None: name the slice, for example v4:4x4x4 for 64 chips")
  if not 0 <= restarts_max <= _RESTARTS_MAX:
    raise UserError(f"--restarts_max={quoted(restarts_max)}: give 0 to {_RESTARTS_MAX}")
  if not shared:
    raise UserError(
      f"--shared={shared}: name what all workers mount at {SHARED_FOLDER}, an NFS share HOST:/PATH "
      "or a bucket gs://BUCKET (with xpk, a storage's name)"
    )
  slice_ = parse_slice(topology)
  config = _in_image(config)
  if is_in_bucket(workdir or ""):
    workdir = path_or_bucket("--workdir", workdir or "")
  if not _is_shared(workdir or ""):
    raise UserError(
      f"--workdir={workdir}: give a folder under {SHARED_FOLDER}, which all workers share, or "
      "gs://BUCKET/PATH"
    )
  experiment = load_experiment(str(_REPOSITORY / config), overrides)
  _check_paths(experiment, overrides)
  _check_sizes(experiment, slice_)
  program = "train.pretrain" if experiment.initial_weights is None else "train.finetune"
  return Job(
    name=name,
    image=image,
    slice=slice_,
    shared=shared,
    restarts_max=restarts_max,
    spot=spot,
    experiment=experiment,
    command=(
      *("python", "-m", program, f"--config={config}", f"--workdir={workdir}", "--multi_host"),
      f"--compilation_cache={SHARED_FOLDER}/compilation_cache",
      *([f"--{FLAG}={','.join(accepted_changes)}"] if accepted_changes else []),
      *overrides,
    ),
  )


def check_printable(flag: str, value: str) -> None:
  """Raises UserError if a value has a character that is not printable, such as a line end.

  Scripts, manifests and other programs read such characters in ways of their own; none is of use
  in a name or path.

  Args:
    flag: flag with its hyphens, for the message.
    value: value of the flag.
  """
  for character in value:
    if not character.isprintable():
      raise UserError(
        f"{shortened(flag)}={quoted(value)}: has the character U+{ord(character):04X}, which "
        "cannot be printed; leave it out"
      )


def check_identifier(flag: str, value: str) -> None:
  """Raises UserError if a value is not the name of a zone, project or cluster of Google Cloud.

  xpk puts these names into commands of a shell, without quotation marks.

  Args:
    flag: flag with its hyphens, for the message.
    value: value of the flag.
  """
  if not re.fullmatch(r"[a-z0-9]([-a-z0-9.:]{0,98}[a-z0-9])?", value):
    raise UserError(
      f"{flag}={quoted(value)}: give lower-case letters, digits and hyphens; a project may have "
      "dots and a colon"
    )


def _is_shared(path: str) -> bool:
  """Returns whether a path is in a bucket, or under the folder that all workers mount."""
  is_mounted = pathlib.PurePosixPath(path).is_relative_to(SHARED_FOLDER) and ".." not in path
  return is_mounted or is_in_bucket(path)


def _in_image(config: str | None) -> str:
  """Returns the configuration's name in the image, which contains this repository."""
  path, arguments = split_arguments(config or "")
  file = pathlib.Path(path).resolve()
  if not (file.is_relative_to(_REPOSITORY) and os.path.isfile(file)):
    raise UserError(
      f"--config={config}: give a file of this repository, which is what the image holds"
    )
  return f"{file.relative_to(_REPOSITORY)}{':' if arguments else ''}{arguments}"


def _check_paths(experiment: Experiment, overrides: Sequence[str]) -> None:
  """Raises UserError if the experiment names a path that workers do not have."""
  for override in overrides:
    if str(_REPOSITORY) in override:
      raise UserError(
        f"{override} is a path of this machine, not of a worker; give one under {SHARED_FOLDER}"
      )
  values = field_values(experiment)
  for field in path_fields():
    path = values[field]
    if path is None:
      continue
    # Files that a configuration finds beside itself are in the image too.
    file = (_REPOSITORY / path).resolve()
    in_image = path and os.path.exists(file) and file.is_relative_to(_REPOSITORY)
    if not _is_shared(path) and not in_image:
      raise UserError(
        f"{field}={path!r}: workers do not have it; set --config.{field} to a path under "
        f"{SHARED_FOLDER} or gs://BUCKET/PATH"
      )


def _check_sizes(experiment: Experiment, slice_: Slice) -> None:
  """Raises UserError if batches or parameters do not divide among the chips."""
  mesh = AbstractMesh(mesh_shape(slice_.chips, experiment.parallelism.parameter_shards), DATA_AXES)
  check_train_batch(experiment, mesh)
  check_batch_size("data.evaluation_batch_size", experiment.data.evaluation_batch_size, mesh)

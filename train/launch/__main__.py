r"""Checks a run on a TPU v4 slice and prints the commands that start it, without running them.

    docker build --tag=IMAGE --file=train/launch/Dockerfile . && docker push IMAGE

    python -m train.launch --to=queued_resources --name=NAME --topology=v4:4x4x4 --image=IMAGE \
        --shared=HOST:/PATH --workdir=/shared/runs/NAME \
        --config=train/configs/jft_pretrain.py:variant=F3 --config.data.path=/shared/DATA | bash
    python -m train.launch --to=jobset ... | kubectl apply --filename=-
    python -m train.launch --to=xpk --cluster=CLUSTER --shared=STORAGE ... | bash

Without the part after `|`, the command only shows what would run. All workers mount `--shared` at
/shared. A run with --config.initial_weights is fine-tuned, any other is pre-trained.
"""

import sys

from absl import flags

from nfnet.command_line import run_main
from nfnet.errors import UserError
from nfnet.system.paths import define_path
from train.config.accepted_changes import define_accept_changes
from train.config.overrides import parse_arguments
from train.launch.job import make_job
from train.launch.jobset import jobset_yaml
from train.launch.queued_resources import queued_resources_script
from train.launch.xpk import xpk_command

_WAYS = ("queued_resources", "jobset", "xpk")
_TO = flags.DEFINE_enum("to", None, _WAYS, "Service that starts the run.")
_NAME = flags.DEFINE_string("name", None, "Name of the run: of slice, workload and logs.")
_TOPOLOGY = flags.DEFINE_string("topology", None, "Topology of the slice, for example v4:4x4x4.")
_IMAGE = flags.DEFINE_string("image", None, "Image built from train/launch/Dockerfile and pushed.")
_SHARED = flags.DEFINE_string(
  "shared", None, "What workers mount at /shared: HOST:/PATH (NFS), gs://BUCKET; xpk: a storage."
)
_CONFIG = define_path(
  "config", None, "Python file of the experiment, or a name such as imagenet.", use="read"
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder under /shared for checkpoints and metrics.")
_RESTARTS_MAX = flags.DEFINE_integer(
  "restarts_max", 20, "Restarts after which a failing run is given up."
)
_SPOT = flags.DEFINE_bool("spot", False, "Use capacity that may be taken away.")
_RESERVED = flags.DEFINE_bool("reserved", False, "Use reserved capacity, for queued resources.")
_CLUSTER = flags.DEFINE_string("cluster", None, "Name of the cluster, for xpk.")
_ZONE = flags.DEFINE_string(
  "zone", None, "Zone, for queued resources and xpk; by default gcloud's."
)
_PROJECT = flags.DEFINE_string(
  "project", None, "Project, for queued resources and xpk; by default gcloud's."
)
_ACCEPT_CHANGES = define_accept_changes()


def main(overrides: list[str]) -> None:
  """Writes the script, manifest or command to stdout, and a description of the run to stderr."""
  if _TO.value is None:
    raise UserError(f"--to=None: name what starts the run: {', '.join(_WAYS)}")
  if _SPOT.value and _RESERVED.value:
    raise UserError("--spot and --reserved exclude each other: give one or none")
  job = make_job(
    name=_NAME.value,
    image=_IMAGE.value,
    topology=_TOPOLOGY.value,
    shared=_SHARED.value,
    config=_CONFIG.value,
    workdir=_WORKDIR.value,
    overrides=overrides[1:],
    restarts_max=_RESTARTS_MAX.value,
    spot=_SPOT.value,
    accepted_changes=_ACCEPT_CHANGES.value,
  )
  where = {"zone": _ZONE.value, "project": _PROJECT.value}
  if _TO.value == "queued_resources":
    text = queued_resources_script(job, reserved=_RESERVED.value, **where)
  elif _TO.value == "jobset":
    text = jobset_yaml(job)
  else:
    text = xpk_command(job, cluster=_CLUSTER.value, **where)
  print(job.describe(), file=sys.stderr)
  print(text, end="")


if __name__ == "__main__":
  run_main(main, flags_parser=parse_arguments)

"""Makes the command for xpk, which writes a JobSet by itself.

See https://github.com/AI-Hypercomputer/xpk.
"""

import re
import shlex

from nfnet.errors import UserError
from train.launch.job import GRACE_SECONDS, SHARED_FOLDER, Job, check_identifier
from train.launch.jobset import without_expansion
from train.run.exit_codes import EXIT_IN_USE, EXIT_LOST_PROCESS


def xpk_command(job: Job, *, cluster: str | None, zone: str | None, project: str | None) -> str:
  """Returns the command that creates the workload.

  xpk restarts all pods after 42 and exit codes of 127 and more, and after the codes given here. It
  has bash run the command in a pod, in whose manifest Kubernetes reads $(NAME) as a variable and $$
  as one dollar sign.

  Args:
    job: job to start; its `shared` is the name of a storage that `xpk storage attach` has
      attached to the cluster with `SHARED_FOLDER` as its mount point.
    cluster: name of the cluster that xpk has created.
    zone: zone of the cluster; None takes the zone in gcloud's configuration.
    project: Google Cloud project; None takes the project in gcloud's configuration.

  Raises:
    UserError: no cluster is named, `shared` is not the name of a storage, or `cluster`, `zone` or
      `project` is not a name.
  """
  if not cluster:
    raise UserError(f"--cluster={cluster}: name the cluster that xpk has created")
  named = [("--cluster", cluster), ("--zone", zone), ("--project", project)]
  where = [(flag, value) for flag, value in named if value]
  for flag, value in where:
    check_identifier(flag, value)
  if not re.fullmatch(r"[a-z0-9][-a-z0-9]*", job.shared):
    raise UserError(
      f"--shared={job.shared}: with xpk, give the name of a storage; xpk storage attach NAME "
      f"--mount-point={SHARED_FOLDER} ... makes one"
    )
  command = [
    *("xpk", "workload", "create", f"--workload={job.name}"),
    *(f"{flag}={value}" for flag, value in where),
    *(f"--tpu-type=v4-{job.slice.topology}", "--num-slices=1"),
    *(["--spot"] if job.spot else []),
    *(f"--docker-image={job.image}", f"--storage={job.shared}"),
    f"--max-restarts={job.restarts_max}",
    f"--restart-on-exit-codes={EXIT_IN_USE},{EXIT_LOST_PROCESS}",
    f"--termination-grace-period-seconds={GRACE_SECONDS}",
    f"--command={without_expansion(shlex.join(job.command))}",
  ]
  return shlex.join(command) + "\n"

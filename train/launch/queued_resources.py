"""Makes scripts for Cloud TPU queued resources.

See https://cloud.google.com/tpu/docs/queued-resources.
"""

import pathlib
import shlex

from train.launch.job import GRACE_SECONDS, SHARED_FOLDER, Job, check_identifier
from train.launch.mount import parse_mount
from train.run.exit_codes import FINAL_EXIT_CODES

_STARTUP = pathlib.Path(__file__).with_name("startup.sh")


def startup_script(job: Job) -> str:
  """Returns the script that each host runs when it boots.

  Args:
    job: job to start.

  Raises:
    UserError: `job.shared` is neither a bucket nor an NFS share.
  """
  parse_mount(job.shared)
  values = {
    "NAME": job.name,
    "IMAGE": job.image,
    "SHARED": job.shared,
    "SHARED_FOLDER": SHARED_FOLDER,
    "RESTARTS_MAX": job.restarts_max,
    "GRACE_SECONDS": GRACE_SECONDS,
  }
  arrays = {"FINAL_EXIT_CODES": map(str, FINAL_EXIT_CODES), "COMMAND": job.command}
  lines = [
    "#!/bin/bash",
    *(f"{name}={shlex.quote(str(value))}" for name, value in values.items()),
    *(f"{name}=({shlex.join(items)})" for name, items in arrays.items()),
  ]
  return "\n".join(lines) + "\n" + _STARTUP.read_text(encoding="utf-8")


def queued_resources_script(
  job: Job, *, zone: str | None, project: str | None, reserved: bool
) -> str:
  """Returns a script for bash that asks for the slice; each host then starts training by itself.

  Args:
    job: job to start.
    zone: zone of the slice; None takes the zone in gcloud's configuration.
    project: Google Cloud project; None takes the project in gcloud's configuration.
    reserved: whether to use capacity that the project has reserved.

  Raises:
    UserError: `job.shared` is neither a bucket nor an NFS share, or `zone` or `project` is not a
      name.
  """
  named = [(flag, value) for flag, value in (("--zone", zone), ("--project", project)) if value]
  for flag, value in named:
    check_identifier(flag, value)
  where = [f"{flag}={value}" for flag, value in named]
  create = [
    *("gcloud", "compute", "tpus", "queued-resources", "create", job.name),
    *(f"--node-id={job.name}", "--type=v4", f"--topology={job.slice.topology}"),
    "--runtime-version=tpu-ubuntu2204-base",
    # Buckets and registries are accessed as the slice's service account.
    "--scopes=cloud-platform",
    *(["--spot"] if job.spot else []),
    *(["--reserved"] if reserved else []),
    *where,
  ]
  at = shlex.join(where)
  ssh = f"gcloud compute tpus tpu-vm ssh {job.name} {at} --worker=all"
  return f"""\
#!/bin/bash
# {job.describe()}
#
# Waiting?  gcloud compute tpus queued-resources describe {job.name} {at}
# Output:   {ssh} --command='sudo journalctl --unit={job.name} --lines=20'
# Stop:     {ssh} --command='sudo systemctl stop {job.name}'
# Delete:   gcloud compute tpus queued-resources delete {job.name} {at} --force
# A spot slice that was taken away is SUSPENDED: delete it and run this again; training resumes.
set -euo pipefail
startup=$(mktemp)
trap 'rm -f "$startup"' EXIT
printf %s {shlex.quote(startup_script(job))} >"$startup"
{shlex.join(create)} --metadata-from-file=startup-script="$startup"
"""

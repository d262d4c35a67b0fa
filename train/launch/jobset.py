"""Makes a Kubernetes JobSet for GKE (https://jobset.sigs.k8s.io) from `jobset.yaml`."""

import json
import pathlib
import string
from typing import Any

import yaml

from nfnet.errors import UserError
from train.launch.job import GRACE_SECONDS, SHARED_FOLDER, Job
from train.launch.mount import parse_mount
from train.launch.slices import CHIPS_PER_HOST
from train.run.exit_codes import FINAL_EXIT_CODES

_TEMPLATE = pathlib.Path(__file__).with_suffix(".yaml")
_ACCELERATOR = "cloud.google.com/gke-tpu-accelerator"
_TOPOLOGY = "cloud.google.com/gke-tpu-topology"
_TPU = "google.com/tpu"


def jobset_yaml(job: Job, template: str | None = None) -> str:
  """Returns the manifest for `kubectl apply`.

  Args:
    job: job to start.
    template: text with the placeholders of `jobset.yaml`; None takes that file.

  Raises:
    UserError: the template has been changed so that Kubernetes or GKE would refuse it, or so that
      it would not run on all hosts of the slice.
  """
  mount = parse_mount(job.shared)
  node_selector = {_ACCELERATOR: "tpu-v4-podslice", _TOPOLOGY: job.slice.topology}
  if job.spot:
    node_selector["cloud.google.com/gke-spot"] = "true"
  if mount.bucket is None:
    volume = {"nfs": {"server": mount.host, "path": mount.path}}
  else:
    attributes = {"bucketName": mount.bucket, "mountOptions": "implicit-dirs"}
    volume = {"csi": {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": attributes}}
  values = {
    "name": job.name,
    "image": job.image,
    "command": [without_expansion(word) for word in job.command],
    "hosts": job.slice.hosts,
    "restarts_max": job.restarts_max,
    "final_exit_codes": FINAL_EXIT_CODES,
    "grace_seconds": GRACE_SECONDS,
    "node_selector": node_selector,
    "chips_per_host": CHIPS_PER_HOST,
    "pod_annotations": {} if mount.bucket is None else {"gke-gcsfuse/volumes": "true"},
    "shared_folder": SHARED_FOLDER,
    "shared_volume": {"name": "shared", **volume},
  }
  template = _TEMPLATE.read_text(encoding="utf-8") if template is None else template
  try:
    # Every JSON value is also a YAML value, so json.dumps does all the quoting; only what it
    # escapes as two surrogates, an emoji for example, would be two characters to YAML.
    text = string.Template(template).substitute(
      {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()}
    )
    document = yaml.safe_load(text)
  except (KeyError, ValueError, yaml.YAMLError) as error:
    reason = " ".join(str(error).split())
    raise UserError(f"{_TEMPLATE.name} is not a valid template of YAML: {reason}") from error
  _check(document, job)
  return text


def without_expansion(text: str) -> str:
  """Returns text that Kubernetes turns into `text` when it expands a container's arguments.

  It replaces $(NAME) by the value of a variable, and $$ by $
  (https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/pod-v1/#entrypoint).
  """
  return text.replace("$", "$$")


def _check(document: Any, job: Job) -> None:
  """Raises UserError if an API server would refuse the manifest or its pods would wait forever."""

  def at(path: str) -> Any:
    value = document
    for part in path.split("."):
      try:
        value = value[int(part) if part.isdigit() else part]
      except (KeyError, IndexError, TypeError):
        return None
    return value

  def require(path: str, expected: Any, why: str) -> None:
    if at(path) != expected:
      raise UserError(f"{_TEMPLATE.name}: {path} is {at(path)!r}, must be {expected!r}: {why}")

  require("apiVersion", "jobset.x-k8s.io/v1alpha2", "the only version of the API")
  require("kind", "JobSet", "the only kind of the API")
  require("spec.failurePolicy.rules.0.action", "FailJobSet", "a user's error is not tried again")
  require(
    "spec.failurePolicy.rules.0.onJobFailureReasons",
    ["PodFailurePolicy"],
    "the reason that podFailurePolicy gives",
  )
  jobs = "spec.replicatedJobs"
  require(f"{jobs}.1", None, "one slice is one job")
  require(f"{jobs}.0.replicas", 1, "one slice is one job")
  spec = f"{jobs}.0.template.spec"
  require(f"{spec}.completionMode", "Indexed", "GKE numbers the workers by it")
  require(f"{spec}.parallelism", job.slice.hosts, "one pod per host")
  require(f"{spec}.completions", job.slice.hosts, "one pod per host")
  require(f"{spec}.backoffLimit", 0, "processes cannot be restarted one by one")
  pod = f"{spec}.template.spec"
  require(f"{pod}.restartPolicy", "Never", "Kubernetes requires it with podFailurePolicy")
  codes = f"{spec}.podFailurePolicy.rules.0.onExitCodes"
  require(f"{codes}.containerName", at(f"{pod}.containers.0.name"), "the container that trains")
  require(f"{codes}.operator", "In", "all other codes are tried again")
  require(f"{codes}.values", list(FINAL_EXIT_CODES), "all other codes are tried again")
  require(
    f"{pod}.containers.0.args",
    [without_expansion(word) for word in job.command],
    "the command of a worker",
  )
  selector = at(f"{pod}.nodeSelector") or {}
  for label, expected in ((_ACCELERATOR, "tpu-v4-podslice"), (_TOPOLOGY, job.slice.topology)):
    if selector.get(label) != expected:
      raise UserError(f"{_TEMPLATE.name}: {pod}.nodeSelector must have {label}: {expected}")
  for kind in ("requests", "limits"):
    if (at(f"{pod}.containers.0.resources.{kind}") or {}).get(_TPU) != CHIPS_PER_HOST:
      raise UserError(f"{_TEMPLATE.name}: {kind} must have {_TPU}: {CHIPS_PER_HOST}, all of a host")
  volumes = {volume.get("name") for volume in at(f"{pod}.volumes") or []}
  mounts = at(f"{pod}.containers.0.volumeMounts") or []
  if missing := {mount.get("name") for mount in mounts} - volumes:
    raise UserError(f"{_TEMPLATE.name}: volumeMounts names {min(missing)!r}, which is not a volume")
  if SHARED_FOLDER not in {mount.get("mountPath") for mount in mounts}:
    raise UserError(f"{_TEMPLATE.name}: nothing is mounted at {SHARED_FOLDER}")

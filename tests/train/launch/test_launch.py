"""What starts training on a slice, tested as far as that goes without one."""

import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import yaml

from nfnet.errors import UserError
from profiling.compile.topology import parse_topology
from tests import commands
from tests.quick_compilation import XLA_FLAGS
from tests.repository import ROOT
from train.launch.job import make_job
from train.launch.jobset import jobset_yaml
from train.launch.mount import parse_mount
from train.launch.queued_resources import queued_resources_script, startup_script
from train.launch.slices import parse_slice
from train.launch.xpk import xpk_command
from train.run import exit_codes

FOLDER = ROOT / "train" / "launch"
TEMPLATE = (FOLDER / "jobset.yaml").read_text()
JFT = "train/configs/jft_pretrain.py:variant=F3"
ARGUMENTS = {
  "name": "f3",
  "image": "eu-docker.pkg.dev/project/images/nfnets:1",
  "topology": "v4:4x4x4",
  "shared": "10.0.0.2:/share",
  "config": JFT,
  "workdir": "/shared/runs/f3",
  "overrides": ["--config.data.path=/shared/jft"],
}
HARD_TO_QUOTE = '--config.name=it\'s $HOME, "quoted" 100%'
NFS, BUCKET, STORAGE = "10.0.0.2:/share", "gs://bucket", "filestore"


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
  monkeypatch.chdir(ROOT)


def job(**changes):
  return make_job(**{**ARGUMENTS, **changes})


def expanded_by_kubernetes(text, variables=()):
  """What a container gets: https://github.com/kubernetes/kubernetes, expansion.Expand."""

  def replace(match):
    if match[0] == "$$":
      return "$"
    return dict(variables).get(match[1], match[0])

  return re.sub(r"\$\$|\$\(([^)]*)\)", replace, text)


# Chips and hosts of https://cloud.google.com/tpu/docs/v4.
@pytest.mark.parametrize(
  ("topology", "accelerator_type", "hosts"),
  [
    ("v4:2x2x1", "v4-8", 1),
    ("v4:2x2x2", "v4-16", 2),
    ("v4:2x4x4", "v4-64", 8),
    ("v4:4x4x4", "v4-128", 16),
    ("v4:4x4x8", "v4-256", 32),
    ("v4:8x8x12", "v4-1536", 192),
    ("v4:8x8x16", "v4-2048", 256),
    ("v4:16x16x16", "v4-8192", 1024),
  ],
)
def test_slices(topology, accelerator_type, hosts):
  slice_ = parse_slice(topology)
  assert slice_.accelerator_type == accelerator_type
  assert slice_.hosts == hosts
  assert slice_.chips == parse_topology(topology).devices


@pytest.mark.parametrize(
  "topology",
  ["4x4x4", "v5p:4x4x4", "v4:4x4", "v4:2x2x3", "v4:0x4x4", "v4:8x4x4", "v4:4x4x6", "v4:16x16x20"],
)
def test_slices_that_there_are_not(topology):
  with pytest.raises(UserError, match=re.escape(f"--topology={topology}: ")):
    parse_slice(topology)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"name": None}, "--name=None: give lower-case letters"),
    ({"name": "F3"}, "--name=F3: "),
    ({"name": "f" * 41}, "at most 40"),
    ({"image": None}, "--image=None: name the image that was built from train/launch/Dockerfile"),
    ({"image": "two words"}, "--image=two words: "),
    ({"topology": None}, "--topology=None: name the slice"),
    ({"topology": "v4:3x4x4"}, "there is no such slice"),
    ({"shared": None}, "--shared=None: name what all workers mount at /shared"),
    ({"restarts_max": -1}, "--restarts_max=-1: give 0 to 1000000"),
    ({"restarts_max": 10**7}, "--restarts_max=10000000: give 0 to 1000000"),
    ({"restarts_max": 10**5000}, "--restarts_max=an integer of 16610 bits: give 0 to 1000000"),
    ({"topology": "v4:4x4x" + "4" * 5000}, "--topology=v4:4x4x4444"),
    ({"topology": "v4:4x4x\u0664"}, "--topology=v4:4x4x\u0664: write v4:AxBxC"),
    ({"config": "train/" + "x" * 5000}, "--config=train/xxx"),
    ({"overrides": ["--config.data.path=" + "x" * 5000]}, "is a path of 5,000 characters"),
    ({"config": None}, "--config=None: give a file of this repository"),
    ({"config": "/etc/hostname"}, "--config=/etc/hostname: give a file of this repository"),
    ({"workdir": None}, "--workdir=None: give a folder under /shared"),
    ({"workdir": "runs/f3"}, "--workdir=runs/f3: give a folder under /shared"),
    ({"workdir": "gs://B/f3"}, "--workdir=gs://B/f3 is not a path in a bucket"),
    ({"workdir": "s3://bucket/f3"}, "--workdir=s3://bucket/f3: give a folder under /shared"),
    ({"workdir": "/shared/../f3"}, "--workdir=/shared/../f3: give a folder under /shared"),
    ({"overrides": []}, "data.path='': workers do not have it"),
    ({"overrides": ["--config.data.path=s3://bucket/jft"]}, "is not a path of this machine"),
    ({"overrides": ["--config.data.path=/data/jft"]}, "workers do not have it"),
    ({"overrides": [f"--config.data.path={ROOT}/train"]}, "a path of this machine"),
    ({"batch": 4000}, "data.batch_size=4000 does not divide among 64 devices"),
    ({"optimizer.gradient_accumulation": 128}, "64 devices x 128 accumulated parts"),
    ({"evaluation_batch": 100}, "data.evaluation_batch_size=100 does not divide among 64"),
    ({"parallelism.parameter_shards": 3}, "parameter_shards=3 does not divide the 64 devices"),
    ({"initial_weights": "/home/me/f3"}, "initial_weights='/home/me/f3': workers do not have it"),
    ({"model.variant": "F99"}, "model.variant: "),
  ],
)
def test_what_cannot_work_is_one_line(changes, message):
  names = {"batch": "data.batch_size", "evaluation_batch": "data.evaluation_batch_size"}
  known = {*ARGUMENTS, "restarts_max"}
  fields = {name: value for name, value in changes.items() if name not in known}
  if fields:
    overrides = [f"--config.{names.get(name, name)}={value}" for name, value in fields.items()]
    changes = {"overrides": [*ARGUMENTS["overrides"], *overrides]}
  with pytest.raises(UserError, match=re.escape(message)) as error:
    job(**changes)
  assert "\n" not in str(error.value)


def test_a_run_with_initial_weights_is_fine_tuned():
  weights = "--config.initial_weights=/shared/runs/f3"
  command = job(
    config="train/configs/imagenet_finetune.py:variant=F3",
    overrides=[*ARGUMENTS["overrides"], weights],
  ).command
  assert command[:3] == ("python", "-m", "train.finetune")
  assert weights in command


def test_the_configuration_is_named_as_in_the_image(monkeypatch):
  monkeypatch.chdir(FOLDER)
  assert f"--config={JFT}" in job(config=f"../../{JFT}").command
  name = JFT.removeprefix("train/configs/").replace(".py", "")
  assert f"--config={JFT}" in job(config=name).command


def test_the_image_holds_what_a_worker_runs():
  """Every folder that the commands import, where they run, and nothing that is not there."""
  lines = (FOLDER / "Dockerfile").read_text().splitlines()
  copied = [line.split()[1] for line in lines if line.startswith("COPY ")]
  assert all((ROOT / name).exists() for name in copied)
  assert {"kernels", "nfnet", "train", "requirements.lock"} <= set(copied)
  assert 'ENTRYPOINT ["tini", "--"]' in lines


def test_the_image_has_the_program_of_the_package(tmp_path):
  """The command that makes it in the image makes it here."""
  text = (FOLDER / "Dockerfile").read_text().replace("\\\n", " ")
  (line,) = re.findall("^RUN (printf .*)", text, re.MULTILINE)
  environment = {
    **os.environ,
    "PATH": f"{tmp_path}{os.pathsep}{pathlib.Path(sys.executable).parent}{os.pathsep}{os.defpath}",
    "PYTHONPATH": str(ROOT),
  }
  script = line.replace("/usr/local/bin", str(tmp_path)) + "; nfnets pretrian"
  result = subprocess.run(["sh", "-c", script], env=environment, capture_output=True, text=True)
  assert "there is no command 'pretrian'; nearest: pretrain" in result.stderr


@pytest.mark.slow
def test_a_worker_runs_what_there_is(tmp_path):
  """The command itself, on this machine: /shared is a folder here, and there is one process."""
  ours = job(
    topology="v4:2x2x1",
    config="train/configs/demo_pretrain.py",
    overrides=[
      "--config.data.batch_size=16",
      "--config.schedule.train_steps=1",
      "--config.optimizer.warmup_steps=0",
      "--config.data.evaluation_batch_size=2000",
    ],
  )
  assert ours.command[0] == "python"
  assert "--multi_host" in ours.command
  command = [word.replace("/shared", str(tmp_path)) for word in ours.command[1:]]
  command.remove("--multi_host")
  result = subprocess.run(
    [sys.executable, *command],
    env={**os.environ, "XLA_FLAGS": XLA_FLAGS},
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert result.returncode == 0, result.stderr
  assert (tmp_path / "runs" / "f3" / "checkpoints" / "1").is_dir()
  assert any((tmp_path / "compilation_cache").iterdir())


# JobSet


@pytest.mark.parametrize(
  ("topology", "chips"), [("v4:2x2x1", 4), ("v4:4x4x4", 64), ("v4:8x8x16", 1024)]
)
@pytest.mark.parametrize("shared", [NFS, BUCKET])
@pytest.mark.parametrize("spot", [False, True])
def test_the_manifest(topology, chips, shared, spot):
  config = f"{JFT},chips={chips}"
  ours = job(config=config, topology=topology, shared=shared, spot=spot, restarts_max=7)
  document = yaml.safe_load(jobset_yaml(ours))
  assert document["metadata"]["name"] == "f3"
  assert document["spec"]["failurePolicy"]["maxRestarts"] == 7
  (workers,) = document["spec"]["replicatedJobs"]
  spec = workers["template"]["spec"]
  assert spec["parallelism"] == spec["completions"] == ours.slice.chips // 4
  (rule,) = spec["podFailurePolicy"]["rules"]
  assert rule["onExitCodes"] == {"containerName": "train", "operator": "In", "values": [1, 2]}
  pod = spec["template"]["spec"]
  assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == topology.removeprefix("v4:")
  assert ("cloud.google.com/gke-spot" in pod["nodeSelector"]) == spot
  (container,) = pod["containers"]
  assert container["image"] == ARGUMENTS["image"]
  assert container["args"] == list(ours.command)
  assert "command" not in container
  mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
  assert mounted == {"shared": "/shared"}
  volumes = {volume.pop("name"): volume for volume in pod["volumes"]}
  annotations = spec["template"]["metadata"]["annotations"]
  if shared == NFS:
    assert volumes["shared"] == {"nfs": {"server": "10.0.0.2", "path": "/share"}}
    assert annotations == {}
  else:
    assert volumes["shared"]["csi"]["volumeAttributes"]["bucketName"] == "bucket"
    assert annotations == {"gke-gcsfuse/volumes": "true"}
  # The longest pod name that Kubernetes would have to take.
  assert len(f"{'f' * 40}-{workers['name']}-0-1023-abcde") <= 63


@pytest.mark.parametrize(
  ("old", "new", "message"),
  [
    ("jobset.x-k8s.io/v1alpha2", "jobset.x-k8s.io/v1", "apiVersion is"),
    ("kind: JobSet", "kind: Job", "kind is 'Job', must be 'JobSet'"),
    ("action: FailJobSet", "action: RestartJobSet", "a user's error is not tried again"),
    ("[PodFailurePolicy]", "[BackoffLimitExceeded]", "the reason that podFailurePolicy gives"),
    ("replicas: 1", "replicas: 2", "one slice is one job"),
    ("Indexed", "NonIndexed", "GKE numbers the workers by it"),
    ("parallelism: $hosts", "parallelism: 4", "parallelism is 4, must be 16: one pod per host"),
    ("completions: $hosts", "completions: 4", "completions is 4, must be 16: one pod per host"),
    ("backoffLimit: 0", "backoffLimit: 3", "processes cannot be restarted one by one"),
    ("restartPolicy: Never", "restartPolicy: OnFailure", "requires it with podFailurePolicy"),
    ("containerName: train", "containerName: main", "the container that trains"),
    ("operator: In", "operator: NotIn", "all other codes are tried again"),
    ("values: $final_exit_codes", "values: [75]", "all other codes are tried again"),
    ("nodeSelector: $node_selector", "nodeSelector: {}", "nodeSelector must have cloud.google"),
    ("google.com/tpu: $chips_per_host", "google.com/tpu: 8", "must have google.com/tpu: 4"),
    ("- name: shared\n", "- name: other\n", "names 'other', which is not a volume"),
    ("mountPath: $shared_folder", "mountPath: /mnt", "nothing is mounted at /shared"),
    ("spec:", "spec", "is not a valid template of YAML"),
    ("$hosts", "$workers", "is not a valid template of YAML: 'workers'"),
  ],
)
def test_a_template_that_would_not_run_is_one_line(old, new, message):
  assert old in TEMPLATE
  with pytest.raises(UserError, match=re.escape(message)) as error:
    jobset_yaml(job(), TEMPLATE.replace(old, new))
  assert "\n" not in str(error.value)


def test_workdir_and_data_may_be_in_a_bucket():
  ours = job(workdir="gs://bucket/f3/", overrides=["--config.data.path=gs://bucket/jft"])
  assert "--workdir=gs://bucket/f3" in ours.command
  assert ours.experiment.data.path == "gs://bucket/jft"


@pytest.mark.parametrize("shared", ["/mnt/data", "gs://bucket/folder", "host:share", "filestore"])
def test_what_cannot_be_mounted_is_one_line(shared):
  for render in (jobset_yaml, startup_script):
    with pytest.raises(UserError, match=re.escape(f"--shared={shared}: write gs://BUCKET")):
      render(job(shared=shared))


def test_mounts():
  assert parse_mount("gs://a-bucket/") == ("a-bucket", None, None)
  assert parse_mount("filestore.local:/vol/1") == (None, "filestore.local", "/vol/1")


# Queued resources


def stand_ins(folder, **scripts):
  """Programs that write down what they were called with, and then do what they are told."""
  folder.mkdir()
  for name, script in scripts.items():
    path = folder / name
    path.write_text(
      "#!/bin/bash\n"
      f'"{sys.executable}" -c "import json, sys; print(json.dumps(sys.argv[1:]))" "{name}" "$@" '
      f'>>"{folder}/calls"\n{script}\n'
    )
    path.chmod(0o755)
  return {"PATH": f"{folder}:{os.environ['PATH']}"}


def calls(folder):
  return [json.loads(line) for line in (folder / "calls").read_text().splitlines()]


def bash(script, environment, *options):
  return subprocess.run(
    ["bash", *options],
    input=script,
    env={**os.environ, **environment},
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.fixture
def host(tmp_path):
  """A host as it boots: nothing is mounted, and systemd runs what it is given."""
  stubs = dict.fromkeys(("mkdir", "gcsfuse", "mount", "mount.nfs", "gcloud", "docker"), "")
  run = """
    while [[ $1 == --* ]]; do shift; done
    for word in "$@"; do
      word=${word//\\$\\$/DOLLAR}
      word=${word//\\$HOME/expanded}
      words+=("${word//DOLLAR/\\$}")
    done
    exec "${words[@]}"
  """
  environment = stand_ins(
    tmp_path / "programs", **stubs, mountpoint="exit 1", **{"systemd-run": run}
  )
  return tmp_path / "programs", environment


@pytest.mark.parametrize("shared", [NFS, BUCKET])
def test_a_host_mounts_what_is_shared_and_runs_the_command(host, shared):
  programs, environment = host
  ours = job(shared=shared, overrides=[*ARGUMENTS["overrides"], HARD_TO_QUOTE])
  result = bash(startup_script(ours), environment)
  assert result.returncode == 0, result.stderr
  done = calls(programs)
  names = [call[0] for call in done]
  (mounted,) = (call for call in done if call[0] in ("gcsfuse", "mount"))
  if shared == NFS:
    assert mounted == ["mount", "--types", "nfs", NFS, "/shared"]
  else:
    assert mounted == ["gcsfuse", "--implicit-dirs", "bucket", "/shared"]
  login = ["gcloud", "auth", "configure-docker", "--quiet", "eu-docker.pkg.dev"]
  assert login in done
  assert names.index(mounted[0]) < names.index("systemd-run")
  systemd = done[names.index("systemd-run")]
  for expected in (
    "--unit=f3",
    "--property=Restart=on-failure",
    "--property=RestartPreventExitStatus=1 2",
    "--property=StartLimitBurst=21",
    f"--property=ExecStartPre=-{programs}/docker rm --force f3",
  ):
    assert expected in systemd
  docker = done[-1]
  image = docker.index(ARGUMENTS["image"])
  assert docker[:2] == ["docker", "run"]
  assert {"--privileged", "--net=host", "--volume=/shared:/shared"} <= set(docker[:image])
  assert docker[image + 1 :] == list(ours.command)


def test_a_host_that_has_mounted_does_not_again(host):
  programs, environment = host
  (programs / "mountpoint").write_text("#!/bin/bash\nexit 0\n")
  assert bash(startup_script(job()), environment).returncode == 0
  assert "mount" not in [call[0] for call in calls(programs)]


def test_a_host_that_cannot_mount_does_not_train(host):
  programs, environment = host
  (programs / "mount").write_text("#!/bin/bash\nexit 32\n")
  assert bash(startup_script(job()), environment).returncode == 32
  assert "systemd-run" not in [call[0] for call in calls(programs)]


@pytest.mark.parametrize("spot", [False, True])
def test_queued_resources_ask_for_the_slice(spot, tmp_path):
  ours = job(spot=spot)
  text = queued_resources_script(ours, zone="us-central2-b", project="p", reserved=not spot)
  copy = f'last="${{@: -1}}"; cp "${{last#*startup-script=}}" "{tmp_path}/startup"'
  environment = stand_ins(tmp_path / "programs", gcloud=copy)
  result = bash(text, environment)
  assert result.returncode == 0, result.stderr
  (call,) = calls(tmp_path / "programs")
  *arguments, metadata = call
  assert arguments == [
    *("gcloud", "compute", "tpus", "queued-resources", "create", "f3", "--node-id=f3"),
    *("--type=v4", "--topology=4x4x4", "--runtime-version=tpu-ubuntu2204-base"),
    "--scopes=cloud-platform",
    "--spot" if spot else "--reserved",
    *("--zone=us-central2-b", "--project=p"),
  ]
  assert (tmp_path / "startup").read_text() == startup_script(ours)
  # The script is gone afterwards.
  assert not pathlib.Path(metadata.partition("startup-script=")[2]).exists()


def test_the_scripts_are_bash():
  for script in (
    startup_script(job()),
    queued_resources_script(job(), zone=None, project=None, reserved=False),
  ):
    result = bash(script, {}, "-n")
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_has_nothing_to_say(tmp_path):
  path = tmp_path / "script.sh"
  path.write_text(queued_resources_script(job(), zone=None, project=None, reserved=False))
  startup = tmp_path / "startup.sh"
  startup.write_text(startup_script(job()))
  result = subprocess.run(["shellcheck", path, startup], capture_output=True, text=True)
  assert result.returncode == 0, result.stdout


@pytest.mark.skipif(shutil.which("gcloud") is None, reason="gcloud is not installed")
def test_gcloud_knows_the_arguments(tmp_path):
  """It reads all of them before it finds that nobody is logged in."""
  for changes in ({"spot": True}, {"reserved": True}):
    text = queued_resources_script(
      job(spot=changes.get("spot", False)),
      zone="us-central2-b",
      project="p",
      reserved=changes.get("reserved", False),
    )
    settings = {"CLOUDSDK_CONFIG": str(tmp_path), "CLOUDSDK_CORE_DISABLE_PROMPTS": "1"}
    result = bash(text, {**settings, "CLOUDSDK_CORE_CHECK_GCE_METADATA": "false"})
    assert "You do not currently have an active account selected" in result.stderr, result.stderr


# xpk


def test_xpk_gets_the_same_command():
  ours = job(
    shared=STORAGE,
    spot=True,
    restarts_max=7,
    overrides=[*ARGUMENTS["overrides"], HARD_TO_QUOTE],
  )
  words = shlex.split(xpk_command(ours, cluster="c", zone="us-central2-b", project="p"))
  assert words[:3] == ["xpk", "workload", "create"]
  flags = dict(word.removeprefix("--").partition("=")[::2] for word in words[3:])
  assert shlex.split(expanded_by_kubernetes(flags.pop("command"))) == list(ours.command)
  assert flags == {
    "workload": "f3",
    "cluster": "c",
    "zone": "us-central2-b",
    "project": "p",
    "tpu-type": "v4-4x4x4",
    "num-slices": "1",
    "spot": "",
    "docker-image": ARGUMENTS["image"],
    "storage": STORAGE,
    "max-restarts": "7",
    "restart-on-exit-codes": "16,75",
    "termination-grace-period-seconds": "120",
  }


def test_xpk_starts_again_after_every_code_that_is_not_final():
  words = shlex.split(xpk_command(job(shared=STORAGE), cluster="c", zone=None, project=None))
  (codes,) = (word.partition("=")[2] for word in words if "restart-on-exit-codes" in word)
  again = {42, *range(127, 256), *map(int, codes.split(","))}
  ours = {value for name, value in vars(exit_codes).items() if name.startswith("EXIT_")}
  assert ours & again == ours - {exit_codes.EXIT_DONE, *exit_codes.FINAL_EXIT_CODES}


@pytest.mark.parametrize(
  ("shared", "cluster", "message"),
  [(STORAGE, None, "--cluster=None: "), (NFS, "c", f"--shared={NFS}: with xpk, give the name")],
)
def test_what_xpk_cannot_do_is_one_line(shared, cluster, message):
  with pytest.raises(UserError, match=re.escape(message)):
    xpk_command(job(shared=shared), cluster=cluster, zone=None, project=None)


# The command


def launch(*arguments):
  return commands.run("train.launch", *arguments)


def arguments_of(to, **changes):
  values = {**ARGUMENTS, "to": to, **changes}
  overrides = values.pop("overrides")
  return [*(f"--{name}={value}" for name, value in values.items()), *overrides]


def test_the_command_writes_what_would_run_and_says_what_it_is():
  for to, changes, expected in (
    ("jobset", {}, jobset_yaml(job())),
    (
      "queued_resources",
      {},
      queued_resources_script(job(), zone=None, project=None, reserved=False),
    ),
    (
      "xpk",
      {"shared": STORAGE, "cluster": "c"},
      xpk_command(job(shared=STORAGE), cluster="c", zone=None, project=None),
    ),
  ):
    result = launch(*arguments_of(to, **changes))
    assert result.returncode == 0, result.stderr
    assert result.stdout == expected
    (line,) = result.stderr.splitlines()
    assert line.endswith(
      "4x4x4 = 64 chips (v4-128) = 16 workers; 4,096 images per step = 64 per chip"
    )


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ([], "--to=None: name what starts the run: queued_resources, jobset, xpk"),
    (["--to=slurm"], "flag --to=slurm"),
    (arguments_of("jobset", topology="v4:3x3x3"), "--topology=v4:3x3x3: there is no such slice"),
    ([*arguments_of("queued_resources"), "--spot", "--reserved"], "exclude each other"),
  ],
)
def test_the_command_writes_nothing_where_it_cannot(arguments, message):
  result = launch(*arguments)
  assert result.returncode == 2
  assert result.stdout == ""
  (line,) = result.stderr.splitlines()
  assert line.startswith("error: ")
  assert message in line

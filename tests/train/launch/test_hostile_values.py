"""Whatever a flag holds, what is started gets exactly that, and nothing else runs."""

import pathlib
import re
import subprocess
import tempfile

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nfnet.errors import UserError
from tests.repository import ROOT
from tests.train.launch.test_launch import ARGUMENTS, expanded_by_kubernetes
from train.launch.job import make_job
from train.launch.jobset import jobset_yaml
from train.launch.queued_resources import queued_resources_script, startup_script
from train.launch.xpk import xpk_command

# Each would leave a file if it ran: none of these commands is a program that PATH could hide.
RUNS = (
  *("$(>ran)", "`>ran`", ";>ran;", "\n>ran\n", "\r\n>ran\n", "'>ran'", '">ran"', "'\n>ran\n'"),
  *("'$(>ran)'", '"$(>ran)"', "'\"'\"'$(>ran)", "\\';>ran;\\'", "|>ran", "&>ran&", "&&>ran"),
  *("\nEND_OF_STARTUP_SCRIPT\n>ran\n", "\nEOF\n>ran\n", "#\n>ran", "\\\n>ran\n", "$'\\n>ran'"),
  *("\x00>ran", "\x85>ran", "\u2028>ran", "\v>ran", "\f>ran", "${x:=$(>ran)}", "$((a[$(>ran)]))"),
)
# Each would arrive as something else if Kubernetes, systemd, YAML or bash read it.
CHANGES = (
  *("$(HOME)", "$$(HOME)", "$$$(HOME)", "$(", "$", "$$", "$HOME", "${HOME}", "~", "*", "?", "[a]"),
  *("!", "!!", "%s", "%h", "%%", "\\", "\\\\", "\\n", "'", '"', " ", "  a", "#", " #", ": ", "- "),
  *("{}", "{{x}}", "&a", "*a", "|", ">", "@", "=", "--", "-x", ",", ";", "é", "猫", "🐈", "\ufffd"),
  *("null", "true", "1e3", "0x1", "\t", "\x1b[31m", "\x7f", "\x9b", "\u202e", "\ufeff", "\udcff"),
)
TEXTS = st.lists(
  st.one_of(
    st.sampled_from((*RUNS, *CHANGES)),
    st.text(st.characters(categories=["L", "N", "P", "S", "Z", "Cc", "Cf"]), max_size=4),
  ),
  max_size=3,
).map("".join)
FIELDS = ("name", "image", "shared", "config", "workdir", "zone", "project", "cluster", "override")
FIELDS_OF_TEXT = ("workdir", "shared", "override")
"""Those that take almost any text."""
VARIABLES = {"HOME": "expanded", "x": "expanded", ">ran": "expanded"}


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
  monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
  """Programs that write down what they were called with; PATH has no others."""
  folder = tmp_path_factory.mktemp("programs")
  stubs = ("gcloud", "xpk", "python", "mkdir", "mountpoint", "mount", "mount.nfs", "gcsfuse")
  for name in (*stubs, "docker", "systemd-run"):
    # What is after the = of the last argument is the startup script, which does not outlive gcloud.
    keep = 'last=${@: -1}; [[ $last == *startup-script=* ]] && /bin/cp "${last#*startup-script=}" .'
    (folder / name).write_text(
      "#!/bin/bash\n"
      f'printf "%s\\0" {name} "$@" $\'\\n\' >>calls\n'
      + {"gcloud": f"{keep}\nexit 0\n", "mountpoint": "exit 1\n"}.get(name, "exit 0\n")
    )
    (folder / name).chmod(0o755)
  for name in ("mktemp", "rm"):
    (folder / name).symlink_to(f"/bin/{name}")
  return folder


def run(programs, script, *options):
  """Runs a script in an empty folder; returns the calls and the contents of new files."""
  with tempfile.TemporaryDirectory() as folder:
    (pathlib.Path(folder) / "tmp").mkdir()
    result = subprocess.run(
      ["/bin/bash", *options],
      input=script.encode(),
      env={"PATH": str(programs), "TMPDIR": f"{folder}/tmp", "HOME": "expanded", "x": "expanded"},
      cwd=folder,
      capture_output=True,
      check=False,
    )
    files = {
      path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8")
      for path in pathlib.Path(folder).rglob("*")
      if path.is_file()
    }
  assert (result.returncode, result.stderr) == (0, b""), (script, result)
  calls = [call.split("\0") for call in files.pop("calls").split("\0\n\0") if call]
  return calls, files


def values_of(field, text):
  """Returns the arguments of `make_job`, and zone, project and cluster, with one value extended."""
  values = {
    **{"name": "f3", "image": ARGUMENTS["image"], "shared": "10.0.0.2:/share"},
    **{"config": ARGUMENTS["config"], "workdir": "/shared/runs/", "zone": "us-central2-b"},
    **{"project": "project-1", "cluster": "cluster-1", "override": "--config.name="},
  }
  values[field] += text
  return values


def expanded_by_systemd(words):
  """What systemd runs: it replaces $NAME and ${NAME}, and $$ by $ (systemd.service)."""
  replace = lambda match: "$" if match[0] == "$$" else "expanded"  # noqa: E731
  return [re.sub(r"\$\$|\$\{\w+\}|\$\w+", replace, word) for word in words]


def check(programs, field, text, to):
  """Returns whether a value is taken; asserts that it then arrives and that nothing else runs."""
  values = values_of(field, text)
  try:
    job = make_job(
      **{name: values[name] for name in ("name", "image", "config", "workdir")},
      shared="filestore" if to == "xpk" and field != "shared" else values["shared"],
      topology="v4:4x4x4",
      overrides=["--config.data.path=/shared/jft", values["override"]],
    )
    where = {"zone": values["zone"], "project": values["project"]}
    if to == "jobset":
      manifest = yaml.safe_load(jobset_yaml(job))
    elif to == "queued_resources":
      script = queued_resources_script(job, reserved=False, **where)
    else:
      script = xpk_command(job, cluster=values["cluster"], **where)
  except UserError as error:
    refusal = error
  else:
    refusal = None
  if refusal is not None:
    assert str(refusal).isprintable()
    return False
  assert f"--workdir={values['workdir']}" in job.command
  assert values["override"] in job.command
  assert job.describe().isprintable()
  if to == "jobset":
    check_manifest(manifest, job)
  elif to == "queued_resources":
    check_script(programs, script, job, values)
  else:
    check_xpk(programs, script, job, values)
  return True


def check_manifest(manifest, job):
  assert manifest["metadata"]["name"] == job.name
  (workers,) = manifest["spec"]["replicatedJobs"]
  pod = workers["template"]["spec"]["template"]["spec"]
  (container,) = pod["containers"]
  arrived = [expanded_by_kubernetes(word, VARIABLES) for word in container["args"]]
  assert arrived == list(job.command)
  assert container["image"] == job.image
  nfs = pod["volumes"][0]["nfs"]
  assert f"{nfs['server']}:{nfs['path']}" == job.shared


def check_script(programs, script, job, values):
  (call,), files = run(programs, script)
  assert call[:6] == ["gcloud", "compute", "tpus", "queued-resources", "create", job.name]
  assert {f"--zone={values['zone']}", f"--project={values['project']}"} <= set(call)
  ((name, startup),) = files.items()
  assert call[-1].endswith(f"/tmp/{name}")
  assert startup == startup_script(job)
  calls, files = run(programs, startup)
  assert files == {}
  names = ["mkdir", "mountpoint", "mount", "gcloud", "systemd-run"]
  assert [call[0] for call in calls] == names
  assert calls[2] == ["mount", "--types", "nfs", job.shared, "/shared"]
  words = expanded_by_systemd(calls[-1])
  place = words.index("docker")
  assert all(word.startswith("--") for word in words[1:place])
  assert words[words.index(job.image) + 1 :] == list(job.command)


def check_xpk(programs, script, job, values):
  (call,), files = run(programs, script)
  assert files == {}
  assert call[:3] == ["xpk", "workload", "create"]
  flags = dict(word.removeprefix("--").partition("=")[::2] for word in call[3:])
  for name in ("zone", "project", "cluster"):
    assert flags[name] == values[name]
  assert flags["docker-image"] == job.image
  assert flags["storage"] == job.shared
  # xpk writes the command into a script for bash, in a field that Kubernetes expands.
  command = expanded_by_kubernetes(flags["command"], VARIABLES)
  (call,), files = run(programs, f"({command}) & PID=$!;\nwait $PID;\n")
  assert files == {}
  assert call == list(job.command)


@pytest.mark.parametrize("to", ["queued_resources", "jobset", "xpk"])
@settings(max_examples=40, deadline=None)
@given(field=st.sampled_from((*FIELDS, *FIELDS_OF_TEXT)), text=TEXTS)
@example(field="override", text="".join(CHANGES[:-10]))
@example(field="workdir", text="".join(text for text in RUNS if text.isprintable()))
@example(field="zone", text="\n>ran\n")
@example(field="project", text=" $(>ran)")
@example(field="shared", text="\nEND_OF_STARTUP_SCRIPT\n>ran\n")
@example(field="shared", text="/$(>ran)'\"")
@example(field="name", text="\n>ran\n")
@example(field="override", text="")
def test_values_arrive_and_nothing_else_runs(programs, to, field, text):
  taken = check(programs, field, text, to)
  assert taken or not text.isprintable() or field not in ("workdir", "override") or ".." in text


@pytest.mark.slow
@pytest.mark.parametrize("to", ["queued_resources", "jobset", "xpk"])
@pytest.mark.parametrize("field", FIELDS)
def test_every_hostile_text_in_every_field(programs, to, field):
  for text in (*RUNS, *CHANGES):
    taken = check(programs, field, text, to)
    if field in ("workdir", "override"):
      assert taken == text.isprintable()


@pytest.mark.parametrize(
  "character", ["\n", "\r", "\x00", "\x1b", "\x7f", "\x85", "\u2028", "\udcff"]
)
@pytest.mark.parametrize("field", FIELDS)
def test_what_cannot_be_printed_is_refused_by_name(programs, field, character):
  values = values_of(field, f"a{character}b")
  # xpk takes all fields, and the name of a storage as what is shared.
  values["shared"] = f"filestore{character}" if field == "shared" else "filestore"
  with pytest.raises(UserError) as error:
    xpk_command(
      make_job(
        **{name: values[name] for name in ("name", "image", "config", "workdir", "shared")},
        topology="v4:4x4x4",
        overrides=["--config.data.path=/shared/jft", values["override"]],
      ),
      **{name: values[name] for name in ("cluster", "zone", "project")},
    )
  assert str(error.value).startswith({"override": "--config.name="}.get(field, f"--{field}="))
  assert str(error.value).isprintable()
  if field not in ("zone", "project", "cluster"):
    assert f"has the character U+{ord(character):04X}" in str(error.value)

# Runs as root on every host of a TPU slice, each time it boots: mounts the shared folder and makes
# systemd keep the container running. The lines above it set NAME, IMAGE, SHARED, SHARED_FOLDER,
# RESTARTS_MAX and GRACE_SECONDS, and the arrays FINAL_EXIT_CODES and COMMAND.
set -euo pipefail

mkdir -p "$SHARED_FOLDER"
if ! mountpoint --quiet "$SHARED_FOLDER"; then
  if [[ $SHARED == gs://* ]]; then
    bucket=${SHARED#gs://}
    gcsfuse --implicit-dirs "${bucket%/}" "$SHARED_FOLDER"
  else
    # The image of TPU hosts does not include the NFS client.
    command -v mount.nfs >/dev/null || { apt-get update && apt-get install --yes nfs-common; }
    mount --types nfs "$SHARED" "$SHARED_FOLDER"
  fi
fi

export HOME=/root
registry=${IMAGE%%/*}
if [[ $registry == *.pkg.dev || $registry == *gcr.io ]]; then
  gcloud auth configure-docker --quiet "$registry"
fi

container=(
  docker run --rm --name="$NAME" --privileged --net=host
  # Data that is in a bucket is copied once, not each time that the container starts.
  --volume=/var/cache/nfnets:/var/cache/nfnets --env=NFNETS_CACHE=/var/cache/nfnets
  --volume="$SHARED_FOLDER:$SHARED_FOLDER" "$IMAGE" "${COMMAND[@]}"
)
# systemd expands $ in arguments unless it is doubled.
systemd-run --unit="$NAME" --setenv=HOME="$HOME" --setenv=PATH="$PATH" \
  --property=Restart=on-failure --property=RestartSec=10 \
  --property=RestartPreventExitStatus="${FINAL_EXIT_CODES[*]}" \
  --property=StartLimitIntervalSec=1d --property=StartLimitBurst="$((RESTARTS_MAX + 1))" \
  --property=TimeoutStopSec="$GRACE_SECONDS" \
  --property=ExecStartPre="-$(command -v docker) rm --force $NAME" \
  "${container[@]//\$/\$\$}"

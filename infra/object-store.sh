#!/bin/sh
# An object store (SeaweedFS) on loopback, for storage.root: s3://…; it keeps its data in FOLDER.
# Usage: infra/object-store.sh FOLDER [PORT], with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY set to keys of your choice.
set -eu
folder=${1:?name a folder for the data}
port=${2:-8333}
# SeaweedFS makes these keys its one identity, and refuses all others.
: "${AWS_ACCESS_KEY_ID:?choose a key}" "${AWS_SECRET_ACCESS_KEY:?choose a secret}"
mkdir -p "$folder"
exec "$(dirname "$0")/../.venv/bin/weed" server -dir="$folder" -ip=127.0.0.1 -ip.bind=127.0.0.1 \
    -s3 -s3.port="$port" -s3.port.iceberg=0 -s3.port.lance=0 -master.telemetry=false \
    -master.electionTimeout=1s -master.volumeSizeLimitMB=1024 -volume.max=500

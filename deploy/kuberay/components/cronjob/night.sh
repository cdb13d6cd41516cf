#!/bin/sh
# Tonight's RayJob: made of the suspended one, or found if it is there, and followed to its end.
# 0: it succeeded. 1: it failed. Anything else: Kubernetes did not answer; running this again is safe.
set -eu
template=${NIGHTS_FROM:-batchdet-label}
night="$template-${NIGHT:-$(date -u +%Y%m%d)}"
poll=${POLL_SECONDS:-30}

state() {
  kubectl get rayjob "$night" -o "jsonpath={.status.jobDeploymentStatus}"
}

if ! kubectl get rayjob "$night" -o name --ignore-not-found | grep -q .; then
  nameless='"uid": null, "resourceVersion": null, "generation": null, "creationTimestamp": null, "managedFields": null'
  night_of="{\"metadata\": {\"name\": \"$night\", \"annotations\": null, $nameless}, \"spec\": {\"suspend\": false}, \"status\": null}"
  kubectl get rayjob "$template" -o json >"/dev/shm/$night.json" || exit 2
  kubectl patch --local -f "/dev/shm/$night.json" --type merge -p "$night_of" -o json | kubectl create -f - || exit 2
fi

misses=0
while true; do
  if now=$(state); then misses=0; else now=unknown misses=$((misses + 1)); fi
  [ "$misses" -lt 20 ] || exit 2
  case $now in
    Complete) echo "$night: complete"; exit 0 ;;
    Failed) kubectl get rayjob "$night" -o "jsonpath={.status.reason}: {.status.message}" || true; exit 1 ;;
  esac
  sleep "$poll"
done

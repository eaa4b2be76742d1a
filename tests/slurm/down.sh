#!/usr/bin/env bash
# Stops the daemons that up.sh started, by pid file.   usage: down.sh STATE_DIR
D=$(realpath -m "${1:?state dir}")
timeout 5 scancel -u "$(id -un)" 2>/dev/null
for n in slurmd slurmctld munged; do
  p=$(cat "$D/run/$n.pid" 2>/dev/null) || continue
  kill "$p" 2>/dev/null || continue
  for _ in $(seq 40); do kill -0 "$p" 2>/dev/null || break; sleep 0.25; done
  kill -9 "$p" 2>/dev/null
done
exit 0

#!/usr/bin/env bash
# The stories of faults, long: 200 kills, more outages, longer windows, one seed after the other.
#
#   SEEDS="1 2 3"      the seeds to run; by default three new ones. Each is printed and repeats its run.
#   SOAK_MINUTES=120   instead: new seeds until so many minutes have passed
#   SOAK_KILLS=200     kills of the operator for each seed
#
# What each story says is kept in the directory that is named at the end.
set -uo pipefail
cd "$(dirname "$0")/.."

fresh() { od -An -N4 -tu4 /dev/urandom | tr -d ' '; }
minutes=${SOAK_MINUTES:-}
seeds=${SEEDS:-}
if [ -z "$seeds" ]; then
  if [ -n "$minutes" ]; then seeds=$(fresh); else seeds="$(fresh) $(fresh) $(fresh)"; fi
fi
read -r -a queue <<<"$seeds"

export CONME_KILLS=${SOAK_KILLS:-200} CONME_OUTAGES=5 CONME_WINDOW_SECONDS=120 CONME_CRASHES=5
stories=(killed faults faults_databases faults_clock)
logs=$(mktemp -d "${TMPDIR:-/tmp}/conme-soak.XXXXXX")
begin=$SECONDS
runs=0
failed=()

for ((number = 0; number < ${#queue[@]}; number++)); do
  seed=${queue[number]}
  for story in "${stories[@]}"; do
    log=$logs/$story-$seed.log
    printf '%s  seed %s (%d of %d)  %-18s' "$(date +%T)" "$seed" $((number + 1)) ${#queue[@]} "$story"
    since=$SECONDS
    runs=$((runs + 1))
    if CONME_SEED=$seed cargo test --locked -q -p conme-stories --test "$story" -- --nocapture >"$log" 2>&1; then
      echo "ok in $((SECONDS - since)) s"
    else
      echo "FAILED after $((SECONDS - since)) s: $log"
      failed+=("CONME_SEED=$seed make test-story STORY=$story")
    fi
  done
  if [ -n "$minutes" ] && [ $((SECONDS - begin)) -lt $((minutes * 60)) ]; then
    queue+=("$(fresh)")
  fi
done

echo
echo "$runs runs with ${#queue[@]} seeds (${queue[*]}) in $(((SECONDS - begin) / 60)) minutes: ${#failed[@]} failed; logs in $logs"
grep -hE 'edits, .* changes by hand|died before message|requests passed' "$logs"/*.log | sed 's/^/  /'
for again in "${failed[@]}"; do
  echo "to repeat: CONME_KILLS=$CONME_KILLS CONME_OUTAGES=$CONME_OUTAGES CONME_WINDOW_SECONDS=$CONME_WINDOW_SECONDS CONME_CRASHES=$CONME_CRASHES $again"
done
[ ${#failed[@]} -eq 0 ]

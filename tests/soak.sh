#!/usr/bin/env bash
# The stories of faults and isolation, long: 200 kills, more outages, longer windows, 20,000 spoilt manifests, one seed
# after the other.
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
# Faults break a data centre of their own; the others ask one that stands, which is new for each run.
faults=(killed faults faults_databases faults_clock)
isolation=(isolation tenants mutated)
export CONME_SOAK=1
testbed=${CARGO_TARGET_DIR:-target}/debug/conme-testbed

story() {
  case " ${faults[*]} " in
    *" $1 "*) cargo test --locked -q -p conme-stories --test "$1" -- --nocapture ;;
    *)
      # shellcheck disable=SC2016 # expanded by the inner shell
      "$testbed" run --nodes 8 --postgres 1 --mariadb 1 -- sh -c \
        '"$0" install && cargo test --locked -q -p conme-stories --test "$1" -- --nocapture' "$testbed" "$1"
      ;;
  esac
}

logs=$(mktemp -d "${TMPDIR:-/tmp}/conme-soak.XXXXXX")
begin=$SECONDS
runs=0
failed=()

for ((number = 0; number < ${#queue[@]}; number++)); do
  seed=${queue[number]}
  for name in "${faults[@]}" "${isolation[@]}"; do
    log=$logs/$name-$seed.log
    printf '%s  seed %s (%d of %d)  %-18s' "$(date +%T)" "$seed" $((number + 1)) ${#queue[@]} "$name"
    since=$SECONDS
    runs=$((runs + 1))
    if CONME_SEED=$seed story "$name" >"$log" 2>&1; then
      echo "ok in $((SECONDS - since)) s"
    else
      echo "FAILED after $((SECONDS - since)) s: $log"
      failed+=("CONME_SEED=$seed make test-story STORY=$name")
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
  echo "to repeat: CONME_SOAK=1 CONME_KILLS=$CONME_KILLS CONME_OUTAGES=$CONME_OUTAGES CONME_WINDOW_SECONDS=$CONME_WINDOW_SECONDS CONME_CRASHES=$CONME_CRASHES $again"
done
[ ${#failed[@]} -eq 0 ]

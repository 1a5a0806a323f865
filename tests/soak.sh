#!/usr/bin/env bash
# The stories of faults and isolation, long: 200 kills, more outages, longer windows, 20,000 spoilt manifests, one seed
# after the other; and the mover likewise.
#
#   SEEDS="1 2 3"      the seeds to run; by default three new ones. Each is printed and repeats its run.
#   SOAK_MINUTES=120   instead: new seeds until so many minutes have passed
#   SOAK_KILLS=200     kills of the operator, and of each end of the mover, for each seed
#   SOAK_MOVES=50000   simulated transfers of the mover for each seed
#   SOAK_MIB=4096      the image that the mover takes from one network namespace to another, once (as root)
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

# run NAME SEED TO-REPEAT COMMAND...: its words go to a file, its result is told.
run() {
  local name=$1 seed=$2 again=$3 log=$logs/$1-$2.log since=$SECONDS
  shift 3
  printf '%s  seed %-10s %-20s' "$(date +%T)" "$seed" "$name"
  runs=$((runs + 1))
  if "$@" >"$log" 2>&1; then
    echo "ok in $((SECONDS - since)) s"
  else
    echo "FAILED after $((SECONDS - since)) s: $log"
    failed+=("$again")
  fi
}

mover() { env "${@:2}" cargo test --locked -q -p conme-mover --test "$1" -- --nocapture; }

mib=${SOAK_MIB:-4096}
moves="CONME_MOVER_MIB=$mib cargo test -p conme-mover --test namespaces"
run mover-namespaces once "$moves" mover namespaces "CONME_MOVER_MIB=$mib"

for ((number = 0; number < ${#queue[@]}; number++)); do
  seed=${queue[number]}
  for name in "${faults[@]}" "${isolation[@]}"; do
    again="CONME_SOAK=1 CONME_KILLS=$CONME_KILLS CONME_OUTAGES=$CONME_OUTAGES CONME_WINDOW_SECONDS=$CONME_WINDOW_SECONDS"
    again="$again CONME_CRASHES=$CONME_CRASHES CONME_SEED=$seed make test-story STORY=$name"
    CONME_SEED=$seed run "$name" "$seed" "$again" story "$name"
  done
  kills=(CONME_SEED="$seed" CONME_MOVER_KILLS="$CONME_KILLS")
  run mover-kills "$seed" "${kills[*]} cargo test -p conme-mover --test kills" mover kills "${kills[@]}"
  # A seed that fails is named in its log, and can be played alone.
  plays=(CONME_SEED="$seed" CONME_SEEDS="${SOAK_MOVES:-50000}")
  run mover-simulation "$seed" "${plays[*]} cargo test -p conme-mover --test simulation" mover simulation "${plays[@]}"
  run mover-free-space "$seed" "CONME_FORMS=200 cargo test -p conme-mover --test free" mover free CONME_FORMS=200
  if [ -n "$minutes" ] && [ $((SECONDS - begin)) -lt $((minutes * 60)) ]; then
    queue+=("$(fresh)")
  fi
done

echo
echo "$runs runs with ${#queue[@]} seeds (${queue[*]}) in $(((SECONDS - begin) / 60)) minutes: ${#failed[@]} failed; logs in $logs"
grep -hE 'edits, .* changes by hand|died before message|requests passed' "$logs"/*.log | sed 's/^/  /'
for again in "${failed[@]}"; do
  echo "to repeat: $again"
done
[ ${#failed[@]} -eq 0 ]

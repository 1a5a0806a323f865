#!/usr/bin/env bash
# Runs the stories in lanes, because most of their time is waiting for quiet: the long ones, most of them with a data
# centre of their own, the faults, and the others. What the first lanes say is told when the last has ended.
set -uo pipefail
cd "$(dirname "$0")/.."

long=(quiet killed databases policies rotation)
faults=(faults)
faults_below=(faults_databases faults_clock)
others=(onboarding bad_input examples isolation tenants drift rights operations mariadb dedicated upgrade lifecycle plugin mutated)

story() { cargo test --locked -q -p conme-stories $(printf -- '--test %s ' "$@") --no-fail-fast; }

logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
echo "in the background: ${long[*]} ${faults[*]} ${faults_below[*]}"
story "${long[@]}" >"$logs/long" 2>&1 &
lanes=($!)
story "${faults[@]}" >"$logs/faults" 2>&1 &
lanes+=($!)
story "${faults_below[@]}" >"$logs/faults_below" 2>&1 &
lanes+=($!)
story "${others[@]}"
result=$?
echo "waiting for: ${long[*]} ${faults[*]} ${faults_below[*]}"
for lane in "${lanes[@]}"; do
  wait "$lane" || result=1
done
cat "$logs/long" "$logs/faults" "$logs/faults_below"
exit "$result"

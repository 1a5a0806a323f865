#!/usr/bin/env bash
# Runs the stories in two lanes, because most of their time is waiting for quiet: the long ones, most of them with a data
# centre of their own, and the others. What the first lane says is told when the second has ended.
set -uo pipefail
cd "$(dirname "$0")/.."

long=(quiet killed databases policies rotation)
others=(onboarding bad_input examples isolation tenants drift rights operations mariadb dedicated upgrade lifecycle plugin mutated)

story() { cargo test --locked -q -p conme-stories $(printf -- '--test %s ' "$@") --no-fail-fast; }

log=$(mktemp)
trap 'rm -f "$log"' EXIT
echo "in the background: ${long[*]}"
story "${long[@]}" >"$log" 2>&1 &
lane=$!
story "${others[@]}"
first=$?
echo "waiting for: ${long[*]}"
wait "$lane"
second=$?
cat "$log"
[ "$first" -eq 0 ] && [ "$second" -eq 0 ]

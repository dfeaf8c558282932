#!/usr/bin/env bash
# A hundred thousand schedules of faults around the real coordinator and workers, then each rule broken on purpose.
# With a seed: that schedule alone, and its whole story.
set -euo pipefail
# shellcheck source=scripts/lib/common.sh
. "$(dirname "$0")/lib/common.sh"
cd "$root"

cargo build --quiet --profile sim --locked -p longshore-sim --features breach
sim="$target/sim/longshore-sim"

if [ $# -gt 0 ]; then
    exec "$sim" seed "$1"
fi
"$sim" schedules 100000
"$sim" breaches

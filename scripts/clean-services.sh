#!/usr/bin/env bash
# Ends the services of this checkout's tests and demo, for when kill -9 hit the
# script that would have. Those of other checkouts stay.
set -euo pipefail
# shellcheck source=scripts/lib/common.sh
. "$(dirname "$0")/lib/common.sh"

for dir in "$target"/test-services* "$target/demo/services"; do
    [ -d "$dir" ] || continue
    say "down: $dir"
    "$root/scripts/services.sh" down "$dir"
    rm -rf "$dir"
done

#!/usr/bin/env bash
# Every test of the workspace, with RabbitMQ, two engines, a registry, prometheus
# and helm. Arguments go to `cargo test`.
set -euo pipefail
# shellcheck source=scripts/lib/common.sh
. "$(dirname "$0")/lib/common.sh"
cd "$root"

"$root/scripts/setup.sh" test
mkdir -p "$target"
services=$(mktemp -d "$target/test-services.XXXX")

# The logs stay when something failed: they are what one reads next.
finish() {
    local rc=$?
    trap '' INT TERM HUP
    end_group
    # What will not go is told, and is no test's failure.
    if ! "$root/scripts/services.sh" down "$services"; then
        say "its services did not all end: what is left of them is in $services"
    elif [ "$rc" = 0 ]; then
        rm -rf "$services"
    fi
    if [ "$rc" != 0 ]; then say "failed; the services' logs are in $services/log"; fi
    exit "$rc"
}
trap finish EXIT
trap 'exit 130' INT TERM HUP

# --while: a killed script cannot run its trap, the watcher still does.
"$root/scripts/services.sh" up "$services" --while $$ &
up=$!
# Compiled while the services start; a failure to compile is told first.
in_group cargo test --workspace --locked --no-run
wait "$up"
set -a
# shellcheck source=/dev/null
. "$services/env"
set +a

in_group cargo test --workspace --locked "$@"

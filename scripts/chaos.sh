#!/usr/bin/env bash
# A fleet under faults, on the real thing: RabbitMQ, Postgres, two Docker Engines,
# coordinators and workers of this run's own. Prints a table of what each fault cost and
# the proof that it bit; once every row has passed, their last results are docs/chaos.md.
#
#   chaos.sh [ROW,...]
#   chaos.sh --list
#
# Everything runs in a network namespace of this run's own, in which packets are
# dropped, and each Engine with its worker in another one, tied to it by a cable:
# nothing of the machine's own network is touched.
set -euo pipefail
# shellcheck source=scripts/lib/common.sh
. "$(dirname "$0")/lib/common.sh"
cd "$root"

chaos=$target/chaos
services=$chaos/services

build() { in_group cargo test --quiet --locked -p longshore-tests --test chaos --no-run && in_group cargo build --quiet --locked -p longshore; }
# Which line of a row failed, its words say: no trace of the runtime's own.
run_rows() { in_group env RUST_BACKTRACE=0 cargo test --quiet --locked -p longshore-tests --test chaos; }

# ---- within the namespace ---------------------------------------------------------------

finish() {
    local rc=$?
    trap '' INT TERM HUP
    end_group
    "$root/scripts/services.sh" down "$services"
    rm -rf "$chaos/tmp"
    if [ "$rc" != 0 ]; then say "ended with $rc; the services' logs are in $services/log"; fi
    exit "$rc"
}

# A cable from here to an Engine's namespace; its ends are 10.213.N.1, here, and .2.
cable() {
    local n=$1 there=longshore-$LONGSHORE_TEST_MARK-$1
    ip link add "engine-$n" type veth peer name longshore netns "$there"
    ip addr add "10.213.$n.1/24" dev "engine-$n"
    ip link set "engine-$n" up
    ip -n "$there" addr add "10.213.$n.2/24" dev longshore
    ip -n "$there" link set longshore up
}

inside() {
    trap finish EXIT
    trap 'exit 130' INT TERM HUP
    ip link set lo up
    say "RabbitMQ, Postgres and two Docker Engines of this run's own, in $services"
    "$root/scripts/services.sh" up "$services" --only rabbitmq,postgres,docker-1,docker-2 --reachable --while $$ 8>&-
    set -a
    # shellcheck source=/dev/null
    . "$services/env"
    set +a
    local n
    for n in 1 2; do
        cable "$n"
        engine=LONGSHORE_TEST_DOCKER_$n
        DOCKER_HOST=${!engine} "$root/scripts/base-image.sh" test
    done
    # State and spools of the fleets lie on this disk, whatever /tmp is.
    mkdir -p "$chaos/tmp"
    export TMPDIR=$chaos/tmp LONGSHORE_CHAOS_CABLES=10.213
    run_rows
}

# ---- command line -----------------------------------------------------------------------

case ${1:-} in
    --inside) inside; exit ;;
    --list) build; LONGSHORE_CHAOS_ROWS=list run_rows; exit ;;
    -*) usage ;;
esac

"$root/scripts/setup.sh" chaos
mkdir -p "$chaos"
# Two of one checkout would take each other's services down.
exec 8>"$chaos/lock"
flock -n 8 || die "make test-chaos of this checkout is running already"
build
# As root from here: it makes namespaces, and mounts what shall become full.
LONGSHORE_CHAOS_ROWS=${1:-all}
CARGO=$(command -v cargo)
export LONGSHORE_CHAOS_ROWS
as_root env "PATH=${CARGO%/*}:$PATH" "LONGSHORE_CHAOS_ROWS=$LONGSHORE_CHAOS_ROWS" "HOME=$HOME" \
    unshare --net "$root/scripts/chaos.sh" --inside

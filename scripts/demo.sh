#!/usr/bin/env bash
# A fleet on this machine builds zlib: a coordinator and two workers over RabbitMQ
# and Docker. Takes the engine at Docker's default socket and the broker at port
# 5672 where they run, starts its own where not, and ends what it started.
set -euo pipefail
# shellcheck source=scripts/lib/common.sh
. "$(dirname "$0")/lib/common.sh"
# shellcheck source=scripts/lib/apt.sh
. "$(dirname "$0")/lib/apt.sh"
cd "$root"

demo=$target/demo
services=$demo/services
longshore=$target/release/longshore
# Of this checkout: another one's demo may use the same broker.
vhost=longshore-demo-$(printf %s "$demo" | sha256sum | cut -c1-8)

# ---- the end ----------------------------------------------------------------------

daemons=()
vhost_made=''

none_running() {
    local pid
    for pid in "${daemons[@]}"; do if kill -0 "$pid" 2>/dev/null; then return 1; fi; done
}

# Workers before the coordinator: they remove their containers and say goodbye.
stop_daemons() {
    local i
    for ((i = ${#daemons[@]} - 1; i >= 0; i--)); do kill -TERM "${daemons[i]}" 2>/dev/null || true; done
    await 30 "the end of the fleet" none_running || kill -KILL "${daemons[@]}" 2>/dev/null || true
}

# Matters where the engine is the machine's own: ours goes away as a whole. Only
# those of our workers: others may be at work there as well.
remove_snapshots() {
    local worker image
    # shellcheck disable=SC2013  # ids, without spaces
    for worker in $(sed -n 's/.*: ready (id \([^,]*\),.*/\1/p' "$demo"/log/worker-[12].log 2>/dev/null); do
        for image in $(docker_cli images --format '{{.Repository}}:{{.Tag}}' "longshore/$worker" 2>/dev/null); do
            docker_cli rmi -f "$image" >/dev/null 2>&1 || true
        done
    done
}

finish() {
    local rc=$?
    trap '' INT TERM HUP
    end_group
    stop_daemons
    if [ "${DOCKER_HOST:-}" ]; then remove_snapshots; fi
    if [ "$vhost_made" ]; then ctl delete_vhost "$vhost" || true; fi
    "$root/scripts/services.sh" down "$services"
    rm -rf "$services" "$demo/state"
    if [ "$rc" != 0 ]; then say "ended with $rc; the logs are in $demo/log"; fi
    exit "$rc"
}

# ---- broker, engine ------------------------------------------------------------------

ctl() { as_root "${LONGSHORE_TEST_RABBITMQCTL:-rabbitmqctl}" -q "$@" >/dev/null 2>&1; }

start_services() {
    : "${LONGSHORE_TEST_AMQP:=amqp://guest:guest@127.0.0.1:5672}"
    : "${LONGSHORE_TEST_DOCKER_1:=${DOCKER_HOST:-unix:///var/run/docker.sock}}"
    export LONGSHORE_TEST_AMQP LONGSHORE_TEST_DOCKER_1
    "$root/scripts/services.sh" up "$services" --only rabbitmq,docker-1 --host-network --while $$ 8>&-
    # shellcheck source=/dev/null
    . "$services/env"
    export DOCKER_HOST=$LONGSHORE_TEST_DOCKER_1 LONGSHORE_AMQP=$LONGSHORE_TEST_AMQP
}

# In a virtual host of our own nothing is left of us in somebody else's broker.
own_vhost() {
    [ -z "${LONGSHORE_TEST_RABBITMQ_PID:-}" ] || return 0
    ctl delete_vhost "$vhost" || true
    if ctl add_vhost "$vhost" && ctl set_permissions -p "$vhost" guest '.*' '.*' '.*'; then
        vhost_made=1
        LONGSHORE_AMQP=${LONGSHORE_AMQP%/}/$vhost
    else
        say "the broker's queues named longshore-demo.* will stay there: no rabbitmqctl for it"
    fi
}

# ---- fleet --------------------------------------------------------------------------------

# start NAME ARGUMENTS...: a daemon in its own session, so that Ctrl-C reaches this
# script alone and the fleet ends in order. The mark is for a killed script.
start() {
    local name=$1
    shift
    LONGSHORE_SERVICES=$LONGSHORE_TEST_MARK setsid "$longshore" "$@" >"$demo/log/$name.log" 2>&1 </dev/null 8>&- &
    daemons+=($!)
    await 30 "$name" ready "$name" $! || { tail -n 20 "$demo/log/$name.log" >&2; die "$name did not start"; }
}

ready() {
    kill -0 "$2" 2>/dev/null || die "$1 ended"
    grep -q ': ready' "$demo/log/$1.log"
}

start_fleet() {
    local port n
    port=$(free_port)
    export LONGSHORE_COORDINATOR=http://127.0.0.1:$port
    start coordinator coordinator --listen "127.0.0.1:$port" --amqp "$LONGSHORE_AMQP" \
        --state "$demo/state/coordinator" --prefix longshore-demo
    for n in 1 2; do
        start "worker-$n" worker --amqp "$LONGSHORE_AMQP" --coordinator "$LONGSHORE_COORDINATOR" \
            --state "$demo/state/worker-$n" --slots 2 --docker "$DOCKER_HOST" --prefix longshore-demo
    done
}

# ---- what it builds ---------------------------------------------------------------------

unpack_zlib() {
    local tarball
    tarball=$(debian_source zlib)
    rm -rf "$demo/src"
    mkdir -p "$demo/src/zlib"
    tar -xf "$tarball" --strip-components=1 -C "$demo/src/zlib"
    # The pipeline names its sources relative to itself.
    cp "$root/examples/zlib.yaml" "$demo/src/zlib.yaml"
}

# ---- the demo ---------------------------------------------------------------------------

"$root/scripts/setup.sh" demo
mkdir -p "$demo/log"
# Two of one checkout would take each other's state away.
exec 8>"$demo/lock"
flock -n 8 || die "a demo of this checkout is running already"
rm -f "$demo"/log/*.log
trap finish EXIT
trap 'exit 130' INT TERM HUP

say "a broker and an engine (taken where they run, else started for this demo)"
start_services
own_vhost
say "the base image longshore-demo/debian-cc:bookworm"
in_group "$root/scripts/base-image.sh" debian-cc
unpack_zlib
say "cargo build --release"
in_group cargo build --release --locked -p longshore
rm -rf "$demo/state"
say "a coordinator and two workers"
start_fleet
say "longshore submit $demo/src/zlib.yaml --watch"
in_group "$longshore" submit "$demo/src/zlib.yaml" --watch

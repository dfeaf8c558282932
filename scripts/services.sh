#!/usr/bin/env bash
# RabbitMQ, Postgres, two Docker Engines and an image registry of one directory's
# own, on ports and sockets of their own: two checkouts run side by side, and
# whatever the machine runs already is left alone.
#
#   services.sh up DIR [--while PID] [--only NAME,...] [--host-network] [--reachable]
#   services.sh env DIR            prints `export` lines
#   services.sh kill DIR NAME      SIGKILL: rabbitmq, postgres, docker-1, docker-2, registry
#   services.sh start DIR NAME     starts it again on its old address
#   services.sh down DIR           ends and removes everything but DIR/log
#
# `up` writes DIR/env, lines of NAME=value; run twice, it leaves what is up alone.
# A service that LONGSHORE_TEST_AMQP, _POSTGRES, _DOCKER_1, _DOCKER_2 or _REGISTRY
# names and that answers is taken as it is. With --while PID, everything goes down
# when the last such PID has ended (a plain `up` keeps it until `down`). With
# --reachable RabbitMQ listens on every address, for who has a network namespace
# of his own.
set -euo pipefail
# shellcheck source=scripts/lib/common.sh
. "$(dirname "$0")/lib/common.sh"
# shellcheck source=scripts/lib/services.sh
. "$(dirname "$0")/lib/services.sh"

# ---- one at a time ---------------------------------------------------------------

# The lock file goes away with `down`; so who gets the lock must look whether the
# file is still the one at that path.
lock() {
    local file=/run/lock/longshore-$id
    mkdir -p /run/lock
    while :; do
        exec 9>"$file"
        flock 9
        [ "$(stat -Lc %i /proc/self/fd/9)" = "$(stat -c %i "$file" 2>/dev/null)" ] && return
    done
}

unlock_and_remove() { rm -f "/run/lock/longshore-$id"; exec 9>&-; }

# ---- who uses it -------------------------------------------------------------------

# A number comes again; number and start time together do not.
birth() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20; }

# Whether a process that came with --while lives; forgets those that ended.
held() {
    local user rc=1
    for user in "$run"/users/[0-9]*; do
        [ -e "$user" ] || continue
        if [ "$(birth "${user##*/}")" = "$(cat "$user")" ]; then rc=0; else rm -f "$user"; fi
    done
    return "$rc"
}

users_left() { [ -e "$run/users/forever" ] || held; }

register_user() {
    mkdir -p "$run/users"
    if [ "$while_pid" ]; then birth "$while_pid" >"$run/users/$while_pid"
    else : >"$run/users/forever"
    fi
}

# Looks once a second whether a user lives, and takes everything down when not.
# Its mark is another one: it must outlive the sweep that it starts.
watch_users() {
    LONGSHORE_SERVICES='' LONGSHORE_WATCHES=$id setsid "$0" watch "$dir" >/dev/null 2>&1 </dev/null 9>&- &
}

watch() {
    while sleep 1; do
        [ -d "$run" ] || return 0
        users_left || break
    done
    lock
    # Somebody may have come while we waited for the lock.
    users_left || remove_all
    [ -d "$run" ] || unlock_and_remove
}

# ---- up ------------------------------------------------------------------------------

wanted() { [ -z "$only" ] || [[ ,$only, == *,$1,* ]]; }

# Docker keeps layers on overlay2, which cannot lie on another overlay: where this
# directory does (in a container, say), memory takes its place.
prepare_data() {
    mkdir -p "$data" "$log" "$run"
    chmod 755 "$run"
    if [ "$(stat -f -c %T "$data")" = overlayfs ]; then
        say "$dir is on an overlay: its data will be in memory"
        mount -t tmpfs -o mode=755 longshore "$data"
    fi
}

# Ports are chosen once: a service that is started again has its old address.
choose_ports() {
    local port
    [ -f "$run/ports" ] || for port in AMQP DIST EPMD POSTGRES REGISTRY; do
        echo "${port}_PORT=$(free_port)"
    done >"$run/ports"
    # shellcheck source=/dev/null
    . "$run/ports"
    HOST_NETWORK=$(cat "$run/host-network" 2>/dev/null || true)
    REACHABLE=$(cat "$run/reachable" 2>/dev/null || true)
}

# What the environment names and answers is taken; the rest we start ourselves.
forget_what_is_not_there() {
    amqp_answers "${LONGSHORE_TEST_AMQP:=}" || LONGSHORE_TEST_AMQP=''
    postgres_answers "${LONGSHORE_TEST_POSTGRES:=}" || LONGSHORE_TEST_POSTGRES=''
    docker_answers "${LONGSHORE_TEST_DOCKER_1:=}" || LONGSHORE_TEST_DOCKER_1=''
    docker_answers "${LONGSHORE_TEST_DOCKER_2:=}" || LONGSHORE_TEST_DOCKER_2=''
    listening "${LONGSHORE_TEST_REGISTRY:=}" || LONGSHORE_TEST_REGISTRY=''
}

start_rabbitmq() {
    if [ "$LONGSHORE_TEST_AMQP" ]; then
        echo "LONGSHORE_TEST_AMQP=$LONGSHORE_TEST_AMQP" >"$run/env.rabbitmq"
        return
    fi
    rabbitmq_prepare && rabbitmq_start || return 1
    cat >"$run/env.rabbitmq" <<END
LONGSHORE_TEST_AMQP=amqp://guest:guest@127.0.0.1:$AMQP_PORT
LONGSHORE_TEST_RABBITMQ_PID=$(pid_of rabbitmq)
LONGSHORE_TEST_RABBITMQCTL=$dir/rabbitmqctl
END
}

start_postgres() {
    if [ "$LONGSHORE_TEST_POSTGRES" ]; then
        echo "LONGSHORE_TEST_POSTGRES=$LONGSHORE_TEST_POSTGRES" >"$run/env.postgres"
        return
    fi
    postgres_prepare && postgres_start || return 1
    cat >"$run/env.postgres" <<END
LONGSHORE_TEST_POSTGRES=postgres://longshore:longshore@127.0.0.1:$POSTGRES_PORT/postgres
LONGSHORE_TEST_POSTGRES_PID=$(pid_of postgres)
END
}

start_docker() {
    local n=$1 given=LONGSHORE_TEST_DOCKER_$1
    if [ "${!given}" ]; then
        echo "$given=${!given}" >"$run/env.docker-$n"
        return
    fi
    docker_start "$n" || return 1
    printf '%s\n' "$given=unix://$run/d$n.sock" "${given}_PID=$(pid_of "docker-$n")" >"$run/env.docker-$n"
}

start_docker_with_images() {
    start_docker "$1" || return 1
    [ "$only" ] || DOCKER_HOST=$(sed -n "s/^LONGSHORE_TEST_DOCKER_$1=//p" "$run/env.docker-$1") \
        "$root/scripts/base-image.sh" test
}

start_registry() {
    if [ "$LONGSHORE_TEST_REGISTRY" ]; then
        echo "LONGSHORE_TEST_REGISTRY=$LONGSHORE_TEST_REGISTRY" >"$run/env.registry"
        return
    fi
    registry_start || return 1
    cat >"$run/env.registry" <<END
LONGSHORE_TEST_REGISTRY=127.0.0.1:$REGISTRY_PORT
LONGSHORE_TEST_REGISTRY_PID=$(pid_of registry)
END
}

# The registry needs the first engine's namespace, so that one is made beforehand.
# Its caller looks at what it answers, so `set -e` counts for nothing in here and in
# all that it calls: a service that does not come up is told by `|| return 1`.
start_all() {
    local -a jobs=()
    local job
    if [ -z "$HOST_NETWORK$LONGSHORE_TEST_DOCKER_1" ] && wanted docker-1; then netns_make 1; fi
    if wanted rabbitmq; then start_rabbitmq & jobs+=($!); fi
    if wanted postgres; then start_postgres & jobs+=($!); fi
    if wanted docker-1; then start_docker_with_images 1 & jobs+=($!); fi
    if wanted docker-2; then start_docker_with_images 2 & jobs+=($!); fi
    if wanted registry; then start_registry & jobs+=($!); fi
    for job in "${jobs[@]}"; do wait "$job" || return 1; done
}

# Moved into place whole: whoever waits for the file reads all of it.
write_env() {
    { printf '%s\n' "LONGSHORE_TEST_DIR=$dir" "LONGSHORE_TEST_MARK=$id"; cat "$run"/env.*; } >"$dir/env.new"
    mv "$dir/env.new" "$dir/env"
}

# A service that is down while a process holds the set is that process's test.
is_up() {
    local name
    [ -f "$dir/env" ] || return 1
    if held; then return 0; fi
    for name in rabbitmq postgres docker-1 docker-2 registry; do
        [ ! -f "$run/$name.pid" ] || alive "$name" || return 1
    done
}

up() {
    lock
    # Ctrl-C while half of it is up.
    trap 'remove_all; unlock_and_remove; exit 130' INT TERM HUP
    if ! is_up; then
        remove_all
        prepare_data
        echo "$host_network" >"$run/host-network"
        echo "$reachable" >"$run/reachable"
        choose_ports
        forget_what_is_not_there
        start_all || { remove_all; unlock_and_remove; die "gave up; the logs are in $log"; }
        write_env
    fi
    register_user
    if [ "$while_pid" ]; then watch_users; fi
    trap - INT TERM HUP
    say "up: $dir/env"
}

down() {
    lock
    remove_all
    # They would end by themselves, but only within a second.
    # shellcheck disable=SC2046  # a list of numbers
    kill -KILL $(marked LONGSHORE_WATCHES) 2>/dev/null || true
    unlock_and_remove
}

# ---- one of them ------------------------------------------------------------------

kill_one() {
    kill -KILL "$(pid_of "$1")"
    while alive "$1"; do sleep 0.05; done
    # Its children see that it is gone, and are gone a moment later.
    if [ "$1" = postgres ]; then await 30 "the end of postgres" postgres_gone; fi
}

start_one() {
    lock
    choose_ports
    case $1 in
        rabbitmq) rabbitmq_start ;;
        postgres) postgres_start ;;
        docker-[12]) docker_start "${1#docker-}" ;;
        registry) registry_start ;;
    esac
    new_pid "$1"
}

# The pid in DIR/env is the one that runs now.
new_pid() {
    local key
    key=LONGSHORE_TEST_$(echo "$1" | tr a-z- A-Z_)_PID
    sed "s/^$key=.*/$key=$(pid_of "$1")/" "$dir/env" >"$dir/env.new"
    mv "$dir/env.new" "$dir/env"
}

# ---- command line -----------------------------------------------------------------

[ $# -ge 2 ] || usage
verb=$1
[[ $verb =~ ^(up|down|env|kill|start|watch)$ ]] || usage
if [ "$(id -u)" != 0 ] && [ "$verb" != env ]; then
    have sudo || die "needs root: it starts Docker Engines in network namespaces"
    exec sudo --preserve-env=LONGSHORE_TEST_AMQP,LONGSHORE_TEST_POSTGRES,LONGSHORE_TEST_DOCKER_1,LONGSHORE_TEST_DOCKER_2,LONGSHORE_TEST_REGISTRY "$0" "$@"
fi
if [ "$verb" = up ]; then mkdir -p "$2"; fi
# Need not be there: `down` also works when somebody removed the directory first.
dir=$(realpath -m "$2")
[[ $dir != *[[:space:]]* ]] || die "$dir: a path without spaces, please"
services_init
shift 2

while_pid='' only='' host_network='' reachable='' name=''
while [ $# -gt 0 ]; do
    case $verb:$1 in
        up:--while) while_pid=${2:?a process id}; shift ;;
        up:--only) only=${2:?names}; shift ;;
        up:--host-network) host_network=1 ;;
        up:--reachable) reachable=1 ;;
        kill:rabbitmq | kill:postgres | kill:docker-[12] | kill:registry) name=$1 ;;
        start:rabbitmq | start:postgres | start:docker-[12] | start:registry) name=$1 ;;
        *) usage ;;
    esac
    shift
done

case $verb in
    up) up ;;
    down) down ;;
    watch) watch ;;
    env) sed 's/^/export /' "$dir/env" ;;
    kill) kill_one "${name:?which}" ;;
    start) start_one "${name:?which}" ;;
esac

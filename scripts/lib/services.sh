# shellcheck shell=bash
# The services of one directory: how each starts, and how all of it goes away.
# Sourced after common.sh; the caller has set `dir` (absolute, no spaces).
#
# Everything is found again from `dir` alone, so that `down` after a crash is the
# same as `down` after a good day:
#   processes   carry LONGSHORE_SERVICES=<id> in their environment
#   containers  live in cgroups below /longshore-<id>-<n>
#   sockets     lie in /run/longshore-<id>: a unix socket's path holds 108 bytes
#   networks    namespaces (and a bridge) are named longshore-<id>-<n>

services_init() {
    : "${dir:?}"
    id=$(printf %s "$dir" | sha256sum | cut -c1-8)
    run=/run/longshore-$id
    data=$dir/data
    log=$dir/log
}

# spawn NAME COMMAND...: a daemon in a session of its own (a Ctrl-C at the
# terminal is ours to handle), without our lock, marked, its pid written down.
spawn() {
    local name=$1
    shift
    LONGSHORE_SERVICES=$id setsid "$@" >>"$log/$name.log" 2>&1 </dev/null 9>&- &
    echo $! >"$run/$name.pid"
}

pid_of() { cat "$run/$1.pid" 2>/dev/null; }
# A zombie is not: where process 1 reaps nobody (a container), it stays for ever.
alive() { kill -0 "$(pid_of "$1")" 2>/dev/null && ! grep -q '^State:.Z' "/proc/$(pid_of "$1")/status" 2>/dev/null; }

# await_service NAME COMMAND...: until COMMAND succeeds, but no longer than the
# process lives. The bound is for a machine whose cores all compile meanwhile.
await_service() {
    local name=$1 seconds=300 until=$((SECONDS + 300))
    shift
    until "$@" >/dev/null 2>&1; do
        if [ "$SECONDS" -ge "$until" ] || ! alive "$name"; then
            say "$name did not come up within $seconds s; the end of its log:"
            tail -n 20 "$log/$name.log" >&2
            return 1
        fi
        sleep 0.1
    done
}

# ---- RabbitMQ -----------------------------------------------------------------

# A broker greets a protocol header with a frame of type 1; anything else that
# listens there does not. Cheaper than rabbitmqctl, which starts an Erlang VM.
amqp_answers() {
    local address=${1#*://} first
    [ "$address" ] || return 1
    address=${address##*@} address=${address%%/*}
    [[ $address == *:* ]] || address=$address:5672
    # shellcheck disable=SC2016  # that shell expands it
    first=$(timeout 2 bash -c '
        exec 3<>"/dev/tcp/$1/$2"; printf "AMQP\0\0\11\1" >&3; head -c1 <&3 | od -An -tu1
    ' - "${address%:*}" "${address##*:}" 2>/dev/null) && [ "${first// /}" = 1 ]
}

rabbitmq_env() {
    local home=$data/rabbitmq address=127.0.0.1
    if [ "${REACHABLE:-}" ]; then address=0.0.0.0; fi
    # A port mapper of our own: the machine's would be shared with other nodes,
    # and ours would outlive us as a daemon.
    cat <<END
HOME=$home
ERL_EPMD_PORT=$EPMD_PORT
ERL_EPMD_ADDRESS=127.0.0.1
RABBITMQ_NODENAME=longshore@localhost
RABBITMQ_NODE_IP_ADDRESS=$address
RABBITMQ_NODE_PORT=$AMQP_PORT
RABBITMQ_DIST_PORT=$DIST_PORT
RABBITMQ_CONF_ENV_FILE=$home/none
RABBITMQ_CONFIG_FILE=$home/rabbitmq
RABBITMQ_ENABLED_PLUGINS_FILE=$home/plugins
RABBITMQ_MNESIA_BASE=$home/mnesia
RABBITMQ_LOG_BASE=$log
RABBITMQ_LOGS=-
RABBITMQ_PID_FILE=$home/pid
LANG=C.UTF-8
END
}

rabbitmq_prepare() {
    local home=$data/rabbitmq
    mkdir -p "$home/mnesia"
    : >"$home/none"
    echo '[].' >"$home/plugins"
    # The default limits ask for 40 % of memory and a share of the disk; a test
    # broker shall not block its publishers because the machine is busy.
    printf '%s\n' 'disk_free_limit.absolute = 50MB' 'log.console.level = info' >"$home/rabbitmq.conf"
    # The user guest is let in from loopback only, unless this says otherwise.
    if [ "${REACHABLE:-}" ]; then echo 'loopback_users = none' >>"$home/rabbitmq.conf"; fi
    rabbitmq_env >"$home/env"
    cat >"$dir/rabbitmqctl" <<END
#!/bin/sh
# rabbitmqctl for the node of this directory.
set -a; . "$home/env"; set +a
exec /usr/lib/rabbitmq/bin/rabbitmqctl "\$@"
END
    chmod +x "$dir/rabbitmqctl"
}

# Debian's wrapper would change to the user rabbitmq and the machine's
# directories, so the script behind it is called. RUNNING_UNDER_SYSTEMD makes it
# exec: the pid that we note is the broker's own.
rabbitmq_start() {
    local -a settings
    mapfile -t settings <"$data/rabbitmq/env"
    if ! alive epmd; then
        spawn epmd epmd -port "$EPMD_PORT" -address 127.0.0.1
        await_service epmd listening "$EPMD_PORT" || return 1
    fi
    spawn rabbitmq env "${settings[@]}" RUNNING_UNDER_SYSTEMD=1 /usr/lib/rabbitmq/bin/rabbitmq-server
    await_service rabbitmq amqp_answers "amqp://127.0.0.1:$AMQP_PORT"
}

# ---- Postgres -------------------------------------------------------------------

# Debian keeps each version's programs in a directory of their own.
postgres_bin() {
    local dirs=(/usr/lib/postgresql/*/bin)
    if [ -x "${dirs[-1]}/postgres" ]; then echo "${dirs[-1]}"; else dirname "$(command -v postgres)"; fi
}

# Whether anything listens where an address points to: who that is, the first test says.
postgres_answers() {
    local address=${1#*://}
    [ "$address" ] || return 1
    address=${address##*@} address=${address%%/*}
    [[ $address == *:* ]] || address=$address:5432
    listening "$address"
}

# It refuses to run as root, and the user that it has may not be able to enter this
# directory: what lies here is also mounted where everybody may go.
as_postgres() { setpriv --reuid=postgres --regid=postgres --clear-groups -- "$@"; }

postgres_prepare() {
    local home=$data/postgres
    mkdir -p "$home" "$run/postgres"
    chown postgres: "$home"
    chmod 700 "$home"
    mount --bind "$home" "$run/postgres"
    # Password and all: a test signs in as a coordinator does.
    echo longshore >"$run/postgres.password"
    as_postgres "$(postgres_bin)/initdb" --pgdata="$run/postgres" --username=longshore --no-sync \
        --pwfile="$run/postgres.password" --auth=scram-sha-256 --encoding=UTF8 --locale=C.UTF-8 \
        >>"$log/postgres.log" 2>&1
}

# fsync is on, as it is by itself: what is committed survives a kill, and commits cost what they cost.
postgres_start() {
    local bin
    bin=$(postgres_bin)
    # A killed one leaves its pid file, and the number may be a zombie's, or live again.
    postgres_gone && rm -f "$run/postgres/postmaster.pid"
    spawn postgres setpriv --reuid=postgres --regid=postgres --clear-groups -- "$bin/postgres" -D "$run/postgres" \
        -c port="$POSTGRES_PORT" -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c max_connections=200
    await_service postgres "$bin/pg_isready" --host=127.0.0.1 --port="$POSTGRES_PORT"
}

postgres_gone() { [ -z "$(find /proc/[0-9]*/cwd -maxdepth 0 -lname "$run/postgres" 2>/dev/null)" ]; }

# ---- Docker engines ------------------------------------------------------------

# An empty address would be Docker's own default, which nobody asked for.
docker_answers() {
    [ "$1" ] && DOCKER_HOST=$1 timeout 5 "$(docker_path)" version >/dev/null 2>&1
}

# Not `ip netns exec`: that mounts a new /sys, which hides the cgroups.
in_netns() { nsenter --net="/run/netns/longshore-$id-$1" "${@:2}"; }

netns_make() {
    ip netns list | grep -qw "longshore-$id-$1" && return
    ip netns add "longshore-$id-$1"
    in_netns "$1" ip link set lo up
}

# An engine in the host's network has a bridge of its own and leaves iptables
# alone: with `--bridge=none`, or with the default, it would take down or fight
# over the docker0 of an engine that is there already.
host_bridge() {
    ip link show "ls-$id" >/dev/null 2>&1 && return
    ip link add "ls-$id" type bridge
    # A subnet for each directory, in all likelihood.
    ip addr add "10.213.$((16#${id:0:2})).1/24" dev "ls-$id"
    ip link set "ls-$id" up
}

# containerd_start N: given to dockerd, which would otherwise take the machine's
# containerd where one runs, and share its container names with every engine there.
containerd_start() {
    local n=$1
    cat >"$data/containerd-$n.toml" <<END
version = 2
root = "$data/containerd-$n"
state = "$run/c$n"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "$run/c$n.sock"
END
    spawn "containerd-$n" "${enter[@]}" containerd --config "$data/containerd-$n.toml"
    await_service "containerd-$n" test -S "$run/c$n.sock"
}

# docker_flags N
docker_flags() {
    local n=$1
    printf '%s\n' --host "unix://$run/d$n.sock" --containerd "$run/c$n.sock" \
        --data-root "$data/docker-$n" --exec-root "$run/d$n" --pidfile "$run/dockerd-$n.pid" \
        --group "${SUDO_GID:-0}" --config-file "$data/docker-$n.json" \
        --exec-opt native.cgroupdriver=cgroupfs --cgroup-parent "/longshore-$id-$n" \
        --storage-driver overlay2
    if [ "${HOST_NETWORK:-}" ]; then
        printf '%s\n' --bridge "ls-$id" --iptables=false --ip6tables=false --ip-masq=false
    fi
}

docker_start() {
    local n=$1
    local -a enter=() flags
    # Engines before 24 take their id from this key, and the key from /etc/docker:
    # without it both would be one and the same host to a worker.
    if dockerd --version | grep -qE 'version (1[0-9]|2[0-3])\.'; then
        echo "{\"deprecated-key-path\": \"$data/docker-$n.key\"}" >"$data/docker-$n.json"
    else
        echo '{}' >"$data/docker-$n.json"
    fi
    if [ "${HOST_NETWORK:-}" ]; then
        host_bridge
    else
        netns_make "$n"
        enter=(nsenter "--net=/run/netns/longshore-$id-$n")
    fi
    mapfile -t flags < <(docker_flags "$n")
    alive "containerd-$n" || containerd_start "$n" || return 1
    # A killed engine leaves its pid file, and dockerd refuses to start beside one
    # whose number lives again.
    rm -f "$run/dockerd-$n.pid"
    spawn "docker-$n" "${enter[@]}" dockerd "${flags[@]}"
    await_service "docker-$n" docker_answers "unix://$run/d$n.sock"
}

# ---- registry -------------------------------------------------------------------

# On the loopback of the first engine's network namespace, since that engine has
# to reach it as 127.0.0.1 (which engines trust without TLS). The machine itself
# does not reach it: push and pull through the engine.
registry_start() {
    local -a enter=()
    cat >"$data/registry.yml" <<END
version: 0.1
log: {level: info}
storage:
  filesystem: {rootdirectory: $data/registry}
  delete: {enabled: true}
http: {addr: "127.0.0.1:$REGISTRY_PORT"}
END
    if [ -e "/run/netns/longshore-$id-1" ]; then
        enter=(nsenter "--net=/run/netns/longshore-$id-1")
    fi
    spawn registry "${enter[@]}" docker-registry serve "$data/registry.yml"
    await_service registry "${enter[@]}" bash -c "exec 3<>/dev/tcp/127.0.0.1/$REGISTRY_PORT"
}

# ---- the end of everything -----------------------------------------------------

# Processes that bear our mark: daemons, shims that outlived their engine, and
# whatever was started with LONGSHORE_SERVICES=$LONGSHORE_TEST_MARK.
marked() {
    local file name=${1:-LONGSHORE_SERVICES}
    # shellcheck disable=SC2013  # names of /proc, without spaces
    for file in $(grep -lsz "^$name=$id\$" /proc/[0-9]*/environ); do
        file=${file#/proc/} file=${file%/environ}
        [ "$file" = "$$" ] || [ "$file" = "$BASHPID" ] || echo "$file"
    done
}

cgroups() { find /sys/fs/cgroup -depth -type d -path "*/longshore-$id-[12]*" 2>/dev/null || true; }

contained() {
    local group
    for group in $(cgroups); do cat "$group/cgroup.procs" 2>/dev/null || true; done | sort -u
}

# Until nobody is left: a process may fork between the look and the kill. One that waits for a slow disk dies late.
kill_all() {
    local until=$((SECONDS + 120)) pids
    while pids="$(marked) $(contained)" && [ "${pids//[[:space:]]/}" ]; do
        # shellcheck disable=SC2086  # a list of numbers
        kill -KILL $pids 2>/dev/null || true
        [ "$SECONDS" -lt "$until" ] || { say "still running: $pids"; return 1; }
        sleep 0.1
    done
}

# Mount points below our directories, the innermost first.
mounts() {
    awk -v data="$data" -v run="$run" '
        index($5, data "/") == 1 || $5 == data || index($5, run "/") == 1 { print $5 }
    ' /proc/self/mountinfo | tac
}

unmount_all() {
    local point
    for point in $(mounts); do umount "$point" 2>/dev/null || umount -l "$point" || true; done
}

# A shim's socket lies in a directory that all containerds share; who owned it
# is only known while its state directory is there.
remove_shim_sockets() {
    local address
    for address in "$run"/c[12]/io.containerd.runtime.v2.task/*/*/address; do
        [ -f "$address" ] || continue
        rm -f "$(sed 's,^unix://,,' "$address")"
    done
}

remove_networks() {
    local n
    for n in 1 2; do
        if [ -e "/run/netns/longshore-$id-$n" ]; then ip netns delete "longshore-$id-$n"; fi
    done
    ip link delete "ls-$id" 2>/dev/null || true
}

# Everything but the logs.
remove_all() {
    local group
    kill_all
    remove_shim_sockets
    unmount_all
    remove_networks
    for group in $(cgroups); do rmdir "$group" 2>/dev/null || true; done
    rm -rf --one-file-system "$data" "$run" "$dir/env" "$dir/rabbitmqctl"
}

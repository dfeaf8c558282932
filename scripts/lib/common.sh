# shellcheck shell=bash
# What every script here shares: saying, dying, waiting, ports, downloads' home.
# Sourced, never run.

# Debian keeps daemons and network tools in sbin, which a plain user's PATH lacks.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/longshore
target=${CARGO_TARGET_DIR:-target}
# cargo is run in the root, and takes a relative directory from there.
[[ $target == /* ]] || target=$root/$target
export root cache target
# Where setup.sh puts the tools that Debian lacks.
PATH=$PATH:$cache/bin

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() { say "$*"; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# Runs a command as root; the caller says what for beforehand.
as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"
    elif have sudo; then sudo "$@"
    else die "needs root for: $*"
    fi
}

# await SECONDS WHAT COMMAND...: asks again until COMMAND succeeds.
await() {
    local until=$((SECONDS + $1)) what=$2
    shift 2
    until "$@"; do
        [ "$SECONDS" -lt "$until" ] || { say "$what: not there in time"; return 1; }
        sleep 0.1
    done
}

# listening PORT | HOST:PORT
listening() {
    local host=127.0.0.1
    [[ $1 != *:* ]] || host=${1%:*}
    [ "$1" ] && (exec 3<>"/dev/tcp/$host/${1##*:}") 2>/dev/null
}

# A port that nobody listens on. Below Linux's ephemeral range (from 32768), so
# that no outgoing connection takes it between this look and the service's bind;
# and one that was given out lately, here or beside us, is not given out again.
free_port() {
    local port given=${TMPDIR:-/tmp}/longshore-ports-$UID
    mkdir -p "$given" || die "no directory for the ports that were given out: $given"
    find "$given" -type f -mmin +5 -delete 2>/dev/null || true
    while port=$((20000 + RANDOM % 12000)); do
        if ! (set -o noclobber && : >"$given/$port") 2>/dev/null; then
            [ -e "$given/$port" ] || die "cannot write to $given"
        elif ! listening "$port"; then
            echo "$port"
            return
        fi
    done
}

# The client that came with Debian's engine: one of another version may stand
# earlier in the PATH, and new clients refuse engines older than API 1.44.
docker_path() { if [ -x /usr/bin/docker ]; then echo /usr/bin/docker; else command -v docker; fi; }
docker_cli() { "$(docker_path)" "$@"; }

# in_group COMMAND...: runs it in a process group of its own. bash would let a
# signal wait until a foreground command has ended; this way end_group, called
# from an EXIT trap, ends the command and all that it started. Where services are
# up, it bears their mark: if this script is killed, it goes down with them.
group=''
in_group() {
    local rc=0
    set -m
    env "LONGSHORE_SERVICES=${LONGSHORE_TEST_MARK:-}" "$@" </dev/null &
    group=$!
    set +m
    wait "$group" || rc=$?
    group=''
    return "$rc"
}

end_group() {
    [ "$group" ] || return 0
    kill -TERM -- "-$group" 2>/dev/null || true
    await 10 "the command that was interrupted" group_gone || kill -KILL -- "-$group" 2>/dev/null || true
}

group_gone() { ! kill -0 -- "-$group" 2>/dev/null; }

# The comment at the head of the script that runs.
usage() { sed -n '2,/^set /{s/^# \{0,1\}//;/^set /d;p}' "$0" >&2; exit 2; }

#!/usr/bin/env bash
# Longshore beside what people use today, on this machine, in one run: RabbitMQ, a
# Docker Engine, Celery and the Docker SDK of this run's own. Writes
# target/bench/report.json, a table, and docs/benchmarks.md. Takes some 40 minutes;
# a machine that does something else meanwhile measures that.
#
#   bench.sh [--rows NAME,...] [--runs N]
#   bench.sh --list
set -euo pipefail
# shellcheck source=scripts/lib/common.sh
. "$(dirname "$0")/lib/common.sh"
cd "$root"

celery_version=5.7.0
docker_sdk_version=7.2.0
sqlalchemy_version=2.1.9

bench=$target/bench
services=$bench/services
venv=$bench/venv

# ---- the end ----------------------------------------------------------------------

# Everything that was started bears the services' mark and goes down with them.
finish() {
    local rc=$?
    trap '' INT TERM HUP
    end_group
    "$root/scripts/services.sh" down "$services"
    rm -rf "$bench/work" "$bench/tmp"
    if [ "$rc" != 0 ]; then say "ended with $rc; the services' logs are in $services/log"; fi
    exit "$rc"
}

# ---- Celery -------------------------------------------------------------------------

# Versions of the three that are measured; pip finds what they need.
make_venv() {
    local wanted="celery==$celery_version docker==$docker_sdk_version sqlalchemy==$sqlalchemy_version"
    [ "$(cat "$venv/wanted" 2>/dev/null)" != "$wanted" ] || return 0
    say "a Python environment in $venv with $wanted"
    rm -rf "$venv"
    in_group python3 -m venv "$venv"
    # shellcheck disable=SC2086  # a list of packages
    in_group "$venv/bin/pip" install --quiet --disable-pip-version-check $wanted
    echo "$wanted" >"$venv/wanted"
}

# ---- command line -----------------------------------------------------------------------

# The simulator apart: what it is built with must not be in what is measured.
build() {
    in_group cargo build --release --locked -p longshore -p longshore-tests --bin longshore --bin longshore-bench
    [[ " $* " == *' --rows '* && "$*" != *scale* ]] || in_group cargo build --release --locked -p longshore-sim
}

# Says what is wrong with the arguments before anything is started.
case " $* " in
    *' --list '*)
        build --rows none
        exec "$target/release/longshore-bench" --list
        ;;
esac

"$root/scripts/setup.sh" bench
mkdir -p "$bench/tmp"
# Two of one checkout would measure each other.
exec 8>"$bench/lock"
flock -n 8 || die "a benchmark of this checkout is running already"
trap finish EXIT
trap 'exit 130' INT TERM HUP

build "$@"
make_venv
say "RabbitMQ and a Docker Engine of this run's own, in $services"
"$root/scripts/services.sh" up "$services" --only rabbitmq,docker-1 --while $$ 8>&-
set -a
# shellcheck source=/dev/null
. "$services/env"
set +a
DOCKER_HOST=$LONGSHORE_TEST_DOCKER_1 "$root/scripts/base-image.sh" test

# State and spools of the fleets lie on this disk, whatever /tmp is.
export TMPDIR=$bench/tmp
LONGSHORE_BENCH_DOCKER=$(docker_path)
export LONGSHORE_BENCH_DOCKER LONGSHORE_BENCH_VENV=$venv
in_group "$target/release/longshore-bench" "$@"

#!/usr/bin/env bash
# Installs what a profile needs and this machine lacks; says what before it does.
# Run twice, it finds nothing to do. No service is started by it.
#
#   setup.sh demo    an engine, a broker, and what builds a base image
#   setup.sh test    that, an image registry, prometheus, postgres, and helm
#   setup.sh chaos   what demo needs, and postgres
#   setup.sh bench   what demo needs, Python with venv, and perf
#   setup.sh lint    rustfmt, clippy, shellcheck, cargo-deny
set -euo pipefail
# shellcheck source=scripts/lib/common.sh
. "$(dirname "$0")/lib/common.sh"

cargo_deny_version=0.20.2
helm_version=v3.19.0
# The newest that a Go without toolchain downloads (before 1.21, as in Debian 12) builds.
helm_version_old_go=v3.11.3

# ---- what is missing -------------------------------------------------------------

# Each line: how to see that it is there, and the package that brings it. For the
# engine that is `dockerd`: a client alone is on many machines.
needs() {
    cat <<'END'
have dockerd        | docker.io
docker_cli --version| docker-cli
have containerd     | containerd
have rabbitmq-server| rabbitmq-server
have iptables       | iptables
have ip             | iproute2
have nsenter        | util-linux
have debootstrap    | debootstrap
static_busybox      | busybox-static
have gcc            | gcc libc6-dev
have make           | make
have xz             | xz-utils
have bzip2          | bzip2
have curl           | curl
END
    if [ "$1" = test ] || [ "$1" = chaos ]; then echo 'have_postgres       | postgresql'; fi
    if [ "$1" = test ]; then cat <<'END'
have docker-registry| docker-registry
have prometheus     | prometheus
END
    fi
    if [ "$1" = bench ]; then cat <<'END'
python_venv         | python3-venv
have perf           | linux-perf
have xargs          | findutils
END
    fi
}

lint_needs() {
    cat <<'END'
have shellcheck     | shellcheck
have gcc            | gcc libc6-dev
END
}

# Debian's Python says so only when it is asked to make one with pip.
python_venv() { have python3 && python3 -c 'import ensurepip, venv'; }

have_postgres() { have postgres || ls /usr/lib/postgresql/*/bin/postgres; }

static_busybox() { have busybox && ! ldd "$(command -v busybox)" >/dev/null 2>&1; }

missing_packages() {
    local check packages
    while IFS='|' read -r check packages; do
        $check >/dev/null 2>&1 || printf '%s\n' "$packages"
    done | xargs
}

# ---- Debian packages --------------------------------------------------------------

# Debian starts a service as it installs it, unless this file says no. A start
# would be a second engine or broker on the machine's own addresses.
without_services() {
    local policy=/usr/sbin/policy-rc.d rc=0
    if [ -e "$policy" ]; then "$@"; return; fi
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
    as_root chmod 755 "$policy"
    "$@" || rc=$?
    as_root rm -f "$policy"
    return "$rc"
}

# A machine that has just started may be installing something of its own: that is waited for.
apt_get() {
    as_root env DEBIAN_FRONTEND=noninteractive LC_ALL=C \
        apt-get -q -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300 "$@" </dev/null
}

# Without an option, apt says in passing that a list could not be had, and succeeds; and
# for the lists' lock there is none that waits.
update_lists() {
    local until=$((SECONDS + 300)) tries=3 said
    until said=$(apt_get -o APT::Update::Error-Mode=any update 2>&1 >/dev/null); do
        [[ $said == *'Could not get lock'* ]] || tries=$((tries - 1))
        if [ "$tries" = 0 ] || [ "$SECONDS" -ge "$until" ]; then
            printf '%s\n' "$said" >&2
            say "not all of Debian's package lists could be had: goes on with those that are there"
            return
        fi
        sleep 5
    done
}

# docker-cli is a package of its own since Debian 13 and part of docker.io before.
known() {
    local package
    for package; do
        if apt-cache show "$package" >/dev/null 2>&1; then echo "$package"
        elif [ "$package" != docker-cli ]; then die "Debian has no package $package here"
        fi
    done
}

install_packages() {
    local packages epmd_before=''
    [ $# -gt 0 ] || return 0
    say "installs from Debian: $* (and what they depend on); starts none of their services"
    update_lists
    packages=$(known "$@")
    if have epmd; then epmd_before=1; fi
    # shellcheck disable=SC2086  # a list of package names
    without_services apt_get install -y --no-install-recommends $packages >/dev/null
    # rabbitmq-server's installation leaves Erlang's port mapper running; it refuses
    # to end while a node is registered.
    if [ -z "$epmd_before" ] && have epmd; then epmd -kill >/dev/null 2>&1 || true; fi
}

# ---- tools that Debian lacks ---------------------------------------------------------

install_cargo_deny() {
    if have cargo-deny || [ -x "$cache/bin/cargo-deny" ]; then return; fi
    say "builds cargo-deny $cargo_deny_version into $cache/bin (some minutes)"
    cargo install --quiet --locked --root "$cache" --target-dir "$cache/cargo-deny-target" \
        cargo-deny --version "$cargo_deny_version"
    rm -rf "$cache/cargo-deny-target"
}

install_rust_components() {
    local component
    for component in rustfmt clippy; do
        if cargo "${component/rustfmt/fmt}" --version >/dev/null 2>&1; then continue; fi
        have rustup || die "cargo lacks $component, and there is no rustup to add it"
        say "adds the Rust component $component"
        rustup component add "$component"
    done
}

# Since 1.21 a Go fetches the toolchain that a module asks for.
helm_for_go() {
    local version
    version=$(go env GOVERSION)
    version=${version#go1.}
    if [ "${version%%.*}" -ge 21 ]; then echo "$helm_version"; else echo "$helm_version_old_go"; fi
}

# docs/decisions/helm-in-tests.md
install_helm() {
    if have helm || [ -x "$cache/bin/helm" ]; then return; fi
    have go || install_packages golang-go
    say "builds helm $(helm_for_go) into $cache/bin (some minutes)"
    GOBIN=$cache/bin GOFLAGS=-trimpath go install "helm.sh/helm/v3/cmd/helm@$(helm_for_go)"
}

# ---- command line -------------------------------------------------------------------

have cargo || die "needs cargo: install Rust first"
have apt-get || die "needs Debian: it installs with apt-get"
case ${1:-} in
    demo | test | bench | chaos)
        # shellcheck disable=SC2046  # a list of package names
        install_packages $(needs "$1" | missing_packages)
        if [ "$1" = test ]; then install_helm; fi
        ;;
    lint)
        # shellcheck disable=SC2046
        install_packages $(lint_needs | missing_packages)
        install_rust_components
        install_cargo_deny
        ;;
    *) usage ;;
esac

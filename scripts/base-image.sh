#!/usr/bin/env bash
# Base images for machines on which no image registry answers, put into the
# engine at DOCKER_HOST (default: Docker's own default).
#
#   base-image.sh busybox [TAG]     Debian's static busybox; default busybox:latest
#   base-image.sh debian-cc [TAG]   Debian bookworm with gcc and make;
#                                   default longshore-demo/debian-cc:bookworm
#   base-image.sh test              what the tests run in: longshore-test/*
set -euo pipefail
# shellcheck source=scripts/lib/common.sh
. "$(dirname "$0")/lib/common.sh"
# shellcheck source=scripts/lib/apt.sh
. "$(dirname "$0")/lib/apt.sh"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# ---- busybox ------------------------------------------------------------------

busybox_rootfs() {
    local to=$1 applet
    mkdir -p "$to"/{usr/bin,etc,proc,sys,dev,root,tmp,home/tester}
    chmod 1777 "$to/tmp"
    chmod 700 "$to/root"
    ln -s usr/bin "$to/bin"
    ln -s usr/bin "$to/sbin"
    cp "$(command -v busybox)" "$to/usr/bin/busybox"
    for applet in $(busybox --list); do
        [ "$applet" = busybox ] || ln -s busybox "$to/usr/bin/$applet"
    done
    printf '%s\n' root:x:0:0:root:/root:/bin/sh tester:x:1000:1000::/home/tester:/bin/sh \
        nobody:x:65534:65534::/nonexistent:/bin/false >"$to/etc/passwd"
    printf '%s\n' root:x:0: tester:x:1000: nogroup:x:65534: >"$to/etc/group"
    chown -R 1000:1000 "$to/home/tester"
}

busybox_tar() {
    have busybox || die "no busybox: scripts/setup.sh demo installs it"
    busybox_rootfs "$work/root"
    tar -C "$work/root" --numeric-owner -cf "$work/busybox.tar" .
}

# import TAR TAG [CHANGE...]
import() {
    local tar=$1 tag=$2 change
    local -a flags=()
    shift 2
    for change; do flags+=(--change "$change"); done
    docker_cli import "${flags[@]}" "$tar" "$tag" >/dev/null
}

# The second one sets what a commit would inherit: the tests look that it does not.
test_images() {
    busybox_tar
    import "$work/busybox.tar" longshore-test/busybox:latest \
        'ENV PATH=/usr/bin:/bin' 'CMD ["sh"]'
    import "$work/busybox.tar" longshore-test/configured:latest \
        'ENV PATH=/usr/bin:/bin' 'ENV FROM_IMAGE=yes' 'USER tester' 'WORKDIR /home/tester' \
        'ENTRYPOINT ["/bin/echo", "entrypoint"]' 'CMD ["cmd"]'
}

# ---- Debian with a C compiler --------------------------------------------------

packages=(gcc make libc6-dev)

# A short wait: where no registry answers we build it ourselves. The compiler is
# installed in the host's network, since the demo's own engine offers no other.
debian_pulled() {
    local tag=$1 name=longshore-base-$$
    timeout 30 "$(docker_path)" pull -q debian:bookworm-slim >/dev/null 2>&1 || return 1
    say "debian:bookworm-slim pulled; installing ${packages[*]} in it"
    if docker_cli run --name "$name" --network host debian:bookworm-slim sh -ec "
        apt-get -q update
        DEBIAN_FRONTEND=noninteractive apt-get -qy install --no-install-recommends ${packages[*]}
        apt-get clean; rm -rf /var/lib/apt/lists/*" >"$work/apt.log" 2>&1
    then docker_cli commit --change 'CMD ["bash"]' "$name" "$tag" >/dev/null
    else say "which failed: $(tail -n 1 "$work/apt.log")"
    fi
    docker_cli rm -f "$name" >/dev/null
    docker_cli image inspect "$tag" >/dev/null 2>&1
}

debian_bootstrapped() {
    local tag=$1 tar=$cache/debian-cc-bookworm.tar list
    if [ ! -f "$tar" ]; then
        have debootstrap || die "no debootstrap: scripts/setup.sh demo installs it"
        say "no image registry answers: building a Debian with debootstrap (once; kept in $tar)"
        list=$(IFS=,; echo "${packages[*]}")
        as_root debootstrap --variant=minbase --include="$list" bookworm "$work/debian" "$(debian_mirror)" \
            >"$work/debootstrap.log" 2>&1 || { tail -n 20 "$work/debootstrap.log" >&2; die "debootstrap failed"; }
        mkdir -p "$cache"
        as_root tar -C "$work/debian" --numeric-owner --exclude='./var/cache/apt/archives/*.deb' \
            --exclude='./var/lib/apt/lists/*' --exclude='./dev/*' -cf - . >"$tar.$$"
        as_root rm -rf "$work/debian"
        mv "$tar.$$" "$tar"
    fi
    import "$tar" "$tag" 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' 'CMD ["bash"]'
}

debian_cc() {
    if docker_cli image inspect "$1" >/dev/null 2>&1; then return; fi
    debian_pulled "$1" || debian_bootstrapped "$1"
}

# ---- command line ----------------------------------------------------------------

case ${1:-} in
    busybox)
        busybox_tar
        import "$work/busybox.tar" "${2:-busybox:latest}" 'ENV PATH=/usr/bin:/bin' 'CMD ["sh"]'
        ;;
    debian-cc) debian_cc "${2:-longshore-demo/debian-cc:bookworm}" ;;
    test) test_images ;;
    *) usage ;;
esac

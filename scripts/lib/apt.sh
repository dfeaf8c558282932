# shellcheck shell=bash
# Debian's archive, asked through whatever mirror this machine is configured for.
# Sourced after common.sh. Nothing under /etc/apt or /var/lib/apt is touched.

codename() { sed -n 's/^VERSION_CODENAME=//p' /etc/os-release; }

# The archive's addresses in this machine's own configuration, in whichever of the
# two formats it is written. Origin is unknown until the first `apt-get update`;
# third parties put their own word in the place of `main` or of the release.
debian_archives() {
    # shellcheck disable=SC2016  # $(...) is apt's
    apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT) $(ORIGIN)' 'Created-By: Packages' |
        awk -v release="$(codename)" '
            $2 == release && $3 == "main" && ($4 == "Debian" || $4 !~ /^[A-Za-z]/) { print $1 }' | sort -u
}

debian_mirror() { debian_archives | sed -n 1p; }

# apt with sources, lists and cache of its own below DIR.
private_apt() {
    local dir=$1
    shift
    apt-get -q -o Dir::Etc::sourcelist="$dir/sources.list" -o Dir::Etc::sourceparts=/dev/null \
        -o Dir::State="$dir/state" -o Dir::State::status=/var/lib/dpkg/status -o Dir::Cache="$dir/cache" \
        -o APT::Sandbox::User= "$@"
}

write_sources() {
    local keyring=/usr/share/keyrings/debian-archive-keyring.gpg archive signed=''
    [ ! -f "$keyring" ] || signed="[signed-by=$keyring] "
    for archive in $(debian_archives); do
        echo "deb-src $signed$archive $(codename) main"
    done >"$1"
    [ -s "$1" ] || die "found no Debian archive in this machine's apt configuration"
}

# debian_source PACKAGE: prints where the upstream tarball lies, fetched once.
debian_source() {
    local package=$1 dir=$cache/source/$1
    if ! compgen -G "$dir/*.orig.tar.*" >/dev/null; then
        mkdir -p "$dir/apt/state/lists/partial" "$dir/apt/cache/archives/partial"
        write_sources "$dir/apt/sources.list"
        say "fetching the source of $package from Debian (kept in $dir)"
        private_apt "$dir/apt" update >"$dir/apt.log" 2>&1 || { tail "$dir/apt.log" >&2; return 1; }
        (cd "$dir" && private_apt "$dir/apt" source --download-only "$package") >>"$dir/apt.log" 2>&1 ||
            { tail "$dir/apt.log" >&2; return 1; }
        rm -rf "$dir/apt"
    fi
    compgen -G "$dir/*.orig.tar.*[0-9a-z]" | grep -v '\.asc$' | sed -n 1p
}

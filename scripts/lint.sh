#!/usr/bin/env bash
# fmt, clippy, shellcheck and cargo deny. Advisories need a database from the
# network: without it the last line says so, and CI_ADVISORIES=required fails.
set -euo pipefail
# shellcheck source=scripts/lib/common.sh
. "$(dirname "$0")/lib/common.sh"
cd "$root"

"$root/scripts/setup.sh" lint

advisories() {
    local out rc=0
    out=$(timeout 300 cargo deny --color never check advisories 2>&1 </dev/null) || rc=$?
    # 124 is timeout's.
    if [ "$rc" = 0 ]; then
        echo 'advisories: ok'
    elif [ "$rc" = 124 ] || grep -q 'failed to .* advisory database' <<<"$out"; then
        echo 'advisories: NOT CHECKED (their database could not be fetched)'
        [ "${CI_ADVISORIES:-}" != required ]
    else
        echo "$out"
        return 1
    fi
}

# What is shipped has no way to break a rule: neither the features nor what they compile.
unbreakable() {
    local features
    features=$(cargo tree --locked -e features,no-dev -p longshore)
    if grep -E 'longshore-(protocol|worker|coordinator) feature "(breach|simulated)"' <<<"$features"; then
        echo 'the longshore binary is built with what only the simulator may have'
        return 1
    fi
    cargo build --quiet --locked -p longshore --bin longshore
    if grep -q longshore-can-break-its-rules "$target/debug/longshore"; then
        echo 'the longshore binary can break its rules'
        return 1
    fi
    echo 'breaches: none in the longshore binary'
}

# What the simulator holds on to: a task that is started, or a time of day that is read, past `protocol::process` is one
# that it cannot kill, stop or repeat. A real Engine's side is not simulated.
one_seam() {
    local found
    found=$(find worker/src coordinator/src/core coordinator/src/driver coordinator/src/logs -name '*.rs' \
        ! -path '*/engine/docker/*' ! -name '*tests.rs' -exec awk '
            FNR == 1 { live = 1 }
            /#\[cfg\(test\)\]/ { live = 0 }
            live && /tokio::spawn|task::spawn|SystemTime::now|Uuid::new_v4/ { print FILENAME ":" FNR ": " $0 }' {} +)
    if [ -n "$found" ]; then
        echo "past protocol::process, so the simulator does not see it:"
        echo "$found"
        return 1
    fi
    echo 'seam: nothing past protocol::process'
}

set -x
cargo fmt --all --check
cargo clippy --workspace --all-targets --locked -- -D warnings
shellcheck -x -a scripts/*.sh .ci/run
cargo deny --color never check bans licenses sources
{ set +x; } 2>/dev/null
one_seam
unbreakable
advisories

#!/usr/bin/env bash
# The demo: builds the server, then shows loading, the 22 TPC-H queries, updates while they run, and time travel.
# SF=0.1 takes a tenth of the data; KEEP=1 leaves the server running at the end.
source "$(dirname "$0")/common.sh"

"$root/scripts/setup.sh"
if ! [ -x "$CARGO_TARGET_DIR/release/lattice" ]; then
    say "Building the server (release profile)"
    note "The first build compiles every dependency: about 20 minutes on two cores, then seconds."
else
    say "Bringing the server up to date (release profile)"
fi
if [ -t 2 ]; then
    cargo build --release --locked -p lattice-server || die "the build failed; the reason stands above"
else
    mkdir -p build
    with_progress build/release.log cargo build --release --locked -p lattice-server || die "the build failed; the reason stands above"
fi
exec "$python" scripts/demo.py --binary "$CARGO_TARGET_DIR/release/lattice" --scale "${SF:-1}" ${KEEP:+--keep} "$@"

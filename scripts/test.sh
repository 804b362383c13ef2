#!/usr/bin/env bash
# Builds one profile and runs every test that fits a working day. Each stage has a time budget of its own.
# Names of stages as arguments run only those; --list shows them.
source "$(dirname "$0")/common.sh"

stages=(unit tidy slt clients server tpch crash s3)
if [ "${1:-}" = "--list" ]; then printf '%s\n' "${stages[@]}"; exit 0; fi
chosen=("$@")
[ ${#chosen[@]} -gt 0 ] || chosen=("${stages[@]}")

"$root/scripts/setup.sh"
mkdir -p build
export LATTICE_BIN="$CARGO_TARGET_DIR/debug/lattice"
passed=0 failed=0 failures=()

# stage NAME BUDGET_SECONDS COMMAND…
stage() {
    local name="$1" budget="$2" started=$SECONDS status=0
    shift 2
    case " ${chosen[*]} build " in *" $name "*) ;; *) return 0 ;; esac
    say "$name ${dim}(at most $((budget / 60)) min)${plain}"
    timeout --kill-after=20 "$budget" "$@" || status=$?
    local took=$((SECONDS - started))
    if [ "$status" -eq 0 ]; then
        passed=$((passed + 1))
        note "${green}$name passed${plain}${dim} in $took s"
    else
        failed=$((failed + 1)) failures+=("$name")
        if [ "$status" -eq 124 ]; then note "${red}$name did not finish within its $budget s${plain}"; else note "${red}$name failed${plain}${dim} after $took s"; fi
    fi
}

say "Building everything (dev profile)"
if ! [ -d "$CARGO_TARGET_DIR/debug" ]; then note "The first build compiles every dependency: about 10 minutes on two cores."; fi
if [ -t 2 ]; then cargo build --workspace --locked --all-targets || die "the build failed; the reason stands above"
else with_progress build/dev.log cargo build --workspace --locked --all-targets || die "the build failed; the reason stands above"; fi

stage unit 1200 cargo test --workspace --locked --exclude lattice-tidy -q
stage tidy 120 cargo test --locked -p lattice-tidy -q
stage slt 900 "$CARGO_TARGET_DIR/debug/slt"
stage clients 600 "$python" -m pytest -q tests/clients
stage server 300 "$python" -m pytest -q tests/server
stage tpch 900 "$python" -m pytest -q tests/tpch
stage crash 600 "$python" tests/crash/campaign.py --rounds 12 --seconds 420
[ ! -d tests/s3 ] || stage s3 600 "$python" -m pytest -q tests/s3

if [ "$failed" -gt 0 ]; then
    printf '%s\n' "${red}failed:${plain} ${failures[*]}"
    printf '%s\n' "$passed passed, $failed failed"
    exit 1
fi
printf '%s\n' "$passed passed, 0 failed"

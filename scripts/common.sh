# Shared by the scripts in this folder; sourced, not run.
# shellcheck shell=bash

set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root"

export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$HOME/.cache/latticedb/target}"
venv="$root/.venv"
python="$venv/bin/python"

if [ -t 1 ]; then bold=$'\e[1m'; dim=$'\e[2m'; red=$'\e[31m'; green=$'\e[32m'; plain=$'\e[0m'
else bold=; dim=; red=; green=; plain=; fi

say() { printf '%s\n' "${bold}==>${plain} $*"; }
note() { printf '%s\n' "    ${dim}$*${plain}"; }
die() { printf '%s\n' "${red}error:${plain} $*" >&2; exit 1; }

# Where rustup puts cargo, for shells that were opened before it was installed.
if ! command -v cargo >/dev/null 2>&1 && [ -x "$HOME/.cargo/bin/cargo" ]; then
    export PATH="$HOME/.cargo/bin:$PATH"
fi

# with_progress LOG COMMAND…: runs quietly into LOG; on a terminal it shows the newest line, elsewhere a sign of life
# every 30 seconds.
with_progress() {
    local log="$1" pid status=0 started=$SECONDS last=0
    shift
    "$@" >"$log" 2>&1 &
    pid=$!
    while kill -0 "$pid" 2>/dev/null; do
        sleep 1
        if [ -t 1 ]; then
            printf '\r\e[K    %s%4d s  %s%s' "$dim" $((SECONDS - started)) "$(tail -n 1 "$log" | cut -c 1-90)" "$plain"
        elif [ $((SECONDS - started - last)) -ge 30 ]; then
            last=$((SECONDS - started))
            printf '    %4d s  %s\n' "$last" "$(tail -n 1 "$log" | cut -c 1-90)"
        fi
    done
    if [ -t 1 ]; then printf '\r\e[K'; fi
    wait "$pid" || status=$?
    if [ "$status" -ne 0 ]; then
        tail -n 40 "$log" >&2
        printf '%s\n' "The whole output is in $log" >&2
    fi
    return "$status"
}

#!/usr/bin/env bash
# Installs what building and testing needs and is not there yet: Debian packages, and a Python environment in .venv.
# Safe to run any number of times; when everything is there it takes less than a second and says nothing.
source "$(dirname "$0")/common.sh"

command -v cargo >/dev/null 2>&1 ||
    die "no Rust toolchain found (cargo). Install one from https://rustup.rs, then run this again."

missing=()
need() { missing+=("$1"); }
command -v cc >/dev/null 2>&1 || need build-essential
command -v make >/dev/null 2>&1 || need build-essential
command -v protoc >/dev/null 2>&1 || need protobuf-compiler
[ -d /usr/include/google/protobuf ] || need libprotobuf-dev
command -v ld.lld >/dev/null 2>&1 || need lld
command -v cmake >/dev/null 2>&1 || need cmake
command -v pkg-config >/dev/null 2>&1 || need pkg-config
python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
    die "Python 3.11 or newer is needed as python3. Install it, then run this again."
if ! [ -x "$python" ]; then
    python3 -c 'import ensurepip, venv' 2>/dev/null || need python3-venv
fi
# The benchmarks compare with PostgreSQL; nothing else needs it.
if [ "${1:-}" = "--bench" ] && ! ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1; then need postgresql; fi

if [ ${#missing[@]} -gt 0 ]; then
    mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
    command -v apt-get >/dev/null 2>&1 ||
        die "missing: ${missing[*]} (Debian's names). There is no apt-get here: install them with your package manager, then run this again."
    sudo=()
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null 2>&1 ||
            die "missing: ${missing[*]}. Become root and run: apt-get install -y ${missing[*]}; then run this again."
        sudo=(sudo)
    fi
    say "Installing Debian packages: ${missing[*]}"
    mkdir -p build
    export DEBIAN_FRONTEND=noninteractive
    "${sudo[@]}" true || die "sudo was refused. Run as root: apt-get install -y ${missing[*]}; then run this again."
    with_progress build/apt.log "${sudo[@]}" apt-get update -q ||
        note "the package lists could not be refreshed; going on with the ones that are there"
    with_progress build/apt.log "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}" ||
        die "apt-get could not install ${missing[*]}. Check the network, then run this again."
fi

# A stamp of the pinned list tells whether the environment is current.
stamp="$venv/.requirements"
if ! [ -x "$python" ] || ! cmp -s tests/clients/requirements.txt "$stamp"; then
    say "Preparing a Python environment in .venv"
    mkdir -p build
    if ! [ -x "$python" ]; then
        python3 -m venv "$venv" || die "python3 -m venv failed. Install python3-venv, remove .venv, then run this again."
    fi
    with_progress build/pip.log "$python" -m pip install --disable-pip-version-check -r tests/clients/requirements.txt ||
        die "pip could not install tests/clients/requirements.txt. Check the network, then run this again."
    cp tests/clients/requirements.txt "$stamp"
fi
mkdir -p build
if [ "${1:-}" = "--bench" ] && ! cmp -s benches/requirements.txt "$stamp.bench"; then
    say "Adding the peers of the benchmarks to .venv"
    with_progress build/pip.log "$python" -m pip install --disable-pip-version-check -r benches/requirements.txt ||
        die "pip could not install benches/requirements.txt. Check the network, then run this again."
    cp benches/requirements.txt "$stamp.bench"
fi

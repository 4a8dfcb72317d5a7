# Shared by the scripts beside it; to be sourced, not run.
# shellcheck shell=bash

say() { printf '\033[1m%s\033[0m\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# need_command COMMAND PACKAGE: installs a Debian package if the command is missing and that is possible.
need_command() {
    command -v "$1" >/dev/null && return
    command -v apt-get >/dev/null || die "$1 is missing: install it and run this again"
    local sudo=()
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || die "$1 is missing: install the package $2 as root and run this again"
        sudo=(sudo)
    fi
    say "installing $2 (for $1)"
    "${sudo[@]}" apt-get update -qq || die "the package lists cannot be fetched"
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qqy "$2" >/dev/null || die "cannot install $2"
}

need_build_tools() {
    need_command cc gcc
    need_command c++ g++
    need_command cargo cargo
    local needed found
    needed=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    found=$(rustc --version | cut -d' ' -f2)
    [ "$(printf '%s\n' "$needed" "$found" | sort -V | head -n1)" = "$needed" ] ||
        die "Rust $needed or newer is needed, this is $found: update it (with rustup: rustup update stable)"
}

need_pip() {
    command -v apt-get >/dev/null || die "Python's pip is missing: install it and run this again"
    say "installing python3-pip"
    need_command pip3 python3-pip
}

# Sets stub_libraries to a folder with empty libraries under the names that cudarc has the linker look for. Nothing of them is
# used: scripts/cuda/rustc has the real ones opened at run time.
need_stub_libraries() {
    stub_libraries=$(realpath -m "${CARGO_TARGET_DIR:-target}")/cuda-stubs
    mkdir -p "$stub_libraries"
    local name
    for name in cuda nvrtc curand cublas cublasLt cudart; do
        [ -e "$stub_libraries/lib$name.a" ] || ar rcs "$stub_libraries/lib$name.a"
    done
}

#!/bin/sh
# What the build needs besides Rust: a C compiler (the linker of Rust, and TLS) and libclang, with
# which the userfaultfd crate reads the kernel's headers. Installs what is missing through apt, as
# root or with sudo; says what to do where it cannot. Safe to run again and again.
set -eu

# libclang itself: libclang-cpp, which comes with LLVM's tools, is another library and will not do.
have_libclang() {
    [ -n "${LIBCLANG_PATH:-}" ] && return 0
    libdir=
    command -v llvm-config >/dev/null 2>&1 && libdir=$(llvm-config --libdir)
    for library in /usr/lib/llvm-*/lib/libclang*.so* /usr/lib/*-linux-gnu/libclang*.so* \
        /usr/lib64/libclang*.so* /usr/lib64/llvm*/lib/libclang*.so* /usr/local/lib/libclang*.so* \
        ${libdir:+"$libdir"/libclang*.so*}; do
        case $library in
        *libclang-cpp*) ;;
        *) [ -e "$library" ] && return 0 ;;
        esac
    done
    return 1
}

if ! command -v cargo >/dev/null 2>&1; then
    echo "setup: cargo is missing. Install Rust from https://rustup.rs and open a new shell." >&2
    exit 1
fi

packages=
command -v cc >/dev/null 2>&1 || packages="gcc libc6-dev"
[ -e /usr/include/linux/userfaultfd.h ] || packages="$packages linux-libc-dev libc6-dev"
have_libclang || packages="$packages libclang-dev"
[ -n "$packages" ] || exit 0

# shellcheck disable=SC2086 # the list is meant to be split
install() {
    echo "setup: installing $packages"
    "$@" apt-get update -qq
    "$@" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages
}
explain() {
    echo "setup: the build needs what these packages bring: $packages" >&2
    echo "setup: $1" >&2
    echo "setup: on Debian and Ubuntu:  sudo apt-get install $packages" >&2
    echo "setup: on Fedora:             sudo dnf install gcc clang-devel kernel-headers" >&2
    echo "setup: a libclang elsewhere:  export LIBCLANG_PATH=/its/folder" >&2
    exit 1
}

command -v apt-get >/dev/null 2>&1 || explain "there is no apt-get here to install them with."
if [ "$(id -u)" = 0 ]; then
    install || explain "apt-get failed, see above."
elif command -v sudo >/dev/null 2>&1 && { [ -t 0 ] || sudo -n true 2>/dev/null; }; then
    install sudo || explain "sudo apt-get failed, see above."
else
    explain "neither root nor sudo is at hand to install them with."
fi

#!/usr/bin/env bash
# Compares what src/symbols.rs declares with HIXL's public headers, and with those of hcomm that they include. Without
# arguments they are fetched from the public repositories for the run, and never kept.
# usage: plugins/hixl/tests/headers.sh [checkout of hixl] [checkout of hcomm]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The checkout that was given, or a new one.
checkout() {
    if [ -n "$2" ]; then
        echo "$2"
        return
    fi
    if ! GIT_TERMINAL_PROMPT=0 timeout 120 git clone -q --depth 1 "https://gitcode.com/cann/$1.git" "$work/$1"; then
        echo "nothing was compared: the public repository of $1 can't be had; give a checkout of it" >&2
        exit 2
    fi
    echo "$work/$1"
}

# Where the checkout has that header.
header() {
    local found
    found=$(find "$1" -name "$2" -path '*include*' | sort | head -1)
    if [ -z "$found" ]; then
        echo "nothing was compared: there is no $2 in $1" >&2
        exit 2
    fi
    echo "$found"
}

hixl=$(checkout hixl "${1:-}")
hcomm=$(checkout hcomm "${2:-}")
interface=$(header "$hixl" hixl_cs.h)
resources=$(header "$hcomm" hcomm_res_defs.h)
mkdir -p "$work/include/hcomm"
cp "$resources" "$work/include/hcomm/"
cp "$interface" "$work/include/"
# their inline functions want these of a library that the headers don't come with
cat > "$work/include/securec.h" << 'END'
#include <stddef.h>
#define EOK 0
typedef int errno_t;
extern "C" errno_t memset_s(void *, size_t, int, size_t);
END
c++ -std=c++17 -fsyntax-only -I"$work/include" "$here/headers.cc"
for checkout in "$hixl" "$hcomm"; do
    version=$(git -C "$checkout" log -1 --format='%h of %cs' 2> /dev/null || echo "no commit known")
    echo "$(basename "$checkout"): $version"
done
echo "declarations agree"

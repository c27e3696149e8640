#!/usr/bin/env bash
# Makes an environment for the loaders that tools/bench_loader.py compares with, beside what .venv has already (torch, ffcv,
# torchvision, webdataset, simplejpeg): DALI, LitData and MosaicML Streaming, and erow's fork of ffcv, which needs cmake, nasm
# and a libjpeg-turbo of version 3 that is built too. What does not install is left out of the table.
# Usage: tools/bench_loader_setup.sh DIR     then: python tools/bench_loader.py --peers DIR ...
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
dir=${1:?a folder for the environment}
python=$PWD/.venv/bin/python

mkdir -p "$dir"
dir=$(cd "$dir" && pwd)

# An environment that sees what .venv has; what is installed there comes first.
beside() {
    "$python" -m venv "$1"
    "$1/bin/python" - "$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" <<'EOF'
import sys, sysconfig
with open(sysconfig.get_path("purelib") + "/beside.pth", "w") as file:
    file.write(f"import site; site.addsitedir({sys.argv[1]!r})\n")
EOF
}

build_fork() {
    [[ -d $dir/turbo ]] || git clone -q --depth 1 "${TURBO:-https://github.com/libjpeg-turbo/libjpeg-turbo}" "$dir/turbo"
    [[ -d $dir/erow ]] || git clone -q --depth 1 "${EROW:-https://github.com/erow/ffcv}" "$dir/erow"
    cmake -S "$dir/turbo" -B "$dir/turbo/build" -DCMAKE_INSTALL_PREFIX="$dir/prefix" -DCMAKE_INSTALL_LIBDIR=lib \
        -DCMAKE_BUILD_TYPE=Release -DENABLE_STATIC=0 -DREQUIRE_SIMD=1
    cmake --build "$dir/turbo/build" --target install
    PKG_CONFIG_PATH=$dir/prefix/lib/pkgconfig LDFLAGS=-Wl,-rpath,$dir/prefix/lib \
        "$dir/fork/bin/pip" install --no-deps "$dir/erow"
}

beside "$dir/env"
for package in nvidia-dali-cuda130 litdata mosaicml-streaming; do
    if "$dir/env/bin/pip" install -q "$package" >"$dir/$package.log" 2>&1; then
        echo "ready: $package"
    else
        echo "left out: $package ($(tail -n 1 "$dir/$package.log"))"
    fi
done
beside "$dir/fork"
if (set -e; build_fork) >"$dir/fork.log" 2>&1; then
    echo "ready: erow/ffcv"
else
    echo "left out: erow/ffcv ($(tail -n 1 "$dir/fork.log"))"
    rm -rf "$dir/fork"
fi

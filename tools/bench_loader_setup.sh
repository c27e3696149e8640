#!/usr/bin/env bash
# Makes an environment for the loaders that tools/bench_loader.py compares with, beside what .venv has already (torch, ffcv,
# torchvision, webdataset, simplejpeg): DALI, LitData and MosaicML Streaming. What does not install is left out of the table.
# Usage: tools/bench_loader_setup.sh DIR     then: python tools/bench_loader.py --peers DIR/env ...
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
dir=${1:?a folder for the environment}
python=$PWD/.venv/bin/python

"$python" -m venv "$dir/env"
# What .venv has is seen from there too; what is installed there comes first.
"$dir/env/bin/python" - "$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" <<'EOF'
import site, sys, sysconfig
with open(sysconfig.get_path("purelib") + "/beside.pth", "w") as file:
    file.write(f"import site; site.addsitedir({sys.argv[1]!r})\n")
EOF
for package in nvidia-dali-cuda130 litdata mosaicml-streaming; do
    if "$dir/env/bin/pip" install -q "$package" >"$dir/$package.log" 2>&1; then
        echo "ready: $package"
    else
        echo "left out: $package ($(tail -n 1 "$dir/$package.log"))"
    fi
done

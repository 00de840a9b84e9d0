#!/usr/bin/env bash
# Sony's Model Compression Toolkit pins libraries that do not resolve with ours: its code alone goes
# into a folder of its own and runs on the libraries of .venv.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
target=$root/.peers/mct
if [ ! -d "$target" ]; then
    rm -rf "$target.partial"
    "$root/.venv/bin/python" -m pip install -q --no-deps --target "$target.partial" \
        model-compression-toolkit==2.6.1 mct-quantizers==1.7.0 edge-mdt-cl==1.1.1 PuLP==3.3.2 \
        tensorboard==2.21.0 tensorboard-data-server==0.7.2 absl-py==2.5.1 werkzeug==3.1.9
    mv "$target.partial" "$target"
fi

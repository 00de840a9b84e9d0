#!/usr/bin/env bash
# DeepSparse 1.8.0 (its last) needs numpy 1 and an old onnx, which do not resolve with ours: it gets
# an environment of its own, with this engine beside it. effcv and alcs are put there from their
# sources each time, so that both sides of a comparison are what lies here.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
target=$root/.peers/deepsparse
if [ ! -x "$target/bin/python" ]; then
    rm -rf "$target.partial"
    "$root/.venv/bin/python" -m venv --copies "$target.partial"
    "$target.partial/bin/python" -m pip install -q deepsparse==1.8.0 "numpy<2" \
        safetensors==0.8.0 threadpoolctl==3.8.0
    mv "$target.partial" "$target"
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for package in shared packages/alcs; do
    "$root/.venv/bin/python" -m pip wheel -q --no-deps --no-build-isolation \
        -C build-dir="$work/build" -w "$work" "$root/$package"
done
"$target/bin/python" -m pip install -q --no-deps --force-reinstall "$work"/*.whl

#!/usr/bin/env bash
# The native kernels under the address and undefined-behaviour sanitizers: builds them so, runs the checks.
# usage: sanitized.sh PYTHON
set -euo pipefail
python=${1:?usage: sanitized.sh PYTHON}
here=$(cd "$(dirname "$0")" && pwd)
compiler=${CXX:-c++}
runtime=$("$compiler" -print-file-name=libasan.so)
if [ ! -e "$runtime" ]; then
    echo "sanitizers skipped: $compiler has no libasan.so"
    exit 0
fi
# with the C++ runtime, which the sanitizer must find before torch throws its first exception
preloaded="$runtime $("$compiler" -print-file-name=libstdc++.so)"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
isas=
for isa in avx512 avx2; do
    if grep -qw "${isa/avx512/avx512f}" /proc/cpuinfo 2>/dev/null; then isas="$isas $isa"; else echo "$isa: not on this processor"; fi
done
flags='["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-O1", "-g1"]'
"$python" -c "from pathlib import Path; from globalcnn.ops.native.build import build
build(extra=$flags, isas='$isas'.split(), to=Path('$folder/sanitized.so'))"
check() { # ISA; what Python itself leaves behind at exit is not looked at; the library is the last word on the rest
    export LD_PRELOAD=$preloaded ASAN_OPTIONS=detect_leaks=0 GLOBALCNN_ISA=$1
    export GLOBALCNN_NATIVE_LIBRARY=$folder/sanitized.so
    "$python" "$here/native_checks.py" --few
    cd "$here/../.."
    "$python" -m tests.ops.wrong_arguments --count 10
    if "$python" -c "import onnx, onnxruntime" 2>/dev/null; then
        "$python" -m pytest -q -p no:cacheprovider tests/engines/test_own_operator.py -k "pytorch_operator or does_not_fit"
    fi
}
# side by side: each is one thread for the most part
declare -A checks
for isa in $isas plain; do
    (check "$isa") >"$folder/$isa.log" 2>&1 &
    checks[$isa]=$!
done
failed=0
for isa in $isas plain; do
    wait "${checks[$isa]}" || failed=1
    cat "$folder/$isa.log"
done
exit $failed

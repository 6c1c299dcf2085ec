#!/usr/bin/env bash
# Everything that only a card can show, in a few minutes: benchmarks/on_a_card.sh [--cpu] [--minutes N] [--scores DIR] [--out DIR]
#
# Runs from a copy of this repository (its files alone, no .git; a built kernel travels if it is there) on one card, without a
# network: the tests marked `gpu`, the worker's benchmark, a rendering of scores with all cores, a training in the time that
# remains, and its evaluation as recorded and matched. Leaves at most 9 MB in --out: weights, log, figures.
# PYTHON names a Python with what `pip install '.[gpu,train,test]'` installs. Without --scores it trains on our composer's music.
# --cpu rehearses all of it on a machine without a card, by a smaller recipe.
set -uo pipefail
cd "$(dirname "$0")/.."

device=cuda minutes=8 scores="" out=on-a-card python=${PYTHON:-python3}
while [ $# -gt 0 ]; do
    case $1 in
        --cpu) device=cpu ;;
        --minutes) minutes=$2; shift ;;
        --scores) scores=$2; shift ;;
        --out) out=$2; shift ;;
        *) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 2 ;;
    esac
    shift
done
export PYTHONPATH=$PWD OMP_WAIT_POLICY=PASSIVE PYTHONUNBUFFERED=1
seconds=$(awk -v minutes="$minutes" 'BEGIN { print int(minutes * 60) - 10 }')
left() { echo $((seconds - SECONDS > 1 ? seconds - SECONDS : 1)); }
share() { echo $(($(left) * $1 / 100 + 1)); } # per cent of what is left
say() { echo "[${SECONDS} s] $*"; }
mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Nothing else is begun where it could not end well: the device, and what Python needs.
PHALAR_DEVICE=$device PHALAR_DATA=$work timeout 60 "$python" -m service.commands doctor >"$out/doctor.txt" 2>&1 || {
    cat "$out/doctor.txt"
    exit 1
}
[ "$device" = cpu ] || nvidia-smi >>"$out/doctor.txt" 2>&1 || true
cat "$out/doctor.txt"

say "tests marked gpu"
timeout "$(share 20)" "$python" -m pytest -q -m gpu -p no:cacheprovider tests/gpu >"$out/tests.txt" 2>&1
say "$(tail -n 1 "$out/tests.txt")"

say "the worker's benchmark"
[ "$device" = cpu ] && most=$(share 5) || most=$(share 15)
timeout $((most + 15)) "$python" -m benchmarks.micro_batches --device "$device" --most-seconds "$most" \
    >"$out/micro-batches.jsonl" 2>"$work/errors" || tail -n 3 "$work/errors"
tail -n 2 "$out/micro-batches.jsonl"

recipe=paper split=validation
if [ "$device" = cpu ]; then # a rehearsal: few tracks, none of them held out
    recipe=$work/rehearsal.toml split=all
    printf 'extends = "%s"\nbatch = 2\n[data]\ncomposed = 8\n' "$PWD/model/training/recipes/smoke.toml" >"$recipe"
fi
stems=()
if [ -n "$scores" ]; then
    say "rendering scores with all cores"
    timeout "$(share 25)" "$python" -m service.commands train render "$scores" "$work/rendered" >"$out/render.txt" 2>&1
    stems=(--stems "$work/rendered")
elif [ "$device" != cpu ]; then
    printf 'extends = "%s"\n[data]\ncomposed = 240\n' "$PWD/model/training/recipes/paper.toml" >"$work/paper.toml"
    recipe=$work/paper.toml
fi
train() { # steps, folder, seconds
    timeout "$3" "$python" -m service.commands train "$recipe" "${stems[@]}" --device "$device" --steps "$1" --out "$2" \
        --cache "$work/cache" >>"$out/train.txt" 2>&1
}

fit=4
if [ "$device" != cpu ]; then
    say "a few steps, to learn how many fit"
    train 30 "$work/few" "$(share 50)" || { tail -n 3 "$out/train.txt"; say "no training"; exit 1; }
    fit=$("$python" - "$work/few/log.jsonl" "$(share 50)" <<'PYTHON'
import json, statistics, sys
took = [sum(json.loads(line)["timing_s"].values()) for line in open(sys.argv[1])]
print(max(1, int(float(sys.argv[2]) / statistics.median(took))))
PYTHON
)
fi
say "training: $fit steps"
train "$fit" "$work/run" "$(share 85)" || say "it did not end in time"
if [ -f "$work/run/model.safetensors" ]; then
    gzip -9 -c "$work/run/model.safetensors" >"$out/model.safetensors.gz"
    say "evaluation, as recorded and matched"
    [ "${#stems[@]}" -gt 0 ] || stems=(--stems "$(find "$work/cache" -maxdepth 1 -name 'composed-*' | head -n 1)")
    timeout "$(left)" "$python" -m service.commands evaluate retrieval "${stems[@]}" --matched --device "$device" \
        --checkpoint "$work/run/model.safetensors" --split $split --candidates 2,4,8 --cache "$work/cache" --json \
        >"$out/evaluation.json" 2>"$work/errors" || tail -n 3 "$work/errors"
fi
[ -f "$work/run/log.jsonl" ] && tail -c 500000 "$work/run/log.jsonl" | gzip -9 >"$out/log.jsonl.gz"
say "done: $(du -sk "$out" | cut -f 1) KiB in $out"

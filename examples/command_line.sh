#!/usr/bin/env bash
# From the command line: look, check, plan, apply, look again. Usage: examples/command_line.sh [FOLDER]
set -eu
out=${1:-build/example}
spec=$(mktemp --suffix .surgery)
trap 'rm -f "$spec"' EXIT
cat > "$spec" <<'SPEC'
model zoo:digits-dit
data digits samples=50 steps=5
prune tail 66% of class embeddings
require loss <= 1.02x; require parameters <= 0.75x
SPEC

surgery sites zoo:digits-dit                                # what there is to cut
surgery check "$spec"                                       # what the spec means
surgery plan "$spec" -o "$out.plan.json"                    # what it would cut; nothing is read but shapes
surgery apply "$out.plan.json" --out "$out" --no-compile    # cut it, prove it, save it
surgery show "$out" --touched                               # the rewritten graph, and the clause behind each line
surgery diff zoo:digits-dit "$out"                          # what changed

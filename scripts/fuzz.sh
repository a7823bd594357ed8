#!/bin/sh
# Fuzzes every parser for a while: FUZZTIME, default 60s each.
set -eu
for file in $(grep -rl --include='*_test.go' '^func Fuzz' .); do
	pkg=$(dirname "$file")
	for f in $(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\).*/\1/p' "$file"); do
		echo "$pkg $f"
		go test "$pkg" -run '^$' -fuzz "^$f\$" -fuzztime "${FUZZTIME:-60s}"
	done
done

#!/usr/bin/env bash
# One night: measures a suite, holds it against the run that was accepted, asks every alarm once more, and writes report and site.
#
#   SUITE    what is measured           (suites/nightly.yaml)       NAME     the suite's name          (nightly)
#   RESULTS  the history of all nights  (history/results)           OUT      what tonight writes       (night)
#   POLICY   what a gate lets pass      (suites/policy.yaml)        TRACKER  where issues are opened   (nowhere)
#   PULL     comment on this pull request instead of opening issues (none)
#
# TRACKER is `--github OWNER/NAME` or `--gitlab PROJECT`, the token in $GITHUB_TOKEN or $GITLAB_TOKEN. Exit code: 0 green, 1 red,
# 2 bad input. Interrupted, the same command goes on with the same night.
set -euo pipefail
suite=${SUITE:-suites/nightly.yaml} name=${NAME:-nightly} results=${RESULTS:-history/results} out=${OUT:-night}
policy=${POLICY:-suites/policy.yaml}
mkdir -p "$out"
rm -f "$out"/verdict.*

quant-harness run "$suite" --results "$results" --report "$out/report.html" --next
if [ ! -e "$results/$name/journal" ]; then
  quant-harness accept latest --results "$results/$name" --who "${USER:-night.sh}" --why "the first night"
  quant-harness site "$results" -o "$out/site"
  exit 0
fi

verdict=0
quant-harness gate accepted latest --results "$results/$name" --policy "$policy" --confirm "$suite" --keep \
  --json "$out/verdict.json" --markdown "$out/verdict.md" --junit "$out/verdict.xml" --html "$out/verdict.html" || verdict=$?
quant-harness site "$results" -o "$out/site"
if [ -n "${TRACKER:-}" ] && [ -f "$out/verdict.json" ]; then
  read -r -a tracker <<< "$TRACKER"
  quant-harness announce "$out/verdict.json" "${tracker[@]}" ${PULL:+--pull "$PULL"}
fi
exit "$verdict"

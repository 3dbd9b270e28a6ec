#!/usr/bin/env bash
# System packages that a few tests use, installed as root only; without root, say which tests are left out.
set -euo pipefail
missing=()
bidi=/usr/share/unicode/BidiCharacterTest.txt
if ! [ -e "$bidi" ] && ! [ -e "$bidi.gz" ]; then
  missing+=(unicode-data)  # conformance tests of the bidirectional algorithm
fi
if ! /usr/bin/python3 -c 'import cairo, gi; gi.require_version("PangoCairo", "1.0")' 2>/dev/null; then
  missing+=(python3-gi python3-gi-cairo gir1.2-pango-1.0)  # comparison with Pango-Cairo
fi
if ! PATH=$PATH:/usr/sbin command -v slurmctld >/dev/null || ! PATH=$PATH:/usr/sbin command -v munged >/dev/null; then
  missing+=(slurm-wlm munge)  # jobs on a SLURM that the tests start themselves
fi
if ! command -v chromium-headless-shell chromium chromium-browser google-chrome >/dev/null; then
  missing+=(chromium-headless-shell)  # the HTML report looked at in a real browser
fi
if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "set-up: Debian packages ${missing[*]}"
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${missing[@]}"; } >/dev/null ||
      echo "set-up: they could not be installed; the tests that use them are left out"
  else
    echo "set-up: no root: the tests that use these Debian packages are left out: ${missing[*]}"
  fi
fi

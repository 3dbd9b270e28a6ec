#!/usr/bin/env bash
# System packages that a few tests use, installed as root only; without root, say which tests are left out.
set -euo pipefail
PATH=$PATH:/usr/sbin
missing=()  # groups: packages that are of no use without each other
bidi=/usr/share/unicode/BidiCharacterTest.txt
if ! [ -e "$bidi" ] && ! [ -e "$bidi.gz" ]; then
  missing+=("unicode-data")  # conformance tests of the bidirectional algorithm
fi
if ! /usr/bin/python3 -c 'import cairo, gi; gi.require_version("PangoCairo", "1.0")' 2>/dev/null; then
  missing+=("python3-gi python3-gi-cairo gir1.2-pango-1.0")  # comparison with Pango-Cairo
fi
if ! command -v slurmctld >/dev/null || ! command -v munged >/dev/null; then
  missing+=("slurm-wlm munge")  # jobs on a SLURM that the tests start themselves
fi
if ! command -v chromium-headless-shell chromium chromium-browser google-chrome >/dev/null; then
  missing+=("chromium-headless-shell")  # the HTML report looked at in a real browser
fi
[ ${#missing[@]} -gt 0 ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "set-up: no root: the tests that use these Debian packages are left out: ${missing[*]}"
  exit 0
fi
echo "set-up: Debian packages ${missing[*]}"
apt-get update -qq >/dev/null || true
for group in "${missing[@]}"; do
  # shellcheck disable=SC2086
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $group >/dev/null ||
    echo "set-up: $group could not be installed; the tests that use it are left out"
done

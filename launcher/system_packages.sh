#!/usr/bin/env bash
# System packages that a few tests use, installed as root only; without root, say which tests are left out.
set -euo pipefail
bidi=/usr/share/unicode/BidiCharacterTest.txt
if ! [ -e "$bidi" ] && ! [ -e "$bidi.gz" ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "set-up: Debian package unicode-data (conformance tests of the bidirectional algorithm)"
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq unicode-data; } >/dev/null ||
      echo "set-up: unicode-data could not be installed; Unicode's own bidi conformance tests are left out"
  else
    echo "set-up: no root: Unicode's own bidi conformance tests (Debian package unicode-data) are left out"
  fi
fi

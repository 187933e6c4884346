# Sourced by the other scripts: where things are, and how they speak.
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=$ROOT/.venv
cd "$ROOT"

# A user's PATH may lack the sbin directories, where mkfs.ext4 and others live.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
export VSCSI_EMU_CACHE=${VSCSI_EMU_CACHE:-$ROOT/.cache}
# One interpreter for every build of the native module, or each builder rebuilds the other's.
export PYO3_PYTHON=$VENV/bin/python
export PIP_DISABLE_PIP_VERSION_CHECK=1

say() { printf '\033[1m%s\033[0m\n' "── $*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# as_root COMMAND…: runs it as root, or fails without asking for a password.
as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}
can_be_root() { [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null; }

# apt_install PACKAGE…: installs, or says what to run and returns 1.
apt_install() {
    if ! can_be_root; then
        printf 'missing packages; as root, run:\n    apt-get install %s\n' "$*" >&2
        return 1
    fi
    say "installing $*"
    local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install)
    as_root "${apt[@]}" "$@" >&2 || { as_root apt-get -q update >&2 && as_root "${apt[@]}" "$@" >&2; }
}

# use_cargo: puts a cargo of at least 1.85 on PATH; returns 1 if there is none.
use_cargo() {
    local place version
    for place in "" "${CARGO_HOME:-$HOME/.cargo}/bin:"; do
        version=$(PATH=$place$PATH rustc --version 2>/dev/null | sed -E 's/^rustc ([0-9.]+).*/\1/') || true
        [ -n "$version" ] && PATH=$place$PATH cargo --version >/dev/null 2>&1 || continue
        if printf '1.85\n%s\n' "$version" | sort -VC; then
            export PATH=$place$PATH
            return 0
        fi
    done
    return 1
}

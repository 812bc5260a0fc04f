#!/usr/bin/env bash
# Installs what tests/jobs/cluster.py starts (SLURM, munge, and for accounting slurmdbd and MariaDB) on Debian or Ubuntu,
# as root. Does nothing where everything is there already.
set -euo pipefail

# mariadb-server-core, not mariadb-server: the program without a system-wide database, user and service.
packages=(slurm-wlm slurmdbd munge mariadb-server-core mariadb-client-core)

missing=()
for package in "${packages[@]}"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

# The packages start their services when they are set up; every cluster of the tests brings its own. 101 forbids starting.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi

export DEBIAN_FRONTEND=noninteractive
wait_for_lock=(-o DPkg::Lock::Timeout=300)
apt-get "${wait_for_lock[@]}" update -qq
apt-get "${wait_for_lock[@]}" install -y -qq --no-install-recommends "${missing[@]}"

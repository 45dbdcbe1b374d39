#!/bin/bash
# driverctl.sh : driverctl of this machine's Debian release, a script for bash.
#
#   CACHE/driverctl/bin/driverctl
#
# No root. Less than 1 MB stays.
set -eu
. "$(dirname "$0")/component.sh"
begin driverctl 1
apt_open "$(host_suite driverctl)"
fetch driverctl
unpack "$new/tree"
mkdir "$new/bin"
cp "$new/tree/usr/sbin/driverctl" "$new/bin/driverctl"
rm -rf "$new/tree"
run bash -n "$new/bin/driverctl"
finish

#!/bin/bash
# uapi.sh : the headers that Linux 7.2 gives to programs (package linux-libc-dev of trixie-backports).
#
#   CACHE/uapi/usr/include/{linux,asm,asm-generic,...}   compile with -isystem CACHE/uapi/usr/include
#   CACHE/uapi/version                                   the package's version
#
# No root. 10 MB stay.
set -eu
. "$(dirname "$0")/component.sh"
begin uapi 2
apt_open trixie-backports
version=$(newest linux-libc-dev 7.2)
[ -n "$version" ] || die "trixie-backports has no linux-libc-dev 7.2.*"
fetch "linux-libc-dev=$version"
unpack "$new"
rm -rf "$new/usr/share"
for folder in "$new"/usr/include/*-linux-*; do
  case ${folder##*/} in x86_64-linux-gnu) ;; *) rm -rf "$folder" ;; esac
done
ln -s x86_64-linux-gnu/asm "$new/usr/include/asm"
for header in linux/vfio.h linux/iommufd.h asm/types.h; do
  [ -r "$new/usr/include/$header" ] || die "linux-libc-dev $version holds no $header"
done
echo "$version" >"$new/version"
finish

#!/bin/bash
# guest.sh : QEMU 11.1, and a Linux 7.2 kernel with its modules and a static busybox to boot in it.
#
#   CACHE/guest/tree                         Debian trixie and trixie-backports packages, unpacked
#   CACHE/guest/vmlinux                      the kernel, uncompressed: QEMU starts it without a decompressor, a third faster
#   CACHE/guest/bin/{qemu-system-x86_64,xz}  start the tree's programs with the tree's own loader and libraries
#   CACHE/guest/kernel                       the kernel's release, as in tree/usr/lib/modules/RELEASE
#
# No root. About 230 MB are fetched, 390 MB stay.
set -eu
. "$(dirname "$0")/component.sh"
begin guest 1
need dpkg-deb

apt_open trixie trixie-backports
series=7.2
version=$(newest linux-image-amd64 $series)
[ -n "$version" ] || die "trixie-backports has no linux-image-amd64 $series.*"
[ -n "$(newest qemu-system-x86 11.1)" ] || die "trixie-backports has no qemu-system-x86 11.1"
# The metapackage would bring an initramfs generator; what it names are the kernel and its modules.
kernel=$(apt_query depends "linux-image-amd64=$version" | sed -n "s/.*Depends: linux-image-\($series\.[^ ]*\).*/\1/p")
[ -n "$kernel" ] || die "linux-image-amd64 $version names no kernel"
parts=
for part in "linux-base-$kernel" "linux-modules-$kernel" "linux-binary-$kernel"; do
  [ -z "$(apt_query madison "$part")" ] || parts="$parts $part"
done
packages=$(closure trixie-backports qemu-system-x86 xz-utils zstd kmod)
extra="busybox-static ${parts:-linux-image-$kernel}"
say "fetching QEMU, Linux $kernel and the libraries"
fetch $packages $extra
tree=$new/tree
mkdir -p "$tree/usr/bin" "$tree/usr/sbin" "$tree/usr/lib" "$tree/usr/lib64"
for part in bin sbin lib lib64; do ln -s "usr/$part" "$tree/$part"; done
say "unpacking"
unpack "$tree"
rm -rf "$tree/usr/share/doc" "$tree/usr/share/man" "$tree/usr/share/locale" "$tree/usr/share/info" "$tree/var"
[ -d "$tree/usr/lib/modules/$kernel" ] || die "the kernel packages hold no modules of $kernel"

mkdir "$new/bin"
starter() { # starter NAME PROGRAM [ARGS]
  cat >"$new/bin/$1" <<END
#!/bin/sh
tree=\$(dirname "\$(dirname "\$(readlink -f "\$0")")")/tree
exec "\$tree/lib64/ld-linux-x86-64.so.2" --argv0 $1 --library-path "\$tree/usr/lib/x86_64-linux-gnu" "\$tree/$2" ${3:-}"\$@"
END
  chmod 755 "$new/bin/$1"
}
starter qemu-system-x86_64 usr/bin/qemu-system-x86_64 '-L "$tree/usr/share/qemu" -L "$tree/usr/share/seabios" '
starter xz usr/bin/xz
starter zstd usr/bin/zstd
starter depmod usr/bin/kmod

PATH=$new/bin:$PATH
modules=$tree/usr/lib/modules/$kernel
[ -s "$modules/modules.dep" ] || run depmod -b "$tree" "$kernel"
image=$(ls "$tree/boot/vmlinuz-$kernel" "$modules/vmlinuz" 2>/dev/null | head -n 1)
[ -n "$image" ] || die "the kernel packages hold no image"
magic=$(LC_ALL=C grep -abo "$(printf '\050\265\057\375')" "$image" | head -n 1 | cut -d: -f1)
[ -n "$magic" ] || die "the kernel image is not zstd-compressed"
# What follows the compressed frame is no zstd: that error is expected, the ELF header tells success.
tail -c "+$((magic + 1))" "$image" | zstd -dc >"$new/vmlinux" 2>>"$log" || true
[ "$(head -c 4 "$new/vmlinux" | tail -c 3)" = ELF ] || die "no ELF kernel came out of $image"
rm -f "$image"
echo "$kernel" >"$new/kernel"

[ -x "$tree/usr/bin/busybox" ] || die "the tree holds no busybox"
"$new/bin/qemu-system-x86_64" --version >>"$log" 2>&1 || die "the unpacked QEMU does not start (log: $log)"
finish

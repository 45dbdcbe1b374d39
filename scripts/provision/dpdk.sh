#!/bin/bash
# dpdk.sh : DPDK of this machine's Debian release: headers, libraries and drivers to compile and run programs with.
#
#   CACHE/dpdk/tree                    the packages, unpacked
#   CACHE/dpdk/driver                  the headers for drivers, which Debian's package leaves out (from its source package)
#   CACHE/dpdk/{cflags,ldflags}        one line each, for the compiler (absolute paths; the run path is in ldflags)
#   CACHE/dpdk/pmds                    link to the folder of driver plug-ins, for EAL's option -d
#
# No root. 30 MB stay.
set -eu
. "$(dirname "$0")/component.sh"
begin dpdk 1
need xz tar
suite=$(host_suite dpdk-dev)
sources=yes
apt_open "$suite"
eal=$(apt_query pkgnames librte-eal | head -n 1)
[ -n "$eal" ] || die "$suite has no librte-eal"
abi=${eal#librte-eal}
libraries="librte-bus-pci$abi librte-dmadev$abi librte-dma-idxd$abi librte-dma-ioat$abi librte-mempool-ring$abi"
# The machine has the C library and its like.
packages=$(closure "$suite" $libraries | grep -vE '^(libc6|libgcc-s1|gcc-[0-9]+-base|libcrypt1)=')
say "fetching $eal and $(echo $packages | wc -w) more"
fetch $packages libdpdk-dev dpdk
unpack "$new/tree"
lib=usr/lib/x86_64-linux-gnu
find "$new/tree/$lib" -name '*.a' -delete
rm -rf "$new/tree/usr/share/doc" "$new/tree/usr/share/man" "$new/tree/usr/share/locale"
find "$new/tree" -xtype l -delete

mkdir -p "$new/.source" "$new/driver"
(cd "$new/.source" && apt --download-only source dpdk) || exit 1
origin=$(ls "$new"/.source/dpdk_*.orig.tar.xz 2>/dev/null | head -n 1)
[ -n "$origin" ] || die "the source package of dpdk is not as expected"
run tar -xJf "$origin" -C "$new/.source" --wildcards '*/bus_pci_driver.h' '*/bus_driver.h' '*/dev_driver.h' '*/rte_dmadev_pmd.h'
find "$new/.source" -name '*.h' -exec cp {} "$new/driver" \;
rm -rf "$new/.source"
[ -r "$new/driver/bus_pci_driver.h" ] || die "the source package of dpdk holds no bus_pci_driver.h"

pmds=$(cd "$new/tree/$lib/dpdk" && ls -d pmds-* | head -n 1)
ln -s "tree/$lib/dpdk/$pmds" "$new/pmds"
echo "-include rte_config.h -march=corei7 -mrtm -I$dest/driver -I$dest/tree/usr/include/dpdk -I$dest/tree/usr/include/x86_64-linux-gnu/dpdk" >"$new/cflags"
paths="$dest/tree/$lib:$dest/tree/$lib/dpdk/$pmds:$dest/tree/lib/x86_64-linux-gnu"
echo "-L$dest/tree/$lib -Wl,--no-as-needed -lrte_bus_pci -lrte_pci -lrte_kvargs -lrte_eal -Wl,--disable-new-dtags,-rpath,$paths,-rpath-link,$paths" >"$new/ldflags"
finish

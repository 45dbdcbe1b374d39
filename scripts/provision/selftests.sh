#!/bin/bash
# selftests.sh : the VFIO and iommufd selftests of Linux 7.2, built as dynamic programs from Debian's linux-source-7.2.
#
#   CACHE/selftests/vfio/vfio_*_test
#   CACHE/selftests/iommu/iommufd{,_fail_nth} and iommufd_test.h
#
# No root; needs gcc and make. About 165 MB are fetched, 5 MB stay. The programs are the kernel's (GPL-2.0): built here, never kept in the tree.
set -eu
. "$(dirname "$0")/component.sh"
begin selftests 2
need cc make xz tar
uapi=$(bash "$(dirname "$0")/uapi.sh" 9>&- | tail -n 1) || die "needs the component uapi"
suite=$(host_suite "libcap-dev and uuid-dev")
apt_open "$suite" trixie-backports
[ -n "$(newest linux-source-7.2 7.2)" ] || die "trixie-backports has no linux-source-7.2"
say "fetching linux-source-7.2 and two libraries"
fetch linux-source-7.2
package=$(ls "$new"/.debs/linux-source-7.2_*.deb)
source=$new/source
mkdir "$source"
say "unpacking the selftests"
(
  set -o pipefail
  dpkg-deb --fsys-tarfile "$package" | tar -xO --wildcards './usr/src/*.tar.xz' | xz -T0 -dc |
    tar -x -C "$source" --strip-components=1 --wildcards --no-wildcards-match-slash \
      '*/tools/testing/selftests/vfio' '*/tools/testing/selftests/iommu' '*/tools/testing/selftests/*.mk' '*/tools/testing/selftests/*.h' \
      '*/tools/testing/selftests/kselftest*' '*/tools/include' '*/tools/arch/x86/include' '*/scripts/subarch.include' '*/scripts/Makefile.*' \
      '*/tools/scripts' '*/drivers/iommu/iommufd/iommufd_test.h' '*/tools/build' '*/include/linux' '*/drivers/dma'
) >>"$log" 2>&1 || die "cannot unpack linux-source-7.2 (log: $log)"
rm -f "$package"
fetch libcap-dev libcap2 uuid-dev libuuid1
unpack "$new/tree"
lib=$new/tree/usr/lib/x86_64-linux-gnu
# The link of a development package points to the library's folder, which is another one in some releases.
for name in libcap.so.2 libuuid.so.1; do
  [ -e "$lib/$name" ] || ln -s "../../../lib/x86_64-linux-gnu/$name" "$lib/$name"
  [ -e "$lib/${name%.*}" ] || ln -sf "$name" "$lib/${name%.*}"
done

# 7.2.12 calls calloc_assert() without defining it. The source stays as it is; the definition is given from outside.
cat >"$new/compat.h" <<'END'
#define calloc_assert(count, size)          \
  ({                                        \
    void *memory_ = calloc((count), (size)); \
    VFIO_ASSERT_NOT_NULL(memory_);          \
    memory_;                                \
  })
END
headers="-isystem $uapi/usr/include -isystem $new/tree/usr/include"
suites=$source/tools/testing/selftests
mkdir "$new/vfio" "$new/iommu"
say "building"
build() { # build SUITE MAKE-ARGUMENT...
  run make -j"$(nproc)" -C "$suites/$1" OUTPUT="$new/$1" KHDR_INCLUDES="$headers" top_srcdir="$source" "${@:2}"
}
link="-L$lib -Wl,-rpath,$dest/${lib#"$new"/}"
build vfio LDFLAGS="-pthread $link" EXTRA_CFLAGS="-include $new/compat.h"
build iommu LDFLAGS="$link"
for program in vfio/vfio_pci_device_test vfio/vfio_iommufd_setup_test vfio/vfio_dma_mapping_test iommu/iommufd; do
  [ -x "$new/$program" ] || die "the build made no $program (log: $log)"
done
cp "$source/drivers/iommu/iommufd/iommufd_test.h" "$new/iommu/"
rm -rf "$source" "$new/vfio/libvfio"
find "$new/vfio" "$new/iommu" -name '*.[od]' -delete
finish

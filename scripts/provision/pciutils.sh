#!/bin/bash
# pciutils.sh : lspci and setpci of this machine's Debian release.
#
#   CACHE/pciutils/bin/{lspci,setpci}
#
# No root. 3 MB stay.
set -eu
. "$(dirname "$0")/component.sh"
begin pciutils 1
suite=$(host_suite pciutils)
apt_open "$suite"
fetch pciutils libpci3 libkmod2 pci.ids
unpack "$new/tree"
rm -rf "$new/tree/usr/share/doc" "$new/tree/usr/share/man"
mkdir "$new/bin"
for program in lspci setpci; do
  found=$(cd "$new/tree" && ls usr/bin/$program bin/$program sbin/$program usr/sbin/$program 2>/dev/null | head -n 1)
  [ -n "$found" ] || die "the package holds no $program"
  cat >"$new/bin/$program" <<END
#!/bin/sh
tree=\$(dirname "\$(dirname "\$(readlink -f "\$0")")")/tree
LD_LIBRARY_PATH=\$tree/usr/lib/x86_64-linux-gnu:\$tree/lib/x86_64-linux-gnu exec "\$tree/$found" $([ $program = setpci ] || echo '-i "$tree/usr/share/misc/pci.ids"') "\$@"
END
  chmod 755 "$new/bin/$program"
done
run "$new/bin/setpci" --version
finish

#!/bin/bash
# tshark.sh : tshark, Wireshark's terminal program, of this machine's Debian release.
#
#   CACHE/tshark/bin/tshark
#
# No root. About 35 MB are fetched, 190 MB stay.
set -eu
. "$(dirname "$0")/component.sh"
begin tshark 1
suite=$(host_suite tshark)
apt_open "$suite"
# The machine has the C library and its like.
packages=$(closure "$suite" tshark | grep -vE '^(libc6|libgcc-s1|gcc-[0-9]+-base|libcrypt1|debconf|dpkg|tar|perl-base)=')
say "fetching tshark and $(($(echo $packages | wc -w) - 1)) more"
fetch $packages
tree=$new/tree
mkdir -p "$tree/usr/bin" "$tree/usr/sbin" "$tree/usr/lib"
for part in bin sbin lib; do ln -s "usr/$part" "$tree/$part"; done
unpack "$tree"
rm -rf "$tree/usr/share/doc" "$tree/usr/share/man" "$tree/usr/share/locale" "$tree/usr/share/icons" "$tree/var"
# The package's link leads to the machine's own /etc; without this file there is no Lua.
ln -sf ../../../etc/wireshark/init.lua "$tree/usr/share/wireshark/init.lua"
mkdir "$new/bin"
cat >"$new/bin/tshark" <<'STARTER'
#!/bin/sh
tree=$(dirname "$(dirname "$(readlink -f "$0")")")/tree
lib=$tree/usr/lib/x86_64-linux-gnu
export WIRESHARK_DATA_DIR="$tree/usr/share/wireshark"
export WIRESHARK_PLUGIN_DIR="$tree/no-plugins" WIRESHARK_EXTCAP_DIR="$tree/no-extcap"
export LD_LIBRARY_PATH=$lib
# For root tshark reads only the machine's own data folder: it becomes nobody that may read all files.
nobody=
[ "$(id -u)" != 0 ] ||
  nobody="setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps -all,+dac_override --ambient-caps -all,+dac_override"
exec $nobody "$tree/usr/bin/tshark" "$@"
STARTER
chmod 755 "$new/bin/tshark"
run "$new/bin/tshark" --version
finish

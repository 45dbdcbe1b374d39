#!/bin/busybox sh
# Sends a line through the PCI card's port, and sends back what comes from there in capitals, until a line `end`.
for tty in /sys/class/tty/ttyS*; do
  case $(readlink -f $tty/device) in *pci*) port=/dev/${tty##*/} ;; esac
done
[ -n "$port" ] || { echo "serial: WRONG no port at the PCI card" && exit 1; }
stty -F $port 115200 raw -echo
echo "serial: $port $(grep "^${port#/dev/ttyS}:" /proc/tty/driver/serial | cut -d' ' -f2)"
exec 3<>$port
echo "guest speaks" >&3
while read -r line <&3; do
  echo "serial: heard $line"
  [ "$line" = end ] && break
  echo "$line" | tr a-z A-Z >&3
done
sleep 0.2

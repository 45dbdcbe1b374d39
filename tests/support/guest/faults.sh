#!/bin/busybox sh
# Runs /t/program, then shows what the guest's IOMMU had to say.
/t/program
status=$?
dmesg | grep 'DMAR:.*fault addr'
exit $status

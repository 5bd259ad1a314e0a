# PID 1 of the nested VM once its root file system is mounted: runs command.sh, then powers off.
export HOME=/root LANG=C.UTF-8 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
here=/run/nested

mount --make-rshared /
for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do
    echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control
done
hostname nested
ip link set lo up
release=$(uname -r)
mkdir -p "/lib/modules/$release"
mount --bind "$(cat $here/modules)" "/lib/modules/$release"
for module in kvm_amd tun loop; do
    modprobe "$module" || echo "nested: module $module cannot be loaded"
done
# As udev's rules have it; the group needs no name.
chgrp 36 /dev/kvm && chmod 660 /dev/kvm || echo "nested: no /dev/kvm"
echo "nested: Linux $release is up after $(cut -d' ' -f1 /proc/uptime) s"

/bin/sh $here/command.sh
echo $? >$here/code
sync
exec $here/busybox poweroff -f

#!/bin/busybox sh
# /init of the nested VM's initramfs: mounts the host's root file system, read-only, under a writable layer
# in memory.
/bin/busybox --install -s /bin
export PATH=/bin

die() {
    echo "nested: $*"
    poweroff -f
}

mkdir -p /proc /sys /dev /lower /layer /root
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
while read -r module; do
    insmod "/modules/$module" || die "module $module cannot be loaded"
done </modules/order

mount -t virtiofs -o ro hostroot /lower || die "the host's root cannot be mounted"
mount -t tmpfs -o size=70% layer /layer
mkdir /layer/upper /layer/work
mount -t overlay -o lowerdir=/lower,upperdir=/layer/upper,workdir=/layer/work root /root ||
    die "the writable layer cannot be mounted"

# Without the host's contents; and an overlay cannot be the upper layer of another.
for dir in run tmp var/lib var/tmp; do
    mkdir -p "/root/$dir"
    mount -t tmpfs tmpfs "/root/$dir"
done
chmod 1777 /root/tmp /root/var/tmp
for dir in dev proc sys; do
    mkdir -p "/root/$dir"
    mount --move "/$dir" "/root/$dir"
done
mkdir -p /root/dev/pts /root/dev/shm /root/dev/mqueue
mount -t devpts -o mode=620,ptmxmode=666 pts /root/dev/pts
mount -t tmpfs shm /root/dev/shm
mount -t mqueue mqueue /root/dev/mqueue
mount -t cgroup2 cgroup /root/sys/fs/cgroup
mkdir -p /root/run/nested
mount -t virtiofs out /root/run/nested || die "the shared folder cannot be mounted"
exec switch_root /root /bin/sh /run/nested/session.sh

#!/bin/sh
# What an Engine makes for a container, without the Engine: called in new mount, process, IPC and UTS namespaces.
# sandbox.sh ROOT WORKER_DIRECTORY CAPABILITIES [OPTION...]
set -eu
root=$1
worker=$2
capabilities=$3
shift 3

mount --make-rprivate /
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -o ro,bind /usr "$root/usr"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
mknod -m 666 "$root/dev/null" c 1 3
mknod -m 666 "$root/dev/zero" c 1 5
mknod -m 666 "$root/dev/urandom" c 1 9
ln -s /proc/self/fd "$root/dev/fd"
mkdir "$root/dev/shm" "$root/dev/mqueue" "$root/dev/longshore"
mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
mount -t mqueue mqueue "$root/dev/mqueue"
mount --bind "$worker" "$root/dev/longshore"
mount -o remount,ro,bind "$root/dev/longshore"
mount -t tmpfs -o mode=1777 tmpfs "$root/scratch"
mount --bind "$root.hosts" "$root/etc/hosts"
for option; do
    case $option in
    cgroup=*) # DIRECTORY of the own group: as an Engine mounts it
        echo 1 >"${option#cgroup=}/cgroup.procs"
        mkdir -p "$root/sys/fs/cgroup"
        mount --rbind /sys/fs/cgroup "$root/sys/fs/cgroup"
        ;;
    esac
done
hostname sandbox
cd "$root"
pivot_root . old
# shellcheck disable=SC2016 # the inner shell has the argument
exec chroot . /usr/bin/env -i /bin/sh -c '
    umount -l /old
    exec setpriv --no-new-privs --inh-caps=-all --bounding-set "$1" \
        /dev/longshore/supervisor /dev/longshore/sock' sh "$capabilities" 3<&- 4<&-

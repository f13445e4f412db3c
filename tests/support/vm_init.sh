# Process 1 of the guest that vm.py boots: `bash vm_init.sh JOB`. Runs JOB/run with its output in JOB/output and its
# exit status in JOB/status, keeps the kernel's log in JOB/dmesg, and switches the machine off.
# The root is the host's, over virtiofs or hostfs: what is written outside the mounts below is written there. /tmp stays the host's.
job=$1
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8

mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs run /run
mount -t tmpfs mnt /mnt
mount -t cgroup2 cgroup2 /sys/fs/cgroup 2>/dev/null
[[ -e /dev/fd ]] || ln -s /proc/self/fd /dev/fd
ip link set lo up
[[ -d /lib/modules/$(uname -r) ]] || mount --bind /usr/lib/uml/modules /lib/modules
for module in nbd erofs loop fuse overlay; do
  modprobe "$module" || echo "vm_init: no module $module"
done
# conftest.py's place for files of every kind. The tmpfs of kernels before 6.6 takes no user xattrs.
mkdir /run/pyerofs-tests
IFS=. read -r major minor _ <<<"$(uname -r)"
if ((major < 6 || major == 6 && minor < 6)); then
  truncate -s 1G /run/disk && mkfs.ext4 -q -m 0 /run/disk && mount -o loop /run/disk /run/pyerofs-tests
fi

"$job/run" >"$job/output" 2>&1 </dev/null
status=$?
dmesg >"$job/dmesg" 2>&1
echo "$status" >"$job/status.part"
mv "$job/status.part" "$job/status"
sync
echo o >/proc/sysrq-trigger
sleep 30

#!/busybox sh
# The first program of the virtual machine: loads the modules, makes a soft-RoCE device, runs the programs listed in
# /programs.list one after the other, tells how it went and switches the machine off.
/busybox mkdir -p /bin /proc /sys /dev /tmp /run
/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
mkdir -p /dev/shm
mount -t tmpfs shm /dev/shm
while read -r module; do
    insmod "/modules/$module" || echo "guest: $module can't be loaded"
done < /modules/order

# by their paths: the shell has applets of the same names
ip=/host/ip
rdma=/host/rdma
$ip link set lo up
$ip link add wire type dummy
$ip addr add 10.77.0.1/24 dev wire
$ip link set wire mtu 9000 up
$rdma link add rxe0 type rxe netdev wire
tries=0
until grep -qs 'RoCE v2' /sys/class/infiniband/rxe0/ports/1/gid_attrs/types/1; do
    tries=$((tries + 1))
    [ $tries -gt 100 ] && break
    sleep 0.1
done
echo "guest: ready after $(cut -d' ' -f1 /proc/uptime) s"

status=0
while read -r program; do
    echo "guest: $program"
    # shellcheck disable=SC2086 # a line may hold arguments
    /host/$program </dev/null || status=1
done < /programs.list
# what the kernel still holds for programs that are gone
$rdma resource show
if $rdma resource show | grep -qE 'qp [2-9]|mr [1-9]'; then
    echo "guest: queue pairs or memory are left behind"
    status=1
fi
echo "guest: done after $(cut -d' ' -f1 /proc/uptime) s"
echo "guest-status: $status"
sync
poweroff -f

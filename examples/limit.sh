#!/bin/sh
# Runs a command with so many bytes of memory and no more, its files in the kernel's cache included:
#     sh examples/limit.sh BYTES COMMAND [ARGUMENT...]
# In a control group within the caller's own, of either version, which goes when the command has ended. Wants
# root, or a group that was handed to its user. `make bench BENCH_LIMIT="sh examples/limit.sh {}"` is what it
# is for; where systemd runs, `systemd-run --user --scope -p MemoryMax=...` does the same.
set -eu
[ $# -ge 2 ] || { echo "usage: limit.sh BYTES COMMAND [ARGUMENT...]" >&2; exit 2; }
bytes=$1
shift

fail() {
    echo "limit: $1" >&2
    exit 1
}

own=$(sed -n 's/^[0-9]*:memory://p' /proc/self/cgroup)
if [ -n "$own" ]; then
    root=$(awk '$3 == "cgroup" && $4 ~ /(^|,)memory(,|$)/ { print $2; exit }' /proc/mounts)
    limit=memory.limit_in_bytes
else
    own=$(sed -n 's/^0:://p' /proc/self/cgroup)
    root=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/mounts)
    limit=memory.max
fi
[ -n "$root" ] || fail "no control groups are mounted here"
# What a container sees as the root may be named by its path outside.
above=$root$own
[ -d "$above" ] || above=$root
group=$above/limit-$$
mkdir "$group" || fail "cannot make a control group in $above: that takes root, or a group of your own"
# What has ended leaves its pages to the group above, and the group goes with its last process.
end() { rmdir "$group" 2>/dev/null || true; }
trap end EXIT
[ -e "$group/$limit" ] || fail "$above does not hand the memory controller on (cgroup.subtree_control)"
echo "$bytes" >"$group/$limit" || fail "$group: $limit of $bytes is refused"
# The command's own shell enters, so that this one can take the group away.
sh -c 'echo $$ >"$1/cgroup.procs" && shift && exec "$@"' limit "$group" "$@"

# Builds the walls with util-linux alone: the first process of new mount, PID, network, IPC and
# UTS namespaces runs this, as root of a user namespace or as the machine's root.
#
#   walls.sh DISK_BYTES INODES USER PATH... -- COMMAND...
#
# USER is whom to become, or empty. Each PATH is seen where it is, read-only; links stay links.
set -euf
umask 022
disk=$1 inodes=$2 user=$3
shift 3

# /sys is covered: it is there on every machine, and what lies below must not be met again.
mount -t tmpfs -o size=256k,mode=755 sandbox /sys
root=/sys/root
mkdir $root
mount -t tmpfs -o size=1m,nr_inodes=4k,mode=755,nosuid,nodev sandbox $root

# One table for all mounts: a process for each would take longer than most programs.
table="sandbox $root/tmp tmpfs size=$disk,nr_inodes=$inodes,mode=1777,nosuid,nodev,X-mount.mkdir
proc $root/proc proc nosuid,nodev,noexec,X-mount.mkdir
"
folders=() files=() links=()
show() { # PATH OPTIONS
  local path=${1//\\/\\134} options=$2
  path=${path// /\\040}
  if [ -d "$1" ]; then
    options+=,X-mount.mkdir
  else
    folders+=("$root${1%/*}") files+=("$root$1")
  fi
  table+="$path $root$path none $options"$'\n'
}
for device in null zero random urandom; do show /dev/$device bind; done
while [ "$1" != -- ]; do
  if [ -L "$1" ]; then links+=("$1"); else show "$1" rbind,ro,nosuid,nodev; fi
  shift
done
shift

mkdir -p "${folders[@]}"
for file in "${files[@]}"; do : > "$file"; done
if ((${#links[@]})); then cp --no-dereference "${links[@]}" $root; fi
printf %s "$table" > /sys/table
mount --all --fstab /sys/table

# Mounts below the folders came along, writable as they were.
while read -r _ _ _ _ point options _; do
  case $point:$options in
    $root/tmp:* | $root/proc:* | $root/dev/*:* | *:ro,*) ;;
    $root/*) mount -o remount,bind,ro,nosuid,nodev "$(printf %b "$point")" ;;
  esac
done < /proc/self/mountinfo
mount -o remount,bind,ro,nosuid,nodev $root

cd $root
pivot_root . .
umount -l .
cd /tmp

# A user namespace within counts its own processes, and these walls are out of its reach.
become=()
if [ -n "$user" ]; then become=(setpriv --reuid "$user" --regid "$user" --clear-groups); fi
exec 3>&2 2> /dev/null
"${become[@]}" unshare --user --map-root-user bash -c '
  echo 0 > /proc/sys/user/max_user_namespaces
  exec setpriv --no-new-privs --inh-caps=-all --bounding-set=-all "$@"
' bash "$@" 2>&3 3>&-
exit $?

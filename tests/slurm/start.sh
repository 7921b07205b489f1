#!/usr/bin/env bash
# A bare Debian or Ubuntu machine (root) → a running SLURM cluster on loopback: several virtual
# nodes with fake GPUs. Idempotent; over nobody else's cluster.
#
#   tests/slurm/start.sh [start|stop|status]
#
# Exit status 77: it cannot be had here; why is the last line on stderr. Environment variables:
#   SLURM_INSTALL    not empty: install the packages that are missing
#   SLURM_TEST_DIR   where its state lies               (/tmp/warpflow-slurm)
#   SLURM_NODES      virtual nodes n1, n2, …            (2)
#   SLURM_CPUS, SLURM_MEM_MB, SLURM_GPUS   that each node claims to have  (8, 8000, 2)
#   SLURM_KILLWAIT   seconds from SIGTERM to SIGKILL    (20)
#   SLURM_ACCOUNTING not empty: with slurmdbd and a MariaDB of its own, so that sacct knows all jobs
#   SLURM_PROCTRACK  cgroup (as in production: memory limits, devices and signals are real),
#                    linuxproc (needs nothing), or auto (auto)
set -euo pipefail

D=${SLURM_TEST_DIR:-/tmp/warpflow-slurm}
NODES=${SLURM_NODES:-2}
CPUS=${SLURM_CPUS:-8}
MEM=${SLURM_MEM_MB:-8000}
GPUS=${SLURM_GPUS:-2}
KILLWAIT=${SLURM_KILLWAIT:-20}
PROCTRACK=${SLURM_PROCTRACK:-auto}
HOST=$(hostname -s)
PORT=16817
ACCOUNTING=${SLURM_ACCOUNTING:-}
PACKAGES=(munge slurmctld slurmd slurm-client)
[ -z "$ACCOUNTING" ] || PACKAGES+=(slurmdbd mariadb-server)
CONFIGS=(slurm.conf gres.conf cgroup.conf slurmdbd.conf)
unset SLURM_CONF # Snakemake's plugin drops it in jobs: the configuration must lie in /etc/slurm

cannot() { echo "no SLURM here: $*" >&2; exit 77; }

# The daemon of this pid file runs, and its pid has not been given to something else since.
alive() { [ -s "$1" ] && grep -qE '^(slurm|munged|mariadbd)' "/proc/$(cat "$1")/comm" 2>/dev/null; }

until_true() { # seconds, command …
  local end=$((SECONDS + $1)); shift
  until "$@" >/dev/null 2>&1; do [ $SECONDS -lt $end ] || return 1; sleep 0.2; done
}

installed() { dpkg-query -W -f='${Status}' "$1" 2>/dev/null | grep -q 'ok installed'; }

install_packages() {
  command -v apt-get dpkg-query >/dev/null || cannot "neither Debian nor Ubuntu"
  local missing=() package quiet_start=0
  for package in "${PACKAGES[@]}"; do installed "$package" || missing+=("$package"); done
  [ ${#missing[@]} -gt 0 ] || return 0
  [ -n "${SLURM_INSTALL:-}" ] || cannot "not installed: ${missing[*]}; SLURM_INSTALL=1 installs them"
  local apt=(apt-get -qq -o DPkg::Lock::Timeout=300 -o Acquire::Retries=1 -o Acquire::http::Timeout=20)
  if [ ! -e /usr/sbin/policy-rc.d ]; then # packages start no daemons of their own
    quiet_start=1
    printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d; chmod 755 /usr/sbin/policy-rc.d
  fi
  { "${apt[@]}" update && DEBIAN_FRONTEND=noninteractive \
    "${apt[@]}" install -y --no-install-recommends "${missing[@]}"; } >"$D/log/apt.log" 2>&1 || true
  [ $quiet_start = 0 ] || rm -f /usr/sbin/policy-rc.d
  for package in "${missing[@]}"; do
    installed "$package" || cannot "apt-get does not install $package ($D/log/apt.log)"
  done
}

choose_proctrack() {
  [ "$PROCTRACK" = auto ] || return 0
  PROCTRACK=cgroup
  local controller probe
  for controller in freezer memory devices cpuset; do
    probe=/sys/fs/cgroup/$controller/warpflow-probe
    { mkdir "$probe" && rmdir "$probe"; } 2>/dev/null || PROCTRACK=linuxproc
  done
}

write_config() {
  local i
  cat > "$D/etc/slurm.conf" <<CONF
ClusterName=testcluster
SlurmctldHost=$HOST(127.0.0.1)
SlurmctldPort=$PORT
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# also how long a requeued job waits before it may start again (120 s by default)
AuthInfo=cred_expire=10
MpiDefault=none
StateSaveLocation=$D/state
SlurmctldPidFile=$D/run/slurmctld.pid
SlurmctldLogFile=$D/log/slurmctld.log
SlurmdSpoolDir=$D/spool/%n
SlurmdPidFile=$D/run/slurmd.%n.pid
SlurmdLogFile=$D/log/slurmd.%n.log
ProctrackType=proctrack/$PROCTRACK
TaskPlugin=task/$([ "$PROCTRACK" = cgroup ] && echo cgroup || echo none)
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=2
# where there are no cgroups, the sampler enforces memory limits
$([ "$PROCTRACK" = cgroup ] || echo JobAcctGatherParams=OverMemoryKill,UsePss)
$(if [ -n "$ACCOUNTING" ]; then
    echo AccountingStorageType=accounting_storage/slurmdbd
    echo AccountingStorageHost=localhost
    echo AccountingStoragePort=$((PORT + 100))
    echo AccountingStorageTRES=gres/gpu
    echo AccountingStoreFlags=job_comment # Snakemake's plugin writes the rule there
  else echo AccountingStorageType=accounting_storage/none; fi)
# virtual nodes may claim more than the host has
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
ReturnToService=2
SlurmdTimeout=15
InactiveLimit=0
KillWait=$KILLWAIT
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
$(for i in $(seq "$NODES"); do
    echo "NodeName=n$i NodeHostname=$HOST NodeAddr=127.0.0.1 Port=$((PORT + i)) CPUs=$CPUS" \
      "RealMemory=$MEM Gres=gpu:fake:$GPUS State=UNKNOWN"
  done)
PartitionName=main   Nodes=ALL MaxTime=INFINITE PriorityTier=5 Default=YES
PartitionName=urgent Nodes=ALL MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
CONF
  [ -z "$ACCOUNTING" ] || write_accounting_config
  # Character devices of no driver (major 240 is for local use): opening one that the job owns says
  # ENXIO, another EPERM. Without cgroups, links to /dev/null will do.
  rm -f "$D"/dev/*
  for i in $(seq 0 $((GPUS - 1))); do
    if [ "$PROCTRACK" = cgroup ]; then mknod "$D/dev/nvidia$i" c 240 "$i"
    else ln -s /dev/null "$D/dev/nvidia$i"; fi
  done
  for i in $(seq 0 $((GPUS - 1))); do
    echo "NodeName=n[1-$NODES] Name=gpu Type=fake File=$D/dev/nvidia$i"
  done > "$D/etc/gres.conf"
  rm -f "$D/etc/cgroup.conf"
  [ "$PROCTRACK" = cgroup ] || return 0
  cat > "$D/etc/cgroup.conf" <<CONF
CgroupPlugin=autodetect
CgroupAutomount=yes
IgnoreSystemd=yes
ConstrainRAMSpace=yes
ConstrainSwapSpace=yes
ConstrainCores=no
ConstrainDevices=yes
CONF
}

write_accounting_config() {
  cat > "$D/etc/slurmdbd.conf" <<CONF
AuthType=auth/munge
DbdHost=localhost
DbdPort=$((PORT + 100))
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$((PORT + 101))
StorageUser=slurm
StoragePass=slurm
StorageLoc=warpflow
LogFile=$D/log/slurmdbd.log
PidFile=$D/run/slurmdbd.pid
CONF
  chmod 600 "$D/etc/slurmdbd.conf"
  cat > "$D/etc/mariadb.cnf" <<CONF
[mysqld]
user=mysql
datadir=$D/database
socket=$D/run/mariadb.sock
pid-file=$D/run/mariadb.pid
port=$((PORT + 101))
bind-address=127.0.0.1
log-error=$D/log/mariadb.log
innodb_buffer_pool_size=64M
skip-name-resolve
CONF
}

ours() { [ -L "$1" ] && [[ $(readlink "$1") == "$D"/* ]]; }

link_config() {
  local file
  mkdir -p /etc/slurm
  for file in "${CONFIGS[@]}"; do
    [ ! -e "/etc/slurm/$file" ] || ours "/etc/slurm/$file" ||
      cannot "/etc/slurm/$file is of another cluster"
  done
  for file in "${CONFIGS[@]}"; do
    rm -f "/etc/slurm/$file"
    [ ! -e "$D/etc/$file" ] || ln -s "$D/etc/$file" "/etc/slurm/$file"
  done
}

munge_works() { munge -n </dev/null | unmunge; }

start_munge() {
  munge_works >/dev/null 2>&1 && return 0
  install -d -o munge -g munge -m 755 /run/munge
  install -d -o munge -g munge -m 700 /var/log/munge /var/lib/munge
  if [ ! -s /etc/munge/munge.key ]; then
    dd if=/dev/urandom bs=128 count=1 of=/etc/munge/munge.key status=none
    chown munge:munge /etc/munge/munge.key
    chmod 400 /etc/munge/munge.key
  fi
  setpriv --reuid=munge --regid=munge --clear-groups /usr/sbin/munged # as the key's owner
  cp /run/munge/munged.pid "$D/run/munged.pid"
}

sql() { mariadb --no-defaults --socket="$D/run/mariadb.sock" "$@"; }
listens() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

start_accounting() { # its own database, on its own port; the machine's, if any, is left alone
  if ! alive "$D/run/mariadb.pid"; then
    if [ ! -d "$D/database/mysql" ]; then
      mkdir -p "$D/database"; chown mysql:mysql "$D/database"
      mariadb-install-db --no-defaults --user=mysql --datadir="$D/database" \
        --auth-root-authentication-method=normal >"$D/log/mariadb.log" 2>&1
    fi
    chmod 777 "$D/run"; touch "$D/log/mariadb.log"; chown mysql "$D/log/mariadb.log"
    setsid mariadbd --defaults-file="$D/etc/mariadb.cnf" >/dev/null 2>&1 </dev/null &
    until_true 30 sql -e 'select 1' || { tail "$D/log/mariadb.log" >&2; exit 1; }
    sql -e "create database if not exists warpflow;
      create user if not exists slurm@'127.0.0.1' identified by 'slurm';
      grant all on warpflow.* to slurm@'127.0.0.1';"
  fi
  alive "$D/run/slurmdbd.pid" || slurmdbd
  until_true 30 listens $((PORT + 100)) || { tail "$D/log/slurmdbd.log" >&2; exit 1; }
}

controller_up() { scontrol ping | grep -q UP; }
nodes_up() { [ "$(sinfo -h -N -p main -o %T | grep -Ec '^(idle|mixed|allocated)$')" = "$NODES" ]; }

start_daemons() {
  local i
  [ -z "$ACCOUNTING" ] || start_accounting
  alive "$D/run/slurmctld.pid" || slurmctld
  until_true 20 controller_up || { tail "$D/log/slurmctld.log" >&2; exit 1; }
  for i in $(seq "$NODES"); do alive "$D/run/slurmd.n$i.pid" || slurmd -N "n$i"; done
  # what was set down stays down otherwise
  for i in $(seq "$NODES"); do scontrol update nodename="n$i" state=resume 2>/dev/null || true; done
  until_true 30 nodes_up || { sinfo -N -l >&2; tail "$D"/log/slurmd.*.log >&2; exit 1; }
}

end() { # by pid from our own pid file: SIGTERM, later SIGKILL
  if alive "$1"; then
    local pid; pid=$(cat "$1")
    kill "$pid" || true
    until_true 15 test ! -e "/proc/$pid" || kill -9 "$pid" || true
  fi
  rm -f "$1"
}

case ${1:-start} in
  start)
    [ "$(id -u)" = 0 ] || cannot "needs root"
    mkdir -p "$D"/{etc,run,log,state,spool,dev}
    install_packages
    choose_proctrack
    alive "$D/run/slurmctld.pid" || { write_config; link_config; }
    start_munge
    start_daemons ;;
  stop)
    ! alive "$D/run/slurmctld.pid" || timeout 20 scancel --user root || true
    for file in "$D"/run/slurmd.*.pid "$D"/run/{slurmctld,slurmdbd,mariadb,munged}.pid; do
      [ ! -e "$file" ] || end "$file"
    done
    for file in "${CONFIGS[@]}"; do
      ! ours "/etc/slurm/$file" || rm -f "/etc/slurm/$file"
    done
    for i in $(seq "$NODES"); do
      find /sys/fs/cgroup/*/slurm_n"$i" -depth -type d -exec rmdir {} \; 2>/dev/null || true
    done
    rm -rf "$D"/{state,spool,run,database} ;;
  status) scontrol ping; sinfo -N -l; squeue ;;
  *) echo "usage: $0 [start|stop|status]" >&2; exit 2 ;;
esac

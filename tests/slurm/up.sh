#!/usr/bin/env bash
# Starts a one-node Slurm on loopback, as root, without systemd.   usage: up.sh STATE_DIR
set -euo pipefail
D=$(realpath -m "${1:?state dir}"); H=$(hostname -s)
mkdir -p "$D"/{state,spool,log,run} /etc/slurm
[ -s "$D/run/munge.key" ] || (umask 077; head -c 128 /dev/urandom >"$D/run/munge.key")
for i in 0 1; do                          # a graphics card is any character device here: 1,3 is /dev/null
  [ -e "$D/run/gpu$i" ] || mknod "$D/run/gpu$i" c 1 3
done
# In /etc/slurm, because Snakemake's job steps drop SLURM_CONF from the environment.
cat >/etc/slurm/gres.conf <<C
NodeName=$H Name=gpu File=$D/run/gpu[0-1] Flags=nvidia_gpu_env
C
cat >/etc/slurm/slurm.conf <<C
ClusterName=mini
SlurmctldHost=$H(127.0.0.1)
SlurmUser=root
SlurmctldPort=16817
SlurmdPort=16818
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthType=auth/munge
AuthInfo=socket=$D/run/munge.sock
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
StateSaveLocation=$D/state
SlurmdSpoolDir=$D/spool
SlurmctldPidFile=$D/run/slurmctld.pid
SlurmdPidFile=$D/run/slurmd.pid
SlurmctldLogFile=$D/log/slurmctld.log
SlurmdLogFile=$D/log/slurmd.log
SchedulerParameters=sched_interval=2,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/linux
AccountingStorageType=accounting_storage/none
MinJobAge=600
MessageTimeout=5
KillWait=2
DefMemPerCPU=500
GresTypes=gpu
NodeName=$H NodeAddr=127.0.0.1 CPUs=8 CoresPerSocket=8 RealMemory=16000 Gres=gpu:2
PartitionName=cpu Nodes=$H Default=YES MaxTime=600
PartitionName=gpu Nodes=$H MaxTime=600
C
munged --key-file="$D/run/munge.key" --socket="$D/run/munge.sock" --pid-file="$D/run/munged.pid" \
  --log-file="$D/log/munged.log" --seed-file="$D/run/munged.seed"
slurmctld -c
slurmd
for _ in $(seq 60); do
  [ "$(timeout 3 sinfo -h -o %T 2>/dev/null | sort -u)" = idle ] && exit 0
  sleep 0.5
done
timeout 3 sinfo -R || true
tail -n 20 "$D"/log/*.log
exit 1

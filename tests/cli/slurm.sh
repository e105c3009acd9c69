#!/bin/bash
# Starts a Slurm of one node on this machine, for test_launch.py; as root, on Debian.
set -euo pipefail
apt-get install --yes --no-install-recommends slurmctld slurmd slurm-client munge
work=/tmp/slurm
mkdir -p "$work/state" "$work/spool" /run/munge /etc/slurm
[[ -f /etc/munge/munge.key ]] || mungekey
chown -R munge: /etc/munge /run/munge /var/lib/munge /var/log/munge
cat >/etc/slurm/slurm.conf <<END
ClusterName=one
SlurmctldHost=localhost
AuthType=auth/munge
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SlurmUser=root
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd.log
ReturnToService=2
MpiDefault=none
NodeName=localhost CPUs=$(nproc) State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
END
runuser -u munge -- munged
slurmctld
slurmd
for _ in $(seq 20); do
  sinfo --noheader --format=%t | grep -q idle && break
  sleep 1
done
sinfo

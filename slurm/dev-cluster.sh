#!/usr/bin/env bash
# A real Slurm on one machine, for trying things out and for tests.
#
#   slurm/dev-cluster.sh up     [DIR]   install what is missing (as root), start; prints "export SLURM_CONF=..."
#   slurm/dev-cluster.sh status [DIR]   daemons, nodes, jobs; exit 0 only if all is up
#   slurm/dev-cluster.sh down   [DIR]   cancel all jobs, stop the daemons; DIR stays
#
#   eval "$(slurm/dev-cluster.sh up)" && sbatch --wrap hostname
#
# Debian's or Ubuntu's packages; no systemd, no cgroups. All is written under DIR (default /tmp/slurm-dev-UID), and only
# 127.0.0.1 is listened at. Nodes n1 to nN are processes that claim cores and two GPUs each, neither of which need exist.
# Partitions: main (the default; preempted at once and requeued), grace (the same with 5 s of notice, in which --signal
# arrives) and high (preempts both). DEV_NODES=2 and DEV_CPUS=2, of each node, are read when the cluster starts.
set -euo pipefail
export LC_ALL=C PATH="$PATH:/usr/sbin:/sbin"

say() { printf 'dev-cluster: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

wait_for() {  # SECONDS COMMAND...
    local tries=$(( $1 * 10 )); shift
    until "$@" >/dev/null 2>&1; do (( tries-- > 0 )) || return 1; sleep 0.1; done
}

# Whether the process of a pid file runs, and is the program that wrote it. In a container nobody may collect the dead.
alive() {
    local pid
    pid=$(cat "$DIR/run/$1.pid" 2>/dev/null) && [[ $pid =~ ^[0-9]+$ ]] || return 1
    [[ $(cat "/proc/$pid/comm" 2>/dev/null) == "${1%%.*}" ]] && ! grep -q '^State:.[ZX]' "/proc/$pid/status"
}
dead() { ! alive "$1"; }

start() {  # NAME COMMAND...: of a program that goes into the background by itself
    local name=$1; shift
    if alive "$name"; then return; fi
    rm -f "$DIR/run/$name.pid"
    "$@" </dev/null >>"$DIR/log/$name.log" 2>&1 && wait_for 10 alive "$name" ||
        { tail -n 5 "$DIR/log/$name.log" >&2; die "$name did not start: see $DIR/log"; }
}

stop() {
    if alive "$1"; then
        kill "$(cat "$DIR/run/$1.pid")" || true
        wait_for 15 dead "$1" || kill -KILL "$(cat "$DIR/run/$1.pid")" || true
    fi
    rm -f "$DIR/run/$1.pid"
}

install_missing() {
    local program packages=()
    for program in munged:munge slurmctld:slurmctld slurmd:slurmd sbatch:slurm-client; do
        command -v "${program%:*}" >/dev/null || packages+=("${program#*:}")
    done
    (( ${#packages[@]} )) || return 0
    command -v apt-get >/dev/null || die "Slurm is not installed, and there is no apt-get to install it with"
    (( $(id -u) == 0 )) || die "Slurm is not installed: sudo apt-get install --no-install-recommends ${packages[*]}"
    say "installing ${packages[*]}"
    local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300)
    { "${apt[@]}" update && "${apt[@]}" install --no-install-recommends "${packages[@]}"; } >"$DIR/log/apt.log" 2>&1 ||
        { tail -n 3 "$DIR/log/apt.log" >&2; die "apt-get could not install Slurm: see $DIR/log/apt.log"; }
}

# The first of so many free ports in a row. Where the search begins depends on DIR, so that two clusters seldom meet.
free_ports() {
    local base port
    base=$(( 16800 + $(cksum <<<"$DIR" | cut -d' ' -f1) % 100 * 100 ))
    for (( ; base < 32000; base += 100 )); do
        for (( port = base; port < base + $1; port++ )); do
            if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then continue 2; fi
        done
        echo "$base"; return
    done
    die "no free ports"
}

configure() {
    local host base i
    host=$(uname -n); host=${host%%.*}
    base=$(free_ports $(( NODES + 1 )))
    [[ -s $DIR/etc/munge.key ]] || (umask 377; head -c 128 /dev/urandom >"$DIR/etc/munge.key")
    printf 'Name=gpu File=/dev/%s\n' null zero >"$DIR/etc/gres.conf"
    {
        cat <<CONF
ClusterName=dev
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$base
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthType=auth/munge
# A requeued job waits for cred_expire, 120 s by default.
AuthInfo=socket=$DIR/run/munge.socket,cred_expire=5
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool/%n
SlurmctldPidFile=$DIR/run/slurmctld.pid
SlurmdPidFile=$DIR/run/slurmd.%n.pid
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdLogFile=$DIR/log/slurmd.%n.log
MailProg=/bin/true
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SlurmdParameters=config_overrides
GresTypes=gpu
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=bf_interval=2,sched_interval=2
SlurmdTimeout=30
ReturnToService=2
JobRequeue=1
KillWait=3
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
CONF
        for (( i = 1; i <= NODES; i++ )); do
            echo "NodeName=n$i NodeHostname=$host NodeAddr=127.0.0.1 Port=$(( base + i )) CPUs=$CPUS Boards=1" \
                "SocketsPerBoard=1 CoresPerSocket=$CPUS ThreadsPerCore=1 RealMemory=4000 Gres=gpu:2"
        done
        cat <<CONF
PartitionName=DEFAULT Nodes=ALL MaxTime=INFINITE DefaultTime=10 State=UP
PartitionName=main  PriorityTier=1  PreemptMode=REQUEUE GraceTime=0 Default=YES
PartitionName=grace PriorityTier=1  PreemptMode=REQUEUE GraceTime=5
PartitionName=high  PriorityTier=10 PreemptMode=OFF
CONF
    } >"$SLURM_CONF"
}

nodes() { sed -n 's/^NodeName=\([^ ]*\).*/\1/p' "$SLURM_CONF"; }
daemons() { echo munged; echo slurmctld; nodes | sed 's/^/slurmd./'; }
any_alive() { local name; for name in $(daemons); do if alive "$name"; then return; fi; done; return 1; }
nodes_up() { [[ $(timeout 5 sinfo -h -N -p main -o %t | grep -cxE 'idle|mix|alloc') == "$(nodes | wc -l)" ]]; }
no_jobs() { local jobs; jobs=$(timeout 5 squeue -h) && [[ -z $jobs ]]; }
exists() { [[ -s $SLURM_CONF ]]; }

up() {
    local name
    mkdir -p "$DIR"/{etc,run,log,state,spool}
    chmod 755 "$DIR" "$DIR"/{etc,run}  # munged wants its socket where all may go
    install_missing
    exists && any_alive || configure
    # --force: it would refuse a socket below a private folder, as mktemp -d makes.
    start munged munged --force --key-file="$DIR/etc/munge.key" --socket="$DIR/run/munge.socket" \
        --pid-file="$DIR/run/munged.pid" --log-file="$DIR/log/munged.log" --seed-file="$DIR/state/munged.seed"
    start slurmctld slurmctld
    for name in $(nodes); do
        mkdir -p "$DIR/spool/$name"
        start "slurmd.$name" slurmd -N "$name"
    done
    wait_for 60 nodes_up || { status >&2 || true; die "the nodes did not come up: see $DIR/log"; }
    printf 'export SLURM_CONF=%q\n' "$SLURM_CONF"
}

status() {
    local name all=0
    exists || die "no cluster under $DIR"
    for name in $(daemons); do
        if alive "$name"; then echo "$name up"; else echo "$name down"; all=1; fi
    done
    (( all == 0 )) && timeout 5 sinfo && timeout 5 squeue -r && nodes_up
}

down() {
    local name
    exists || die "no cluster under $DIR"
    if alive munged && alive slurmctld; then  # jobs outlive their slurmd
        timeout 10 squeue -h -o %A | sort -u | xargs -r timeout 20 scancel 2>/dev/null || true
        wait_for 20 no_jobs || say "jobs are still running"
    fi
    for name in $(daemons | tac); do stop "$name"; done
}

case ${1-} in up|status|down) ;; *) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0" >&2; exit 2 ;; esac
DIR=$(realpath -m "${2:-/tmp/slurm-dev-$(id -u)}")
NODES=${DEV_NODES:-2} CPUS=${DEV_CPUS:-2} SLURM_CONF=$DIR/etc/slurm.conf
[[ $DIR =~ ^[A-Za-z0-9_./+@-]+$ ]] || die "Slurm cannot take this path: $DIR"
(( ${#DIR} <= 80 )) || die "a path of more than 80 characters is too long for a socket: $DIR"
export SLURM_CONF
"$1"

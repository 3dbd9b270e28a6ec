#!/usr/bin/env bash
# Stands for Python in the tasks of a job: tells what it was started as, and ends as ROLE says. What it tells it tells
# when signals are handled, as who reads it may send one at once.
if [ "$ROLE" = wait ]; then
  trap 'echo "saved for USR1"; exit 75' USR1
  trap 'echo "saved for TERM"; exit 75' TERM
fi
echo "task $SLURM_PROCID of $SLURM_NTASKS, $SLURM_LOCALID on $SLURMD_NODENAME, start ${SLURM_RESTART_COUNT:-0}: $*"
echo "meets at $MASTER_ADDR${MASTER_PORT:+:$MASTER_PORT}, $OMP_NUM_THREADS threads, lead $MEGATRON_PIXEL_LEAD, end $MEGATRON_PIXEL_END_TIME"
case $ROLE in
  status=*) exit "${ROLE#status=}" ;;
  deaf)  # a signal kills it, as it does a program that has not come to handle it
    [ "${SLURM_RESTART_COUNT:-0}" = 0 ] || exit 0
    exec sleep 600 ;;
  wait)
    [ "${SLURM_RESTART_COUNT:-0}" = 0 ] || exit 0
    for _ in {1..6000}; do sleep 0.1; done ;;
esac

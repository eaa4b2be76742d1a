#!/bin/bash
# Serves the judge of config/paper.yaml, an open-weights model, on one 80 GB device, until it is ended:
#   bash slurm/serve_judge.sh            on this machine
#   sbatch slurm/serve_judge.sh          on a node; then, where Snakemake runs,
#                                        export JUDGE_ENDPOINT=http://<node>:8000/v1
# The second is open to the node's network: set VLLM_API_KEY for the server, and evaluation.judging.key: VLLM_API_KEY.
# MODEL, HOST, PORT and LENGTH choose otherwise; what follows goes to `vllm serve` (https://docs.vllm.ai), which must be
# installed: pip install vllm. SGLang and llama.cpp's server take its place, if they give log-probs.
#SBATCH --job-name=judge --gres=gpu:1 --cpus-per-task=8 --mem=100G --time=24:00:00
set -euo pipefail

here=127.0.0.1
[ -z "${SLURM_JOB_ID:-}" ] || here=0.0.0.0

exec vllm serve "${MODEL:-Qwen/Qwen2.5-32B-Instruct}" \
    --host "${HOST:-$here}" --port "${PORT:-8000}" \
    --max-model-len "${LENGTH:-8192}" \
    --max-logprobs 20 \
    --generation-config vllm \
    --enable-prefix-caching \
    --seed 0 "$@"

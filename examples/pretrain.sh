#!/bin/bash
# Pretraining on all GPUs of one machine, one process each. Run it again after an interruption: it goes on where it was.
set -euo pipefail

torchrun --standalone --nproc-per-node gpu --no-python \
    retrokit pretrain "$CORPUS" --base google-bert/bert-base-uncased --objective retromae --max-steps 50000 \
    --batch-size 64 --accumulation 2 --max-length 256 --learning-rate 1e-4 --save-steps 500 --precision bfloat16 \
    --output "$OUTPUT"

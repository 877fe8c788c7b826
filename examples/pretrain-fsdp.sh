#!/bin/bash
# Pretraining of a base that is too large for one GPU, shared out among those of one machine. Weights, gradients and
# optimizer state take 16 bytes a parameter on each GPU, in bfloat16 too; with --fsdp they are shared out among the GPUs.
# A base that fits is trained faster by pretrain.sh. Run it again after an interruption: it goes on where it was.
set -euo pipefail

torchrun --standalone --nproc-per-node gpu --no-python \
    retrokit pretrain "$CORPUS" --base "$BASE" --objective retromae --max-steps 50000 --fsdp --gradient-checkpointing \
    --batch-size 16 --accumulation 2 --max-length 256 --learning-rate 2e-5 --save-steps 500 --precision bfloat16 \
    --group-by-length --output "$OUTPUT"

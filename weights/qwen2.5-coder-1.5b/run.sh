#!/usr/bin/env bash
# The runs behind this page, one after the other. A second start goes on from the lines in results/.
#   MODEL=folder or hub name  DATA=folder of BBH  bash weights/qwen2.5-coder-1.5b/run.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
MODEL=${MODEL:-Qwen/Qwen2.5-Coder-1.5B-Instruct} DATA=${DATA:-data/bbh} PYTHON=${PYTHON:-python}
HERE=weights/qwen2.5-coder-1.5b/results
TASKS="boolean_expressions sports_understanding multistep_arithmetic_two hyperbaton object_counting dyck_languages
    navigate ruin_names snarks word_sorting disambiguation_qa"  # contexts below 810 tokens
SHORT="boolean_expressions sports_understanding object_counting"

# what does not fit into memory is left out at first, and done with --checkpoint, which takes a third longer
paper() { $PYTHON -m nanoct.paper --model "$MODEL" --dtype float32 "$@" || true; }
bbh() { paper --benchmark bbh --data "$DATA" --seeds 42 --limit-queries 50 --out $HERE/bbh --tasks $TASKS "$@"; }
rates() {  # other demonstrations, and questions that are not reported
    paper --benchmark bbh --data "$DATA" --seeds 7 --skip-queries 60 --limit-queries 30 --out $HERE/rates --tasks $SHORT "$@"
}

bbh --methods zero_shot icl ct_kv
rates --methods ct_kv --set ct_kv.lr=1e-3,3e-3,1e-2
bbh --methods ttt
bbh --methods ttt --checkpoint

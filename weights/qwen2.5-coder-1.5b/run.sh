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
words() { paper --benchmark words --seeds 42 --out $HERE/words "$@"; }
bbh() { paper --benchmark bbh --data "$DATA" --seeds 42 --limit-queries 50 --out $HERE/bbh --tasks $TASKS "$@"; }
rates() {  # other demonstrations, and questions that are not reported
    paper --benchmark bbh --data "$DATA" --seeds 7 --skip-queries 60 --limit-queries 30 --out $HERE/rates --tasks $SHORT "$@"
}
chosen() {  # the rate of a method with the highest mean score on the three short tasks
    $PYTHON - "$1" $HERE/rates/results.jsonl <<'PYTHON'
import json, sys
from collections import defaultdict
scores = defaultdict(list)
for line in map(json.loads, open(sys.argv[2])):
    if line["method"] == sys.argv[1]:
        scores[line["config"]["lr"]].append(line["score"])
assert [len(of) for of in scores.values()] == [3, 3, 3], f"{sys.argv[1]}: three rates on three tasks, found {dict(scores)}"
print(max(scores, key=lambda rate: sum(scores[rate])))
PYTHON
}

bbh --methods icl ct_kv
rates --methods ct_kv --set ct_kv.lr=1e-3,3e-3,1e-2
rates --methods prefix_tuning --set prefix_tuning.lr=1e-3,3e-3,1e-2
bbh --methods ct_kv --set ct_kv.lr=$(chosen ct_kv)
bbh --methods prefix_tuning --set prefix_tuning.lr=$(chosen prefix_tuning)
bbh --methods ttt
bbh --methods ttt --checkpoint
rates --methods ttt --set ttt.lr=1e-4,3e-4,1e-3
rates --methods ttt --set ttt.lr=1e-4,3e-4,1e-3 --checkpoint
bbh --methods ttt --checkpoint --set ttt.lr=$(chosen ttt)
bbh --methods zero_shot  # slow, as it talks until it is cut
words --methods icl ct_kv  # these are nearly all right already, so they come last
words --methods prefix_tuning
words --methods ttt

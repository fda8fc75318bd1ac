"""Look at tasks of an embedded world as the model sees them.

    python -m nanoct.benchmarks.nano --show 3                 # three held-out tasks
    python -m nanoct.benchmarks.nano --pool train             # names of the pool
"""

from nanoct import cli
from nanoct.benchmarks.nano import FOLDER, WORLDS
from nanoct.tokenizer import load_tokenizer


def main():
    p = cli.Parser(prog="nanoct.benchmarks.nano", description=__doc__.split("\n")[0])
    p.add_argument("--world", choices=list(WORLDS), default="strings")
    p.add_argument("--pool", choices=("held_out", "validation", "train"), default="held_out")
    p.add_argument("--show", type=int, metavar="N", help="print N tasks instead of all names")
    p.add_argument("--k", type=int, help="demos a task; default: the world's")
    p.add_argument("--seed", type=int, default=0, help="of the demos")
    args = p.parse_args()
    world = WORLDS[args.world]
    pool = world.pools()[args.pool]
    print(f"{args.world}, {args.pool}: {len(pool)} tasks, distinct as functions")
    if args.show is None:
        print("\n".join(pool))
        return
    tokenizer = load_tokenizer(FOLDER)
    for name in pool[: args.show]:
        task = world.make_task(name, tokenizer, args.seed, world.K if args.k is None else args.k, n_query=3)
        text = lambda part: tokenizer.decode(list(part.x) + list(part.y))
        print(f"\n{name}\n  {tokenizer.decode(list(task.instruction))}{' '.join(map(text, task.demos))}")
        for query in task.queries:
            print(f"  {tokenizer.decode(list(query.x))} ?   {tokenizer.decode(list(query.y))}")


if __name__ == "__main__":
    cli.run(main)

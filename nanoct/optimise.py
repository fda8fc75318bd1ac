"""The optimiser that all tuned methods share: AdamW, a cosine to 0, gradients clipped at norm 1.

optimise_masked is the same for methods that tune a cache behind masks. There the step can be recorded as a CUDA graph,
which is used again for every task of about the same size (Step, below). That is off by default, and has never run on a
GPU.
"""

import math
from warnings import warn

import torch
import torch.nn.functional as F

from nanoct.fewshot import check_dropout

EVERY = {"cuda": 16}  # on a GPU losses are read once in so many steps, because reading waits for it; elsewhere at each
BLOCK = 64  # entries, tokens and targets of a recorded step are padded to multiples of this
KEPT = 4  # recorded steps that a model keeps; each has the memory of an adaptation of its own
ROOMY = 1.25  # a kept step serves a task that needs less, if it is at most so many times as long
N_WARM = 3  # steps before a recording: the libraries choose their kernels in them, and AdamW makes its moments


class Stopped(UserWarning):
    """Warns that training ended before its last step, as its loss or gradient was not finite."""


def optimise(loss, leaves, config, progress=None):
    """Update the leaves config.n_step times along the gradient of loss() -> scalar; the rate falls from config.lr to 0.

    AdamW with betas (.9, .999), no weight decay and no warm-up. The norm is over the leaves alone, and nothing but the
    leaves changes. progress(step, loss) is called every step; on a GPU, which must not wait, for 16 steps at once. If
    the loss or its gradient is not finite, the run stops with a warning, and the leaves go back to their last values
    with both finite.
    Cost: a gradient, two moments and that copy of each leaf. Raises ValueError on negative steps, a rate that is not
    positive and finite, or a token_dropout that is no probability below 1.
    """
    check(config)
    fused = any(leaf.is_cuda for leaf in leaves) or None  # one kernel for all leaves; on a CPU it would round otherwise
    optimizer = torch.optim.AdamW(leaves, lr=config.lr, betas=(0.9, 0.999), weight_decay=0.0, fused=fused)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(config.n_step, 1))
    finite = Finite(leaves)

    def take(step):
        found = take_step(loss, leaves, optimizer, finite)
        schedule.step()
        return found

    follow(take, finite, config, progress)
    for leaf in leaves:
        leaf.requires_grad_(False)
        leaf.grad = None


def optimise_masked(model, loss, row, leaves, draw, config, progress=None, adapter=None):
    """optimise() for keys and values, leaves (L, 1, K, P, D): loss(row, *leaves, seen) of a packed Row.

    seen = draw() is the mask (k, P) of a step; all are drawn before the first, since copying one to a GPU waits for it.
    With model.graphs the step is kept there as a CUDA graph, used again by the next task. Then the loss may read
    nothing of a task but its arguments, which can be longer than the task's (Row.padded; entries of 0 that no pair
    sees), and of settings what is in config. Under an adapter, which is the task's own, the step runs as without
    graphs, and a warning says so.
    """
    masks = [draw() for _ in range(config.n_step)]
    if model.graphs is not None and adapter:
        warn("a step under an adapter is not kept as a CUDA graph, since the next task has another adapter: it runs as "
             "without graphs.")
    if masks and model.graphs is not None and not adapter:
        check(config)
        replay(model, loss, row, leaves, masks, config, progress)
        return
    seen = iter(masks)
    optimise(lambda: loss(row, *leaves, next(seen)), leaves, config, progress)


def take_step(loss, leaves, optimizer, finite):
    """One step: its loss and the norm of its gradient, two scalars on the device. Nothing in it waits for a GPU."""
    now = loss()
    optimizer.zero_grad()
    now.backward(inputs=leaves)
    norm = torch.nn.utils.clip_grad_norm_(leaves, 1.0)
    finite.keep(now + norm)
    optimizer.step()
    return now.detach(), norm


def follow(take, finite, config, progress):
    """Take config.n_step steps, take(step) -> (loss, norm), and look at what they found: at each, or at EVERY together.

    Calls progress(step, loss). Where one is not finite, it warns, restores the last finite values, and returns.
    """
    every, taken = EVERY.get(finite.all_so_far.device.type, 1), []
    for step in range(config.n_step):
        taken.append(take(step))
        if len(taken) < every and step + 1 < config.n_step:
            continue
        for at, (now, norm) in enumerate(taken, step + 1 - len(taken)):
            if not (now + norm).isfinite():
                warn(f"the loss is {now.item()} and its gradient {norm.item()} at step {at}: stopped, with the values "
                     f"of {f'step {at - 1}' if at else 'the start'}; a smaller lr than {config.lr} may help.", Stopped)
                finite.restore()
                return
            if progress:
                progress(at, now.item())
        taken = []


class Finite:
    """The last values of the leaves that had a finite loss and gradient, with none before them that had not."""

    def __init__(self, leaves):
        self.leaves = leaves
        self.values = [leaf.detach().clone() for leaf in leaves]
        self.all_so_far = torch.ones((), dtype=torch.bool, device=leaves[0].device if leaves else None)

    def begin(self):
        """The leaves have new values, those of another task."""
        self.all_so_far.fill_(True)
        self.keep(self.all_so_far)

    def keep(self, number):
        """Copy the leaves, if this number is finite. The device decides, so that the processor need not wait for it."""
        self.all_so_far &= number.isfinite()
        for leaf, value in zip(self.leaves, self.values):
            torch.where(self.all_so_far, leaf.detach(), value, out=value)

    @torch.no_grad()
    def restore(self):
        for leaf, value in zip(self.leaves, self.values):
            leaf.copy_(value)


def check(config):
    """Raise ValueError on impossible steps or rates, or a token_dropout that is no probability below 1."""
    if config.n_step < 0 or not 0 < config.lr < math.inf:
        raise ValueError(f"n_step = {config.n_step} must be at least 0, and lr = {config.lr} positive and finite.")
    check_dropout("token_dropout", getattr(config, "token_dropout", 0))


# --- one graph of the step, used again for every task ---


def replay(model, loss, row, leaves, masks, config, progress):
    """The steps of optimise_masked, by a Step in model.graphs. Sizes are padded: few Steps will do."""
    alike = loss.__code__, repr(config), model.checkpoint, len(masks[0])
    sizes = P, T, N = padded_sizes(model.graphs, alike, (leaves[0].shape[-2], len(row.pair), len(row.where)))
    hidden = P - leaves[0].shape[-2]  # entries that no pair sees
    row, grown = row.padded(T, N), [F.pad(leaf.detach(), (0, 0, 0, hidden)) for leaf in leaves]
    step = model.graphs.pop((alike, sizes), None) or Step(loss, row, grown, F.pad(masks[0], (0, hidden)))
    model.graphs[alike, sizes] = step  # the one that was used last goes last
    if len(model.graphs) > KEPT:
        del model.graphs[next(iter(model.graphs))]
    rate = lambda at: config.lr * (1 + math.cos(math.pi * at / config.n_step)) / 2
    if step.stream:
        step.stream.wait_stream(torch.cuda.current_stream(step.stream.device))
    with torch.cuda.stream(step.stream):  # None, without a GPU, changes nothing
        step.begin(row, grown)
        follow(lambda at: step.take(F.pad(masks[at], (0, hidden)), rate(at)), step.finite, config, progress)
    if step.stream:
        torch.cuda.current_stream(step.stream.device).wait_stream(step.stream)
    for leaf, tuned in zip(leaves, step.leaves):
        leaf.requires_grad_(False).copy_(tuned.detach()[..., : leaf.shape[-2], :])


def padded_sizes(graphs, alike, sizes):
    """Sizes for a Step that needs these: a kept one's that are long enough and not too long, or the next BLOCKs."""
    needed = tuple(-(-n // BLOCK) * BLOCK for n in sizes)
    fits = lambda kept: all(n <= size <= ROOMY * n for n, size in zip(needed, kept))
    return min((kept for what, kept in graphs if what == alike and fits(kept)), key=sum, default=needed)


class Step:
    """A step whose tensors keep their places, so that a GPU can record what it does, and do it again in one go.

    A step launches some hundred operations a layer, and the GPU waits for the processor that launches them. A CUDA
    graph is one launch. It knows addresses and no Python, so masks, rate and the next task are copied into the same
    tensors. Without a GPU, replaying is calling the same function on them.
    """

    options = {}  # of torch.cuda.graph; a test adds check_input_liveness

    def __init__(self, loss, row, leaves, seen):
        self.row, self.seen, self.lr = row, seen, torch.zeros((), device=seen.device)
        self.leaves = [leaf.requires_grad_() for leaf in leaves]  # padded, they are no longer the task's
        self.optimizer = torch.optim.AdamW(self.leaves, lr=self.lr, betas=(0.9, 0.999), weight_decay=0.0, fused=True,
                                           capturable=True)
        self.loss, self.finite = lambda: loss(self.row, *self.leaves, self.seen), Finite(self.leaves)
        self.launch, self.n_taken = self.run, 0
        self.stream = torch.cuda.Stream(seen.device) if seen.is_cuda else None  # a recording asks for one of its own

    @torch.no_grad()
    def begin(self, row, leaves):
        """Take over another task of these sizes, in place; AdamW starts anew."""
        for name, part in vars(row).items():
            if part is not None:
                getattr(self.row, name).copy_(part)
        for own, leaf in zip(self.leaves, leaves):
            own.copy_(leaf)
        for state in self.optimizer.state.values():
            for part in state.values():
                part.zero_()
        self.finite.begin()

    def take(self, seen, lr):
        """(loss, norm of the gradient) of a step at this rate, with this mask (k, P)."""
        self.seen.copy_(seen)
        self.lr.fill_(lr)
        if self.n_taken == N_WARM:
            self.launch = self.record()
        self.launch()
        self.n_taken += 1
        return [part.clone() for part in self.found]

    def run(self):
        self.found = take_step(self.loss, self.leaves, self.optimizer, self.finite)

    def record(self):
        """Record a step without taking it, and return what takes it; without a GPU that is run() itself."""
        if self.stream is None:
            return self.run
        self.optimizer.zero_grad()  # so that the graph makes gradients of its own
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream, **self.options):
            self.run()
        return graph.replay

"""Grades one file: make grade SUBMISSION=FILE ASSIGNMENT=a3, or python tutorials/assignments/grade.py FILE a3.

The tests run in this process. The submission runs in another one, its functions are called through a pipe, and what
comes back is numbers and text. So points are counted where the submission has no hand: it may write a conftest.py, an
XML, a class that equals everything, or spoil every module that it can import, and none of that is looked at. For its
process there is a copy of the course as students get it, made anew and read-only, and no network; it has a time limit.

What this cannot prevent: a file that computes with reference.py, which lies in every student's copy, or that holds
someone else's answer. Read what you grade. The process has your rights on this machine; for people whom you do not
trust, run it in a container.
"""

import argparse
import contextlib
import importlib
import inspect
import io
import os
import pickle
import random
import resource
import select
import shutil
import stat
import struct
import subprocess
import sys
import tempfile
import time
import types
import warnings
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent


# the pipe ----------------------------------------------------------------------------------------------------------

def send(file, data):
    file.write(struct.pack("<Q", len(data)) + data)
    file.flush()


def receive(file, deadline=None):
    """The next message. TimeoutError behind the deadline, EOFError if the other side is gone."""
    def exactly(n):
        data = b""
        while len(data) < n:
            if deadline is not None and not select.select([file], [], [], max(0, deadline - time.monotonic()))[0]:
                raise TimeoutError
            part = os.read(file.fileno(), min(n - len(data), 1 << 20))
            if not part:
                raise EOFError
            data += part
        return data
    return exactly(struct.unpack("<Q", exactly(8))[0])


def to_plain(value):
    """A result in what torch.load reads with weights_only: tensors, numbers, texts, lists. It runs no code."""
    if isinstance(value, torch.Tensor):
        plain = value.detach().as_subclass(torch.Tensor).clone()
        return "tensor", plain, value.requires_grad, value.grad_fn is not None
    if value is None or type(value) in (bool, int, float, str):
        return "plain", value
    if isinstance(value, str):
        return "plain", "".join(value) if type(value).__module__ == "numpy" else f"<{type(value).__name__}>"
    if isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
        return ("tuple" if isinstance(value, tuple) else "list"), [to_plain(part) for part in value]
    if type(value) is dict:
        return "dict", [(key, to_plain(part)) for key, part in value.items() if type(key) is str]
    if hasattr(value, "_fields") or hasattr(value, "__dict__"):
        fields = value._asdict() if hasattr(value, "_asdict") else vars(value)
        return "object", [(str(name), to_plain(part)) for name, part in fields.items()]
    try:
        return "plain", float(value)  # a number of numpy
    except (TypeError, ValueError):
        return "plain", f"<{type(value).__name__}>"


# the process of the submission -------------------------------------------------------------------------------------

MINUTES = 30
CLOSED = ("socket.", "subprocess.", "os.exec", "os.posix_spawn", "os.fork", "os.system", "pty.", "ctypes.dlopen",
          "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.chmod", "os.link", "os.symlink", "shutil.")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC


def restrict(allowed):
    """From here on this process reads Python's own files and those in the folders allowed, writes none, starts no other
    process and uses no network. A file that wants to gets around a hook of Python; one that just tries does not.
    """
    roots = [os.path.join(os.path.realpath(root), "") for root in (*allowed, sys.prefix, os.path.dirname(os.__file__),
                                                                   os.path.dirname(torch.__path__[0]))]

    def hook(event, arguments):
        if event.startswith(CLOSED):
            raise PermissionError(f"a submission does not use {event}")
        if event in ("open", "os.listdir", "os.scandir") and isinstance(arguments[0], (str, bytes, os.PathLike)):
            path = os.path.realpath(os.fsdecode(arguments[0]))
            if event == "open" and arguments[2] & WRITES or not path.startswith(tuple(roots)):
                raise PermissionError(f"a submission does not open {path}")
    sys.addaudithook(hook)


def warm():
    """What torch imports and looks up when it is first used, as long as it may."""
    leaf = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.AdamW([leaf])
    torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 2)
    leaf.sum().backward()
    optimizer.step()
    torch.testing.assert_close(leaf, leaf)


def serve(path, course, n_in, n_out):
    """Answers calls of the submission's functions until the pipe is closed."""
    incoming, outgoing = os.fdopen(n_in, "rb", 0), os.fdopen(n_out, "wb", 0)
    shared = course / "tutorials" / "assignments"
    (folder,) = (found for found in shared.glob("a[0-9]_*") if found.is_dir())
    sys.path[:0] = [str(folder), str(shared), str(course)]
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    import grading

    for name in ("given", "draw", "nanoct.model"):  # what comes through the pipe may be of these
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    warm()
    resource.setrlimit(resource.RLIMIT_CPU, (MINUTES * 60, MINUTES * 60))  # if the tests are gone and it still runs
    restrict([course, path.parent])
    answer = lambda **parts: send(outgoing, saved(parts))
    try:
        module = grading.need(grading.load(path), grading.functions_of(folder / "student.py"), path)
    except BaseException as error:
        return answer(error="ValueError", text=str(error))
    name = getattr(module, "NAME", "")
    answer(name=name if type(name) is str else "")
    kept = {}
    while True:
        try:
            what, n, *request = pickle.loads(receive(incoming))
        except EOFError:
            return None
        try:
            if what == "backward":
                result, leaves = kept[n]
                slopes = torch.autograd.grad(result, leaves, request[0], allow_unused=True, retain_graph=True)
                answer(slopes=[None if slope is None else slope.detach() for slope in slopes])
                continue
            function, arguments, steps = request
            for i, text in steps:
                arguments[i] = as_step(text)
            with io.StringIO() as printed, contextlib.redirect_stdout(printed):
                result = getattr(module, function)(*arguments)
                words = printed.getvalue()
            kept = {n: (result, [a for a in arguments if isinstance(a, torch.Tensor) and a.requires_grad])}
            answer(result=to_plain(result), printed=words, state=to_plain([state_of(a) for a in arguments]))
        except BaseException as error:
            names = [kind.__name__ for kind in type(error).__mro__]
            answer(error=next((name for name in names if name in ERRORS), "RuntimeError"),
                   text=str(error)[:2000] if names[0] in ERRORS else f"{names[0]}: {str(error)[:2000]}")


ERRORS = {"ValueError": ValueError, "NotImplementedError": NotImplementedError, "AssertionError": AssertionError,
          "Failed": AssertionError}  # those that tests look for; Failed is pytest's


def saved(parts):
    with io.BytesIO() as file:
        torch.save(parts, file)
        return file.getvalue()


def as_step(text):
    """A step of A4, which comes as its text."""
    module = types.ModuleType("step")
    exec(compile(text, "step.py", "exec"), vars(module))
    return types.SimpleNamespace(step_loss=module.step_loss, tune=module.tune)


def state_of(value):
    """What an argument is after a call, so that a change in place is seen on the other side."""
    if isinstance(value, torch.nn.Module):
        return {name: weight.detach() for name, weight in value.named_parameters()}
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, set):
        return sorted(value)
    if hasattr(value, "tokens"):  # a row of A2
        return {name: part for name, part in vars(value).items() if isinstance(part, torch.Tensor)}
    if isinstance(value, (torch.Tensor, list, tuple, dict)):
        return value
    return None


# the process of the tests ------------------------------------------------------------------------------------------

class Remote:
    """A module whose functions are those of a submission in another process."""

    def __init__(self, path, course, seconds, functions):
        self.deadline = time.monotonic() + seconds
        there, mine = os.pipe(), os.pipe()
        command = [sys.executable, "-I", str(HERE / "grade.py"), "--serve", str(path), str(course), str(there[0]),
                   str(mine[1])]
        if shutil.which("unshare") and not subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode:
            command = ["unshare", "-rn", *command]  # a network of its own, which leads nowhere
        environment = {"PATH": os.defpath, "OMP_NUM_THREADS": "1", "HOME": str(path.parent),
                       "PYTHONDONTWRITEBYTECODE": "1"}
        self.process = subprocess.Popen(command, pass_fds=(there[0], mine[1]), cwd=path.parent, env=environment,
                                        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                        start_new_session=True)
        os.close(there[0])
        os.close(mine[1])
        self.outgoing, self.incoming, self.n = os.fdopen(there[1], "wb", 0), os.fdopen(mine[0], "rb", 0), 0
        self.NAME = self.take().get("name", "")
        for name in functions:
            setattr(self, name, lambda *arguments, name=name: self.call(name, arguments))

    def take(self):
        """The next answer. An error of the submission is raised here, as one of Python's own."""
        try:
            answer = torch.load(io.BytesIO(receive(self.incoming, self.deadline)), weights_only=True)
        except TimeoutError:
            self.close()
            raise Late("the time is over") from None
        except (EOFError, OSError):
            raise Late("the process of the submission has ended") from None
        if "error" in answer:
            raise ERRORS.get(answer["error"], RuntimeError)(answer["text"])
        return answer

    def call(self, name, arguments):
        self.n += 1
        n, leaves = self.n, [i for i, a in enumerate(arguments) if isinstance(a, torch.Tensor) and a.requires_grad]
        steps = [(i, inspect.getclosurevars(a.step_loss).nonlocals["module"].source) for i, a in enumerate(arguments)
                 if hasattr(a, "step_loss")]
        given = [None if hasattr(a, "step_loss") else a for a in arguments]
        self.send("call", n, name, given, steps)
        answer = self.take()
        for argument, state in zip(arguments, from_plain(answer["state"])):
            update(argument, state)
        if answer["printed"]:
            print(answer["printed"], end="")
        if leaves and answer["result"][0] == "tensor" and answer["result"][2]:
            return Through.apply(self, n, answer["result"][1], *(arguments[i] for i in leaves))
        return from_plain(answer["result"])

    def send(self, *request):
        try:
            send(self.outgoing, pickle.dumps(request))
        except OSError:
            raise Late("the process of the submission has ended") from None

    def backward(self, n, slope):
        self.send("backward", n, slope)
        return self.take()["slopes"]

    def close(self):
        try:
            os.killpg(self.process.pid, 9)
        except ProcessLookupError:
            pass
        self.process.wait()


class Late(Exception):
    """The submission can no longer be asked."""


class Through(torch.autograd.Function):
    """A result whose graph lies in the other process."""

    @staticmethod
    def forward(ctx, remote, n, value, *tensors):
        ctx.at = remote, n
        return value.clone()

    @staticmethod
    def backward(ctx, slope):
        remote, n = ctx.at
        return None, None, None, *remote.backward(n, slope)


def from_plain(value):
    kind, content, *more = value
    if kind == "tensor":
        needs_grad, has_graph = more
        tensor = content.requires_grad_(needs_grad and content.is_floating_point())
        return tensor * 1 if has_graph and tensor.requires_grad else tensor
    if kind in ("list", "tuple"):
        parts = [from_plain(part) for part in content]
        return parts if kind == "list" else tuple(parts)
    if kind in ("dict", "object"):
        parts = {name: from_plain(part) for name, part in content}
        return parts if kind == "dict" else types.SimpleNamespace(**parts)
    return content


@torch.no_grad()
def update(argument, state):
    """Makes an argument here what it has become there."""
    if isinstance(argument, torch.Tensor):
        if argument.shape != state.shape or argument.dtype != state.dtype:
            argument.data = state.detach()
        elif not torch.equal(argument, state):
            argument.copy_(state)
    elif isinstance(argument, torch.nn.Module):
        for name, weight in argument.named_parameters():
            if name in state and (weight.dtype != state[name].dtype or not torch.equal(weight, state[name])):
                weight.data = state[name]
    elif isinstance(argument, torch.Generator):
        argument.set_state(state)
    elif isinstance(argument, set):
        argument.clear()
        argument.update(state)
    elif isinstance(argument, dict):
        for name in [name for name in argument if name not in state]:
            del argument[name]
        for name, part in state.items():
            update(argument[name], part) if isinstance(part, torch.Tensor) else argument.update({name: part})
    elif isinstance(argument, list):
        if argument != state:
            argument[:] = state
    elif isinstance(argument, tuple):
        for part, then in zip(argument, state):
            update(part, then)
    elif hasattr(argument, "tokens"):
        for name, part in state.items():
            update(getattr(argument, name), part)


def grade(path, folder, seeds, seconds=180.0):
    """[(seed, [(test, points won, points there are, message or None)])] of a file, graded as an assignment."""
    sys.path[:0] = [str(HERE), str(HERE.parents[1]), str(folder)]
    import student_copy
    from grading import functions_of, load, outcome, tests_of

    path, results = Path(path), []
    if not path.is_file() or path.suffix != ".py":
        raise ValueError(f"{path} is no .py file: give the one file that was handed in.")
    (tests,) = (load(file) for file in folder.glob("test_a*.py"))
    with tempfile.TemporaryDirectory() as made:
        course, apart = Path(made) / "course", Path(made) / "submission"
        student_copy.make(course, [folder.name])
        apart.mkdir()
        shutil.copyfile(path, apart / "student.py")
        lock(Path(made), False)
        try:
            for seed in seeds:
                remote = Remote(apart / "student.py", course, seconds, functions_of(folder / "student.py"))
                try:
                    found = [(test, outcome(test, remote, seed)) for test in tests_of(tests)]
                finally:
                    remote.close()
                results.append((seed, [(test.__name__, 0 if said else test.points, test.points, said)
                                       for test, said in found]))
        finally:
            lock(Path(made), True)
    return results


def lock(folder, open_again):
    """Takes the right to write from a folder and all in it, or gives it back."""
    for path in [folder, *folder.rglob("*")] if open_again else [*folder.rglob("*"), folder]:
        mode = path.stat().st_mode
        path.chmod(mode | stat.S_IWUSR if open_again else mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))


def main():
    if sys.argv[1:2] == ["--serve"]:
        path, course, n_in, n_out = sys.argv[2:]
        return serve(Path(path), Path(course), int(n_in), int(n_out))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("submission", help="the one .py file that was handed in")
    parser.add_argument("assignment", help="a1 … a6, or the folder's name")
    parser.add_argument("--seed", type=int, nargs="+", help="default: two that nobody knows")
    parser.add_argument("--seconds", type=float, default=180.0, help="for each seed")
    arguments = parser.parse_args()
    folders = [f for f in sorted(HERE.glob("a[0-9]_*")) if f.is_dir() and f.name.startswith(arguments.assignment)]
    if len(folders) != 1:
        sys.exit(f"There is no assignment {arguments.assignment!r}: give one of a1 … a6.")
    torch.set_num_threads(1)
    seeds = arguments.seed or [random.SystemRandom().randrange(10**6) for _ in range(2)]
    try:
        results = grade(arguments.submission, folders[0], seeds, arguments.seconds)
    except (ValueError, Late) as error:
        sys.exit(f"0 points: {error}")
    totals = []
    for seed, lines in results:
        print(f"\nseed {seed}")
        for name, won, worth, message in lines:
            print(f"{won:3d} of {worth:2d}   {name}" + (f"\n{message}" if message else ""))
        totals.append(sum(won for _, won, _, _ in lines))
    worth = sum(line[2] for line in results[0][1])
    print(f"\npoints: {min(totals)} of {worth}, the lowest of {len(seeds)} seeds")


if __name__ == "__main__":
    main()

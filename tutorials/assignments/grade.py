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
import inspect
import io
import os
import random
import resource
import select
import shlex
import shutil
import stat
import struct
import subprocess
import sys
import tempfile
import textwrap
import time
import types
import warnings
from functools import cache
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


# the pipe ----------------------------------------------------------------------------------------------------------

LARGEST = 1 << 30  # bytes of a message


def send(file, **parts):
    """Sends a message of texts, numbers, tensors, and what packed makes of anything else."""
    with io.BytesIO() as made:
        torch.save(parts, made)
        data = made.getvalue()
    file.write(struct.pack("<Q", len(data)) + data)
    file.flush()


def receive(file, deadline=None):
    """The next message, as a dict. TimeoutError behind the deadline, EOFError if the other side is gone."""
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
    size = struct.unpack("<Q", exactly(8))[0]
    if size > LARGEST:
        raise EOFError
    return dict(torch.load(io.BytesIO(exactly(size)), weights_only=True))


def packed(value):
    """Anything that goes through the pipe, as what torch.load reads with weights_only: numbers, texts, tensors, lists,
    and for all else a tuple that begins with its kind. Opening it runs no code.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, torch.Tensor):
        plain = value.detach().as_subclass(torch.Tensor).clone()
        return "tensor", plain, value.requires_grad, value.grad_fn is not None
    if isinstance(value, str):
        return "".join(value) if type(value).__module__ == "numpy" else f"<{type(value).__name__}>"
    if isinstance(value, torch.Generator):
        return "generator", value.get_state()
    if hasattr(value, "step_loss"):  # a step of A4 goes as its text
        return "step", inspect.getclosurevars(value.step_loss).nonlocals["module"].source
    if isinstance(value, list):
        return list(map(packed, value))
    if isinstance(value, set):
        return "set", [packed(part) for part in sorted(value)]
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return "tuple", [packed(part) for part in value]
    if type(value) is dict:
        return "dict", {key: packed(part) for key, part in value.items() if type(key) is str}
    if hasattr(value, "_fields") or hasattr(value, "__dict__"):
        fields = value._asdict() if hasattr(value, "_asdict") else vars(value)
        if isinstance(value, torch.nn.Module):
            fields = {name: part for name, part in fields.items() if name[0] != "_"} | dict(value.named_parameters())
        return "object", type(value).__name__, {str(name): packed(part) for name, part in fields.items()}
    try:
        return float(value)  # a number of numpy
    except (TypeError, ValueError):
        return f"<{type(value).__name__}>"


def opened(value, classes=types.MappingProxyType({})):
    """What was packed. An object is a namespace, unless classes {name: function of the fields} says how it is made."""
    if isinstance(value, list):
        return [opened(part, classes) for part in value]
    if not isinstance(value, tuple):
        return value
    kind, content, *more = value
    if kind == "tensor":
        needs_grad, has_graph = more
        tensor = content.requires_grad_(needs_grad and content.is_floating_point())
        return tensor * 1 if has_graph and tensor.requires_grad else tensor
    if kind == "generator":
        return torch.Generator().set_state(content)
    if kind == "dict":
        return {name: opened(part, classes) for name, part in content.items()}
    if kind == "object":
        fields = {name: opened(part, classes) for name, part in more[0].items()}
        return classes.get(content, types.SimpleNamespace)(**fields)
    if kind == "step":
        return classes["step"](content) if "step" in classes else None
    return {"tuple": tuple, "set": set}[kind](opened(part, classes) for part in content)


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

    classes = {"step": as_step}  # what comes through the pipe may be of these, as far as the copy has them
    with contextlib.suppress(ImportError):
        import given
        classes["Model"] = lambda **fields: as_model(given, **fields)
    with contextlib.suppress(ImportError):
        from nanoct.model import LlamaConfig
        classes["LlamaConfig"] = LlamaConfig
    with contextlib.suppress(ImportError):
        import draw  # noqa: F401
    warm()
    resource.setrlimit(resource.RLIMIT_CPU, (MINUTES * 60, MINUTES * 60))  # if the tests are gone and it still runs
    restrict([course, path.parent])
    answer = lambda **parts: send(outgoing, **parts)
    answer()  # from here on the time counts
    try:
        module = grading.need(grading.load(path), grading.functions_of(folder / "student.py"), path)
    except BaseException as error:
        return answer(error="ValueError", text=str(error))
    name = getattr(module, "NAME", "")
    answer(name=name if type(name) is str else "")
    kept = {}
    while True:
        try:
            request = receive(incoming)
        except EOFError:
            return None
        try:
            if "slope" in request:
                result, leaves = kept[request["n"]]
                slopes = torch.autograd.grad(result, leaves, request["slope"], allow_unused=True, retain_graph=True)
                answer(slopes=packed(list(slopes)))
                continue
            arguments = opened(request["arguments"], classes)
            with io.StringIO() as printed, contextlib.redirect_stdout(printed):
                result = getattr(module, request["function"])(*arguments)
                words = printed.getvalue()
            kept = {request["n"]: (result, [arguments[i] for i in leaves_of(arguments)])}
            answer(result=packed(result), printed=words, arguments=packed(arguments))
        except BaseException as error:
            names = [kind.__name__ for kind in type(error).__mro__]
            answer(error=next((name for name in names if name in ERRORS), "RuntimeError"),
                   text=str(error)[:2000] if names[0] in ERRORS else f"{names[0]}: {str(error)[:2000]}")


ERRORS = {"ValueError": ValueError, "NotImplementedError": NotImplementedError, "AssertionError": AssertionError,
          "Failed": AssertionError}  # those that tests look for; Failed is pytest's


def as_step(text):
    """A step of A4, which comes as its text."""
    module = types.ModuleType("step")
    exec(compile(text, "step.py", "exec"), vars(module))
    return types.SimpleNamespace(step_loss=module.step_loss, tune=module.tune)


def as_model(given, vocab, L, K, D, stretch, training, **weights):
    """A model of given.py with these weights."""
    model = given.Model(vocab=vocab, L=L, K=K, D=D, stretch=stretch)
    for name, weight in weights.items():
        setattr(model, name, torch.nn.Parameter(weight.detach(), weight.requires_grad))
    return model


def leaves_of(arguments):
    """The places of those arguments that a result may have a gradient in."""
    return [i for i, value in enumerate(arguments) if isinstance(value, torch.Tensor) and value.requires_grad]


# the process of the tests ------------------------------------------------------------------------------------------

@cache
def apart():
    """How a command begins that has no network and finds the folders with answers empty; if the system does not let
    us, one that has no network; else nothing.
    """
    answers = [ROOT / name for name in ("tutorials", "nanoct", ".git") if (ROOT / name).is_dir()]
    hide = " && ".join(f"mount -t tmpfs none {shlex.quote(str(folder))}" for folder in answers)
    for start in (["unshare", "-rmn", "sh", "-c", f'{hide} && exec "$@"', "sh"], ["unshare", "-rn"]):
        if shutil.which("unshare") and not subprocess.run([*start, "true"], capture_output=True).returncode:
            return start
    return []


class Remote:
    """A module whose functions are those of a submission in another process."""

    def __init__(self, path, course, seconds, functions):
        self.deadline = time.monotonic() + 60 * MINUTES  # torch takes long to start where much else runs
        there, mine = os.pipe(), os.pipe()
        own = path.parent.parent / "grade.py"  # this file, where it can be read while its folder is hidden
        command = [*apart(), sys.executable, "-I", str(own), "--serve", str(path), str(course), str(there[0]),
                   str(mine[1])]
        environment = {"PATH": os.defpath, "OMP_NUM_THREADS": "1", "HOME": str(path.parent),
                       "PYTHONDONTWRITEBYTECODE": "1"}
        self.process = subprocess.Popen(command, pass_fds=(there[0], mine[1]), cwd=path.parent, env=environment,
                                        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                        start_new_session=True)
        os.close(there[0])
        os.close(mine[1])
        self.outgoing, self.incoming, self.n = os.fdopen(there[1], "wb", 0), os.fdopen(mine[0], "rb", 0), 0
        self.end = Late("the process of the submission has ended")
        self.take()
        self.deadline = time.monotonic() + seconds
        self.NAME = self.take().get("name", "")
        for name in functions:
            setattr(self, name, lambda *arguments, name=name: self.call(name, arguments))

    def take(self):
        """The next answer. An error of the submission is raised here, as one of Python's own."""
        try:
            answer = receive(self.incoming, self.deadline)
        except TimeoutError:
            self.close()
            self.end = Late("the time is over")
            raise self.end from None
        except (EOFError, OSError):
            raise self.end from None
        except Exception:  # it wrote into the pipe itself
            raise Late("what came back is no answer") from None
        if "error" in answer:
            raise ERRORS.get(answer["error"], RuntimeError)(" ".join(readable(answer["text"]).split()))
        return answer

    def ask(self, **request):
        """What the other process answers to a request."""
        try:
            send(self.outgoing, **request)
        except OSError:
            raise self.end from None
        return self.take()

    def call(self, name, arguments):
        self.n += 1
        answer = self.ask(n=self.n, function=name, arguments=packed(list(arguments)))
        for mine, theirs in zip(arguments, opened(answer["arguments"])):
            update(mine, theirs)
        if answer["printed"]:
            print(textwrap.indent(readable(answer["printed"]).rstrip(), "the submission prints: ", lambda line: True))
        result, leaves = opened(answer["result"]), leaves_of(arguments)
        if leaves and isinstance(result, torch.Tensor) and result.requires_grad:
            return Through.apply(self, self.n, result.detach(), *(arguments[i] for i in leaves))
        return result

    def backward(self, n, slope):
        return opened(self.ask(n=n, slope=slope)["slopes"])

    def close(self):
        try:
            os.killpg(self.process.pid, 9)
        except ProcessLookupError:
            pass
        self.process.wait()


def readable(text):
    """A text without what moves a terminal's cursor or changes its colours."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


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


@torch.no_grad()
def update(mine, theirs):
    """Makes an argument here what it has become there, so that a change in place is seen."""
    if isinstance(mine, torch.Tensor):
        if mine.shape != theirs.shape or mine.dtype != theirs.dtype:
            mine.data = theirs.detach()
        elif not torch.equal(mine, theirs):
            mine.copy_(theirs)
    elif isinstance(mine, torch.Generator):
        mine.set_state(theirs.get_state())
    elif isinstance(mine, torch.nn.Module):
        for name, weight in mine.named_parameters():
            update(weight, getattr(theirs, name))
    elif isinstance(mine, tuple):
        for part, then in zip(mine, theirs):
            update(part, then)
    elif isinstance(mine, list):
        if mine != theirs:
            mine[:] = theirs
    elif isinstance(mine, set):
        if mine != theirs:
            mine.clear()
            mine.update(theirs)
    elif isinstance(mine, dict):
        for name in [name for name in mine if name not in theirs]:
            del mine[name]
        for name, part in theirs.items():
            if isinstance(part, torch.Tensor) and name in mine:
                update(mine[name], part)
            else:
                mine[name] = part
    elif hasattr(mine, "tokens"):  # a row of A2
        for name, part in vars(theirs).items():
            if isinstance(part, torch.Tensor):
                update(getattr(mine, name), part)


def grade(path, folder, seeds, seconds=180.0):
    """[(seed, [(test, points won, points there are, message or None)])] of a file, graded as an assignment."""
    sys.path[:0] = [str(HERE), str(ROOT), str(folder)]
    import student_copy
    from grading import functions_of, load, outcome, tests_of

    path, results = Path(path), []
    if not path.is_file() or path.suffix != ".py":
        raise ValueError(f"{path} is no .py file: give the one file that was handed in.")
    (tests,) = (load(file) for file in folder.glob("test_a*.py"))
    with tempfile.TemporaryDirectory() as made:
        course, place = Path(made) / "course", Path(made) / "submission"
        student_copy.make(course, [folder.name])
        place.mkdir()
        shutil.copyfile(path, place / "student.py")
        shutil.copyfile(HERE / "grade.py", Path(made) / "grade.py")
        lock(Path(made), False)
        try:
            for seed in seeds:
                remote = Remote(place / "student.py", course, seconds, functions_of(folder / "student.py"))
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

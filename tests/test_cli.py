"""What all commands share: options that cannot be, how a command ends, and what torchrun says."""

import dataclasses
import os
import signal
import subprocess
import sys

import pytest

from nanoct import cli


def parser():
    p = cli.Parser(prog="x", description="First line.\nSecond line.")
    for name in ("--n-step", "--seed", "--k", "--rank", "--workers", "--tasks"):
        p.add_argument(name, type=int)
    p.add_argument("--seeds", nargs="+", type=int)
    for name in ("--lr", "--decay"):
        p.add_argument(name, type=float)
    for name in ("--out", "--report", "--template"):
        p.add_argument(name)
    return p


@pytest.mark.parametrize("option, value", [
    ("n-step", -1), ("n-step", 10**12), ("seed", -1), ("seed", 10**30), ("seeds", 2**63), ("k", 10**9),
    ("rank", 10**23), ("workers", 5000), ("tasks", -1), ("lr", "nan"), ("lr", "inf"), ("lr", "-inf"), ("lr", "1e300"),
    ("decay", "nan"), ("decay", "-1e10"), ("decay", "1e300")])
def test_a_number_out_of_bounds_is_named(option, value):
    with pytest.raises(ValueError) as error:
        parser().parse_args(["--seeds", "1", str(value)] if option == "seeds" else [f"--{option}={value}"])
    shown = float(value) if option in ("lr", "decay") else value
    assert str(error.value).startswith(f"--{option} {shown} must be a number from ")


def test_the_bounds_themselves():
    found = parser().parse_args(f"--seed {2**63 - 1} --k 1000000 --n-step 0 --lr -1 --seeds 0 1 --workers 1024".split())
    assert (found.seed, found.k, found.n_step, found.lr, found.seeds) == (2**63 - 1, 10**6, 0, -1.0, [0, 1])


@dataclasses.dataclass
class Config:
    lr: float = 1e-3
    rank: int = 8
    n_step: int = 1
    alpha: float = 1.0
    leave_one_out: bool = True
    start: str = "demos"


@pytest.mark.parametrize("text", [
    "lr=1e300", "lr=nan", "lr=inf", "rank=-1", f"rank={10**23}", f"rank={'9' * 5000}", "n_step=1e3", f"n_step={10**12}",
    "alpha=1e10", "alpha=-inf", "leave_one_out=1", "lr=", "rank=x"])
def test_settings_have_the_same_bounds(text):
    name, _, value = text.partition("=")
    with pytest.raises(ValueError, match=f"^--set lora.{name}=") as error:
        cli.configs("lora", Config, {}, {name: ["1", value]})
    assert "\n" not in str(error.value) and len(str(error.value)) < 300
    with pytest.raises(ValueError, match=f"^--set {name}="):
        cli.value(f"--set {name}", value, next(f.type for f in dataclasses.fields(Config) if f.name == name))


def test_settings_within_them():
    made = cli.configs("lora", Config, dict(rank=[4]), dict(lr=["1e-2", "3e-2"], start=["noise"]))
    assert made == [dict(dataclasses.asdict(Config()), rank=4, lr=lr, start="noise") for lr in (1e-2, 3e-2)]


def test_a_setting_of_a_method_that_does_not_run():
    with pytest.raises(ValueError, match="--set 'icl.x=1': write METHOD.FIELD=VALUE, the method one of ct_kv, ttt"):
        cli.overrides(["ct_kv.lr=1", "icl.x=1"], ["ct_kv", "ttt"])


def test_an_empty_option_is_not_as_if_it_were_not_there():
    for option in ("--report", "--out"):
        with pytest.raises(ValueError, match=f"^{option} is empty: give it a value, or leave it out.$"):
            parser().parse_args([option, ""])
    assert parser().parse_args(["--template", ""]).template == ""


def test_a_parser_shows_the_first_line_of_a_docstring_or_none():
    assert parser().description == "First line." and cli.Parser(description=None).description == ""


def test_options_that_look_alike_are_shown_escaped():
    assert cli.not_among("a", ["b"]) == "'a' is not among the options ['b']"
    assert cli.not_among("日", ["本"]) == "'日' is not among the options ['本']"
    assert cli.not_among("e\u0301", ["\u00e9"]) == r"'e\u0301' is not among the options ['\xe9']"


# --- how a command ends ---


def python(code, *flags, **environment):
    code = f"from nanoct import cli\ndef main():\n    {code}\ncli.run(main)"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"} | environment
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return subprocess.Popen([sys.executable, *flags, "-c", code], env=environment, **pipes)


def test_a_reader_that_has_seen_enough_is_no_error():
    parse = "cli.Parser(prog='x').parse_args(['--help'])"
    for code in ("for i in range(100000): print('line', i)", "print('short')", parse):
        with python(code) as command:
            command.stdout.close()  # as `| head -0` does
            assert (command.wait(timeout=60), command.stderr.read()) == (0, b""), code


def test_an_error_is_said_to_a_reader_that_has_gone():
    with python("print('x'); raise ValueError('no')") as command:
        command.stdout.close()
        assert (command.wait(timeout=60), command.stderr.read()) == (2, b"error: no\n")


def test_ctrl_c_ends_with_130():
    heard = "import signal, time; signal.signal(signal.SIGINT, signal.default_int_handler); "  # a job of nohup is deaf
    with python(heard + "print('here', flush=True); time.sleep(60)") as command:
        command.stdout.readline()
        command.send_signal(signal.SIGINT)
        assert command.wait(timeout=60) == 130
        assert command.stderr.read() == b"\nstopped; the same command goes on from what is saved\n"


def test_ctrl_c_with_words_of_its_own(capsys):
    def main():
        raise KeyboardInterrupt("stopped; nothing is saved")

    with pytest.raises(SystemExit) as stop:
        cli.run(main)
    assert stop.value.code == 130 and capsys.readouterr().err == "stopped; nothing is saved\n"


def test_a_closed_stdin_is_an_empty_one(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", None)
    cli.run(lambda: print(sys.stdin.isatty(), repr(sys.stdin.readline())))
    assert capsys.readouterr().out == "False ''\n"


def test_whatever_stdout_is_all_is_shown():
    for encoding in ("ascii", "latin-1", "utf-8", "cp1252"):
        with python("print('1 ± 2 日 \\ud800')", PYTHONIOENCODING=encoding) as command:
            assert command.wait(timeout=60) == 0
            assert command.stdout.read() == "1 ± 2 日 \\ud800\n".encode(), encoding


def test_a_command_without_docstrings():
    with python("p = cli.Parser(prog='x', description=__doc__); p.parse_args(['--help'])", "-OO") as command:
        assert command.wait(timeout=60) == 0 and b"usage: x" in command.stdout.read()


def test_a_message_of_several_lines_is_one(capsys):
    def main():
        raise ValueError("there is no 'a\nb':\r\n  look again.")

    with pytest.raises(SystemExit) as stop:
        cli.run(main)
    assert stop.value.code == 2 and capsys.readouterr().err == "error: there is no 'a b': look again.\n"


def test_a_warning_is_one_line_without_a_place_in_the_code():
    with python("import warnings; warnings.warn('demos\\n  repeat.')") as command:
        assert (command.wait(timeout=60), command.stderr.read()) == (0, b"warning: demos repeat.\n")


# --- torchrun ---

TORCHRUN = dict(RANK="1", WORLD_SIZE="2", LOCAL_RANK="1", MASTER_ADDR="localhost", MASTER_PORT="29500")


@pytest.fixture
def environment(monkeypatch):
    def set_to(values):
        for name in TORCHRUN:
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return set_to


def test_ranks_as_torchrun_says_them(environment, capsys):
    environment(TORCHRUN)
    assert cli.ranks() == (1, 2, 1)
    environment({})
    assert cli.ranks() == (0, 1, 0) and not capsys.readouterr().err


@pytest.mark.parametrize("left", [("WORLD_SIZE",), ("WORLD_SIZE", "RANK"), ("WORLD_SIZE", "RANK", "LOCAL_RANK"),
                                  ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_PORT")])
def test_a_stray_world_size_is_one_process(environment, capsys, left):
    environment({name: TORCHRUN[name] for name in left})
    assert cli.ranks() == (0, 1, 0)
    assert "WORLD_SIZE is '2'" in (said := capsys.readouterr().err) and said.count("\n") == 1
    environment(dict(RANK="7"))
    assert cli.ranks() == (0, 1, 0)


@pytest.mark.parametrize("wrong", [dict(RANK="2"), dict(RANK="-1"), dict(WORLD_SIZE="0"), dict(WORLD_SIZE="x"),
                                   dict(LOCAL_RANK="5")])
def test_ranks_that_cannot_be(environment, wrong):
    environment(TORCHRUN | wrong)
    name, value = next(iter(wrong.items()))
    with pytest.raises(ValueError, match=f"{name}={value}.* cannot be: start with torchrun, or unset them.$"):
        cli.ranks()


def test_a_setting_that_is_given_twice_is_no_silent_choice():
    with pytest.raises(ValueError, match=r"--set ct_kv\.lr is given twice"):
        cli.overrides(["ct_kv.lr=1e-3", "icl.lr=1", "ct_kv.lr=1e-2"], ["ct_kv", "icl"])


def test_nesting_that_is_met_late_is_a_sentence(capsys):
    """Python reads some hundred levels; to show or copy them it needs as many again."""
    def main():
        raise RecursionError("maximum recursion depth exceeded")

    with pytest.raises(SystemExit) as stop:
        cli.run(main)
    assert stop.value.code == 2 and capsys.readouterr().err.startswith("error: a file is nested too deep")


# --- what nobody reads, and Ctrl-C before there is anything to end ---

WORKS = ("import time; from pathlib import Path; from tqdm import tqdm; "
         "bar = tqdm(total=3, mininterval=0, miniters=0); "
         "[(print('x', flush=True), bar.update(), tqdm.write('y'), time.sleep(0.1)) for _ in range(3)]; bar.close(); "
         "print('warned', file=__import__('sys').stderr, flush=True); Path({file!r}).write_text('done')")


def shell(text, code, tmp_path):
    """Run python -c code in a bash command: `PYTHON` in the text. Returns the exit codes of its pipe, as text."""
    (tmp_path / "mine.py").write_text(f"from nanoct import cli\ndef main():\n    {code}\ncli.run(main)")
    command = f"{text.replace('PYTHON', f'{sys.executable} mine.py')}; echo ${{PIPESTATUS[*]}} >&3"
    done = subprocess.run(["bash", "-c", f"exec 3>codes; {command}"], cwd=tmp_path, capture_output=True, timeout=100,
                          env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"})
    return (tmp_path / "codes").read_text().split()[0], done


@pytest.mark.parametrize("text", [
    "PYTHON 2>&-", "PYTHON >&- 2>&-", "PYTHON 2>&1 | head -1", "PYTHON 2>&1 | true", "PYTHON | true", "PYTHON <&- 2>&-",
    "PYTHON 2>/dev/full"])
def test_work_goes_on_whoever_reads_what_it_says(text, tmp_path):
    code, done = shell(text, WORKS.format(file=str(tmp_path / "out")), tmp_path)
    assert code == "0" and b"rror" not in done.stderr and (tmp_path / "out").read_text() == "done"


@pytest.mark.parametrize("text", ["PYTHON 2>&-", "PYTHON 2>&1 | true", "PYTHON 2>/dev/full"])
def test_the_exit_code_of_an_error_is_2_whoever_reads_it(text, tmp_path):
    assert shell(text, "print('x', flush=True); raise ValueError('no')", tmp_path)[0] == "2"


def test_a_result_that_does_not_fit_on_the_disk_of_stdout_is_an_error(tmp_path):
    code, done = shell("PYTHON >/dev/full", "print('x')", tmp_path)
    assert code == "2" and done.stderr == b"error: [Errno 28] No space left on device\n"


def test_what_is_written_to_a_closed_stderr_gets_into_no_file(tmp_path):
    code = "import os; file = open('out', 'w'); os.write(2, b'a warning of a library'); file.write('mine')"
    assert shell("PYTHON <&- 2>&-", code, tmp_path)[0] == "0" and (tmp_path / "out").read_text() == "mine"


INSTALLED = "import sys; sys.argv = ['nanoct', 'tune', '--help']; from nanoct.__main__ import main; main()"


STOPPED = b"\nstopped; the same command goes on from what is saved\n"


@pytest.mark.parametrize("how, ends", [  # a shell gives 130 for a process that SIGINT has ended
    (["-m", "nanoct.tune", "--help"], (-signal.SIGINT, b"")), (["-c", INSTALLED], (130, STOPPED))])
def test_ctrl_c_while_torch_is_imported_shows_no_trace(how, ends, tmp_path):
    (tmp_path / "torch.py").write_text("import time\nprint(flush=True)\ntime.sleep(60)")
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    heard = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen([sys.executable, *how], env=os.environ | dict(PYTHONPATH=paths), stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, preexec_fn=heard) as command:
        command.stdout.readline()
        command.send_signal(signal.SIGINT)
        said = command.communicate(timeout=60)[1]
    assert (command.returncode, said) == ends

"""saccade COMMAND: one name in front of every command, instant until one is called."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from importlib import import_module

import pytest

from saccade import __version__
from saccade.cli import COMMANDS, main


def call(*argv, capsys):
    with pytest.raises(SystemExit) as stop:
        main(list(argv))
    return stop.value.code, *capsys.readouterr()


def test_help_names_every_command_and_loads_no_torch():
    code = (
        "import sys, atexit; atexit.register(lambda: print(sorted({'torch', 'numpy', 'PIL'} & set(sys.modules))));"
        "from saccade.cli import main; main(['--help'])"
    )
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert time.monotonic() - start < 3  # 0.05 s where nothing else runs; with torch 3 s and more
    assert all(f"\n  {name} " in done.stdout for name in COMMANDS) and done.stdout.endswith("\n[]\n")


def test_version_is_the_packages(capsys):
    assert call("--version", capsys=capsys) == (0, f"saccade {__version__}\n", "")


def test_without_a_command_the_help_is_printed(capsys):
    assert call(capsys=capsys) == call("--help", capsys=capsys)


@pytest.mark.parametrize(
    ("wrong", "hint"), [("trian", "did you mean train?"), ("Eval", "did you mean eval?"), ("zzz", "bench")]
)
def test_an_unknown_command_is_one_sentence_with_the_nearest(wrong, hint, capsys):
    code, out, err = call(wrong, capsys=capsys)
    assert (code, out, err.count("\n")) == (2, "", 1) and wrong in err and hint in err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--methd", "stec"], "unknown argument --methd (did you mean --method?)"),
        (["--epochs", "ten"], "--epochs: invalid int value: 'ten'"),
        (["--method"], "--method: expected one argument"),
    ],
)
def test_a_wrong_flag_is_one_sentence(flags, words, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", sys.argv)
    code, out, err = call("train", *flags, capsys=capsys)
    assert (code, out, err.count("\n")) == (2, "", 1) and err.startswith("saccade train: ") and words in err


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_has_its_name_and_an_example(name, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", sys.argv)
    code, out, _ = call(name, "--help", capsys=capsys)
    assert code == 0 and out.startswith(f"usage: saccade {name} ")
    examples = re.findall(rf"^  saccade {name} (.*?)(?:  .*)?$", out[out.index("\nexamples:") :], re.MULTILINE)
    parser = import_module(COMMANDS[name][0]).parser()
    assert examples and all(parser.parse_args(shlex.split(example.partition(" >")[0])) for example in examples)


def test_a_commands_bad_input_is_signed_with_the_commands_name(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", sys.argv)
    assert call("recipes", "resb", capsys=capsys)[0] == 2
    code, _, err = call("preview", "--rows", "0", capsys=capsys)
    assert code == 2 and err.startswith("saccade preview: --rows 0") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "flags"), [("train", ["--steps", "0"]), ("eval", ["nowhere"]), ("doctor", ["--lr", "x"])]
)
def test_the_commands_of_a_checkout_are_signed_so_too(name, flags, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", sys.argv)
    code, _, err = call(name, *flags, capsys=capsys)
    assert code == 2 and f"saccade {name}: " in err


def test_bash_completes_commands_flags_methods_and_files(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", sys.argv)
    code, script, _ = call("completion", "bash", capsys=capsys)
    assert code == 0
    (tmp_path / "photos.npz").touch()
    for line, wanted in (
        ("saccade ev", "eval"),
        ("saccade train --ba", "--batch-size"),
        ("saccade train --method rss", None),
        ("saccade train --method ress", "ressl"),
        ("saccade train --data ph", "photos.npz"),
        ("saccade convert ph", "photos.npz"),
    ):
        typed = f"COMP_WORDS=({line}); COMP_CWORD={len(line.split()) - 1}"
        ask = f'{script}\n{typed}; _shtab_saccade; echo "${{COMPREPLY[@]}}"'
        done = subprocess.run(["bash", "-c", ask], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert (wanted in done.stdout.split()) if wanted else not done.stdout.split(), (line, done.stdout, done.stderr)


def test_ctrl_c_in_a_command_ends_with_130(tmp_path):
    """Started as a shell starts it; interrupted once it has said that it works."""
    argv = [sys.executable, "-m", "saccade.cli", "survey", "--methods", "simclr", "--steps", "100000"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(argv, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr
        assert process.stderr.readline().startswith("[1/1] simclr")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130 and "saccade survey: interrupted" in process.stderr.read()

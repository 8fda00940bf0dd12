"""Terminals and pipes that cannot take what is printed, and what is imported for help."""

import errno
import os
import shlex
import signal
import subprocess
import sys
import tempfile

import pytest

from condconv.cli import models
from condconv.cli.main import main
from condconv.cli.output import describe_refusal, path_line
from condconv.errors import TrainingInterrupted, command_line, one_line, shown

# What a shell starts in the background ignores Ctrl-C, and so does what it starts in turn.
LISTENS = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"


def python(code: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, **options)


COMMAND = "import sys; from condconv.cli.main import main; sys.exit(main(sys.argv[1:]))"


def test_help_needs_neither_torch_nor_numpy():
    code = (
        "import sys\nfrom condconv.cli.main import create_parser\nparser = create_parser()\n"
        "for action in parser._actions:\n"
        "    for each in (action.choices or {}).values():\n"
        "        each.format_help()\n"
        "print([name for name in ('torch', 'numpy', 'timm', 'matplotlib', 'PIL') if name in sys.modules])"
    )
    assert python(code).stdout == "[]\n"


@pytest.mark.parametrize("words", [[], ["--quiet"]])
def test_quiet_is_for_the_bars_of_other_packages_too(words):
    code = (
        "from condconv.cli.main import main\n"
        f"main({['evaluate', 'none', *words]})\n"
        "from tqdm import tqdm\n"
        "list(tqdm(range(3), 'split'))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TQDM_DISABLE"}
    assert ("split" in python(code, env=environment).stderr) == (not words)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", ["--version", "--help", "train --help"])
def test_a_full_disk_is_one_line(words, unbuffered):
    if not os.path.exists("/dev/full"):  # noqa: PTH110
        pytest.skip("no /dev/full here")
    with open("/dev/full", "w") as full:  # noqa: PTH123
        command = [sys.executable, "-c", COMMAND, *words.split()]
        environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment)
    assert done.returncode == 1
    assert done.stderr.startswith("condconv: error: `stdout` must be writable, got 'No space left on device': ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_stream_that_is_closed_is_no_error(closed):
    command = [sys.executable, "-c", COMMAND, "train", "--epochs", "x"]
    done = subprocess.run(f"{shlex.join(command)} {closed}", shell=True, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == (0 if "2>" in closed else 1)


def test_a_terminal_in_ascii_gets_escapes():
    code = (
        "import sys; sys.argv = ['x']\nfrom condconv.cli.output import path_line, prepare_output\nprepare_output()\n"
        + ("print('0.5 \\u00b1 0.1', 'caf\\udce9')")
    )
    done = python(code, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stdout) == (0, "0.5 \\xb1 0.1 caf\\udce9\n")


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (
            OSError(errno.EMFILE, "Too many open files"),
            1,
            "`condconv` must get the resources it requests, got 'Too ma",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "a\x1bb"),
            2,
            "got a\\x1bb (Permission denied): check the path",
        ),
    ],
)
def test_what_the_system_refuses_is_one_line(capsys, monkeypatch, error, status, message):
    def raising(arguments):
        raise error

    monkeypatch.setattr(models, "run", raising)
    assert main(["models"]) == status
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_a_command_to_type_again_keeps_its_words(capsys, monkeypatch):
    def raising(arguments):
        raise TrainingInterrupted("two are saved")

    monkeypatch.setattr(models, "run", raising)
    assert main(["models", "a   b\nc"]) == 130
    hint = capsys.readouterr().err.partition("to resume: ")[2]
    assert hint == "condconv models $'a   b\\x0ac'\n"


@pytest.mark.parametrize(
    "word", ["plain", "two  spaces", "it's", "new\nline", "back\\slash\t", "caf\udce9", "é\x1b[0m"]
)
def test_a_shell_reads_the_words_that_were_written(word):
    code = "import os, sys; sys.stdout.buffer.write(os.fsencode(sys.argv[1]))"
    command = command_line([sys.executable, "-c", code, word])
    assert command.isprintable()
    done = subprocess.run(["bash", "-c", command], capture_output=True)
    assert done.stdout == os.fsencode(word)


def test_lines_are_joined_and_spaces_kept():
    assert one_line("first  part\n  second\x1b[1m\n") == r"first  part second\x1b[1m"


def test_values_without_a_text_are_shown_by_their_kind():
    nested: list = []
    for _ in range(100_000):
        nested = [nested]
    assert [shown(10**5000), shown(nested)] == ["<int>", "<list>"]


def test_a_second_signal_ends_the_process_at_once():
    code = (
        LISTENS + "import time\n"
        "from condconv.cli.signals import stopped_by_signals\n"
        "with stopped_by_signals():\n"
        "    try:\n"
        "        signal.raise_signal(signal.SIGINT)\n"
        "    finally:\n"
        "        signal.raise_signal(signal.SIGTERM)\n"
        "        time.sleep(100)\n"
    )
    done = python(code, timeout=30)
    assert done.returncode == 130
    assert done.stderr == (
        "condconv: interrupted again: stopped at once; finished epochs are kept, and the same command resumes\n"
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes are forked here")
def test_forked_processes_leave_ctrl_c_to_the_one_that_forked_them():
    code = (
        LISTENS + "import os, time\n"
        "from condconv.cli.signals import stopped_by_signals\n"
        "with stopped_by_signals():\n"
        "    number = os.fork()\n"
        "    if not number:\n"
        "        signal.raise_signal(signal.SIGINT)\n"
        "        signal.raise_signal(signal.SIGINT)\n"
        "        signal.raise_signal(signal.SIGTERM)\n"
        "        time.sleep(100)\n"
        "    print(os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]))\n"
    )
    done = python(code, timeout=30)
    assert (done.stdout, done.stderr) == (f"{128 + signal.SIGTERM}\n", "")


def test_a_path_is_printed_whole_with_what_a_terminal_would_obey_escaped():
    assert path_line("runs/" + "long/" * 700) == "runs/" + "long/" * 700
    assert path_line("runs/\x1b]0;x\x07\n\u202e.html") == r"runs/\x1b]0;x\x07\n\u202e.html"


def test_a_system_without_a_temporary_directory(monkeypatch):
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/dev/null/none"])
    monkeypatch.setattr(tempfile, "tempdir", None)
    with pytest.raises(FileNotFoundError) as caught:
        tempfile.mkdtemp()
    message, status = describe_refusal(caught.value)
    assert message.startswith('`TMPDIR` must be a directory that can be written to, got "No usable temporary')
    assert message.endswith(": set it to one")
    assert status == 1

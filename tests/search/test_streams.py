"""A command answers wherever it was started: without streams, without letters, and where it may not write."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"
PROGRAM = "import sys; from binsweep.search.terminal.streams import settle_streams; settle_streams(); "
CLI = "from binsweep.search.cli.main import main; main()"


def python(shell: str, code: str, *words: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[bytes]:
    """Run Python by a shell, which closes or leads away streams."""
    return subprocess.run(
        ["bash", "-c", shell.replace("PYTHON", '"$@"'), "bash", sys.executable, "-c", code, *words],
        cwd=cwd,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(SOURCE), **env},
        capture_output=True,
        timeout=120,
    )


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_leads_nowhere_and_no_file_gets_its_number(closed: str, tmp_path: Path) -> None:
    code = PROGRAM + (
        "print('said'); print('progress', file=sys.stderr); number = open('f', 'w').fileno(); "
        "sys.stdin.read(); assert not sys.stdout.isatty(); assert number > 2, number; open('done', 'w')"
    )
    done = python(f"PYTHON {closed}", code, cwd=tmp_path)
    assert done.returncode == 0 and (tmp_path / "done").exists(), done.stderr.decode()


@pytest.mark.parametrize("away", ["2> >(true)", "2>/dev/full"])
def test_progress_that_nobody_can_read_ends_nothing(away: str, tmp_path: Path) -> None:
    code = PROGRAM + (
        "import time; time.sleep(0.3)\n"
        "for _ in range(3000): print('progress' * 9, file=sys.stderr, flush=True)\nprint('done')"
    )
    done = python(f"PYTHON {away}", code, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, b"done\n")


@pytest.mark.parametrize(
    "env",
    [
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"},
    ],
)
def test_letters_outside_the_locale_are_written_in_files_and_never_end_a_command(
    env: dict[str, str], tmp_path: Path
) -> None:
    code = PROGRAM + (
        "from pathlib import Path; Path('ü.txt').write_text('日本'); print('ü \\udcff', sys.argv[1:])"
    )
    (tmp_path / "code.py").write_text(code)
    run = "exec(open('code.py', encoding='utf-8').read())"
    done = python("PYTHON", run, "höme", cwd=tmp_path, **env)
    assert done.returncode == 0, done.stderr.decode()
    assert (tmp_path / "ü.txt").read_bytes() == "日本".encode()
    assert b"\\udcff" in done.stdout
    if "PYTHONIOENCODING" not in env:
        assert "höme" in done.stdout.decode()


def test_an_answer_without_a_reader_or_room_is_one_line_at_most(tmp_path: Path) -> None:
    ended = python("PYTHON | true; exit ${PIPESTATUS[0]}", CLI, "--help", cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (141, b"")  # 128 + SIGPIPE


@pytest.mark.parametrize("env", [{}, {"PYTHONUNBUFFERED": "1"}], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("words", [["--version"], ["--help"], ["doctor", "--help"]])
def test_a_result_that_stdout_cannot_take_is_one_line(
    words: list[str], env: dict[str, str], tmp_path: Path
) -> None:
    full = python("PYTHON > /dev/full", CLI, *words, cwd=tmp_path, **env)
    said = b"binsweep: the result cannot be written: No space left on device\n"
    assert (full.returncode, full.stderr) == (1, said)
    ended = python("PYTHON | true; exit ${PIPESTATUS[0]}", CLI, *words, cwd=tmp_path, **env)
    assert (ended.returncode, ended.stderr) == (141, b"")


def test_a_result_longer_than_a_buffer_that_stdout_cannot_take_is_one_line(tmp_path: Path) -> None:
    code = "from binsweep.search.cli.main import cli, main; cli.callback = lambda debug: print('x' * 10**6); main()"
    full = python("PYTHON > /dev/full", code, "status", cwd=tmp_path)
    said = b"binsweep: the result cannot be written: No space left on device\n"
    assert (full.returncode, full.stderr) == (1, said)


@pytest.mark.parametrize(
    ("home", "command"),
    [
        ("file", "status"),
        ("what?", "status"),
        ("a%20b", "sweep"),
        ("~nobody-of-this-name/x", "status"),
        ("/proc/none", "sweep"),
    ],
)
def test_a_home_that_cannot_be_used_is_told_before_any_work(
    home: str, command: str, tmp_path: Path, bins: Path
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "s.yaml").write_text(
        f"name: s\ndata: {{source: {bins}, image_size: 64}}\nmodel: {{weights: none}}\n"
        "space: {lr: {low: 0.001, high: 0.1, log: true}}\nbudget: {trials: 1}\n"
    )
    words = ["sweep", "s.yaml", "--runner", "local"] if command == "sweep" else [command]
    done = python("PYTHON", CLI, *words, cwd=tmp_path, BINSWEEP_HOME=home)
    assert done.returncode == 2, done.stderr.decode()
    assert b"BINSWEEP_HOME" in done.stderr and b"reading the data" not in done.stderr
    assert not done.stdout and done.stderr.count(b"\n") == 2


def test_a_place_that_may_not_be_read_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    words = ["data", "synth", str(tmp_path / "out" / "bins"), "--images", "3"]
    done = python("PYTHON", CLI, *words, cwd=tmp_path)
    assert done.returncode == 2 and b"out" in done.stderr and b"failed" not in done.stderr, done.stderr


def test_a_working_folder_that_was_deleted_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    done = python("cd gone && rmdir ../gone && PYTHON", CLI, "status", cwd=tmp_path)
    assert done.returncode == 2 and not done.stdout
    assert b"does not exist any more" in done.stderr and done.stderr.count(b"\n") == 2, done.stderr

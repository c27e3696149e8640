"""`mae-pipe slurm`: the script is run as SLURM would run it, with an srun that starts real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from mae_pipe import cli
from mae_pipe.errors import MaePipeError
from tests.tiny import losses, prepared

SRUN = f"""#!{sys.executable}
import json, os, subprocess, sys

words = sys.argv[1:]
while words[0].startswith("--"):
    words.pop(0)
count = int(os.environ["STUB_TASKS"])
step = {{"SLURM_NTASKS": str(count), "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "localhost"}}
tasks = [
    subprocess.Popen(words, env=os.environ | step | {{"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}})
    for rank in range(count)
]
with open(os.environ["STUB_PIDS"], "w") as file:
    json.dump([task.pid for task in tasks], file)
codes = [task.wait() for task in tasks]
sys.exit(max(code if code >= 0 else 128 - code for code in codes))  # the highest, or 128 and the signal
"""
EPOCHS = 30


def written(*arguments: str) -> Result:
    return CliRunner().invoke(cli._group, ["slurm", *arguments], standalone_mode=False)


def script_of(*arguments: str) -> str:
    done = written(*arguments)
    assert done.exception is None, done.exception
    return done.stdout


def refusal(*arguments: str) -> str:
    error = written(*arguments).exception
    assert isinstance(error, (click.ClickException, MaePipeError)), error
    return error.format_message() if isinstance(error, click.ClickException) else str(error)


class Cluster:
    """A node on which SLURM's commands are stubs."""

    def __init__(self, folder: Path) -> None:
        self.pids, self.calls = folder / "pids", folder / "calls"
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.command("srun", SRUN)
        self.command("scontrol", f'#!/bin/bash\necho "$@" >>{self.calls}\n')
        self.job = str(os.getpid())  # launch.join makes the port of it

    def command(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def start(self, script: str, tasks: int = 2) -> subprocess.Popen[str]:
        self.pids.unlink(missing_ok=True)
        environment = os.environ | {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "STUB_TASKS": str(tasks),
            "STUB_PIDS": str(self.pids),
            "SLURM_JOB_ID": self.job,
            "RANK": "7",  # left behind in the shell that submits
            "MASTER_ADDR": "nowhere.invalid",
        }
        return subprocess.Popen(["bash", "-c", script], env=environment, stderr=subprocess.PIPE, text=True)

    def run(self, script: str, tasks: int = 2) -> tuple[int, str]:
        with self.start(script, tasks) as job:
            _, said = job.communicate(timeout=120)
        return job.returncode, said

    def requeued(self) -> int:
        calls = self.calls.read_text().splitlines() if self.calls.exists() else []
        assert set(calls) <= {f"requeue {self.job}"}
        return len(calls)


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


def test_a_job_that_is_asked_to_stop_is_queued_again_and_ends_the_run(
    cluster: Cluster, image_folder: Path, tmp_path: Path
) -> None:
    recipe, shards = prepared(image_folder, tmp_path, epochs=EPOCHS)
    run = tmp_path / 'it\'s "a" $(touch ran)'
    journal = run / "metrics.jsonl"
    about = "two\nlines; `touch ran` ' \" $HOME"
    text = script_of(
        str(recipe), "--shards", str(shards), "--out", str(run), "--gpus", "2", "--set", f"about={about}",
        "--prologue", "export OMP_NUM_THREADS=1",
    )  # fmt: skip
    with cluster.start(text) as job:
        deadline = time.monotonic() + 100
        while not (journal.exists() and journal.read_text().count("\n") > 2) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert job.poll() is None, job.stderr and job.stderr.read()
        for pid in json.loads(cluster.pids.read_text()):
            os.kill(pid, signal.SIGUSR1)
        _, said = job.communicate(timeout=100)
    assert "exit code 75; the job is queued again" in said
    assert cluster.requeued() == 1
    stopped = max(losses(run))
    assert stopped < 3 * EPOCHS
    assert (run / "checkpoints" / f"step-{stopped:07d}").is_dir()

    code, said = cluster.run(text)
    assert code == 0, said[-3000:]
    assert cluster.requeued() == 1
    assert list(losses(run)) == list(range(1, 3 * EPOCHS + 1))
    assert json.loads((run / "recipe.json").read_text())["about"] == about
    assert json.loads((run / "run.json").read_text())["world"] == 2
    assert not list(tmp_path.rglob("ran"))


PLAIN = ("digits", "--shards", "s", "--out", "/tmp/run", "--gpus", "2")


@pytest.mark.parametrize(
    ("code", "said_by_job", "requeued"),
    [(0, 0, 0), (3, 3, 0), (8, 8, 0), (130, 130, 0), (75, 0, 1), (9, 0, 1), (137, 0, 1), (253, 0, 1)],
)
def test_which_exit_codes_queue_the_job_again(
    cluster: Cluster, tmp_path: Path, code: int, said_by_job: int, requeued: int
) -> None:
    cluster.command("srun", f"#!/bin/bash\nexit {code}\n")
    found, _ = cluster.run(script_of(*PLAIN, "--out", str(tmp_path / "a run")))
    assert (found, cluster.requeued()) == (said_by_job, requeued)


def test_ranks_may_be_lost_so_often_between_two_planned_stops(cluster: Cluster, tmp_path: Path) -> None:
    code = tmp_path / "code"
    cluster.command("srun", f"#!/bin/bash\nexit $(cat {code})\n")
    text = script_of(*PLAIN, "--out", str(tmp_path / "a run"), "--max-restarts", "2")
    ends = []
    for now in (9, 139, 75, 9, 9, 9):
        code.write_text(str(now))
        ends.append(cluster.run(text))
    assert [found for found, _ in ends] == [0, 0, 0, 0, 0, 9]
    assert cluster.requeued() == 5
    assert "after 2 restarts; the job is not queued again" in ends[-1][1]


def test_a_job_that_may_not_be_queued_again_ends_with_the_runs_code(cluster: Cluster, tmp_path: Path) -> None:
    cluster.command("srun", "#!/bin/bash\nexit 75\n")
    cluster.command("scontrol", "#!/bin/bash\necho 'Access denied' >&2\nexit 1\n")
    code, said = cluster.run(script_of(*PLAIN, "--out", str(tmp_path / "run")))
    assert code == 75
    assert "Access denied" in said


def test_nothing_starts_where_the_prologue_fails(cluster: Cluster, tmp_path: Path) -> None:
    cluster.command("srun", f"#!/bin/bash\ntouch {tmp_path}/started\n")
    code, said = cluster.run(script_of(*PLAIN, "--prologue", "true", "--prologue", "load cuda"))
    assert code == 127
    assert "load" in said
    assert not (tmp_path / "started").exists()


def read_by_sbatch(text: str) -> list[str]:
    """The options that sbatch finds: lines before the first command, where a backslash counts between any quotes."""
    options = []
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            break
        rest, word, quote = iter(line.removeprefix("#SBATCH ") if line.startswith("#SBATCH ") else ""), "", ""
        for letter in rest:
            if letter == "\\":
                word += next(rest)
            elif letter == quote:
                quote = ""
            elif not quote and letter in "\"'":
                quote = letter
            elif not quote and letter in " #":
                break
            else:
                word += letter
        options += [word] if word else []
    return options


def test_sbatch_and_bash_read_what_was_given(cluster: Cluster, tmp_path: Path) -> None:
    out = tmp_path / "100 % # 'run' \"\\"
    given = tmp_path / "given"
    cluster.command("srun", f'#!/bin/bash\nprintf "%s\\0" "$@" >{given}\n')
    text = script_of(
        *PLAIN, "--out", str(out), "--nodes", "4", "--cpus", "5", "--mem", "500G", "--time", "2-12", "--account", "a",
        "--partition", "p,q", "--sbatch", "--qos=long", "--set", "about=$(x)\n'y'", "--", "--split", "a b",
    )  # fmt: skip
    assert read_by_sbatch(text) == [
        f"--job-name={out.name}", "--nodes=4", "--ntasks-per-node=2", "--gpus-per-node=2", "--cpus-per-task=5",
        "--mem=500G", "--time=2-12", "--partition=p,q", "--account=a",
        f"--output={str(out).replace('%', '%%')}-%j.log", "--open-mode=append", "--signal=USR1@120", "--requeue",
        "--qos=long",
    ]  # fmt: skip
    assert cluster.run(text)[0] == 0
    assert given.read_text().split("\0") == [
        "--cpus-per-task=5", "--wait=600", "--kill-on-bad-exit=0", sys.executable, "-m", "mae_pipe", "pretrain",
        "digits", "--out", str(out), "--shards", str(Path.cwd() / "s"), "--set=about=$(x)\n'y'", "--split", "a b", "",
    ]  # fmt: skip


def test_a_probe_is_a_job_too_and_a_recipe_file_keeps_its_place(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text('task = "probe"\n[data]\nworkers = 6\n')
    text = script_of("mine.toml", "--verb", "probe", "--run", "r", "--out", "o", "--gpus", "1", "--python", "python3")
    command = f"python3 -m mae_pipe probe {tmp_path}/r --recipe {tmp_path}/mine.toml --out {tmp_path}/o"
    assert f"    {command} || code=$?" in text.splitlines()
    assert "--cpus-per-task=7" in read_by_sbatch(text)


def test_training_from_scratch_begins_from_a_recipe_by_name() -> None:
    job = ["--verb", "finetune", "--run", "mae_vit_base_patch16", "--out", "o", "--gpus", "1", "--", "--from-scratch"]
    text = script_of("scratch_vit_base", *job)
    assert " -m mae_pipe finetune mae_vit_base_patch16 --recipe scratch_vit_base --out " in text
    assert " --from-scratch || code=$?" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--time", "1 day"], "'1 day' is not of the form that SLURM reads, such as 24:00:00"),
        (["--mem", "lots"], "'lots' is not of the form"),
        (["--partition", "a b"], "'a b' is not of the form"),
        (["--sbatch", "--qos=a\nrm"], "is not of the form"),
        (["--job-name", "a\n#SBATCH --uid=0"], "cannot stand in a batch script"),
        (["--nodes", "0"], "0 is not in the range"),
        (["--nodes", "3"], "data.global_batch 64 does not divide over 6 processes"),
        (["--set", "mask.ratoi=1"], "mask.ratoi"),
        (["--verb", "finetune"], "is for 'pretrain', not for 'finetune'"),
        (["--run", "x"], "--run is for --verb probe and finetune"),
        (["--", "--splti", "x"], "No such option"),
        (["--out", "/not/there/run"], "there is no folder /not/there"),
    ],
)
def test_what_would_not_run_is_refused_before_it_is_queued(arguments: list[str], words: str) -> None:
    assert words in refusal(*PLAIN, *arguments)


def test_submitting(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    file = tmp_path / "job.sh"
    assert "there is no sbatch" in refusal(*PLAIN, "-o", str(file), "--submit")
    cluster.command("sbatch", f"#!/bin/bash\ncat >{tmp_path}/got\necho Submitted batch job 5\n")
    monkeypatch.setenv("PATH", f"{cluster.bin}:/usr/bin:/bin")
    done = written(*PLAIN, "-o", str(file), "--submit")
    assert done.stdout == "Submitted batch job 5\n"
    assert (tmp_path / "got").read_text() == file.read_text() == script_of(*PLAIN)
    cluster.command("sbatch", "#!/bin/bash\necho 'sbatch: error: invalid account' >&2\nexit 1\n")
    assert refusal(*PLAIN, "--submit") == "sbatch refused the job: sbatch: error: invalid account"

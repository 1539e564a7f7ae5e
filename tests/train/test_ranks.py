"""Several processes of one job: they compute what one computes, speak with one voice, and none is left behind alone."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import processes
import pytest
from makers import image_folder

from ofasearch import ranks as ranks_module
from ofasearch.cli.main import run
from ofasearch.errors import UsageError
from ofasearch.jobs.deliver import load_subnet
from ofasearch.jobs.run_folder import load_checkpoint
from ofasearch.ranks import Ranks, join
from ofasearch.supernet.weights import load_weights

ROOT = Path(ranks_module.__file__).parents[1]
PATIENCE = 600  # seconds that a child may take on a machine with other work
RECIPE = ["--space", "compofa-mbv3-cifar-w0.1", "--epochs", "3", "--batch-size", "32", "--lr", "0.02", "--evaluate-every", "0", "--json"]
STEPS = 7  # of an epoch


def environment(**more):
    network = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}  # no other machine takes part
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **network, **more}


def start(*argv):
    """Two processes of one command, in the environment that torchrun makes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    argv = [sys.executable, *map(str, argv)]
    return [subprocess.Popen(argv, env=environment(**job, RANK=str(n), LOCAL_RANK=str(n)), **pipes) for n in range(2)]


def ends(children):
    """Exit code, standard output and error of each."""
    found = []
    for child in children:
        out, err = child.communicate(timeout=PATIENCE)
        found.append((child.returncode, out, err))
    return found


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """The arguments of a training on small images: folder, further options."""
    data = image_folder(tmp_path_factory.mktemp("data") / "d", 112, sizes=((8, 8),))
    return lambda out, *more: ["-m", "ofasearch", "train", *RECIPE, "--data", data, "--out", out, *more]


# -- the same numbers ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def of_two(tmp_path_factory):
    """What two processes trained, by method."""
    out = tmp_path_factory.mktemp("two")
    assert ends(start(processes.__file__, out)) == [(0, "", "")] * 2
    return {name: dict(np.load(out / f"{name}.npz")) for name in processes.METHODS}


@pytest.mark.parametrize("name", processes.METHODS)
def test_two_processes_compute_what_one_computes_with_two_micro_batches(of_two, one_thread, name):
    losses, arrays = processes.trained(name, ranks=Ranks(), accumulate=2)
    found = of_two[name]
    assert found.pop("losses") == pytest.approx(losses, abs=1e-5)
    assert set(found) == set(arrays)
    assert max(np.abs(found[key] - array).max() for key, array in arrays.items()) < 1e-5


@pytest.mark.parametrize(("batch", "accumulate"), [(7, 1), (10, 2), (2, 1)])
def test_a_batch_that_the_processes_cannot_share_evenly_is_refused(batch, accumulate):
    from dataclasses import replace

    from test_loop import FULL_ALONE, PLAIN, PREPROCESSING, Painted

    from ofasearch.supernet.supernet import Supernet
    from ofasearch.train.loop import Trainer

    supernet, config = Supernet(processes.mobile_space(processes.DESIGN)), replace(PLAIN, batch_size=batch, accumulate=accumulate)
    with pytest.raises(
        UsageError, match=f"multiple of processes times accumulation, .* but {batch} images are cut into {2 * accumulate} parts"
    ):
        Trainer(supernet, FULL_ALONE, config, Painted(), PREPROCESSING, ranks=Ranks(1, 2, 1))


# -- a whole job -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unbroken(command, tmp_path_factory):
    """A run by torchrun: its folder, and all that its processes printed."""
    out = tmp_path_factory.mktemp("runs") / "unbroken"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, *map(str, command(out))], env=environment(), capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr
    return out, done.stdout, done.stderr


def test_only_the_first_process_prints_and_writes(unbroken):
    out, printed, said = unbroken
    record = json.loads(printed)  # one object, not two
    assert "ofasearch:" not in said
    lines = (out / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]
    assert {path.name for path in out.iterdir()} == {
        "run.json", "log.jsonl", "checkpoint.pt", "checkpoint.previous.pt", "supernet.safetensors",
    }  # fmt: skip
    training = load_weights(out / "supernet.safetensors").training
    assert (training["processes"], training["validation_top1"]) == (2, record["validation_top1"])
    assert record["device_hours"] == pytest.approx(2 * record["seconds"] / 3600)


def test_a_process_that_dies_ends_the_job_which_can_be_resumed(unbroken, command, tmp_path):
    out, checkpoint = tmp_path / "run", tmp_path / "run" / "checkpoint.pt"
    children = start(*command(out))
    while not checkpoint.exists():
        assert [child.poll() for child in children] == [None, None]
        time.sleep(0.01)
    os.kill(children[1].pid, signal.SIGKILL)
    killed = time.monotonic()
    (code, printed, said), (other, *_) = ends(children)
    assert time.monotonic() - killed < 60  # and not the hour that a process waits for a slow one
    assert (code, printed, other) == (1, "", -signal.SIGKILL)
    assert said.startswith("ofasearch: all processes of the job must stay alive and reachable, but one is not (")
    assert said.endswith("); start the job again with --resume\n")
    assert said.count("\n") == 1
    assert STEPS <= load_checkpoint(checkpoint)["step"] < 3 * STEPS
    assert not (out / "supernet.safetensors").exists()

    (code, printed, said), *silent = ends(start(*command(out, "--resume")))
    assert (code, said, silent) == (0, "", [(0, "", "")])
    assert json.loads(printed)["digest"] == json.loads(unbroken[1])["digest"]


def test_a_failure_of_the_first_process_ends_the_others(unbroken, command):
    (code, printed, said), (other, silent, reason) = ends(start(*command(unbroken[0])))
    assert (code, printed, other, silent) == (2, "", 1, "")
    assert said == f"ofasearch: {unbroken[0]} must be a new folder, but holds a run; add --resume to continue it\n"
    assert reason.startswith("ofasearch: all processes of the job must stay alive and reachable, but one is not (")


# -- the environment -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variables", [{"WORLD_SIZE": "2"}, {"WORLD_SIZE": "two"}, {"WORLD_SIZE": "2", "RANK": "first"}])
def test_half_an_environment_of_torchrun_is_wrong_usage(monkeypatch, capsys, tmp_path, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="several processes must be started by torchrun, which sets RANK and WORLD_SIZE"), join():
        pass
    assert run(["train", *RECIPE, "--data", "digits", "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_one_process_alone_exchanges_nothing(monkeypatch):
    monkeypatch.setattr(ranks_module, "_others_alive", None)
    with join() as alone:
        assert (alone, alone.first) == (Ranks(0, 1, 0), True)
        value = np.ones(3)
        alone.add([value])
        alone.share_tensors([value])
        alone.wait()
        assert (alone.share("x"), alone.gather(value)[0] is value) == ("x", True)


def test_two_processes_tune_one_network(tmp_path):
    few = ["--data", "digits", "--epochs", "1", "--batch-size", "256", "--lr", "0.01", "--json"]
    tune = ["-m", "ofasearch", "finetune", "compofa-mbv3-cifar@r32-2-2-2-2-2", *few, "--out"]
    (code, printed, said), *silent = ends(start(*tune, tmp_path / "two"))
    assert (code, said, silent) == (0, "", [(0, "", "")])
    record = json.loads(printed)
    assert record == json.loads((tmp_path / "two" / "result.json").read_text())
    assert record["training"]["processes"] == 2
    alone = subprocess.run(
        [sys.executable, *tune, str(tmp_path / "one"), "--accumulate", "2"],
        env=environment(),
        capture_output=True,
        check=True,
        timeout=PATIENCE,
    )
    expected = json.loads(alone.stdout)
    arrays = [load_subnet(tmp_path / name / "subnet.pt")[0].arrays for name in ("one", "two")]
    learned = [key for key in arrays[0] if "running" not in key]
    assert max(np.abs(arrays[0][key] - arrays[1][key]).max() for key in learned) < 1e-4
    assert record["after"]["validation_top1"] == pytest.approx(expected["after"]["validation_top1"], abs=0.02)

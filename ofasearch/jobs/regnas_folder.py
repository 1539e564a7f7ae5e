"""The folder of a `regnas` run: what was asked, so that it can go on; nothing where there is no answer."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ofasearch.errors import MismatchError, OfaSearchError, TrainingError, UsageError, WriteError
from ofasearch.jobs.inputs import DIGITS
from ofasearch.jobs.regnas_hunt import Campaign
from ofasearch.jobs.regnas_task import RegnasRequest
from ofasearch.jobs.reward_aim import Predicted
from ofasearch.records import check_writable, provenance, read_json, write_atomic, write_json

FORMAT = "ofasearch-regnas-1"
RUN = "run.json"


@contextlib.contextmanager
def opened(folder: Path, campaign: Campaign) -> Iterator[dict[str, Any]]:
    """See to it that the folder can take this run, and say in it what is asked; gives what was written.

    A question without an answer leaves no trace. What was evaluated is remembered apart from it, so that a run that is repeated goes
    on where it stopped. Raises UsageError (another kind of run lies there, or the reference), MismatchError (`resume` of another
    question), WriteError.
    """
    asked, file = _checked(folder, campaign), folder / RUN
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    former = file.read_bytes() if file.exists() else None
    try:
        if campaign.ranks.first:
            write_json(file, asked)
        yield asked
    except (TrainingError, WriteError):
        raise  # neither is the question's fault: it can go on
    except OfaSearchError:
        if campaign.ranks.first:
            _leave(file, former, made)
        raise


def _leave(file: Path, former: bytes | None, made: Sequence[Path]) -> None:
    """Put back what the file was, and remove the folders that were made for it if they are empty."""
    if former is not None:
        write_atomic(file, former)
        return
    file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        for path in made:
            path.rmdir()


def _checked(folder: Path, campaign: Campaign) -> dict[str, Any]:
    """What is written of the question, if the folder can take it."""
    file, request = folder / RUN, campaign.request
    asked = provenance(format=FORMAT, asked=_asked(request), inputs=_inputs(campaign))
    check_writable(file)
    if request.ref is not None and _is_in(folder, request.ref):
        raise UsageError(f"the reference must lie outside of the run's folder, but {request.ref} would be replaced; give another --out")
    if file.exists():
        known = read_json(file)
        if not isinstance(known, dict) or known.get("format") != FORMAT:
            raise UsageError(f"{folder} must be a new folder or that of an earlier regnas, but holds another run; give another --out")
        changed = [key for key in ("asked", "inputs") if known.get(key) != asked[key]]
        if request.find.resume and changed:
            raise MismatchError(
                f"a resumed run must keep what was asked and what it rests on, but {' and '.join(changed)} changed; start anew"
            )
    elif request.find.resume:
        raise UsageError(f"--resume needs the folder of an interrupted run, but {folder} holds none; leave it out to start one")
    return asked


def _is_in(folder: Path, reference: str) -> bool:
    """Whether a reference is a file that a run in the folder replaces."""
    if reference.lstrip().startswith("{"):
        return False  # JSON may be longer than the system lets a name be
    given = Path(reference)
    return any((folder / name).resolve() in (given.resolve(), (given / name).resolve()) for name in ("subnet.pt", "subnet.onnx"))


def _asked(request: RegnasRequest) -> dict[str, Any]:
    """All options but those that say where to write, as plain JSON."""
    record = asdict(request)
    find = {key: value for key, value in record["find"].items() if key not in ("out", "resume")}
    plain: dict[str, Any] = json.loads(json.dumps({**record, "find": find}))  # JSON knows no tuples
    return plain


def _inputs(campaign: Campaign) -> dict[str, str]:
    """Digests of what the run rests on."""
    found = {"supernet": campaign.supernet.weights.digest}
    if campaign.reference is not None:
        found |= {f"reference on {split}": _digest(p) for split, p in campaign.reference.predicted.items()}
    return found


def _digest(predicted: Predicted) -> str:
    return hashlib.sha256(predicted.astype("<i8").tobytes()).hexdigest()[:DIGITS]

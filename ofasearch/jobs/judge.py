"""What tells the accuracy of whole networks: a predictor, or the measured members of a shipped supernet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ofasearch import zoo
from ofasearch.errors import MismatchError
from ofasearch.evaluate.members import Members
from ofasearch.jobs.network import Network
from ofasearch.predictor import Predictor
from ofasearch.space.core import Settings, Values

PREDICTED, MEASURED = "accuracy predictor", "measured on the validation split"  # how a top-1 is known, in every answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """Top-1 (n,) of networks from their settings, and where it comes from; `rmse` is a predictor's stated error, a fraction."""

    name: str
    source: str  # worded as in the answer of `find`
    resolutions: tuple[int, ...]
    score: Callable[[Settings], Values]
    rmse: float | None = None

    @property
    def word(self) -> str:
        """What stands behind "top-1" in a heading."""
        return "validation" if self.source.startswith("measured") else "predicted"

    def top1(self, network: Network) -> float:
        """Of one network, a fraction."""
        assert network.space is not None
        assert network.codes is not None
        return float(self.score(network.space.settings(network.codes[None]))[0])


def find_judge(networks: Sequence[Network], predictor: str | None, digests: frozenset[str]) -> Judge | None:
    """What can judge all the networks: the predictor that was asked for, else what is shipped for their space, else None.

    `digests` are those of the weights that networks came with. Raises NotFoundError, FormatError, and MismatchError where a
    predictor was asked for that was not made for all of the networks.
    """
    if predictor is None:
        return next((judge for judge in _shipped(networks, digests) if _unknown(judge, networks) is None), None)
    alone = next((n.name for n in networks if n.space is None), None)
    if alone is not None:
        raise MismatchError(f"a network must belong to a design space to be predicted, but {alone} is layers alone; leave --predictor out")
    classes = sorted({n.space.classes for n in networks if n.space is not None})
    if len(classes) > 1:
        raise MismatchError(f"networks must have as many classes as each other to be compared by a predictor, but have {classes}")
    found = zoo.get_predictor(predictor)
    for network in networks:
        if network.space is not None:
            found.check_space(network.space)
    for digest in digests:
        found.check_supernet(digest)
    judge = _predicting(predictor, found)
    odd = _unknown(judge, networks)
    if odd is not None:
        raise MismatchError(
            f"resolution must be one of {list(judge.resolutions)} for the predictor, but that of {odd.name} is {odd.resolution}"
        )
    return judge


def _unknown(judge: Judge, networks: Sequence[Network]) -> Network | None:
    """A network whose resolution the judge does not know."""
    return next((n for n in networks if n.resolution not in judge.resolutions), None)


def _shipped(networks: Sequence[Network], digests: frozenset[str]) -> Iterator[Judge]:
    """What is shipped for the one space that all networks belong to, best known first."""
    spaces = {(n.space.name, n.space.classes) if n.space is not None else None for n in networks}
    space = spaces.pop()
    if spaces or space is None:
        return
    trained = zoo.load_supernet(zoo.DEFAULT_SUPERNET)
    weights = trained.weights
    if trained.members is not None and (weights.space.name, weights.space.classes) == space and digests <= {weights.digest}:
        yield _measured(trained.name, trained.members)
    for name in zoo.predictor_names():
        found = zoo.get_predictor(name)
        if found.space == space[0] and found.supernet_digest is not None and digests <= {found.supernet_digest}:
            yield _predicting(name, found)


def _measured(name: str, members: Members) -> Judge:
    top1 = members.top1("validation")
    return Judge(
        name=name,
        source=MEASURED,
        resolutions=members.space.resolutions,
        score=lambda settings: top1[members.index(members.space.from_settings(settings))],
    )


def _predicting(name: str, predictor: Predictor) -> Judge:
    held_out = predictor.card.get("held_out")
    rmse = held_out.get("rmse_points") if isinstance(held_out, dict) else None
    return Judge(
        name=name,
        source=PREDICTED,
        resolutions=predictor.encoder.resolutions,
        score=predictor,
        rmse=rmse / 100 if isinstance(rmse, int | float) else None,
    )

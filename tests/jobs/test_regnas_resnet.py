"""`regnas` on a ResNet space: what contains a network has its depths, ratios, widths and stem; the answer is that of counting."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from brute import Everything, drained
from tiny import DATA, supernet_of

import ofasearch
from ofasearch import zoo
from ofasearch.evaluate.subject import Subject
from ofasearch.jobs.regnas_hunt import begin, hunt
from ofasearch.jobs.regnas_task import RegnasRequest
from ofasearch.jobs.searching import FindRequest
from ofasearch.jobs.setup import Budgets, Question
from ofasearch.ranks import Ranks
from ofasearch.search.regnas import Reward
from ofasearch.space import families
from ofasearch.space.resnet import ResNetDesign, ResStage

DESIGN = ResNetDesign(
    name="tiny-resnet",
    stem=16,
    stem_stride=1,
    max_pool=False,
    stages=(ResStage(32, 2, 1),),
    classes=3,
    resolutions=(8,),
    depths=(0, 1),
    expands=(0.25, 0.5),
    widths=(0.5, 1.0),
)  # 2 stems of 2 widths (their middle has 8 channels at both), 2 widths and 2 + 4 blocks of the stage: 48 networks


@pytest.fixture(scope="module", autouse=True)
def supernet(tmp_path_factory):
    """A world whose only supernet is the tiny ResNet."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # one order of summation
    found = supernet_of("tiny-resnet", DESIGN.build(), seed=2, spread=0.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OFASEARCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setitem(families.DESIGNS, DESIGN.name, DESIGN)
        patch.setattr(zoo, "supernet_names", lambda: (DESIGN.name,))
        patch.setattr(zoo, "load_supernet", lambda _: found)
        for room in ("regnas_hunt", "find", "subnet"):
            patch.setattr(f"ofasearch.jobs.{room}.load_data", lambda _: DATA, raising=False)
        yield found
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def everything(supernet):
    """Every network calibrated and run for itself."""
    space, subject = supernet.weights.space, Subject("alone", supernet.weights, supernet.weights.space, DATA)
    codes, predicted = space.enumerate(), {"validation": [], "test": []}
    assert len(codes) == space.size == 48
    for row in codes:
        network = subject.calibrated([row])
        for split, rows in predicted.items():
            rows.append(subject.predict(network, [row], split, np.arange(len(DATA[split])))[0])
    return WithWidths(space, codes, {s: np.stack(rows) for s, rows in predicted.items()}, {s: DATA[s].labels for s in predicted})


class WithWidths(Everything):
    """Counting that knows widths and the stem."""

    def containing(self, row):
        kept = super().containing(row)
        return kept & (self.settings.w >= self.settings.w[row]).all(axis=1)


@pytest.fixture(scope="module")
def ref(everything):
    """A network that is neither the smallest nor alone in what contains it."""
    middle = [row for row in np.argsort(everything.macs) if 6 <= everything.containing(row).sum() <= 40]
    rates = [everything.nfr(everything.predicted["validation"][row]).mean() for row in middle]
    return everything.ids[middle[int(np.argmax(rates))]]


@pytest.mark.parametrize("cas", [True, False])
@pytest.mark.parametrize("reward", [Reward(kind="r0"), Reward(), Reward(lambda2=4)], ids=["r0", "r2", "r2 strict"])
def test_an_exact_search_finds_the_best_by_counting(everything, ref, reward, cas):
    row = everything.row(ref)
    question = Question(budgets=Budgets(macs=1e9), objective="measured")
    request = RegnasRequest(find=FindRequest(question=question, data="noise", algorithm="exact"), ref=ref, reward=reward, cas=cas)
    campaign = drained(begin(request, Ranks()))
    found = drained(hunt(campaign, request.reward, [campaign.reference]))
    weights = {"r0": (1, 0)}.get(reward.kind, (1, reward.lambda2))
    old = everything.predicted["validation"][row]
    highest, ids = everything.best([old], weights=weights, within=row if cas else None, without=[row])
    winner = found.outcome.candidates[0]
    assert winner.arch_id in ids
    assert -winner.objective == pytest.approx(highest)


def test_a_family_of_resnets_grows_block_by_block(everything, tmp_path):
    lowest, highest = everything.macs.min(), everything.macs.max()
    budgets = tuple(float(lowest + share * (highest - lowest)) for share in (0.2, 0.5, 1.0))
    record = ofasearch.regnas(family=budgets, data="noise", algorithm="exact", out=tmp_path / "run")
    rows = [everything.row(network["arch_id"]) for network in record["family"]]
    assert len(set(rows)) == 3
    for small, large in pairwise(rows):
        assert everything.containing(small)[large]
    assert all(everything.macs[row] <= budget for row, budget in zip(rows, budgets, strict=True))


def test_a_found_resnet_is_a_reference_and_its_files_say_what_it_is(ref, tmp_path):
    found = ofasearch.regnas(ref=ref, macs=1e9, data="noise", algorithm="exact", out=tmp_path / "first")
    assert found["contains_reference"] is True
    assert set(found["arch"]) == {"w", "e", "d", "r"}
    again = ofasearch.regnas(ref=found["files"]["subnet"], macs=1e9, data="noise", algorithm="exact", cas=False, out=tmp_path / "second")
    assert again["reference"]["arch_id"] == found["arch_id"]

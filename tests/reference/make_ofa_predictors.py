"""Write ofa_predictors.npz: what once-for-all's predictors say of random networks, from its files and from files that we wrote.

    python tests/reference/make_ofa_predictors.py --peer FOLDER --data shared/data/ofa

FOLDER is one with `ofa` 0.1.0.post202307202001 (`pip install --no-deps --target FOLDER ofa==...`), --data one with its
two published predictors. Settings are those that its encoders draw. Before anything is written, 2,000 networks of each
kind must agree: features exactly, predictions to 1e-6.
"""

import argparse
import random
import sys
import tempfile
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import torch
from drawn import LAYOUT, SIZES, SPACE, newer_state, ours, rows

from ofasearch.predictor.foreign import load_foreign, save_foreign
from ofasearch.predictor.layouts import MBV3, settings_of

CHECKED, KEPT, SEED = 2000, 64, 7
TOLERANCE = 1e-6


class Newer:
    """The peer's newer predictors with one of its encoders."""

    def __init__(self, name):
        import ofa.nas.accuracy_predictor as peer

        class Proxyless(peer.MobileNetArchEncoder):
            SPACE_TYPE = "mbv2"

        encoders = {"mbv3": peer.MobileNetArchEncoder, "mbv2": Proxyless, "resnet50": peer.ResNetArchEncoder}
        self.encoder = encoders[name](image_size_list=list(SIZES[name]))
        self.network = peer.AccuracyPredictor
        self.sample, self.feature = self.encoder.random_sample_arch, self.encoder.arch2feature

    def predict(self, file, networks):
        with torch.no_grad():
            return self.network(self.encoder, checkpoint_path=str(file), device="cpu").predict_acc(networks).numpy()


class Tutorial:
    """The peer's tutorial, with networks as its newer encoder draws them."""

    def __init__(self, name):
        from ofa.nas.accuracy_predictor import MobileNetArchEncoder
        from ofa.tutorial.accuracy_predictor import AccuracyPredictor

        self.sample, self.network = MobileNetArchEncoder(image_size_list=list(SIZES[name])).random_sample_arch, AccuracyPredictor

    def feature(self, network):
        return self.network.spec2feats([*network["ks"]], [*network["e"]], network["d"], network["image_size"]).numpy()

    def predict(self, file, networks):
        found = self.network(pretrained=False, device="cpu")
        found.model.load_state_dict(torch.load(file, map_location=torch.device("cpu")))
        return found.predict_accuracy([{**network, "r": [network["image_size"]]} for network in networks]).numpy()[:, 0]


def agree(name, what, found, expected):
    """Tell the largest difference; stop when it is one."""
    worst = float(np.abs(found - expected).max())
    print(f"{name:9} {what:22} {len(found)} networks, largest difference {worst:.2g}")  # noqa: T201 - the result of a run
    if not worst <= TOLERANCE:
        raise SystemExit(f"{name}: {what} differ")


def compare(name, published, folder):
    """Settings, features and the peer's predictions: of its own file, and of one that we wrote (NaN for sizes unknown to it)."""
    peer = (Tutorial if name == "tutorial" else Newer)(name)
    networks = [peer.sample() for _ in range(CHECKED)]
    settings = settings_of(LAYOUT.get(name, MBV3), networks)
    features = np.array([peer.feature(network) for network in networks])

    theirs, known = published.get(name, folder / f"{name}.pth"), {}
    if name not in published:
        torch.save({key: torch.from_numpy(array) for key, array in newer_state(name).items()}, theirs)
        known = {"space": SPACE[name], "resolutions": SIZES[name]}
    imported, top1 = load_foreign(theirs, **known), peer.predict(theirs, networks)
    agree(name, "features", imported.encoder.encode(settings), features)
    agree(name, "their file read by us", imported(settings), top1)

    fitted = ours(name)
    save_foreign(folder / "ours.pth", fitted, "tutorial" if name == "tutorial" else "encoder")
    exported = peer.predict(folder / "ours.pth", networks)
    knows = np.isin(settings.r, fitted.encoder.resolutions)
    agree(name, "our file read by them", fitted(settings.take(knows.nonzero()[0])), exported[knows])
    exported[~knows] = np.nan
    found = {"rows": rows(name, networks), "top1": top1, "exported": exported}
    return {key: array[:KEPT] for key, array in found.items()} | {"features": np.packbits(features[:KEPT].astype(bool), axis=1)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    args = parser.parse_args()
    sys.path.append(str(args.peer))
    # Its data loaders import these at the top; its predictors do without.
    for absent in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional", "torchvision.datasets", "gdown", "tqdm"):
        sys.modules.setdefault(absent, MagicMock())
    random.seed(SEED)
    published = {"tutorial": args.data / "acc_predictor.pth", "resnet50": args.data / "ofa_resnet50_acc_predictor.pth"}
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in SIZES:
            found |= {f"{name}-{key}": array for key, array in compare(name, published, Path(folder)).items()}
    np.savez_compressed(Path(__file__).with_name("ofa_predictors.npz"), **found)


if __name__ == "__main__":
    main()

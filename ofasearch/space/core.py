"""Architectures as values and as integer matrices.

Legend: n = networks, g = genes. A *population* is an (n, g) integer matrix of codes. Code 0 means "absent"
(the gene of a block that is skipped), the choices of a gene count from 1; the resolution is gene 0 and never
absent. Codes are *canonical* when every absent gene is 0, so that equal networks have equal rows.

A `Space` turns a row of codes into a `Blueprint`, a tuple of `LayerSpec`; nobody else knows genes.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache, cached_property
from string import ascii_lowercase
from typing import Literal

import numpy as np
import numpy.typing as npt

from ofasearch.errors import ArchError
from ofasearch.space.pricing import Cost, Factor, Reduce, TableIndex

Codes = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64] | npt.NDArray[np.float64]
Kind = Literal["conv", "mbconv", "bottleneck", "maxpool", "pool", "linear"]
Act = Literal["none", "relu", "relu6", "h_swish"]

RESOLUTION_LIMIT = 1024  # pixels; larger inputs are no classifier's
ENUMERATION_LIMIT = 1_000_000  # rows; a larger space is searched, not listed


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSpec:
    """One concrete layer of one concrete network: all that cost, weights and export need to know.

    `kind`: "conv" is convolution (+ batch norm) + activation; "mbconv" an inverted bottleneck, which has no
    expansion convolution when `c_mid == c_in`; "bottleneck" ResNet's, whose shortcut is an average pool and a 1x1
    convolution where it is no `skip`; "maxpool" a windowed maximum; "pool" a global average pool; "linear" the classifier.
    With `skip` the input is added to the output, in a bottleneck before the last activation, else after it. `c_se` 0
    means no squeeze-excite. `hw_in` is the input height = width in pixels, `eps` that of the batch norms.
    """

    slot: str  # where its weights live in the supernet, e.g. "s3.b1"; empty for a static network
    kind: Kind
    c_in: int
    c_mid: int
    c_out: int
    hw_in: int
    c_se: int = 0
    kernel: int = 1
    stride: int = 1
    act: Act = "none"
    skip: bool = False
    norm: bool = True
    bias: bool = False
    eps: float = 1e-5

    @property
    def hw_out(self) -> int:
        """Output height = width, pixels ("same" padding with odd kernels)."""
        return 1 if self.kind in ("pool", "linear") else (self.hw_in - 1) // self.stride + 1

    @property
    def shape(self) -> tuple[str | int | bool, ...]:
        """What a price may depend on, in the order of `SHAPE_FIELDS`: all but the slot and the batch-norm epsilon."""
        return _shape(self)


SHAPE_FIELDS = tuple(f.name for f in fields(LayerSpec) if f.name not in ("slot", "eps"))
_shape: Callable[[LayerSpec], tuple[str | int | bool, ...]] = operator.attrgetter(*SHAPE_FIELDS)

Blueprint = tuple[LayerSpec, ...]
Parents = tuple[float, ...]
Price = Callable[[LayerSpec], float]


def resized(blueprint: Blueprint, resolution: int) -> Blueprint:
    """The same layers for another input size (height = width, pixels); each takes what the one before it leaves."""
    layers, size = [], resolution
    for spec in blueprint:
        layers.append(replace(spec, hw_in=size))
        size = layers[-1].hw_out
    return tuple(layers)


@dataclass(frozen=True, slots=True)
class Gate:
    """A gene is present only where the code of gene `gene` is at least `at_least`."""

    gene: int
    at_least: int


@dataclass(frozen=True, slots=True)
class Gene:
    """One choice. Code c stands for `choices[c - 1]`.

    `reads` names the entry of the published settings (`ks`, `e`, `d`, `r`, `w`) that this gene decides;
    genes of one `unit` are mutated together, as in the reference evolution; `stage` groups the spelling. Choices that are
    no digits are spelled by their places in `alphabet`, which stays when choices are cut off. `alias` pairs published values
    with the choices that mean the same network, so that equal networks have equal codes.
    """

    name: str
    unit: str
    stage: int
    choices: tuple[float, ...]  # ascending; whole numbers are int
    reads: tuple[str, int]
    gate: Gate | None = None
    alphabet: tuple[float, ...] = ()
    alias: tuple[tuple[float, float], ...] = ()

    @property
    def letters(self) -> tuple[str, ...]:
        """How an arch id spells each choice, one character: the digit it is, or a, b, c... by its place in the alphabet."""
        return _letters(self.choices, self.alphabet)


@cache
def _letters(choices: tuple[float, ...], alphabet: tuple[float, ...]) -> tuple[str, ...]:
    return tuple(ascii_lowercase[alphabet.index(choice)] if alphabet else str(choice) for choice in choices)


@dataclass(frozen=True, slots=True)
class Slot:
    """A place in the network that holds a layer for some values of its parent genes.

    `layer` and `setting` take the parents' values (not codes; 0 = absent), the resolution first.
    `setting` gives the published (kernel, expand ratio) of an elastic block, (0, 0) when skipped; None for layers that
    every network has.
    """

    name: str
    parents: tuple[int, ...]
    layer: Callable[[Parents], LayerSpec | None]
    setting: Callable[[Parents], tuple[int, float]] | None = None


@dataclass(frozen=True, slots=True)
class Arch:
    """One network of one space. `id` round-trips through `Space.parse`; equality and hash rest on it alone."""

    id: str
    space: str = field(compare=False)
    codes: tuple[int, ...] = field(compare=False)

    def __str__(self) -> str:
        return self.id


@dataclass(frozen=True, slots=True)
class Settings:
    """The published form of n networks: kernels and expand ratios (n, blocks), depths (n, stages), resolution (n,).

    Entries of skipped blocks are 0. ResNet50 has expand ratios below 1 and width indices `w` (n, widths); its kernels
    may be left out (n, 0), because there is one only.
    """

    ks: Codes
    e: Numbers
    d: Codes
    r: Codes
    w: Codes | None = None

    @staticmethod
    def of(given: Mapping[str, Numbers], r: Codes) -> Settings:
        """Settings of the entries that `Space.fields` names and of resolutions (n,)."""
        ks = given["ks"] if "ks" in given else np.zeros((len(r), 0), dtype=np.int64)
        return Settings(
            ks.astype(np.int64), given["e"], given["d"].astype(np.int64), r, given["w"].astype(np.int64) if "w" in given else None
        )

    def entries(self) -> dict[str, Numbers]:
        """The inverse of `of`, without the resolutions."""
        return {"ks": self.ks, "e": self.e, "d": self.d} if self.w is None else {"w": self.w, "e": self.e, "d": self.d}

    def take(self, index: npt.NDArray[np.int64]) -> Settings:
        """The networks at these positions."""
        return Settings(self.ks[index], self.e[index], self.d[index], self.r[index], self.w[index] if self.w is not None else None)

    def rows(self) -> Codes:
        """One row of numbers per network (n, columns); networks of one family are equal where their rows are."""
        return np.column_stack([part for part in (self.ks, self.e, self.d, self.r, self.w) if part is not None])


@dataclass(frozen=True, eq=False)
class Space:
    """A set of networks that share weights: genes, the slots they fill, and the way back to layers.

    Gene 0 is the resolution; a gate always points to an earlier gene. `kernels` and `expands` are the values that
    `Settings.ks` and `Settings.e` may take.
    """

    name: str
    genes: tuple[Gene, ...]
    slots: tuple[Slot, ...]
    classes: int
    kernels: tuple[int, ...]
    expands: tuple[float, ...]
    parent: str | None = None  # name of the larger space whose weights serve this one too

    # -- size, enumeration, extremes ---------------------------------------------------------------------------

    @cached_property
    def resolutions(self) -> tuple[int, ...]:
        """Input sizes in pixels, ascending."""
        return tuple(int(pixels) for pixels in self.genes[0].choices)

    def with_resolutions(self, resolutions: Sequence[int]) -> Space:
        """The same space restricted (or widened) to other input sizes.

        Raises ArchError when the list is empty or holds a size below 8 or above RESOLUTION_LIMIT pixels.
        """
        chosen = tuple(sorted(set(resolutions)))
        if not chosen or chosen[0] < 8:
            raise ArchError(f"resolutions must be a non-empty list of sizes of at least 8 pixels, but got {list(resolutions)}")
        if chosen[-1] > RESOLUTION_LIMIT:
            raise ArchError(f"resolutions must be at most {RESOLUTION_LIMIT} pixels, but one is {chosen[-1]}")
        return replace(self, genes=(replace(self.genes[0], choices=chosen), *self.genes[1:]))

    @property
    def size(self) -> int:
        """Exact number of distinct networks per resolution."""
        total = 1
        for index, gene in enumerate(self.genes):
            if gene.gate is None and index > 0:
                gated = [g for g in self.genes if g.gate is not None and g.gate.gene == index]
                total *= sum(
                    int(np.prod([len(g.choices) for g in gated if g.gate is not None and g.gate.at_least <= code], dtype=object))
                    for code in range(1, len(gene.choices) + 1)
                )
        return total

    def enumerate(self) -> Codes:
        """All canonical codes, shape (size * resolutions, g), lexicographic.

        Raises ArchError when there are more than ENUMERATION_LIMIT.
        """
        if self.size * len(self.resolutions) > ENUMERATION_LIMIT:
            raise ArchError(f"only spaces of at most {ENUMERATION_LIMIT:,} networks can be listed, but {self.name} has {self.size:,}")
        rows = np.zeros((1, 0), dtype=np.int64)
        for gene in self.genes:
            present = np.ones(len(rows), dtype=bool) if gene.gate is None else rows[:, gene.gate.gene] >= gene.gate.at_least
            repeats = np.where(present, len(gene.choices), 1)
            starts = np.cumsum(repeats) - repeats
            column = np.arange(repeats.sum()) - np.repeat(starts, repeats) + np.repeat(present.astype(np.int64), repeats)
            rows = np.column_stack([np.repeat(rows, repeats, axis=0), column])
        return rows

    def largest(self) -> Codes:
        """Codes (g,) with every gene at its last choice: the full model, which holds all weights."""
        return np.array([len(g.choices) for g in self.genes], dtype=np.int64)

    def smallest(self) -> Codes:
        """Codes (g,) with every gene at its first choice."""
        codes: Codes = self.canonical(np.ones((1, len(self.genes)), dtype=np.int64))[0]
        return codes

    def middle(self) -> Codes:
        """Codes (g,) with every gene at the middle of its choices, the resolution at its last."""
        codes: Codes = self.canonical((self.largest()[None] + 1) // 2)[0]
        codes[0] = len(self.genes[0].choices)
        return codes

    # -- populations -------------------------------------------------------------------------------------------

    @cached_property
    def sizes(self) -> Codes:
        """Number of choices of each gene, shape (g,)."""
        return np.array([len(g.choices) for g in self.genes], dtype=np.int64)

    @cached_property
    def _float_sizes(self) -> npt.NDArray[np.float32]:
        return self.sizes.astype(np.float32)

    @cached_property
    def _gates(self) -> tuple[Codes, Codes]:
        """The gene that gates each gene, and the code it must reach, both (g,); the resolution at 0 where nothing gates it."""
        gates = [(0, 0) if g.gate is None else (g.gate.gene, g.gate.at_least) for g in self.genes]
        columns = np.array(gates, dtype=np.int64).T
        return columns[0], columns[1]

    def present(self, codes: Codes) -> npt.NDArray[np.bool_]:
        """Which genes exist in each network, (n, g); reads only the codes of the gating genes."""
        gate, at_least = self._gates
        return np.asarray((codes.take(gate, axis=1) >= at_least) if len(codes) else np.zeros(codes.shape, dtype=bool))

    def canonical(self, codes: Codes) -> Codes:
        """A copy with every absent gene set to 0; idempotent."""
        return codes * self.present(codes)  # faster than a choice between codes and 0

    def draw(self, n: int, rng: np.random.Generator) -> Codes:
        """n rows of independent uniform codes (n, g), none absent; `canonical` makes networks of them."""
        # Scaled floats: integers with a bound per column take several times as long, and a search draws all the time.
        return (rng.random((n, len(self.genes)), dtype=np.float32) * self._float_sizes).astype(np.int64) + 1

    def sample(self, n: int, rng: np.random.Generator) -> Codes:
        """n networks, each choice uniform and independent as in the reference sampling, canonical (n, g)."""
        return self.canonical(self.draw(n, rng))

    def validate(self, codes: Codes) -> None:
        """Raise ArchError unless `codes` is an (n, g) integer matrix of canonical networks of this space."""
        if codes.ndim != 2 or codes.shape[1] != len(self.genes) or not np.issubdtype(codes.dtype, np.integer):
            raise ArchError(
                f"codes of {self.name} must be an integer matrix with {len(self.genes)} columns, but got {codes.dtype} {codes.shape}"
            )
        present = self.present(codes)
        bad = np.argwhere((codes < present) | (codes > np.where(present, self.sizes, 0)))
        if len(bad):
            row, column = bad[0]
            gene = self.genes[column]
            expected = f"1..{len(gene.choices)}" if present[row, column] else "0, because its block is skipped"
            raise ArchError(f"code of {gene.name} must be {expected} in {self.name}, but got {codes[row, column]} in row {row}")

    def contains(self, big: Codes, small: Codes) -> npt.NDArray[np.bool_]:
        """Whether each network of `big` holds all weights of the one beside it in `small`; both (n, g), result (n,).

        Per active block of `small` the depth, kernel and expand ratio of `big` are at least as large, and every width.
        The resolution is no weight and is ignored. With kernel transforms only equal kernels share the *effective* filter.
        """
        b, s = self.settings(big), self.settings(small)
        held = (b.ks >= s.ks).all(axis=1) & (b.e >= s.e).all(axis=1) & (b.d >= s.d).all(axis=1)
        return np.asarray(held if b.w is None or s.w is None else held & (b.w >= s.w).all(axis=1))

    # -- published settings ------------------------------------------------------------------------------------

    def settings(self, codes: Codes) -> Settings:
        """The networks in published form: `ks`, `e` per block slot, `d` per stage, `r`, and `w` where widths are chosen."""
        index, ks, e = self._setting_tables
        positions = index(codes)
        d, w = self._read("d", codes), self._read("w", codes)
        r = np.array(self.resolutions)[codes[:, 0] - 1]
        return Settings(ks=ks[positions], e=e[positions], d=d, r=r, w=w if w.shape[1] else None)

    def _read(self, name: str, codes: Codes) -> Codes:
        """The values (n, entries) of the genes that decide `d` or `w`, which no network lacks."""
        columns = [np.array([0, *self.genes[g].choices], dtype=np.int64)[codes[:, g]] for g in self._readers[name]]
        return np.column_stack(columns) if columns else np.zeros((len(codes), 0), dtype=np.int64)

    @cached_property
    def _readers(self) -> dict[str, tuple[int, ...]]:
        """The genes that decide each entry of `d` and of `w`, in order."""
        found = {name: sorted((g.reads[1], i) for i, g in enumerate(self.genes) if g.reads[0] == name) for name in ("d", "w")}
        return {name: tuple(gene for _, gene in entries) for name, entries in found.items()}

    @cached_property
    def _setting_tables(self) -> tuple[TableIndex, Codes, Numbers]:
        """Positions, kernels and expand ratios of all block slots."""
        slots = [slot for slot in self.slots if slot.setting is not None]
        values = [slot.setting(v) for slot in slots for v in self._parent_values(slot) if slot.setting is not None]
        kernels, expands = zip(*values, strict=True)
        return TableIndex(self.genes, [slot.parents for slot in slots]), np.array(kernels, dtype=np.int64), np.array(expands)

    def setting_positions(self, codes: Codes) -> Codes:
        """Where the setting of each block slot stands in `setting_choices`, (n, blocks)."""
        return self._setting_tables[0](codes)

    @cached_property
    def setting_choices(self) -> tuple[Codes, Codes, Numbers]:
        """Block, kernel and expand ratio of all settings that the block slots can have, slot by slot, each (positions,)."""
        _, ks, e = self._setting_tables
        sizes = [len(self._parent_values(slot)) for slot in self.slots if slot.setting is not None]
        return np.repeat(np.arange(len(sizes)), sizes), ks, e

    def from_settings(self, settings: Settings) -> Codes:
        """Codes of published settings; entries of skipped blocks are ignored.

        Raises ArchError when a value is no choice of this space, or when the settings leave the space (a CompOFA
        network whose expand ratio is not the one tied to its depth).
        """
        given = self._given(settings)
        codes = np.zeros((len(settings.r), len(self.genes)), dtype=np.int64)
        for index, gene in enumerate(self.genes):
            value = given[gene.reads[0]][:, gene.reads[1]]
            if gene.reads[0] == "d" and gene.choices == (1,):
                value = np.minimum(value, 1)  # once-for-all gives a stage of one block any depth
            for published, choice in gene.alias:
                value = np.where(value == published, choice, value)
            hits = np.isclose(value[:, None], np.array(gene.choices)[None], rtol=0, atol=1e-6)
            active = np.ones(len(value), dtype=bool) if gene.gate is None else codes[:, gene.gate.gene] >= gene.gate.at_least
            wrong = active & ~hits.any(axis=1)
            if wrong.any():
                row = int(np.flatnonzero(wrong)[0])
                raise ArchError(f"{gene.name} must be one of {list(gene.choices)} in {self.name}, but got {value[row]}")
            codes[:, index] = np.where(active, hits.argmax(axis=1) + 1, 0)
        back = self.settings(codes)
        for name, ours in (("ks", back.ks), ("e", back.e)):
            wrong_at = np.argwhere((np.abs(ours - given[name]) > 1e-6) & (back.ks > 0))
            if len(wrong_at):
                row, block = wrong_at[0]
                raise ArchError(
                    f"{name} of block {block} must be {ours[row, block]} in {self.name} (it is tied to the stage's depth or fixed), "
                    f"but got {given[name][row, block]}"
                )
        return codes

    def _given(self, settings: Settings) -> dict[str, Numbers]:
        """The entries of published settings by name.

        Raises ArchError unless they have the numbers of columns of this space.
        """
        ks = settings.ks
        if len(self.kernels) == 1 and ks.shape == (len(settings.r), 0):
            ks = np.full((len(settings.r), self.blocks), self.kernels[0])
        given: dict[str, Numbers] = {"ks": ks, "e": settings.e, "d": settings.d, "r": settings.r[:, None]}
        columns = {"ks": self.blocks, "e": self.blocks, "d": len(self._readers["d"]), "r": 1}
        if self._readers["w"] or settings.w is not None:
            given["w"] = settings.w if settings.w is not None else np.zeros((len(settings.r), 0), dtype=np.int64)
            columns["w"] = len(self._readers["w"])
        for name, entries in given.items():
            if entries.ndim != 2 or entries.shape[1] != columns[name]:
                what = "numbers" if name == "e" else "integers"
                raise ArchError(f"{name} must hold {columns[name]} {what} for {self.name}, but got {entries.shape[-1]}")
        return given

    @cached_property
    def blocks(self) -> int:
        """Number of block slots: the length of `ks` and `e`."""
        return sum(slot.setting is not None for slot in self.slots)

    @property
    def widths(self) -> int:
        """Number of widths that are chosen: the length of `w`."""
        return len(self._readers["w"])

    @property
    def fields(self) -> dict[str, int]:
        """What settings hold beside the resolution, and how many entries of each; a ResNet space has widths instead of kernels."""
        first = {"w": self.widths} if self.widths else {"ks": self.blocks}
        return first | {"e": self.blocks, "d": len(self._readers["d"])}

    def lift(self, codes: Codes, target: Space) -> Codes:
        """The same networks as codes of a larger space, e.g. CompOFA in once-for-all."""
        return target.from_settings(self.settings(codes))

    # -- single networks ---------------------------------------------------------------------------------------

    def arch(self, codes: Codes) -> Arch:
        """The value of one row of canonical codes (g,), with its spelling."""
        self.validate(np.atleast_2d(codes))
        stages: dict[int, str] = {}
        for gene, code in zip(self.genes[1:], codes[1:], strict=True):
            if code:
                stages[gene.stage] = stages.get(gene.stage, "") + gene.letters[code - 1]
        resolution = self.resolutions[int(codes[0]) - 1]
        text = "-".join([f"{self.name}@r{resolution}", *(stages[s] for s in sorted(stages))])
        return Arch(text, self.name, tuple(int(c) for c in codes))

    def parse(self, text: str) -> Arch:
        """The inverse of `str(arch)`: (width and) depth, then kernel and expand ratio of each block, stage by stage.

        Raises ArchError when the text is not a network of this space.
        """
        name, _, rest = text.partition("@")
        head, *stages = rest.split("-")
        if name != self.name or not head.startswith("r") or not head[1:].isdigit():
            raise ArchError(f"an arch id of {self.name} must look like '{self.arch(self.smallest())}', but got '{text}'")
        wanted = sorted({g.stage for g in self.genes[1:]})
        if len(stages) != len(wanted):
            raise ArchError(f"an arch id of {self.name} must have {len(wanted)} stages, but '{text}' has {len(stages)}")
        left = dict(zip(wanted, stages, strict=True))
        codes = np.zeros(len(self.genes), dtype=np.int64)
        codes[0] = self._code_of(self.genes[0], [str(pixels) for pixels in self.resolutions], head[1:], text)
        for index, gene in enumerate(self.genes[1:], start=1):
            if gene.gate is None or codes[gene.gate.gene] >= gene.gate.at_least:
                codes[index] = self._code_of(gene, gene.letters, left[gene.stage][:1], text)
                left[gene.stage] = left[gene.stage][1:]
        if any(left.values()):
            raise ArchError(f"an arch id must not have digits left over, but '{text}' has '{next(v for v in left.values() if v)}'")
        return self.arch(codes)

    @staticmethod
    def _code_of(gene: Gene, spelled: Sequence[str], found: str, text: str) -> int:
        if found in spelled:
            return spelled.index(found) + 1
        raise ArchError(f"{gene.name} must be one of [{', '.join(spelled)}], but got '{found}' in '{text}'")

    def blueprint(self, codes: Codes) -> Blueprint:
        """The layers of one network, input to output; `codes` is one canonical row (g,)."""
        values = [0 if c == 0 else g.choices[int(c) - 1] for g, c in zip(self.genes, codes, strict=True)]
        layers = (slot.layer(tuple(values[p] for p in slot.parents)) for slot in self.slots)
        return tuple(layer for layer in layers if layer is not None)

    # -- prices ------------------------------------------------------------------------------------------------

    def tabulate(self, price: Price, reduce: Reduce = "sum") -> Cost:
        """Turn a price per layer into a price per network. Each distinct layer shape is priced once."""
        return self.tabulate_by_resolution(lambda _: price, reduce)

    def tabulate_by_resolution(self, price_at: Callable[[int], Price], reduce: Reduce = "sum") -> Cost:
        """As `tabulate`, for tables that were measured apart for each input resolution (`price_at(resolution)`)."""
        combine = np.add if reduce == "sum" else np.maximum
        tables: dict[tuple[int, ...], Values] = {}
        known: dict[tuple[object, ...], float] = {}
        for slot in self.slots:
            if slot.parents[0] != 0:
                raise ValueError(f"slot {slot.name} must have the resolution as first parent")
            shape = tuple(len(self.genes[p].choices) + 1 for p in slot.parents)
            prices = np.zeros(int(np.prod(shape)))
            for flat, values in enumerate(self._parent_values(slot)):
                layer = slot.layer(values) if values[0] else None
                if layer is not None:
                    resolution = int(values[0])
                    key = (resolution, layer.shape)
                    if key not in known:
                        known[key] = price_at(resolution)(layer)
                    prices[flat] = known[key]
            table = prices.reshape(shape)
            tables[slot.parents] = combine(tables[slot.parents], table) if slot.parents in tables else table
        return Cost(self, tables, reduce)

    def kernel_sizes(self, slot: Slot) -> tuple[int, ...]:
        """The kernels that an elastic block can have, ascending; none for layers that every network has."""
        return tuple(sorted({kernel for kernel, _ in self.settings_of(slot)}))

    def _parent_values(self, slot: Slot) -> list[Parents]:
        return list(itertools.product(*((0, *self.genes[p].choices) for p in slot.parents)))

    def presence(self, index: int) -> Factor:
        """Which codes of one gene can occur, given its gate."""
        gene = self.genes[index]
        codes = np.arange(len(gene.choices) + 1)
        if gene.gate is None:
            return Factor((index,), np.zeros(len(codes)), codes > 0)
        gate_codes = np.arange(len(self.genes[gene.gate.gene].choices) + 1)
        ok = (gate_codes >= gene.gate.at_least)[:, None] == (codes > 0)[None]
        return Factor((gene.gate.gene, index), np.zeros(ok.shape), ok)

    def layers(self) -> tuple[LayerSpec, ...]:
        """Every distinct layer (by shape) that a network of this space can contain, in order of first use."""
        distinct: dict[tuple[object, ...], LayerSpec] = {}
        for slot in self.slots:
            for layer in self.layers_of(slot):
                distinct.setdefault(layer.shape, layer)
        return tuple(distinct.values())

    def layers_of(self, slot: Slot) -> Iterator[LayerSpec]:
        """The layers that a slot can hold, one for each combination of its parents' values."""
        found = (slot.layer(values) for values in self._parent_values(slot) if values[0])
        return (layer for layer in found if layer is not None)

    def settings_of(self, slot: Slot) -> set[tuple[int, float]]:
        """The (kernel, expand ratio) that an elastic block can have; none for layers that every network has."""
        values = [] if slot.setting is None else [slot.setting(values) for values in self._parent_values(slot)]
        return {setting for setting in values if setting[0]}

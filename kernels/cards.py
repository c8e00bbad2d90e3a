"""GPUs that kernels can be compiled for without one: what the compiler has to be told of each.

Invariant: a card's numbers are what its driver says of it. Needs no torch.
"""

from dataclasses import dataclass

_SHARED = {  # KiB of shared memory that a program may have, by architecture
    **dict.fromkeys((90, 100), 227),
    **dict.fromkeys((86, 89, 120), 99),
    80: 163,
}
SHARED_LIMITS = {arch: kib << 10 for arch, kib in _SHARED.items()}
_NAMES = {  # by architecture: 90 is sm_90
    80: ("A100", "A30"),
    86: ("A10", "A10G", "A40", "RTX 3090", "RTX A6000"),
    89: ("L4", "L40", "L40S", "RTX 4090"),
    90: ("H100", "H200", "H20", "GH200"),
    100: ("B200", "GB200"),
    120: ("RTX 5090",),
}
_TOO_OLD = {70: ("V100",), 75: ("T4", "RTX 2080")}


@dataclass(frozen=True)
class OfflineCard:
    """A GPU that is only compiled for. arch: 90 is sm_90. shared: bytes of shared memory that a
    program may have. name: by which tables of kernels are chosen (`tuning.measured_card`)."""

    arch: int
    shared: int
    name: str

    @property
    def capability(self) -> tuple[int, int]:
        return divmod(self.arch, 10)


def _known() -> dict[str, OfflineCard]:
    found = {}
    for arch, names in (_NAMES | _TOO_OLD).items():
        for name in names:
            card = OfflineCard(arch, SHARED_LIMITS.get(arch, 0), f"NVIDIA {name}")
            found[name.lower().replace(" ", "-")] = card
    return found


KNOWN = _known()  # by what --gpu calls them, those too that are refused: they are too old
SUPPORTED = tuple(name for name, card in KNOWN.items() if card.arch in SHARED_LIMITS)

"""NCCL's buffers, which no allocator of torch's sees: what a group of ranks takes for each channel of its ring.

How many channels it opens follows from the machine's links, which are not known here; so this is said, and counted nowhere. What it does
not know: trees, NVLS and CollNet, sends between pairs, buffers that are registered, networks.
"""

from __future__ import annotations

from ..units import gib

CHANNEL = 12 * 2**20
"""Of the LL, LL128 and simple protocols 0.5, 4.7 and 4 MiB, for what comes and what goes, each a multiple of 2 MiB (NCCL 2.30.7
`src/init.cc` computeBuffSizes, `src/transport/p2p.cc` p2pSendSetup and p2pRecvSetup)."""
CHANNELS = 64
"""The most that there are (NCCL 2.30.7 `src/include/device.h`, MAXCHANNELS)."""


def untold(groups: int) -> str:
    """What NCCL takes of a rank that is in so many groups, in words."""
    most = gib(CHANNEL * CHANNELS)
    return f"what NCCL takes is not in it: {CHANNEL >> 20} MiB a channel in each of a rank's {groups} groups, up to {most} a group"

"""How to clone."""

from __future__ import annotations

from enum import StrEnum


class Identity(StrEnum):
    """What clones are to each other, and to the guest that was saved."""

    NEW = "new"
    """Other machines, as far as that can be done from outside: a generation id of their own, an entry in fw_cfg that
    says which clone it is, and, where a guest agent can be reached, the present time."""
    SAME = "same"
    """The same machine, to the last bit."""

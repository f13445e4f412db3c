"""What containerd says: its messages (api/services/snapshots/v1/snapshots.proto) and its labels."""

from __future__ import annotations

from enum import IntEnum

from ..grpc.protobuf import FIELD_MASK, INT, STRING, TIMESTAMP, Map, Message

SERVICE = "/containerd.services.snapshots.v1.Snapshots/"


class Kind(IntEnum):
    VIEW = 1
    ACTIVE = 2
    COMMITTED = 3


MOUNT = Message(type=(1, STRING), source=(2, STRING), target=(3, STRING), options=(4, [STRING]))
INFO = Message(
    name=(1, STRING),
    parent=(2, STRING),
    kind=(3, INT),
    created_at=(4, TIMESTAMP),
    updated_at=(5, TIMESTAMP),
    labels=(6, Map()),
)
PREPARE = Message(snapshotter=(1, STRING), key=(2, STRING), parent=(3, STRING), labels=(4, Map()))  # and View
MOUNTS = Message(mounts=(1, [MOUNT]))
KEY = Message(snapshotter=(1, STRING), key=(2, STRING))  # Mounts, Remove, Stat, Usage; and Cleanup, without a key
COMMIT = Message(snapshotter=(1, STRING), name=(2, STRING), key=(3, STRING), labels=(4, Map()), parent=(5, STRING))
INFO_RESPONSE = Message(info=(1, INFO))  # Stat, Update
UPDATE = Message(snapshotter=(1, STRING), info=(2, INFO), update_mask=(3, FIELD_MASK))
LIST = Message(snapshotter=(1, STRING), filters=(2, [STRING]))
LIST_RESPONSE = Message(info=(1, [INFO]))
USAGE = Message(size=(1, INT), inodes=(2, INT))

# Labels of a layer that is being pulled. The name under which it is to be found when it need not be fetched:
TARGET = "containerd.io/snapshot.ref"
# and what it is a layer of: the image's name, its manifest's digest, the layer's.
IMAGE = "containerd.io/snapshot/cri.image-ref"
MANIFEST = "containerd.io/snapshot/cri.manifest-digest"
LAYER = "containerd.io/snapshot/cri.layer-digest"

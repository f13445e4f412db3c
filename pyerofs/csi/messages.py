"""The messages of CSI 1.x (csi.proto) and of kubelet's plugin registration, as far as a node driver has them."""

from __future__ import annotations

from ..grpc.protobuf import BOOL, INT, STRING, Map, Message

EMPTY = Message()

# csi.v1.Identity
PLUGIN_INFO = Message(name=(1, STRING), vendor_version=(2, STRING), manifest=(3, Map()))
PROBE = Message(ready=(1, Message(value=(1, BOOL))))

# csi.v1.Node
NODE_INFO = Message(node_id=(1, STRING), max_volumes_per_node=(2, INT))
NODE_CAPABILITIES = Message(capabilities=(1, [Message(rpc=(1, Message(type=(1, INT))))]))
GET_VOLUME_STATS = 2  # NodeServiceCapability.RPC.Type
_CAPABILITY = Message(
    block=(1, EMPTY),
    mount=(2, Message(fs_type=(1, STRING), mount_flags=(2, [STRING]), volume_mount_group=(3, STRING))),
    access_mode=(3, Message(mode=(1, INT))),
)
PUBLISH = Message(
    volume_id=(1, STRING),
    target_path=(4, STRING),
    volume_capability=(5, _CAPABILITY),
    readonly=(6, BOOL),
    secrets=(7, Map()),
    volume_context=(8, Map()),
)
UNPUBLISH = Message(volume_id=(1, STRING), target_path=(2, STRING))
STATS_REQUEST = Message(volume_id=(1, STRING), volume_path=(2, STRING))
_USAGE = Message(available=(1, INT), total=(2, INT), used=(3, INT), unit=(4, INT))
STATS = Message(usage=(1, [_USAGE]))
BYTES, INODES = 1, 2  # VolumeUsage.Unit

# pluginregistration.Registration
REGISTRATION = Message(type=(1, STRING), name=(2, STRING), endpoint=(3, STRING), supported_versions=(4, [STRING]))
STATUS = Message(plugin_registered=(1, BOOL), error=(2, STRING))

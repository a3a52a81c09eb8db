"""Generate the module of the netsvr messages, and its stubs, from netsvr.proto.

    python scripts/proto.py

protoc's own module would only load with the protobuf releases of its own year. This one holds the compiled descriptors and makes the classes with
protobuf's public message factory, which every release has.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "laraman" / "protocols" / "netsvr" / "netsvr.proto"

TEMPLATE = '''"""The netsvr messages. Generated from netsvr.proto by scripts/proto.py; do not edit."""

from google.protobuf import descriptor_pool, message_factory

_SERIALIZED = (
{descriptor}
)

_POOL = descriptor_pool.DescriptorPool()  # of its own: no other library's file of this name is in the way
_POOL.AddSerializedFile(_SERIALIZED)
DESCRIPTOR = _POOL.FindFileByName({name!r})
globals().update({{name: message_factory.GetMessageClass(found) for name, found in DESCRIPTOR.message_types_by_name.items()}})
'''


def compiled(*options: str) -> bytes:
    """The serialized FileDescriptorProto of the file, without its comments. Raises SystemExit with what protoc says."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "set"
        if protoc.main(["protoc", f"-I{PROTO.parent}", f"--descriptor_set_out={out}", *options, str(PROTO)]):
            raise SystemExit(1)
        return FileDescriptorSet.FromString(out.read_bytes()).file[0].SerializeToString(deterministic=True)


def main() -> int:
    descriptor = compiled(f"--pyi_out={PROTO.parent}")
    lines = "\n".join(f"    {descriptor[start : start + 48]!r}" for start in range(0, len(descriptor), 48))
    (PROTO.parent / "netsvr_pb2.py").write_text(TEMPLATE.format(descriptor=lines, name=PROTO.name))
    return 0


if __name__ == "__main__":
    sys.exit(main())

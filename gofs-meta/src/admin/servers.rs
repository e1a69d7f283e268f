//! `ListServers`: the ChunkServers, dead ones too.

use gofs_proto::cluster;

use super::{Admin, millis};
use crate::chunks::ServerStatus;

pub(super) fn list(admin: &Admin) -> cluster::ListServersReply {
    cluster::ListServersReply { servers: admin.chunks.servers().into_iter().map(to_wire).collect() }
}

/// A server for the wire.
pub(super) fn to_wire(server: ServerStatus) -> cluster::ChunkServer {
    let disks = server.disks.into_iter().map(|disk| cluster::Disk {
        path: disk.path,
        capacity_bytes: disk.capacity_bytes,
        free_bytes: disk.free_bytes,
        error: disk.error,
        last_scrub_unix_s: disk.last_scrub_unix_s,
    });
    cluster::ChunkServer {
        id: server.id.0,
        address: server.address,
        state: if server.alive { "alive" } else { "dead" }.to_owned(),
        labels: server.labels.into_iter().collect(),
        disks: disks.collect(),
        chunks: server.chunks,
        corrupt_blocks_total: server.corrupt_blocks_total,
        last_heard_ms: millis(server.heard_ago),
        cpu_latency: server.cpu_latency,
    }
}

//! `gofsctl status`, `servers`, `sessions`: the cluster as a whole.

use std::time::Duration;

use anyhow::bail;
use gofs_proto::cluster::{
    ClusterStatusReply, ClusterStatusRequest, Disk, ListServersRequest, ListSessionsRequest,
};
use serde_json::{Value, json};

use crate::admin::Admin;
use crate::chunk;
use crate::meta;
use crate::output::Style;
use crate::size;

/// How long a leader is looked for before what is missing is shown instead.
const STATUS_PATIENCE: Duration = Duration::from_secs(5);

/// `gofsctl status`
pub async fn status(admin: &mut Admin, style: Style) -> anyhow::Result<()> {
    let asked = admin
        .call_within(STATUS_PATIENCE, |mut c| async move { c.cluster_status(ClusterStatusRequest {}).await })
        .await;
    let s = match asked {
        Ok(status) => status,
        Err(error) => return meta::explain(admin, error, style).await,
    };
    let cluster: String = s.cluster.iter().map(|b| format!("{b:02x}")).collect();
    let metas: Vec<String> = s
        .metas
        .iter()
        .map(|m| {
            let latency = if m.cpu_latency.is_empty() {
                String::new()
            } else {
                format!(" (processor latency {})", m.cpu_latency)
            };
            let lost = if m.reachable { "" } else { " (unreachable)" };
            format!("{} {} {}{lost}{latency}", m.id, m.address, m.role)
        })
        .collect();
    let counted = |chunks: u64| {
        let so_far = chunks > 0 && !s.chunks_known;
        format!("{chunks}{}", if so_far { " so far (ChunkServers are still reporting)" } else { "" })
    };
    let fields = [
        ("cluster", cluster.clone()),
        ("version", s.version.clone()),
        ("MetaServers", metas.join(", ")),
        (
            "EditLog",
            format!(
                "committed {}, applied {}, snapshot {}",
                s.committed_index, s.applied_index, s.snapshot_index
            ),
        ),
        ("ChunkServers", chunk_servers(&s)),
        ("space", format!("{} free of {}", size::show(s.free_bytes), size::show(s.capacity_bytes))),
        ("chunks", s.chunks.to_string()),
        ("under-replicated", counted(s.chunks_under_replicated)),
        ("lost", counted(s.chunks_lost)),
        ("to be deleted", s.chunks_to_delete.to_string()),
        ("repairs running", s.repairs_running.to_string()),
        ("to repair", to_do(s.repair_chunks, s.repair_bytes, s.repair_end_s)),
        ("to move", to_do(s.move_chunks, s.move_bytes, s.move_end_s)),
        ("copied", format!("{}/s over the last minute", size::show(s.copied_bytes_s as u64))),
        ("corrupt replicas", s.corrupt_replicas.to_string()),
        ("doubtful replicas", s.doubtful_replicas.to_string()),
        (
            "sessions",
            format!(
                "{}{}",
                s.sessions,
                if s.in_grace { " (in grace: waiting for them to come back)" } else { "" }
            ),
        ),
    ];
    let metas: Vec<Value> = s
        .metas
        .iter()
        .map(|m| json!({ "id": m.id, "address": m.address, "role": m.role, "reachable": m.reachable, "cpu_latency": m.cpu_latency }))
        .collect();
    let json = json!({
        "cluster": cluster, "version": s.version, "metas": metas, "leader": s.leader,
        "committed_index": s.committed_index, "applied_index": s.applied_index, "snapshot_index": s.snapshot_index,
        "chunk_servers_alive": s.chunk_servers_alive, "chunk_servers_dead": s.chunk_servers_dead,
        "capacity_bytes": s.capacity_bytes, "free_bytes": s.free_bytes, "chunks": s.chunks,
        "chunks_under_replicated": s.chunks_under_replicated, "chunks_lost": s.chunks_lost,
        "chunks_to_delete": s.chunks_to_delete, "repairs_running": s.repairs_running, "sessions": s.sessions,
        "repair_chunks": s.repair_chunks, "repair_bytes": s.repair_bytes, "repair_end_s": s.repair_end_s,
        "move_chunks": s.move_chunks, "move_bytes": s.move_bytes, "move_end_s": s.move_end_s,
        "copied_bytes_s": s.copied_bytes_s, "doubtful_replicas": s.doubtful_replicas,
        "chunk_servers_draining": s.chunk_servers_draining, "disks_failed": s.disks_failed,
        "in_grace": s.in_grace, "corrupt_replicas": s.corrupt_replicas, "chunks_known": s.chunks_known,
    });
    style.print_fields(&fields, &json)?;
    // After a change of leader nothing is lost before the servers have had their time to report.
    if s.chunks_lost > 0 && s.chunks_known {
        bail!(
            "{} chunks have no current replica on any live ChunkServer; see: gofsctl servers",
            s.chunks_lost
        );
    }
    Ok(())
}

fn chunk_servers(s: &ClusterStatusReply) -> String {
    let mut text = format!("{} alive, {} dead", s.chunk_servers_alive, s.chunk_servers_dead);
    if s.chunk_servers_draining > 0 {
        text += &format!(", {} of them draining", s.chunk_servers_draining);
    }
    if s.disks_failed > 0 {
        text += &format!(", {} disks failed (gofsctl servers shows which)", s.disks_failed);
    }
    text
}

fn to_do(chunks: u64, bytes: u64, end_s: u64) -> String {
    match chunks {
        0 => "nothing".to_owned(),
        _ => format!("{chunks} chunks, {}; ends in: {}", size::show(bytes), chunk::end(chunks, end_s)),
    }
}

/// `gofsctl servers`
pub async fn servers(admin: &mut Admin, style: Style) -> anyhow::Result<()> {
    let reply = admin.call(|mut c| async move { c.list_servers(ListServersRequest {}).await }).await?;
    let mut rows = Vec::new();
    let mut json = Vec::new();
    for s in &reply.servers {
        let sum = |of: fn(&Disk) -> u64| s.disks.iter().map(of).sum::<u64>();
        let errors: Vec<String> = s
            .disks
            .iter()
            .filter(|d| !d.error.is_empty())
            .map(|d| format!("{}: {}", d.path, d.error))
            .collect();
        rows.push(vec![
            s.id.to_string(),
            s.address.clone(),
            s.state.clone(),
            format!("{:.1} s ago", s.last_heard_ms as f64 / 1000.0),
            s.chunks.to_string(),
            size::show(sum(|d| d.free_bytes)),
            size::show(sum(|d| d.capacity_bytes)),
            s.disks.len().to_string(),
            s.corrupt_blocks_total.to_string(),
            s.cpu_latency.clone(),
            errors.join("; "),
        ]);
        let disks: Vec<Value> = s.disks.iter().map(disk_json).collect();
        json.push(json!({
            "id": s.id, "address": s.address, "state": s.state, "labels": s.labels, "disks": disks,
            "chunks": s.chunks, "corrupt_blocks_total": s.corrupt_blocks_total, "last_heard_ms": s.last_heard_ms,
            "cpu_latency": s.cpu_latency,
        }));
    }
    let headings = [
        "id", "address", "state", "heard", "chunks", "free", "capacity", "disks", "corrupt", "latency",
        "errors",
    ];
    style.print(&headings, &rows, &Value::Array(json))
}

fn disk_json(d: &Disk) -> Value {
    json!({
        "path": d.path, "capacity_bytes": d.capacity_bytes, "free_bytes": d.free_bytes, "error": d.error,
        "last_scrub_unix_s": d.last_scrub_unix_s,
    })
}

/// `gofsctl sessions`
pub async fn sessions(admin: &mut Admin, namespace: String, style: Style) -> anyhow::Result<()> {
    let request = ListSessionsRequest { namespace };
    let reply = admin
        .call(|mut c| {
            let request = request.clone();
            async move { c.list_sessions(request).await }
        })
        .await?;
    let mut rows = Vec::new();
    let mut json = Vec::new();
    for s in &reply.sessions {
        rows.push(vec![
            s.id.to_string(),
            s.namespace.clone(),
            s.host.clone(),
            s.mount_point.clone(),
            s.pid.to_string(),
            s.leases.to_string(),
            format!("{:.1} s ago", s.heard_ms as f64 / 1000.0),
            s.recalls_pending.to_string(),
            format!("{} / {}", s.unsent_edits, size::show(s.unsent_bytes)),
            format!("{} / {} / {}", s.lost_edits, s.lost_files, size::show(s.lost_bytes)),
        ]);
        json.push(json!({
            "id": s.id, "namespace": s.namespace, "host": s.host, "mount_point": s.mount_point, "pid": s.pid,
            "leases": s.leases, "heard_ms": s.heard_ms, "recalls_pending": s.recalls_pending,
            "unsent_edits": s.unsent_edits, "unsent_bytes": s.unsent_bytes, "lost_edits": s.lost_edits,
            "lost_files": s.lost_files, "lost_bytes": s.lost_bytes,
        }));
    }
    let headings = [
        "id",
        "namespace",
        "host",
        "mount point",
        "pid",
        "leases",
        "heard",
        "recalls pending",
        "unsent changes / bytes",
        "lost changes / files / bytes",
    ];
    style.print(&headings, &rows, &Value::Array(json))
}

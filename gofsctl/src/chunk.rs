//! `gofsctl chunk list`, `drain`, `undrain`, `remove`: ChunkServers that are emptied, taken back and forgotten.

use clap::{Args, Subcommand};
use gofs_proto::cluster::{ChunkServer, Disk, ListServersRequest, RemoveServerRequest, SetDrainingRequest};
use serde_json::{Value, json};

use crate::admin::Admin;
use crate::output::Style;
use crate::size;

/// `gofsctl chunk ...`
#[derive(Subcommand)]
pub enum ChunkCommand {
    /// The ChunkServers: state, space, chunks, and how far those that are drained are.
    #[command(
        after_help = "Example:\n  gofsctl chunk list --json | jq '.[] | select(.state == \"drained\") | .id'"
    )]
    List,
    /// Empty a ChunkServer: it gets no new replicas, and those that it has are made elsewhere. It serves meanwhile.
    #[command(after_help = "Example:\n  gofsctl chunk drain 10.0.0.7:7470")]
    Drain(Which),
    /// Take a ChunkServer back that was drained or removed, with what it still holds.
    #[command(after_help = "Example:\n  gofsctl chunk undrain 10.0.0.7:7470")]
    Undrain(Which),
    /// Forget a ChunkServer: a drained one, or a dead one of which nothing is needed any more. It is refused from now on.
    #[command(after_help = "Examples:
  gofsctl chunk remove 10.0.0.7:7470
  gofsctl chunk remove 1234567 --force        give up the replicas that only it has")]
    Remove {
        #[command(flatten)]
        which: Which,
        /// Also where replicas, or whole chunks, are lost by it.
        #[arg(long)]
        force: bool,
    },
}

/// A ChunkServer.
#[derive(Args)]
pub struct Which {
    /// Its id, or the address of its data door (HOST:PORT), as `gofsctl chunk list` shows them.
    #[arg(value_name = "ID|ADDRESS")]
    server: String,
}

impl Which {
    fn split(self) -> (u64, String) {
        match self.server.parse() {
            Ok(id) => (id, String::new()),
            Err(_) => (0, self.server),
        }
    }
}

/// Runs one of them.
pub async fn run(admin: &mut Admin, command: ChunkCommand, style: Style) -> anyhow::Result<()> {
    match command {
        ChunkCommand::List => {
            let reply =
                admin.call(|mut c| async move { c.list_servers(ListServersRequest {}).await }).await?;
            show(&reply.servers, style)
        }
        ChunkCommand::Drain(which) => set_draining(admin, which, true, style).await,
        ChunkCommand::Undrain(which) => set_draining(admin, which, false, style).await,
        ChunkCommand::Remove { which, force } => remove(admin, which, force, style).await,
    }
}

async fn set_draining(admin: &mut Admin, which: Which, draining: bool, style: Style) -> anyhow::Result<()> {
    let (server, address) = which.split();
    let request = SetDrainingRequest { server, address, draining };
    let reply = admin
        .call(|mut c| {
            let request = request.clone();
            async move { c.set_draining(request).await }
        })
        .await?;
    show(&reply.servers, style)
}

async fn remove(admin: &mut Admin, which: Which, force: bool, style: Style) -> anyhow::Result<()> {
    let (server, address) = which.split();
    let request = RemoveServerRequest { server, address, force };
    let r = admin
        .call(|mut c| {
            let request = request.clone();
            async move { c.remove_server(request).await }
        })
        .await?;
    let fields = [
        ("removed", r.server.to_string()),
        ("chunks with too few replicas", r.needed_chunks.to_string()),
        ("chunks lost", r.only_chunks.to_string()),
    ];
    let json = json!({
        "server": r.server, "needed_chunks": r.needed_chunks, "only_chunks": r.only_chunks,
    });
    style.print_fields(&fields, &json)
}

fn show(servers: &[ChunkServer], style: Style) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    let mut json = Vec::new();
    for s in servers {
        let sum = |of: fn(&Disk) -> u64| s.disks.iter().map(of).sum::<u64>();
        let (capacity, free) = (sum(|d| d.capacity_bytes), sum(|d| d.free_bytes));
        let failed: Vec<String> = s
            .disks
            .iter()
            .filter(|d| !d.error.is_empty())
            .map(|d| format!("{}: {}", d.path, d.error))
            .collect();
        let when_draining = |text: String| if s.draining { text } else { String::new() };
        let labels: Vec<String> = s.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        rows.push(vec![
            s.id.to_string(),
            s.address.clone(),
            s.state.clone(),
            size::show(capacity.saturating_sub(free)),
            size::show(free),
            s.chunks.to_string(),
            when_draining(format!("{} / {}", s.left_chunks, size::show(s.left_bytes))),
            when_draining(format!("{}/s", size::show(s.moved_bytes_s as u64))),
            when_draining(end(s.left_chunks, s.end_s)),
            labels.join(" "),
            failed.join("; "),
        ]);
        json.push(json!({
            "id": s.id, "address": s.address, "state": s.state, "draining": s.draining,
            "capacity_bytes": capacity, "free_bytes": free, "chunks": s.chunks, "labels": s.labels,
            "left_chunks": s.left_chunks, "left_bytes": s.left_bytes, "moved_bytes_s": s.moved_bytes_s,
            "end_s": s.end_s, "needed_chunks": s.needed_chunks, "only_chunks": s.only_chunks,
            "failed_disks": failed,
        }));
    }
    let headings = [
        "id",
        "address",
        "state",
        "used",
        "free",
        "chunks",
        "left",
        "moving",
        "ends in",
        "labels",
        "failed disks",
    ];
    style.print(&headings, &rows, &Value::Array(json))
}

/// When copies end, for people.
pub fn end(chunks: u64, seconds: u64) -> String {
    match (chunks, seconds) {
        (0, _) => "done".to_owned(),
        (_, 0) => "not known yet".to_owned(),
        (_, s) if s < 120 => format!("{s} s"),
        (_, s) if s < 7200 => format!("{} min", s.div_ceil(60)),
        (_, s) => format!("{} h", s.div_ceil(3600)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_named_by_id_or_address() {
        let split = |text: &str| Which { server: text.into() }.split();
        assert_eq!(split("17"), (17, String::new()));
        assert_eq!(split("a:7470"), (0, "a:7470".into()));
    }

    #[test]
    fn ends_are_told_in_units_that_suit_them() {
        let told = [end(0, 9), end(1, 0), end(1, 90), end(1, 3601), end(1, 7201)];
        assert_eq!(told, ["done", "not known yet", "90 s", "61 min", "3 h"]);
    }
}

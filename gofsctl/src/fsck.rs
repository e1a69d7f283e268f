//! `gofsctl fsck`: whether the state agrees with itself and with the ChunkServers, and repairs.

use anyhow::bail;
use gofs_proto::cluster::CheckRequest;
use serde_json::json;

use crate::admin::Admin;
use crate::output::Style;

/// `gofsctl fsck`
#[derive(clap::Args)]
#[command(after_help = "\
Exit status 1 when a problem is found, or left after repairs. Without a flag nothing is changed. Repairs of usage, names and
inodes need the namespace unmounted everywhere.

Examples:
  gofsctl fsck
  gofsctl fsck --repair
  gofsctl fsck --repair --lost-to-holes          after a restore, or when ChunkServers are gone for good")]
pub struct FsckArgs {
    /// Set right what can be without losing anything that a file refers to: counts, usage, names that lead nowhere, inodes
    /// without a name (they get one in the root, lost+found.INO), chunks that belong to no file.
    #[arg(long)]
    repair: bool,
    /// Give up chunks that a restored state does not know: written after the backup, they belong to no file any more.
    #[arg(long)]
    discard_unknown: bool,
    /// Give up chunks of which no ChunkServer has anything while all are there: their files read as zeros there.
    #[arg(long)]
    lost_to_holes: bool,
}

/// `gofsctl fsck`
pub async fn run(admin: &mut Admin, args: FsckArgs, style: Style) -> anyhow::Result<()> {
    let FsckArgs { repair, discard_unknown, lost_to_holes } = args;
    let request = CheckRequest { repair, discard_unknown, lost_to_holes };
    let r = admin.call(|mut client| async move { client.check(request).await }).await?;
    let mut fields = vec![
        ("inodes", r.inodes.to_string()),
        ("entries", r.entries.to_string()),
        ("chunks", r.chunks.to_string()),
        ("open but unlinked", r.orphans.to_string()),
        (
            "replicas",
            format!("{} stale, {} corrupt, {} extra", r.stale_replicas, r.corrupt_replicas, r.extra_replicas),
        ),
        ("unknown chunks", format!("{} kept, {} to be deleted", r.unknown_chunks, r.unknown_going)),
        ("problems", r.problems.len().to_string()),
    ];
    fields.extend(r.repaired.iter().map(|p| ("repaired", p.clone())));
    fields.extend(r.problems.iter().map(|p| ("problem", p.clone())));
    let json = json!({
        "inodes": r.inodes, "entries": r.entries, "chunks": r.chunks, "orphans": r.orphans, "problems": r.problems,
        "repaired": r.repaired, "unknown_chunks": r.unknown_chunks, "unknown_going": r.unknown_going,
        "stale_replicas": r.stale_replicas, "corrupt_replicas": r.corrupt_replicas, "extra_replicas": r.extra_replicas,
    });
    style.print_fields(&fields, &json)?;
    if !r.problems.is_empty() {
        bail!("{} problems found", r.problems.len());
    }
    Ok(())
}

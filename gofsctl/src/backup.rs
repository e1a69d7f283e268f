//! `gofsctl backup` and `gofsctl restore`: an image of the whole state, and a cluster from one.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use gofs_meta::{
    Backup,
    config::{members, parse_peers},
    restore, verify_backup,
};
use gofs_proto::cluster::{BackupPart, BackupRequest};
use gofs_tree::MetaServerId;
use serde_json::{Value, json};

use crate::admin::Admin;
use crate::output::Style;
use crate::size;

/// Between two lines of progress.
const PROGRESS: Duration = Duration::from_millis(500);

/// `gofsctl backup`
#[derive(clap::Args)]
#[command(after_help = "\
The file appears when it is whole and on stable storage; until then it is named FILE.part. Chunks are not in it: they
stay on the ChunkServers.

Examples:
  gofsctl backup /backup/gofs-$(date +%F)
  gofsctl backup - | zstd > /backup/gofs.zst
  gofsctl backup --verify /backup/gofs-2026-01-31")]
pub struct BackupArgs {
    /// Where to write it; - is standard output
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Read the file from its first to its last byte instead, and show what it is of.
    #[arg(long)]
    verify: bool,
}

/// `gofsctl restore`
#[derive(clap::Args)]
#[command(after_help = "\
Makes a data directory; start gofs-meta on it afterwards. With several MetaServers run it on the host of each, with the same
file. All of the old cluster's MetaServers must be stopped, and have been for 30 s; ChunkServers may run. docs/OPERATIONS.md
has the whole procedure.

Examples:
  gofsctl restore /backup/gofs-2026-01-31 --data /var/lib/gofs/meta --id 1
  gofsctl restore gofs.backup --data /srv/meta --id 1 --peers 1=10.0.0.7:7460")]
pub struct RestoreArgs {
    /// A file that `gofsctl backup` wrote
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Data directory to make; empty, or not there
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Number of the MetaServer that it is for
    #[arg(long, default_value_t = 1)]
    id: u64,
    /// All MetaServers of the restored cluster [default: those of the backup]
    #[arg(long, value_name = "ID=HOST:PORT,...")]
    peers: Option<String>,
}

/// `gofsctl backup`
pub async fn run(meta: &str, args: BackupArgs, style: Style) -> anyhow::Result<()> {
    if args.verify {
        let backup = verify_backup(&args.file)
            .with_context(|| format!("{} cannot be restored from", args.file.display()))?;
        return show(&args.file, &backup, style);
    }
    let mut admin = Admin::new(meta)?;
    if args.file.as_os_str() == "-" {
        return take(&mut admin, io::stdout().lock()).await;
    }
    let part = part_of(&args.file);
    let taken = take_file(&mut admin, &part).await;
    let backup = match taken {
        Ok(backup) => backup,
        Err(error) => {
            // What there is of it is of no use to anybody.
            let _ = fs::remove_file(&part);
            return Err(error);
        }
    };
    fs::rename(&part, &args.file).with_context(|| format!("cannot make {}", args.file.display()))?;
    let dir = args.file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .with_context(|| format!("{} cannot be synced", dir.display()))?;
    show(&args.file, &backup, style)
}

fn part_of(file: &Path) -> PathBuf {
    let mut part = file.as_os_str().to_owned();
    part.push(".part");
    part.into()
}

/// Writes the backup, syncs it, and reads it back.
async fn take_file(admin: &mut Admin, part: &Path) -> anyhow::Result<Backup> {
    let file = File::create(part).with_context(|| format!("cannot write {}", part.display()))?;
    take(admin, &file).await?;
    file.sync_all().with_context(|| format!("{} cannot be synced", part.display()))?;
    verify_backup(part).with_context(|| format!("{} is not what was sent", part.display()))
}

async fn take(admin: &mut Admin, mut out: impl Write) -> anyhow::Result<()> {
    let mut parts = admin.call(|mut client| async move { client.backup(BackupRequest {}).await }).await?;
    let mut progress = Progress::new();
    loop {
        let part = parts.message().await.map_err(|status| anyhow::anyhow!("{}", status.message()))?;
        let Some(BackupPart { body, crc32c, records, records_expected, last }) = part else {
            bail!("the MetaServer ended the backup before it was whole: see its log, and try again");
        };
        ensure!(crc32c::crc32c(&body) == crc32c, "a part of the backup was damaged on its way: try again");
        out.write_all(&body).context("the backup cannot be written")?;
        progress.step(body.len(), records, records_expected, last);
        if last {
            return out.flush().context("the backup cannot be written");
        }
    }
}

/// Tells people how far it is.
struct Progress {
    shown: Instant,
    bytes: u64,
    wanted: bool,
}

impl Progress {
    fn new() -> Self {
        Progress { shown: Instant::now(), bytes: 0, wanted: io::stderr().is_terminal() }
    }

    fn step(&mut self, bytes: usize, records: u64, expected: u64, last: bool) {
        self.bytes += bytes as u64;
        if !self.wanted || (!last && self.shown.elapsed() < PROGRESS) {
            return;
        }
        self.shown = Instant::now();
        let end = if last { "\n" } else { "" };
        eprint!("\r{records} of about {} records, {}   {end}", expected.max(records), size::show(self.bytes));
    }
}

fn show(file: &Path, backup: &Backup, style: Style) -> anyhow::Result<()> {
    let Backup { head, records, bytes, digest } = backup;
    let cluster: String = head.cluster.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut fields = vec![
        ("backup", file.display().to_string()),
        ("cluster", cluster.clone()),
        ("EditIndex", head.position.index.to_string()),
        ("taken", show_time(head.time.secs)),
        ("records", records.to_string()),
        ("size", size::show(*bytes)),
        ("written by", format!("gofs-meta {}", head.written_by)),
    ];
    let namespaces = head.namespaces.iter().map(|namespace| {
        let usage = namespace.usage;
        let used = format!("{} inodes, {}", usage.inodes, size::show(usage.bytes));
        ("namespace", format!("{} ({used})", namespace.name))
    });
    fields.extend(namespaces);
    let namespaces: Vec<Value> = head
        .namespaces
        .iter()
        .map(|n| json!({ "id": n.id.0, "name": n.name, "used_bytes": n.usage.bytes, "used_inodes": n.usage.inodes }))
        .collect();
    let json = json!({
        "file": file.display().to_string(), "cluster": cluster, "edit_index": head.position.index,
        "time_unix_s": head.time.secs, "records": records, "bytes": bytes, "crc32c": format!("{digest:08x}"),
        "written_by": head.written_by, "namespaces": namespaces,
    });
    style.print_fields(&fields, &json)
}

/// `gofsctl restore`
pub fn restore_data(args: RestoreArgs, style: Style) -> anyhow::Result<()> {
    let members = match &args.peers {
        Some(peers) => members(&parse_peers(peers)?)?,
        None => BTreeMap::new(),
    };
    let restored = restore::restore(&args.file, &args.data, MetaServerId(args.id), &members)?;
    let peers: Vec<String> =
        restored.members.iter().map(|(id, address)| format!("{}={address}", id.0)).collect();
    let head = &restored.backup.head;
    let fields = [
        ("restored", args.data.display().to_string()),
        ("MetaServer", format!("{} of {}", args.id, peers.join(","))),
        ("from", format!("EditIndex {}, {}", head.position.index, show_time(head.time.secs))),
        ("next", format!("gofs-meta --id {} --data {} ..., then gofsctl fsck", args.id, args.data.display())),
    ];
    let json = json!({
        "data": args.data.display().to_string(), "id": args.id, "peers": peers,
        "edit_index": head.position.index, "time_unix_s": head.time.secs,
    });
    style.print_fields(&fields, &json)
}

/// A point in time in UTC.
fn show_time(unix_s: i64) -> String {
    const DAY_S: i64 = 86_400;
    let (day, second) = (unix_s.div_euclid(DAY_S), unix_s.rem_euclid(DAY_S));
    // Years begin in March here, so that the leap day is the last of one; 400 of them have 146,097 days.
    let day = day + 719_468;
    let (era, day) = (day.div_euclid(146_097), day.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let of_month = of_year - (153 * month + 2) / 5 + 1;
    let (year, month) =
        (year + era * 400 + i64::from(month >= 10), if month < 10 { month + 3 } else { month - 9 });
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{of_month:02} {hour:02}:{minute:02}:{second:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_shown_as_calendars_have_them() {
        for (unix_s, shown) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (1_709_251_199, "2024-02-29 23:59:59 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
            (-1, "1969-12-31 23:59:59 UTC"),
        ] {
            assert_eq!(show_time(unix_s), shown);
        }
    }
}

//! `gofsctl why`: how a path, a chunk or a ChunkServer stands.

use anyhow::{Context, bail};
use clap::Args;
use gofs_proto::cluster::why_request::What;
use gofs_proto::cluster::{WhyChunk, WhyPath, WhyReply, WhyRequest};
use serde_json::{Value, json};

use crate::admin::Admin;
use crate::output::Style;
use crate::size;

/// What to explain.
#[derive(Args)]
#[command(after_help = "\
Examples:
  gofsctl why photos:/2024/a.jpg     a path in a namespace
  gofsctl why /mnt/photos/a.jpg      a path under a gofs mount of this host
  gofsctl why c17                    a chunk
  gofsctl why cs81224                a ChunkServer")]
pub struct WhyArgs {
    /// NAMESPACE:/PATH, a path under a mount, c<CHUNK> or cs<SERVER>.
    what: String,
}

/// Runs `gofsctl why`.
pub async fn run(admin: &mut Admin, args: WhyArgs, style: Style) -> anyhow::Result<()> {
    let request = WhyRequest { what: Some(parse(&args.what)?) };
    let reply = admin
        .call(|mut c| {
            let request = request.clone();
            async move { c.why(request).await }
        })
        .await?;
    if style.json {
        return style.print(&[], &[], &to_json(&reply));
    }
    print(&reply, style)
}

fn parse(what: &str) -> anyhow::Result<What> {
    let number = |prefix: &str| what.strip_prefix(prefix).and_then(|n| n.parse::<u64>().ok());
    if let Some(server) = number("cs") {
        return Ok(What::Server(server));
    }
    if let Some(chunk) = number("c") {
        return Ok(What::Chunk(chunk));
    }
    if let Some((namespace, path)) = what.split_once(":/") {
        return Ok(What::Path(WhyPath {
            namespace: namespace.into(),
            path: format!("/{path}").into_bytes().into(),
        }));
    }
    mounted(what).map(What::Path)
}

/// The namespace and the path in it of a path under a gofs mount, from /proc/self/mountinfo.
fn mounted(path: &str) -> anyhow::Result<WhyPath> {
    let absolute = std::path::absolute(path).with_context(|| format!("{path:?}"))?;
    let table = std::fs::read_to_string("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
    let mut best: Option<(&str, String)> = None;
    for line in table.lines() {
        let mut fields = line.split(' ');
        let Some(point) = fields.nth(4) else { continue };
        let mut after = fields.skip_while(|f| *f != "-").skip(1);
        let (kind, source) = (after.next().unwrap_or(""), after.next().unwrap_or(""));
        let longer = best.as_ref().is_none_or(|(found, _)| point.len() > found.len());
        if kind == "fuse.gofs" && absolute.starts_with(point) && longer {
            best = Some((point, source.to_string()));
        }
    }
    let Some((point, source)) = best else {
        bail!("{path:?} is neither NAMESPACE:/PATH, c<CHUNK>, cs<SERVER> nor a path under a gofs mount");
    };
    let (_, tree) = source.split_once(":/").with_context(|| format!("mount source {source:?}"))?;
    let (namespace, subdir) = tree.split_once('/').unwrap_or((tree, ""));
    let below = absolute.strip_prefix(point).context("a path under its mount")?;
    let inside = std::path::Path::new("/").join(subdir).join(below);
    Ok(WhyPath {
        namespace: namespace.into(),
        path: std::os::unix::ffi::OsStrExt::as_bytes(inside.as_os_str()).to_vec().into(),
    })
}

fn print(r: &WhyReply, style: Style) -> anyhow::Result<()> {
    let nothing = Value::Null;
    if r.ino != 0 && !r.file_type.is_empty() {
        let fields = [
            ("inode", r.ino.to_string()),
            ("type", r.file_type.clone()),
            ("mode", format!("{:04o}", r.mode)),
            ("owner", format!("{}:{}", r.uid, r.gid)),
            ("links", r.nlink.to_string()),
            ("size", format!("{} ({} inline)", r.size, r.inline_bytes)),
        ];
        style.print_fields(&fields, &nothing)?;
    }
    if !r.chunks.is_empty() {
        println!();
        let rows: Vec<Vec<String>> = r.chunks.iter().flat_map(chunk_rows).collect();
        let headings = [
            "index", "chunk", "version", "state", "goal", "written", "replica", "address", "version", "state",
        ];
        style.print(&headings, &rows, &nothing)?;
    }
    if !r.leases.is_empty() {
        println!();
        let rows: Vec<Vec<String>> = r
            .leases
            .iter()
            .map(|l| {
                let notes = [(l.recalling, "being recalled"), (l.open, "open")];
                let notes: Vec<&str> = notes.iter().filter(|(on, _)| *on).map(|(_, text)| *text).collect();
                vec![
                    format!("s{}", l.session),
                    l.host.clone(),
                    l.mount_point.clone(),
                    l.mode.clone(),
                    notes.join(", "),
                ]
            })
            .collect();
        style.print(&["lease of", "host", "mount point", "mode", "notes"], &rows, &nothing)?;
    }
    if let Some(s) = &r.server {
        let fields = [
            ("server", format!("cs{}", s.id)),
            ("address", s.address.clone()),
            ("state", s.state.clone()),
            ("heard", format!("{} ms ago", s.last_heard_ms)),
            ("chunks", s.chunks.to_string()),
            ("free", size::show(s.disks.iter().map(|d| d.free_bytes).sum())),
        ];
        style.print_fields(&fields, &nothing)?;
    }
    Ok(())
}

fn chunk_rows(c: &WhyChunk) -> Vec<Vec<String>> {
    let head = [
        c.index.to_string(),
        format!("c{}", c.chunk),
        c.version.to_string(),
        c.state.clone(),
        c.goal.to_string(),
        size::show(u64::from(c.blocks_4k) * 4096),
    ];
    let blank = [const { String::new() }; 6];
    if c.replicas.is_empty() {
        return vec![head.to_vec()];
    }
    c.replicas
        .iter()
        .enumerate()
        .map(|(i, r)| {
            let mut row = if i == 0 { head.to_vec() } else { blank.to_vec() };
            row.extend([
                format!("cs{}", r.server),
                r.address.clone(),
                r.version.to_string(),
                r.state.clone(),
            ]);
            row
        })
        .collect()
}

fn to_json(r: &WhyReply) -> Value {
    let chunks: Vec<Value> = r
        .chunks
        .iter()
        .map(|c| {
            let replicas: Vec<Value> = c
                .replicas
                .iter()
                .map(|r| json!({ "server": r.server, "address": r.address, "version": r.version, "state": r.state }))
                .collect();
            json!({
                "chunk": c.chunk, "version": c.version, "index": c.index, "ino": c.ino, "namespace": c.namespace,
                "goal": c.goal, "state": c.state, "blocks_4k": c.blocks_4k, "replicas": replicas,
            })
        })
        .collect();
    let leases: Vec<Value> = r
        .leases
        .iter()
        .map(|l| {
            json!({
                "session": l.session, "host": l.host, "mount_point": l.mount_point, "mode": l.mode,
                "recalling": l.recalling, "open": l.open,
            })
        })
        .collect();
    json!({
        "ino": r.ino, "type": r.file_type, "mode": r.mode, "uid": r.uid, "gid": r.gid, "nlink": r.nlink, "size": r.size,
        "inline_bytes": r.inline_bytes, "chunks": chunks, "leases": leases,
        "server": r.server.as_ref().map(|s| json!({ "id": s.id, "address": s.address, "state": s.state, "chunks": s.chunks })),
    })
}

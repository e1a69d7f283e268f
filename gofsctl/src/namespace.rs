//! `gofsctl ns`: namespaces.

use clap::{Args, Subcommand};
use gofs_proto::cluster::{
    CreateNamespaceRequest, DeleteNamespaceRequest, ListNamespacesRequest, Namespace, NamespaceConfig,
    SetNamespaceRequest,
};
use serde_json::{Value, json};

use crate::admin::Admin;
use crate::output::Style;
use crate::size;

/// What to do with namespaces.
#[derive(Subcommand)]
pub enum NamespaceCommand {
    /// Make a namespace: an empty file system of its own.
    #[command(after_help = "Example:\n  gofsctl ns create photos --replicas 2 --quota-bytes 1TiB")]
    Create {
        /// 1 to 64 letters, digits, '.', '_' or '-'.
        name: String,
        #[command(flatten)]
        config: ConfigArgs,
        /// Bytes in a chunk: a power of two from 64KiB to 1GiB. Fixed for ever.
        #[arg(long, value_parser = size::parse)]
        chunk_size: Option<u64>,
    },
    /// List the namespaces.
    #[command(after_help = "Example:\n  gofsctl ns list --json")]
    List,
    /// Show one namespace.
    #[command(after_help = "Example:\n  gofsctl ns show photos")]
    Show {
        /// Its name.
        name: String,
    },
    /// Change a namespace's configuration.
    #[command(after_help = "Example:\n  gofsctl ns set photos --quota-inodes 1000000")]
    Set {
        /// Its name.
        name: String,
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// Delete a namespace. Refused while it has files or mounts, unless told.
    #[command(after_help = "Example:\n  gofsctl ns delete photos --even-if-not-empty")]
    Delete {
        /// Its name.
        name: String,
        /// Delete it with all its files.
        #[arg(long)]
        even_if_not_empty: bool,
        /// End the sessions of its mounts first.
        #[arg(long)]
        even_if_mounted: bool,
    },
}

/// Configuration of a namespace; what is not given keeps its value or default.
#[derive(Args)]
pub struct ConfigArgs {
    /// Copies of each chunk, 1 to 16 (default 2).
    #[arg(long)]
    replicas: Option<u32>,
    /// Largest file kept in its inode, up to 64KiB (default 4KiB; 0: none).
    #[arg(long, value_parser = size::parse)]
    inline_max: Option<u64>,
    /// Most bytes of files, for example 500GiB (0: no limit).
    #[arg(long, value_parser = size::parse)]
    quota_bytes: Option<u64>,
    /// Most inodes (0: no limit).
    #[arg(long)]
    quota_inodes: Option<u64>,
}

impl ConfigArgs {
    fn config(&self, chunk_size: Option<u64>) -> anyhow::Result<NamespaceConfig> {
        let narrow = |what: &str, value: Option<u64>| {
            value.map(u32::try_from).transpose().map_err(|_| anyhow::anyhow!("--{what} is too large"))
        };
        Ok(NamespaceConfig {
            replicas: self.replicas,
            chunk_size: narrow("chunk-size", chunk_size)?,
            inline_max: narrow("inline-max", self.inline_max)?,
            quota_bytes: self.quota_bytes,
            quota_inodes: self.quota_inodes,
        })
    }
}

/// Runs one `gofsctl ns` command.
pub async fn run(admin: &mut Admin, command: NamespaceCommand, style: Style) -> anyhow::Result<()> {
    match command {
        NamespaceCommand::Create { name, config, chunk_size } => {
            let request = CreateNamespaceRequest { name, config: Some(config.config(chunk_size)?) };
            let made = admin
                .call(|mut c| {
                    let r = request.clone();
                    async move { c.create_namespace(r).await }
                })
                .await?;
            show(&made, style)
        }
        NamespaceCommand::List => {
            let all = list(admin).await?;
            let rows: Vec<Vec<String>> = all.iter().map(row).collect();
            let json = Value::Array(all.iter().map(to_json).collect());
            let headings = [
                "name",
                "replicas",
                "chunk size",
                "inline max",
                "bytes used",
                "quota",
                "inodes used",
                "quota",
                "mounts",
            ];
            style.print(&headings, &rows, &json)
        }
        NamespaceCommand::Show { name } => {
            let all = list(admin).await?;
            let found = all.iter().find(|n| n.name == name);
            let found =
                found.ok_or_else(|| anyhow::anyhow!("no namespace {name:?}; see: gofsctl ns list"))?;
            show(found, style)
        }
        NamespaceCommand::Set { name, config } => {
            let request = SetNamespaceRequest { name, config: Some(config.config(None)?) };
            let set = admin
                .call(|mut c| {
                    let r = request.clone();
                    async move { c.set_namespace(r).await }
                })
                .await?;
            show(&set, style)
        }
        NamespaceCommand::Delete { name, even_if_not_empty, even_if_mounted } => {
            let request = DeleteNamespaceRequest { name: name.clone(), even_if_not_empty, even_if_mounted };
            admin
                .call(|mut c| {
                    let r = request.clone();
                    async move { c.delete_namespace(r).await }
                })
                .await?;
            style.print_fields(&[("deleted", name.clone())], &json!({ "deleted": name }))
        }
    }
}

async fn list(admin: &mut Admin) -> anyhow::Result<Vec<Namespace>> {
    let reply = admin.call(|mut c| async move { c.list_namespaces(ListNamespacesRequest {}).await }).await?;
    Ok(reply.namespaces)
}

fn show(namespace: &Namespace, style: Style) -> anyhow::Result<()> {
    let fields = [
        ("name", namespace.name.clone()),
        ("id", namespace.id.to_string()),
        ("replicas", namespace.replicas.to_string()),
        ("chunk size", size::show(namespace.chunk_size.into())),
        ("inline max", size::show(namespace.inline_max.into())),
        ("bytes used", size::show(namespace.used_bytes)),
        ("quota of bytes", size::show_limit(namespace.quota_bytes)),
        ("inodes used", namespace.used_inodes.to_string()),
        ("quota of inodes", limit(namespace.quota_inodes)),
        ("mounts", namespace.mounts.to_string()),
    ];
    style.print_fields(&fields, &to_json(namespace))
}

fn limit(count: u64) -> String {
    if count == 0 { "none".into() } else { count.to_string() }
}

fn row(n: &Namespace) -> Vec<String> {
    vec![
        n.name.clone(),
        n.replicas.to_string(),
        size::show(n.chunk_size.into()),
        size::show(n.inline_max.into()),
        size::show(n.used_bytes),
        size::show_limit(n.quota_bytes),
        n.used_inodes.to_string(),
        limit(n.quota_inodes),
        n.mounts.to_string(),
    ]
}

fn to_json(n: &Namespace) -> Value {
    json!({
        "id": n.id, "name": n.name, "replicas": n.replicas, "chunk_size": n.chunk_size, "inline_max": n.inline_max,
        "quota_bytes": n.quota_bytes, "quota_inodes": n.quota_inodes, "used_bytes": n.used_bytes,
        "used_inodes": n.used_inodes, "mounts": n.mounts,
    })
}

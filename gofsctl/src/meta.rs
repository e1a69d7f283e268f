//! `gofsctl meta`: the MetaServers of a cluster, and who they are.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Subcommand;
use gofs_proto::cluster::{AddMetaReply, AddMetaRequest, RemoveMetaRequest, TransferLeadRequest};
use serde_json::json;

use crate::admin::Admin;
use crate::output::Style;
use crate::size;
use crate::survey::{Survey, survey};

/// How long an election may take before `status` calls it a problem.
const ELECTION_PATIENCE: Duration = Duration::from_secs(4);
/// How long members may take to agree on who leads after a transfer.
const TRANSFER_PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(200);

/// What to do.
#[derive(Subcommand)]
pub enum MetaCommand {
    /// Each MetaServer: role, term, last entry of its log, how far it is behind, what is missing.
    #[command(
        after_help = "Any MetaServer that answers is enough to ask. Exit status 0 when one leads a majority.\n\nExample:\n  gofsctl --meta m1:7460 meta status"
    )]
    Status,
    /// Add an empty MetaServer that was started with --join; it is brought up while the cluster serves.
    #[command(
        after_help = "Can be interrupted, and given again to go on.\n\nExample:\n  on m4:  gofs-meta --id 4 --listen 10.0.0.4:7460 --data /srv/gofs/meta --join 10.0.0.1:7460\n  then:   gofsctl --meta m1:7460 meta add 4 10.0.0.4:7460"
    )]
    Add {
        /// Its id, never used before in this cluster.
        id: u64,
        /// HOST:PORT at which the other MetaServers, ChunkServers and mounts reach it.
        address: String,
    },
    /// Remove a MetaServer, alive or dead. Its id is not used again; its process ends by itself with exit status 3.
    #[command(
        after_help = "Refused where those that are left could not go on: nothing can be forced then, bring one back first.\n\nExample:\n  gofsctl --meta m1:7460 meta remove 3"
    )]
    Remove {
        /// Which.
        id: u64,
    },
    /// Give the lead to another MetaServer, and wait until it has it.
    #[command(after_help = "Example:\n  gofsctl --meta m1:7460 meta transfer 2")]
    Transfer {
        /// To which; without: the one that is least behind.
        id: Option<u64>,
    },
}

/// `gofsctl meta ...`
pub async fn run(admin: &mut Admin, command: MetaCommand, style: Style) -> anyhow::Result<()> {
    match command {
        MetaCommand::Status => status(admin, style).await,
        MetaCommand::Add { id, address } => add(admin, id, address, style).await,
        MetaCommand::Remove { id } => remove(admin, id, style).await,
        MetaCommand::Transfer { id } => transfer(admin, id, style).await,
    }
}

async fn status(admin: &Admin, style: Style) -> anyhow::Result<()> {
    show(&settled(admin).await, style)
}

/// Asks everyone; again while a leader is being elected.
async fn settled(admin: &Admin) -> Survey {
    let deadline = Instant::now() + ELECTION_PATIENCE;
    loop {
        let found = survey(admin.addresses()).await;
        if found.leader().is_some() || !found.has_majority() || Instant::now() > deadline {
            return found;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Prints what was found out; fails where the cluster cannot work because of it.
fn show(found: &Survey, style: Style) -> anyhow::Result<()> {
    let (headings, rows, json) = found.table();
    if style.json || !rows.is_empty() {
        style.print(&headings, &rows, &json)?;
    }
    match found.problem() {
        Some(problem) => bail!("{problem}"),
        None => Ok(()),
    }
}

/// Says what is missing where no MetaServer could be asked for something; else returns the reason.
pub async fn explain(admin: &Admin, error: anyhow::Error, style: Style) -> anyhow::Result<()> {
    let found = survey(admin.addresses()).await;
    if found.problem().is_none() {
        return Err(error);
    }
    show(&found, style)
}

async fn add(admin: &mut Admin, id: u64, address: String, style: Style) -> anyhow::Result<()> {
    let mut told = String::new();
    loop {
        let request = AddMetaRequest { id, address: address.clone() };
        let reply = admin.call(|mut c| {
            let request = request.clone();
            async move { c.add_meta(request).await }
        });
        let reply = reply.await.with_context(|| format!("MetaServer {id} at {address} is not added"))?;
        let now = progress(&reply);
        if !style.json && now != told {
            println!("{now}");
        }
        told = now;
        if reply.voter {
            return match style.json {
                true => style.print(&[], &[], &json!({ "id": id, "address": address, "voter": true })),
                false => Ok(()),
            };
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn progress(reply: &AddMetaReply) -> String {
    if reply.voter {
        "voter: it counts for majorities now".into()
    } else if reply.snapshot_bytes > 0 {
        let (sent, all) = (size::show(reply.snapshot_sent_bytes), size::show(reply.snapshot_bytes));
        format!("learner: a Snapshot is on its way, {sent} of {all}")
    } else {
        format!("learner: has entry {} of {}", reply.matched_index, reply.last_index)
    }
}

async fn remove(admin: &mut Admin, id: u64, style: Style) -> anyhow::Result<()> {
    let request = RemoveMetaRequest { id };
    let reply = admin.call(|mut c| async move { c.remove_meta(request).await }).await;
    let voters = reply.with_context(|| format!("MetaServer {id} is not removed"))?.voters;
    if style.json {
        return style.print(&[], &[], &json!({ "id": id, "voters": voters }));
    }
    let spare = voters.saturating_sub(1) / 2;
    println!("MetaServer {id} is removed; of the {voters} that are left, {spare} may fail at a time");
    Ok(())
}

async fn transfer(admin: &mut Admin, id: Option<u64>, style: Style) -> anyhow::Result<()> {
    let request = TransferLeadRequest { to: id.unwrap_or(0) };
    let reply = admin.call(|mut c| async move { c.transfer_lead(request).await }).await?;
    let wanted = id.unwrap_or(reply.leader);
    let deadline = Instant::now() + TRANSFER_PATIENCE;
    loop {
        let found = survey(admin.addresses()).await;
        match found.leader().map(|leader| leader.id) {
            Some(leader) if leader == wanted => break,
            Some(leader) if Instant::now() > deadline => bail!("MetaServer {leader} leads, not {wanted}"),
            None if Instant::now() > deadline => bail!("no MetaServer leads"),
            _ => tokio::time::sleep(PAUSE).await,
        }
    }
    if style.json {
        return style.print(&[], &[], &json!({ "leader": wanted }));
    }
    println!("MetaServer {wanted} leads");
    Ok(())
}

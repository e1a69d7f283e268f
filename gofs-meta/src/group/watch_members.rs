//! What runs beside the group for its members' sake.
//!
//! The leader finishes changes that another one began, and writes the addresses that members say they have into the log. A
//! server that hears of no leader asks whether it was removed. Everyone tells its doors where the voters are.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use gofs_tree::MetaServerId;
use openraft::async_runtime::WatchReceiver;
use openraft::{BasicNode, ChangeMembers};
use tokio::sync::watch;

use super::{MetaGroup, Role};

/// How often a leader looks whether something is left to be done.
const LOOK: Duration = Duration::from_secs(1);
/// Silence of every leader after which a server asks whether it is a member still.
const DOUBT: Duration = Duration::from_secs(2);
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

impl MetaGroup {
    /// Where the voters are, now and from now on: for whoever has to find a leader later.
    pub fn voter_addresses(&self) -> watch::Receiver<Vec<String>> {
        self.addresses.subscribe()
    }

    /// Turns true when this server was removed from the group.
    pub fn removed(&self) -> watch::Receiver<bool> {
        self.network.book.removed()
    }

    /// Tells why, once this server can take part in nothing any more, because its data could not be written or read. Only a new
    /// start can help.
    pub fn failed(&self) -> watch::Receiver<Option<String>> {
        self.failed.subscribe()
    }

    pub(super) async fn keep_members(self: Arc<Self>) {
        let mut changes = self.raft.server_metrics();
        // A change that was under way at the last look, by its entry.
        let mut unfinished = None;
        loop {
            self.tell_addresses();
            if tokio::time::timeout(LOOK, changes.changed()).await.is_ok_and(|changed| changed.is_err()) {
                return;
            }
            if self.leadership.borrow().role == Role::Leader {
                unfinished = self.finish(unfinished).await;
                self.log_addresses().await;
            } else if self.door.silence() > DOUBT {
                self.ask_whether_removed().await;
            }
        }
    }

    fn tell_addresses(&self) {
        let members = self.view().members;
        if members.iter().any(|member| member.id == self.config.id) {
            self.network.book.introduce();
        }
        let voters = members.into_iter().filter(|member| member.voter);
        let now: Vec<String> = voters.map(|member| member.address).collect();
        self.addresses.send_if_modified(|known| {
            let changed = *known != now;
            known.clone_from(&now);
            changed
        });
    }

    /// A leader that died, or an author that gave up, leaves two sets of voters that both have to agree: makes it one. It is
    /// left alone until it was seen twice, because its author is about to do the same.
    async fn finish(&self, seen: Option<u64>) -> Option<u64> {
        let view = self.view();
        if !view.changing {
            return None;
        }
        let entry = view.membership.0;
        let Ok(_one) = self.changing.try_lock() else { return Some(entry) };
        if seen == Some(entry) {
            let nothing = ChangeMembers::AddVoterIds([].into());
            match self.change(self.raft.change_membership(nothing, false)).await {
                Ok(()) => tracing::info!("a change of the members that was left unfinished is finished"),
                Err(error) => tracing::warn!(%error, "a change of the members cannot be finished yet"),
            }
        }
        Some(entry)
    }

    /// Has the log say where members say that they are, if they are there.
    async fn log_addresses(&self) {
        let Ok(_one) = self.changing.try_lock() else { return };
        let logged: Vec<(MetaServerId, String)> = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            let nodes = metrics.membership_config.membership().nodes();
            nodes.map(|(id, node)| (MetaServerId(*id), node.addr.clone())).collect()
        };
        for (id, known) in logged {
            let Some(said) = self.network.book.said(id).filter(|said| *said != known) else { continue };
            if id != self.config.id && !self.is_member_at(id, &said).await {
                continue;
            }
            let nodes = BTreeMap::from([(id.0, BasicNode::new(&said))]);
            let change = self.raft.change_membership(ChangeMembers::SetNodes(nodes), true);
            match self.change(change).await {
                Ok(()) => {
                    tracing::info!(id = id.0, from = known, to = said, "a MetaServer has another address now")
                }
                Err(error) => tracing::warn!(id = id.0, %error, "its new address is not in the log yet"),
            }
        }
    }

    async fn is_member_at(&self, id: MetaServerId, address: &str) -> bool {
        let found = self.network.probe(address, PROBE_TIMEOUT).await;
        let own = self.state.cluster_tag().ok().flatten();
        found.is_ok_and(|found| {
            found.id == id && !found.fresh && own.is_some_and(|own| own[..] == found.cluster[..])
        })
    }

    /// A refusal says so.
    async fn ask_whether_removed(&self) {
        if self.door.is_removed(self.config.id) {
            return self.network.book.set_removed();
        }
        for member in self.view().members {
            if member.id != self.config.id {
                // The answer itself is of no interest.
                let _ = self.network.probe(&member.address, PROBE_TIMEOUT).await;
            }
        }
    }

    /// A server without data finds out which cluster it waits for, and says what there is to be done.
    pub(super) async fn wait_to_be_added(self: Arc<Self>) {
        let mut told = false;
        while !self.raft.is_initialized().await.unwrap_or(true) {
            for address in &self.config.join {
                match self.network.probe(address, PROBE_TIMEOUT).await {
                    Ok(found) if !found.cluster.is_empty() => {
                        self.door.await_cluster(&found.cluster);
                        if !std::mem::replace(&mut told, true) {
                            tracing::info!(
                                "waiting to be added to the cluster of {address}: gofsctl --meta {address} meta add {} {}",
                                self.config.id.0,
                                self.config.address
                            );
                        }
                        break;
                    }
                    Ok(_) => tracing::warn!(address, "there is no cluster yet"),
                    Err(status) => {
                        tracing::warn!(address, error = status.message(), "no member of the cluster answers");
                    }
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

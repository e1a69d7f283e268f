//! Who the members are, and changes of that while the group serves.
//!
//! The log says who is a member. A new one is a learner until it has nearly everything, then a voter; both changes are
//! entries of the log, and each can be asked for again. An id is used once: that of a removed member is remembered in
//! the state, so that a server that comes back late can be told, and is never mistaken for another one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use gofs_tree::{EditIndex, MetaServerId};
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::{BasicNode, ChangeMembers, Instant as _, ServerState};

use super::leading::MOST_BEHIND;
use super::{LEASE_RETRY_PAUSE, MetaGroup, ProposeError};
use crate::command::Command;
use crate::raft::{LogId, Types};

/// How long a change of the members may wait for a majority.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a server that is to be added may take to say who it is.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// One member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Which.
    pub id: MetaServerId,
    /// Where it is.
    pub address: String,
    /// It counts for majorities; a learner does not.
    pub voter: bool,
    /// The leader heard from it lately; itself: yes.
    pub reachable: bool,
    /// Last entry that it has, as far as the leader knows.
    pub matched: Option<EditIndex>,
    /// Time since the leader heard from it.
    pub heard: Option<Duration>,
    /// Bytes sent of a Snapshot that is on its way to it, and of how many.
    pub snapshot: Option<(u64, u64)>,
}

/// How the group looks from one MetaServer.
#[derive(Clone, Debug)]
pub struct GroupView {
    /// leader, follower, candidate, learner, or waiting (to be added).
    pub role: &'static str,
    /// The term that it is in.
    pub term: u64,
    /// Who leads, as far as it knows.
    pub leader: Option<MetaServerId>,
    /// Last entry in its log.
    pub last: EditIndex,
    /// The members as it knows them.
    pub members: Vec<Member>,
    /// The entry that made them so.
    pub membership: EditIndex,
    /// They are changing from one set of voters to another.
    pub changing: bool,
    /// Leader: time since a majority answered.
    pub quorum: Option<Duration>,
}

/// How far a new member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// It is a voter now: done.
    pub voter: bool,
    /// Last entry that it has.
    pub matched: EditIndex,
    /// Last entry that there is.
    pub last: EditIndex,
    /// Bytes sent of a Snapshot that is on its way to it, and of how many.
    pub snapshot: Option<(u64, u64)>,
}

/// Why a change of the members was not made, or may not have been.
#[derive(Debug, thiserror::Error)]
pub enum MemberError {
    /// It cannot be. Nothing changed.
    #[error("{0}")]
    Refused(String),
    /// Not now.
    #[error("{0}")]
    Later(String),
    /// Ask the leader; or the group failed.
    #[error(transparent)]
    Propose(#[from] ProposeError),
}

fn refused<T>(text: String) -> Result<T, MemberError> {
    Err(MemberError::Refused(text))
}

impl MetaGroup {
    pub(super) fn members_of(&self, metrics: &openraft::RaftMetrics<Types>) -> Vec<Member> {
        let membership = metrics.membership_config.membership();
        let voters: Vec<u64> = membership.voter_ids().collect();
        let own_last = metrics.last_log_index.map(EditIndex);
        let member = |(&id, node): (&u64, &BasicNode)| {
            let own = id == self.config.id.0;
            let heard = metrics.heartbeat.as_ref().and_then(|heartbeat| heartbeat.get(&id));
            let heard = heard.and_then(|at| at.as_ref()).map(|at| at.elapsed());
            let matched = metrics.replication.as_ref().and_then(|matched| matched.get(&id));
            let matched =
                matched.and_then(|matched| matched.as_ref()).map(|matched| EditIndex(matched.index));
            let addresses = self.network.book.candidates(MetaServerId(id), Some(&node.addr));
            Member {
                id: MetaServerId(id),
                address: addresses.into_iter().next().unwrap_or_default(),
                voter: voters.contains(&id),
                reachable: own || heard.is_some_and(|heard| heard < self.config.silence()),
                matched: if own { own_last } else { matched },
                heard: if own { Some(Duration::ZERO) } else { heard },
                snapshot: self.network.sending.to(MetaServerId(id)),
            }
        };
        membership.nodes().map(member).collect()
    }

    /// How the group looks from here.
    pub fn view(&self) -> GroupView {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let is_member = membership.get_node(&self.config.id.0).is_some();
        let role = match metrics.state {
            ServerState::Leader => "leader",
            ServerState::Follower => "follower",
            ServerState::Candidate => "candidate",
            _ if is_member => "learner",
            _ => "waiting",
        };
        let index = |id: Option<&LogId>| EditIndex(id.map_or(0, |id| id.index));
        GroupView {
            role,
            term: metrics.current_term,
            leader: metrics.current_leader.map(MetaServerId),
            last: EditIndex(metrics.last_log_index.unwrap_or(0)),
            members: self.members_of(&metrics),
            membership: index(metrics.membership_config.log_id().as_ref()),
            changing: membership.get_joint_config().len() > 1,
            quorum: metrics.last_quorum_acked.as_ref().map(|at| at.elapsed()),
        }
    }

    /// Goes as far as it can at once to make that server a member: a learner first, a voter when it has caught up. To be
    /// called again until it is one.
    pub async fn add_member(&self, id: MetaServerId, address: &str) -> Result<Progress, MemberError> {
        let _one = self.changing.lock().await;
        self.confirm_leader().await?;
        let view = self.view();
        let last = view.last;
        let Some(member) = view.members.iter().find(|member| member.id == id) else {
            self.check_newcomer(&view, id, address).await?;
            let node = BasicNode::new(address);
            self.change(self.raft.add_learner(id.0, node, false)).await?;
            tracing::info!(id = id.0, address, "a MetaServer was added as a learner");
            return Ok(Progress { voter: false, matched: EditIndex(0), last, snapshot: None });
        };
        if member.address != address && !self.is_at(id, address).await {
            return refused(format!(
                "MetaServer {} is a member already, at {}: to replace it, remove it (gofsctl meta remove {}) and add the new one \
                 with an id that was not used before",
                id.0, member.address, id.0
            ));
        }
        let matched = member.matched.unwrap_or_default();
        let progress =
            Progress { voter: member.voter && !view.changing, matched, last, snapshot: member.snapshot };
        // It has the entry that made it a learner, and votes: one that does not would be missing from majorities.
        let near = matched >= view.membership && matched.0 + MOST_BEHIND >= last.0;
        if progress.voter || !member.reachable || !near || !self.votes(address).await {
            return Ok(progress);
        }
        let voters = ChangeMembers::AddVoterIds([id.0].into());
        self.change(self.raft.change_membership(voters, true)).await?;
        tracing::info!(id = id.0, address, "a MetaServer is a voter now");
        Ok(Progress { voter: true, ..progress })
    }

    /// Whether a server can become a member.
    async fn check_newcomer(
        &self,
        view: &GroupView,
        id: MetaServerId,
        address: &str,
    ) -> Result<(), MemberError> {
        let unreadable =
            |_| MemberError::Refused("this MetaServer cannot read its state; see its log".into());
        if self.state.is_retired(id).map_err(unreadable)? {
            return refused(format!(
                "the id {} was used by a MetaServer that was removed, and is not used again: choose another one for {address}, \
                 and give it an empty data directory",
                id.0
            ));
        }
        let lost = view.members.iter().find(|member| {
            let at = member.address.parse::<std::net::SocketAddr>();
            at.is_ok_and(|at| at.ip().is_unspecified())
        });
        if let Some(member) = lost {
            return refused(format!(
                "MetaServer {} is known as {}, where the new one cannot reach it: restart it with --advertise HOST:PORT first",
                member.id.0, member.address
            ));
        }
        if let Some(other) = view.members.iter().find(|member| member.address == address) {
            return refused(format!("MetaServer {} is at {address} already", other.id.0));
        }
        let found = self.network.probe(address, PROBE_TIMEOUT).await.map_err(|status| {
            let text = status.message();
            MemberError::Refused(format!(
                "no MetaServer answers at {address} ({text}): start it there first, with \
                 gofs-meta --id {} --listen {address} --data EMPTY-DIRECTORY --join {}",
                id.0, self.config.address
            ))
        })?;
        let own = self.state.cluster_tag().map_err(unreadable)?;
        let same = own.is_some_and(|own| own[..] == found.cluster[..]);
        if !found.cluster.is_empty() && !same {
            return refused(format!(
                "the MetaServer at {address} belongs to another cluster: start it with --join and an empty data directory"
            ));
        }
        if found.id != id {
            return refused(format!("the MetaServer at {address} has the id {}, not {}", found.id.0, id.0));
        }
        if !found.fresh {
            return refused(format!(
                "the MetaServer at {address} has data of its own: start it with --join and an empty data directory"
            ));
        }
        Ok(())
    }

    async fn votes(&self, address: &str) -> bool {
        self.network.probe(address, PROBE_TIMEOUT).await.is_ok_and(|found| found.votes)
    }

    /// Whether a member is at that address, too.
    async fn is_at(&self, id: MetaServerId, address: &str) -> bool {
        let found = self.network.probe(address, PROBE_TIMEOUT).await;
        let own = self.state.cluster_tag().ok().flatten();
        found.is_ok_and(|found| found.id == id && own.is_some_and(|own| own[..] == found.cluster[..]))
    }

    /// Removes a member; how many voters are left. A leader that is to go gives the lead away first, and the error names
    /// who has it.
    pub async fn remove_member(self: &Arc<Self>, id: MetaServerId) -> Result<usize, MemberError> {
        let _one = self.changing.lock().await;
        self.confirm_leader().await?;
        let view = self.view();
        let Some(member) = view.members.iter().find(|member| member.id == id) else {
            return refused(format!("no MetaServer {} is a member; see: gofsctl meta status", id.0));
        };
        let left = view.members.iter().filter(|other| other.voter && other.id != id).count();
        if member.voter {
            self.check_rest(id).await?;
        }
        if id == self.config.id {
            let Some(&to) = self.successors(None).first() else {
                return Err(MemberError::Later("no other MetaServer is ready to lead: try again".into()));
            };
            self.start_giving_lead(to).await;
            return Err(ProposeError::NotLeader { leader: self.address_of(to.0) }.into());
        }
        self.propose(Command::RetireMeta { id }).await?;
        let ids = [id.0].into();
        let change =
            if member.voter { ChangeMembers::RemoveVoters(ids) } else { ChangeMembers::RemoveNodes(ids) };
        self.change(self.raft.change_membership(change, false)).await?;
        tracing::info!(id = id.0, address = member.address, "a MetaServer was removed");
        Ok(left)
    }

    /// Whether a voter can go. A leader that has just begun has not heard of everyone yet.
    async fn check_rest(&self, id: MetaServerId) -> Result<(), MemberError> {
        let until = Instant::now() + self.config.silence();
        loop {
            let members = self.view().members;
            let Some(member) = members.iter().find(|member| member.id == id) else { return Ok(()) };
            let rest: Vec<&Member> = members.iter().filter(|other| other.voter && other.id != id).collect();
            let checked = check_rest(member, &rest);
            if checked.is_ok() || Instant::now() > until {
                return checked;
            }
            tokio::time::sleep(LEASE_RETRY_PAUSE).await;
        }
    }

    /// Gives the lead to that member, or to the one that is least behind. Returns who leads then.
    pub async fn transfer(self: &Arc<Self>, to: Option<MetaServerId>) -> Result<MetaServerId, MemberError> {
        let _one = self.changing.lock().await;
        self.confirm_leader().await?;
        if to == Some(self.config.id) {
            return Ok(self.config.id);
        }
        let view = self.view();
        if let Some(to) = to {
            match view.members.iter().find(|member| member.id == to) {
                None => {
                    return refused(format!("no MetaServer {} is a member; see: gofsctl meta status", to.0));
                }
                Some(member) if !member.voter => {
                    return refused(format!("MetaServer {} is a learner still, and cannot lead", to.0));
                }
                Some(_) => {}
            }
        }
        let ready = self.successors(to);
        let first = ready.first().copied().filter(|first| to.is_none_or(|to| to == *first));
        let Some(first) = first else {
            let who = to.map_or("no other MetaServer".to_owned(), |to| format!("MetaServer {}", to.0));
            return Err(MemberError::Later(format!(
                "{who} cannot lead now: it does not answer, or is more than {MOST_BEHIND} entries behind"
            )));
        };
        self.start_giving_lead(first).await;
        let mut leadership = self.leadership();
        let other =
            leadership.wait_for(|now| now.leader.as_ref().is_some_and(|(id, _)| *id != self.config.id));
        match tokio::time::timeout(CHANGE_TIMEOUT, other).await {
            Ok(Ok(now)) => Ok(now.leader.as_ref().map_or(first, |(id, _)| *id)),
            _ => Err(MemberError::Later("the lead was given away, and nobody has it yet".into())),
        }
    }

    /// Waits for a change of the members to be committed.
    pub(super) async fn change<T>(
        &self,
        change: impl Future<Output = Result<T, RaftError<Types, ClientWriteError<Types>>>>,
    ) -> Result<(), MemberError> {
        let Ok(changed) = tokio::time::timeout(CHANGE_TIMEOUT, change).await else {
            return Err(MemberError::Later(format!(
                "no majority has agreed within {} s; the change is made when one does",
                CHANGE_TIMEOUT.as_secs()
            )));
        };
        let error = match changed {
            Ok(_) => return Ok(()),
            Err(RaftError::Fatal(fatal)) => return Err(self.fatal(&fatal).into()),
            Err(RaftError::APIError(error)) => error,
        };
        Err(match error {
            ClientWriteError::ForwardToLeader(forward) | ClientWriteError::LogEntryDiscarded(forward) => {
                self.not_leader(forward.leader_id).into()
            }
            ClientWriteError::ChangeMembershipError(ChangeMembershipError::InProgress(_)) => {
                MemberError::Later("another change of the members is not finished yet: try again".into())
            }
            other => MemberError::Refused(other.to_string()),
        })
    }
}

/// Whether a voter can go: the others must be able to agree on it, and go on.
fn check_rest(member: &Member, rest: &[&Member]) -> Result<(), MemberError> {
    if rest.is_empty() {
        return refused(format!("MetaServer {} is the only one: nothing would be left", member.id.0));
    }
    let answering = rest.iter().filter(|other| other.reachable).count();
    let needed = rest.len() / 2 + 1;
    // The change itself takes a majority of those before it, too.
    let before = answering + usize::from(member.reachable);
    if answering >= needed && before > rest.len().div_ceil(2) {
        return Ok(());
    }
    let silent: Vec<String> =
        rest.iter().filter(|other| !other.reachable).map(|other| other.id.0.to_string()).collect();
    refused(format!(
        "without MetaServer {}, {answering} of the {} that are left answer and {needed} are needed: bring {} back first. \
         Nothing can be forced here: whoever is left could not agree on anything",
        member.id.0,
        rest.len(),
        silent.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u64, reachable: bool) -> Member {
        let address = format!("h:{id}");
        Member {
            id: MetaServerId(id),
            address,
            voter: true,
            reachable,
            matched: None,
            heard: None,
            snapshot: None,
        }
    }

    fn can_go(gone: bool, rest: &[bool]) -> bool {
        let rest: Vec<Member> = (2..).zip(rest).map(|(id, up)| member(id, *up)).collect();
        check_rest(&member(1, gone), &rest.iter().collect::<Vec<_>>()).is_ok()
    }

    #[test]
    fn a_member_goes_only_where_the_rest_and_all_together_have_a_majority() {
        assert!(!can_go(true, &[]), "the only one");
        assert!(can_go(true, &[true]));
        assert!(!can_go(true, &[false]));
        assert!(can_go(false, &[true, true]), "a dead one of three");
        assert!(!can_go(true, &[true, false]), "the rest of two has no majority with one");
        assert!(can_go(true, &[true, true, false]));
        assert!(!can_go(false, &[true, true, false]), "two of four agree on nothing");
        assert!(can_go(false, &[true, true, true, false]));
    }
}

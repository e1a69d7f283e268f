//! What each MetaServer says of the group when it is asked by itself: also where nobody leads.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use gofs_proto::cluster::admin_client::AdminClient;
use gofs_proto::cluster::{Member, MemberStatusReply, MemberStatusRequest};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tonic::transport::Endpoint;

use crate::size;

/// How long a MetaServer may take to connect, and to answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const ANSWER_TIMEOUT: Duration = Duration::from_millis(1500);
/// A leader that no majority answered for so long leads nobody.
const QUORUM_SILENCE_MS: u64 = 3000;

/// Everything that was found out.
#[derive(Debug, Default)]
pub struct Survey {
    /// By address: what it says, or why it does not.
    answers: BTreeMap<String, Result<MemberStatusReply, String>>,
}

/// Asks the MetaServers at these addresses, and those that they name, all at once.
pub async fn survey(addresses: &[String]) -> Survey {
    let mut survey = Survey::default();
    let mut next: BTreeSet<String> = addresses.iter().cloned().collect();
    while !next.is_empty() {
        let mut asked = JoinSet::new();
        for address in next {
            asked.spawn(async move {
                let answer = ask(&address).await;
                (address, answer)
            });
        }
        while let Some(answer) = asked.join_next().await {
            if let Ok((address, answer)) = answer {
                survey.answers.insert(address, answer);
            }
        }
        // Who has answered under another address need not be asked again.
        let here: BTreeSet<u64> = survey.replies().map(|reply| reply.id).collect();
        let named = survey.members().into_iter().filter(|member| !here.contains(&member.id));
        next = named.map(|member| member.address).filter(|a| !survey.answers.contains_key(a)).collect();
    }
    survey
}

/// Asks one MetaServer.
pub async fn ask(address: &str) -> Result<MemberStatusReply, String> {
    let endpoint =
        Endpoint::from_shared(format!("http://{address}")).map_err(|_| "not an address".to_owned())?;
    let asking = async {
        let channel = endpoint.connect_timeout(CONNECT_TIMEOUT).connect().await;
        let channel = channel.map_err(|_| "cannot connect".to_owned())?;
        let reply = AdminClient::new(channel).member_status(MemberStatusRequest {}).await;
        reply.map(tonic::Response::into_inner).map_err(|status| status.message().to_owned())
    };
    match tokio::time::timeout(ANSWER_TIMEOUT, asking).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("no answer within {} ms", ANSWER_TIMEOUT.as_millis())),
    }
}

impl Survey {
    fn replies(&self) -> impl Iterator<Item = &MemberStatusReply> {
        self.answers.values().filter_map(|answer| answer.as_ref().ok())
    }

    /// The members, as the one that knows most has them.
    pub fn members(&self) -> Vec<Member> {
        let known =
            self.replies().max_by_key(|reply| (reply.membership_index, reply.role == "leader", reply.term));
        known.map(|reply| reply.members.clone()).unwrap_or_default()
    }

    /// What a member says.
    pub fn of(&self, id: u64) -> Option<&MemberStatusReply> {
        self.replies().find(|reply| reply.id == id)
    }

    /// Who leads a majority.
    pub fn leader(&self) -> Option<&MemberStatusReply> {
        let leads = self.replies().filter(|reply| {
            let alone = reply.members.iter().filter(|member| member.voter).count() == 1;
            reply.role == "leader" && (alone || reply.quorum_ms < QUORUM_SILENCE_MS)
        });
        leads.max_by_key(|reply| reply.term)
    }

    /// Voters, and how many of them answer.
    fn voters(&self) -> (usize, usize) {
        let members = self.members();
        let voters = members.iter().filter(|member| member.voter);
        (voters.clone().count(), voters.filter(|member| self.of(member.id).is_some()).count())
    }

    /// Whether enough MetaServers answer to have a leader.
    pub fn has_majority(&self) -> bool {
        let (voters, answering) = self.voters();
        answering > voters / 2
    }

    /// Members that do not answer, with the reason.
    fn missing(&self) -> Vec<(Member, String)> {
        let silent = self.members().into_iter().filter(|member| self.of(member.id).is_none());
        silent
            .map(|member| {
                let why = match self.answers.get(&member.address) {
                    Some(Err(why)) => why.clone(),
                    Some(Ok(other)) => format!("MetaServer {} is there", other.id),
                    None => "not asked".to_owned(),
                };
                (member, why)
            })
            .collect()
    }

    /// Why the cluster cannot work, as far as its MetaServers are the reason.
    pub fn problem(&self) -> Option<String> {
        let (voters, answering) = self.voters();
        if self.replies().next().is_none() {
            let tried: Vec<String> = self
                .answers
                .iter()
                .map(|(address, answer)| {
                    format!("{address}: {}", answer.as_ref().err().map_or("", String::as_str))
                })
                .collect();
            return Some(format!(
                "no MetaServer answers ({}). Is gofs-meta running there? Name the MetaServers with --meta",
                tried.join(", ")
            ));
        }
        if voters == 0 {
            return Some(
                "there is no cluster yet: the MetaServers that answer wait for others, or to be added".into(),
            );
        }
        let missing: Vec<String> = self
            .missing()
            .iter()
            .filter(|(member, _)| member.voter)
            .map(|(member, why)| format!("{} at {} ({why})", member.id, member.address))
            .collect();
        if !self.has_majority() {
            let needed = voters / 2 + 1;
            return Some(format!(
                "no majority: {answering} of {voters} MetaServers answer, {needed} are needed. Missing: {}. \
                 Reads and writes wait until {} more is back",
                missing.join(", "),
                needed - answering
            ));
        }
        if self.leader().is_none() {
            let cut_off = "if it stays so, they cannot reach each other";
            return Some(format!(
                "{answering} of {voters} MetaServers answer, but none leads now; {cut_off}"
            ));
        }
        None
    }

    /// Headings, rows and JSON of the members.
    pub fn table(&self) -> (Vec<&'static str>, Vec<Vec<String>>, Value) {
        let leader = self.leader();
        let mut rows = Vec::new();
        let mut json_members = Vec::new();
        let missing = self.missing();
        for member in &self.members() {
            let reply = self.of(member.id);
            let led = leader.and_then(|leader| leader.members.iter().find(|other| other.id == member.id));
            let lag =
                led.zip(leader).map(|(led, leader)| leader.last_index.saturating_sub(led.matched_index));
            let role = match reply {
                // One that was leader and does not know yet.
                Some(reply) if reply.role == "leader" && leader.is_some_and(|now| now.id != reply.id) => {
                    "follower"
                }
                Some(reply) => reply.role.as_str(),
                None if member.voter => "voter",
                None => "learner",
            };
            let why = missing.iter().find(|(other, _)| other.id == member.id).map(|(_, why)| why.as_str());
            let sending = led.filter(|led| led.snapshot_bytes > 0).map(|led| {
                format!(
                    "receiving a Snapshot: {} of {}",
                    size::show(led.snapshot_sent_bytes),
                    size::show(led.snapshot_bytes)
                )
            });
            let state = match (why, &sending) {
                (Some(why), _) => format!("unreachable: {why}"),
                (None, Some(sending)) => sending.clone(),
                (None, None) => "answers".to_owned(),
            };
            let number =
                |of: fn(&MemberStatusReply) -> u64| reply.map_or("?".to_owned(), |r| of(r).to_string());
            rows.push(vec![
                member.id.to_string(),
                member.address.clone(),
                role.to_owned(),
                number(|reply| reply.term),
                number(|reply| reply.last_index),
                lag.map_or("?".to_owned(), |lag| lag.to_string()),
                number(|reply| reply.snapshot_index),
                state,
            ]);
            json_members.push(json!({
                "id": member.id, "address": member.address, "voter": member.voter, "role": role,
                "reachable": why.is_none(), "problem": why,
                "term": reply.map(|r| r.term), "last_index": reply.map(|r| r.last_index),
                "committed_index": reply.map(|r| r.committed_index), "applied_index": reply.map(|r| r.applied_index),
                "snapshot_index": reply.map(|r| r.snapshot_index), "version": reply.map(|r| &r.version),
                "matched_index": led.map(|led| led.matched_index), "lag": lag,
                "snapshot_sent_bytes": led.map(|led| led.snapshot_sent_bytes),
                "snapshot_bytes": led.map(|led| led.snapshot_bytes),
            }));
        }
        let (voters, answering) = self.voters();
        let json = json!({
            "leader": leader.map_or(0, |leader| leader.id),
            "term": leader.map_or(0, |leader| leader.term),
            "voters": voters, "answering": answering, "majority": self.has_majority(),
            "changing": leader.is_some_and(|leader| leader.changing),
            "problem": self.problem(), "members": json_members,
        });
        (vec!["id", "address", "role", "term", "last", "lag", "snapshot", "state"], rows, json)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(id: u64, role: &str, voters: u64) -> MemberStatusReply {
        let member = |id| Member { id, address: format!("h:{id}"), voter: true, ..Member::default() };
        MemberStatusReply {
            id,
            address: format!("h:{id}"),
            role: role.into(),
            term: 3,
            members: (1..=voters).map(member).collect(),
            membership_index: 1,
            ..MemberStatusReply::default()
        }
    }

    fn of(answers: &[Result<MemberStatusReply, &str>], addresses: &[&str]) -> Survey {
        let answers = addresses.iter().zip(answers);
        Survey {
            answers: answers.map(|(a, r)| ((*a).to_owned(), r.clone().map_err(str::to_owned))).collect(),
        }
    }

    #[test]
    fn a_lost_majority_is_named_with_who_is_missing() {
        let all = ["h:1", "h:2", "h:3"];
        let lost = of(&[Ok(reply(1, "follower", 3)), Err("cannot connect"), Err("no answer")], &all);
        let problem = lost.problem().unwrap();
        for part in ["1 of 3", "2 are needed", "2 at h:2 (cannot connect)", "3 at h:3 (no answer)", "1 more"]
        {
            assert!(problem.contains(part), "{part}: {problem}");
        }
        let led = of(&[Ok(reply(1, "leader", 3)), Ok(reply(2, "follower", 3)), Err("gone")], &all);
        assert_eq!(led.problem(), None);
        let (_, rows, json) = led.table();
        assert!(rows[2][7].contains("gone") && json["members"][2]["reachable"] == false);
        let none = of(&[Ok(reply(1, "follower", 3)), Ok(reply(2, "candidate", 3)), Err("gone")], &all);
        assert!(none.problem().unwrap().contains("none leads"));
        let nobody = of(&[Err("cannot connect")], &["h:1"]);
        assert!(nobody.problem().unwrap().contains("h:1: cannot connect"));
    }

    #[test]
    fn a_leader_that_no_majority_hears_leads_nobody() {
        let deposed = MemberStatusReply { quorum_ms: 60_000, ..reply(1, "leader", 3) };
        let survey = of(&[Ok(deposed), Ok(reply(2, "follower", 3))], &["h:1", "h:2"]);
        assert!(survey.leader().is_none());
        let alone = MemberStatusReply { quorum_ms: u64::MAX, ..reply(1, "leader", 1) };
        assert!(of(&[Ok(alone)], &["h:1"]).leader().is_some());
    }
}

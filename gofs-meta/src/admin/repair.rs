//! `Check` with repairs: what can be set right is, by commands in the EditLog, and what is left is told.
//!
//! Nothing that any file refers to is given up unless the caller says so. One problem may hide another, so a check follows
//! on repairs until one finds nothing that was not tried before.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use gofs_proto::cluster::{CheckReply, CheckRequest};
use gofs_tree::NamespaceId;
use tonic::Status;

use super::Admin;
use super::check::{Found, check};
use crate::command::{Command, CommandOutcome};
use crate::heartbeat::propose_status;
use crate::repair::{REPAIRS_MAX, Repair};

/// Checks that follow on repairs.
const ROUNDS_MAX: usize = 8;
/// Repairs told one by one.
const TOLD_MAX: usize = 1000;

/// `Check`
pub(super) async fn run(admin: &Arc<Admin>, request: CheckRequest) -> Result<CheckReply, Status> {
    let (mut repaired, mut refused) = (Vec::new(), Vec::new());
    if request.discard_unknown {
        propose(admin, Command::DiscardUnknown).await?;
        repaired.push("chunks that are unknown since the restore are kept no more".to_owned());
    }
    let mut found = admin.walk(check).await?;
    let mut tried = HashSet::new();
    for _ in 0..ROUNDS_MAX {
        let chosen = choose(&found, &request, &mut tried);
        if chosen.is_empty() {
            break;
        }
        for (namespace, repairs) in chosen {
            perform(admin, namespace, repairs, &mut repaired, &mut refused).await?;
        }
        found = admin.walk(check).await?;
    }
    if repaired.len() > TOLD_MAX {
        let more = repaired.len() - TOLD_MAX;
        repaired.truncate(TOLD_MAX);
        repaired.push(format!("and {more} more"));
    }
    Ok(found.reply(repaired, refused))
}

/// A repair and the problem that it is for.
type Chosen = Vec<(Repair, String)>;

/// What is to be repaired now, by namespace.
fn choose(
    found: &Found,
    request: &CheckRequest,
    tried: &mut HashSet<(NamespaceId, Repair)>,
) -> BTreeMap<NamespaceId, Chosen> {
    let mut chosen: BTreeMap<NamespaceId, Chosen> = BTreeMap::new();
    for problem in &found.problems {
        let repair = problem.repair.iter().filter(|_| request.repair);
        let hole = problem.hole.iter().filter(|_| request.lost_to_holes);
        for (namespace, repair) in repair.chain(hole) {
            if tried.insert((*namespace, repair.clone())) {
                chosen.entry(*namespace).or_default().push((repair.clone(), problem.text.clone()));
            }
        }
    }
    chosen
}

/// Apart from others those that a mounted namespace refuses.
async fn perform(
    admin: &Admin,
    namespace: NamespaceId,
    chosen: Chosen,
    repaired: &mut Vec<String>,
    refused: &mut Vec<String>,
) -> Result<(), Status> {
    let (unmounted, others): (Chosen, Chosen) =
        chosen.into_iter().partition(|(repair, _)| repair.needs_no_mount());
    for kind in [others, unmounted] {
        for batch in kind.chunks(REPAIRS_MAX) {
            let repairs = batch.iter().map(|(repair, _)| repair.clone()).collect();
            match propose(admin, Command::Repair { namespace, repairs }).await? {
                CommandOutcome::Repaired(done) => {
                    tracing::info!(ns = namespace.0, done, asked = batch.len(), "repairs were made");
                    if done as usize == batch.len() {
                        repaired.extend(batch.iter().map(|(_, text)| text.clone()));
                    } else {
                        // Which of them stay is what the next check finds.
                        repaired.push(format!("{done} of {} problems of {namespace}", batch.len()));
                    }
                }
                CommandOutcome::Refused(refusal) => {
                    refused.push(format!("{} repairs were not made: {refusal}", batch.len()));
                }
                other => return Err(Status::internal(format!("a repair was answered with {other:?}"))),
            }
        }
    }
    Ok(())
}

async fn propose(admin: &Admin, command: Command) -> Result<CommandOutcome, Status> {
    admin.group.propose(command).await.map_err(propose_status)
}

//! What an administrator asks for while everything goes on.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use gofs_proto::cluster::admin_client::AdminClient;
use gofs_proto::cluster::{
    AddMetaRequest, CheckRequest, RemoveMetaRequest, SetDrainingRequest, TransferLeadRequest,
};
use gofs_tree::MetaServerId;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::cluster::run;
use crate::plan::Plan;
use crate::world;

/// What is asked for.
#[derive(Clone, Debug)]
pub enum Wish {
    /// That another MetaServer leads.
    TransferLead,
    /// That the ChunkServer at this address is emptied, or used again.
    Drain { address: String, draining: bool },
    /// That a MetaServer, which is there and empty, takes the place of another one.
    Replace { old: MetaServerId, new: MetaServerId, address: String },
}

/// How long one MetaServer may take.
const PATIENCE: Duration = Duration::from_millis(1_000);
/// How often all are asked.
const ROUNDS: usize = 20;

/// Asks one MetaServer after the other until one has done it, from a host that has no troubles. Gives up after a while: nobody may
/// lead.
pub fn ask(plan: &Plan, wish: Wish) {
    let metas = plan.meta_addresses();
    world::spawn_on(plan.client_host(plan.clients), "admin", move || {
        run(async {
            match wish {
                Wish::TransferLead => {
                    until_done(&metas, async |mut admin| {
                        admin.transfer_lead(TransferLeadRequest::default()).await.map(|_| true)
                    })
                    .await;
                }
                Wish::Drain { address, draining } => {
                    until_done(&metas, async |mut admin| {
                        let address = address.clone();
                        let request = SetDrainingRequest { server: 0, address, draining };
                        admin.set_draining(request).await.map(|_| true)
                    })
                    .await;
                }
                Wish::Replace { old, new, address } => replace(metas, old, new, address).await,
            }
        });
    });
}

/// What the last `fsck` found; `None`: it was not answered yet.
#[derive(Clone, Default)]
pub struct Problems(Arc<Mutex<Option<Vec<String>>>>);

impl Problems {
    /// See the type.
    pub fn get(&self) -> Option<Vec<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Checks state and ChunkServers until no problem is found. With `lost_to_holes` files have holes where chunks are gone.
pub fn check(plan: &Plan, lost_to_holes: bool) -> Problems {
    let mut metas = plan.meta_addresses();
    metas.push(plan.meta_address(plan.metas).to_string());
    let problems = Problems::default();
    let found = problems.clone();
    world::spawn_on(plan.client_host(plan.clients), "fsck", move || {
        run(async {
            let request = CheckRequest { repair: false, discard_unknown: false, lost_to_holes };
            while found.get().is_none_or(|problems| !problems.is_empty()) {
                until_done(&metas, async |mut admin| {
                    let reply = admin.check(request).await?.into_inner();
                    *found.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(reply.problems);
                    Ok(true)
                })
                .await;
                tokio::time::sleep(PATIENCE / 2).await;
            }
        });
    });
    problems
}

async fn replace(mut metas: Vec<String>, old: MetaServerId, new: MetaServerId, address: String) {
    let added = until_done(&metas, async |mut admin| {
        let request = AddMetaRequest { id: new.0, address: address.clone() };
        Ok(admin.add_meta(request).await?.into_inner().voter)
    });
    if !added.await {
        return;
    }
    metas.push(address);
    until_done(&metas, async |mut admin| match admin.remove_meta(RemoveMetaRequest { id: old.0 }).await {
        Ok(_) => Ok(true),
        // Asked before, and done although the answer was lost; or not possible now.
        Err(status) => {
            Ok(status.code() == Code::FailedPrecondition && status.message().contains("is a member; see"))
        }
    })
    .await;
}

/// Whether one of them did it.
async fn until_done(
    metas: &[String],
    call: impl AsyncFn(AdminClient<Channel>) -> Result<bool, Status>,
) -> bool {
    for _ in 0..ROUNDS {
        for meta in metas {
            let asked = async {
                let endpoint = Endpoint::from_shared(format!("http://{meta}")).expect("an address");
                match endpoint.connect().await {
                    Ok(channel) => call(AdminClient::new(channel)).await.is_ok_and(|done| done),
                    Err(_) => false,
                }
            };
            if tokio::time::timeout(PATIENCE, asked).await == Ok(true) {
                return true;
            }
        }
        tokio::time::sleep(PATIENCE / 4).await;
    }
    false
}

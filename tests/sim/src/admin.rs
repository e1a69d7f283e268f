//! What an administrator asks for while everything goes on.

use std::time::Duration;

use gofs_proto::cluster::admin_client::AdminClient;
use gofs_proto::cluster::{SetDrainingRequest, TransferLeadRequest};
use tonic::Status;
use tonic::transport::Endpoint;

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
}

/// How long one MetaServer may take.
const PATIENCE: Duration = Duration::from_millis(500);
/// How often all are asked.
const ROUNDS: usize = 10;

/// Asks one MetaServer after the other until one has done it, from a host that has no troubles. Gives up after a while: nobody may
/// lead.
pub fn ask(plan: &Plan, wish: Wish) {
    let metas = plan.meta_addresses();
    world::spawn_on(plan.client_host(plan.clients), "admin", move || {
        run(async {
            for _ in 0..ROUNDS {
                for meta in &metas {
                    if let Ok(Ok(())) = tokio::time::timeout(PATIENCE, ask_one(meta, &wish)).await {
                        return;
                    }
                }
                tokio::time::sleep(PATIENCE).await;
            }
        });
    });
}

async fn ask_one(meta: &str, wish: &Wish) -> Result<(), Status> {
    let endpoint = Endpoint::from_shared(format!("http://{meta}")).expect("an address");
    let channel = endpoint.connect().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let mut admin = AdminClient::new(channel);
    match wish.clone() {
        Wish::TransferLead => admin.transfer_lead(TransferLeadRequest::default()).await.map(|_| ()),
        Wish::Drain { address, draining } => {
            let request = SetDrainingRequest { server: 0, address, draining };
            admin.set_draining(request).await.map(|_| ())
        }
    }
}

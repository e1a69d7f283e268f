//! The admin service of whichever MetaServer leads.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use gofs_proto::cluster::MemberStatusRequest;
use gofs_proto::cluster::admin_client::AdminClient;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};

/// How long all addresses together are tried before the command fails.
const PATIENCE: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(100);
/// Metadata of an UNAVAILABLE answer by a MetaServer that does not lead: who does.
const LEADER_KEY: &str = "gofs-leader";

/// Finds the leader, and stays with it.
pub struct Admin {
    addresses: Vec<String>,
    leader: Option<AdminClient<Channel>>,
}

impl Admin {
    /// `meta` is HOST:PORT[,HOST:PORT...]; nothing is connected yet.
    pub fn new(meta: &str) -> anyhow::Result<Self> {
        let addresses: Vec<String> = meta.split(',').map(str::trim).map(String::from).collect();
        for address in &addresses {
            let port = address.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
            if !matches!(port, Some(Ok(_))) {
                bail!("--meta {address:?}: want HOST:PORT, for example 127.0.0.1:7460");
            }
        }
        Ok(Admin { addresses, leader: None })
    }

    /// Where MetaServers were said to be.
    pub fn addresses(&self) -> &[String] {
        &self.addresses
    }

    /// Makes one call at the leader, which is looked for until [`PATIENCE`] is over.
    pub async fn call<T, F>(&mut self, call: impl Fn(AdminClient<Channel>) -> F) -> anyhow::Result<T>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        self.call_at_leader(PATIENCE, call).await
    }

    /// The same, with the answer within that time.
    pub async fn call_within<T, F>(
        &mut self,
        patience: Duration,
        call: impl Fn(AdminClient<Channel>) -> F,
    ) -> anyhow::Result<T>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        match tokio::time::timeout(patience, self.call_at_leader(patience, call)).await {
            Ok(result) => result,
            Err(_) => bail!("no MetaServer answered as leader within {patience:?}"),
        }
    }

    async fn call_at_leader<T, F>(
        &mut self,
        patience: Duration,
        call: impl Fn(AdminClient<Channel>) -> F,
    ) -> anyhow::Result<T>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let deadline = Instant::now() + patience;
        let mut known = self.addresses.clone();
        let mut queue = known.clone();
        let mut last_failure = String::new();
        loop {
            let client = match self.leader.take() {
                Some(client) => client,
                None => {
                    if queue.is_empty() {
                        if Instant::now() > deadline {
                            bail!(
                                "no MetaServer of {} answered as leader within {patience:?} ({last_failure}). \
                                 Is gofs-meta running there? Name the MetaServers with --meta; gofsctl meta status shows what is \
                                 missing",
                                self.addresses.join(",")
                            );
                        }
                        tokio::time::sleep(PAUSE).await;
                        queue.clone_from(&known);
                    }
                    let address = queue.remove(0);
                    match connect(&address, &mut known).await {
                        Ok(client) => client,
                        Err(error) => {
                            last_failure = format!("{address}: {error:#}");
                            continue;
                        }
                    }
                }
            };
            match call(client.clone()).await {
                Ok(response) => {
                    self.leader = Some(client);
                    return Ok(response.into_inner());
                }
                Err(status) if status.code() == Code::Unavailable => {
                    last_failure = status.message().to_string();
                    if let Some(leader) = status.metadata().get(LEADER_KEY).and_then(|v| v.to_str().ok())
                        && !leader.is_empty()
                    {
                        queue.insert(0, leader.to_string());
                        if Instant::now() > deadline {
                            queue.clear();
                        }
                        tokio::time::sleep(PAUSE).await;
                    }
                }
                // Not now; nothing was changed.
                Err(status) if status.code() == Code::Aborted && Instant::now() < deadline => {
                    self.leader = Some(client);
                    tokio::time::sleep(PAUSE).await;
                }
                Err(status) => bail!("{}", status.message()),
            }
        }
    }
}

/// Connects to a MetaServer that answers, and learns where others are: those that were named may not be members any more.
async fn connect(address: &str, known: &mut Vec<String>) -> anyhow::Result<AdminClient<Channel>> {
    let channel = Endpoint::from_shared(format!("http://{address}"))
        .context("not an address")?
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(CALL_TIMEOUT)
        .connect()
        .await
        .context("cannot connect")?;
    let mut client = AdminClient::new(channel);
    match tokio::time::timeout(CONNECT_TIMEOUT, client.member_status(MemberStatusRequest {})).await {
        Ok(Ok(status)) => {
            for member in status.into_inner().members {
                if !known.contains(&member.address) {
                    known.push(member.address);
                }
            }
        }
        // An older one does not know the question; what else is wrong, the call itself will show.
        Ok(Err(_)) => {}
        Err(_) => bail!("no answer within {CONNECT_TIMEOUT:?}"),
    }
    Ok(client)
}

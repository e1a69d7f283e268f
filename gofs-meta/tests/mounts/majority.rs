//! What becomes of mounts while most of the MetaServers are away.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use gofs_meta::command::{Command, CommandOutcome, NamespaceConfig};
use gofs_meta::group::Role;
use gofs_meta::{Config, Server};
use gofs_proto::session::failure::Code;
use gofs_tree::{MetaServerId, Timestamp};
use tokio::net::TcpListener;
use tokio::time::sleep;

use crate::client::*;

/// Three MetaServers with short times.
struct Three {
    data: tempfile::TempDir,
    peers: BTreeMap<MetaServerId, String>,
    servers: BTreeMap<MetaServerId, Server>,
}

impl Three {
    async fn start() -> Three {
        let mut held = Vec::new();
        for _ in 0..3 {
            held.push(TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap());
        }
        let addresses = held.iter().map(|listener| listener.local_addr().unwrap().to_string());
        let peers: BTreeMap<MetaServerId, String> = (1..).map(MetaServerId).zip(addresses).collect();
        drop(held);
        let mut three = Three { data: tempfile::tempdir().unwrap(), peers, servers: BTreeMap::new() };
        for id in 1..=3 {
            three.start_one(MetaServerId(id)).await;
        }
        let command = Command::CreateNamespace {
            name: "demo".into(),
            config: NamespaceConfig::default(),
            time: Timestamp::default(),
        };
        let leader = three.leader().await;
        let outcome = three.servers[&leader].group().propose(command).await.unwrap();
        assert!(matches!(outcome, CommandOutcome::Namespace(_)), "{outcome:?}");
        three
    }

    async fn start_one(&mut self, id: MetaServerId) {
        let config = Config {
            sessions: SHORT,
            peers: self.peers.clone(),
            ..Config::new(id, self.peers[&id].parse().unwrap(), self.data.path().join(id.0.to_string()))
        };
        self.servers.insert(id, Server::start(config).await.unwrap());
    }

    async fn leader(&self) -> MetaServerId {
        let until = Instant::now() + LONG;
        loop {
            let leads = |server: &Server| server.group().leadership().borrow().role == Role::Leader;
            if let Some((id, _)) = self.servers.iter().find(|(_, server)| leads(server)) {
                return *id;
            }
            assert!(Instant::now() < until, "nobody leads");
            sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_outlives_the_time_without_a_majority_with_its_leases() {
    let mut three = Three::start().await;
    let leader = three.leader().await;
    let a = Mount::open(three.servers[&leader].address()).await;
    let made = a.create(ROOT, "f").await.unwrap();
    let lease = held(node_of(&made, gofs_tree::Ino(made.ino)));
    let others: Vec<MetaServerId> = three.peers.keys().copied().filter(|id| *id != leader).collect();
    for id in &others {
        three.servers.remove(id).unwrap().shutdown().await;
    }
    // It is not answered, and cannot go on over another connection.
    a.fall_silent();
    a.link.close();
    sleep(SHORT.validity + SHORT.margin + Duration::from_secs(2)).await;
    three.start_one(others[0]).await;
    let until = Instant::now() + LONG;
    let back = loop {
        let address = three.servers[&three.leader().await].address();
        match a.again(address, vec![lease], Vec::new()).await {
            Ok(back) => break back,
            Err(error) => assert_eq!(refused(error).code(), Code::NotLeader),
        }
        assert!(Instant::now() < until, "there is a majority again");
        sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(back.welcome.refused_leases, []);
    back.create(ROOT, "g").await.unwrap();
    drop(back);
    for (_, server) in three.servers {
        server.shutdown().await;
    }
}

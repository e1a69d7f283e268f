//! Which ChunkServers there are, and which of them are alive.
//!
//! A server is known because it is registered in the state, so a dead one is
//! missed even after a restart of the MetaServer. It is alive while its
//! connection stands and it was heard of within `dead_after`.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use gofs_tree::ChunkServerId;

/// One disk as its server last described it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Disk {
    /// Directory on the server.
    pub path: String,
    /// Bytes in all.
    pub capacity_bytes: u64,
    /// Bytes free.
    pub free_bytes: u64,
    /// Why the disk is out of use; empty = it works.
    pub error: String,
    /// When the scrubber last saw all of it, seconds since 1970; 0 = never.
    pub last_scrub_unix_s: u64,
}

/// One ChunkServer.
#[derive(Clone, Debug)]
pub struct Server {
    /// Its id.
    pub id: ChunkServerId,
    /// Address of its data door.
    pub address: String,
    /// What its administrator says of its place: `host`, `rack`, others.
    pub labels: BTreeMap<String, String>,
    /// The connection that stands, if any.
    pub link: Option<u64>,
    /// It is being emptied: it gets no replicas, and gives up those that were made elsewhere.
    pub draining: bool,
    /// When its connection was made.
    pub connected: Option<Instant>,
    /// When it was last heard of in this term.
    pub heard: Option<Instant>,
    /// Since when it has been dead, if it is.
    pub down_since: Option<Instant>,
    /// Whether it is in the middle of its full list of chunks.
    pub listing: bool,
    /// Whether its full list of chunks arrived since its last connect.
    pub listed: bool,
    /// Whether its full list of chunks arrived at any time in this term.
    pub listed_before: bool,
    /// Its disks.
    pub disks: Vec<Disk>,
    /// Whether a status has arrived, so that the disks are known.
    pub described: bool,
    /// Chunks that it says it has.
    pub chunks: u64,
    /// Requests that it was working on.
    pub in_flight: u32,
    /// Its load, as it sees it.
    pub load: f64,
    /// Corrupt blocks found in its life.
    pub corrupt_blocks_total: u64,
    /// What it does about processor latency, in words.
    pub cpu_latency: String,
    /// Chunks placed on it since its last status.
    pub placed: u32,
}

impl Server {
    /// Whether it can be reached.
    pub fn is_alive(&self) -> bool {
        self.link.is_some()
    }

    /// The machine it runs on: label `host`, else the host part of its address.
    pub fn host(&self) -> &str {
        match self.labels.get("host") {
            Some(host) => host,
            None => self.address.rsplit_once(':').map_or(self.address.as_str(), |(host, _)| host),
        }
    }

    /// Bytes of its working disks, and how many of them are in use; `None` where it has not said, or has none.
    pub fn used_bytes(&self) -> Option<(u64, u64)> {
        let disks = self.disks.iter().filter(|disk| disk.error.is_empty());
        let capacity: u64 = disks.clone().map(|disk| disk.capacity_bytes).sum();
        let free: u64 = disks.map(|disk| disk.free_bytes).sum();
        (self.described && capacity > 0).then(|| (capacity, capacity.saturating_sub(free)))
    }

    /// Bytes it can take beyond what each of its disks keeps in reserve.
    pub fn room_bytes(&self, reserve_bytes: (u64, u64)) -> u64 {
        let (least, most) = reserve_bytes;
        self.disks
            .iter()
            .filter(|disk| disk.error.is_empty())
            .map(|disk| disk.free_bytes.saturating_sub((disk.capacity_bytes / 100).clamp(least, most)))
            .sum()
    }
}

/// All known servers.
#[derive(Debug, Default)]
pub struct ServerTable {
    servers: BTreeMap<ChunkServerId, Server>,
}

impl ServerTable {
    /// Takes a server from the state: not alive until it connects.
    pub fn know(
        &mut self,
        id: ChunkServerId,
        address: String,
        labels: BTreeMap<String, String>,
        now: Instant,
    ) -> &mut Server {
        let server = self.servers.entry(id).or_insert_with(|| Server {
            id,
            address: String::new(),
            labels: BTreeMap::new(),
            link: None,
            draining: false,
            connected: None,
            heard: None,
            down_since: Some(now),
            listing: false,
            listed: false,
            listed_before: false,
            disks: Vec::new(),
            described: false,
            chunks: 0,
            in_flight: 0,
            load: 0.0,
            corrupt_blocks_total: 0,
            cpu_latency: String::new(),
            placed: 0,
        });
        server.address = address;
        server.labels = labels;
        server
    }

    /// A server connected. An older connection of the same server is thereby over: it is returned.
    pub fn connected(
        &mut self,
        id: ChunkServerId,
        address: String,
        labels: BTreeMap<String, String>,
        link: u64,
        now: Instant,
    ) -> Option<u64> {
        let server = self.know(id, address, labels, now);
        server.heard = Some(now);
        server.connected = Some(now);
        server.down_since = None;
        server.listing = false;
        server.listed = false;
        server.link.replace(link)
    }

    /// A connection ended; `true` if the server is dead by that (it had no newer one).
    pub fn disconnected(&mut self, id: ChunkServerId, link: u64, now: Instant) -> bool {
        match self.servers.get_mut(&id) {
            Some(server) if server.link == Some(link) => {
                server.link = None;
                server.listed = false;
                server.down_since = Some(now);
                true
            }
            _ => false,
        }
    }

    /// Something arrived over `link`; `false` if that connection no longer counts.
    pub fn heard(&mut self, id: ChunkServerId, link: u64, now: Instant) -> bool {
        match self.servers.get_mut(&id) {
            Some(server) if server.link == Some(link) => {
                server.heard = Some(now);
                true
            }
            _ => false,
        }
    }

    /// Declares dead whoever was silent too long, with the connection to be closed.
    pub fn expire(&mut self, now: Instant, dead_after: Duration) -> Vec<(ChunkServerId, u64)> {
        let mut expired = Vec::new();
        for server in self.servers.values_mut() {
            let silent = server.heard.is_some_and(|heard| now.saturating_duration_since(heard) > dead_after);
            if silent && let Some(link) = server.link.take() {
                server.listed = false;
                server.down_since = Some(now);
                expired.push((server.id, link));
            }
        }
        expired
    }

    /// A server was removed from the cluster; its connection, if one stands.
    pub fn remove(&mut self, id: ChunkServerId) -> Option<u64> {
        self.servers.remove(&id).and_then(|server| server.link)
    }

    /// The ids of all servers.
    pub fn ids(&self) -> Vec<ChunkServerId> {
        self.servers.keys().copied().collect()
    }

    /// One server.
    pub fn get(&self, id: ChunkServerId) -> Option<&Server> {
        self.servers.get(&id)
    }

    /// One server, to be changed.
    pub fn get_mut(&mut self, id: ChunkServerId) -> Option<&mut Server> {
        self.servers.get_mut(&id)
    }

    /// All servers in the order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = &Server> {
        self.servers.values()
    }

    /// Those that can be reached.
    pub fn alive(&self) -> impl Iterator<Item = &Server> {
        self.servers.values().filter(|server| server.is_alive())
    }

    /// Whether the server can be reached.
    pub fn is_alive(&self, id: ChunkServerId) -> bool {
        self.get(id).is_some_and(Server::is_alive)
    }

    /// Whether every known server is alive and has listed all of its chunks.
    pub fn all_listed(&self) -> bool {
        self.servers.values().all(|server| server.is_alive() && server.listed)
    }

    /// Whether every known server has listed its chunks at some time in this
    /// term, so that every replica there is has been seen.
    pub fn all_seen(&self) -> bool {
        self.servers.values().all(|server| server.listed_before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEAD_AFTER: Duration = Duration::from_secs(10);

    fn connect(table: &mut ServerTable, link: u64, now: Instant) -> Option<u64> {
        table.connected(ChunkServerId(1), "10.0.0.1:7470".into(), BTreeMap::new(), link, now)
    }

    #[test]
    fn a_silent_server_is_dead_and_a_heard_one_is_not() {
        let start = Instant::now();
        let mut table = ServerTable::default();
        connect(&mut table, 1, start);
        assert!(table.heard(ChunkServerId(1), 1, start + Duration::from_secs(9)));
        assert!(table.expire(start + Duration::from_secs(15), DEAD_AFTER).is_empty());
        assert_eq!(table.expire(start + Duration::from_secs(20), DEAD_AFTER), [(ChunkServerId(1), 1)]);
        assert!(!table.is_alive(ChunkServerId(1)));
        assert!(!table.heard(ChunkServerId(1), 1, start + Duration::from_secs(21)));
    }

    #[test]
    fn the_end_of_an_old_connection_does_not_kill_the_new_one() {
        let start = Instant::now();
        let mut table = ServerTable::default();
        connect(&mut table, 1, start);
        assert_eq!(connect(&mut table, 2, start), Some(1));
        assert!(!table.disconnected(ChunkServerId(1), 1, start));
        assert!(table.is_alive(ChunkServerId(1)));
        assert!(table.disconnected(ChunkServerId(1), 2, start));
        assert!(!table.is_alive(ChunkServerId(1)));
    }

    #[test]
    fn host_is_the_label_or_the_address() {
        let mut table = ServerTable::default();
        connect(&mut table, 1, Instant::now());
        let server = table.get_mut(ChunkServerId(1)).unwrap();
        assert_eq!(server.host(), "10.0.0.1");
        server.labels.insert("host".into(), "h7".into());
        assert_eq!(server.host(), "h7");
    }
}

//! Hosts: one for each server and each mount, with its clock, its processes and its power.

use super::{MILLI_NS, World};
use crate::world::net::address_of_host;
use std::net::Ipv4Addr;

/// A host, from 1. 0 is outside of the world: the simulation's own thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostId(pub usize);

impl HostId {
    /// The simulation's own thread.
    pub const NONE: HostId = HostId(0);

    /// Where it is found.
    pub fn ip(self) -> Ipv4Addr {
        address_of_host(self)
    }
}

#[derive(Clone)]
pub(super) struct Host {
    /// Nothing on it runs.
    pub paused: bool,
    /// Its kernel answers the net.
    pub up: bool,
    /// What its wall clock is ahead, nanoseconds.
    wall_shift_ns: i64,
    /// Its steady clock makes one step where five pass.
    drags: bool,
    /// Counts its boots.
    pub boot: u64,
    /// Growing files is refused.
    pub disk_full: bool,
    /// A sync takes so long at most, nanoseconds.
    pub sync_ns: u64,
    next_port: u16,
}

pub(super) struct Hosts(Vec<Host>);

impl Hosts {
    pub fn new(count: usize) -> Hosts {
        let host = Host {
            paused: false,
            up: true,
            wall_shift_ns: 0,
            drags: false,
            boot: 1,
            disk_full: false,
            sync_ns: 2 * MILLI_NS,
            next_port: 40_000,
        };
        Hosts(vec![host; count + 1])
    }

    pub fn get(&self, id: HostId) -> &Host {
        &self.0[id.0]
    }

    pub fn get_mut(&mut self, id: HostId) -> &mut Host {
        &mut self.0[id.0]
    }

    pub fn steady_ns(&self, id: HostId, now: u64) -> u64 {
        if self.get(id).drags { super::BEGIN_NS + (now - super::BEGIN_NS) / 5 } else { now }
    }

    /// The inverse: when its clock shows that.
    pub fn world_ns(&self, id: HostId, steady: u64) -> u64 {
        if self.get(id).drags {
            super::BEGIN_NS + steady.saturating_sub(super::BEGIN_NS).saturating_mul(5)
        } else {
            steady
        }
    }

    pub fn wall_shift_ns(&self, id: HostId) -> i64 {
        self.get(id).wall_shift_ns
    }

    pub fn take_port(&mut self, id: HostId) -> u16 {
        let host = self.get_mut(id);
        host.next_port = if host.next_port == u16::MAX { 40_000 } else { host.next_port + 1 };
        host.next_port
    }
}

impl World {
    /// Stops everything that runs on the host, as SIGSTOP does, or lets it go on.
    pub fn set_paused(&mut self, host: HostId, paused: bool) {
        self.trace.note("pause", self.now, host.0 as u64, paused.into());
        self.hosts.get_mut(host).paused = paused;
    }

    /// Moves its wall clock.
    pub fn shift_wall(&mut self, host: HostId, by_ns: i64) {
        self.hosts.get_mut(host).wall_shift_ns += by_ns;
    }

    /// From now on its steady clock is slow.
    pub fn drag_clock(&mut self, host: HostId) {
        self.hosts.get_mut(host).drags = true;
    }

    /// Fills its disk, or makes room.
    pub fn set_disk_full(&mut self, host: HostId, full: bool) {
        self.hosts.get_mut(host).disk_full = full;
    }

    /// Whether its disk is full.
    pub fn is_disk_full(&self, host: HostId) -> bool {
        self.hosts.get(host).disk_full
    }

    /// How long its syncs take at most.
    pub fn set_sync_ns(&mut self, host: HostId, sync_ns: u64) {
        self.hosts.get_mut(host).sync_ns = sync_ns;
    }

    /// Ends everything that runs on the host at once. Its peers are told by its kernel.
    pub fn kill(&mut self, host: HostId) {
        self.trace.note("kill", self.now, host.0 as u64, 0);
        self.hosts.get_mut(host).paused = false;
        self.threads.kill(host);
        self.drop_descriptors(host);
    }

    /// The same by a power cut: nobody is told, and what was not synced may be lost. The host is away until
    /// [`World::power_on`].
    pub fn cut_power(&mut self, host: HostId, cut: super::Cut) {
        self.trace.note("cut", self.now, host.0 as u64, 0);
        self.hosts.get_mut(host).up = false;
        self.kill(host);
        self.lose_unsynced(host, cut);
        self.hosts.get_mut(host).boot += 1;
    }

    /// Its kernel is there again.
    pub fn power_on(&mut self, host: HostId) {
        self.hosts.get_mut(host).up = true;
    }
}

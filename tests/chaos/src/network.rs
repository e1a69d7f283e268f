//! A network of hosts: each has a namespace of its own, and a cable to the driver's, which routes between them.
//!
//! What is cut off is dropped by the router, silently and for each direction alone (`ip rule ... blackhole`), as a broken
//! switch does it; no end is told. Nothing leaves the driver's namespace: it has no way to the machine's network.

use std::collections::BTreeSet;
use std::fs::File;
use std::process::Command;

use anyhow::{Context, Result};

use crate::sandbox::{run, run_program};
use crate::sys;

/// First preference of the rules that cut.
const FIRST_RULE: u32 = 1000;

/// A host on the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostId(usize);

struct Host {
    network: File,
    /// Name of the router's end of its cable.
    cable: String,
    address: String,
}

/// A rule that drops what one host sends to another.
#[derive(Debug)]
pub struct Cut(u32);

/// The router and its hosts.
pub struct Network {
    hosts: Vec<Host>,
    rules: BTreeSet<u32>,
}

impl Network {
    /// Must be called in a network namespace of the driver's own.
    pub fn new() -> Result<Network> {
        run_program("ip", &["link", "set", "lo", "up"])?;
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("this namespace cannot route")?;
        Ok(Network { hosts: Vec::new(), rules: BTreeSet::new() })
    }

    /// Connects a further host.
    pub fn add(&mut self) -> Result<HostId> {
        let id = HostId(self.hosts.len());
        let network = sys::new_network().context("a network namespace")?;
        let (cable, subnet) = (format!("host{}", id.0), format!("10.77.{}", id.0 + 1));
        let place = format!("/proc/{}/fd/{}", std::process::id(), std::os::fd::AsRawFd::as_raw_fd(&network));
        run_program("ip", &["link", "add", &cable, "type", "veth", "peer", "name", "eth0", "netns", &place])?;
        run_program("ip", &["addr", "add", &format!("{subnet}.1/24"), "dev", &cable])?;
        run_program("ip", &["link", "set", &cable, "up"])?;
        self.hosts.push(Host { network, cable, address: format!("{subnet}.2") });
        let (own, router) = (format!("{subnet}.2/24"), format!("{subnet}.1"));
        self.inside(id, "ip", &["link", "set", "lo", "up"])?;
        self.inside(id, "ip", &["addr", "add", &own, "dev", "eth0"])?;
        self.inside(id, "ip", &["link", "set", "eth0", "up"])?;
        self.inside(id, "ip", &["route", "add", "default", "via", &router])?;
        Ok(id)
    }

    fn inside(&self, host: HostId, program: &str, args: &[&str]) -> Result<()> {
        let mut command = Command::new(program);
        command.args(args);
        sys::enter_network(&mut command, &self.hosts[host.0].network);
        run(&mut command)
    }

    /// Its address.
    pub fn address(&self, host: HostId) -> &str {
        &self.hosts[host.0].address
    }

    /// Its namespace, for processes to enter.
    pub fn namespace(&self, host: HostId) -> Result<File> {
        self.hosts[host.0].network.try_clone().context("a second handle of a network namespace")
    }

    /// Drops what `from` sends to `to`, and nothing of what comes back.
    pub fn cut(&mut self, from: HostId, to: HostId) -> Result<Cut> {
        let mut rule = FIRST_RULE;
        while self.rules.contains(&rule) {
            rule += 1;
        }
        let (from, to) = (&self.hosts[from.0].address, &self.hosts[to.0].address);
        run_program("ip", &["rule", "add", "pref", &rule.to_string(), "from", from, "to", to, "blackhole"])?;
        self.rules.insert(rule);
        Ok(Cut(rule))
    }

    /// Lets it through again.
    pub fn heal(&mut self, cut: Cut) -> Result<()> {
        run_program("ip", &["rule", "del", "pref", &cut.0.to_string()])?;
        self.rules.remove(&cut.0);
        Ok(())
    }

    /// Pulls the cable of a host, or puts it back: the host sees that its link is down.
    pub fn plug(&self, host: HostId, plugged: bool) -> Result<()> {
        let state = if plugged { "up" } else { "down" };
        run_program("ip", &["link", "set", &self.hosts[host.0].cable, state])
    }

    /// Makes both directions of a host's cable slow (bits a second) and its queues short, so that packets are lost too.
    pub fn slow(&self, host: HostId, rate: &str) -> Result<()> {
        let shape = |device| {
            ["qdisc", "add", "dev", device, "root", "tbf", "rate", rate, "burst", "32kb", "latency", "30ms"]
        };
        run_program("tc", &shape(&self.hosts[host.0].cable))?;
        self.inside(host, "tc", &shape("eth0"))
    }

    /// As fast as ever.
    pub fn fast(&self, host: HostId) -> Result<()> {
        run_program("tc", &["qdisc", "del", "dev", &self.hosts[host.0].cable, "root"])?;
        self.inside(host, "tc", &["qdisc", "del", "dev", "eth0", "root"])
    }
}

//! Breaking things, and mending them.

use anyhow::{Context, Result, ensure};
use gofs_posix_tests::sys::kill;
use rand::RngExt;
use rand::rngs::StdRng;

use super::Kind;
use crate::cluster::Cluster;
use crate::network::{Cut, HostId};

/// Bits that flip at once, at most.
const BITS_MAX: usize = 6;
/// A wall clock jumps by up to this many seconds: a month.
const JUMP_MAX_S: i64 = 30 * 86_400;
const SLOW_RATE: &str = "30mbit";

/// A process of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// From 0.
    Meta(usize),
    /// From 0.
    Chunk(usize),
    /// From 0.
    Client(usize),
}

/// How it is mended.
enum Mend {
    Start,
    Continue,
    Heal(Vec<Cut>),
    Plug,
    Drain,
    Fast,
    Clock,
    Nothing,
}

/// A fault that is on.
pub struct Active {
    /// What.
    pub kind: Kind,
    /// Whom it concerns.
    pub target: Target,
    /// In words, for people.
    pub text: String,
    mend: Mend,
}

impl Target {
    /// Where it is on the network.
    fn host(self, cluster: &Cluster) -> HostId {
        match self {
            Target::Meta(n) => cluster.metas[n].host,
            Target::Chunk(n) => cluster.chunks[n].host,
            Target::Client(n) => cluster.clients[n].host,
        }
    }

    /// Its name.
    pub fn name(self, cluster: &Cluster) -> &str {
        match self {
            Target::Meta(n) => &cluster.metas[n].name,
            Target::Chunk(n) => &cluster.chunks[n].name,
            Target::Client(n) => &cluster.clients[n].name,
        }
    }

    fn signal(self, cluster: &Cluster, signal: i32) {
        let server = match self {
            Target::Meta(n) => &cluster.metas[n].server,
            Target::Chunk(n) => &cluster.chunks[n].server,
            Target::Client(n) => &cluster.clients[n].daemon,
        };
        kill(server.pid(), signal);
    }
}

/// Chooses whom a fault of this kind hits. An error where there is nobody, for example no leader.
pub fn choose(kind: Kind, cluster: &Cluster, rng: &mut StdRng) -> Result<Target> {
    let mut any = |count: usize| rng.random_range(0..count);
    let (metas, chunks, clients) = (cluster.metas.len(), cluster.chunks.len(), cluster.clients.len());
    Ok(match kind {
        Kind::LeaderKill | Kind::LeaderRestart | Kind::LeaderFreeze | Kind::LeaderAlone => {
            Target::Meta(cluster.leader().context("there is no leader")?)
        }
        Kind::FollowerKill => {
            let leader = cluster.leader().context("there is no leader")?;
            ensure!(metas > 1, "there is no follower");
            Target::Meta((leader + 1 + any(metas - 1)) % metas)
        }
        Kind::MetaCut | Kind::MetaOneWay | Kind::MetaFull => Target::Meta(any(metas)),
        Kind::ClientFreeze | Kind::ClientFrozen | Kind::ClientCut | Kind::ClientLost | Kind::ClientOneWay => {
            Target::Client(any(clients))
        }
        Kind::Slow | Kind::Clock => match any(metas + chunks + clients) {
            n if n < metas => Target::Meta(n),
            n if n < metas + chunks => Target::Chunk(n - metas),
            n => Target::Client(n - metas - chunks),
        },
        _ => Target::Chunk(any(chunks)),
    })
}

/// Breaks it.
pub fn begin(kind: Kind, target: Target, cluster: &mut Cluster, rng: &mut StdRng) -> Result<Active> {
    let mut text = format!("{kind} {}", target.name(cluster));
    let mend = match kind {
        Kind::LeaderKill | Kind::FollowerKill | Kind::ChunkKill => {
            server(cluster, target)?.kill();
            Mend::Start
        }
        Kind::LeaderRestart => {
            let name = target.name(cluster).to_owned();
            ensure!(server(cluster, target)?.stop(), "{name} does not end after SIGTERM");
            Mend::Start
        }
        Kind::ChunkWipe => {
            server(cluster, target)?.kill();
            let Target::Chunk(n) = target else { unreachable!("chosen as a ChunkServer") };
            cluster.chunks[n].disk.wipe()?;
            Mend::Start
        }
        Kind::LeaderFreeze | Kind::ChunkFreeze | Kind::ClientFreeze | Kind::ClientFrozen => {
            target.signal(cluster, libc::SIGSTOP);
            Mend::Continue
        }
        Kind::ChunkUnplug => {
            cluster.network.plug(target.host(cluster), false)?;
            Mend::Plug
        }
        Kind::MetaFull | Kind::ChunkFull => {
            disk(cluster, target)?.fill()?;
            Mend::Drain
        }
        Kind::ChunkBits => {
            for _ in 0..rng.random_range(1..=BITS_MAX) {
                if let Some(place) = disk(cluster, target)?.flip_bit(rng)? {
                    text += &format!(", {place}");
                }
            }
            Mend::Nothing
        }
        Kind::Slow => {
            cluster.network.slow(target.host(cluster), SLOW_RATE)?;
            Mend::Fast
        }
        Kind::Clock => {
            let jump_s = rng.random_range(-JUMP_MAX_S..JUMP_MAX_S);
            cluster.set_clock(target.name(cluster), jump_s)?;
            text += &format!(" by {jump_s} s");
            Mend::Clock
        }
        _ => {
            let (pairs, how) = pairs(kind, target, cluster, rng);
            text += &how;
            let cuts = pairs.into_iter().map(|(from, to)| cluster.network.cut(from, to));
            Mend::Heal(cuts.collect::<Result<_>>()?)
        }
    };
    Ok(Active { kind, target, text, mend })
}

/// Which packets are dropped: from, to; and in words what is not clear from the kind.
fn pairs(kind: Kind, target: Target, cluster: &Cluster, rng: &mut StdRng) -> (Vec<(HostId, HostId)>, String) {
    let own = target.host(cluster);
    let metas = cluster.metas.iter().map(|node| node.host);
    let chunks = cluster.chunks.iter().map(|node| node.host);
    let clients: Vec<HostId> = cluster.clients.iter().map(|client| client.host).collect();
    let mut how = String::new();
    let (mut out, mut back) = (true, true);
    let others: Vec<HostId> = match kind {
        Kind::LeaderAlone => metas.collect(),
        Kind::MetaOneWay | Kind::ClientOneWay => metas.collect(),
        Kind::ChunkNoMeta => metas.collect(),
        Kind::ChunkNoChunk => chunks.collect(),
        Kind::ChunkNoClient => {
            let n = rng.random_range(0..clients.len());
            how = format!(" and {}", cluster.clients[n].name);
            vec![clients[n]]
        }
        _ => metas.chain(chunks).chain(clients).collect(),
    };
    if matches!(kind, Kind::MetaOneWay | Kind::ChunkOneWay | Kind::ClientOneWay) {
        out = rng.random();
        back = !out;
        how = if out { ", which is not heard".into() } else { ", which hears nothing".into() };
    }
    let others = others.into_iter().filter(|other| *other != own);
    let mut pairs = Vec::new();
    for other in others {
        if out {
            pairs.push((own, other));
        }
        if back {
            pairs.push((other, own));
        }
    }
    (pairs, how)
}

/// Mends it.
pub fn end(active: Active, cluster: &mut Cluster) -> Result<()> {
    let target = active.target;
    match active.mend {
        Mend::Start => server(cluster, target)?.restart(),
        Mend::Continue => target.signal(cluster, libc::SIGCONT),
        Mend::Heal(cuts) => cuts.into_iter().try_for_each(|cut| cluster.network.heal(cut))?,
        Mend::Plug => cluster.network.plug(target.host(cluster), true)?,
        Mend::Drain => {
            disk(cluster, target)?.drain()?;
            // A ChunkServer goes on. A MetaServer whose state store could not be written takes part in nothing any more,
            // but does not end: it has to be started again.
            let server = server(cluster, target)?;
            if matches!(target, Target::Meta(_)) || !server.is_running() {
                server.kill();
                server.restart();
            }
        }
        Mend::Fast => cluster.network.fast(target.host(cluster))?,
        Mend::Clock => cluster.set_clock(target.name(cluster), 0)?,
        Mend::Nothing => {}
    }
    Ok(())
}

fn server(cluster: &mut Cluster, target: Target) -> Result<&mut gofs_posix_tests::Server> {
    match target {
        Target::Meta(n) => Ok(&mut cluster.metas[n].server),
        Target::Chunk(n) => Ok(&mut cluster.chunks[n].server),
        Target::Client(_) => anyhow::bail!("a mount is not started again"),
    }
}

fn disk(cluster: &Cluster, target: Target) -> Result<&crate::disk::Disk> {
    match target {
        Target::Meta(n) => Ok(&cluster.metas[n].disk),
        Target::Chunk(n) => Ok(&cluster.chunks[n].disk),
        Target::Client(_) => anyhow::bail!("a mount has no disk"),
    }
}

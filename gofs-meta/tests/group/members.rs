//! Members come and go while commands are carried out.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use gofs_meta::command::Command;
use gofs_meta::group::{GroupConfig, MemberError, MetaGroup, ProposeError, Role, StartError};
use gofs_tree::{EditSeq, MetaServerId, SessionId};
use parking_lot::RwLock;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::cluster::{
    Cluster, Node, PATIENCE, alone, create, created, entries, free_addresses, namespace, prepare, session,
    small,
};

const PAUSE: Duration = Duration::from_millis(20);

/// Runs `step` at whoever leads, until it is done or refused for good.
async fn at_leader<T, F>(cluster: &Cluster, step: impl Fn(Arc<MetaGroup>) -> F) -> Result<T, String>
where
    F: Future<Output = Result<T, MemberError>>,
{
    let until = Instant::now() + PATIENCE;
    loop {
        match step(cluster.lead().await).await {
            Ok(done) => return Ok(done),
            Err(MemberError::Refused(text)) => return Err(text),
            Err(error) => assert!(Instant::now() < until, "not done: {error}"),
        }
        sleep(PAUSE).await;
    }
}

async fn add(cluster: &Cluster, id: u64, address: &str) -> Result<(), String> {
    let until = Instant::now() + PATIENCE;
    loop {
        let step = |group: Arc<MetaGroup>| async move { group.add_member(MetaServerId(id), address).await };
        if at_leader(cluster, step).await?.voter {
            return Ok(());
        }
        assert!(Instant::now() < until, "{id} does not catch up");
        sleep(PAUSE).await;
    }
}

async fn remove(cluster: &Cluster, id: u64) -> Result<usize, String> {
    at_leader(cluster, |group| async move { group.remove_member(MetaServerId(id)).await }).await
}

async fn transfer(cluster: &Cluster, to: u64) -> Result<MetaServerId, String> {
    at_leader(cluster, |group| async move { group.transfer(Some(MetaServerId(to))).await }).await
}

fn voters(group: &Arc<MetaGroup>) -> Vec<u64> {
    group.view().members.iter().filter(|member| member.voter).map(|member| member.id.0).collect()
}

async fn is_told_that_it_was_removed(group: &MetaGroup) {
    let mut removed = group.removed();
    let told = tokio::time::timeout(PATIENCE, removed.wait_for(|removed| *removed)).await;
    assert!(told.is_ok(), "MetaServer {} does not learn that it was removed", group.id().0);
}

/// Sessions that make one file after the other, wherever the leader is, each repeated until it is acknowledged.
struct Load {
    groups: Arc<RwLock<BTreeMap<u64, Arc<MetaGroup>>>>,
    stop: Arc<AtomicBool>,
    made: Arc<AtomicU64>,
    authors: Vec<JoinHandle<u64>>,
}

impl Load {
    const AUTHORS: u64 = 4;

    async fn start(cluster: &Cluster) -> Load {
        cluster.propose(namespace("demo")).await;
        let groups = Arc::default();
        let (stop, made) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let mut authors = Vec::new();
        for author in 1..=Load::AUTHORS {
            cluster.propose(session(author)).await;
            let (groups, stop, made) = (Arc::clone(&groups), stop.clone(), made.clone());
            authors.push(tokio::spawn(async move {
                let mut seq = 0;
                while !stop.load(Ordering::Acquire) {
                    made_somewhere(&groups, create(author, seq + 1)).await;
                    seq += 1;
                    made.fetch_add(1, Ordering::AcqRel);
                }
                seq
            }));
        }
        let load = Load { groups, stop, made, authors };
        load.knows(cluster);
        load
    }

    /// Which servers there are now.
    fn knows(&self, cluster: &Cluster) {
        let groups = cluster.nodes.iter().map(|(id, node)| (*id, node.group.clone()));
        *self.groups.write() = groups.collect();
    }

    fn views(&self) -> Vec<String> {
        self.groups.read().values().map(|group| format!("{}: {:?}", group.id().0, group.view())).collect()
    }

    /// Waits until so many more were made.
    async fn goes_on(&self, more: u64) {
        let (begun, until) = (self.made.load(Ordering::Acquire), Instant::now() + PATIENCE);
        while self.made.load(Ordering::Acquire) < begun + more {
            assert!(Instant::now() < until, "the load stands still: {:?}", self.views());
            sleep(PAUSE).await;
        }
    }

    /// Ends it; every command that was acknowledged happened once, and no other did.
    async fn verify(self, cluster: &Cluster) {
        self.stop.store(true, Ordering::Release);
        let mut made = Vec::new();
        for author in self.authors {
            made.push(author.await.unwrap());
        }
        // Those that read the state below must not keep it open.
        self.groups.write().clear();
        cluster.agree().await;
        for node in cluster.nodes.values() {
            let state = node.group.state();
            for (author, seq) in (1..).zip(&made) {
                let session = state.session(SessionId(author)).unwrap().unwrap();
                assert_eq!(session.applied, EditSeq(*seq), "session {author}");
            }
            assert_eq!(entries(&node.group) as u64, made.iter().sum::<u64>());
            assert_eq!(state.verify().unwrap().damaged_records, 0);
        }
    }
}

async fn made_somewhere(groups: &RwLock<BTreeMap<u64, Arc<MetaGroup>>>, command: Command) {
    let until = Instant::now() + 2 * PATIENCE;
    loop {
        let leads = |group: &&Arc<MetaGroup>| group.leadership().borrow().role == Role::Leader;
        let leader = groups.read().values().find(leads).cloned();
        if let Some(leader) = leader {
            match leader.propose(command.clone()).await {
                Ok(outcome) => return created(outcome),
                Err(error) => assert!(Instant::now() < until, "not acknowledged: {error}"),
            }
        }
        assert!(Instant::now() < until, "no leader");
        sleep(PAUSE).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_member_is_replaced_by_a_new_one_while_commands_go_on() {
    // So few entries between Snapshots that newcomers come by one.
    let mut cluster = Cluster::start(200).await;
    let load = Load::start(&cluster).await;
    for (old, new) in [(1, 4), (2, 5), (3, 6)] {
        load.goes_on(150).await;
        let address = cluster.start_newcomer(new).await;
        load.knows(&cluster);
        add(&cluster, new, &address).await.unwrap();
        assert_eq!(remove(&cluster, old).await, Ok(3));
        is_told_that_it_was_removed(&cluster.nodes[&old].group).await;
        load.goes_on(50).await;
        cluster.stop_node(old).await;
        load.knows(&cluster);
    }
    let leader = cluster.leader().await;
    assert_eq!(voters(&cluster.nodes[&leader].group), [4, 5, 6]);
    assert!(cluster.nodes[&6].group.metrics().snapshot.0 > 0, "it came by a Snapshot");
    let expected: Vec<String> = (4..=6).map(|id| cluster.addresses[&id].clone()).collect();
    assert_eq!(*cluster.nodes[&leader].group.voter_addresses().borrow(), expected);
    // None of the founders is needed any more, and one of those that are there is not either.
    cluster.kill_node(leader).await;
    load.knows(&cluster);
    load.goes_on(50).await;
    cluster.start_node(leader).await;
    load.knows(&cluster);
    load.verify(&cluster).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_metaserver_becomes_three_and_one_again() {
    let mut cluster = Cluster::start(100_000).await;
    for id in [2, 3] {
        remove(&cluster, id).await.unwrap();
        is_told_that_it_was_removed(&cluster.nodes[&id].group).await;
        cluster.stop_node(id).await;
    }
    assert_eq!(voters(&cluster.lead().await), [1]);
    // It knows that it is alone, whatever its configuration says, and leads when it has started.
    cluster.stop_node(1).await;
    cluster.start_node(1).await;
    assert_eq!(cluster.nodes[&1].group.leadership().borrow().role, Role::Leader);
    assert!(remove(&cluster, 1).await.unwrap_err().contains("only one"));
    prepare(&cluster.nodes[&1].group).await;
    for id in [4, 5] {
        let address = cluster.start_newcomer(id).await;
        add(&cluster, id, &address).await.unwrap();
    }
    cluster.kill_node(1).await;
    created(cluster.propose(create(1, 1)).await);
    cluster.start_node(1).await;
    cluster.agree().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_a_member_is_refused_with_the_reason() {
    let mut cluster = Cluster::start(100_000).await;
    let nobody = free_addresses(1).await.remove(0);
    let text = add(&cluster, 4, &nobody).await.unwrap_err();
    assert!(text.contains("no MetaServer answers at") && text.contains("--join"), "{text}");

    let dir = tempfile::tempdir().unwrap();
    let address = free_addresses(1).await.remove(0);
    let other = Node::start(GroupConfig { address: address.clone(), ..alone(dir.path()) }).await;
    let text = add(&cluster, 4, &address).await.unwrap_err();
    assert!(text.contains("belongs to another cluster"), "{text}");
    other.stop().await;

    let address = cluster.start_newcomer(4).await;
    let text = add(&cluster, 5, &address).await.unwrap_err();
    assert!(text.contains("has the id 4, not 5"), "{text}");
    let text = add(&cluster, 3, &address).await.unwrap_err();
    assert!(text.contains("a member already") && text.contains("meta remove 3"), "{text}");

    // With one of three dead, no other can go; the dead one can, and its id is not used again.
    let follower = if cluster.leader().await == 3 { 2 } else { 3 };
    cluster.kill_node(follower).await;
    let alive = *cluster.nodes.keys().find(|id| **id < 4).unwrap();
    let until = Instant::now() + PATIENCE;
    loop {
        let group = cluster.lead().await;
        if group.view().members.iter().any(|member| member.id.0 == follower && !member.reachable) {
            break;
        }
        assert!(Instant::now() < until, "its silence is not noticed");
        sleep(PAUSE).await;
    }
    let text = remove(&cluster, alive).await.unwrap_err();
    assert!(text.contains(&format!("bring {follower} back first")), "{text}");
    let text = at_leader(&cluster, |group| async move { group.remove_member(MetaServerId(9)).await }).await;
    assert!(text.unwrap_err().contains("no MetaServer 9"));
    assert_eq!(remove(&cluster, follower).await, Ok(2));
    let text = add(&cluster, follower, &address).await.unwrap_err();
    assert!(text.contains("is not used again"), "{text}");
    // Replaced by another id on an empty disk.
    add(&cluster, 4, &address).await.unwrap();
    // The one that was away when it was removed is told when it comes back.
    cluster.start_node(follower).await;
    is_told_that_it_was_removed(&cluster.nodes[&follower].group).await;
    assert!(voters(&cluster.lead().await).contains(&4));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lead_goes_to_the_one_that_was_chosen_and_reads_with_it() {
    let mut cluster = Cluster::start(100_000).await;
    let load = Load::start(&cluster).await;
    for to in [2, 3, 1, 1] {
        assert_eq!(transfer(&cluster, to).await, Ok(MetaServerId(to)));
        assert_eq!(cluster.leader().await, to);
        cluster.nodes[&to].group.confirm_leader().await.unwrap();
        load.goes_on(20).await;
    }
    let address = cluster.start_newcomer(4).await;
    cluster.nodes[&1].group.add_member(MetaServerId(4), &address).await.unwrap();
    assert!(transfer(&cluster, 4).await.unwrap_err().contains("learner"));
    assert!(transfer(&cluster, 7).await.unwrap_err().contains("no MetaServer 7"));
    load.verify(&cluster).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_moved_is_found_and_the_log_says_where_it_is() {
    let mut cluster = Cluster::start(100_000).await;
    let follower = if cluster.leader().await == 3 { 2 } else { 3 };
    cluster.stop_node(follower).await;
    let address = free_addresses(1).await.remove(0);
    // The configuration of the others goes on naming the old address.
    cluster.addresses.insert(follower, address.clone());
    cluster.start_node(follower).await;
    let others: Vec<u64> = cluster.nodes.keys().copied().filter(|id| *id != follower).collect();
    for id in others {
        let mut known = cluster.nodes[&id].group.voter_addresses();
        let found = known.wait_for(|known| known.contains(&address));
        assert!(tokio::time::timeout(PATIENCE, found).await.is_ok(), "{id} does not find it");
    }
    cluster.propose(namespace("demo")).await;
    cluster.agree().await;
    transfer(&cluster, follower).await.unwrap();
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_server_with_a_members_id_elsewhere_is_not_taken_for_it() {
    let mut cluster = Cluster::start(100_000).await;
    cluster.propose(namespace("demo")).await;
    let follower = if cluster.leader().await == 3 { 2 } else { 3 };
    cluster.kill_node(follower).await;
    let address = free_addresses(1).await.remove(0);
    let elsewhere = tempfile::tempdir().unwrap();
    let join = cluster.addresses.values().cloned().collect();
    let config = GroupConfig::new(
        MetaServerId(follower),
        elsewhere.path().to_owned(),
        address.clone(),
        BTreeMap::new(),
    );
    let impostor = Node::start(GroupConfig { join, ..small(config) }).await;
    // It has asked the others by the time that it knows which cluster it waits for.
    for name in ["a", "b", "c"] {
        cluster.propose(namespace(name)).await;
        sleep(Duration::from_millis(700)).await;
    }
    assert_eq!(impostor.group.metrics().applied.0, 0, "nothing was replicated to it");
    assert!(add(&cluster, follower, &address).await.unwrap_err().contains("a member already"));
    impostor.kill().await;
    cluster.start_node(follower).await;
    cluster.agree().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_says_who_is_a_member_and_a_configuration_of_others_is_refused() {
    let mut cluster = Cluster::start(100_000).await;
    let address = cluster.start_newcomer(4).await;
    add(&cluster, 4, &address).await.unwrap();
    remove(&cluster, 3).await.unwrap();
    cluster.stop_node(3).await;
    // The founders' configuration names 1, 2 and 3 still, that of 4 none: all come back as members.
    for id in [1, 2, 4] {
        cluster.stop_node(id).await;
    }
    for id in [1, 2, 4] {
        cluster.start_node(id).await;
    }
    assert_eq!(voters(&cluster.lead().await), [1, 2, 4]);
    cluster.stop_node(2).await;
    let strangers = [2, 7, 8].map(|id| (MetaServerId(id), format!("127.0.0.1:{id}"))).into();
    let refused = MetaGroup::start(GroupConfig { peers: strangers, ..cluster.config(2) }).await;
    let Err(StartError::Identity(text)) = refused else { panic!("taken") };
    assert!(text.contains("[1, 2, 4]") && text.contains("[2, 7, 8]") && text.contains("meta add"), "{text}");
    cluster.stop().await;
}

/// One random run: members are added, removed, killed, restarted and given the lead while commands are carried out.
async fn membership_changes_under_kills(seed: u64, steps: usize) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut cluster = Cluster::start(rng.random_range(100..1000)).await;
    let load = Load::start(&cluster).await;
    let mut next = 4;
    for step in 0..steps {
        load.goes_on(rng.random_range(1..60)).await;
        let members = voters(&cluster.lead().await);
        let dead: Vec<u64> = members.iter().copied().filter(|id| !cluster.nodes.contains_key(id)).collect();
        let some = |rng: &mut StdRng, of: &[u64]| of[rng.random_range(0..of.len())];
        let what = rng.random_range(0..10);
        eprintln!("seed {seed} step {step}: {what} of {members:?}, dead {dead:?}");
        match what {
            0..=2 if members.len() < 5 => {
                let address = cluster.start_newcomer(next).await;
                load.knows(&cluster);
                // Refused where another address answers, or a majority is away: never here.
                add(&cluster, next, &address).await.unwrap();
                next += 1;
            }
            3..=4 if members.len() > 3 || !dead.is_empty() => {
                let id = if dead.is_empty() { some(&mut rng, &members) } else { some(&mut rng, &dead) };
                let left = remove(&cluster, id).await;
                // A dead one may be the one too many for the rest.
                if left.is_ok() && cluster.nodes.contains_key(&id) {
                    is_told_that_it_was_removed(&cluster.nodes[&id].group).await;
                    cluster.stop_node(id).await;
                }
            }
            5..=7 if (dead.len() + 1) * 2 < members.len() => {
                let alive: Vec<u64> = members.iter().copied().filter(|id| !dead.contains(id)).collect();
                let victim = if what == 5 { cluster.leader().await } else { some(&mut rng, &alive) };
                cluster.kill_node(victim).await;
            }
            8 => {
                // One that is dead, or late, is refused or tried until it is not.
                let ready = cluster.lead().await.view().members;
                let ready: Vec<u64> =
                    ready.iter().filter(|m| m.voter && m.reachable).map(|m| m.id.0).collect();
                let to = some(&mut rng, &ready);
                let moved = cluster.lead().await.transfer(Some(MetaServerId(to))).await;
                assert!(!matches!(moved, Err(MemberError::Propose(ProposeError::Storage(_)))), "{moved:?}");
            }
            _ => {
                if !dead.is_empty() {
                    cluster.start_node(some(&mut rng, &dead)).await;
                }
            }
        }
        load.knows(&cluster);
    }
    for id in voters(&cluster.lead().await) {
        if !cluster.nodes.contains_key(&id) {
            cluster.start_node(id).await;
        }
    }
    load.knows(&cluster);
    load.goes_on(20).await;
    load.verify(&cluster).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_acknowledged_command_is_there_once_after_random_changes_of_the_members() {
    let seed = std::env::var("GOFS_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| rand::rng().random());
    let steps = std::env::var("GOFS_STEPS").ok().and_then(|steps| steps.parse().ok()).unwrap_or(25);
    eprintln!("replay with GOFS_SEED={seed}");
    membership_changes_under_kills(seed, steps).await;
}

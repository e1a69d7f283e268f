//! What is acknowledged stays, whoever stops.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use gofs_meta::command::{Command, CommandOutcome, Refusal};
use gofs_meta::group::{GroupConfig, MetaGroup, ProposeError, Role, StartError};
use gofs_tree::{EditSeq, MetaServerId, NamespaceId, SessionId, Store};
use tokio::time::{Instant, sleep};

use crate::cluster::{Cluster, PATIENCE, alone, copy, create, created, entries, namespace, prepare, session};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_metaserver_leads_when_it_has_started_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let group = MetaGroup::start(alone(dir.path())).await.unwrap();
    let first = group.leadership().borrow().clone();
    assert_eq!((first.role, first.leader), (Role::Leader, Some((MetaServerId(1), "127.0.0.1:1".into()))));
    group.confirm_leader().await.unwrap();
    let cluster = group.state().cluster().unwrap();
    assert!(cluster.is_some());
    prepare(&group).await;
    assert_eq!(
        group.propose(namespace("demo")).await.unwrap(),
        CommandOutcome::Refused(Refusal::NameTaken("demo".into()))
    );
    let metrics = group.metrics();
    let members: Vec<_> = metrics.members.iter().map(|m| (m.id, m.address.as_str(), m.reachable)).collect();
    assert_eq!(members, [(MetaServerId(1), "127.0.0.1:1", true)]);
    assert_eq!(metrics.applied, metrics.committed);
    group.shutdown().await;
    assert!(matches!(group.propose(namespace("late")).await, Err(ProposeError::Shutdown)));

    let group = MetaGroup::start(alone(dir.path())).await.unwrap();
    assert!(group.leadership().borrow().term > first.term, "each start is a term of its own");
    assert_eq!(group.state().cluster().unwrap(), cluster);
    group.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_metaserver_has_everything_acknowledged_and_replays_to_the_same_records() {
    let dir = tempfile::tempdir().unwrap();
    let mut data = dir.path().join("0");
    let mut seq = 0;
    for life in 1..4 {
        let group = MetaGroup::start(alone(&data)).await.unwrap();
        if life == 1 {
            prepare(&group).await;
        }
        for _ in 0..40 {
            seq += 1;
            created(group.propose(create(1, seq)).await.unwrap());
        }
        let digest = group.state().digest().unwrap();
        // What is on disk now is what a kill at this moment leaves.
        let image = dir.path().join(life.to_string());
        copy(&data, &image);
        group.shutdown().await;
        data = image;
        let group = MetaGroup::start(alone(&data)).await.unwrap();
        assert_eq!(entries(&group), seq as usize);
        let session = group.state().session(SessionId(1)).unwrap().unwrap();
        assert_eq!(session.applied, EditSeq(seq));
        // The start is an entry too; but for its position the records are the same.
        assert_eq!(group.state().digest().unwrap().records, digest.records);
        assert_eq!(group.state().verify().unwrap().damaged_records, 0);
        // The same edit again, as after a lost reply: the recorded outcome.
        created(group.propose(create(1, seq)).await.unwrap());
        assert_eq!(entries(&group), seq as usize);
        group.shutdown().await;
    }
}

/// Damages the checksum of the last whole batch of the state store's journal, as a power cut does that took a page of it.
fn tear_journal(data: &Path) {
    let current = std::fs::read_to_string(data.join("state/CURRENT")).unwrap();
    let files = std::fs::read_dir(data.join("state").join(current.trim())).unwrap();
    let journal = files
        .map(|file| file.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "jnl"))
        .max()
        .expect("a journal");
    let mut bytes = std::fs::read(&journal).unwrap();
    let end = bytes.windows(3).rposition(|trailer| trailer == b"FJL").unwrap();
    bytes[end - 1] ^= 0xff;
    std::fs::write(&journal, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_store_that_a_power_cut_tore_is_made_anew_of_snapshot_and_log() {
    // Without a Snapshot, and with one before which the log is gone.
    for snapshot_entries in [100_000, 20] {
        let dir = tempfile::tempdir().unwrap();
        let (data, image) = (dir.path().join("0"), dir.path().join("1"));
        let config = |data: &Path| GroupConfig { snapshot_entries, ..alone(data) };
        let group = MetaGroup::start(config(&data)).await.unwrap();
        prepare(&group).await;
        for seq in 1..=90 {
            created(group.propose(create(1, seq)).await.unwrap());
        }
        let digest = group.state().digest().unwrap();
        copy(&data, &image);
        group.shutdown().await;
        tear_journal(&image);
        let group = MetaGroup::start(config(&image)).await.unwrap();
        assert_eq!(std::fs::read_to_string(image.join("state/CURRENT")).unwrap(), "state-2");
        assert_eq!(entries(&group), 90);
        assert_eq!(group.state().digest().unwrap().records, digest.records);
        assert_eq!(group.state().verify().unwrap().damaged_records, 0);
        group.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proposals_side_by_side_are_all_answered() {
    let dir = tempfile::tempdir().unwrap();
    let group = MetaGroup::start(alone(dir.path())).await.unwrap();
    assert_eq!(group.propose(namespace("demo")).await.unwrap(), CommandOutcome::Namespace(NamespaceId(1)));
    let mut authors = Vec::new();
    for author in 1..=16 {
        let group = group.clone();
        authors.push(tokio::spawn(async move {
            assert_eq!(
                group.propose(session(author)).await.unwrap(),
                CommandOutcome::Session(SessionId(author))
            );
            for seq in 1..=30 {
                created(group.propose(create(author, seq)).await.unwrap());
            }
        }));
    }
    for author in authors {
        author.await.unwrap();
    }
    assert_eq!(entries(&group), 16 * 30);
    assert_eq!(group.state().tree(NamespaceId(1)).usage().unwrap().inodes, 16 * 30 + 1);
    group.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_namespace_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let group = MetaGroup::start(alone(dir.path())).await.unwrap();
    let before = group.state().digest().unwrap().records;
    prepare(&group).await;
    for seq in 1..=50 {
        created(group.propose(create(1, seq)).await.unwrap());
    }
    assert_eq!(
        group.propose(Command::DeleteNamespace { id: NamespaceId(1) }).await.unwrap(),
        CommandOutcome::Done
    );
    assert_eq!(
        group.propose(create(1, 51)).await.unwrap(),
        CommandOutcome::Refused(Refusal::NoSession(SessionId(1)))
    );
    let until = Instant::now() + PATIENCE;
    while !group.state().deleted_namespaces().unwrap().is_empty() {
        assert!(Instant::now() < until, "the records are not swept");
        sleep(Duration::from_millis(10)).await;
    }
    // What stays: counters, and that the session was fenced.
    assert_eq!(group.state().digest().unwrap().records, before + 2);
    assert_eq!(group.state().ended_sessions().unwrap().fenced, [SessionId(1)]);
    group.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_is_trimmed_behind_snapshots_and_a_restart_needs_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let config = GroupConfig { snapshot_entries: 40, ..alone(dir.path()) };
    let group = MetaGroup::start(config.clone()).await.unwrap();
    prepare(&group).await;
    for seq in 1..=400 {
        created(group.propose(create(1, seq)).await.unwrap());
    }
    let until = Instant::now() + PATIENCE;
    while group.metrics().snapshot.0 < 300 {
        assert!(Instant::now() < until, "no Snapshot");
        sleep(Duration::from_millis(10)).await;
    }
    let image = dir.path().join("image");
    copy(&dir.path().join("log"), &image.join("log"));
    copy(&dir.path().join("state"), &image.join("state"));
    copy(&dir.path().join("snapshot"), &image.join("snapshot"));
    std::fs::copy(dir.path().join("id"), image.join("id")).unwrap();
    group.shutdown().await;
    let group = MetaGroup::start(GroupConfig { data: image, ..config }).await.unwrap();
    assert_eq!(entries(&group), 400);
    group.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_metaservers_go_on_when_the_leader_stops() {
    let mut cluster = Cluster::start(100_000).await;
    assert_eq!(cluster.propose(namespace("demo")).await, CommandOutcome::Namespace(NamespaceId(1)));
    assert_eq!(cluster.propose(session(1)).await, CommandOutcome::Session(SessionId(1)));
    let mut seq = 0;
    for _ in 0..3 {
        for _ in 0..20 {
            seq += 1;
            created(cluster.propose(create(1, seq)).await);
        }
        let leader = cluster.leader().await;
        let follower = *cluster.nodes.keys().find(|id| **id != leader).unwrap();
        let refused = cluster.nodes[&follower].group.propose(create(1, seq + 1)).await;
        match refused {
            Err(ProposeError::NotLeader { leader: Some(address) }) => {
                assert_eq!(address, cluster.peers[&MetaServerId(leader)]);
            }
            other => panic!("{other:?}"),
        }
        cluster.stop_node(leader).await;
        for _ in 0..20 {
            seq += 1;
            created(cluster.propose(create(1, seq)).await);
        }
        cluster.start_node(leader).await;
        cluster.agree().await;
    }
    let leader = cluster.leader().await;
    assert_eq!(entries(&cluster.nodes[&leader].group), seq as usize);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_metaserver_that_was_away_or_lost_its_disk_gets_a_snapshot() {
    let mut cluster = Cluster::start(50).await;
    cluster.propose(namespace("demo")).await;
    cluster.propose(session(1)).await;
    let mut seq = 0;
    for lost in [false, true] {
        let leader = cluster.leader().await;
        let away = *cluster.nodes.keys().find(|id| **id != leader).unwrap();
        cluster.stop_node(away).await;
        for _ in 0..300 {
            seq += 1;
            created(cluster.propose(create(1, seq)).await);
        }
        let leader = cluster.leader().await;
        let until = Instant::now() + PATIENCE;
        while cluster.nodes[&leader].group.metrics().snapshot.0 < 200 * (1 + u64::from(lost)) {
            assert!(Instant::now() < until, "no Snapshot: {:?}", cluster.nodes[&leader].group.metrics());
            sleep(Duration::from_millis(20)).await;
        }
        if lost {
            std::fs::remove_dir_all(cluster.data(away)).unwrap();
        }
        cluster.start_node(away).await;
        seq += 1;
        created(cluster.propose(create(1, seq)).await);
        cluster.agree().await;
        assert_eq!(entries(&cluster.nodes[&away].group), seq as usize);
        // Told a little after what it brought has been applied.
        while cluster.nodes[&away].group.metrics().snapshot.0 == 0 {
            assert!(Instant::now() < until + PATIENCE, "it came by a Snapshot");
            sleep(Duration::from_millis(20)).await;
        }
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_metaserver_that_was_brought_up_half_way_does_not_stand_for_election() {
    let mut cluster = Cluster::start(100_000).await;
    cluster.propose(namespace("demo")).await;
    cluster.propose(session(1)).await;
    cluster.agree().await;
    let leader = cluster.leader().await;
    let [short, lost] = [1, 2].map(|ahead| (leader + ahead - 1) % 3 + 1);
    for seq in 1..=50 {
        created(cluster.propose(create(1, seq)).await);
    }
    cluster.kill_node(short).await;
    for seq in 51..=100 {
        created(cluster.propose(create(1, seq)).await);
    }
    cluster.kill_node(lost).await;
    let half = cluster.data(lost).with_extension("half");
    copy(&cluster.data(lost), &half);
    cluster.start_node(lost).await;
    for seq in 101..=150 {
        created(cluster.propose(create(1, seq)).await);
    }
    cluster.kill_node(lost).await;
    cluster.kill_node(leader).await;

    // As if its disk had been lost, and what came back of it ended there.
    std::fs::remove_dir_all(cluster.data(lost)).unwrap();
    std::fs::rename(&half, cluster.data(lost)).unwrap();
    std::fs::write(cluster.data(lost).join("incomplete"), "").unwrap();
    cluster.start_node(short).await;
    cluster.start_node(lost).await;
    let until = Instant::now() + Duration::from_secs(4);
    while Instant::now() < until {
        for (id, node) in &cluster.nodes {
            let role = node.group.leadership().borrow().role;
            assert_eq!(role, Role::Follower, "MetaServer {id} leads without what was committed");
        }
        sleep(Duration::from_millis(20)).await;
    }
    cluster.start_node(leader).await;
    created(cluster.propose(create(1, 151)).await);
    cluster.agree().await;
    for node in cluster.nodes.values() {
        assert_eq!(entries(&node.group), 151);
    }
    // It is whole again, and is elected where the others are gone or behind.
    let until = Instant::now() + PATIENCE;
    while cluster.data(lost).join("incomplete").exists() {
        assert!(Instant::now() < until, "it stays incomplete");
        sleep(Duration::from_millis(20)).await;
    }
    cluster.kill_node(short).await;
    created(cluster.propose(create(1, 152)).await);
    cluster.kill_node(leader).await;
    cluster.start_node(short).await;
    assert_eq!(cluster.leader().await, lost);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_of_another_metaserver_or_cluster_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    MetaGroup::start(alone(dir.path())).await.unwrap().shutdown().await;
    let other = GroupConfig { id: MetaServerId(2), ..alone(dir.path()) };
    assert!(matches!(MetaGroup::start(other).await, Err(StartError::Identity(_))));
    let peers = BTreeMap::from([1, 2, 3].map(|id| (MetaServerId(id), format!("127.0.0.1:{id}"))));
    let grown = GroupConfig { peers, ..alone(dir.path()) };
    let Err(StartError::Identity(text)) = MetaGroup::start(grown).await else { panic!("refused") };
    assert!(text.contains("[1]") && text.contains("[1, 2, 3]"), "{text}");
}

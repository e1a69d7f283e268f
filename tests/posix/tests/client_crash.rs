//! kill -9 of the client daemon: what was fsynced is there, and what is there is a prefix of what was done.
//!
//! Each round has a namespace and two threads of its own. A failure prints the seed of its round.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use gofs_posix_tests::{Cluster, History, wait_for};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Rounds; GOFS_CLIENT_CRASH_ROUNDS changes it.
const ROUNDS: u64 = 12;
/// Rounds at once: most of each is waiting until the servers end the dead daemon's session.
const LANES: u64 = 4;
/// Longest life of a daemon.
const LIFE_MS: u64 = 2_500;

fn round(cluster: &Cluster, number: u64, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let namespace = format!("round{number}");
    // Contents in chunks as well as inline.
    cluster.create_namespace(&namespace, &["--chunk-size", "64KiB"]);
    let mut mount = cluster.mount_as(&format!("m{number}"), &namespace, "");
    let names: Vec<String> = (0..2).map(|thread| format!("t{thread}")).collect();
    for name in &names {
        fs::create_dir(mount.join(name)).unwrap();
    }
    fs::File::open(mount.path()).unwrap().sync_all().unwrap();
    let (clock, killed) = (Arc::new(AtomicU64::new(1)), Arc::new(AtomicBool::new(false)));
    let threads: Vec<_> = names
        .iter()
        .map(|name| {
            let (root, seed, clock, killed) = (mount.join(name), rng.random(), clock.clone(), killed.clone());
            std::thread::spawn(move || History::run(&root, seed, &clock, &killed))
        })
        .collect();
    let moment = Instant::now() + Duration::from_millis(rng.random_range(0..LIFE_MS));
    wait_for("the moment", Duration::from_secs(60), || Instant::now() > moment);
    killed.store(true, Ordering::Release);
    mount.daemon().kill();
    let histories: Vec<History> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    mount.kill();
    for history in &histories {
        assert_eq!(history.error, None, "round {number}, GOFS_SEED={seed}");
    }
    let after = cluster.mount_as(&format!("m{number}-after"), &namespace, "");
    let roots: Vec<PathBuf> = names.iter().map(|name| after.join(name)).collect();
    if let Err(why) = History::verify(&histories, &roots) {
        panic!("round {number}, GOFS_SEED={seed}: {why}");
    }
    let counts: Vec<usize> = histories.iter().map(History::len).collect();
    eprintln!("round {number}: {counts:?} changes");
    after.unmount();
    cluster.ctl(&["ns", "delete", &namespace, "--even-if-not-empty"]);
}

#[test]
fn what_a_killed_client_leaves_is_a_prefix_with_all_that_was_fsynced() {
    let variable = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let rounds = variable("GOFS_CLIENT_CRASH_ROUNDS").unwrap_or(ROUNDS);
    let seed = variable("GOFS_SEED");
    let cluster = Cluster::builder().session_s(4).start();
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..LANES {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= rounds {
                        return;
                    }
                    round(&cluster, number, seed.unwrap_or_else(|| rand::rng().random()));
                }
            });
        }
    });
    cluster.check();
}

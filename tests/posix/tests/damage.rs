//! Flipped bits are never returned as data; they are reported, and repaired where there is another replica.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gofs_posix_tests::{Cluster, content, eventually};

/// Flips one bit wherever `marker` lies in a file below `dir`; how often, and where first.
fn flip(dir: &Path, marker: &[u8]) -> Vec<PathBuf> {
    let mut flipped = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            flipped.extend(flip(&path, marker));
            continue;
        }
        let Ok(data) = fs::read(&path) else { continue };
        let mut from = 0;
        while let Some(at) = data[from..].windows(marker.len()).position(|w| w == marker) {
            let at = from + at + marker.len() / 2;
            let file = fs::File::options().write(true).open(&path).unwrap();
            file.write_all_at(&[data[at] ^ 0x10], at as u64).unwrap();
            flipped.push(path.clone());
            from = at;
        }
    }
    flipped
}

/// Damaged blocks that the ChunkServers have found so far.
fn corrupt_blocks(cluster: &Cluster) -> u64 {
    let servers = cluster.ctl_json(&["servers"]);
    servers.as_array().unwrap().iter().map(|server| server["corrupt_blocks_total"].as_u64().unwrap()).sum()
}

#[test]
fn a_flipped_bit_in_a_chunk_is_served_from_the_other_replica_reported_and_repaired() {
    let cluster = Cluster::builder().scrub_interval_s(1).start();
    cluster.create_namespace("test", &[]);
    let mount = cluster.mount("m");
    // In a file of its own on each server, and in the servers' logs.
    let files = [("big", content(1, 3_000_000)), ("small", content(2, 20_000))];
    for (name, data) in &files {
        fs::write(mount.join(name), data).unwrap();
        gofs_posix_tests::shell(mount.path(), &format!("sync {name}"));
    }
    // With one replica only the first damage would be the last.
    cluster.wait_status("both replicas of both", |status| {
        status["chunks"] == 2 && status["chunks_under_replicated"] == 0
    });
    for (name, data) in &files {
        let mut damaged = 0;
        // One replica after the other, each good again before the next is damaged.
        for server in 1..=3 {
            let found_before = corrupt_blocks(&cluster);
            if flip(&cluster.dir().join(format!("chunk{server}")), &data[8192..8192 + 64]).is_empty() {
                continue;
            }
            damaged += 1;
            let reader = cluster.mount(&format!("reader-{name}-{server}"));
            for _ in 0..4 {
                let read = fs::read(reader.join(name)).unwrap();
                assert!(read == *data, "wrong bytes of {name} from server {server}");
                gofs_posix_tests::shell(Path::new("/"), "echo 1 > /proc/sys/vm/drop_caches");
            }
            reader.unmount();
            // Found by a read of that replica or by scrubbing it, and made again.
            eventually("the damage to be reported and repaired", Duration::from_secs(90), || {
                // In this order: a server tells which replica is damaged before it tells how much it has found.
                let found = corrupt_blocks(&cluster);
                let status = cluster.ctl_json(&["status"]);
                let healthy = status["chunks_under_replicated"] == 0 && status["corrupt_replicas"] == 0;
                if found > found_before && healthy {
                    Ok(())
                } else {
                    Err(format!("{name}, server {server}: {found_before}, {found} corrupt blocks, {status}"))
                }
            });
        }
        assert!(damaged >= 2, "two replicas hold {name}; {damaged} were damaged");
    }
    let last = cluster.mount("last");
    for (name, data) in &files {
        assert!(fs::read(last.join(name)).unwrap() == *data, "{name}");
    }
    cluster.check();
}

#[test]
fn a_flipped_bit_in_the_middle_of_the_editlog_stops_the_server_with_a_message() {
    let mut cluster = Cluster::start();
    let mount = cluster.mount("m");
    let name = "a-name-that-is-found-in-the-editlog-and-nowhere-else-by-chance";
    fs::write(mount.join(name), "").unwrap();
    for i in 0..20 {
        fs::write(mount.join(&format!("later{i}")), "").unwrap();
    }
    mount.unmount();
    cluster.metas[0].kill();
    let flipped = flip(&cluster.dir().join("meta1/log"), name.as_bytes());
    assert!(!flipped.is_empty());
    cluster.metas[0].restart();
    let status = cluster.metas[0].wait_exit(Duration::from_secs(30));
    let log = cluster.metas[0].log();
    assert_ne!(status, 0, "{log}");
    assert!(!log.contains("panicked"), "{log}");
    assert!(log.contains(flipped[0].file_name().unwrap().to_str().unwrap()), "the file is not named: {log}");
}

#[test]
fn a_torn_last_record_of_the_editlog_is_cut() {
    let mut cluster = Cluster::start();
    let mount = cluster.mount("m");
    fs::write(mount.join("kept"), "kept").unwrap();
    gofs_posix_tests::shell(mount.path(), "sync kept");
    let name = "the-very-last-name-in-the-editlog-of-this-test";
    fs::create_dir(mount.join(name)).unwrap();
    fs::File::open(mount.path()).unwrap().sync_all().unwrap();
    let before = fs::metadata(mount.join("kept")).unwrap().len();
    cluster.metas[0].kill();
    drop(mount);
    let flipped = flip(&cluster.dir().join("meta1/log"), name.as_bytes());
    assert!(!flipped.is_empty());
    cluster.metas[0].restart();
    eventually("the server to start or to say why not", Duration::from_secs(30), || {
        let output = cluster.try_ctl(&["status"]);
        if output.status == 0 { Ok(()) } else { Err(output.stderr) }
    });
    let again = cluster.mount("again");
    assert_eq!(fs::metadata(again.join("kept")).unwrap().len(), before);
    cluster.check();
}

#[test]
fn a_flipped_bit_in_the_state_store_is_never_returned_as_data() {
    let mut cluster = Cluster::start();
    let mount = cluster.mount("m");
    let data = content(9, 3000);
    fs::write(mount.join("inline"), &data).unwrap();
    gofs_posix_tests::shell(mount.path(), "sync inline");
    mount.unmount();
    cluster.metas[0].stop();
    let flipped = flip(&cluster.dir().join("meta1/state"), &data[1000..1064]);
    assert!(!flipped.is_empty(), "the bytes of a small file are in the state store");
    cluster.metas[0].restart();
    let answered = (0..400).find_map(|_| {
        std::thread::sleep(Duration::from_millis(50));
        let up = cluster.try_ctl(&["status"]).status == 0;
        (up || !cluster.metas[0].is_running()).then_some(up)
    });
    if answered == Some(true) {
        let again = cluster.mount_as("again", "test", "soft=5s");
        match fs::read(again.join("inline")) {
            Ok(read) => assert!(read == data, "wrong bytes were returned"),
            Err(error) => eprintln!("refused, as it should be: {error}"),
        }
        let fsck = cluster.try_ctl(&["fsck"]);
        assert!(fsck.status != 0 || fs::read(again.join("inline")).is_ok(), "fsck did not notice: {fsck:?}");
    } else {
        let log = cluster.metas[0].log();
        assert!(log.contains("state") && !log.contains("panicked"), "{log}");
    }
}

#[test]
fn a_disk_that_was_away_while_a_file_was_overwritten_does_not_bring_the_old_bytes_back() {
    let mut cluster = Cluster::builder().chunks(1).start();
    let dirs = ["one", "two"].map(|name| cluster.dir().join(name).display().to_string());
    let both = dirs.join(",");
    let mut server = cluster.start_chunk("twodisks", &both);
    cluster.wait_chunk_servers(2);
    cluster.create_namespace("test", &["--chunk-size", "64K"]);
    let mount = cluster.mount("m");
    let write = |data: &[u8]| {
        fs::write(mount.join("file"), data).unwrap();
        let file = fs::File::options().write(true).open(mount.join("file")).unwrap();
        file.sync_all().unwrap();
    };
    let (old, new) = (content(1, 2 << 20), content(2, 2 << 20));
    let overwrite = || {
        let file = fs::File::options().write(true).open(mount.join("file")).unwrap();
        file.write_all_at(&new, 0).unwrap();
        file.sync_all().unwrap();
    };
    write(&old);

    server.stop();
    drop(server);
    cluster.wait_chunk_servers(1);
    let mut server = cluster.start_chunk("onedisk", &dirs[0]);
    cluster.wait_chunk_servers(2);
    overwrite();
    server.stop();
    drop(server);
    cluster.wait_chunk_servers(1);
    let _server = cluster.start_chunk("twodisks-again", &both);
    cluster.wait_chunk_servers(2);

    let read = |name: &str| {
        let reader = cluster.mount(name);
        assert!(fs::read(reader.join("file")).unwrap() == new, "{name}: old bytes");
        reader.unmount();
    };
    for turn in 0..3 {
        read(&format!("reader{turn}"));
    }
    cluster.wait_status_for("every chunk to have two replicas", Duration::from_secs(90), |status| {
        status["chunks_under_replicated"] == 0 && status["chunks_lost"] == 0
    });
    // What is left is what the server with two disks has.
    cluster.chunks[0].stop();
    let reader = cluster.mount("last");
    assert!(fs::read(reader.join("file")).unwrap() == new, "old bytes");
}

//! Backups taken while writes go on, clusters restored from them, and what fsck says and does afterwards.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use gofs_posix_tests::{Cluster, Load, content, eventually, posix, shell, wait_for};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(90);

/// Takes a backup and verifies it; the file and what `gofsctl` says of it.
fn back_up(cluster: &Cluster, name: &str) -> (PathBuf, Value) {
    let file = cluster.dir().join(name);
    let path = file.to_str().unwrap();
    let taken = cluster.ctl_json(&["backup", path]);
    assert_eq!(cluster.ctl_json(&["backup", "--verify", path]), taken);
    assert!(!cluster.dir().join(format!("{name}.part")).exists());
    (file, taken)
}

/// Puts a restored data directory in the place of each MetaServer's, and starts them.
fn restore(cluster: &mut Cluster, file: &Path) {
    for id in 1..=cluster.metas.len() {
        let data = cluster.dir().join(format!("meta{id}"));
        fs::rename(&data, cluster.dir().join(format!("meta{id}.lost"))).unwrap();
        let (file, data) = (file.to_str().unwrap(), data.to_str().unwrap());
        cluster.ctl(&["restore", file, "--data", data, "--id", &id.to_string()]);
    }
    for meta in &mut cluster.metas {
        meta.restart();
    }
}

fn problems(check: &Value) -> Vec<String> {
    check["problems"].as_array().unwrap().iter().map(|problem| problem.as_str().unwrap().to_owned()).collect()
}

fn fsck(cluster: &Cluster, args: &[&str]) -> Value {
    let output = cluster.try_ctl(&[&["--json", "fsck"], args].concat());
    serde_json::from_str(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"))
}

#[test]
fn a_restored_cluster_has_what_was_there_finds_the_newest_bytes_and_names_what_is_lost() {
    let mut cluster = Cluster::builder().session_s(4).start();
    cluster.create_namespace("test", &["--chunk-size", "1M"]);
    let mount = cluster.mount("m");
    let big = |seed: u64| content(seed, 2_500_000);
    fs::create_dir_all(mount.join("dir/deep")).unwrap();
    fs::write(mount.join("dir/deep/small"), "inline").unwrap();
    posix::set_xattr(&mount.join("dir/deep/small"), "user.colour", b"blue").unwrap();
    fs::hard_link(mount.join("dir/deep/small"), mount.join("again")).unwrap();
    for (name, seed) in [("kept", 1), ("overwritten", 2), ("dir/removed", 3)] {
        fs::write(mount.join(name), big(seed)).unwrap();
    }
    shell(mount.path(), "sync kept overwritten dir/removed dir/deep/small");

    // Writes go on while it is taken.
    let mut load = Load::new();
    load.start(mount.path(), 2, 11);
    wait_for("the load to run", PATIENCE, || load.operations() > 200);
    let begun = load.operations();
    let (file, taken) = back_up(&cluster, "backup");
    wait_for("the load to go on", PATIENCE, || load.operations() > begun + 20);
    assert_eq!(load.stop(), Vec::<String>::new());
    assert_eq!(taken["namespaces"][0]["name"], "test", "{taken}");
    assert!(taken["records"].as_u64().unwrap() > 100 && taken["edit_index"].as_u64().unwrap() > 0, "{taken}");

    // The cluster goes on, and what the backup knows becomes old: versions move, files come and go.
    cluster.chunks[0].kill();
    let changed = fs::File::options().write(true).open(mount.join("overwritten")).unwrap();
    changed.write_all_at(&big(4), 0).unwrap();
    changed.sync_all().unwrap();
    drop(changed);
    cluster.chunks[0].restart();
    fs::write(mount.join("later"), big(5)).unwrap();
    shell(mount.path(), "sync later");
    let later = fs::metadata(mount.join("later")).unwrap().ino();
    fs::remove_file(mount.join("dir/removed")).unwrap();
    shell(mount.path(), "rm -r load*");
    fs::File::open(mount.path()).unwrap().sync_all().unwrap();
    cluster.wait_status_for("removed chunks to be gone", PATIENCE, |status| {
        status["chunks_to_delete"] == 0 && status["chunk_servers_alive"] == 3
    });

    // The only MetaServer's disk is lost.
    cluster.metas[0].kill();
    restore(&mut cluster, &file);
    cluster.wait_status_for("ChunkServers to be known", PATIENCE, |status| status["chunks_known"] == true);

    // A mount of before goes on with what is there now.
    eventually("the old mount to go on", PATIENCE, || {
        fs::read_to_string(mount.join("dir/deep/small")).map_err(|error| error.to_string())
    });
    mount.unmount_whatever();
    let mount = cluster.mount("after");
    assert_eq!(fs::read_to_string(mount.join("again")).unwrap(), "inline");
    assert_eq!(posix::get_xattr(&mount.join("again"), "user.colour").unwrap(), b"blue");
    assert_eq!(fs::metadata(mount.join("again")).unwrap().nlink(), 2);
    assert!(fs::read(mount.join("kept")).unwrap() == big(1));
    assert!(fs::read(mount.join("overwritten")).unwrap() == big(4), "old bytes of a server that was away");
    assert!(!mount.join("later").exists());
    assert_eq!(fs::read(mount.join("dir/removed")).unwrap_err().raw_os_error(), Some(libc::EIO));
    fs::write(mount.join("new"), big(6)).unwrap();
    shell(mount.path(), "sync new");
    let new = fs::metadata(mount.join("new")).unwrap().ino();
    assert!(new > later + (1 << 32), "{new} after {later}");

    // What is lost is named, what is unknown is kept, and nothing is given up unasked.
    let check = eventually("fsck to name what is lost", PATIENCE, || {
        let check = fsck(&cluster, &[]);
        let problems = problems(&check);
        let of_removed = problems.iter().filter(|problem| problem.contains("test:/dir/removed")).count();
        // Files of the load were replaced after the backup; everything else is whole, or about to be.
        let expected = ["test:/dir/removed", "test:/load", "unknown to the state"];
        let known = |problem: &String| expected.iter().any(|part| problem.contains(part));
        if of_removed == 3 && problems.iter().all(known) { Ok(check) } else { Err(check.to_string()) }
    });
    assert!(check["unknown_chunks"].as_u64().unwrap() >= 3, "{check}");
    let refused = fsck(&cluster, &["--repair", "--lost-to-holes"]);
    assert!(problems(&refused).iter().any(|problem| problem.contains("is mounted")), "{refused}");
    assert_eq!(fs::read(mount.join("dir/removed")).unwrap_err().raw_os_error(), Some(libc::EIO));
    mount.unmount();
    let holes = fsck(&cluster, &["--repair", "--lost-to-holes"]);
    assert!(problems(&holes).iter().all(|problem| problem.contains("unknown to the state")), "{holes}");
    cluster.ctl(&["fsck", "--repair", "--discard-unknown"]);
    eventually("unknown chunks to be deleted", PATIENCE * 2, || {
        let check = fsck(&cluster, &[]);
        if check["unknown_chunks"] == 0 && check["unknown_going"] == 0 {
            Ok(())
        } else {
            Err(check.to_string())
        }
    });

    let mount = cluster.mount("last");
    assert!(fs::read(mount.join("dir/removed")).unwrap() == vec![0; 2_500_000]);
    assert!(fs::read(mount.join("overwritten")).unwrap() == big(4));
    assert!(
        fs::read(mount.join("kept")).unwrap() == big(1) && fs::read(mount.join("new")).unwrap() == big(6)
    );
    cluster.check();
}

#[test]
fn three_meta_servers_are_restored_from_one_file_and_go_on() {
    let mut cluster = Cluster::builder().metas(3).session_s(4).start();
    cluster.create_namespace("test", &[]);
    let mount = cluster.mount("m");
    fs::write(mount.join("file"), content(1, 300_000)).unwrap();
    shell(mount.path(), "sync file");
    let (file, _) = back_up(&cluster, "backup");
    mount.unmount();
    for meta in &mut cluster.metas {
        meta.kill();
    }
    restore(&mut cluster, &file);
    cluster.wait_status_for("three MetaServers and all ChunkServers", PATIENCE, |status| {
        let metas = status["metas"].as_array().unwrap();
        metas.len() == 3
            && metas.iter().all(|meta| meta["reachable"] == true)
            && status["chunks_known"] == true
    });
    let mount = cluster.mount("after");
    assert!(fs::read(mount.join("file")).unwrap() == content(1, 300_000));
    let leader = cluster.ctl_json(&["status"])["leader"].as_u64().unwrap() as usize - 1;
    cluster.metas[leader].kill();
    fs::write(mount.join("more"), "under the next leader").unwrap();
    shell(mount.path(), "sync more");
    cluster.metas[leader].restart();
    cluster.wait_status_for("it to be back", PATIENCE, |status| {
        status["metas"].as_array().unwrap().iter().all(|meta| meta["reachable"] == true)
    });
    cluster.check();
}

#[test]
fn what_is_no_backup_or_no_empty_directory_is_refused() {
    let cluster = Cluster::builder().chunks(1).start();
    cluster.create_namespace("test", &[]);
    let (file, _) = back_up(&cluster, "backup");
    let refused = |args: &[&str], word: &str| {
        let output = cluster.try_ctl(args);
        assert!(output.status == 1 && output.stderr.contains(word), "{args:?}: {output:#?}");
    };
    let path = file.to_str().unwrap();
    let cut = cluster.dir().join("cut");
    let whole = fs::read(&file).unwrap();
    fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
    refused(&["backup", "--verify", cut.to_str().unwrap()], "ends too early");
    let data = cluster.dir().join("data");
    let data = data.to_str().unwrap();
    refused(&["restore", cut.to_str().unwrap(), "--data", data], "ends too early");
    refused(&["backup", "--verify", "/etc/passwd"], "no backup");
    refused(&["restore", path, "--data", data, "--id", "4"], "--peers");
    refused(&["restore", path, "--data", cluster.dir().to_str().unwrap()], "not empty");
    assert!(!Path::new(data).exists(), "nothing was begun");
    cluster.ctl(&["restore", path, "--data", data]);
    refused(&["restore", path, "--data", data], "not empty");
    refused(&["backup", "/no/such/directory/file"], "/no/such/directory");
    // Through a pipe it is the same file, but for the time in its head.
    let piped = cluster.dir().join("piped");
    shell(
        Path::new("/"),
        &format!("{} --meta {} backup - > {}", gofs_posix_tests::gofsctl(), cluster.meta(), piped.display()),
    );
    assert_eq!(
        cluster.ctl_json(&["backup", "--verify", piped.to_str().unwrap()])["records"],
        cluster.ctl_json(&["backup", "--verify", path])["records"]
    );
}

//! Bad input is answered with an error that says what, where and what to do.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;
use std::{fs, thread};

use gofs_posix_tests::{Cluster, Output};
use rand::{Rng, RngExt, SeedableRng};

/// Runs a program of the workspace that must fail; returns what it says.
fn fails(binary: &str, args: &[&str]) -> String {
    let exe = std::env::current_exe().unwrap();
    let program = exe.parent().unwrap().parent().unwrap().join(binary);
    let mut child = Command::new(&program)
        .args(args)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{}: {e}: run `cargo build --workspace` first", program.display()));
    gofs_posix_tests::wait_for(&format!("{binary} {args:?} to fail"), Duration::from_secs(60), || {
        child.try_wait().unwrap().is_some()
    });
    let output = child.wait_with_output().unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(!output.status.success(), "{binary} {args:?} succeeded: {text}");
    assert!(!text.contains("panicked"), "{binary} {args:?}: {text}");
    text
}

fn assert_says(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "{word:?} is missing in: {text}");
    }
}

#[test]
fn a_port_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().to_str().unwrap();
    assert_says(&fails("gofs-meta", &["--id", "1", "--listen", &address, "--data", data]), &[&address]);
    let meta = "127.0.0.1:1";
    assert_says(&fails("gofs-chunk", &["--listen", &address, "--data", data, "--meta", meta]), &[&address]);
}

#[test]
fn a_directory_that_is_not_ours_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("thesis.txt"), "years of work").unwrap();
    let data = dir.path().to_str().unwrap();
    assert_says(&fails("gofs-meta", &["--id", "1", "--listen", "127.0.0.1:0", "--data", data]), &[data]);
    let meta = "127.0.0.1:1";
    assert_says(&fails("gofs-chunk", &["--listen", "127.0.0.1:0", "--data", data, "--meta", meta]), &[data]);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    let file = dir.path().join("thesis.txt").display().to_string();
    assert_says(
        &fails("gofs-chunk", &["--listen", "127.0.0.1:0", "--data", &file, "--meta", meta]),
        &[&file],
    );
}

#[test]
fn a_data_directory_of_another_cluster_is_refused() {
    let mut one = Cluster::builder().chunks(1).start();
    let two = Cluster::builder().chunks(0).start();
    one.chunks[0].stop();
    let data = one.dir().join("chunk1").display().to_string();
    let text = fails("gofs-chunk", &["--listen", "127.0.0.1:0", "--data", &data, "--meta", &two.meta()]);
    assert_says(&text, &["cluster"]);
}

#[test]
fn an_unknown_key_in_a_configuration_file_is_named_with_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("server.toml");
    let path = config.to_str().unwrap();
    fs::write(&config, "# a comment\nlisten = \"127.0.0.1:0\"\nrepliacs = 3\n").unwrap();
    for server in ["gofs-meta", "gofs-chunk"] {
        assert_says(&fails(server, &["--config", path]), &["repliacs", "3", path]);
    }
}

#[test]
fn a_wrong_address_or_namespace_fails_the_mount_with_a_reason() {
    let cluster = Cluster::start();
    let dir = tempfile::tempdir().unwrap();
    let point = dir.path().to_str().unwrap();
    assert_says(&fails("gofs-fuse", &[&format!("{}:/nothere", cluster.meta()), point]), &["nothere"]);
    assert_says(
        &fails("gofs-fuse", &[&format!("{}:/test/no/such/dir", cluster.meta()), point]),
        &["no/such/dir"],
    );
    assert_says(&fails("gofs-fuse", &["127.0.0.1:1:/test", point, "-o", "soft=2s"]), &["127.0.0.1:1"]);
    assert_says(&fails("gofs-fuse", &["nonsense", point]), &["nonsense"]);
    let source = format!("{}:/test", cluster.meta());
    assert_says(&fails("gofs-fuse", &[&source, "/no/such/mountpoint"]), &["/no/such/mountpoint"]);
    assert_says(&fails("gofs-fuse", &[&source, point, "-o", "frobnicate=1"]), &["frobnicate"]);
    assert_says(&fails("gofsctl", &["--meta", "nonsense", "status"]), &["nonsense", "HOST:PORT"]);
    assert_says(&fails("gofsctl", &["--meta", "127.0.0.1:1", "status"]), &["127.0.0.1:1"]);
}

#[test]
fn a_namespace_gets_only_what_makes_sense() {
    let cluster = Cluster::builder().chunks(1).start();
    let refuse = |args: &[&str], words: &[&str]| {
        let Output { status, stderr, .. } = cluster.try_ctl(args);
        assert!(status != 0, "{args:?}");
        assert_says(&stderr, words);
    };
    refuse(&["ns", "create", "a/b"], &["a/b"]);
    refuse(&["ns", "create", ""], &["name"]);
    refuse(&["ns", "create", "x", "--replicas", "0"], &["replicas"]);
    refuse(&["ns", "create", "x", "--chunk-size", "1000"], &["chunk"]);
    refuse(&["ns", "create", "x", "--inline-max", "1MiB"], &["inline"]);
    refuse(&["ns", "show", "x"], &["x"]);
    refuse(&["ns", "delete", "x"], &["x"]);
    cluster.create_namespace("x", &[]);
    refuse(&["ns", "create", "x"], &["x", "exists"]);
}

#[test]
fn a_name_of_300_bytes_is_enametoolong() {
    let cluster = Cluster::start();
    let mount = cluster.mount("m");
    let long = "n".repeat(300);
    assert_eq!(fs::write(mount.join(&long), "").unwrap_err().raw_os_error(), Some(libc::ENAMETOOLONG));
    assert_eq!(fs::metadata(mount.join(&long)).unwrap_err().raw_os_error(), Some(libc::ENAMETOOLONG));
    fs::write(mount.join(&"n".repeat(255)), "fits").unwrap();
}

#[test]
fn garbage_on_every_port_harms_nothing() {
    let mut cluster = Cluster::start();
    let mount = cluster.mount("m");
    fs::write(mount.join("before"), "1").unwrap();
    let seed: u64 = rand::rng().random();
    eprintln!("seed {seed}");
    let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
    let ports: Vec<String> =
        std::iter::once(cluster.meta()).chain((0..3).map(|i| cluster.chunk_address(i).to_string())).collect();
    let prefaces: [&[u8]; 4] =
        [b"", b"gofsfr1\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"];
    for round in 0..200 {
        let port = &ports[round % ports.len()];
        let mut bytes = prefaces[rng.random_range(0..prefaces.len())].to_vec();
        let mut noise = vec![0; rng.random_range(0..5000)];
        rng.fill_bytes(&mut noise);
        bytes.extend(noise);
        let mut stream = TcpStream::connect(port).unwrap_or_else(|e| panic!("{port} round {round}: {e}"));
        stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        // The server may close before it has read all.
        let _ = stream.write_all(&bytes);
        let _ = stream.read(&mut [0; 100]);
    }
    fs::write(mount.join("after"), "2").unwrap();
    assert_eq!(fs::read_to_string(mount.join("before")).unwrap(), "1");
    for server in cluster.metas.iter_mut().chain(&mut cluster.chunks) {
        assert!(server.is_running());
        assert!(!server.log().contains("panicked"), "{}", server.log());
    }
    cluster.check();
}

#[test]
fn a_full_disk_refuses_writes_and_keeps_what_was_there() {
    let small = tempfile::tempdir().unwrap();
    let data = small.path().to_str().unwrap();
    gofs_posix_tests::run("mount", &["-t", "tmpfs", "-o", "size=200m", "tmpfs", data]);
    let result = thread::spawn({
        let data = data.to_string();
        move || fill_up(&data)
    })
    .join();
    gofs_posix_tests::run("umount", &["-l", data]);
    result.unwrap();
}

fn fill_up(data: &str) {
    let cluster = Cluster::builder().chunks(0).start();
    let _chunk = cluster.start_chunk("full", data);
    cluster.wait_chunk_servers(1);
    cluster.create_namespace("test", &["--replicas", "1"]);
    let mount = cluster.mount("m");
    let mib = vec![5; 1 << 20];
    let kept = fs::File::create(mount.join("kept")).unwrap();
    for _ in 0..8 {
        (&kept).write_all(&mib).unwrap();
    }
    kept.sync_all().unwrap();
    let file = fs::File::create(mount.join("big")).unwrap();
    let refused = (0..400).find_map(|_| (&file).write_all(&mib).and_then(|()| file.sync_data()).err());
    assert_eq!(refused.expect("a disk of 200 MiB does not hold 400").raw_os_error(), Some(libc::ENOSPC));
    drop(file);
    assert_eq!(fs::read(mount.join("kept")).unwrap(), vec![5; 8 << 20]);
    fs::remove_file(mount.join("big")).unwrap();
    gofs_posix_tests::eventually("space to come back", Duration::from_secs(60), || {
        let file = fs::File::create(mount.join("again")).map_err(|e| e.to_string())?;
        (&file).write_all(&mib).and_then(|()| file.sync_all()).map_err(|e| e.to_string())
    });
    assert_eq!(fs::read(mount.join("kept")).unwrap(), vec![5; 8 << 20]);
}

//! The driver itself, for about a minute: whatever breaks, nothing acknowledged is lost.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::process::{Command, Stdio};

/// Needs root, namespaces and loop devices; without them the driver says what is missing, and this fails.
fn chaos(args: &[&str]) {
    let output = Command::new(env!("CARGO_BIN_EXE_gofs-chaos"))
        .args(["--session-s", "6", "--dead-after-s", "3", "--repair-after-s", "3"])
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}");
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("stale reads and whatever else must not be: 0"), "{text}");
}

#[test]
fn nothing_is_lost_while_servers_mounts_and_the_network_break() {
    let kinds = "leader-kill,chunk-kill,chunk-cut,client-frozen,client-cut,meta-cut,chunk-bits,clock";
    chaos(&["--minutes", "0.8", "--seed", "20", "--faults", kinds]);
}

#[test]
fn a_kind_that_does_not_exist_is_refused_with_those_that_do() {
    let output = Command::new(env!("CARGO_BIN_EXE_gofs-chaos")).args(["--faults", "flood"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("flood") && text.contains("leader-kill"), "{text}");
}

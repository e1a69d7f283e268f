//! The first command of the README.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use gofs_posix_tests::{Server, gofsctl, wait_for};

const LONG: Duration = Duration::from_secs(60);

/// Where it is mounted; no mount is left behind, however the test ends.
struct Point(PathBuf);

impl Drop for Point {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.0).output().ok();
    }
}

impl Point {
    fn is_mounted(&self) -> bool {
        fs::read_to_string("/proc/self/mounts").unwrap().contains(self.0.to_str().unwrap())
    }

    fn keep(&self, name: &str, text: &str) {
        let mut file = File::create(self.0.join(name)).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file.sync_all().unwrap();
    }
}

#[test]
fn one_command_starts_a_cluster_and_goes_on_with_it_also_after_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let point = Point(dir.path().join("mnt"));
    // Its ports are the usual ones: in a network of its own.
    let script = "ip link set lo up && exec \"$0\" \"$@\"";
    let (state, mount) = (dir.path().join("state"), point.0.display().to_string());
    let words = ["--net", "sh", "-c", script, &gofsctl(), "dev", "--mount", &mount, "--dir"];
    let mut args: Vec<String> = words.map(String::from).into();
    args.push(state.display().to_string());
    let mut dev = Server::start_prepared("dev", "unshare".into(), args, dir.path(), Box::new(|_| ()));
    let says = |dev: &Server, text: &str| dev.log().matches(text).count();
    let is_up = |dev: &Server, starts| {
        wait_for("it to be mounted", LONG, || says(dev, "demo is mounted on") == starts);
    };
    is_up(&dev, 1);
    point.keep("first", "kept");
    dev.kill();
    drop(Point(point.0.clone()));

    dev.restart();
    is_up(&dev, 2);
    let left = format!("a mount on {mount} was not unmounted");
    assert_eq!(says(&dev, &left), 1, "programs that wait now are told why");
    assert_eq!(fs::read_to_string(point.0.join("first")).unwrap(), "kept");
    point.keep("second", "kept, too");
    dev.signal(libc::SIGINT);
    assert_eq!(dev.wait_exit(LONG), 0);
    assert!(!point.is_mounted());

    dev.restart();
    is_up(&dev, 3);
    assert_eq!(fs::read_to_string(point.0.join("second")).unwrap(), "kept, too");
    assert_eq!(says(&dev, &left), 1, "the last stop left nobody behind");
    assert!(dev.stop());
    assert!(!point.is_mounted());
}
